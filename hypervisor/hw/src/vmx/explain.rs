//! Why the processor refused to enter a guest, in words: what it said, and which rule of the manual our own check of
//! the VMCS finds broken.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use lamina_arch::vmx::capabilities::Capabilities;
use lamina_arch::vmx::rules::{self, Reader};
use lamina_vmm::vcpu::EntryFailure;

use super::vmcs::Current;

impl Reader for Current<'_> {
    fn raw(&self, encoding: u32) -> u64 {
        // A field that this processor lacks cannot break a rule.
        self.try_read_raw(encoding).unwrap_or(0)
    }
}

/// The explanation of a failed entry; `error` is what the processor said.
pub fn explain(vmcs: &Current<'_>, capabilities: &Capabilities, error: String) -> EntryFailure {
    let mut broken_rules = Vec::new();
    rules::check(vmcs, capabilities, &mut |violation| {
        broken_rules.push(format!(
            "{} = {:#x}: {} (\"{}\")",
            violation.field, violation.value, violation.rule, violation.section
        ));
    });
    EntryFailure { error, broken_rules }
}
