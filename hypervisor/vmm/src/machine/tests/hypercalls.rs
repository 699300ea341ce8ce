//! The para-virtual interface, as `arch::hypercall` writes it down.

use lamina_arch::hypercall as abi;
use lamina_arch::regs::{Gpr, Gprs};
use lamina_arch::segment::{AccessRights, Segment, SegmentName};

use super::*;
use crate::vcpu::Vcpu;

const TEXT: u64 = 0x4_8000;

fn put(at: u64, bytes: &'static [u8]) -> Step {
    Step::act(move |cpu| cpu.write_memory(at, bytes))
}

/// Gives the guest this privilege level.
fn cpl(level: u32) -> Step {
    Step::act(move |cpu| {
        let rights = AccessRights(AccessRights::DATA32.0 | level << 5);
        let ss = Segment { rights, ..cpu.segment(SegmentName::Ss) };
        cpu.set_segment(SegmentName::Ss, ss);
    })
}

/// The guest goes on in a code segment of 32 bits.
fn compatibility() -> Step {
    Step::act(|cpu| {
        let cs = Segment { rights: AccessRights::CODE32, ..cpu.segment(SegmentName::Cs) };
        cpu.set_segment(SegmentName::Cs, cs);
    })
}

/// Results of `calls`, each done after `before`.
fn results(before: impl Fn() -> Vec<Step>, calls: impl IntoIterator<Item = Step>) -> (Vec<i64>, World) {
    let notes = Notes::new();
    let mut steps = before();
    for call in calls {
        steps.extend([call, notes.note(|cpu| cpu.gprs().get(Gpr::Rax).cast_signed())]);
    }
    let world = run_one(steps);
    (notes.taken(), world)
}

#[test]
fn console_write_shows_guest_memory_and_says_how_much() {
    let (got, world) = results(
        || vec![put(TEXT, b"hello from a hypercall\n")],
        [hypercall(abi::CONSOLE_WRITE, TEXT, 23), hypercall(abi::CONSOLE_WRITE, 1 << 60, 0)],
    );
    assert_eq!(got, [23, 0]);
    assert_eq!(world.lines()[0], "[a] hello from a hypercall");
    assert_eq!(world.trace(1).advanced[..2], [ENTRY + 3, ENTRY + 6]);
}

#[test]
fn console_write_crosses_pages_and_its_own_pieces() {
    let line: &'static [u8] = &[b'x'; 250];
    let (got, world) = results(
        || vec![put(0x4_8f80, line), put(0x4_8f80 + 250, b"\n"), put(0x4_8f80 + 251, line), put(0x4_8f80 + 501, b"\n")],
        [hypercall(abi::CONSOLE_WRITE, 0x4_8f80, 502)],
    );
    assert_eq!(got, [502]);
    assert_eq!(world.lines_of("a"), ["x".repeat(250), "x".repeat(250)]);
}

#[test]
fn what_is_wrong_has_its_error_and_no_effect() {
    let end = 2 * MIB;
    let (got, world) = results(
        || vec![put(end - 4, b"text")],
        [
            hypercall(abi::CONSOLE_WRITE, TEXT, abi::CONSOLE_WRITE_MAX + 1),
            hypercall(abi::CONSOLE_WRITE, TEXT, u64::MAX),
            hypercall(abi::CONSOLE_WRITE, end - 4, 5),
            // More than the hypervisor copies at once.
            hypercall(abi::CONSOLE_WRITE, end - 300, 301),
            hypercall(abi::CONSOLE_WRITE, u64::MAX - 1, 4),
            hypercall(abi::CONSOLE_WRITE, 0xa_0000, 1),
            hypercall(abi::CONSOLE_WRITE, REGISTER.0, 1),
            hypercall(5, 0, 0),
            hypercall(u64::MAX, 0, 0),
            hypercall(1 << 32 | abi::YIELD, 0, 0),
        ],
    );
    let (inval, fault, nosys) = (abi::EINVAL, abi::EFAULT, abi::ENOSYS);
    assert_eq!(got, [inval, inval, fault, fault, fault, fault, fault, nosys, nosys, nosys]);
    assert_eq!(world.lines_of("a"), [""; 0]);
}

#[test]
fn only_the_kernel_may_call_but_for_the_call_that_does_nothing() {
    let all = [abi::CONSOLE_WRITE, abi::YIELD, abi::CLOCK, abi::EXIT, 99];
    for level in 1..=3 {
        let (got, _) = results(|| vec![cpl(level)], all.map(|number| hypercall(number, TEXT, 1)));
        assert_eq!(got, [abi::EPERM; 5], "CPL {level}");
        let (got, _) = results(|| vec![cpl(level)], [hypercall(abi::NOP, 1, 2)]);
        assert_eq!(got, [0]);
    }
}

#[test]
fn outside_64_bit_mode_upper_halves_are_ignored() {
    let high = 0xffff_ffff_0000_0000;
    let (got, world) = results(
        || vec![put(TEXT, b"short\n"), compatibility()],
        [
            hypercall(high | abi::CONSOLE_WRITE, high | TEXT, high | 6),
            hypercall(high | abi::YIELD, 0, 0),
            hypercall(high | 77, 0, 0),
            hypercall(high | abi::NOP, 0, 0),
        ],
    );
    assert_eq!(got, [6, 0, abi::ENOSYS & 0xffff_ffff, 0]);
    assert_eq!(world.lines()[0], "[a] short");
    let (got, _) = results(|| vec![compatibility(), cpl(3)], [hypercall(high | abi::NOP, 0, 0)]);
    assert_eq!(got, [0], "allowed everywhere, whatever the upper half holds");
}

#[test]
fn clock_counts_nanoseconds_since_the_start() {
    let (got, _) = results(Vec::new, [hypercall(abi::CLOCK, 0, 0).after(500), hypercall(abi::CLOCK, 0, 0).after(HZ)]);
    assert_eq!(got, [5_000, 1_000_005_000]);
}

#[test]
fn no_register_but_rax_changes() {
    let notes = Notes::new();
    let mut steps = vec![put(TEXT, b"x\n")];
    for number in [abi::NOP, abi::CONSOLE_WRITE, abi::YIELD, abi::CLOCK, 1234] {
        let fill = move |cpu: &mut FakeVcpu| {
            for i in 0..16u8 {
                cpu.gprs().set(Gpr::from_encoding(i), u64::from(i) << 40 | 7);
            }
            cpu.gprs().set(Gpr::Rax, number);
            cpu.gprs().set(Gpr::Rdi, TEXT);
            cpu.gprs().set(Gpr::Rsi, 2);
        };
        steps.push(hypercall(number, TEXT, 2).with(fill));
        steps.push(notes.note(move |cpu| {
            let got = *cpu.gprs();
            fill(cpu);
            let mut expected: Gprs = *cpu.gprs();
            expected.set(Gpr::Rax, got.get(Gpr::Rax));
            got == expected
        }));
    }
    run_one(steps);
    assert_eq!(notes.taken(), [true; 5]);
}

#[test]
fn a_busy_console_takes_a_part_and_the_guest_gives_the_rest_later() {
    // 64 lines of 64 bytes in a buffer, to be written four times over, behind a port that sends one byte in a slice.
    let total: usize = 4 * 4096;
    let short = Notes::new();
    let seen = short.clone();
    let mut written = 0;
    let mut asked = None;
    let mut prepared = false;
    let program: Program = Box::new(move |cpu| {
        if !prepared {
            prepared = true;
            for line in 0..64 {
                cpu.write_memory(TEXT + line * 64, format!("{line:063}\n").as_bytes());
            }
        }
        if let Some(asked) = asked.take() {
            let taken = usize::try_from(cpu.gprs().get(Gpr::Rax)).expect("no error");
            assert!(taken <= asked);
            if taken < asked {
                seen.push(taken);
            }
            written += taken;
        }
        if written == total {
            return power_off();
        }
        let at = written % 4096;
        let length = (total - written).min(4096 - at);
        asked = Some(length);
        hypercall(abi::CONSOLE_WRITE, TEXT + at as u64, length as u64).after(10_000)
    });
    let (status, world) = Bench::with_serial(64, SLICE / 100).vm("a", program).run::<FakeChipset>();
    assert_eq!(status, 0);
    assert!(!short.taken().is_empty(), "the console was never busy");
    let lines = world.lines_of("a");
    assert_eq!(lines.len(), 4 * 64, "nothing is lost, and nothing is written twice");
    assert!(lines.iter().enumerate().all(|(i, line)| *line == format!("{:063}", i % 64)));
}
