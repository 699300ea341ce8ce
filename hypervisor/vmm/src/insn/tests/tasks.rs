//! Task switches: what is saved, what is loaded, which descriptor is marked, and which fault belongs to whom.

use lamina_arch::cr::{Cr0, Rflags};
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::exit::{TaskSource, Width};
use lamina_arch::regs::Gpr;
use lamina_arch::segment::{AccessRights, Segment, SegmentName};

use super::machine::{Machine, Page};
use crate::insn::task::{Task, link, switch};

const GDT: u64 = 0x1000;
const OLD: u16 = 0x28;
const NEW: u16 = 0x30;
const OLD_TSS: u64 = 0x6000;
/// Across a page border, so that both pages count.
const NEW_TSS: u64 = 0x7fd0;
const NT: u64 = 1 << 14;
const BUSY: u64 = 1 << 41;

const JMP: Task = Task { selector: NEW, source: TaskSource::Jmp, next_ip: 0x4005, external: false, error: None };

fn descriptor(base: u64, limit: u64, rights: u64) -> u64 {
    limit & 0xffff | (base & 0xff_ffff) << 16 | rights << 40 | (limit >> 16 & 0xf) << 48 | (base >> 24) << 56
}

fn entry(machine: &Machine, selector: u16) -> u64 {
    machine.peek(GDT + u64::from(selector), Width::B8)
}

fn set_entry(machine: &mut Machine, selector: u16, value: u64) {
    machine.put(GDT + u64::from(selector), value, Width::B8);
}

fn set32(machine: &mut Machine, at: u64, value: u64) {
    machine.put(at, value, Width::B4);
}

/// In the task of `OLD`, with `NEW` ready: flat segments 8 and 0x10 at DPL 0, 0x18 and 0x20 at DPL 3.
fn machine() -> Machine {
    let mut machine = Machine::new(32);
    machine.memory[..0x1_0000].fill(0);
    for (selector, rights) in [(8, 0xc09a), (0x10, 0xc092), (0x18, 0xc0fa), (0x20, 0xc0f2)] {
        set_entry(&mut machine, selector, descriptor(0, 0xf_ffff, rights));
    }
    set_entry(&mut machine, OLD, descriptor(OLD_TSS, 0x67, 0x8b));
    set_entry(&mut machine, NEW, descriptor(NEW_TSS, 0x67, 0x89));
    machine.segments[SegmentName::Tr as usize] =
        Segment { selector: OLD, base: OLD_TSS, limit: 0x67, rights: AccessRights::TSS_BUSY };
    for (at, value) in [(28, 0x9000), (32, 0x4100), (36, 0x202), (40, 0xa), (44, 0xc), (48, 0xd), (52, 0xb)] {
        set32(&mut machine, NEW_TSS + at, value);
    }
    for (at, value) in [(56, 0x5000), (60, 0x55), (64, 0x66), (68, 0x77)] {
        set32(&mut machine, NEW_TSS + at, value);
    }
    for (at, value) in [(72, 0x10), (76, 8), (80, 0x10), (84, 0x20), (88, 0), (92, 0x23)] {
        set32(&mut machine, NEW_TSS + at, value);
    }
    machine.flags = Rflags::from_bits_retain(0x46 | NT);
    machine.dr7 = 0x7ff;
    machine
}

#[test]
fn a_jump_saves_the_old_task_and_loads_the_new() {
    let mut machine = machine();
    assert_eq!(switch(&mut machine, &JMP), Ok(false));
    let saved = |at| machine.peek(OLD_TSS + at, Width::B4);
    assert_eq!((saved(32), saved(36)), (0x4005, 0x46 | NT));
    assert_eq!((saved(40), saved(44), saved(68)), (0x5566_7780, 0x5566_7781, 0x5566_7787));
    assert_eq!((saved(72), saved(76), saved(80), saved(92)), (0x10, 8, 0x10, 0x10));
    assert_eq!((entry(&machine, OLD) & BUSY, entry(&machine, NEW) & BUSY), (0, BUSY));
    assert_eq!((machine.rip, machine.flags.bits(), machine.cr3), (0x4100, 0x202, 0x9000));
    assert_eq!((machine.get(Gpr::Rax), machine.get(Gpr::Rsp), machine.get(Gpr::Rdi)), (0xa, 0x5000, 0x77));
    assert_eq!((machine.dr7, machine.cr0.contains(Cr0::TS)), (0x6aa, true));
    let segment = |name| machine.segments[name as usize];
    assert_eq!((segment(SegmentName::Tr).selector, segment(SegmentName::Tr).rights.kind()), (NEW, 11));
    assert_eq!(segment(SegmentName::Ds).rights.dpl(), 3);
    assert!(segment(SegmentName::Fs).rights.is_unusable() && !segment(SegmentName::Gs).rights.is_unusable());
    // No link: the new task was not called.
    assert_eq!(machine.peek(NEW_TSS, Width::B2), 0);
    assert_eq!(entry(&machine, 8) >> 40 & 1, 1, "accessed");
}

#[test]
fn a_call_nests_and_iret_comes_back() {
    let mut machine = machine();
    assert_eq!(switch(&mut machine, &Task { source: TaskSource::Call, ..JMP }), Ok(false));
    assert_eq!((entry(&machine, OLD) & BUSY, entry(&machine, NEW) & BUSY), (BUSY, BUSY));
    assert_eq!(machine.peek(NEW_TSS, Width::B2), u64::from(OLD));
    assert_eq!(machine.flags.bits(), 0x202 | NT);
    assert_eq!(link(&mut machine), Ok(OLD));
    let back = Task { selector: OLD, source: TaskSource::Iret, next_ip: 0x4101, external: false, error: None };
    assert_eq!(switch(&mut machine, &back), Ok(false));
    assert_eq!((entry(&machine, OLD) & BUSY, entry(&machine, NEW) & BUSY), (BUSY, 0));
    // The task that returned is not nested any more; the one that called still is.
    assert_eq!((machine.peek(NEW_TSS + 36, Width::B4), machine.flags.bits()), (0x202, 0x46 | NT));
    assert_eq!((machine.rip, machine.get(Gpr::Rax)), (0x4005, 0x5566_7780));
}

#[test]
fn a_gate_pushes_the_error_code_on_the_new_stack() {
    let mut machine = machine();
    let task = Task { source: TaskSource::Gate, external: true, error: Some(0x1234), ..JMP };
    set32(&mut machine, NEW_TSS + 100, 1);
    assert_eq!(switch(&mut machine, &task), Ok(true), "with a debug trap");
    assert_eq!((machine.get(Gpr::Rsp), machine.peek(0x4ffc, Width::B4)), (0x4ffc, 0x1234));
    assert_eq!(machine.peek(NEW_TSS, Width::B2), u64::from(OLD));
}

#[test]
fn a_16_bit_task_has_words() {
    let mut machine = machine();
    set_entry(&mut machine, NEW, descriptor(NEW_TSS, 0x2b, 0x81));
    set_entry(&mut machine, 0x38, descriptor(0, 0xffff, 0x92));
    for (at, value) in [(14, 0x4200), (16, 2), (18, 0x1111), (26, 0x5000), (34, 0x10), (36, 8), (38, 0x38), (40, 0x10)]
    {
        machine.put(NEW_TSS + at, value, Width::B2);
    }
    machine.put(NEW_TSS + 42, 0, Width::B2);
    let task = Task { source: TaskSource::Gate, external: true, error: Some(7), ..JMP };
    assert_eq!(switch(&mut machine, &task), Ok(false));
    assert_eq!((machine.rip, machine.get(Gpr::Rax), machine.cr3), (0x4200, 0xffff_1111, 0));
    assert_eq!((machine.get(Gpr::Rsp) & 0xffff, machine.peek(0x4ffe, Width::B2)), (0x4ffe, 7));
    assert_eq!(machine.segments[SegmentName::Tr as usize].rights.kind(), 3);
}

#[test]
fn a_fault_before_the_switch_changes_nothing() {
    let ts = |selector: u16| GuestFault { vector: vector::TS, error: Some(selector.into()), cr2: None };
    let gp = |selector: u16| GuestFault { vector: vector::GP, error: Some(selector.into()), cr2: None };
    let np = |selector: u16| GuestFault { vector: vector::NP, error: Some(selector.into()), cr2: None };
    let changes: [(u64, Task, GuestFault); 5] = [
        (descriptor(NEW_TSS, 0x67, 0x8b), JMP, gp(NEW)),
        (descriptor(NEW_TSS, 0x66, 0x89), JMP, ts(NEW)),
        (descriptor(NEW_TSS, 0x67, 0x09), JMP, np(NEW)),
        (descriptor(NEW_TSS, 0x67, 0x89), Task { source: TaskSource::Iret, ..JMP }, ts(NEW)),
        (descriptor(NEW_TSS, 0x67, 0x92), JMP, gp(NEW)),
    ];
    for (value, task, fault) in changes {
        let mut machine = machine();
        set_entry(&mut machine, NEW, value);
        let before = machine.clone();
        assert_eq!(switch(&mut machine, &task), Err(fault), "{value:#x}");
        assert!(machine == before, "{value:#x}");
    }
    for (page, page_is) in [(6, Page::ReadOnly), (7, Page::Absent), (8, Page::Absent), (1, Page::ReadOnly)] {
        let mut machine = machine();
        machine.pages.insert(page, page_is);
        let before = machine.clone();
        let fault = switch(&mut machine, &JMP).expect_err("a page is missing");
        assert_eq!(fault.vector, vector::PF, "page {page}");
        assert!(machine == before, "page {page}");
    }
    let mut machine = machine();
    let external = Task { selector: 0x34, source: TaskSource::Gate, external: true, ..JMP };
    assert_eq!(switch(&mut machine, &external), Err(gp(0x34 | 1)), "the EXT flag");
}

#[test]
fn a_fault_behind_the_switch_is_the_new_tasks() {
    let fault = |vector, selector: u32| GuestFault { vector, error: Some(selector), cr2: None };
    // Where in the TSS, what is there, the descriptor that it names, the fault.
    let cases = [
        (76, 0, 0, fault(vector::TS, 0)),
        (76, 0x10, 0xc092, fault(vector::TS, 0x10)),
        (76, 0x38, 0xc01a, fault(vector::NP, 0x38)),
        (80, 0x38, 0xc012, fault(vector::SS, 0x38)),
        (80, 0x20, 0xc0f2, fault(vector::TS, 0x20)),
        (84, 0x38, 0xc098, fault(vector::TS, 0x38)),
        (84, 0x38, 0xc012, fault(vector::NP, 0x38)),
        (96, 0x38, 0x89, fault(vector::TS, 0x38)),
        (96, 0x3c, 0x82, fault(vector::TS, 0x3c)),
        (32, 0x1_0000, 0, fault(vector::GP, 0)),
    ];
    for (at, value, rights, expected) in cases {
        let mut machine = machine();
        if rights != 0 {
            set_entry(&mut machine, u16::try_from(value & !7).unwrap(), descriptor(0, 0xf_ffff, rights));
        }
        if at == 32 {
            set_entry(&mut machine, 8, descriptor(0, 0xfff, 0x409a));
        }
        set32(&mut machine, NEW_TSS + at, value);
        assert_eq!(switch(&mut machine, &JMP), Err(expected), "{at}: {value:#x}");
        assert_eq!(machine.segments[SegmentName::Tr as usize].selector, NEW);
        assert_eq!((machine.rip, machine.get(Gpr::Rbx)), (if at == 32 { value } else { 0x4100 }, 0xb));
    }
}

#[test]
fn a_virtual_8086_task_has_real_mode_segments() {
    let mut machine = machine();
    set32(&mut machine, NEW_TSS + 36, 1 << 17 | 2);
    set32(&mut machine, NEW_TSS + 76, 0x1234);
    assert_eq!(switch(&mut machine, &JMP), Ok(false));
    let code = machine.segments[SegmentName::Cs as usize];
    assert_eq!((code.selector, code.base, code.limit, code.rights.0), (0x1234, 0x1_2340, 0xffff, 0xf3));
}
