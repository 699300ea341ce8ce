//! Exit codes of SVM and their pure decoding into [`Exit`] (APM vol. 2, appendix "SVM Intercept Exit Codes", and the
//! sections on each intercept in "SVM Intercepts").

use super::features::Features;
use crate::addr::Gpa;
use crate::event::{Event, vector};
use crate::exit::{CrAccess, CrExit, Direction, Exit, IoExit, NestedFault, StringIo, TaskSource, Width};
use crate::regs::Gpr;

/// Exit codes.
#[allow(missing_docs, reason = "each constant is the exit code of its name")]
pub mod code {
    pub const CR0_READ: u64 = 0x000;
    pub const CR15_READ: u64 = 0x00f;
    pub const CR0_WRITE: u64 = 0x010;
    pub const CR15_WRITE: u64 = 0x01f;
    pub const EXCEPTION_0: u64 = 0x040;
    pub const DEBUG: u64 = 0x041;
    pub const MACHINE_CHECK: u64 = 0x052;
    pub const EXCEPTION_31: u64 = 0x05f;
    pub const INTR: u64 = 0x060;
    pub const NMI: u64 = 0x061;
    pub const VINTR: u64 = 0x064;
    pub const CR0_SELECTIVE_WRITE: u64 = 0x065;
    pub const RDPMC: u64 = 0x06f;
    pub const CPUID: u64 = 0x072;
    pub const RSM: u64 = 0x073;
    pub const IRET: u64 = 0x074;
    pub const INVD: u64 = 0x076;
    pub const PAUSE: u64 = 0x077;
    pub const HLT: u64 = 0x078;
    pub const INVLPGA: u64 = 0x07a;
    pub const IO: u64 = 0x07b;
    pub const MSR: u64 = 0x07c;
    pub const TASK_SWITCH: u64 = 0x07d;
    pub const SHUTDOWN: u64 = 0x07f;
    pub const VMRUN: u64 = 0x080;
    pub const VMMCALL: u64 = 0x081;
    pub const VMLOAD: u64 = 0x082;
    pub const SKINIT: u64 = 0x086;
    pub const ICEBP: u64 = 0x088;
    pub const WBINVD: u64 = 0x089;
    pub const MONITOR: u64 = 0x08a;
    pub const MWAIT_ARMED: u64 = 0x08c;
    pub const XSETBV: u64 = 0x08d;
    pub const RDPRU: u64 = 0x08e;
    pub const INVLPGB: u64 = 0x0a0;
    pub const INVLPGB_ILLEGAL: u64 = 0x0a1;
    pub const INVPCID: u64 = 0x0a2;
    pub const MCOMMIT: u64 = 0x0a3;
    pub const TLBSYNC: u64 = 0x0a4;
    pub const NPF: u64 = 0x400;
    pub const INVALID: u64 = u64::MAX;
}

/// What a debug exception reports in DR6: B0 to B3, BD, BS.
const DEBUG_STATUS: u64 = 0x600f;

/// What was read from the VMCB after an exit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Captured {
    /// EXITCODE.
    pub code: u64,
    /// EXITINFO1.
    pub info1: u64,
    /// EXITINFO2.
    pub info2: u64,
    /// EXITINTINFO.
    pub interrupted: u64,
    /// RIP of the instruction that exited.
    pub rip: u64,
    /// nRIP.
    pub next_rip: u64,
    /// DR6 of the guest.
    pub dr6: u64,
    /// What the processor can do.
    pub features: Features,
}

impl Captured {
    /// VMEXIT_INVALID: VMRUN refused the VMCB. Some processors write the low half only. On QEMU's emulation (7.2) also the
    /// exit of a guest that moved to CR3 what has reserved bits, in place of #GP.
    pub const fn is_invalid(&self) -> bool {
        self.code & 0xffff_ffff == code::INVALID & 0xffff_ffff
    }

    /// Where the instruction after the one that exited is, if the processor tells: for port accesses always, for
    /// others if it saves the next RIP.
    pub const fn after_instruction(&self) -> Option<u64> {
        if self.code == code::IO {
            return Some(self.info2);
        }
        // Reported for instructions that exit before they are executed (APM vol. 2, "State Saved on Exit").
        let told = match self.code {
            code::EXCEPTION_0..=code::VINTR | code::SHUTDOWN | code::TASK_SWITCH => false,
            _ => self.code < code::NPF,
        };
        let length = self.next_rip.wrapping_sub(self.rip);
        if told && self.features.contains(Features::NEXT_RIP) && 0 < length && length <= 15 {
            Some(self.next_rip)
        } else {
            None
        }
    }
}

/// Decodes an exit. Pure; total over all inputs: what makes no sense becomes [`Exit::Unknown`].
pub fn decode(c: &Captured) -> Exit {
    let unknown = Exit::Unknown { reason: c.code, qualification: c.info1 };
    match c.code {
        code::CR0_READ..=code::CR15_READ => decode_cr(c, (c.code & 0xf) as u8, false).map_or(unknown, Exit::Cr),
        code::CR0_WRITE..=code::CR15_WRITE => decode_cr(c, (c.code & 0xf) as u8, true).map_or(unknown, Exit::Cr),
        code::CR0_SELECTIVE_WRITE => decode_cr(c, 0, true).map_or(unknown, Exit::Cr),
        // The intercept comes after DR6 is written and before DR7.GD is cleared.
        code::DEBUG => Exit::Debug { dr6: c.dr6 & DEBUG_STATUS },
        code::ICEBP => Exit::Icebp,
        code::MACHINE_CHECK => Exit::HostMachineCheck,
        code::EXCEPTION_0..=code::EXCEPTION_31 => Exit::Exception(exception(c)),
        // Not acknowledged: it comes through the IDT as soon as the host takes interrupts, and so does an NMI.
        code::INTR | code::NMI => Exit::HostInterrupt { vector: None },
        code::VINTR => Exit::InterruptWindow,
        code::RDPMC => Exit::Forbidden,
        code::CPUID => Exit::Cpuid,
        code::INVD | code::WBINVD => Exit::CacheFlush,
        code::PAUSE => Exit::Pause,
        code::HLT => Exit::Hlt,
        code::IO => decode_io(c).map_or(unknown, Exit::Io),
        code::MSR if c.info1 == MSR_READ => Exit::Rdmsr,
        code::MSR if c.info1 == MSR_WRITE => Exit::Wrmsr,
        code::TASK_SWITCH => decode_task_switch(c),
        code::SHUTDOWN => Exit::TripleFault,
        code::VMMCALL => Exit::Hypercall,
        code::RSM
        | code::INVLPGA
        | code::VMRUN
        | code::VMLOAD..=code::SKINIT
        | code::MONITOR..=code::MWAIT_ARMED
        | code::RDPRU
        | code::INVLPGB
        | code::INVLPGB_ILLEGAL
        | code::INVPCID
        | code::MCOMMIT
        | code::TLBSYNC => Exit::Undefined,
        code::XSETBV => Exit::Xsetbv,
        code::NPF => decode_nested_fault(c),
        // Where no entry was refused: see `Captured::is_invalid`.
        _ if c.is_invalid() => Exit::Cr(CrExit { access: None }),
        _ => unknown,
    }
}

/// The event whose delivery the exit interrupted, to be injected again.
pub const fn interrupted_event(c: &Captured) -> Option<Event> {
    super::event::decode(c.interrupted)
}

fn exception(c: &Captured) -> Event {
    let vector = (c.code & 0x1f) as u8;
    let has_error =
        matches!(vector, vector::DF | vector::TS | vector::NP | vector::SS | vector::GP | vector::PF | vector::AC);
    Event::exception(vector, has_error.then_some((c.info1 & 0xffff_ffff) as u32))
}

/// "MOV CRx/DRx Intercepts" under "Decode Assists": without them, and for SMSW, LMSW and CLTS, nothing tells the operands.
fn decode_cr(c: &Captured, cr: u8, write: bool) -> Option<CrExit> {
    const IS_MOV: u64 = 1 << 63;
    if !matches!(cr, 0 | 3 | 4 | 8) {
        return None;
    }
    let gpr = Gpr::from_encoding((c.info1 & 0xf) as u8);
    let described = c.features.contains(Features::DECODE_ASSISTS) && c.info1 & IS_MOV != 0;
    let access = match (described, write) {
        (true, true) => Some(CrAccess::Write { cr, source: gpr }),
        (true, false) => Some(CrAccess::Read { cr, target: gpr }),
        (false, _) => None,
    };
    Some(CrExit { access })
}

/// "Task Switch Intercept". A gate in the IDT is told by the event whose delivery it cut short.
const fn decode_task_switch(c: &Captured) -> Exit {
    const IRET: u64 = 1 << 36;
    const JMP: u64 = 1 << 38;
    let source = if c.info2 & IRET != 0 {
        TaskSource::Iret
    } else if c.info2 & JMP != 0 {
        TaskSource::Jmp
    } else if c.interrupted & super::event::VALID != 0 {
        TaskSource::Gate
    } else {
        TaskSource::Call
    };
    Exit::TaskSwitch { selector: Some((c.info1 & 0xffff) as u16), source }
}

/// "IOIO Intercept Information".
fn decode_io(c: &Captured) -> Option<IoExit> {
    let (port, width, direction) = port_access(c.info1)?;
    let string = if c.info1 & IO_STRING != 0 {
        let address_width = match c.info1 >> 7 & 7 {
            1 => Width::B2,
            2 => Width::B4,
            4 => Width::B8,
            // QEMU's emulation does not say. Nor need it: string instructions are finished by the emulator, which decodes
            // them itself.
            0 => Width::B4,
            _ => return None,
        };
        Some(StringIo { rep: c.info1 & 1 << 3 != 0, address_width, linear: None })
    } else {
        None
    };
    Some(IoExit { port, width, direction, string })
}

/// Bit 2 of a port access' information: INS or OUTS.
pub const IO_STRING: u64 = 1 << 2;

/// Port, width and direction out of a port access' information. `None` for a width that there is not.
#[inline]
pub const fn port_access(information: u64) -> Option<(u16, Width, Direction)> {
    let width = match information >> 4 & 7 {
        1 => Width::B1,
        2 => Width::B2,
        4 => Width::B4,
        _ => return None,
    };
    let direction = if information & 1 != 0 { Direction::In } else { Direction::Out };
    Some(((information >> 16 & 0xffff) as u16, width, direction))
}

/// EXITINFO1 of an MSR access: RDMSR.
pub const MSR_READ: u64 = 0;
/// EXITINFO1 of an MSR access: WRMSR.
pub const MSR_WRITE: u64 = 1;
/// EXITINFO1 of a nested page fault: a reserved bit in a nested table.
pub const NESTED_RESERVED: u64 = 1 << 3;

/// "Nested versus Guest Page Faults, Fault Ordering".
fn decode_nested_fault(c: &Captured) -> Exit {
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 4;
    const TABLE_WALK: u64 = 1 << 33;
    let gpa = Gpa(c.info2);
    if c.info1 & NESTED_RESERVED != 0 {
        return Exit::NestedMisconfiguration { gpa };
    }
    let (write, fetch) = (c.info1 & WRITE != 0, c.info1 & FETCH != 0);
    let table_walk = c.info1 & TABLE_WALK != 0;
    Exit::NestedFault(NestedFault { gpa, read: !write && !fetch, write, fetch, table_walk, linear: None })
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn of(code: u64, info1: u64) -> Exit {
        decode(&Captured { code, info1, ..Captured::default() })
    }

    #[test]
    fn every_exit_code() {
        let undescribed = Exit::Cr(CrExit { access: None });
        let mut expected = BTreeMap::from([
            (0x00, undescribed),
            (0x03, undescribed),
            (0x04, undescribed),
            (0x08, undescribed),
            (0x10, undescribed),
            (0x13, undescribed),
            (0x14, undescribed),
            (0x18, undescribed),
            (0x60, Exit::HostInterrupt { vector: None }),
            (0x61, Exit::HostInterrupt { vector: None }),
            (0x64, Exit::InterruptWindow),
            (0x65, undescribed),
            (0x6f, Exit::Forbidden),
            (0x72, Exit::Cpuid),
            (0x76, Exit::CacheFlush),
            (0x77, Exit::Pause),
            (0x78, Exit::Hlt),
            (0x7c, Exit::Rdmsr),
            (0x7d, Exit::TaskSwitch { selector: Some(0), source: TaskSource::Call }),
            (0x7f, Exit::TripleFault),
            (0x81, Exit::Hypercall),
            (0x88, Exit::Icebp),
            (0x89, Exit::CacheFlush),
            (0x8d, Exit::Xsetbv),
            (0xffff_ffff, undescribed),
            (u64::MAX, undescribed),
        ]);
        // RSM, INVLPGA, VMRUN, VMLOAD to SKINIT, MONITOR, MWAIT twice, RDPRU, INVLPGB twice, INVPCID, MCOMMIT, TLBSYNC.
        for code in (0x82..=0x86).chain([0x73, 0x7a, 0x80, 0x8a, 0x8b, 0x8c, 0x8e, 0xa0, 0xa1, 0xa2, 0xa3, 0xa4]) {
            expected.insert(code, Exit::Undefined);
        }
        for vector in 0..32u8 {
            let error = matches!(vector, 8 | 10..=14 | 17).then_some(0);
            expected.insert(0x40 + u64::from(vector), Exit::Exception(Event::exception(vector, error)));
        }
        expected.insert(0x41, Exit::Debug { dr6: 0 });
        // The machine's.
        expected.insert(0x52, Exit::HostMachineCheck);
        let fault =
            NestedFault { gpa: Gpa(0), read: true, write: false, fetch: false, table_walk: false, linear: None };
        expected.insert(0x400, Exit::NestedFault(fault));
        for code in (0..=0x410).chain([u64::MAX, u64::MAX - 1, 0xffff_ffff]) {
            let unknown = Exit::Unknown { reason: code, qualification: 0 };
            assert_eq!(of(code, 0), expected.get(&code).copied().unwrap_or(unknown), "exit code {code:#x}");
        }
    }

    #[test]
    fn every_io_information_of_16_bits() {
        for info in 0..=0xffffu64 {
            let size = info >> 4 & 7;
            let address = info >> 7 & 7;
            let string = info & 4 != 0;
            let sound = matches!(size, 1 | 2 | 4) && (!string || matches!(address, 0 | 1 | 2 | 4));
            let Exit::Io(io) = of(code::IO, info | 0x3f8 << 16) else {
                assert!(!sound, "{info:#x}");
                continue;
            };
            assert!(sound, "{info:#x}");
            assert_eq!((io.port, io.width.bytes() as u64), (0x3f8, size));
            assert_eq!(io.direction == Direction::In, info & 1 != 0);
            assert_eq!(io.string.is_some(), string);
            if let Some(s) = io.string {
                let told = if address == 0 { 4 } else { 2 * address };
                assert_eq!((s.rep, s.address_width.bytes() as u64, s.linear), (info & 8 != 0, told, None));
            }
        }
    }

    #[test]
    fn control_registers_are_described_by_decode_assists_only() {
        let of = |code, info1, features| match decode(&Captured { code, info1, features, ..Captured::default() }) {
            Exit::Cr(exit) => exit.access,
            other => panic!("{code:#x}: {other:?}"),
        };
        for gpr in 0..16u8 {
            let info = 1 << 63 | u64::from(gpr);
            let register = Gpr::from_encoding(gpr);
            for cr in [0, 3, 4, 8u8] {
                let write = of(0x10 + u64::from(cr), info, Features::DECODE_ASSISTS);
                assert_eq!(write, Some(CrAccess::Write { cr, source: register }));
            }
            assert_eq!(of(0x65, info, Features::DECODE_ASSISTS), Some(CrAccess::Write { cr: 0, source: register }));
            assert_eq!(of(8, info, Features::DECODE_ASSISTS), Some(CrAccess::Read { cr: 8, target: register }));
            assert_eq!(of(0x65, info, Features::empty()), None);
        }
        // LMSW and CLTS have no operand that is described.
        assert_eq!(of(0x65, 5, Features::DECODE_ASSISTS), None);
    }

    #[test]
    fn nested_faults_tell_what_was_tried() {
        let fault = |info1| match decode(&Captured { code: 0x400, info1, info2: 0xfee0_0300, ..Captured::default() }) {
            Exit::NestedFault(fault) => fault,
            other => panic!("{info1:#x}: {other:?}"),
        };
        for (bits, read, write, fetch) in [(4, true, false, false), (6, false, true, false), (0x14, false, false, true)]
        {
            for (stage, table_walk) in [(1 << 32, false), (1 << 33, true)] {
                for present in [0, 1] {
                    let f = fault(bits | stage | present);
                    assert_eq!((f.read, f.write, f.fetch, f.table_walk), (read, write, fetch, table_walk));
                    assert_eq!((f.gpa, f.linear), (Gpa(0xfee0_0300), None));
                }
            }
        }
        let c = Captured { code: 0x400, info1: 0x1_0000_000d, info2: 0x1000, ..Captured::default() };
        assert_eq!(decode(&c), Exit::NestedMisconfiguration { gpa: Gpa(0x1000) });
    }

    #[test]
    fn an_error_code_comes_with_the_exceptions_that_have_one() {
        assert_eq!(of(0x4e, 0x7), Exit::Exception(Event::exception(14, Some(7))));
        assert_eq!(of(0x40, 0x7), Exit::Exception(Event::exception(0, None)));
        let c = Captured { code: 0x41, dr6: 0xffff_4ff1, ..Captured::default() };
        assert_eq!(decode(&c), Exit::Debug { dr6: 0x4001 });
    }

    #[test]
    fn the_next_instruction_is_told_where_the_processor_can() {
        let c = Captured { rip: 0x1000, next_rip: 0x1002, features: Features::NEXT_RIP, ..Captured::default() };
        let at = |code, c: Captured| Captured { code, ..c }.after_instruction();
        for code in [code::CPUID, code::HLT, code::MSR, code::VMMCALL, code::XSETBV, code::CR0_WRITE + 4, 0x65] {
            assert_eq!(at(code, c), Some(0x1002), "{code:#x}");
            assert_eq!(at(code, Captured { features: Features::empty(), ..c }), None);
            // An emulator that claims the feature and writes nothing.
            assert_eq!(at(code, Captured { next_rip: 0, ..c }), None);
        }
        for code in [code::INTR, code::VINTR, code::NPF, code::SHUTDOWN, code::EXCEPTION_0 + 17] {
            assert_eq!(at(code, c), None, "{code:#x}");
        }
        let port = Captured { code: code::IO, info2: 0x1001, ..Captured::default() };
        assert_eq!(port.after_instruction(), Some(0x1001));
    }

    #[test]
    fn both_ways_to_write_the_invalid_code_are_known() {
        for code in [u64::MAX, 0xffff_ffff] {
            assert!(Captured { code, ..Captured::default() }.is_invalid());
        }
        assert!(!Captured { code: 0x400, ..Captured::default() }.is_invalid());
    }

    proptest! {
        #[test]
        fn decoding_is_total(code in prop_oneof![0u64..0x500, any::<u64>()], info1: u64, info2: u64, features: u32) {
            let features = Features::from_bits_truncate(features);
            let c = Captured { code, info1, info2, interrupted: info1, rip: info2, next_rip: info1, dr6: info2, features };
            let _ = decode(&c);
            let _ = interrupted_event(&c);
            let _ = c.after_instruction();
        }
    }
}
