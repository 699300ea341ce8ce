//! Rules for the host-state area.

use super::{Checker, Reader, is_canonical, keeps_fixed};
use crate::cr::{Cr0, Cr4, Efer};
use crate::vmx::controls::{EntryControls, ExitControls};
use crate::vmx::field::{self, Bits16, Field, ReadWrite};

/// CR0 bits that neither an entry nor an exit changes, so they are not checked.
pub(super) const CR0_UNCHECKED: u64 = Cr0::NW.union(Cr0::CD).bits();
/// The EFER bits that Intel's processors have.
pub(super) const EFER_DEFINED: u64 = Efer::SCE.union(Efer::LME).union(Efer::LMA).union(Efer::NXE).bits();

pub(super) fn check<R: Reader>(c: &mut Checker<'_, R>) {
    c.section = "Checks on Host Control Registers, MSRs, and SSP";
    registers(c);
    c.section = "Checks on Host Segment and Descriptor-Table Registers";
    segments(c);
    c.section = "Checks Related to Address-Space Size";
    address_space(c);
}

fn registers<R: Reader>(c: &mut Checker<'_, R>) {
    let capabilities = c.capabilities;
    let cr0 = c.read(field::HOST_CR0);
    let cr4 = c.read(field::HOST_CR4);
    let fixed = keeps_fixed(cr0 & !CR0_UNCHECKED, capabilities.cr0_fixed0 & !CR0_UNCHECKED, capabilities.cr0_fixed1);
    c.rule(field::HOST_CR0, fixed, "Host CR0 keeps the bits that IA32_VMX_CR0_FIXED0 and FIXED1 fix.");
    let fixed = keeps_fixed(cr4, capabilities.cr4_fixed0, capabilities.cr4_fixed1);
    c.rule(field::HOST_CR4, fixed, "Host CR4 keeps the bits that IA32_VMX_CR4_FIXED0 and FIXED1 fix.");
    let protected = cr4 & Cr4::CET.bits() == 0 || cr0 & Cr0::WP.bits() != 0;
    c.rule(field::HOST_CR4, protected, "Host CR4.CET needs host CR0.WP.");
    c.cr3(field::HOST_CR3);
    c.canonical(field::HOST_SYSENTER_ESP);
    c.canonical(field::HOST_SYSENTER_EIP);
    if c.exit.contains(ExitControls::LOAD_PAT) {
        c.pat(field::HOST_PAT);
    }
    if c.exit.contains(ExitControls::LOAD_EFER) {
        let efer = c.read(field::HOST_EFER);
        let long = c.exit.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
        c.rule(field::HOST_EFER, efer & !EFER_DEFINED == 0, "Host EFER has no reserved bit.");
        let consistent = (efer & Efer::LMA.bits() != 0) == long && (efer & Efer::LME.bits() != 0) == long;
        c.rule(field::HOST_EFER, consistent, "Host EFER.LMA and LME equal the control host address-space size.");
    }
    if c.exit.contains(ExitControls::LOAD_CET) {
        c.cet(field::HOST_S_CET, field::HOST_SSP, field::HOST_INTERRUPT_SSP_TABLE);
        c.canonical(field::HOST_SSP);
    }
    if c.exit.contains(ExitControls::LOAD_PKRS) {
        c.pkrs(field::HOST_PKRS);
    }
}

fn segments<R: Reader>(c: &mut Checker<'_, R>) {
    const SELECTORS: [Field<Bits16, ReadWrite>; 7] = [
        field::HOST_ES_SELECTOR,
        field::HOST_CS_SELECTOR,
        field::HOST_SS_SELECTOR,
        field::HOST_DS_SELECTOR,
        field::HOST_FS_SELECTOR,
        field::HOST_GS_SELECTOR,
        field::HOST_TR_SELECTOR,
    ];
    for selector in SELECTORS {
        let plain = c.read(selector) & 7 == 0;
        c.rule(selector, plain, "A host selector has RPL 0 and names the GDT.");
    }
    for selector in [field::HOST_CS_SELECTOR, field::HOST_TR_SELECTOR] {
        let used = c.read(selector) != 0;
        c.rule(selector, used, "Host CS and TR are not null.");
    }
    let stack = c.exit.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE) || c.read(field::HOST_SS_SELECTOR) != 0;
    c.rule(field::HOST_SS_SELECTOR, stack, "Host SS is not null unless the host is in 64-bit mode.");
    for base in
        [field::HOST_FS_BASE, field::HOST_GS_BASE, field::HOST_TR_BASE, field::HOST_GDTR_BASE, field::HOST_IDTR_BASE]
    {
        c.canonical(base);
    }
}

fn address_space<R: Reader>(c: &mut Checker<'_, R>) {
    let long = c.exit.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
    let cr4 = c.read(field::HOST_CR4);
    let rip = c.read(field::HOST_RIP);
    c.rule(field::EXIT_CONTROLS, long, "A hypervisor in IA-32e mode sets the control host address-space size.");
    if long {
        c.rule(field::HOST_CR4, cr4 & Cr4::PAE.bits() != 0, "A 64-bit host has CR4.PAE.");
        // RIP alone is checked against the paging mode that the exit loads: it is used at once.
        let width = if cr4 & Cr4::LA57.bits() != 0 { 57 } else { 48 };
        c.rule(field::HOST_RIP, is_canonical(rip, width), "The host's RIP is canonical in its paging mode.");
    } else {
        let guest = !c.entry.contains(EntryControls::IA32E_MODE_GUEST);
        c.rule(field::ENTRY_CONTROLS, guest, "A 32-bit host has no guest in IA-32e mode.");
        c.rule(field::HOST_CR4, cr4 & Cr4::PCIDE.bits() == 0, "A 32-bit host has no CR4.PCIDE.");
        c.rule(field::HOST_RIP, rip >> 32 == 0, "Bits 63:32 of a 32-bit host's RIP are 0.");
    }
}
