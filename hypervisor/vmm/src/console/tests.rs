use super::*;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000;
const MILLISECOND: u64 = SECOND / 1000;

fn console(interactive: bool) -> Console {
    let mut console = Console::new(interactive, Frequency::from_hz(SECOND));
    assert_eq!(console.add_vm("a"), 0);
    assert_eq!(console.add_vm("b"), 1);
    console
}

fn transmit(console: &mut Console, vm: usize, bytes: &[u8], now: u64) {
    for &byte in bytes {
        assert!(console.guest_byte(vm, byte, Tsc(now)), "no room");
    }
}

fn drained(console: &mut Console) -> String {
    let mut out = Vec::new();
    console.drain(&mut |bytes| {
        out.extend_from_slice(bytes);
        bytes.len()
    });
    assert!(!console.has_output());
    String::from_utf8(out).unwrap()
}

/// What a terminal shows: the lines, where ESC [ 2 K erases one, and without colours.
fn screen(raw: &str) -> Vec<String> {
    let raw = raw.replace("\x1b[0;1m", "").replace("\x1b[0m", "");
    let raw = (31..37).fold(raw, |raw, colour| raw.replace(&format!("\x1b[0;{colour}m"), ""));
    raw.split("\r\n").map(|line| line.rsplit("\r\x1b[2K").next().unwrap_or(line).to_string()).collect()
}

fn typed(console: &mut Console, text: &[u8]) -> Vec<Event> {
    text.iter().filter_map(|&byte| console.input(byte)).collect()
}

#[test]
fn lines_are_whole_and_prefixed() {
    let mut console = console(false);
    transmit(&mut console, 0, b"one\r\ntw", 0);
    console.log_line("boot");
    transmit(&mut console, 1, b"x\n", 0);
    transmit(&mut console, 0, b"o\n\n", 0);
    assert_eq!(drained(&mut console), "[a] one\r\n[lamina] boot\r\n[b] x\r\n[a] two\r\n[a] \r\n");
}

#[test]
fn silence_gives_out_a_partial_line_after_50_ms_and_not_before() {
    let mut console = console(false);
    transmit(&mut console, 0, b"/ # ", 100);
    assert_eq!(console.next_deadline(), Some(Tsc(100 + 50 * MILLISECOND)));
    console.poll(Tsc(99 + 50 * MILLISECOND));
    assert_eq!(drained(&mut console), "");
    console.poll(Tsc(100 + 50 * MILLISECOND));
    assert_eq!(drained(&mut console), "[a] / # \r\n");
    assert_eq!(console.next_deadline(), None);
    transmit(&mut console, 0, b"ls\r\n", 60 * MILLISECOND);
    assert_eq!(drained(&mut console), "[a] ls\r\n");
}

#[test]
fn a_partial_line_of_256_bytes_is_given_out_at_once() {
    let mut console = console(false);
    transmit(&mut console, 0, &[b'x'; 255], 0);
    assert_eq!(drained(&mut console), "");
    transmit(&mut console, 0, b"xyz\r\n", 0);
    assert_eq!(drained(&mut console), format!("[a] {}\r\n[a] yz\r\n", "x".repeat(256)));
}

#[test]
fn a_full_share_keeps_the_transmitter_busy_and_only_that_guests() {
    let mut console = console(false);
    let mut sent = 0;
    while console.guest_byte(0, if sent % 64 == 63 { b'\n' } else { b'x' }, Tsc(0)) {
        sent += 1;
        assert!(sent <= VM_SHARE, "a share has an end");
    }
    assert!(sent > VM_SHARE / 2);
    assert!(console.guest_byte(1, b'y', Tsc(0)));
    console.log_line("still heard");
    let out = drained(&mut console);
    assert_eq!(out.matches('x').count(), sent - sent / 64, "all that was accepted comes out");
    assert!(out.ends_with("[lamina] still heard\r\n"));
    assert!(console.guest_byte(0, b'x', Tsc(0)));
}

#[test]
fn a_port_with_little_room_gets_everything_in_order() {
    let mut console = console(false);
    transmit(&mut console, 0, b"abc\n", 0);
    console.log_line("def");
    let mut out = Vec::new();
    while console.has_output() {
        let mut room = 3;
        console.drain(&mut |bytes| {
            let count = bytes.len().min(room);
            room -= count;
            out.extend_from_slice(&bytes[..count]);
            count
        });
    }
    assert_eq!(out, b"[a] abc\r\n[lamina] def\r\n");
}

#[test]
fn own_lines_behind_a_dead_port_are_counted_not_forgotten() {
    let mut console = console(false);
    let line = "x".repeat(1000);
    for _ in 0..100 {
        console.log_line(&line);
    }
    let out = drained(&mut console);
    let kept = out.matches("[lamina] x").count();
    assert!(kept >= 60 && out.len() < OWN_SHARE + 2000);
    assert!(out.ends_with(&format!("[lamina] {} lines lost\r\n", 100 - kept)), "{}", &out[out.len() - 60..]);
}

#[test]
fn own_lines_are_split_and_cleaned() {
    let mut console = console(false);
    console.log_line("two\nlines\x1b[31m");
    assert_eq!(drained(&mut console), "[lamina] two\r\n[lamina] lines?[31m\r\n");
}

#[test]
fn a_script_gives_commands_without_echo() {
    let mut console = console(false);
    let events = typed(&mut console, b"vms\nstop ticker\r\n\nquit");
    assert_eq!(events, [Event::Command(Command::Vms), Event::Command(Command::Stop("ticker".into()))]);
    assert_eq!(drained(&mut console), "");
    assert_eq!(typed(&mut console, b"\nfoo\n"), [Event::Command(Command::Quit)]);
    assert_eq!(drained(&mut console), "[lamina] unknown command 'foo'; 'help' lists the commands\r\n");
    typed(&mut console, b"help\n");
    assert!(drained(&mut console).contains("[lamina] attach NAME"));
}

#[test]
fn an_overlong_command_is_refused_and_the_next_is_heard() {
    let mut console = console(false);
    assert_eq!(typed(&mut console, &[b'v'; 1000]), []);
    assert_eq!(typed(&mut console, b"\nvms\n"), [Event::Command(Command::Vms)]);
    assert_eq!(drained(&mut console), "[lamina] a command of more than 256 bytes is ignored\r\n");
}

#[test]
fn what_a_script_typed_for_a_vm_that_has_ended_is_no_command_once_it_detaches() {
    let mut console = console(false);
    console.attach(1);
    assert_eq!(typed(&mut console, b"y").len(), 1);
    console.vm_stopped(1);
    assert_eq!(typed(&mut console, b"es, \x01dvms\n"), [Event::Command(Command::Vms)]);
    assert_eq!(typed(&mut console, b"\x01vms\n"), [Event::Command(Command::Vms)], "Ctrl-A and nothing that it is for");
}

#[test]
fn a_script_that_attaches_feeds_one_guest_while_all_output_flows() {
    let mut console = console(false);
    console.attach(0);
    assert_eq!(console.attached(), Some(0));
    assert_eq!(typed(&mut console, b"ls\n"), vec![Event::GuestInput { vm: 0 }; 3]);
    let mut got = Vec::new();
    console.give_input(0, &mut |bytes| {
        got.extend_from_slice(&bytes[..1]);
        1
    });
    assert!(console.has_input(0));
    console.give_input(0, &mut |bytes| {
        got.extend_from_slice(bytes);
        bytes.len()
    });
    assert_eq!(got, b"ls\n");
    assert!(!console.has_input(0));
    transmit(&mut console, 0, b"file\n", 0);
    transmit(&mut console, 1, b"tick\n", 0);
    assert_eq!(typed(&mut console, b"\x01dvms\n"), [Event::Command(Command::Vms)]);
    assert_eq!(
        drained(&mut console),
        "[lamina] attached to a; Ctrl-A d detaches\r\n[a] file\r\n[b] tick\r\n[lamina] detached from a\r\n"
    );
}

#[test]
fn input_for_a_guest_that_does_not_read_is_bounded() {
    let mut console = console(false);
    console.attach(0);
    let mut count = 0;
    while console.accepts_input() {
        let _ = console.input(b'x');
        count += 1;
    }
    assert_eq!(count, INPUT_SHARE);
    let _ = console.input(b'y');
    assert_eq!(typed(&mut console, b"\x01d"), [], "detaching works all the same");
    assert!(console.accepts_input());
}

#[test]
fn the_prompt_steps_aside_for_a_line_and_comes_back_with_what_was_typed() {
    let mut console = console(true);
    assert_eq!(screen(&drained(&mut console)), ["lamina> "]);
    assert_eq!(typed(&mut console, b"vm"), []);
    assert_eq!(drained(&mut console), "vm");
    transmit(&mut console, 0, b"hello\n", 0);
    let out = drained(&mut console);
    assert!(out.starts_with("\r\x1b[2K\x1b[0;36m[a]\x1b[0m hello\r\n"), "{out:?}");
    assert_eq!(screen(&out), ["[a] hello", "lamina> vm"]);
    assert_eq!(typed(&mut console, b"s\r"), [Event::Command(Command::Vms)]);
    console.reply("a running");
    assert_eq!(screen(&drained(&mut console)), ["s", "[lamina] a running", "lamina> "]);
}

#[test]
fn the_cursor_is_where_it_was_after_the_prompt_came_back() {
    let mut console = console(true);
    typed(&mut console, b"top\x1b[D\x1b[D");
    drained(&mut console);
    transmit(&mut console, 0, b"x\n", 0);
    let out = drained(&mut console);
    assert!(out.ends_with("lamina> top\x1b[D\x1b[D"), "{out:?}");
    typed(&mut console, b"\x7fs");
    typed(&mut console, b"\x1b[Ht\x1b[3~\x1b[4~");
    // "top" with the cursor behind "t": backspace and "s" make "sop", then Home, "t", delete "s": "top".
    assert_eq!(typed(&mut console, b"\r"), []);
    assert!(drained(&mut console).contains("unknown command 'top'"));
}

#[test]
fn history_and_erasing() {
    let mut console = console(true);
    assert_eq!(typed(&mut console, b"vms\r\x1b[A\r"), vec![Event::Command(Command::Vms); 2]);
    assert_eq!(typed(&mut console, b"garbage\x15\x10\r"), [Event::Command(Command::Vms)]);
    assert_eq!(typed(&mut console, b"garbage\x03quit\x1bxq\x7f\x7f\r\n"), [Event::Command(Command::Quit)]);
}

#[test]
fn attached_terminal_is_raw_and_others_wait() {
    let mut console = console(true);
    transmit(&mut console, 0, b"login: ", 0);
    drained(&mut console);
    console.attach(0);
    assert!(drained(&mut console).ends_with("attached to a; Ctrl-A d detaches\r\nlogin: "));
    assert_eq!(console.next_deadline(), None, "a raw byte waits for nothing");
    transmit(&mut console, 0, b"r\x1b[1m\r", 0);
    transmit(&mut console, 1, b"tick\n", 0);
    console.log_line("note");
    assert_eq!(drained(&mut console), "r\x1b[1m\r");
    assert_eq!(typed(&mut console, b"\x01\x01\x01x"), [Event::GuestInput { vm: 0 }]);
    let mut got = Vec::new();
    console.give_input(0, &mut |bytes| {
        got.extend_from_slice(bytes);
        bytes.len()
    });
    assert_eq!(got, [0x01]);
    transmit(&mut console, 0, b"$ ", 0);
    assert_eq!(typed(&mut console, b"\x01d"), []);
    assert_eq!(
        screen(&drained(&mut console)),
        ["$ ", "[lamina] detached from a", "[b] tick", "[lamina] note", "lamina> "]
    );
    transmit(&mut console, 0, b"\r\nnext\r\n", 0);
    assert_eq!(screen(&drained(&mut console)), ["[a] next", "lamina> "]);
}

#[test]
fn what_is_kept_is_bounded_by_the_guests_share() {
    let mut console = console(true);
    console.attach(0);
    let accepted = (0..).take_while(|_| console.guest_byte(1, b'\n', Tsc(0))).count();
    assert!(accepted > 100 && accepted < VM_SHARE);
    transmit(&mut console, 0, b"fine", 0);
    console.detach();
    assert_eq!(drained(&mut console).matches("[b]").count(), accepted);
    assert!(console.guest_byte(1, b'x', Tsc(0)));
}

#[test]
fn a_guest_that_ends_gives_back_the_terminal() {
    let mut console = console(true);
    console.attach(0);
    typed(&mut console, b"x");
    transmit(&mut console, 1, b"part", 0);
    console.vm_stopped(0);
    assert_eq!(console.attached(), None);
    assert!(!console.has_input(0));
    console.vm_stopped(1);
    assert_eq!(
        screen(&drained(&mut console)),
        ["[lamina] attached to a; Ctrl-A d detaches", "[lamina] detached from a", "[b] part", "lamina> "]
    );
    console.vm_stopped(7);
    console.attach(7);
    assert_eq!(console.attached(), None);
}

#[test]
fn the_last_line_is_the_verdict_and_plain() {
    for interactive in [false, true] {
        let mut console = console(interactive);
        typed(&mut console, b"qui");
        drained(&mut console);
        transmit(&mut console, 0, b"half a li", 0);
        console.exit(3);
        let out = drained(&mut console);
        assert!(out.ends_with("\r\n[lamina] exit 3\r\n"), "{out:?}");
        assert!(out.contains("half a li\r\n"));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Bytes(usize, Vec<u8>),
    Wait(u64),
    Drain(usize),
    Log,
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => any::<u8>(), 1 => Just(b'\r'), 1 => Just(b'\n'), 2 => b' '..b'~'];
    prop_oneof![9 => prop::collection::vec(byte, 0..40), 1 => (1usize..600).prop_map(|n| vec![b'l'; n])]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..2, bytes()).prop_map(|(vm, bytes)| Step::Bytes(vm, bytes)),
        2 => (0..120 * MILLISECOND).prop_map(Step::Wait),
        2 => (0usize..500).prop_map(Step::Drain),
        1 => Just(Step::Log),
    ]
}

proptest! {
    /// Whatever two guests send and however it is timed: each line has a prefix, and what stands behind the prefixes of
    /// one guest is what that guest sent, without CR and LF.
    #[test]
    fn nothing_is_lost_nothing_is_mixed(steps in prop::collection::vec(step(), 0..60)) {
        let mut console = console(false);
        let mut now = 0;
        let mut sent = [Vec::new(), Vec::new()];
        let mut logged = 0;
        let mut out = Vec::new();
        for step in steps {
            match step {
                Step::Bytes(vm, bytes) => {
                    for byte in bytes {
                        if !console.guest_byte(vm, byte, Tsc(now)) {
                            break;
                        }
                        if byte != b'\r' && byte != b'\n' {
                            sent[vm].push(byte);
                        }
                        now += 10;
                    }
                }
                Step::Wait(ticks) => {
                    now += ticks;
                    console.poll(Tsc(now));
                    prop_assert!(console.next_deadline().is_none_or(|deadline| deadline > Tsc(now)));
                }
                Step::Drain(mut room) => console.drain(&mut |bytes| {
                    let count = bytes.len().min(room);
                    room -= count;
                    out.extend_from_slice(&bytes[..count]);
                    count
                }),
                Step::Log => {
                    console.log_line("note");
                    logged += 1;
                }
            }
        }
        console.exit(0);
        console.drain(&mut |bytes| {
            out.extend_from_slice(bytes);
            bytes.len()
        });
        prop_assert!(out.ends_with(b"[lamina] exit 0\r\n"));
        let mut got = [Vec::new(), Vec::new()];
        let mut notes = 0;
        for line in out.split_inclusive(|&b| b == b'\n') {
            let line = line.strip_suffix(b"\r\n").expect("a whole line");
            prop_assert!(!line.contains(&b'\r'));
            if let Some(payload) = line.strip_prefix(b"[a] ") {
                prop_assert!(payload.len() <= 256);
                got[0].extend_from_slice(payload);
            } else if let Some(payload) = line.strip_prefix(b"[b] ") {
                got[1].extend_from_slice(payload);
            } else if line == b"[lamina] note" {
                notes += 1;
            } else {
                prop_assert_eq!(line, b"[lamina] exit 0");
            }
        }
        prop_assert_eq!(got, sent);
        prop_assert_eq!(notes, logged);
    }

    /// No input makes the console fail, and a command typed after any garbage is heard.
    #[test]
    fn any_input_is_survived(interactive: bool, garbage in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut console = console(interactive);
        for byte in garbage {
            if let Some(Event::Command(Command::Attach(_))) = console.input(byte) {
                console.attach(0);
            }
            drained_bytes(&mut console);
        }
        console.detach();
        typed(&mut console, b"\x1b[A\x03\r\n");
        prop_assert_eq!(typed(&mut console, b"vms\r").pop(), Some(Event::Command(Command::Vms)));
    }
}

fn drained_bytes(console: &mut Console) {
    console.drain(&mut <[u8]>::len);
}
