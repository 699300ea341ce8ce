//! The MSRs that are emulated, as one policy with [`crate::cpuid`]: what is shown there works here, and what is not
//! here gives #GP and is counted.
//!
//! The guest reaches [`PASSED`] without an exit; [`WATCHED`] it reads without one, and IA32_TSC_AUX where the processor has
//! it. IA32_PAT, IA32_EFER and the
//! TSC are reached without one or not, as the vendor has it; `exit` answers where there is one. `docs/guide/msrs.md` lists
//! all of them for users. SDM vol. 4, "Architectural MSRs".

mod refused;
mod speculation;

use lamina_arch::addr::Gla;
use lamina_arch::cr::{Cr0, Efer};
use lamina_arch::event::GuestFault;
use lamina_arch::msr;
use lamina_arch::regs::SysReg;

pub use refused::Refused;
pub use speculation::{Effect, Speculation};

/// MSRs that the guest reads and writes itself: both vendors have them in the guest's state, or move them with it.
pub const PASSED: [u32; 6] = [
    msr::IA32_SYSENTER_CS,
    msr::IA32_SYSENTER_ESP,
    msr::IA32_SYSENTER_EIP,
    msr::IA32_FS_BASE,
    msr::IA32_GS_BASE,
    msr::IA32_KERNEL_GS_BASE,
];

/// MSRs that the guest reads itself and whose writes exit: kernels write them once, and where a write is known, nothing
/// need be read from the processor when another vCPU comes in. IA32_TSC_AUX is one more, where the processor has it.
pub const WATCHED: [u32; 4] = [msr::IA32_STAR, msr::IA32_LSTAR, msr::IA32_CSTAR, msr::IA32_FMASK];

/// Where what is written to a [`WATCHED`] MSR goes, or to IA32_TSC_AUX; `None` where `index` is none of these. Addresses
/// have the processor's full width, `linear_bits`, whatever the paging.
///
/// # Errors
/// #GP(0) for an address that is not canonical, or a reserved bit (SDM vol. 3, "Fast System Calls in 64-Bit Mode"; vol. 2,
/// "WRMSR"): bits 63:32 of IA32_FMASK and IA32_TSC_AUX.
pub fn watched(index: u32, value: u64, linear_bits: u32) -> Option<Result<SysReg, GuestFault>> {
    let (register, good) = match index {
        msr::IA32_STAR => (SysReg::Star, true),
        msr::IA32_LSTAR => (SysReg::Lstar, Gla(value).is_canonical(linear_bits)),
        msr::IA32_CSTAR => (SysReg::Cstar, Gla(value).is_canonical(linear_bits)),
        msr::IA32_FMASK => (SysReg::Fmask, value >> 32 == 0),
        msr::IA32_TSC_AUX => (SysReg::TscAux, value >> 32 == 0),
        _ => return None,
    };
    Some(if good { Ok(register) } else { Err(GuestFault::GP0) })
}

/// Variable-range MTRR pairs.
const VARIABLE_RANGES: usize = 8;
/// Fixed-range MTRRs.
const FIXED_RANGES: usize = 11;
/// IA32_MTRRCAP: variable ranges, fixed ranges (bit 8), write-combining (bit 10).
const MTRRCAP: u64 = VARIABLE_RANGES as u64 | 1 << 8 | 1 << 10;
/// IA32_MISC_ENABLE: fast strings; no branch trace store, no precise event sampling.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;
/// What software may change of it. Fast strings, thermal control, SpeedStep, MONITOR, xTPR messages: kept, and without
/// effect in a VM. The two below have one.
const MISC_ENABLE_WRITABLE: u64 = 1 | 1 << 3 | 1 << 16 | 1 << 18 | MISC_LIMIT_CPUID | 1 << 23 | MISC_XD_DISABLE;
/// IA32_MISC_ENABLE: CPUID tells of the first leaves only.
pub const MISC_LIMIT_CPUID: u64 = 1 << 22;
/// IA32_MISC_ENABLE: there is no execute-disable bit.
pub const MISC_XD_DISABLE: u64 = 1 << 34;
/// HWCR: the TSC counts at the rate of the highest performance state, always.
const HWCR: u64 = 1 << 24;
/// Memory types that exist: UC, WC, WT, WP, WB.
const fn is_memory_type(value: u64) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// The emulated MSRs of one virtual processor that hold a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Msrs {
    variable: [u64; 2 * VARIABLE_RANGES],
    fixed: [u64; FIXED_RANGES],
    default_type: u64,
    misc_enable: u64,
    /// IA32_TSC_ADJUST: what the guest has added to its TSC. Unit: ticks, two's complement.
    pub tsc_adjust: u64,
    /// What the guest controls of speculation; its writes go by [`Speculation::write`].
    pub speculation: Speculation,
    physical_mask: u64,
}

/// Which part of the MTRRs an MSR is.
enum Mtrr {
    Variable(usize),
    Fixed(usize),
    Default,
}

const fn mtrr(index: u32) -> Option<Mtrr> {
    Some(match index {
        msr::IA32_MTRR_PHYSBASE0..=0x20f => Mtrr::Variable((index - msr::IA32_MTRR_PHYSBASE0) as usize),
        msr::IA32_MTRR_FIX64K_00000 => Mtrr::Fixed(0),
        msr::IA32_MTRR_FIX16K_80000 => Mtrr::Fixed(1),
        msr::IA32_MTRR_FIX16K_A0000 => Mtrr::Fixed(2),
        msr::IA32_MTRR_FIX4K_C0000..=msr::IA32_MTRR_FIX4K_F8000 => {
            Mtrr::Fixed(3 + (index - msr::IA32_MTRR_FIX4K_C0000) as usize)
        }
        msr::IA32_MTRR_DEF_TYPE => Mtrr::Default,
        _ => return None,
    })
}

impl Msrs {
    /// As firmware leaves them on a processor of `physical_bits` address bits: memory write-back, the legacy video
    /// window and the hole below 4 GiB uncached, the ROM area write-protected.
    pub fn new(physical_bits: u32, speculation: Speculation) -> Msrs {
        const WRITE_BACK: u64 = 0x0606_0606_0606_0606;
        const WRITE_PROTECT: u64 = 0x0505_0505_0505_0505;
        let physical_mask = (1u64 << physical_bits.clamp(36, 52)) - 1;
        let mut variable = [0; 2 * VARIABLE_RANGES];
        variable[0] = crate::layout::PCI_HOLE.0;
        variable[1] = physical_mask & !(crate::layout::ABOVE_4G.0 - crate::layout::PCI_HOLE.0 - 1) | 1 << 11;
        let mut fixed = [WRITE_PROTECT; FIXED_RANGES];
        fixed[0] = WRITE_BACK;
        fixed[1] = WRITE_BACK;
        fixed[2] = 0;
        Msrs {
            variable,
            fixed,
            default_type: 0xc06,
            misc_enable: MISC_ENABLE,
            tsc_adjust: 0,
            speculation,
            physical_mask,
        }
    }

    /// RDMSR.
    ///
    /// # Errors
    /// #GP(0) where the MSR is not emulated.
    pub fn read(&self, index: u32) -> Result<u64, GuestFault> {
        self.get(index).ok_or(GuestFault::GP0)
    }

    /// The value of an MSR; `None` where it is not emulated.
    #[inline]
    pub fn get(&self, index: u32) -> Option<u64> {
        Some(match index {
            msr::IA32_TSC_ADJUST => self.tsc_adjust,
            msr::IA32_MTRRCAP => MTRRCAP,
            msr::IA32_MISC_ENABLE => self.misc_enable,
            // No banks, and nothing to report: MCA is shown because every processor with long mode has it.
            msr::IA32_MCG_CAP | msr::IA32_MCG_STATUS => 0,
            // AMD's processors with long mode have these three, and kernels read them without asking.
            msr::SYSCFG | msr::NB_CFG => 0,
            msr::HWCR => HWCR,
            msr::IA32_SPEC_CTRL | msr::IA32_ARCH_CAPABILITIES => self.speculation.get(index)?,
            msr::IA32_PLATFORM_ID | msr::IA32_BIOS_SIGN_ID | msr::IA32_DEBUGCTL => 0,
            _ => match mtrr(index)? {
                Mtrr::Variable(i) => self.variable[i],
                Mtrr::Fixed(i) => self.fixed[i],
                Mtrr::Default => self.default_type,
            },
        })
    }

    /// WRMSR.
    ///
    /// # Errors
    /// #GP(0) where the MSR is not emulated or the value has a bit that is reserved.
    pub fn write(&mut self, index: u32, value: u64) -> Result<(), GuestFault> {
        let allowed = match index {
            msr::IA32_TSC_ADJUST => {
                self.tsc_adjust = value;
                true
            }
            msr::IA32_MISC_ENABLE => {
                let good = (value ^ MISC_ENABLE) & !MISC_ENABLE_WRITABLE == 0;
                if good {
                    self.misc_enable = value;
                }
                good
            }
            msr::HWCR => value == HWCR,
            // There is nothing to configure: what is written does not stay.
            msr::NB_CFG => true,
            msr::SYSCFG | msr::IA32_MCG_STATUS | msr::IA32_DEBUGCTL | msr::IA32_BIOS_SIGN_ID => value == 0,
            _ => match mtrr(index).ok_or(GuestFault::GP0)? {
                Mtrr::Variable(i) => {
                    let reserved = if i % 2 == 0 { 0xf00 } else { 0x7ff } | !self.physical_mask;
                    let good = value & reserved == 0 && (i % 2 == 1 || is_memory_type(value & 0xff));
                    if good {
                        self.variable[i] = value;
                    }
                    good
                }
                Mtrr::Fixed(i) => {
                    let good = value.to_le_bytes().iter().all(|&t| is_memory_type(u64::from(t)));
                    if good {
                        self.fixed[i] = value;
                    }
                    good
                }
                Mtrr::Default => {
                    let good = value & !0xcff == 0 && is_memory_type(value & 0xff);
                    if good {
                        self.default_type = value;
                    }
                    good
                }
            },
        };
        if allowed { Ok(()) } else { Err(GuestFault::GP0) }
    }
}

/// The value of IA32_EFER after WRMSR of `value` over `old`; LMA is the processor's own.
///
/// # Errors
/// #GP(0) for a bit that is not there, or LME changed while paging is on (SDM vol. 3, "IA-32e Mode Operation").
pub fn efer_written(old: Efer, value: u64, cr0: Cr0) -> Result<Efer, GuestFault> {
    let new = Efer::from_bits_retain(value);
    let known = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
    if !known.contains(new) {
        return Err(GuestFault::GP0);
    }
    if cr0.contains(Cr0::PG) && (old ^ new).contains(Efer::LME) {
        return Err(GuestFault::GP0);
    }
    Ok((new - Efer::LMA) | (old & Efer::LMA))
}

/// Whether IA32_PAT may be set to `value`: each byte is a memory type (SDM vol. 3, "IA32_PAT MSR").
pub const fn is_valid_pat(value: u64) -> bool {
    let mut rest = value;
    while rest != 0 {
        if !matches!(rest & 0xff, 0 | 1 | 4..=7) {
            return false;
        }
        rest >>= 8;
    }
    true
}

/// Whether XSETBV may set XCR0 to `value`, of the components in `allowed` (SDM vol. 1, "Enabling the XSAVE Feature
/// Set").
pub const fn is_valid_xcr0(value: u64, allowed: u64) -> bool {
    const AVX512: u64 = 0b1110_0000;
    let avx_without_sse = value & 0b100 != 0 && value & 0b10 == 0;
    let some = value & AVX512 != 0;
    let avx512_whole = value & AVX512 == AVX512 && value & 0b110 == 0b110;
    value & 1 != 0 && value & !allowed == 0 && !avx_without_sse && (!some || avx512_whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn what_is_not_emulated_faults() {
        let mut m = Msrs::new(39, Speculation::default());
        for index in [0x3a, 0x48, 0x10a, 0x122, 0x345, 0x480, 0x20_0000, 0xc001_0114, 0x20f + 1] {
            assert_eq!(m.read(index), Err(GuestFault::GP0), "{index:#x}");
            assert_eq!(m.write(index, 0), Err(GuestFault::GP0), "{index:#x}");
        }
    }

    /// Numbers of the MSRs in the user's list that are reached as `how` says.
    fn listed(how: &str) -> Vec<u32> {
        let rows = include_str!("../../../docs/guide/msrs.md").lines().filter(|line| line.starts_with("| 0x"));
        let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
        let mut numbers = Vec::new();
        for row in cells.filter(|row| row[3] == how) {
            let (first, last) = row[1].split_once('–').unwrap_or((row[1], row[1]));
            let [first, last] = [first, last].map(|text| u32::from_str_radix(&text[2..], 16).expect("a number"));
            numbers.extend(first..=last);
        }
        numbers
    }

    #[test]
    fn the_users_list_has_what_there_is() {
        // What `exit::msr` answers itself, beside the local APIC's.
        const ELSEWHERE: [u32; 5] =
            [msr::IA32_TSC_DEADLINE, msr::IA32_TIME_STAMP_COUNTER, msr::IA32_EFER, msr::IA32_PAT, msr::IA32_PRED_CMD];
        let mut m = Msrs::new(39, Speculation::shown(!0, !0, 0));
        let mut is_there = |index: u32| {
            let here = m.read(index).is_ok() || m.write(index, 0).is_ok();
            here || crate::exit::msr::is_apic(index) || ELSEWHERE.contains(&index)
        };
        let all = [0, 0x4000_0000, 0xc000_0000, 0xc001_0000].into_iter().flat_map(|first| first..first + 0x2000);
        assert_eq!(all.filter(|index| is_there(*index)).collect::<Vec<_>>(), listed("emulated"));
        assert_eq!(PASSED[..], listed("passed"));
        assert_eq!([&WATCHED[..], &[msr::IA32_TSC_AUX]].concat(), listed("watched"));
    }

    #[test]
    fn what_is_watched_takes_what_a_processor_takes() {
        const HIGH: u64 = 0xffff_8000_0000_0000;
        for (index, value, expected) in [
            (msr::IA32_STAR, u64::MAX, Ok(SysReg::Star)),
            (msr::IA32_LSTAR, HIGH, Ok(SysReg::Lstar)),
            (msr::IA32_LSTAR, !HIGH, Ok(SysReg::Lstar)),
            (msr::IA32_LSTAR, !HIGH + 1, Err(GuestFault::GP0)),
            (msr::IA32_CSTAR, HIGH, Ok(SysReg::Cstar)),
            (msr::IA32_CSTAR, HIGH - 1, Err(GuestFault::GP0)),
            (msr::IA32_FMASK, 0xffff_ffff, Ok(SysReg::Fmask)),
            (msr::IA32_FMASK, 1 << 32, Err(GuestFault::GP0)),
            (msr::IA32_TSC_AUX, 0xffff_ffff, Ok(SysReg::TscAux)),
            (msr::IA32_TSC_AUX, 1 << 63, Err(GuestFault::GP0)),
        ] {
            assert_eq!(watched(index, value, 48), Some(expected), "{index:#x} {value:#x}");
        }
        assert_eq!(watched(msr::IA32_LSTAR, !HIGH + 1, 57), Some(Ok(SysReg::Lstar)));
        assert_eq!(watched(msr::IA32_LSTAR, 1 << 56, 57), Some(Err(GuestFault::GP0)));
        assert_eq!(watched(msr::IA32_KERNEL_GS_BASE, 0, 48), None);
    }

    #[test]
    fn what_kernels_read_on_amd_without_asking_is_there() {
        let mut m = Msrs::new(39, Speculation::default());
        assert_eq!((m.read(msr::HWCR), m.read(msr::SYSCFG)), (Ok(1 << 24), Ok(0)));
        assert_eq!((m.write(msr::HWCR, 1 << 24), m.write(msr::SYSCFG, 0)), (Ok(()), Ok(())));
        assert_eq!((m.write(msr::NB_CFG, 1 << 46), m.read(msr::NB_CFG)), (Ok(()), Ok(0)));
        for (index, value) in [(msr::HWCR, 0), (msr::SYSCFG, 1 << 19)] {
            assert_eq!(m.write(index, value), Err(GuestFault::GP0), "{index:#x}");
        }
    }

    #[test]
    fn misc_enable_keeps_what_software_may_change() {
        let mut m = Msrs::new(39, Speculation::default());
        let before = m.read(msr::IA32_MISC_ENABLE).unwrap();
        for value in [before, before ^ 1, before | MISC_XD_DISABLE, before | MISC_LIMIT_CPUID, 0x4_00c5_1809] {
            assert_eq!((m.write(msr::IA32_MISC_ENABLE, value), m.read(msr::IA32_MISC_ENABLE)), (Ok(()), Ok(value)));
        }
        for bad in [before | 2, before & !(1 << 11), before | 1 << 63] {
            assert_eq!(m.write(msr::IA32_MISC_ENABLE, bad), Err(GuestFault::GP0), "{bad:#x}");
        }
        assert_eq!(m.read(msr::IA32_MISC_ENABLE), Ok(0x4_00c5_1809));
    }

    #[test]
    fn mtrrs_keep_good_values_and_refuse_bad_types() {
        let mut m = Msrs::new(39, Speculation::default());
        assert_eq!(m.write(0x200, 0x8000_0006), Ok(()));
        assert_eq!(m.read(0x200), Ok(0x8000_0006));
        assert_eq!(m.write(0x200, 0x8000_0002), Err(GuestFault::GP0));
        assert_eq!(m.write(0x201, 1 << 40), Err(GuestFault::GP0));
        assert_eq!(m.write(0x250, 0x0606_0606_0206_0606), Err(GuestFault::GP0));
        assert_eq!(m.write(0x2ff, 0xc07), Err(GuestFault::GP0));
        assert_eq!(m.read(0x2ff), Ok(0xc06));
        assert_eq!(m.write(msr::IA32_MTRRCAP, MTRRCAP), Err(GuestFault::GP0));
    }

    #[test]
    fn efer_changes_as_the_manual_allows() {
        let on = Cr0::PE | Cr0::PG;
        let long = Efer::LME | Efer::LMA;
        assert_eq!(efer_written(long, 0x901, on), Ok(long | Efer::SCE | Efer::NXE));
        assert_eq!(efer_written(long, 1, on), Err(GuestFault::GP0));
        assert_eq!(efer_written(Efer::empty(), 0x500, Cr0::PE), Ok(Efer::LME));
        assert_eq!(efer_written(Efer::empty(), 1 << 12, Cr0::PE), Err(GuestFault::GP0));
    }

    #[test]
    fn a_pat_has_memory_types_only() {
        assert!(is_valid_pat(0x0007_0406_0007_0406) && is_valid_pat(0x0100_0000_0000_0005));
        for bad in [2, 3 << 56, 8 << 32, 0x86] {
            assert!(!is_valid_pat(bad), "{bad:#x}");
        }
    }

    #[test]
    fn xcr0_needs_what_its_components_build_on() {
        let all = 0b1110_0111;
        for good in [1, 3, 7, all] {
            assert!(is_valid_xcr0(good, all), "{good:#b}");
        }
        for bad in [0, 2, 5, 0b1110_0011, 0b0110_0111, 1 << 9 | 1] {
            assert!(!is_valid_xcr0(bad, all), "{bad:#b}");
        }
        assert!(!is_valid_xcr0(all, 7));
    }
}
