//! Far transfers of control, and IRET.

use lamina_arch::cr::{Cr0, Rflags};
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::exit::Width;
use lamina_arch::regs::Gpr;
use lamina_arch::segment::{AccessRights, SegmentName};

use super::machine::{CODE, DEVICE, Machine, Page, Seen};
use crate::insn::{Done, Refused};

/// Flat code of 32 bits at DPL 0 and 3, data at DPL 3, 64-bit code, conforming code, code that is not there, a call gate.
const DESCRIPTORS: [(u64, u64); 8] = [
    (0x18, 0x00cf_9a00_0000_ffff),
    (0x20, 0x00cf_fa00_0000_ffff),
    (0x28, 0x00cf_f200_0000_ffff),
    (0x30, 0x00af_9a00_0000_ffff),
    (0x38, 0x00cf_9e00_0000_ffff),
    (0x40, 0x00cf_1a00_0000_ffff),
    (0x48, 0x0000_ec00_0018_1234),
    (0x50, 0x00ef_9a00_0000_ffff),
];

fn machine(bits: u32) -> Machine {
    let mut machine = Machine::new(bits);
    for (selector, value) in DESCRIPTORS {
        machine.put(machine.gdt.0 + selector, value, Width::B8);
    }
    machine.set(Gpr::Rsi, DEVICE);
    machine.set(Gpr::Rsp, 0x3000);
    machine
}

fn general(selector: u32) -> GuestFault {
    GuestFault { vector: vector::GP, error: Some(selector), cr2: None }
}

fn cs(machine: &Machine) -> (u16, AccessRights) {
    let code = machine.segments[SegmentName::Cs as usize];
    (code.selector, code.rights)
}

/// JMP FAR [ESI] or [RSI]; CALL FAR.
const JMP: [u8; 2] = [0xff, 0x2e];
const CALL: [u8; 2] = [0xff, 0x1e];

#[test]
fn a_far_jump_takes_its_pointer_from_a_device() {
    let mut m = machine(32);
    m.put(DEVICE, 0x18_0000_4444, Width::B8);
    assert_eq!(m.run_bytes(&JMP), Ok(Done::Jumped));
    assert_eq!((m.rip, cs(&m)), (0x4444, (0x18, AccessRights(0xc09b))));
    assert_eq!(m.peek(m.gdt.0 + 0x1d, Width::B1), 0x9b, "the descriptor is marked accessed");
    assert_eq!(m.seen, [Seen::Read(0, 6)]);
    // To 64-bit code, with an offset of 64 bits.
    let mut m = machine(64);
    m.put(DEVICE, 0x7fff_1234_5678, Width::B8);
    m.put(DEVICE + 8, 0x30, Width::B2);
    assert_eq!(m.run_bytes(&[0x48, 0xff, 0x2e]), Ok(Done::Jumped));
    assert_eq!((m.rip, cs(&m)), (0x7fff_1234_5678, (0x30, AccessRights(0xa09b))));
    // Real mode: the selector is the base.
    let mut m = Machine::real();
    m.segments[3].base = DEVICE;
    m.set(Gpr::Rsi, 0x10);
    m.put(DEVICE + 0x10, 0x1234_0042, Width::B4);
    assert_eq!(m.run_bytes(&[0xff, 0x2c]), Ok(Done::Jumped));
    let code = m.segments[SegmentName::Cs as usize];
    assert_eq!((m.rip, code.selector, code.base, code.limit), (0x42, 0x1234, 0x1_2340, 0xffff));
}

#[test]
fn where_a_far_jump_may_not_go() {
    let np = GuestFault { vector: vector::NP, error: Some(0x40), cr2: None };
    let cases: [(u32, u64, u64, bool, Option<GuestFault>); 11] = [
        (32, 0, 0x4444, false, Some(GuestFault::GP0)),
        (32, 0x28, 0x4444, false, Some(general(0x28))),
        (32, 0x20, 0x4444, false, Some(general(0x20))),
        (32, 0x1b, 0x4444, false, Some(general(0x18))),
        (32, 0x18, 0x4444, true, Some(general(0x18))),
        (32, 0x40, 0x4444, false, Some(np)),
        (32, 0x1000, 0x4444, false, Some(general(0x1000))),
        (64, 0x50, 0x4444, false, Some(general(0x50))),
        // Conforming code is entered at any level; the level stays.
        (32, 0x38, 0x4444, true, None),
        (32, 0x23, 0x4444, true, None),
        (32, 0x18, 0x4444, false, None),
    ];
    for (bits, selector, offset, user, fault) in cases {
        let mut m = machine(bits);
        if user {
            m.user();
        }
        m.put(DEVICE, selector << 32 | offset, Width::B8);
        let before = m.clone();
        let outcome = m.run_bytes(&JMP);
        match fault {
            Some(fault) => {
                assert_eq!(outcome, Err(Refused::Fault(fault)), "{selector:#x}");
                assert_eq!((m.rip, cs(&m), m.gprs), (before.rip, cs(&before), before.gprs));
            }
            None => assert_eq!((outcome, cs(&m).0 & 3), (Ok(Done::Jumped), if user { 3 } else { 0 })),
        }
    }
    // Beyond the limit, and not canonical.
    let mut m = machine(32);
    m.put(m.gdt.0 + 0x18, 0x0000_9a00_0000_0fff, Width::B8);
    m.put(DEVICE, 0x18_0000_1000, Width::B8);
    assert_eq!(m.run_bytes(&JMP), Err(Refused::Fault(GuestFault::GP0)));
    // Through a gate: not emulated.
    m.put(DEVICE, 0x48_0000_4444, Width::B8);
    assert!(matches!(m.run_bytes(&JMP), Err(Refused::Unsupported(_))));
}

#[test]
fn a_far_call_pushes_and_a_far_return_pops() {
    let mut m = machine(32);
    m.put(DEVICE, 0x18_0000_4444, Width::B8);
    m.set(Gpr::Rsp, DEVICE + 0x80);
    assert_eq!(m.run_bytes(&CALL), Ok(Done::Jumped));
    assert_eq!((m.rip, cs(&m).0, m.get(Gpr::Rsp)), (0x4444, 0x18, DEVICE + 0x78));
    assert_eq!((m.peek(DEVICE + 0x7c, Width::B4), m.peek(DEVICE + 0x78, Width::B4)), (8, CODE + 2));
    // RETF 8 back, to a segment that is there by now.
    m.put(m.gdt.0 + 8, DESCRIPTORS[0].1, Width::B8);
    assert_eq!(m.run_bytes(&[0xca, 8, 0]), Ok(Done::Jumped));
    assert_eq!((m.rip, cs(&m).0, m.get(Gpr::Rsp)), (CODE + 2, 8, DEVICE + 0x88));
    // No room for both.
    let mut m = machine(32);
    m.put(DEVICE, 0x18_0000_4444, Width::B8);
    m.pages.insert(2, Page::Absent);
    m.set(Gpr::Rsp, 0x3004);
    let before = m.clone();
    assert_eq!(m.run_bytes(&CALL), Err(Refused::Fault(GuestFault::page_fault(0x2ffc, 2))));
    assert_eq!((m.gprs, cs(&m), m.rip), (before.gprs, cs(&before), before.rip));
}

#[test]
fn a_far_return_to_a_lower_privilege_takes_the_stack_and_the_data_segments() {
    let mut m = machine(32);
    m.set(Gpr::Rsp, DEVICE);
    for (at, value) in [(0, 0x4444), (4, 0x23), (16, 0x2ff0), (20, 0x2b)] {
        m.put(DEVICE + at, value, Width::B4);
    }
    m.segments[SegmentName::Es as usize].rights = AccessRights(0xc0f3);
    assert_eq!(m.run_bytes(&[0xca, 8, 0]), Ok(Done::Jumped));
    assert_eq!((m.rip, cs(&m).0, m.get(Gpr::Rsp)), (0x4444, 0x23, 0x2ff8));
    let stack = m.segments[SegmentName::Ss as usize];
    assert_eq!((stack.selector, stack.rights), (0x2b, AccessRights(0xc0f3)));
    assert!(m.segments[SegmentName::Ds as usize].rights.is_unusable());
    assert!(!m.segments[SegmentName::Es as usize].rights.is_unusable());
    // Never to a higher one.
    let mut m = machine(32);
    m.user();
    m.put(0x3000, 0x4444, Width::B4);
    m.put(0x3004, 0x18, Width::B4);
    assert_eq!(m.run_bytes(&[0xcb]), Err(Refused::Fault(general(0x18))));
}

#[test]
fn iret_restores_the_flags_that_its_privilege_allows() {
    let flags = (Rflags::CF | Rflags::IF | Rflags::RF | Rflags::FIXED).bits() | 3 << 12;
    let mut m = machine(32);
    m.set(Gpr::Rsp, DEVICE);
    for (at, value) in [(0, 0x4444), (4, 0x18), (8, flags)] {
        m.put(DEVICE + at, value, Width::B4);
    }
    assert_eq!(m.run_bytes(&[0xcf]), Ok(Done::Jumped));
    assert_eq!((m.rip, cs(&m).0, m.get(Gpr::Rsp), m.flags.bits()), (0x4444, 0x18, DEVICE + 12, flags));
    assert!(!m.nmi_blocked);
    // A user changes neither IF nor IOPL.
    let mut m = machine(32);
    m.user();
    for (at, value) in [(0, 0x4444), (4, 0x23), (8, flags)] {
        m.put(0x3000 + at, value, Width::B4);
    }
    assert_eq!(m.run_bytes(&[0xcf]), Ok(Done::Jumped));
    assert_eq!(m.flags, Rflags::CF | Rflags::RF | Rflags::FIXED);
    // 64-bit code pops the stack's pointer whatever the privilege, and may have no stack segment.
    let mut m = machine(64);
    for (at, value) in [(0, 0x4444), (8, 0x30), (16, flags), (24, 0x5555), (32, 0)] {
        m.put(0x3000 + at, value, Width::B8);
    }
    assert_eq!(m.run_bytes(&[0x48, 0xcf]), Ok(Done::Jumped));
    assert_eq!((m.rip, m.get(Gpr::Rsp), m.segments[SegmentName::Ss as usize].selector), (0x4444, 0x5555, 0));
    // Real mode.
    let mut m = Machine::real();
    m.set(Gpr::Rsp, 0x3000);
    for (at, value) in [(0, 0x4444), (2, 0x1234), (4, 0x202)] {
        m.put(0x3000 + at, value, Width::B2);
    }
    assert_eq!(m.run_bytes(&[0xcf]), Ok(Done::Jumped));
    assert_eq!((m.rip, cs(&m).0, m.flags), (0x4444, 0x1234, Rflags::IF | Rflags::FIXED));
}

#[test]
fn iret_elsewhere_is_refused() {
    let mut m = machine(32);
    m.flags = Rflags::from_bits_retain(1 << 14 | 2);
    assert!(matches!(m.run_bytes(&[0xcf]), Err(Refused::Unsupported(_))));
    let mut m = machine(64);
    m.flags = Rflags::from_bits_retain(1 << 14 | 2);
    assert_eq!(m.run_bytes(&[0x48, 0xcf]), Err(Refused::Fault(GuestFault::GP0)));
    let mut m = machine(32);
    for (at, value) in [(0, 0x4444), (4, 0x18), (8, Rflags::VM.bits() | 2)] {
        m.put(0x3000 + at, value, Width::B4);
    }
    assert!(matches!(m.run_bytes(&[0xcf]), Err(Refused::Unsupported(_))));
    let mut m = Machine::real();
    m.cr0.insert(Cr0::PE);
    m.flags.insert(Rflags::VM);
    assert_eq!(m.run_bytes(&[0xcf]), Err(Refused::Fault(GuestFault::GP0)));
}
