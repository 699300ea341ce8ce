//! Rules for the guest-state area ("Checks on the Guest State Area").

mod segments;
mod state;

use super::host::{CR0_UNCHECKED, EFER_DEFINED};
use super::{Checker, Reader, keeps_fixed, kind};
use crate::cr::{Cr0, Cr4, Efer, Rflags};
use crate::segment::{AccessRights, SegmentName};
use crate::vmx::controls::{EntryControls, Secondary};
use crate::vmx::field;

/// What several rules ask about the guest.
#[derive(Clone, Copy, Debug)]
struct Mode {
    /// It is in IA-32e mode.
    ia32e: bool,
    /// CR0.PE.
    protected: bool,
    /// CR0.PG.
    paging: bool,
    /// RFLAGS.VM.
    virtual_8086: bool,
    /// The control of that name.
    unrestricted: bool,
    /// Its code is 64-bit code.
    code64: bool,
}

pub(super) fn check<R: Reader>(c: &mut Checker<'_, R>) {
    let cr0 = c.read(field::GUEST_CR0);
    let ia32e = c.entry.contains(EntryControls::IA32E_MODE_GUEST);
    let (_, _, _, rights) = field::segment(SegmentName::Cs);
    let mode = Mode {
        ia32e,
        protected: cr0 & Cr0::PE.bits() != 0,
        paging: cr0 & Cr0::PG.bits() != 0,
        virtual_8086: c.read(field::GUEST_RFLAGS) & Rflags::VM.bits() != 0,
        unrestricted: c.secondary.contains(Secondary::UNRESTRICTED_GUEST),
        code64: ia32e && AccessRights(c.read(rights)).is_long(),
    };
    c.section = "Checks on Guest Control Registers, Debug Registers, and MSRs";
    control_registers(c, mode);
    msrs(c, mode);
    c.section = "Checks on Guest Segment Registers";
    segments::check(c, mode);
    c.section = "Checks on Guest Descriptor-Table Registers";
    descriptor_tables(c);
    c.section = "Checks on Guest RIP, RFLAGS, and SSP";
    rip_rflags_ssp(c, mode);
    c.section = "Checks on Guest Non-Register State";
    state::check(c);
    c.section = "Checks on Guest Page-Directory-Pointer-Table Entries";
    page_directory_pointers(c, mode);
}

fn control_registers<R: Reader>(c: &mut Checker<'_, R>, mode: Mode) {
    let capabilities = c.capabilities;
    let cr0 = c.read(field::GUEST_CR0);
    let cr4 = c.read(field::GUEST_CR4);
    let free = if mode.unrestricted { Cr0::PE.union(Cr0::PG).bits() } else { 0 };
    let fixed0 = capabilities.cr0_fixed0 & !(CR0_UNCHECKED | free);
    let fixed = keeps_fixed(cr0 & !CR0_UNCHECKED, fixed0, capabilities.cr0_fixed1);
    c.rule(field::GUEST_CR0, fixed, "CR0 keeps its fixed bits; an unrestricted guest's PE and PG are free.");
    c.rule(field::GUEST_CR0, mode.protected || !mode.paging, "CR0.PG needs CR0.PE.");
    let fixed = keeps_fixed(cr4, capabilities.cr4_fixed0, capabilities.cr4_fixed1);
    c.rule(field::GUEST_CR4, fixed, "CR4 keeps the bits that IA32_VMX_CR4_FIXED0 and FIXED1 fix.");
    let holds = cr4 & Cr4::CET.bits() == 0 || cr0 & Cr0::WP.bits() != 0;
    c.rule(field::GUEST_CR4, holds, "CR4.CET needs CR0.WP.");
    if mode.ia32e {
        c.rule(field::GUEST_CR0, mode.paging, "IA-32e mode needs CR0.PG.");
        c.rule(field::GUEST_CR4, cr4 & Cr4::PAE.bits() != 0, "IA-32e mode needs CR4.PAE.");
    } else {
        c.rule(field::GUEST_CR4, cr4 & Cr4::PCIDE.bits() == 0, "CR4.PCIDE needs IA-32e mode.");
    }
    c.cr3(field::GUEST_CR3);
    if c.entry.contains(EntryControls::LOAD_DEBUG_CONTROLS) {
        /// Bits 5:3 and 63:16; whether the processor has all the others is model-specific.
        const RESERVED: u64 = !0xffc7;
        let holds = c.read(field::GUEST_DEBUGCTL) & RESERVED == 0;
        c.rule(field::GUEST_DEBUGCTL, holds, "The reserved bits of IA32_DEBUGCTL are 0.");
        let holds = c.read(field::GUEST_DR7) >> 32 == 0;
        c.rule(field::GUEST_DR7, holds, "Bits 63:32 of DR7 are 0.");
    }
}

fn msrs<R: Reader>(c: &mut Checker<'_, R>, mode: Mode) {
    c.canonical(field::GUEST_SYSENTER_ESP);
    c.canonical(field::GUEST_SYSENTER_EIP);
    if c.entry.contains(EntryControls::LOAD_PAT) {
        c.pat(field::GUEST_PAT);
    }
    if c.entry.contains(EntryControls::LOAD_EFER) {
        let efer = c.read(field::GUEST_EFER);
        let active = efer & Efer::LMA.bits() != 0;
        let enabled = efer & Efer::LME.bits() != 0;
        c.rule(field::GUEST_EFER, efer & !EFER_DEFINED == 0, "EFER has no reserved bit.");
        c.rule(field::GUEST_EFER, active == mode.ia32e, "EFER.LMA equals the control IA-32e mode guest.");
        c.rule(field::GUEST_EFER, active == enabled || !mode.paging, "With CR0.PG, EFER.LMA equals EFER.LME.");
    }
    if c.entry.contains(EntryControls::LOAD_BNDCFGS) {
        let bounds = c.read(field::GUEST_BNDCFGS);
        let holds = bounds & 0xffc == 0 && c.is_canonical(bounds);
        c.rule(field::GUEST_BNDCFGS, holds, "IA32_BNDCFGS has a canonical address, and bits 11:2 are 0.");
    }
    if c.entry.contains(EntryControls::LOAD_UINV) {
        let holds = c.read(field::GUEST_UINV) >> 8 == 0;
        c.rule(field::GUEST_UINV, holds, "The user-interrupt notification vector is below 256.");
    }
    if c.entry.contains(EntryControls::LOAD_CET) {
        c.cet(field::GUEST_S_CET, field::GUEST_SSP, field::GUEST_INTERRUPT_SSP_TABLE);
    }
    if c.entry.contains(EntryControls::LOAD_PKRS) {
        c.pkrs(field::GUEST_PKRS);
    }
}

fn descriptor_tables<R: Reader>(c: &mut Checker<'_, R>) {
    c.canonical(field::GUEST_GDTR_BASE);
    c.canonical(field::GUEST_IDTR_BASE);
    for limit in [field::GUEST_GDTR_LIMIT, field::GUEST_IDTR_LIMIT] {
        let holds = c.read(limit) >> 16 == 0;
        c.rule(limit, holds, "Bits 31:16 of a descriptor table's limit are 0.");
    }
}

/// Whether the bits of `address` from bit `width` up are all the same: one bit less strict than canonical.
fn uniform_above(address: u64, width: u8) -> bool {
    let high = address.checked_shr(u32::from(width)).unwrap_or(0);
    high == 0 || high == u64::MAX.checked_shr(u32::from(width)).unwrap_or(0)
}

fn rip_rflags_ssp<R: Reader>(c: &mut Checker<'_, R>, mode: Mode) {
    let rip = c.read(field::GUEST_RIP);
    if mode.code64 {
        let holds = uniform_above(rip, c.capabilities.linear_address_width);
        c.rule(field::GUEST_RIP, holds, "64-bit code: RIP's bits beyond the linear-address width are all the same.");
    } else {
        c.rule(field::GUEST_RIP, rip >> 32 == 0, "Outside 64-bit code, bits 63:32 of RIP are 0.");
    }
    let rflags = c.read(field::GUEST_RFLAGS);
    let reserved = rflags & 0xffff_ffff_ffc0_8028 == 0 && rflags & Rflags::FIXED.bits() != 0;
    c.rule(field::GUEST_RFLAGS, reserved, "RFLAGS bits 63:22, 15, 5 and 3 are 0 and bit 1 is 1.");
    let holds = !mode.virtual_8086 || (!mode.ia32e && mode.protected);
    c.rule(field::GUEST_RFLAGS, holds, "Virtual-8086 mode needs CR0.PE and is not there in IA-32e mode.");
    if c.injection.is_some_and(|event| event.kind == kind::EXTERNAL) {
        let holds = rflags & Rflags::IF.bits() != 0;
        c.rule(field::GUEST_RFLAGS, holds, "RFLAGS.IF is 1 when an external interrupt is injected.");
    }
    if c.entry.contains(EntryControls::LOAD_CET) {
        let ssp = c.read(field::GUEST_SSP);
        let holds = if mode.code64 { uniform_above(ssp, c.capabilities.linear_address_width) } else { ssp >> 32 == 0 };
        c.rule(field::GUEST_SSP, holds, "The shadow-stack pointer fits the guest's linear addresses.");
    }
}

/// With EPT, the VMCS holds the PDPTEs of PAE paging; without it they are in memory, which is not looked at here.
fn page_directory_pointers<R: Reader>(c: &mut Checker<'_, R>, mode: Mode) {
    let pae = c.read(field::GUEST_CR4) & Cr4::PAE.bits() != 0;
    if !(mode.paging && pae && !mode.ia32e && c.secondary.contains(Secondary::ENABLE_EPT)) {
        return;
    }
    for entry in [field::GUEST_PDPTE0, field::GUEST_PDPTE1, field::GUEST_PDPTE2, field::GUEST_PDPTE3] {
        let value = c.read(entry);
        let holds = value & 1 == 0 || value & (0x1e6 | !c.capabilities.physical_mask()) == 0;
        c.rule(entry, holds, "A present PDPTE has no reserved bit: 2:1, 8:5 and beyond the physical-address width.");
    }
}
