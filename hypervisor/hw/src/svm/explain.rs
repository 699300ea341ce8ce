//! Why the processor refused to enter a guest, in words: which rule of the manual our own check of the VMCB finds broken.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use lamina_arch::svm::features::Capabilities;
use lamina_arch::svm::rules;
use lamina_arch::svm::vmcb::Vmcb;
use lamina_vmm::vcpu::EntryFailure;

/// The explanation of VMEXIT_INVALID.
pub fn explain(vmcb: &Vmcb, capabilities: &Capabilities) -> EntryFailure {
    let mut broken_rules = Vec::new();
    rules::check(vmcb, capabilities, &mut |violation| {
        broken_rules.push(format!(
            "{} = {:#x}: {} (\"{}\")",
            violation.field, violation.value, violation.rule, violation.section
        ));
    });
    EntryFailure { error: String::from("VMRUN: the guest's state is invalid (VMEXIT_INVALID)"), broken_rules }
}
