//! Speculation: what a processor says of how it may be observed by what runs on it, and what follows for a hypervisor.
//!
//! Owns the [`Plan`] of defences and who asks for one. What a processor's own enumeration asks for is each vendor's:
//! [`crate::vmx::speculation`] and [`crate::svm::speculation`]. Never acts: the machine's part does, and what a guest does
//! for its own defence is the guest's.

use core::fmt;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

/// Which defences are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mitigations {
    /// Those that the processor's enumeration asks for.
    #[default]
    Auto,
    /// None.
    Off,
    /// All that the processor can execute without a fault.
    Full,
}

impl Mitigations {
    /// Its name in a configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Mitigations::Auto => "auto",
            Mitigations::Off => "off",
            Mitigations::Full => "full",
        }
    }
}

/// What a processor says of itself; 0 where it has no such leaf or MSR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enumerated {
    /// CPUID leaf 7, subleaf 0, EBX.
    pub leaf7_ebx: u32,
    /// CPUID leaf 7, subleaf 0, EDX.
    pub leaf7_edx: u32,
    /// CPUID leaf 7, subleaf 2, EDX.
    pub leaf7_2_edx: u32,
    /// IA32_ARCH_CAPABILITIES.
    pub capabilities: u64,
    /// CPUID leaf 0x80000008, EBX.
    pub leaf8_ebx: u32,
    /// CPUID leaf 0x80000021, EAX.
    pub leaf21_eax: u32,
    /// CPUID leaf 0x80000021, ECX.
    pub leaf21_ecx: u32,
}

bitflags! {
    /// Defences.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Acts: u16 {
        /// When another VM's virtual processor comes in: the barrier for indirect branches, and returns that lead
        /// nowhere.
        const SWITCH_BARRIER = 1 << 0;
        /// The barrier for indirect branches after each exit.
        const EXIT_BARRIER = 1 << 1;
        /// [`Plan::control`] is in IA32_SPEC_CTRL for good, whatever a guest sets beside.
        const CONTROL = 1 << 2;
        /// IA32_SPEC_CTRL.IBRS is written after each exit, and what the guest set before each entry.
        const EXIT_IBRS = 1 << 3;
        /// EFER.AIBRSE is set for good.
        const AUTOMATIC_IBRS = 1 << 4;
        /// Behind each exit, one call whose return leads nowhere.
        const EXIT_RETURN = 1 << 5;
        /// Behind each exit, as many as the processor remembers.
        const EXIT_RETURNS = 1 << 6;
        /// VERW before each entry: the processor's buffers are cleared.
        const CLEAR_BUFFERS = 1 << 7;
        /// The L1 data cache is flushed before an entry from the run loop, not where an exit was answered the short way,
        /// which touches nothing of other VMs.
        const FLUSH_L1D = 1 << 8;
        /// The L1 data cache is flushed before each entry.
        const FLUSH_L1D_ALWAYS = 1 << 9;
        /// Nested tables have pages of 4 KiB only.
        const SMALL_PAGES = 1 << 10;
    }
}

/// How many defences there are.
const COUNT: usize = Acts::all().bits().count_ones() as usize;

/// What each is called, in the order of the bits.
const NAMES: [&str; COUNT] = [
    "IBPB between VMs",
    "IBPB after exits",
    "IA32_SPEC_CTRL set for good",
    "IBRS after exits",
    "automatic IBRS",
    "one return stuffed after exits",
    "all returns stuffed after exits",
    "VERW before entries",
    "L1D flush before entries from the run loop",
    "L1D flush before entries",
    "nested pages of 4 KiB only",
];

/// A defence that may be had.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Which.
    pub act: Acts,
    /// Why the enumeration asks for it; `None` where it does not.
    pub asked: Option<&'static str>,
    /// The processor can execute it without a fault, and it adds to those of the other rows.
    pub possible: bool,
}

/// What is done, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    wanted: Mitigations,
    acts: Acts,
    control: u64,
    /// In the order of the bits.
    reasons: [&'static str; COUNT],
}

impl Plan {
    /// What `wanted` makes of `rows`. `control` is what IA32_SPEC_CTRL has for good, where a row with [`Acts::CONTROL`]
    /// is taken.
    pub fn of(wanted: Mitigations, rows: &[Row], control: u64) -> Plan {
        let mut plan = Plan { wanted, acts: Acts::empty(), control: 0, reasons: [""; COUNT] };
        for row in rows.iter().filter(|row| row.possible) {
            let reason = match (wanted, row.asked) {
                (Mitigations::Off, _) | (Mitigations::Auto, None) => continue,
                (_, Some(reason)) => reason,
                (Mitigations::Full, None) => "not asked for",
            };
            plan.acts |= row.act;
            for (n, name) in plan.reasons.iter_mut().enumerate() {
                if row.act.bits() & 1 << n != 0 {
                    *name = reason;
                }
            }
        }
        if plan.does(Acts::CONTROL) {
            plan.control = control;
        }
        plan
    }

    /// What is done.
    pub const fn acts(&self) -> Acts {
        self.acts
    }

    /// Whether all of `acts` are done.
    pub const fn does(&self, acts: Acts) -> bool {
        self.acts.contains(acts)
    }

    /// What is in IA32_SPEC_CTRL for good.
    pub const fn control(&self) -> u64 {
        self.control
    }
}

/// In one line.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mitigations = {:?}: ", self.wanted.name())?;
        if self.acts.is_empty() {
            return match self.wanted {
                Mitigations::Off => f.write_str("no defences against speculation"),
                _ => f.write_str("the processor's enumeration asks for no defence against speculation"),
            };
        }
        let mut separator = "";
        for (n, (name, reason)) in NAMES.iter().zip(&self.reasons).enumerate() {
            if self.acts.bits() & 1 << n != 0 {
                write!(f, "{separator}{name} ({reason})")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}
