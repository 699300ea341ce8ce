//! What was asked of a scripted processor, for tests to look at.

use std::vec::Vec;

use lamina_arch::cr::Cr4;
use lamina_arch::event::Event;
use lamina_arch::instruction::Instructions;
use lamina_arch::time::Tsc;

use crate::apic::ApicMode;

/// What was asked of one virtual processor.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Events delivered to the guest, and when. Machine's TSC.
    pub delivered: Vec<(Tsc, Event)>,
    /// RIP after each instruction that the hypervisor finished.
    pub advanced: Vec<u64>,
    /// How often the run loop entered it.
    pub runs: usize,
    /// Interrupt windows requested (true) and given up (false), where that changed something.
    pub interrupt_windows: Vec<bool>,
    /// NMI windows requested (true) and given up (false), where that changed something.
    pub nmi_windows: Vec<bool>,
    /// The deadline of each entry.
    pub deadlines: Vec<Tsc>,
    /// How often it came in.
    pub loads: u32,
    /// How often it went out.
    pub unloads: u32,
    /// Values of IA32_SPEC_CTRL set, and (`None`) barriers for indirect branches.
    pub speculation: Vec<Option<u64>>,
    /// Page-directory pointers set.
    pub pdptes: Vec<[u64; 4]>,
    /// How often the translations of the guest's own paging were forgotten.
    pub linear_invalidations: u32,
    /// How often the translations of the nested tables were forgotten.
    pub nested_invalidations: u32,
    /// The guest's TSC minus the machine's.
    pub tsc_offset: i64,
    /// CR4 bits that need no exit.
    pub allowed_cr4: Option<Cr4>,
    /// Instructions that were taken away.
    pub hidden: Option<Instructions>,
    /// Vectors that the virtualized local APIC delivered.
    pub virtual_interrupts: Vec<u8>,
    /// How the local APIC was virtualized, one after the other.
    pub apic_modes: Vec<ApicMode>,
}
