//! Breakpoints on ports and on data, where software finishes the access.

use lamina_arch::addr::Gpa;
use lamina_arch::event::{Event, vector};
use lamina_arch::exit::{Direction, Exit, IoExit, StringIo, Width};
use lamina_arch::regs::{Gpr, SysReg};
use lamina_arch::watchpoints::Watchpoints;

use super::*;
use crate::vcpu::Vcpu;

/// DR7: the first breakpoint is enabled, on ports.
const PORTS: u64 = 1 | 0b10 << 16;
/// DR7: the third one, on data of four bytes that are written.
const WRITES: u64 = 1 << 4 | 0b1101 << 24;

/// Runs `code`, which exits as `exits` say, with this breakpoint; where the guest is behind each exit, from its entry, and
/// DR6 where it got #DB there.
fn run(code: &[u8], exits: Vec<Step>, address: u64, dr7: u64) -> Vec<(u64, Option<u64>)> {
    let notes = Notes::new();
    let set = Step::act(move |cpu| {
        cpu.watchpoints = Watchpoints::new(|| [address; 4], dr7, || true);
        cpu.gprs().set(Gpr::Rax, 0);
        cpu.gprs().set(Gpr::Rbx, REGISTER.0);
        cpu.gprs().set(Gpr::Rcx, 3);
        cpu.gprs().set(Gpr::Rdx, DATA_PORT.into());
        cpu.gprs().set(Gpr::Rsi, 0x4_8000);
    });
    let mut steps = vec![set];
    for exit in exits {
        steps.push(exit);
        steps.push(notes.note(|cpu| {
            let debug = core::mem::take(&mut cpu.delivered) == [Event::exception(vector::DB, None)];
            (cpu.read(SysReg::Rip).wrapping_sub(ENTRY), debug.then(|| cpu.read(SysReg::Dr6)))
        }));
    }
    let (mut machine, _) = Bench::new().vm("a", script(steps)).code(code).boot::<FakeChipset>();
    assert_eq!(machine.step(), None);
    notes.taken()
}

fn out(string: Option<StringIo>) -> Step {
    Step::exit(Exit::Io(IoExit { port: DATA_PORT, width: Width::B1, direction: Direction::Out, string }))
}

#[test]
fn a_port_traps_behind_the_instruction() {
    // out 0xf0, al: as long as an instruction of the script is.
    let code = [0xe6, 0xf0];
    assert_eq!(run(&code, vec![out(None)], DATA_PORT.into(), PORTS), [(2, Some(1))]);
    assert_eq!(run(&code, vec![out(None)], u64::from(DATA_PORT) + 1, PORTS), [(2, None)]);
}

#[test]
fn a_port_traps_between_two_iterations() {
    // rep outsb
    let code = [0xf3, 0x6e];
    let outs = || out(Some(StringIo { rep: true, address_width: Width::B8, linear: None }));
    assert_eq!(
        run(&code, vec![outs(), outs(), outs()], DATA_PORT.into(), PORTS),
        [(0, Some(1)), (0, Some(1)), (2, Some(1))]
    );
    // Data that it reads is not written.
    assert_eq!(run(&code, vec![outs()], 0x4_8000, WRITES), [(2, None)]);
}

#[test]
fn a_device_in_memory_traps_behind_the_instruction() {
    // mov [rbx], eax; mov eax, [rbx]
    let code = [0x89, 0x03, 0x8b, 0x03];
    let touches = || vec![touch(Gpa(REGISTER.0), true), touch(Gpa(REGISTER.0), false)];
    assert_eq!(run(&code, touches(), REGISTER.0, WRITES), [(2, Some(1 << 2)), (4, None)]);
    assert_eq!(run(&code, touches(), REGISTER.0 + 4, WRITES), [(2, None), (4, None)]);
}
