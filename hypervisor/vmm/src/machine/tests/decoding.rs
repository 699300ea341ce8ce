//! What the processor does not tell of an exit, and is decoded.

use lamina_arch::event::{Event, EventKind, vector};
use lamina_arch::exit::{CrExit, Exit};
use lamina_arch::hypercall as abi;
use lamina_arch::regs::{Gpr, SysReg};

use super::*;
use crate::vcpu::Vcpu;

/// An access to a control register, of which nothing is told.
fn control_register() -> Step {
    Step::exit(Exit::Cr(CrExit { access: None })).untold()
}

#[test]
fn instructions_are_as_long_as_they_are_prefixed() {
    // CPUID with an operand-size prefix; RDMSR; VMMCALL with REX; HLT.
    let code = [0x66, 0x0f, 0xa2, 0x0f, 0x32, 0x48, 0x0f, 0x01, 0xd9, 0xf4];
    let steps = [
        cpuid(0, 0).untold(),
        rdmsr(lamina_arch::msr::IA32_MTRRCAP).untold(),
        hypercall(abi::NOP, 0, 0).untold(),
        outb(INTERRUPT_PORT, 0x41).length(0),
        hlt().untold().with(|cpu| cpu.set_interrupts(true)),
        cli(),
    ];
    let world = run_with(&code, steps);
    let advanced: Vec<u64> = world.trace(1).advanced.iter().map(|rip| rip - ENTRY).collect();
    assert_eq!(advanced[..5], [3, 5, 9, 9, 10]);
}

#[test]
fn icebp_returns_behind_itself_however_it_is_prefixed() {
    for (code, length) in [(&[0xf1][..], 1), (&[0x66, 0xf1], 2)] {
        let world = run_with(code, [Step::exit(Exit::Icebp).untold()]);
        let (kind, vector) = (EventKind::PrivilegedSoftwareException, vector::DB);
        assert_eq!(world.trace(1).delivered[0].1, Event { kind, vector, error: None, length });
    }
}

#[test]
fn yielding_finishes_the_instruction_too() {
    let code = [0x0f, 0x01, 0xd9];
    let world = run_with(&code, [hypercall(abi::YIELD, 0, 0).untold()]);
    assert_eq!(world.trace(1).advanced[0], ENTRY + 3);
}

#[test]
fn an_instruction_that_cannot_be_read_ends_the_vm() {
    let reason = reason_after([Step::act(|cpu| cpu.write(SysReg::Rip, 0x7fff_0000_0000)), cpuid(0, 0).untold()]);
    assert!(reason.contains("cannot be read") && reason.contains("0x7fff00000000"), "{reason}");
}

#[test]
fn accesses_to_control_registers_are_decoded() {
    // MOV CR4, RBX; MOV RCX, CR8; MOV CR8, R9; CLTS; LMSW BX; MOV CR0, RSP with a prefix that means nothing.
    let code = [
        0x0f, 0x22, 0xe3, 0x44, 0x0f, 0x20, 0xc1, 0x45, 0x0f, 0x22, 0xc1, 0x0f, 0x06, 0x0f, 0x01, 0xf3, 0x2e, 0x0f,
        0x22, 0xc4,
    ];
    let seen = Notes::new();
    let note = |register| seen.note(move |cpu| cpu.read(register));
    let steps = [
        control_register().with(|cpu| {
            let cr4 = cpu.read(SysReg::Cr4);
            cpu.gprs().set(Gpr::Rbx, cr4 | 1 << 9);
        }),
        note(SysReg::Cr4),
        control_register(),
        seen.note(|cpu| cpu.gprs().get(Gpr::Rcx)),
        control_register().with(|cpu| {
            cpu.gprs().set(Gpr::R9, 5);
            let cr0 = cpu.read(SysReg::Cr0);
            cpu.write(SysReg::Cr0, cr0 | 8);
        }),
        control_register(),
        note(SysReg::Cr0),
        control_register().with(|cpu| cpu.gprs().set(Gpr::Rbx, 0xffff_fff2)),
        note(SysReg::Cr0),
        control_register().with(|cpu| cpu.write(SysReg::Rsp, 0x8005_0033)),
        note(SysReg::Cr0),
    ];
    let world = run_with(&code, steps);
    let [cr4, cr8, cleared, loaded, moved] = seen.taken()[..] else { panic!("{:?}", seen.taken()) };
    assert_eq!((cr4 & 1 << 9, cr8), (1 << 9, 0));
    // LMSW leaves PE set, and reaches MP, EM and TS.
    assert_eq!((cleared & 8, loaded & 0xf, moved), (0, 3, 0x8005_0033));
    let advanced: Vec<u64> = world.trace(1).advanced.iter().map(|rip| rip - ENTRY).collect();
    assert_eq!(advanced[..6], [3, 7, 11, 13, 16, 20]);
}

#[test]
fn reads_of_cr0_and_cr4_are_decoded_and_smsw_is_finished() {
    // MOV RAX, CR0; MOV RSP, CR4; SMSW EBX; SMSW CX; SMSW RDX.
    let code = [0x0f, 0x20, 0xc0, 0x0f, 0x20, 0xe4, 0x0f, 0x01, 0xe3, 0x66, 0x0f, 0x01, 0xe1, 0x48, 0x0f, 0x01, 0xe2];
    let seen = Notes::new();
    let steps = [
        control_register(),
        seen.note(|cpu| cpu.gprs().get(Gpr::Rax) ^ cpu.read(SysReg::Cr0)),
        control_register(),
        seen.note(|cpu| cpu.read(SysReg::Rsp) ^ cpu.read(SysReg::Cr4)),
        control_register().with(|cpu| cpu.gprs().set(Gpr::Rbx, u64::MAX)),
        seen.note(|cpu| cpu.gprs().get(Gpr::Rbx) ^ cpu.read(SysReg::Cr0)),
        control_register().with(|cpu| cpu.gprs().set(Gpr::Rcx, u64::MAX)),
        seen.note(|cpu| !cpu.gprs().get(Gpr::Rcx) ^ !cpu.read(SysReg::Cr0) & 0xffff),
        control_register(),
        seen.note(|cpu| cpu.gprs().get(Gpr::Rdx) ^ cpu.read(SysReg::Cr0)),
    ];
    let world = run_with(&code, steps);
    assert_eq!(seen.taken()[..], [0; 5]);
    let advanced: Vec<u64> = world.trace(1).advanced.iter().map(|rip| rip - ENTRY).collect();
    assert_eq!(advanced[..5], [3, 6, 9, 13, 17]);
}

#[test]
fn what_is_no_access_to_a_control_register_ends_the_vm() {
    // The default code: HLT.
    let reason = reason_of(control_register());
    assert!(reason.contains("control register"), "{reason}");
}

#[test]
fn lmsw_may_take_its_word_from_memory() {
    // LMSW [RBX].
    let code = [0x0f, 0x01, 0x33];
    let cr0 = Notes::new();
    let steps = [
        control_register().with(|cpu| {
            cpu.write_memory(ENTRY + 0x100, &[0xf2, 0xff, 0xff]);
            cpu.gprs().set(Gpr::Rbx, ENTRY + 0x100);
        }),
        cr0.note(|cpu| cpu.read(SysReg::Cr0)),
    ];
    let world = run_with(&code, steps);
    assert_eq!(cr0.taken()[0] & 0xf, 3);
    assert_eq!(world.trace(1).advanced[0], ENTRY + 3);
}
