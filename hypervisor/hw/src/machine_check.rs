//! Machine checks: that each bank of the processor's reports its errors, and what the banks say when one has come (SDM
//! vol. 3, "Machine-Check Architecture"; APM vol. 2, "Machine Check Architecture").
//!
//! Owns those MSRs. A machine check always ends the machine: see [`crate::report`].

use lamina_arch::msr::{IA32_MC0_CTL, IA32_MCG_CAP, IA32_MCG_STATUS};

use crate::control::cpuid;
use crate::msr_safe::{rdmsr_safe, wrmsr_safe};

/// IA32_MCG_CAP, bits 7:0: how many banks there are.
const COUNT: u64 = 0xff;
/// IA32_MCG_CAP.MCG_CTL_P: there is IA32_MCG_CTL.
const HAS_CONTROL: u64 = 1 << 8;
/// The MSR behind IA32_MCG_STATUS.
const IA32_MCG_CTL: u32 = IA32_MCG_STATUS + 1;
/// IA32_MCi_STATUS.VAL: it holds an error; ADDRV: and where.
const VALID: u64 = 1 << 63;
const HAS_ADDRESS: u64 = 1 << 58;

/// An error that a bank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Which bank, from 0.
    pub bank: u32,
    /// IA32_MCi_STATUS.
    pub status: u64,
    /// IA32_MCi_ADDR, where it counts.
    pub address: Option<u64>,
}

/// IA32_MCi_CTL, and behind it IA32_MCi_STATUS and IA32_MCi_ADDR.
const fn control(bank: u32) -> u32 {
    IA32_MC0_CTL + 4 * bank
}

/// How many banks there are: none without the architecture.
fn banks() -> u32 {
    let has = cpuid().get_feature_info().is_some_and(|features| features.has_mca());
    let count = if has { rdmsr_safe(IA32_MCG_CAP).unwrap_or(0) & COUNT } else { 0 };
    // The MSRs of more would be others'.
    u32::try_from(count).map_or(32, |count| count.min(32))
}

/// Has each bank report all errors that it knows, whatever firmware left, and forget what it holds. Once for each processor,
/// with a table of handlers in force.
pub fn enable() {
    let banks = banks();
    if banks != 0 && rdmsr_safe(IA32_MCG_CAP).is_some_and(|capabilities| capabilities & HAS_CONTROL != 0) {
        // SAFETY: it only lets errors be reported, which end the machine by their handler.
        unsafe { wrmsr_safe(IA32_MCG_CTL, u64::MAX) };
    }
    for bank in 0..banks {
        // SAFETY: as above. Bits that a bank does not have are ignored; of a status, 0 may always be written.
        unsafe {
            wrmsr_safe(control(bank), u64::MAX);
            wrmsr_safe(control(bank) + 1, 0);
        }
    }
}

/// The errors that the banks hold.
pub fn errors() -> impl Iterator<Item = Error> {
    (0..banks()).filter_map(|bank| {
        let status = rdmsr_safe(control(bank) + 1)?;
        let address = if status & HAS_ADDRESS != 0 { rdmsr_safe(control(bank) + 2) } else { None };
        (status & VALID != 0).then_some(Error { bank, status, address })
    })
}
