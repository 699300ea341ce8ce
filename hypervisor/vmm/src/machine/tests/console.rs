//! What is typed at the machine's console, and what guests transmit behind a slow port.

use super::*;

/// A guest that sleeps, and gives back whatever it receives.
fn echo() -> Program {
    let (mut started, mut waiting) = (false, std::collections::VecDeque::new());
    let mut phase = 0;
    Box::new(move |cpu| {
        use crate::vcpu::Vcpu;
        use lamina_arch::exit::Width;
        use lamina_arch::regs::Gpr;
        if !started {
            started = true;
            return sti();
        }
        loop {
            match phase {
                // Is there something?
                0 => {
                    phase = 1;
                    return inp(CONSOLE_STATUS_PORT, Width::B1);
                }
                1 => {
                    let status = cpu.gprs().get(Gpr::Rax) & 0xff;
                    if status & 1 != 0 {
                        phase = 2;
                        return inp(CONSOLE_PORT, Width::B1);
                    }
                    if status & 0x20 != 0
                        && let Some(byte) = waiting.pop_front()
                    {
                        phase = 0;
                        return outb(CONSOLE_PORT, byte);
                    }
                    phase = 0;
                    return if waiting.is_empty() { hlt() } else { Step::compute(10_000) };
                }
                _ => {
                    waiting.push_back(cpu.gprs().get(Gpr::Rax).to_le_bytes()[0]);
                    phase = 0;
                }
            }
        }
    })
}

#[test]
fn vms_lists_names_states_memory_and_times() {
    let (_, world) = Bench::new()
        .vm("hog", script([]))
        .vm("sleeper", script([sti(), hlt()]))
        .vm("gone", script([power_off()]))
        .memory(4 * MIB)
        .typed(3 * HZ, "vms\n")
        .typed(3 * HZ + SLICE, "quit\n")
        .run::<FakeChipset>();
    let lines = world.lines_of("lamina");
    let table = lines.iter().position(|line| line.starts_with("NAME")).expect("a heading");
    let words: Vec<Vec<&str>> = lines[table + 1..table + 4].iter().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(words[0][..7], ["hog", "running", "2", "MiB", "2", "MiB", "2.999"]);
    assert_eq!(words[1][..7], ["sleeper", "waiting", "2", "MiB", "2", "MiB", "0.000"]);
    assert_eq!(words[1][7], "1", "one exit: HLT");
    assert_eq!(words[2][..6], ["gone", "stopped", "4", "MiB", "0", "MiB"]);
    // Two times 2 MiB and the tables of both, which break a large frame each.
    assert!(lines[table + 4].ends_with("of 32 MiB of guest memory free, up 3 s"), "{}", lines[table + 4]);
}

#[test]
fn msrs_names_what_a_guest_did_not_get() {
    let tries = [rdmsr(0x3a), rdmsr(0x3a), wrmsr(0x3a, 5), rdmsr(0xfe), wrmsr(0xc001_0015, 1)];
    let (_, world) = Bench::new()
        .vm("a", script(tries))
        .vm("b", script([]))
        .typed(HZ, "msrs a\nmsrs b\nexits a\nquit\n")
        .run::<FakeChipset>();
    let lines = world.lines_of("lamina");
    let table = lines.iter().position(|line| line.starts_with("MSR")).expect("a heading");
    let words = |n: usize| lines[table + n].split_whitespace().collect::<Vec<_>>();
    assert_eq!((words(1), words(2)), (vec!["0x0000003a", "2", "1"], vec!["0xc0010015", "0", "1"]));
    assert_eq!(lines[table + 3], "b: no access to an MSR was refused");
    assert!(lines.iter().any(|line| line.contains("4 accesses to MSRs refused")), "{lines:?}");
}

#[test]
fn stop_ends_that_vm_and_gives_its_memory_back() {
    let (mut machine, world) = Bench::new()
        .vm("a", script(print("a: half a li").into_iter().collect::<Vec<_>>()))
        .vm("b", script([]))
        .typed(HZ, "stop a\n")
        .typed(2 * HZ, "stop a\nstop nobody\nfoo\nstop b\n")
        .boot::<FakeChipset>();
    let both = machine.pool.used();
    step_until(&mut machine, |m| alive(m, 0).is_none());
    assert_eq!(machine.pool.used() * 2, both);
    assert!(world.now().0.abs_diff(HZ) < SLICE);
    assert_eq!(finish(&mut machine), 0, "to be stopped by command is no failure");
    assert_eq!(world.lines_of("a"), ["a: half a li"]);
    assert_eq!(
        world.lines_of("lamina"),
        [
            "a stopped: stopped from the console (status 0)",
            "a has stopped",
            "nobody is no virtual machine; `vms` lists them",
            "unknown command 'foo'; 'help' lists the commands",
            "b stopped: stopped from the console (status 0)",
            "all virtual machines have stopped",
            "exit 0",
        ]
    );
}

#[test]
fn a_vm_that_is_stopped_with_a_status_is_no_failure() {
    let failing = script([outb(crate::layout::STATUS_PORT, 4)]);
    let (status, _) = Bench::new().vm("a", failing).typed(HZ, "stop a\n").run::<FakeChipset>();
    assert_eq!(status, 0);
}

#[test]
fn quit_ends_the_machine_whatever_runs() {
    let (status, world) = Bench::new()
        .vm("hog", script([]))
        .vm("dead", script([Step::exit(lamina_arch::exit::Exit::TripleFault)]))
        .typed(HZ, "quit\n")
        .run::<FakeChipset>();
    assert_eq!(status, 0);
    assert!(world.now().0.abs_diff(HZ) < SLICE);
    assert_eq!(world.lines().last().unwrap(), "[lamina] exit 0");
}

#[test]
fn a_command_is_served_soon_beside_a_hog() {
    let (mut machine, world) = Bench::new().vm("hog", script([])).typed(SLICE / 3, "vms\n").boot::<FakeChipset>();
    assert_eq!(machine.step(), None);
    assert_eq!(world.now().0, SLICE / 3, "it ends the guest's run at once");
    assert_eq!(machine.step(), None);
    assert!(world.text().contains("NAME"));
}

#[test]
fn input_reaches_the_guest_that_is_attached_and_no_other() {
    let text = "hello, this line is much longer than the sixteen bytes of a receiver\n";
    let (status, world) = Bench::new()
        .vm("one", echo())
        .vm("two", echo())
        .typed(HZ, "attach two\n")
        .typed(HZ + 1, text)
        .typed(2 * HZ, "\x01dstop one\nattach nobody\n")
        .typed(3 * HZ, "stop two\nattach two\n")
        .run::<FakeChipset>();
    assert_eq!(status, 0);
    assert_eq!(world.lines_of("two"), [text.trim_end()]);
    assert_eq!(world.lines_of("one"), [""; 0]);
    let lines = world.lines_of("lamina");
    assert_eq!(lines[0], "attached to two; Ctrl-A d detaches");
    assert_eq!(lines[1], "detached from two");
    assert_eq!(lines[3], "nobody is no virtual machine; `vms` lists them");
}

#[test]
fn input_waits_for_a_guest_that_does_not_read() {
    // More than receiver and console keep together: the rest waits in the port, and nothing of it is lost.
    let text: String = (0..150).map(|line| format!("{line:049}\n")).collect();
    let mut reading = echo();
    let program: Program = Box::new(move |cpu| {
        // Deaf for a second.
        if cpu.now().0 < 2 * HZ { Step::compute(2 * HZ) } else { reading(cpu) }
    });
    let (mut machine, world) =
        Bench::new().vm("a", program).typed(HZ, "attach a\n").typed(HZ + 1, &text).boot::<FakeChipset>();
    step_until(&mut machine, |_| world.now().0 > HZ + 3 * SLICE);
    assert!(!machine.console.accepts_input(), "the console is full");
    step_until(&mut machine, |_| world.lines_of("a").len() == 150);
    assert_eq!(world.lines_of("a").join("\n"), text.trim_end());
}

#[test]
fn a_slow_port_keeps_a_guest_waiting_and_loses_nothing() {
    // Each polls its transmitter and writes 10 KiB, more than its share of the console's queue.
    let writer = |letter: char| -> Program {
        use crate::vcpu::Vcpu;
        use lamina_arch::exit::Width;
        use lamina_arch::regs::Gpr;
        let mut text: std::collections::VecDeque<u8> =
            (0..200).flat_map(|line| format!("{letter}{line:049}\n").into_bytes()).collect();
        let mut asked = false;
        Box::new(move |cpu| {
            let ready = asked && cpu.gprs().get(Gpr::Rax) & 0x20 != 0;
            if ready && let Some(byte) = text.pop_front() {
                asked = false;
                return outb(CONSOLE_PORT, byte);
            }
            if text.is_empty() {
                return power_off();
            }
            asked = true;
            inp(CONSOLE_STATUS_PORT, Width::B1).after(2_000)
        })
    };
    let bench = Bench::with_serial(64, 8_700).vm("a", writer('a')).vm("b", writer('b'));
    let (status, world) = bench.run::<FakeChipset>();
    assert_eq!(status, 0);
    for name in ["a", "b"] {
        let expected: Vec<String> = (0..200).map(|line| format!("{name}{line:049}")).collect();
        assert_eq!(world.lines_of(name), expected);
    }
}

#[test]
fn a_guest_that_sleeps_with_output_left_sends_it_when_there_is_room() {
    // Fills the console from memory, then leaves bytes in its own transmitter and sleeps.
    use lamina_arch::hypercall as abi;
    let fill = Step::act(|cpu| cpu.write_memory(0x4_8000, &[b'f'; 4095]));
    let line = || hypercall(abi::CONSOLE_WRITE, 0x4_8000, 4095);
    let mut steps = vec![fill, line(), line(), line(), line()];
    steps.extend(print("last\n"));
    steps.extend([sti(), hlt()]);
    let (mut machine, world) = Bench::with_serial(64, 1_000).vm("a", script(steps)).boot::<FakeChipset>();
    step_until(&mut machine, |m| !m.scheduler.is_runnable(0));
    assert!(alive(&machine, 0).is_some_and(|vm| crate::chipset::Chipset::has_output(&vm.chipset)), "nothing is left");
    step_until(&mut machine, |_| world.text().contains("last"));
}
