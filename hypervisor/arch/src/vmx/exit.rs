//! Exit reasons of VMX, which fields each needs, and their pure decoding into [`Exit`] (SDM vol. 3, appendix "VMX
//! Basic Exit Reasons" and "Basic VM-Exit Information").

use bitflags::bitflags;

use super::interruption;
use crate::addr::{Gla, Gpa};
use crate::event::{Event, EventKind, vector};
use crate::exit::{CrAccess, CrExit, Direction, Exit, IoExit, NestedFault, StringIo, TaskSource, Width};
use crate::msr;
use crate::regs::Gpr;

/// Basic exit reasons, bits 15:0 of the exit reason.
#[allow(missing_docs, reason = "each constant is the exit reason of its name")]
pub mod reason {
    pub const EXCEPTION_OR_NMI: u16 = 0;
    pub const EXTERNAL_INTERRUPT: u16 = 1;
    pub const TRIPLE_FAULT: u16 = 2;
    pub const INIT: u16 = 3;
    pub const INTERRUPT_WINDOW: u16 = 7;
    pub const NMI_WINDOW: u16 = 8;
    pub const TASK_SWITCH: u16 = 9;
    pub const CPUID: u16 = 10;
    pub const GETSEC: u16 = 11;
    pub const HLT: u16 = 12;
    pub const INVD: u16 = 13;
    pub const RDPMC: u16 = 15;
    pub const VMCALL: u16 = 18;
    pub const VMCLEAR: u16 = 19;
    pub const VMXON: u16 = 27;
    pub const CONTROL_REGISTER: u16 = 28;
    pub const MOV_DR: u16 = 29;
    pub const IO: u16 = 30;
    pub const RDMSR: u16 = 31;
    pub const WRMSR: u16 = 32;
    pub const ENTRY_FAILURE_GUEST_STATE: u16 = 33;
    pub const ENTRY_FAILURE_MSR_LOADING: u16 = 34;
    pub const MWAIT: u16 = 36;
    pub const MONITOR: u16 = 39;
    pub const PAUSE: u16 = 40;
    pub const ENTRY_FAILURE_MACHINE_CHECK: u16 = 41;
    pub const APIC_ACCESS: u16 = 44;
    pub const VIRTUALIZED_EOI: u16 = 45;
    pub const EPT_VIOLATION: u16 = 48;
    pub const EPT_MISCONFIGURATION: u16 = 49;
    pub const INVEPT: u16 = 50;
    pub const PREEMPTION_TIMER: u16 = 52;
    pub const INVVPID: u16 = 53;
    pub const WBINVD: u16 = 54;
    pub const XSETBV: u16 = 55;
    pub const APIC_WRITE: u16 = 56;
    pub const RDRAND: u16 = 57;
    pub const VMFUNC: u16 = 59;
    pub const ENCLS: u16 = 60;
    pub const RDSEED: u16 = 61;
    pub const XSAVES: u16 = 63;
    pub const XRSTORS: u16 = 64;
}

/// Exit qualification for debug exceptions: B0 to B3, BD, BS, at their places in DR6.
const DEBUG_STATUS: u64 = 0x600f;

/// Bit 31 of the exit reason: the VM entry failed.
pub const ENTRY_FAILURE: u32 = 1 << 31;

bitflags! {
    /// Which fields besides the exit reason an exit's decoding reads. What is not named here is not VMREAD.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Needs: u8 {
        /// Exit qualification.
        const QUALIFICATION = 1 << 0;
        /// VM-exit interruption information, and its error code where it has one.
        const INTERRUPTION = 1 << 1;
        /// IDT-vectoring information, its error code and the instruction length where it holds an event.
        const IDT_VECTORING = 1 << 2;
        /// Guest-physical address.
        const GUEST_PHYSICAL = 1 << 3;
        /// Guest-linear address, where the qualification says that it is valid.
        const GUEST_LINEAR = 1 << 4;
        /// VM-exit instruction information, for INS and OUTS only.
        const STRING_IO = 1 << 5;
    }
}

/// The fields that decoding an exit of basic reason `basic` needs. VMREADs on the way in: 1 for the reason, and:
/// CPUID, HLT, VMCALL, RDMSR, WRMSR, windows and the preemption timer 0; external interrupt 1; I/O without string 1;
/// EPT violation 4; APIC access 2, APIC write and virtualized EOI 1.
pub const fn needs(basic: u16) -> Needs {
    match basic {
        reason::EXCEPTION_OR_NMI => Needs::INTERRUPTION.union(Needs::IDT_VECTORING).union(Needs::QUALIFICATION),
        reason::EXTERNAL_INTERRUPT => Needs::INTERRUPTION,
        reason::TASK_SWITCH | reason::APIC_ACCESS => Needs::QUALIFICATION.union(Needs::IDT_VECTORING),
        reason::CONTROL_REGISTER | reason::APIC_WRITE | reason::VIRTUALIZED_EOI => Needs::QUALIFICATION,
        reason::IO => Needs::QUALIFICATION.union(Needs::STRING_IO),
        reason::EPT_VIOLATION => {
            Needs::QUALIFICATION.union(Needs::GUEST_PHYSICAL).union(Needs::GUEST_LINEAR).union(Needs::IDT_VECTORING)
        }
        reason::EPT_MISCONFIGURATION => Needs::GUEST_PHYSICAL.union(Needs::IDT_VECTORING),
        reason::CPUID
        | reason::HLT
        | reason::VMCALL
        | reason::RDMSR
        | reason::WRMSR
        | reason::INTERRUPT_WINDOW
        | reason::NMI_WINDOW
        | reason::PREEMPTION_TIMER
        | reason::TRIPLE_FAULT => Needs::empty(),
        _ => Needs::QUALIFICATION,
    }
}

/// What was read from the VMCS after an exit; fields that [`needs`] did not name are 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Captured {
    /// Exit reason, 32 bits.
    pub reason: u32,
    /// Exit qualification.
    pub qualification: u64,
    /// VM-exit interruption information.
    pub interruption: u32,
    /// VM-exit interruption error code.
    pub interruption_error: u32,
    /// IDT-vectoring information.
    pub idt_vectoring: u32,
    /// IDT-vectoring error code.
    pub idt_vectoring_error: u32,
    /// VM-exit instruction length, read only where IDT vectoring or a software exception asks for it. Unit: bytes.
    pub instruction_length: u32,
    /// VM-exit instruction information.
    pub instruction_information: u32,
    /// Guest-physical address.
    pub guest_physical: u64,
    /// Guest-linear address.
    pub guest_linear: u64,
}

/// Decodes an exit. Pure; total over all inputs: what makes no sense becomes [`Exit::Unknown`].
pub fn decode(c: &Captured) -> Exit {
    let basic = (c.reason & 0xffff) as u16;
    let unknown = Exit::Unknown { reason: u64::from(c.reason), qualification: c.qualification };
    match basic {
        reason::EXCEPTION_OR_NMI => decode_exception(c).unwrap_or(unknown),
        reason::EXTERNAL_INTERRUPT => match interruption::decode(c.interruption, 0, 0) {
            Some(Event { vector, kind: EventKind::External, .. }) => Exit::HostInterrupt { vector: Some(vector) },
            _ => unknown,
        },
        reason::TRIPLE_FAULT => Exit::TripleFault,
        reason::INTERRUPT_WINDOW => Exit::InterruptWindow,
        reason::NMI_WINDOW => Exit::NmiWindow,
        reason::TASK_SWITCH => decode_task_switch(c.qualification),
        reason::CPUID => Exit::Cpuid,
        reason::HLT => Exit::Hlt,
        reason::INVD | reason::WBINVD => Exit::CacheFlush,
        reason::RDPMC => Exit::Forbidden,
        reason::VMCALL => Exit::Hypercall,
        reason::GETSEC
        | reason::VMCLEAR..=reason::VMXON
        | reason::MWAIT
        | reason::MONITOR
        | reason::INVEPT
        | reason::INVVPID
        | reason::VMFUNC
        | reason::RDRAND
        | reason::RDSEED
        | reason::ENCLS
        | reason::XSAVES
        | reason::XRSTORS => Exit::Undefined,
        reason::CONTROL_REGISTER => decode_cr(c.qualification).map_or(unknown, Exit::Cr),
        reason::IO => decode_io(c).map_or(unknown, Exit::Io),
        reason::RDMSR => Exit::Rdmsr,
        reason::WRMSR => Exit::Wrmsr,
        reason::PAUSE => Exit::Pause,
        reason::EPT_VIOLATION => Exit::NestedFault(decode_ept_violation(c)),
        reason::EPT_MISCONFIGURATION => Exit::NestedMisconfiguration { gpa: Gpa(c.guest_physical) },
        reason::PREEMPTION_TIMER => Exit::SliceEnd,
        reason::XSETBV => Exit::Xsetbv,
        reason::APIC_ACCESS => decode_apic_access(c.qualification).map_or(unknown, Exit::NestedFault),
        reason::APIC_WRITE => Exit::ApicWrite { offset: (c.qualification & 0xfff) as u16 },
        reason::VIRTUALIZED_EOI => Exit::ApicEoi { vector: (c.qualification & 0xff) as u8 },
        _ => unknown,
    }
}

/// Exit qualification of an EPT violation: a write.
pub const EPT_WRITE: u64 = 1 << 1;
/// An instruction fetch.
pub const EPT_FETCH: u64 = 1 << 2;
/// The guest-linear address is valid, and the access is to what it translates to: no walk of the guest's paging.
pub const EPT_TRANSLATED: u64 = 1 << 7 | 1 << 8;

/// Exit qualification of an EPT violation, and interruption information: an IRET had unblocked NMIs.
pub const UNBLOCKED_NMI: u64 = 1 << 12;

/// Whether the exit came out of an IRET that had unblocked NMIs before it faulted, so that they are to be blocked again
/// (SDM vol. 3, "Information for VM Exits Due to Vectored Events": "NMI unblocking due to IRET"). Undefined, so not
/// looked at, behind an event's delivery and for double faults.
pub const fn unblocked_nmi(c: &Captured) -> bool {
    if c.idt_vectoring & interruption::VALID != 0 {
        return false;
    }
    match (c.reason & 0xffff) as u16 {
        reason::EXCEPTION_OR_NMI => {
            c.interruption & interruption::VALID != 0
                && c.interruption & 0xff != vector::DF as u32
                && c.interruption as u64 & UNBLOCKED_NMI != 0
        }
        reason::EPT_VIOLATION => c.qualification & UNBLOCKED_NMI != 0,
        _ => false,
    }
}

/// The event whose delivery the exit interrupted, to be injected again.
pub const fn interrupted_event(c: &Captured) -> Option<Event> {
    interruption::decode(c.idt_vectoring, c.idt_vectoring_error, c.instruction_length)
}

fn decode_exception(c: &Captured) -> Option<Exit> {
    let event = interruption::decode(c.interruption, c.interruption_error, c.instruction_length)?;
    Some(match event.kind {
        EventKind::Nmi => Exit::HostNmi,
        EventKind::HardwareException if event.vector == vector::MC => Exit::HostMachineCheck,
        // INT1 sets nothing in DR6: it is delivered as what it is.
        EventKind::HardwareException if event.vector == vector::DB => {
            Exit::Debug { dr6: c.qualification & DEBUG_STATUS }
        }
        _ => Exit::Exception(event),
    })
}

/// Table "Exit Qualification for Control-Register Accesses".
fn decode_cr(qualification: u64) -> Option<CrExit> {
    let cr = (qualification & 0xf) as u8;
    let gpr = Gpr::from_encoding((qualification >> 8 & 0xf) as u8);
    let access = match (qualification >> 4 & 3, cr) {
        (0, 0 | 3 | 4 | 8) => CrAccess::Write { cr, source: gpr },
        (1, 3 | 8) => CrAccess::Read { cr, target: gpr },
        (2, 0) => CrAccess::Clts,
        (3, 0) => CrAccess::Lmsw { value: (qualification >> 16 & 0xffff) as u16 },
        _ => return None,
    };
    Some(CrExit { access: Some(access) })
}

/// Table "Exit Qualification for Task Switches".
const fn decode_task_switch(qualification: u64) -> Exit {
    let source = match qualification >> 30 & 3 {
        0 => TaskSource::Call,
        1 => TaskSource::Iret,
        2 => TaskSource::Jmp,
        _ => TaskSource::Gate,
    };
    Exit::TaskSwitch { selector: Some((qualification & 0xffff) as u16), source }
}

/// Table "Exit Qualification for I/O Instructions", and for strings "Format of the VM-Exit Instruction-Information
/// Field as Used for INS and OUTS".
fn decode_io(c: &Captured) -> Option<IoExit> {
    let q = c.qualification;
    let (port, width, direction) = port_access(q)?;
    let string = if q & IO_STRING != 0 {
        let address_width = match c.instruction_information >> 7 & 7 {
            0 => Width::B2,
            1 => Width::B4,
            2 => Width::B8,
            _ => return None,
        };
        Some(StringIo { rep: q & 1 << 5 != 0, address_width, linear: Some(Gla(c.guest_linear)) })
    } else {
        None
    };
    Some(IoExit { port, width, direction, string })
}

/// Bit 4 of an I/O exit's qualification: INS or OUTS.
pub const IO_STRING: u64 = 1 << 4;

/// Port, width and direction out of an I/O exit's qualification. `None` for a width that there is not.
#[inline]
pub const fn port_access(qualification: u64) -> Option<(u16, Width, Direction)> {
    let width = match qualification & 7 {
        0 => Width::B1,
        1 => Width::B2,
        3 => Width::B4,
        _ => return None,
    };
    let direction = if qualification & 1 << 3 != 0 { Direction::In } else { Direction::Out };
    Some(((qualification >> 16 & 0xffff) as u16, width, direction))
}

/// Table "Exit Qualification for APIC-Access VM Exits from Linear Accesses and Guest-Physical Accesses". It is as if the
/// nested tables had refused the access, with the page where it is after reset, the only place that it is given. The
/// processor does not tell the linear address, nor the offset of a guest-physical access.
fn decode_apic_access(qualification: u64) -> Option<NestedFault> {
    let gpa = Gpa(msr::APIC_BASE_AFTER_RESET + (qualification & 0xfff));
    let linear = NestedFault { gpa, read: false, write: false, fetch: false, table_walk: false, linear: None };
    Some(match qualification >> 12 & 0xf {
        0 => NestedFault { read: true, ..linear },
        1 => NestedFault { write: true, ..linear },
        2 => NestedFault { fetch: true, ..linear },
        // By an event's delivery: it is not told in which direction.
        3 => linear,
        10 | 15 => NestedFault { gpa: Gpa(msr::APIC_BASE_AFTER_RESET), read: true, table_walk: true, ..linear },
        _ => return None,
    })
}

/// Table "Exit Qualification for EPT Violations".
fn decode_ept_violation(c: &Captured) -> NestedFault {
    let q = c.qualification;
    let linear_valid = q & 1 << 7 != 0;
    NestedFault {
        gpa: Gpa(c.guest_physical),
        read: q & 1 != 0,
        write: q & 2 != 0,
        fetch: q & 4 != 0,
        table_walk: linear_valid && q & 1 << 8 == 0,
        linear: linear_valid.then_some(Gla(c.guest_linear)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Kind;
    use proptest::prelude::*;

    fn of(reason: u16, qualification: u64) -> Exit {
        decode(&Captured { reason: u32::from(reason), qualification, ..Captured::default() })
    }

    #[test]
    fn every_io_qualification_of_16_bits() {
        for q in 0..=0xffffu64 {
            let exit = of(reason::IO, q | 0x3f8 << 16);
            let Exit::Io(io) = exit else {
                assert!(!matches!(q & 7, 0 | 1 | 3), "{q:#x}");
                continue;
            };
            assert_eq!(io.port, 0x3f8);
            assert_eq!(io.width.bytes() as u64, (q & 7) + 1);
            assert_eq!(io.direction == Direction::In, q & 8 != 0);
            assert_eq!(io.string.is_some(), q & 16 != 0);
            assert!(io.string.is_none_or(|s| s.rep == (q & 32 != 0)));
        }
    }

    #[test]
    fn string_io_takes_its_address_width_from_the_instruction_information() {
        let mut c = Captured { reason: 30, qualification: 0x1f0_0031 | 1 << 3, ..Captured::default() };
        c.guest_linear = 0x1234;
        for (code, width) in [(0, Width::B2), (1, Width::B4), (2, Width::B8)] {
            c.instruction_information = code << 7;
            let Exit::Io(IoExit { string: Some(s), port, width: w, .. }) = decode(&c) else { panic!() };
            assert_eq!((s.address_width, s.rep, s.linear), (width, true, Some(Gla(0x1234))));
            assert_eq!((port, w), (0x1f0, Width::B2));
        }
        c.instruction_information = 3 << 7;
        assert!(matches!(decode(&c), Exit::Unknown { .. }));
    }

    #[test]
    fn every_control_register_qualification_of_16_bits() {
        for q in 0..=0xffffu64 {
            let kind = q >> 4 & 3;
            let cr = q & 15;
            match of(reason::CONTROL_REGISTER, q | 0xabcd << 16) {
                Exit::Cr(CrExit { access: Some(CrAccess::Write { cr: n, source }) }) => {
                    assert!(kind == 0 && u64::from(n) == cr && source as u64 == q >> 8 & 15);
                }
                Exit::Cr(CrExit { access: Some(CrAccess::Read { cr: n, target }) }) => {
                    assert!(kind == 1 && u64::from(n) == cr && target as u64 == q >> 8 & 15);
                }
                Exit::Cr(CrExit { access: Some(CrAccess::Clts) }) => assert!(kind == 2 && cr == 0),
                Exit::Cr(CrExit { access: Some(CrAccess::Lmsw { value }) }) => {
                    assert!(kind == 3 && cr == 0 && value == 0xabcd);
                }
                Exit::Unknown { .. } => assert!(match kind {
                    0 => !matches!(cr, 0 | 3 | 4 | 8),
                    1 => !matches!(cr, 3 | 8),
                    _ => cr != 0,
                }),
                other => panic!("{q:#x}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_task_switch_tells_its_source() {
        use TaskSource::{Call, Gate, Iret, Jmp};
        for (n, source) in [Call, Iret, Jmp, Gate].into_iter().enumerate() {
            let exit = of(reason::TASK_SWITCH, (n as u64) << 30 | 0x28);
            assert_eq!(exit, Exit::TaskSwitch { selector: Some(0x28), source });
        }
    }

    #[test]
    fn external_interrupt_names_its_vector() {
        let c = Captured { reason: 1, interruption: 0x8000_0024, ..Captured::default() };
        assert_eq!(decode(&c), Exit::HostInterrupt { vector: Some(0x24) });
        let c = Captured { reason: 1, interruption: 0x24, ..Captured::default() };
        assert!(matches!(decode(&c), Exit::Unknown { .. }));
    }

    #[test]
    fn nmi_and_exception_are_told_apart() {
        let c = Captured { reason: 0, interruption: 0x8000_0202, ..Captured::default() };
        assert_eq!(decode(&c), Exit::HostNmi);
        let c = Captured { reason: 0, interruption: 0x8000_0b0e, interruption_error: 7, ..Captured::default() };
        assert_eq!(decode(&c), Exit::Exception(Event::exception(14, Some(7))));
    }

    #[test]
    fn an_iret_that_faults_has_unblocked_nmis() {
        let exit = |reason: u16, qualification, interruption, idt_vectoring| {
            let reason = u32::from(reason);
            unblocked_nmi(&Captured { reason, qualification, interruption, idt_vectoring, ..Captured::default() })
        };
        assert!(exit(reason::EPT_VIOLATION, 0x1081, 0, 0));
        assert!(!exit(reason::EPT_VIOLATION, 0x81, 0, 0));
        assert!(!exit(reason::EPT_VIOLATION, 0x1081, 0, 0x8000_0202));
        assert!(exit(reason::EXCEPTION_OR_NMI, 0, 0x8000_1b11, 0));
        assert!(!exit(reason::EXCEPTION_OR_NMI, 0, 0x8000_0b11, 0));
        assert!(!exit(reason::EXCEPTION_OR_NMI, 0, 0x8000_1b08, 0));
        assert!(!exit(reason::IO, 0x1000, 0x8000_1b11, 0));
    }

    #[test]
    fn a_machine_check_is_the_machines() {
        let c = Captured { interruption: 0x8000_0312, ..Captured::default() };
        assert_eq!(decode(&c), Exit::HostMachineCheck);
    }

    #[test]
    fn a_debug_exception_tells_what_it_would_set() {
        let mut c = Captured { interruption: 0x8000_0301, qualification: 0x001f_ffff, ..Captured::default() };
        assert_eq!(decode(&c), Exit::Debug { dr6: 0x600f });
        c.interruption = 0x8000_0501;
        c.instruction_length = 1;
        let kind = EventKind::PrivilegedSoftwareException;
        assert_eq!(decode(&c), Exit::Exception(Event { kind, vector: 1, error: None, length: 1 }));
    }

    #[test]
    fn ept_violation_of_a_table_walk_is_no_final_access() {
        let mut c = Captured { reason: 48, qualification: 0x82, guest_physical: 0xfee0_0300, ..Captured::default() };
        c.guest_linear = 0x7000;
        let Exit::NestedFault(f) = decode(&c) else { panic!() };
        assert!(f.table_walk && f.write && !f.read && !f.fetch);
        assert_eq!((f.gpa, f.linear), (Gpa(0xfee0_0300), Some(Gla(0x7000))));
        c.qualification = 0x181;
        let Exit::NestedFault(f) = decode(&c) else { panic!() };
        assert!(!f.table_walk && f.read);
        c.qualification = 1;
        let Exit::NestedFault(f) = decode(&c) else { panic!() };
        assert_eq!((f.table_walk, f.linear), (false, None));
    }

    #[test]
    fn an_apic_access_is_one_that_the_nested_tables_refused() {
        for q in 0..=0xffffu64 {
            let exit = of(reason::APIC_ACCESS, q);
            let Exit::NestedFault(fault) = exit else {
                assert!(matches!(exit, Exit::Unknown { .. }) && !matches!(q >> 12, 0..=3 | 10 | 15), "{q:#x}");
                continue;
            };
            let walks = q >> 12 >= 10;
            assert_eq!(fault.gpa.0, 0xfee0_0000 | if walks { 0 } else { q & 0xfff }, "{q:#x}");
            assert_eq!((fault.table_walk, fault.linear, exit.kind()), (walks, None, Kind::Nested));
            let told = [fault.read, fault.write, fault.fetch];
            match q >> 12 {
                0 => assert_eq!(told, [true, false, false]),
                1 => assert_eq!(told, [false, true, false]),
                2 => assert_eq!(told, [false, false, true]),
                _ => assert!(!fault.fetch),
            }
        }
        // The event whose delivery reached there is told.
        assert!(needs(reason::APIC_ACCESS).contains(Needs::IDT_VECTORING));
    }

    #[test]
    fn what_the_processor_left_to_do_for_an_apic_says_which_register_or_vector() {
        for q in 0..=0xfffu64 {
            assert_eq!(of(reason::APIC_WRITE, q), Exit::ApicWrite { offset: u16::try_from(q).unwrap() });
        }
        for vector in 0..=255u8 {
            assert_eq!(of(reason::VIRTUALIZED_EOI, vector.into()), Exit::ApicEoi { vector });
        }
        assert_eq!(needs(reason::APIC_WRITE), Needs::QUALIFICATION);
        assert_eq!(needs(reason::VIRTUALIZED_EOI), Needs::QUALIFICATION);
    }

    #[test]
    fn instructions_that_a_guest_has_not_got_are_undefined() {
        for r in (19..=27).chain([11, 36, 39, 50, 53, 57, 59, 60, 61, 63, 64]) {
            assert_eq!(of(r, 0), Exit::Undefined, "reason {r}");
        }
    }

    #[test]
    fn fast_exits_read_nothing_but_the_reason() {
        for r in [reason::CPUID, reason::HLT, reason::VMCALL, reason::RDMSR, reason::WRMSR, reason::PREEMPTION_TIMER] {
            assert_eq!(needs(r), Needs::empty());
        }
        assert_eq!(needs(reason::IO), Needs::QUALIFICATION | Needs::STRING_IO);
    }

    proptest! {
        #[test]
        fn decoding_is_total(reason: u32, qualification: u64, interruption: u32, info: u32) {
            let c = Captured { reason, qualification, interruption, instruction_information: info, ..Captured::default() };
            let _ = decode(&c);
            let _ = needs((reason & 0xffff) as u16);
        }
    }
}
