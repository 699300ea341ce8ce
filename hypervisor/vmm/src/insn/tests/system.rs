//! The registers of protection and its checks, the flags and frames of stacks, and what they refuse.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lamina_arch::cr::{Cr0, Cr4, Rflags};
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::exit::Width;
use lamina_arch::regs::Gpr;
use lamina_arch::segment::{AccessRights, SegmentName};

use super::machine::{DEVICE, Machine, Page, assembled};
use crate::insn::Refused;

type Assemble = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A data segment, an LDT at 0x5678, a TSS, a busy one, one that is not there.
const DESCRIPTORS: [(u64, u64); 5] = [
    (0x18, 0x00cf_9200_0000_ffff),
    (0x20, 0x0000_8200_5678_00ff),
    (0x30, 0x0000_8900_6000_0067),
    (0x40, 0x0000_8b00_6000_0067),
    (0x50, 0x0000_0900_6000_0067),
];

fn machine(bits: u32) -> Machine {
    let mut machine = Machine::new(bits);
    for (selector, value) in DESCRIPTORS {
        machine.put(machine.gdt.0 + selector, value, Width::B8);
        machine.put(machine.gdt.0 + selector + 8, 0, Width::B8);
    }
    machine
}

fn general(selector: u32) -> GuestFault {
    GuestFault { vector: vector::GP, error: Some(selector), cr2: None }
}

#[test]
fn selectors_and_the_machine_status_word_are_stored() {
    let mut m = machine(32);
    m.segments[SegmentName::Ldtr as usize].selector = 0x20;
    m.segments[SegmentName::Tr as usize].selector = 0x30;
    m.does(|a| a.sldt(word_ptr(DEVICE)));
    m.does(|a| a.str(word_ptr(DEVICE + 2)));
    m.does(|a| a.smsw(word_ptr(DEVICE + 4)));
    assert_eq!(m.peek(DEVICE, Width::B8) & 0xffff_ffff_ffff, (m.cr0.bits() & 0xffff) << 32 | 0x30_0020);
    m.user();
    m.does(|a| a.smsw(word_ptr(DEVICE)));
    m.cr4 = Cr4::UMIP.bits();
    let forms: [Assemble; 4] = [
        |a| a.smsw(word_ptr(DEVICE)),
        |a| a.sldt(word_ptr(DEVICE)),
        |a| a.sgdt(fword_ptr(DEVICE)),
        |a| a.sidt(fword_ptr(DEVICE)),
    ];
    for assemble in forms {
        m.faults(GuestFault::GP0, assemble);
    }
    let mut m = Machine::real();
    m.faults(GuestFault::UD, |a| a.sldt(word_ptr(0x100)));
}

#[test]
fn lmsw_sets_protection_and_never_clears_it() {
    let mut m = Machine::real();
    m.put(0x100, 0xfff9, Width::B2);
    m.does(|a| a.lmsw(word_ptr(0x100)));
    assert_eq!(m.cr0, Cr0::ET | Cr0::PE | Cr0::TS);
    m.put(0x100, 0x2, Width::B2);
    m.does(|a| a.lmsw(word_ptr(0x100)));
    assert_eq!(m.cr0, Cr0::ET | Cr0::PE | Cr0::MP);
    m.user();
    m.faults(GuestFault::GP0, |a| a.lmsw(word_ptr(0x100)));
}

#[test]
fn table_registers_go_in_and_out() {
    let mut m = machine(64);
    m.gdt = (0xffff_8000_1234_5678, 0x7f);
    m.does(|a| a.sgdt(ptr(DEVICE)));
    assert_eq!((m.peek(DEVICE, Width::B2), m.peek(DEVICE + 2, Width::B8)), (0x7f, 0xffff_8000_1234_5678));
    m.put(DEVICE, 0x1_0fff, Width::B8);
    m.put(DEVICE + 8, 0, Width::B2);
    m.does(|a| a.lidt(ptr(DEVICE)));
    assert_eq!(m.idt, (1, 0xfff));
    m.put(DEVICE + 8, 0x8000, Width::B2);
    let bytes = assembled(64, m.rip, |a| a.lgdt(ptr(DEVICE)));
    assert_eq!(m.run_bytes(&bytes), Err(Refused::Fault(GuestFault::GP0)));
    m.user();
    m.faults(GuestFault::GP0, |a| a.lgdt(ptr(DEVICE)));
    // 16-bit code takes 24 bits of the base.
    let mut m = Machine::real();
    m.put(0x100, 0x1234_5678_0fff, Width::B8);
    m.does(|a| a.lgdt(ptr(0x100)));
    assert_eq!(m.gdt, (0x34_5678, 0xfff));
    let mut m = machine(32);
    m.put(DEVICE, 0x1234_5678_0fff, Width::B8);
    m.does(|a| a.lgdt(ptr(DEVICE)));
    assert_eq!(m.gdt, (0x1234_5678, 0xfff));
}

#[test]
fn ldtr_and_tr_are_loaded() {
    let mut m = machine(32);
    m.put(DEVICE, 0x30_0020, Width::B4);
    m.does(|a| a.lldt(word_ptr(DEVICE)));
    m.does(|a| a.ltr(word_ptr(DEVICE + 2)));
    let (table, task) = (m.segments[SegmentName::Ldtr as usize], m.segments[SegmentName::Tr as usize]);
    assert_eq!((table.selector, table.base, table.limit, table.rights), (0x20, 0x5678, 0xff, AccessRights(0x82)));
    assert_eq!((task.selector, task.base, task.limit, task.rights), (0x30, 0x6000, 0x67, AccessRights(0x8b)));
    assert_eq!(m.peek(m.gdt.0 + 0x35, Width::B1), 0x8b, "the task is busy");
    // In IA-32e mode the base has 64 bits.
    let mut m = machine(64);
    m.put(m.gdt.0 + 0x38, 0xffff_8000, Width::B8);
    m.put(DEVICE, 0x30, Width::B2);
    m.does(|a| a.ltr(word_ptr(DEVICE)));
    assert_eq!(m.segments[SegmentName::Tr as usize].base, 0xffff_8000_0000_6000);

    let load = |bits, selector: u64, task: bool| {
        let mut m = machine(bits);
        m.put(DEVICE, selector, Width::B2);
        let assemble: Assemble = if task { |a| a.ltr(word_ptr(DEVICE)) } else { |a| a.lldt(word_ptr(DEVICE)) };
        let bytes = assembled(bits, m.rip, assemble);
        let outcome = m.run_bytes(&bytes);
        (outcome, m.segments[SegmentName::Ldtr as usize])
    };
    let np = GuestFault { vector: vector::NP, error: Some(0x50), cr2: None };
    let cases = [
        (0x40, true, general(0x40)),
        (0x20, true, general(0x20)),
        (0x18, true, general(0x18)),
        (0x34, true, general(0x34)),
        (0, true, GuestFault::GP0),
        (0x50, true, np),
        (0x30, false, general(0x30)),
        (0x1000, false, general(0x1000)),
    ];
    for (selector, task, fault) in cases {
        assert_eq!(load(32, selector, task).0, Err(Refused::Fault(fault)), "{selector:#x}");
    }
    let (outcome, table) = load(32, 0, false);
    assert!(outcome.is_ok() && table.rights.is_unusable());
    let mut m = machine(32);
    m.user();
    m.faults(GuestFault::GP0, |a| a.lldt(word_ptr(0x500)));
    let mut m = machine(32);
    m.pages.insert(1, Page::ReadOnly);
    m.put(0x500, 0x30, Width::B2);
    m.faults(GuestFault::page_fault(0x1035, 3), |a| a.ltr(word_ptr(0x500)));
}

#[test]
fn what_a_program_may_see_of_descriptors() {
    let see = |value: u64, user: bool, assemble: Assemble| {
        let mut m = machine(32);
        if user {
            m.user();
        }
        m.put(m.gdt.0 + 0x60, value, Width::B8);
        m.put(DEVICE, 0x60, Width::B2);
        m.set(Gpr::Rax, 0x77);
        m.does(assemble);
        m.flags.contains(Rflags::ZF).then(|| m.get(Gpr::Rax))
    };
    let (lar, lsl): (Assemble, Assemble) = (|a| a.lar(eax, word_ptr(DEVICE)), |a| a.lsl(eax, word_ptr(DEVICE)));
    let (verr, verw): (Assemble, Assemble) = (|a| a.verr(word_ptr(DEVICE)), |a| a.verw(word_ptr(DEVICE)));
    let data = 0x12c9_9345_6789_abcd;
    assert_eq!(see(data, false, lar), Some(0xc9_9300));
    assert_eq!(see(data, false, lsl), Some(0x9abc_dfff));
    assert_eq!((see(data, false, verr), see(data, false, verw)), (Some(0x77), Some(0x77)));
    for assemble in [lar, lsl, verr, verw] {
        assert_eq!(see(data, true, assemble), None, "a supervisor's");
    }
    // Code that can be read, and code that cannot; conforming code from any level.
    assert_eq!((see(0x00cf_9a00_0000_ffff, false, verr), see(0x00cf_9a00_0000_ffff, false, verw)), (Some(0x77), None));
    assert_eq!(see(0x00cf_9800_0000_ffff, false, verr), None);
    assert_eq!(see(0x00cf_9e00_0000_ffff, true, verr), Some(0x77));
    // A TSS has rights and a limit, a call gate rights alone, an interrupt gate neither.
    assert_eq!((see(DESCRIPTORS[2].1, false, lar), see(DESCRIPTORS[2].1, false, lsl)), (Some(0x8900), Some(0x67)));
    assert_eq!((see(0x8c00_0000_0000, false, lar), see(0x8c00_0000_0000, false, lsl)), (Some(0x8c00), None));
    assert_eq!((see(0x8e00_0000_0000, false, lar), see(0x8e00_0000_0000, false, lsl)), (None, None));
    assert_eq!(see(DESCRIPTORS[2].1, false, verr), None);
    let mut m = Machine::real();
    m.faults(GuestFault::UD, |a| a.lar(ax, word_ptr(0x100)));
    m.faults(GuestFault::UD, |a| a.verr(word_ptr(0x100)));
}

#[test]
fn arpl_and_bound() {
    let mut m = machine(32);
    m.put(DEVICE, 0x1001, Width::B2);
    m.set(Gpr::Rbx, 3);
    m.does(|a| a.arpl(word_ptr(DEVICE), bx));
    assert_eq!((m.peek(DEVICE, Width::B2), m.flags.contains(Rflags::ZF)), (0x1003, true));
    m.does(|a| a.arpl(word_ptr(DEVICE), bx));
    assert!(!m.flags.contains(Rflags::ZF));
    m.put(DEVICE, 0x0000_0005_ffff_fffe, Width::B8);
    for inside in [-2i32, 0, 5] {
        m.set(Gpr::Rax, inside.cast_unsigned().into());
        m.does(|a| a.bound(eax, qword_ptr(DEVICE)));
    }
    for outside in [-3i32, 6] {
        m.set(Gpr::Rax, outside.cast_unsigned().into());
        let bytes = assembled(32, m.rip, |a| a.bound(eax, qword_ptr(DEVICE)));
        let range = GuestFault { vector: vector::BR, error: None, cr2: None };
        assert_eq!(m.run_bytes(&bytes), Err(Refused::Fault(range)));
    }
}

#[test]
fn flags_on_the_stack() {
    let mut m = machine(64);
    m.set(Gpr::Rsp, DEVICE + 8);
    m.flags |= Rflags::RF | Rflags::CF;
    m.does(|a| a.pushfq());
    assert_eq!((m.peek(DEVICE, Width::B8), m.get(Gpr::Rsp)), (3, DEVICE));
    m.put(DEVICE, 0x0025_7fd5, Width::B8);
    m.does(|a| a.popfq());
    // All but RF, VM, VIF and VIP, which stay.
    assert_eq!((m.flags.bits(), m.get(Gpr::Rsp)), (0x0025_7fd7, DEVICE + 8));
    let mut m = machine(32);
    m.user();
    m.set(Gpr::Rsp, DEVICE);
    m.put(DEVICE, 0x3201, Width::B4);
    m.does(|a| a.popfd());
    assert_eq!(m.flags, Rflags::CF | Rflags::FIXED);
    let mut m = Machine::real();
    m.cr0.insert(Cr0::PE);
    m.flags.insert(Rflags::VM);
    m.faults(GuestFault::GP0, |a| a.pushf());
    m.faults(GuestFault::GP0, |a| a.popf());
}

#[test]
fn all_registers_and_frames_on_the_stack() {
    let mut m = machine(32);
    m.set(Gpr::Rsp, DEVICE + 0x40);
    m.does(|a| a.pushad());
    let order = [Gpr::Rdi, Gpr::Rsi, Gpr::Rbp, Gpr::Rsp, Gpr::Rbx, Gpr::Rdx, Gpr::Rcx, Gpr::Rax];
    for (n, register) in (0u64..).zip(order) {
        let value = if register == Gpr::Rsp { DEVICE + 0x40 } else { m.get(register) & 0xffff_ffff };
        assert_eq!(m.peek(DEVICE + 0x20 + 4 * n, Width::B4), value, "{register:?}");
        m.put(DEVICE + 0x20 + 4 * n, 0x100 + n, Width::B4);
    }
    assert_eq!(m.get(Gpr::Rsp), DEVICE + 0x20);
    m.does(|a| a.popad());
    for (n, register) in (0u64..).zip(order) {
        assert_eq!(m.get(register), if register == Gpr::Rsp { DEVICE + 0x40 } else { 0x100 + n });
    }
    m.pages.insert(0xf, Page::Absent);
    m.set(Gpr::Rsp, DEVICE + 0x10);
    m.faults(GuestFault::page_fault(0xfffc, 2), |a| a.pushad());

    let mut m = machine(64);
    m.set(Gpr::Rsp, DEVICE + 0x40);
    let frame = m.get(Gpr::Rbp);
    m.does(|a| a.enter(0x20, 0));
    assert_eq!((m.peek(DEVICE + 0x38, Width::B8), m.get(Gpr::Rbp)), (frame, DEVICE + 0x38));
    assert_eq!(m.get(Gpr::Rsp), DEVICE + 0x18);
    m.does(|a| a.leave());
    assert_eq!((m.get(Gpr::Rbp), m.get(Gpr::Rsp)), (frame, DEVICE + 0x40));
}
