//! Segments: limits, rights, bases, canonical addresses, alignment, and loads of segment registers.

use iced_x86::code_asm::*;
use lamina_arch::cr::{Cr0, Cr4, Rflags};
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::exit::Width;
use lamina_arch::regs::Gpr;
use lamina_arch::segment::{AccessRights, Segment, SegmentName};

use super::machine::{DEVICE, Machine, Page};
use crate::insn::{Done, Refused};

const SS0: GuestFault = GuestFault { vector: vector::SS, error: Some(0), cr2: None };

fn general(selector: u32) -> GuestFault {
    GuestFault { vector: vector::GP, error: Some(selector), cr2: None }
}

fn with(name: SegmentName, base: u64, limit: u32, rights: u32) -> Machine {
    let mut machine = Machine::new(32);
    machine.segments[name as usize] = Segment { selector: 0x18, base, limit, rights: AccessRights(rights) };
    machine
}

#[test]
fn an_access_ends_within_the_limit() {
    let mut machine = with(SegmentName::Ds, 0x1000, 0xff, 0xc093);
    machine.does(|a| a.mov(eax, dword_ptr(0xfc)));
    assert_eq!(machine.get(Gpr::Rax), machine.peek(0x10fc, Width::B4));
    machine.faults(GuestFault::GP0, |a| a.mov(eax, dword_ptr(0xfd)));
    machine.does(|a| a.mov(ax, word_ptr(0xfe)));
    machine.faults(GuestFault::GP0, |a| a.mov(word_ptr(0xff), ax));
    machine.faults(GuestFault::GP0, |a| a.inc(byte_ptr(0x100)));
    // An offset that wraps is not inside.
    machine.faults(GuestFault::GP0, |a| a.mov(eax, dword_ptr(0xffff_fffeu32)));
    let mut machine = with(SegmentName::Ss, 0x1000, 0xff, 0xc093);
    machine.set(Gpr::Rbp, 0x100);
    machine.faults(SS0, |a| a.mov(eax, dword_ptr(ebp)));
    machine.does(|a| a.mov(eax, dword_ptr(ebp).ds()));
}

#[test]
fn a_segment_that_grows_down_begins_behind_its_limit() {
    let mut machine = with(SegmentName::Ds, 0, 0xfff, 0x4097);
    machine.faults(GuestFault::GP0, |a| a.mov(eax, dword_ptr(0xffc)));
    machine.faults(GuestFault::GP0, |a| a.mov(eax, dword_ptr(0xfff)));
    machine.does(|a| a.mov(eax, dword_ptr(0x1000)));
    machine.does(|a| a.mov(eax, dword_ptr(0x1_0000)));
    // Without the B flag it ends at 64 KiB.
    let mut machine = with(SegmentName::Ds, 0, 0xfff, 0x97);
    machine.does(|a| a.mov(eax, dword_ptr(0xfffc)));
    machine.faults(GuestFault::GP0, |a| a.mov(eax, dword_ptr(0xfffd)));
}

#[test]
fn rights_are_those_of_the_segment() {
    let read_only = 0xc091;
    let mut machine = with(SegmentName::Ds, 0, 0xffff_ffff, read_only);
    machine.does(|a| a.mov(eax, dword_ptr(0x100)));
    machine.does(|a| a.cmp(dword_ptr(0x100), 1));
    machine.does(|a| a.bt(dword_ptr(0x100), 1));
    machine.faults(GuestFault::GP0, |a| a.mov(dword_ptr(0x100), eax));
    machine.faults(GuestFault::GP0, |a| a.add(dword_ptr(0x100), eax));
    machine.faults(GuestFault::GP0, |a| a.cmpxchg(dword_ptr(0x100), ebx));
    machine.faults(GuestFault::GP0, |a| a.bts(dword_ptr(0x100), 1));
    // Code: read if it may be, never written.
    machine.does(|a| a.mov(eax, dword_ptr(0x100).cs()));
    machine.faults(GuestFault::GP0, |a| a.mov(dword_ptr(0x100).cs(), eax));
    machine.segments[SegmentName::Cs as usize].rights = AccessRights(0xc099);
    machine.faults(GuestFault::GP0, |a| a.mov(eax, dword_ptr(0x100).cs()));
    // No segment at all.
    for (name, fault) in [(SegmentName::Es, GuestFault::GP0), (SegmentName::Ss, SS0)] {
        let mut machine = with(name, 0, 0xffff_ffff, AccessRights::UNUSABLE.0);
        let memory = dword_ptr(0x100);
        machine.faults(fault, |a| a.mov(eax, if name == SegmentName::Es { memory.es() } else { memory.ss() }));
    }
}

#[test]
fn real_mode_has_limits_but_no_rights() {
    let mut machine = Machine::real();
    machine.segments[SegmentName::Ds as usize].base = 0x1000;
    machine.does(|a| a.mov(dword_ptr(0x100).cs(), eax));
    machine.set(Gpr::Rbx, 0xfffe);
    machine.does(|a| a.mov(word_ptr(bx), ax));
    machine.faults(GuestFault::GP0, |a| a.mov(dword_ptr(bx), eax));
    machine.set(Gpr::Rbp, 0xffff);
    machine.faults(SS0, |a| a.mov(ax, word_ptr(bp)));
    // With 32-bit addresses too.
    machine.set(Gpr::Rbx, 0x1_0000);
    machine.faults(GuestFault::GP0, |a| a.mov(al, byte_ptr(ebx)));
    // A 16-bit effective address wraps.
    machine.set(Gpr::Rbx, 0x5555_fff0);
    machine.set(Gpr::Rsi, 0x20);
    machine.does(|a| a.mov(al, byte_ptr(bx + si)));
    assert_eq!(machine.get(Gpr::Rax) & 0xff, machine.peek(0x1010, Width::B1));
}

#[test]
fn linear_addresses_wrap_at_32_bits() {
    let mut machine = with(SegmentName::Ds, 0xffff_f000, 0xffff_ffff, 0xc093);
    machine.does(|a| a.mov(eax, dword_ptr(0x1100)));
    assert_eq!(machine.get(Gpr::Rax), machine.peek(0x100, Width::B4));
    // An access across the top goes on at 0.
    machine.pages.insert(0xf_ffff, Page::At(0x3000));
    machine.does(|a| a.mov(eax, dword_ptr(0xffe)));
    let expected = machine.peek(0x3ffe, Width::B2) | machine.peek(0, Width::B2) << 16;
    assert_eq!(machine.get(Gpr::Rax), expected);
    machine.pages.insert(0, Page::Absent);
    machine.faults(GuestFault::page_fault(0, 0), |a| a.mov(eax, dword_ptr(0xffe)));
}

#[test]
fn in_64_bit_mode_only_fs_and_gs_have_a_base_and_addresses_are_canonical() {
    let mut machine = Machine::new(64);
    for name in [SegmentName::Es, SegmentName::Ss, SegmentName::Ds, SegmentName::Fs, SegmentName::Gs] {
        let segment = &mut machine.segments[name as usize];
        (segment.base, segment.limit) = (0x2000, 0);
    }
    machine.segments[SegmentName::Es as usize].rights = AccessRights::UNUSABLE;
    machine.does(|a| a.mov(eax, dword_ptr(0x100).es()));
    assert_eq!(machine.get(Gpr::Rax), machine.peek(0x100, Width::B4));
    machine.does(|a| a.mov(eax, dword_ptr(0x100).gs()));
    assert_eq!(machine.get(Gpr::Rax), machine.peek(0x2100, Width::B4));
    for outside in [0x8000_0000_0000, 0x7fff_ffff_fffe, 0xffff_7fff_ffff_fffc] {
        machine.set(Gpr::Rbx, outside);
        machine.set(Gpr::Rbp, outside);
        machine.faults(GuestFault::GP0, |a| a.mov(eax, dword_ptr(rbx)));
        machine.faults(GuestFault::GP0, |a| a.mov(dword_ptr(rbx), eax));
        machine.faults(SS0, |a| a.mov(eax, dword_ptr(rbp)));
        // The prefix has no say.
        machine.faults(SS0, |a| a.mov(eax, dword_ptr(rbp).ds()));
    }
    // With five levels those are canonical, and nothing is there.
    machine.cr4 = Cr4::LA57.bits();
    machine.set(Gpr::Rbx, 0x8000_0000_0000);
    machine.faults(GuestFault::page_fault(0x8000_0000_0000, 0), |a| a.mov(eax, dword_ptr(rbx)));
}

#[test]
fn alignment_is_checked_for_users_who_asked() {
    let fault = GuestFault { vector: vector::AC, error: Some(0), cr2: None };
    let mut machine = Machine::new(64);
    machine.cr0.insert(Cr0::AM);
    machine.flags.insert(Rflags::AC);
    machine.does(|a| a.mov(eax, dword_ptr(0x101)));
    machine.user();
    machine.faults(fault, |a| a.mov(eax, dword_ptr(0x101)));
    machine.faults(fault, |a| a.mov(word_ptr(0x101), ax));
    machine.does(|a| a.mov(eax, dword_ptr(0x104)));
    machine.does(|a| a.mov(al, byte_ptr(0x101)));
    machine.cr0.remove(Cr0::AM);
    machine.does(|a| a.mov(eax, dword_ptr(0x101)));
}

/// A descriptor.
fn descriptor(base: u64, limit: u64, rights: u64) -> u64 {
    limit & 0xffff | (base & 0xff_ffff) << 16 | rights << 40 | (limit & 0xf_0000) << 32 | (base & 0xff00_0000) << 32
}

#[test]
fn segment_registers_are_loaded_from_their_descriptors() {
    let mut machine = Machine::new(32);
    let table = machine.gdt.0;
    machine.put(table + 0x18, descriptor(0x1234_5678, 0x9_abcd, 0xc092), Width::B8);
    machine.put(DEVICE, 0x18, Width::B2);
    machine.put(0x500, DEVICE, Width::B4);
    machine.does(|a| a.mov(ds, word_ptr(0x1_0000)));
    let expected = Segment { selector: 0x18, base: 0x1234_5678, limit: 0x9abc_dfff, rights: AccessRights(0xc093) };
    assert_eq!(machine.segments[SegmentName::Ds as usize], expected);
    assert_eq!(machine.peek(table + 0x1d, Width::B1), 0x93, "the descriptor is marked accessed");
    machine.does(|a| a.mov(word_ptr(0x1_0002).es(), ds));
    assert_eq!(machine.peek(DEVICE + 2, Width::B2), 0x18);

    let mut machine = Machine::new(32);
    machine.put(table + 0x18, descriptor(0x2000, 0xfff, 0x4093), Width::B8);
    machine.put(DEVICE, 0x18_8765_4321, Width::B8);
    machine.does(|a| a.lfs(ebx, fword_ptr(0x1_0000)));
    assert_eq!(machine.get(Gpr::Rbx), 0x8765_4321);
    let expected = Segment { selector: 0x18, base: 0x2000, limit: 0xfff, rights: AccessRights(0x4093) };
    assert_eq!(machine.segments[SegmentName::Fs as usize], expected);
}

#[test]
fn what_may_not_be_loaded_is_refused_with_its_selector() {
    let load = |descriptor: u64, selector: u64, user: bool| {
        let mut machine = Machine::new(32);
        if user {
            machine.user();
        }
        machine.put(machine.gdt.0 + (selector & !7), descriptor, Width::B8);
        machine.put(DEVICE, selector, Width::B2);
        // MOV ES, [0x10000].
        let outcome = machine.run_bytes(&[0x8e, 0x05, 0, 0, 1, 0]);
        (outcome, machine.segments[SegmentName::Es as usize])
    };
    let data = descriptor(0, 0xfffff, 0xc093);
    assert_eq!(load(data, 0x18, false).0, Ok(Done::Advance(6)));
    let not_present = GuestFault { vector: vector::NP, error: Some(0x18), cr2: None };
    let cases = [
        (descriptor(0, 0xfffff, 0xc013), 0x18, false, not_present),
        // A system segment; code that cannot be read; privilege by CPL and by RPL.
        (descriptor(0, 0xfffff, 0xc083), 0x18, false, general(0x18)),
        (descriptor(0, 0xfffff, 0xc099), 0x18, false, general(0x18)),
        (data, 0x18, true, general(0x18)),
        (data, 0x1b, false, general(0x18)),
    ];
    for (descriptor, selector, user, fault) in cases {
        let (outcome, segment) = load(descriptor, selector, user);
        assert_eq!(outcome, Err(Refused::Fault(fault)), "{descriptor:#x}");
        assert_eq!(segment.selector, 0x10);
    }
    // Conforming code may be read from any level.
    assert_eq!(load(descriptor(0, 0xfffff, 0xc09f), 0x1b, true).0, Ok(Done::Advance(6)));
    // Behind the table's end, or in no table.
    let mut machine = Machine::new(32);
    machine.gdt.1 = 0x1e;
    machine.put(DEVICE, 0x18, Width::B2);
    assert_eq!(machine.run_bytes(&[0x8e, 0x05, 0, 0, 1, 0]), Err(Refused::Fault(general(0x18))));
    machine.put(DEVICE, 0x1c, Width::B2);
    assert_eq!(machine.run_bytes(&[0x8e, 0x05, 0, 0, 1, 0]), Err(Refused::Fault(general(0x1c))));
    // The null selector is no segment.
    let (outcome, segment) = load(0, 3, false);
    assert_eq!((outcome, segment.rights), (Ok(Done::Advance(6)), AccessRights::UNUSABLE));
}

#[test]
fn a_load_of_ss_begins_a_shadow_but_lss_does_not() {
    let mut machine = Machine::new(32);
    machine.put(machine.gdt.0 + 0x18, descriptor(0x2000, 0xfff, 0x4092), Width::B8);
    machine.put(DEVICE, 0x18_8765_4321, Width::B8);
    machine.put(DEVICE + 8, 0x18, Width::B2);
    let stack = Segment { selector: 0x18, base: 0x2000, limit: 0xfff, rights: AccessRights(0x4093) };
    let before = machine.clone();
    // MOV SS, [0x10008]; LSS EBX, [0x10000]; POP SS with the stack in the device.
    assert_eq!(machine.run_bytes(&[0x8e, 0x15, 8, 0, 1, 0]), Ok(Done::AdvanceIntoShadow(6)));
    assert_eq!(machine.segments[SegmentName::Ss as usize], stack);
    let mut machine = before.clone();
    assert_eq!(machine.run_bytes(&[0x0f, 0xb2, 0x1d, 0, 0, 1, 0]), Ok(Done::Advance(7)));
    assert_eq!((machine.get(Gpr::Rbx), machine.segments[SegmentName::Ss as usize]), (0x8765_4321, stack));
    let mut machine = before;
    machine.set(Gpr::Rsp, DEVICE + 8);
    assert_eq!(machine.run_bytes(&[0x17]), Ok(Done::AdvanceIntoShadow(1)));
    assert_eq!((machine.get(Gpr::Rsp), machine.segments[SegmentName::Ss as usize]), (DEVICE + 12, stack));
    // The others begin none.
    machine.segments[SegmentName::Ss as usize] = machine.segments[SegmentName::Ds as usize];
    machine.put(DEVICE + 8, 0x18, Width::B4);
    machine.set(Gpr::Rsp, DEVICE + 8);
    machine.does(|a| a.pop(es));
    assert_eq!(machine.segments[SegmentName::Es as usize].selector, 0x18);
    machine.does(|a| a.push(es));
    assert_eq!((machine.get(Gpr::Rsp), machine.peek(DEVICE + 8, Width::B4)), (DEVICE + 8, 0x18));
}

#[test]
fn a_stack_segment_has_the_current_privilege_and_can_be_written() {
    let load = |bits: u32, descriptor: u64, selector: u64, user: bool| {
        let mut machine = Machine::new(bits);
        if user {
            machine.user();
        }
        machine.put(machine.gdt.0 + (selector & !7), descriptor, Width::B8);
        machine.put(0x500, selector, Width::B2);
        machine.set(Gpr::Rbx, 0x500);
        // MOV SS, [rBX].
        let outcome = machine.run_bytes(&[0x8e, 0x13]);
        (outcome, machine.segments[SegmentName::Ss as usize])
    };
    let data = |rights| descriptor(0, 0xfffff, rights);
    let done = Ok(Done::AdvanceIntoShadow(2));
    assert_eq!(load(32, data(0xc092), 0x18, false).0, done);
    assert_eq!(load(32, data(0xc0f2), 0x1b, true).0, done);
    let refused = [
        (data(0xc090), 0x18, false, general(0x18)),
        (data(0xc09a), 0x18, false, general(0x18)),
        (data(0xc0f2), 0x18, false, general(0x18)),
        (data(0xc092), 0x1b, false, general(0x18)),
        (data(0xc092), 0x1b, true, general(0x18)),
        (data(0xc012), 0x18, false, GuestFault { vector: vector::SS, error: Some(0x18), cr2: None }),
        (data(0xc092), 0, false, GuestFault::GP0),
    ];
    for (descriptor, selector, user, fault) in refused {
        let (outcome, segment) = load(32, descriptor, selector, user);
        assert_eq!(outcome, Err(Refused::Fault(fault)), "{descriptor:#x}");
        assert_eq!(segment.selector, 0x10);
    }
    // 64-bit code may do without one, but not users.
    let (outcome, segment) = load(64, 0, 0, false);
    assert_eq!((outcome, segment.rights), (done, AccessRights::UNUSABLE));
    assert_eq!(load(64, 0, 3, true).0, Err(Refused::Fault(GuestFault::GP0)));
    assert_eq!(load(64, 0, 1, false).0, Err(Refused::Fault(GuestFault::GP0)));
}

#[test]
fn without_protection_a_segment_is_its_selector() {
    let mut machine = Machine::real();
    machine.segments[SegmentName::Fs as usize] =
        Segment { selector: 0, base: 0, limit: 0xffff_ffff, rights: AccessRights(0xc093) };
    machine.put(0x300, 0x1234, Width::B2);
    machine.does(|a| a.mov(fs, word_ptr(0x300)));
    // Big real mode: the limit stays.
    let big = Segment { selector: 0x1234, base: 0x1_2340, limit: 0xffff_ffff, rights: AccessRights(0xc093) };
    assert_eq!(machine.segments[SegmentName::Fs as usize], big);

    machine.cr0.insert(Cr0::PE);
    machine.flags.insert(Rflags::VM);
    machine.does(|a| a.mov(fs, word_ptr(0x300)));
    let virtual_8086 = Segment { selector: 0x1234, base: 0x1_2340, limit: 0xffff, rights: AccessRights(0xf3) };
    assert_eq!(machine.segments[SegmentName::Fs as usize], virtual_8086);
}

#[test]
fn descriptors_are_read_as_a_supervisor() {
    let mut machine = Machine::new(32);
    machine.put(machine.gdt.0 + 0x18, descriptor(0, 0xfffff, 0xc0f2), Width::B8);
    machine.put(DEVICE, 0x1b, Width::B2);
    machine.user();
    machine.pages.insert(machine.gdt.0 >> 12, Page::System);
    machine.does(|a| a.mov(es, word_ptr(0x1_0000)));
    machine.pages.insert(machine.gdt.0 >> 12, Page::Absent);
    machine.set(Gpr::Rbx, 0x1b);
    machine.faults(GuestFault::page_fault(0x1018, 0), |a| a.mov(es, ebx));
}
