//! Properties of the pure decoders, one harness each: property tests here, fuzz targets under cargo-bolero, proofs
//! under Kani. And what is small enough to be looked at whole.

use bolero::check;
use lamina_arch::addr::Gpa;
use lamina_arch::event::{Event, EventKind};
use lamina_arch::exit::{CrAccess, Direction, Exit, NestedFault, TaskSource};
use lamina_arch::msr;
use lamina_arch::time::Frequency;
use lamina_arch::vmx::capabilities::Capabilities;
use lamina_arch::vmx::{exit as vmx_exit, field, interruption, rules as vmx_rules};
use lamina_arch::{svm, vmx};

const KINDS: [EventKind; 6] = [
    EventKind::External,
    EventKind::Nmi,
    EventKind::HardwareException,
    EventKind::SoftwareInterrupt,
    EventKind::PrivilegedSoftwareException,
    EventKind::SoftwareException,
];

fn event(kind: u8, vector: u8, error: Option<u32>) -> Event {
    Event { kind: KINDS[usize::from(kind) % KINDS.len()], vector, error, length: 0 }
}

#[test]
fn vmx_exits_decode_totally_and_within_their_fields() {
    check!().with_type::<(u32, u64, [u32; 6], u64, u64)>().cloned().for_each(
        |(reason, qualification, small, guest_physical, guest_linear)| {
            let [interruption, interruption_error, idt_vectoring, idt_vectoring_error, instruction_length, information] =
                small;
            // Half of the inputs are of a reason that there is.
            let reason = if reason & 1 == 0 { reason >> 1 & 0x7f } else { reason };
            let captured = vmx::exit::Captured {
                reason,
                qualification,
                interruption,
                interruption_error,
                idt_vectoring,
                idt_vectoring_error,
                instruction_length,
                instruction_information: information,
                guest_physical,
                guest_linear,
            };
            match vmx::exit::decode(&captured) {
                Exit::Io(io) => assert_eq!((u64::from(io.port), reason & 0xffff), (qualification >> 16 & 0xffff, 30)),
                Exit::Cr(cr) => match cr.access {
                    Some(CrAccess::Write { cr, .. }) => assert!(matches!(cr, 0 | 3 | 4 | 8)),
                    Some(CrAccess::Read { cr, .. }) => assert!(matches!(cr, 3 | 8)),
                    Some(CrAccess::Clts | CrAccess::Lmsw { .. }) => {}
                    None => panic!("VMX always says what was done"),
                },
                // An access to the page that the processor keeps for the local APIC (44): the qualification has the offset.
                Exit::NestedFault(NestedFault { gpa, .. }) if reason & 0xffff == 44 => match qualification >> 12 & 0xf {
                    10 | 15 => assert_eq!(gpa, Gpa(msr::APIC_BASE_AFTER_RESET)),
                    _ => assert_eq!(gpa, Gpa(msr::APIC_BASE_AFTER_RESET + (qualification & 0xfff))),
                },
                Exit::NestedFault(NestedFault { gpa, .. }) => assert_eq!(gpa, Gpa(guest_physical)),
                Exit::ApicWrite { offset } => assert_eq!(u64::from(offset), qualification & 0xfff),
                Exit::ApicEoi { vector } => assert_eq!(u64::from(vector), qualification & 0xff),
                Exit::Unknown { reason: told, .. } => assert_eq!(told, u64::from(reason)),
                _ => {}
            }
            if let Some(event) = vmx::exit::interrupted_event(&captured) {
                assert!(event.length <= 15 && idt_vectoring & interruption::VALID != 0);
            }
            assert!(!(vmx::exit::unblocked_nmi(&captured) && idt_vectoring & interruption::VALID != 0));
        },
    );
}

#[test]
fn svm_exits_decode_totally_and_within_their_fields() {
    check!().with_type::<(u64, u64, u64, u64, [u64; 3], u32)>().cloned().for_each(
        |(code, info1, info2, interrupted, [rip, next_rip, dr6], features)| {
            let code = match code & 3 {
                0 => code,
                1 => 0x400 + (code >> 2 & 7),
                _ => code >> 2 & 0xff,
            };
            let features = svm::features::Features::from_bits_truncate(features);
            let captured = svm::exit::Captured { code, info1, info2, interrupted, rip, next_rip, dr6, features };
            match svm::exit::decode(&captured) {
                Exit::Io(io) => assert_eq!((u64::from(io.port), code), (info1 >> 16 & 0xffff, 0x7b)),
                Exit::NestedFault(fault) => {
                    assert_eq!(fault.gpa, Gpa(info2));
                    assert!(u8::from(fault.read) + u8::from(fault.write) + u8::from(fault.fetch) >= 1);
                }
                Exit::Unknown { reason, .. } => assert_eq!(reason, code),
                _ => {}
            }
            if code != 0x7b
                && let Some(next) = captured.after_instruction()
            {
                assert!((1..=15).contains(&next.wrapping_sub(rip)));
            }
            let _ = svm::exit::interrupted_event(&captured);
        },
    );
}

#[test]
fn an_event_survives_the_interruption_information() {
    check!().with_type::<(u8, u8, Option<u32>, u8)>().cloned().for_each(|(kind, vector, error, length)| {
        let mut event = event(kind, vector, error);
        let information = interruption::encode(&event);
        if interruption::is_software(information) {
            event.length = length & 15;
        }
        let told = interruption::decode(information, error.unwrap_or(0), u32::from(event.length));
        assert_eq!(told, Some(event));
    });
}

#[test]
fn an_event_survives_the_vmcb_unless_its_instruction_raises_it_again() {
    check!().with_type::<(u8, u8, Option<u32>)>().cloned().for_each(|(kind, vector, error)| {
        let event = event(kind, vector, error);
        match svm::event::decode(svm::event::encode(&event)) {
            Some(told) => {
                let kind = match event.kind {
                    EventKind::External | EventKind::Nmi => event.kind,
                    _ => EventKind::HardwareException,
                };
                assert_eq!(told, Event { kind, ..event });
            }
            None => assert!(event.kind == EventKind::SoftwareInterrupt || matches!(vector, 3 | 4)),
        }
    });
}

#[test]
fn addresses_align_down_and_add_within_64_bits() {
    check!().with_type::<(u64, u64, u8)>().cloned().for_each(|(address, length, shift)| {
        let size = 1u64 << (shift % 40);
        let down = Gpa(address).align_down(size);
        assert!(down.is_aligned(size) && down.0 <= address && address - down.0 < size);
        assert_eq!(down.0 + Gpa(address).offset_in(size), address);
        let sum = u128::from(address) + u128::from(length);
        assert_eq!(Gpa(address).checked_add(length).map(|end| u128::from(end.0)), (sum < 1 << 64).then_some(sum));
    });
}

#[test]
fn times_convert_down_and_up_around_the_exact_value() {
    check!().with_type::<(u64, u64, u64)>().cloned().for_each(|(ticks, from, to)| {
        let (from, to) = (Frequency::from_hz(from), Frequency::from_hz(to));
        let exact = u128::from(ticks) * u128::from(to.hz());
        let hz = u128::from(from.hz());
        let clamp = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
        assert_eq!(from.convert(ticks, to), clamp(exact / hz));
        assert_eq!(from.convert_up(ticks, to), clamp(exact.div_ceil(hz)));
    });
}

struct Random<'a>(&'a [u64]);

impl vmx_rules::Reader for Random<'_> {
    fn raw(&self, encoding: u32) -> u64 {
        let mixed = (encoding >> 1 ^ encoding >> 7) as usize;
        self.0.get(mixed % self.0.len().max(1)).copied().unwrap_or(0)
    }
}

#[test]
fn the_rules_of_a_vm_entry_name_fields_that_there_are() {
    check!().with_type::<(Vec<u64>, Vec<u64>, u8)>().for_each(|(values, msrs, width)| {
        let msr = |index: u32| msrs.get(index as usize % msrs.len().max(1)).copied().unwrap_or(0);
        let capabilities = Capabilities::read(msr, *width, 48);
        vmx_rules::check(&Random(values), &capabilities, &mut |violation| {
            assert!(!violation.rule.is_empty() && !violation.section.is_empty());
        });
    });
}

/// What bits 14:0 of an encoding say (SDM vol. 3, "VMCS Encoding"): each is a field of ours that lies in the place
/// that it says, or none.
#[test]
fn every_vmcs_encoding() {
    let mut known = 0;
    for encoding in 0..=0xffffu32 {
        let Some((name, _)) = field::ALL.iter().find(|(_, number)| *number == encoding) else { continue };
        known += 1;
        assert_eq!(encoding & 0x9001, 0, "{name}: reserved bits, or the high half of a field");
        let area = encoding >> 10 & 3;
        assert_eq!(area == 3, name.starts_with("HOST_"), "{name}");
    }
    assert_eq!(known, field::ALL.len(), "an encoding has more than 16 bits");
}

#[test]
fn every_16_bit_qualification_of_io_and_control_registers() {
    let of =
        |reason, qualification| vmx_exit::decode(&vmx_exit::Captured { reason, qualification, ..Default::default() });
    for port in [0, 0x80, 0xffff] {
        for low in 0..=0xffffu64 {
            let exit = of(u32::from(vmx_exit::reason::IO), port << 16 | low);
            let bytes = [1, 2, 0, 4].get((low & 7) as usize).copied().unwrap_or(0);
            match exit {
                Exit::Io(io) => {
                    assert_eq!((u64::from(io.port), io.width.bytes()), (port, bytes));
                    assert_eq!(io.direction == Direction::In, low & 8 != 0);
                    assert_eq!(io.string.is_some(), low & 16 != 0);
                }
                Exit::Unknown { .. } => assert_eq!(bytes, 0, "{low:#x}"),
                other => panic!("{low:#x}: {other:?}"),
            }
        }
    }
    for low in 0..=0xffffu64 {
        let allowed = match low >> 4 & 3 {
            0 => matches!(low & 15, 0 | 3 | 4 | 8),
            1 => matches!(low & 15, 3 | 8),
            _ => low & 15 == 0,
        };
        let exit = of(u32::from(vmx_exit::reason::CONTROL_REGISTER), low);
        assert_eq!(matches!(exit, Exit::Cr(_)), allowed, "{low:#x}: {exit:?}");
    }
}

/// The other reasons, those that there are not among them: what an exit says of a qualification is in it, and where it
/// says nothing the qualification changes nothing.
#[test]
fn every_16_bit_qualification_of_every_reason() {
    let of = |basic: u16, qualification| {
        vmx_exit::decode(&vmx_exit::Captured {
            reason: basic.into(),
            qualification,
            guest_physical: 0x1234_5678,
            guest_linear: 0x7777,
            ..Default::default()
        })
    };
    for basic in (0..=0x7f).filter(|basic| !matches!(*basic, vmx_exit::reason::IO | vmx_exit::reason::CONTROL_REGISTER))
    {
        let silent = of(basic, 0);
        for short in 0..=u16::MAX {
            let low = u64::from(short);
            let page = Gpa(msr::APIC_BASE_AFTER_RESET + (low & 0xfff));
            match (basic, of(basic, low)) {
                (vmx_exit::reason::TASK_SWITCH, exit) => {
                    assert_eq!(exit, Exit::TaskSwitch { selector: Some(short), source: TaskSource::Call });
                }
                (vmx_exit::reason::EPT_VIOLATION, Exit::NestedFault(fault)) => {
                    let accesses = u64::from(fault.read) | u64::from(fault.write) << 1 | u64::from(fault.fetch) << 2;
                    assert_eq!((accesses, fault.gpa), (low & 7, Gpa(0x1234_5678)), "{low:#x}");
                    assert_eq!(fault.linear.map(|at| at.0), (low & 0x80 != 0).then_some(0x7777), "{low:#x}");
                    assert_eq!(fault.table_walk, low & 0x180 == 0x80, "{low:#x}");
                }
                (vmx_exit::reason::APIC_ACCESS, Exit::NestedFault(fault)) => {
                    let accesses = (fault.read, fault.write, fault.fetch, fault.table_walk, fault.gpa);
                    let expected = match low >> 12 {
                        0 => (true, false, false, false, page),
                        1 => (false, true, false, false, page),
                        2 => (false, false, true, false, page),
                        3 => (false, false, false, false, page),
                        // Guest-physical ones have no offset.
                        10 | 15 => (true, false, false, true, Gpa(msr::APIC_BASE_AFTER_RESET)),
                        _ => panic!("there is no such access: {low:#x}"),
                    };
                    assert_eq!((accesses, fault.linear), (expected, None), "{low:#x}");
                }
                (vmx_exit::reason::APIC_ACCESS, exit) => {
                    assert!(matches!(exit, Exit::Unknown { .. }) && matches!(low >> 12, 4..=9 | 11..=14), "{low:#x}");
                }
                (vmx_exit::reason::APIC_WRITE, exit) => {
                    assert_eq!(exit, Exit::ApicWrite { offset: short & 0xfff });
                }
                (vmx_exit::reason::VIRTUALIZED_EOI, exit) => {
                    assert_eq!(exit, Exit::ApicEoi { vector: short.to_le_bytes()[0] });
                }
                (_, Exit::Unknown { reason, qualification }) => {
                    assert_eq!((reason, qualification), (basic.into(), low));
                    assert!(matches!(silent, Exit::Unknown { .. }), "reason {basic}, {low:#x}");
                }
                (_, exit) => assert_eq!(exit, silent, "reason {basic}, {low:#x}"),
            }
        }
    }
}

#[test]
fn every_16_bit_information_of_an_svm_port_access() {
    for low in 0..=0xffffu64 {
        let captured = svm::exit::Captured { code: 0x7b, info1: 0x1f0 << 16 | low, ..Default::default() };
        match svm::exit::decode(&captured) {
            Exit::Io(io) => {
                assert_eq!(io.port, 0x1f0);
                assert_eq!(low >> 4 & 7, io.width.bytes() as u64, "{low:#x}");
                assert_eq!(io.direction == Direction::In, low & 1 != 0);
                assert_eq!(io.string.is_some(), low & 4 != 0);
            }
            Exit::Unknown { .. } => {
                let string = low & 4 != 0;
                let address = matches!(low >> 7 & 7, 0 | 1 | 2 | 4);
                assert!(!matches!(low >> 4 & 7, 1 | 2 | 4) || string && !address, "{low:#x}");
            }
            other => panic!("{low:#x}: {other:?}"),
        }
    }
}
