//! Why a VM entry fails: the checks that it makes, made again in software (SDM vol. 3, chapter "VM Entries").
//!
//! Owns one sentence for each rule and reports every rule that a VMCS breaks, not only the first. Pure and total: it
//! reads the VMCS through [`Reader`], only fields that the processor has, and no memory. So what the processor checks
//! in memory is not checked here: the virtual TPR against its threshold, the revision of the VMCS behind the link
//! pointer, PDPTEs without EPT, entries of MSR areas. Neither is what needs more CPUID than [`Capabilities`] holds:
//! reserved bits of IA32_PERF_GLOBAL_CTRL and IA32_RTIT_CTL. The processor is taken to be in IA-32e mode and outside
//! of SMM, as a hypervisor is.

mod controls;
mod failure;
mod guest;
mod host;
#[cfg(test)]
mod tests;

pub use failure::{entry_failure, instruction_error};

use super::capabilities::Capabilities;
use super::controls::{EntryControls, ExitControls, PinBased, ProcessorBased, Secondary};
use super::field::{self, Access, Bits64, Field, Natural, Width};

/// One rule that a VMCS breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field's name, as in [`field`].
    pub field: &'static str,
    /// The field's value.
    pub value: u64,
    /// What must hold, in one sentence.
    pub rule: &'static str,
    /// Title of the manual's section.
    pub section: &'static str,
}

/// Something that VMCS fields can be read from.
pub trait Reader {
    /// What VMREAD gives for `encoding`, without effect on the VMCS.
    fn raw(&self, encoding: u32) -> u64;

    /// The value of `field` in its own width.
    fn read<W: Width, A: Access>(&self, field: Field<W, A>) -> W::Value
    where
        Self: Sized,
    {
        W::from_vmread(self.raw(field.encoding()))
    }
}

/// Checks `vmcs` against a processor with `capabilities` and reports each broken rule: first controls, then host
/// state, then guest state, as the processor goes. Several reports may have one cause.
pub fn check(vmcs: &impl Reader, capabilities: &Capabilities, report: &mut dyn FnMut(Violation)) {
    let mut checker = Checker::new(vmcs, capabilities, report);
    controls::check(&mut checker);
    host::check(&mut checker);
    guest::check(&mut checker);
}

/// The event that the entry injects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Injection {
    /// Interruption type, bits 10:8.
    kind: u32,
    /// Vector, bits 7:0.
    vector: u32,
    /// Bit 11: the error code is delivered.
    error_code: bool,
}

/// Interruption types, bits 10:8 of the VM-entry interruption information.
mod kind {
    pub const EXTERNAL: u32 = 0;
    pub const RESERVED: u32 = 1;
    pub const NMI: u32 = 2;
    pub const HARDWARE_EXCEPTION: u32 = 3;
    pub const SOFTWARE_INTERRUPT: u32 = 4;
    pub const PRIVILEGED_SOFTWARE_EXCEPTION: u32 = 5;
    pub const SOFTWARE_EXCEPTION: u32 = 6;
    pub const OTHER: u32 = 7;
}

/// What all rules need.
struct Checker<'a, R> {
    vmcs: &'a R,
    capabilities: &'a Capabilities,
    report: &'a mut dyn FnMut(Violation),
    /// Section of the rules that are being checked.
    section: &'static str,
    pin: PinBased,
    processor: ProcessorBased,
    secondary: Secondary,
    exit: ExitControls,
    entry: EntryControls,
    injection: Option<Injection>,
}

/// A control field without what the processor cannot do. That such a bit is set is one violation; believing it would
/// lead to reads of fields that are not there.
fn possible(value: u32, capability: u64) -> u32 {
    value & (capability >> 32) as u32
}

impl<'a, R: Reader> Checker<'a, R> {
    fn new(vmcs: &'a R, capabilities: &'a Capabilities, report: &'a mut dyn FnMut(Violation)) -> Self {
        let processor = ProcessorBased::from_bits_retain(possible(
            vmcs.read(field::PROCESSOR_BASED_CONTROLS),
            capabilities.processor_controls(),
        ));
        let secondary = if processor.contains(ProcessorBased::ACTIVATE_SECONDARY_CONTROLS) {
            possible(vmcs.read(field::SECONDARY_CONTROLS), capabilities.secondary_controls())
        } else {
            0
        };
        let information = vmcs.read(field::ENTRY_INTERRUPTION_INFORMATION);
        let injection = (information & super::interruption::VALID != 0).then_some(Injection {
            kind: information >> 8 & 7,
            vector: information & 0xff,
            error_code: information & super::interruption::ERROR_CODE_VALID != 0,
        });
        Checker {
            vmcs,
            capabilities,
            report,
            section: "",
            pin: PinBased::from_bits_retain(possible(
                vmcs.read(field::PIN_BASED_CONTROLS),
                capabilities.pin_controls(),
            )),
            processor,
            secondary: Secondary::from_bits_retain(secondary),
            exit: ExitControls::from_bits_retain(possible(
                vmcs.read(field::EXIT_CONTROLS),
                capabilities.exit_controls(),
            )),
            entry: EntryControls::from_bits_retain(possible(
                vmcs.read(field::ENTRY_CONTROLS),
                capabilities.entry_controls(),
            )),
            injection,
        }
    }

    fn read<W: Width, A: Access>(&self, field: Field<W, A>) -> W::Value {
        self.vmcs.read(field)
    }

    /// Reports `rule` as broken by `field` unless it `holds`.
    fn rule<W: Width, A: Access>(&mut self, field: Field<W, A>, holds: bool, rule: &'static str) {
        if !holds {
            let name = field::ALL.iter().find(|(_, encoding)| *encoding == field.encoding());
            let violation = Violation {
                field: name.map_or("a field without a name", |(name, _)| name),
                value: self.read(field).into(),
                rule,
                section: self.section,
            };
            (self.report)(violation);
        }
    }

    fn is_canonical(&self, address: u64) -> bool {
        is_canonical(address, self.capabilities.linear_address_width)
    }

    /// A linear address that the processor loads whatever the paging mode: canonical in its full width.
    fn canonical<A: Access>(&mut self, field: Field<Natural, A>) {
        let holds = self.is_canonical(self.read(field));
        self.rule(field, holds, "The linear address is canonical.");
    }

    /// CR3; the two bits of linear-address masking are let through where CR4 has that feature.
    fn cr3<A: Access>(&mut self, field: Field<Natural, A>) {
        const CR4_LAM_SUP: u64 = 1 << 28;
        const LAM: u64 = 3 << 61;
        let masking = if self.capabilities.cr4_fixed1 & CR4_LAM_SUP != 0 { LAM } else { 0 };
        let holds = self.read(field) & !(self.capabilities.physical_mask() | masking) == 0;
        self.rule(field, holds, "CR3 has no bit beyond the physical-address width.");
    }

    fn pat<A: Access>(&mut self, field: Field<Bits64, A>) {
        let holds = self.read(field).to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
        self.rule(field, holds, "Each byte of IA32_PAT is a memory type: 0, 1, 4, 5, 6 or 7.");
    }

    /// State of control-flow enforcement: IA32_S_CET, the shadow-stack pointer, the table of shadow stacks.
    fn cet<A: Access>(&mut self, s_cet: Field<Natural, A>, ssp: Field<Natural, A>, table: Field<Natural, A>) {
        let value = self.read(s_cet);
        self.rule(s_cet, value & 0x3c0 == 0, "The reserved bits 9:6 of IA32_S_CET are 0.");
        self.rule(s_cet, value & 0xc00 != 0xc00, "SUPPRESS and TRACKER in IA32_S_CET are not both 1.");
        self.canonical(s_cet);
        let aligned = self.read(ssp) & 3 == 0;
        self.rule(ssp, aligned, "The shadow-stack pointer is a multiple of 4.");
        self.canonical(table);
    }

    fn pkrs<A: Access>(&mut self, field: Field<Bits64, A>) {
        let holds = self.read(field) >> 32 == 0;
        self.rule(field, holds, "Bits 63:32 of IA32_PKRS are 0.");
    }
}

/// Whether the bits of `address` from bit `width` - 1 up are all the same.
const fn is_canonical(address: u64, width: u8) -> bool {
    let shift = if width == 0 || width > 64 { 0 } else { 64 - width as u32 };
    ((address << shift) as i64 >> shift) as u64 == address
}

/// Whether `value` keeps to what `fixed0` wants to be 1 and what `fixed1` allows to be 1.
const fn keeps_fixed(value: u64, fixed0: u64, fixed1: u64) -> bool {
    value & fixed0 == fixed0 && value & !fixed1 == 0
}
