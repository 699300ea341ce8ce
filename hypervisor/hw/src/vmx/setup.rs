//! A VMCS from nothing: controls, host state, and the guest as after reset (SDM vol. 3, "Processor State After Reset").

use lamina_arch::cr::{Cr0, Cr4};
use lamina_arch::event::vector;
use lamina_arch::vmx::controls::Secondary;
use lamina_arch::vmx::field;
use x86_64::instructions::tables::{sgdt, sidt};
use x86_64::registers::control;
use x86_64::registers::model_specific::{FsBase, GsBase, Msr};
use x86_64::registers::segmentation::{CS, DS, ES, FS, GS, SS, Segment};

use super::enable::Shared;
use super::entry::Frame;
use super::vmcs::Current;
use crate::control::tr;

/// The CR0 bits that the guest does not get: NE, which VMX fixes, and the cache controls, which would be the machine's.
pub const CR0_OWNED: Cr0 = Cr0::NE.union(Cr0::CD).union(Cr0::NW);
/// The CR0 bits that are set in the machine's register while a guest runs, whatever it reads.
pub const CR0_FORCED: Cr0 = Cr0::NE.union(Cr0::ET);
/// The CR4 bits that are set in the machine's register while a guest runs, whatever it reads: without MCE, a machine
/// check would shut the processor down.
pub const CR4_FORCED: Cr4 = Cr4::VMXE.union(Cr4::MCE);

/// Writes every field that never changes, or whose first value counts.
/// The guest's registers pass through `frame`.
pub fn setup(vmcs: &mut Current<'_>, shared: &Shared, vpid: u16, frame: &Frame) {
    let controls = &shared.controls;
    vmcs.write(field::PIN_BASED_CONTROLS, controls.pin);
    vmcs.write(field::PROCESSOR_BASED_CONTROLS, controls.processor);
    vmcs.write(field::SECONDARY_CONTROLS, controls.secondary);
    vmcs.write(field::EXIT_CONTROLS, controls.exit);
    vmcs.write(field::ENTRY_CONTROLS, controls.entry);
    vmcs.write(field::VIRTUAL_PROCESSOR_ID, vpid);
    vmcs.write(field::IO_BITMAP_A, shared.io_bitmap_a.hpa().0);
    vmcs.write(field::IO_BITMAP_B, shared.io_bitmap_b.hpa().0);
    vmcs.write(field::MSR_BITMAP, shared.msr_bitmap.hpa().0);
    // #AC and #DB can be made to recur in their own delivery without an instruction in between; seen here and injected,
    // each recurrence is an exit. #MC is the machine's. Everything else is the guest's own affair.
    vmcs.write(field::EXCEPTION_BITMAP, 1 << vector::AC | 1 << vector::DB | 1 << vector::MC);
    if controls.secondary & Secondary::ENCLS_EXITING.bits() != 0 {
        vmcs.write(field::ENCLS_EXITING_BITMAP, u64::MAX);
    }
    vmcs.write(field::PAGE_FAULT_ERROR_CODE_MASK, 0);
    vmcs.write(field::PAGE_FAULT_ERROR_CODE_MATCH, 0);
    vmcs.write(field::CR3_TARGET_COUNT, 0);
    vmcs.write(field::EXIT_MSR_STORE_COUNT, 0);
    vmcs.write(field::EXIT_MSR_LOAD_COUNT, 0);
    vmcs.write(field::ENTRY_MSR_LOAD_COUNT, 0);
    vmcs.write(field::ENTRY_INTERRUPTION_INFORMATION, 0);
    vmcs.write(field::CR0_GUEST_HOST_MASK, CR0_OWNED.bits());
    // All of CR4 until the run loop says what the guest may have.
    vmcs.write(field::CR4_GUEST_HOST_MASK, u64::MAX);
    host_state(vmcs);
    vmcs.write(field::HOST_RSP, frame.host_rsp());
    vmcs.write(field::HOST_RIP, frame.host_rip());
    guest_state(vmcs);
}

/// Host state: this processor as it is now, which never changes.
fn host_state(vmcs: &mut Current<'_>) {
    let selector = |s: x86_64::structures::gdt::SegmentSelector| s.0 & !7;
    vmcs.write(field::HOST_CS_SELECTOR, selector(CS::get_reg()));
    vmcs.write(field::HOST_SS_SELECTOR, selector(SS::get_reg()));
    vmcs.write(field::HOST_DS_SELECTOR, selector(DS::get_reg()));
    vmcs.write(field::HOST_ES_SELECTOR, selector(ES::get_reg()));
    vmcs.write(field::HOST_FS_SELECTOR, selector(FS::get_reg()));
    vmcs.write(field::HOST_GS_SELECTOR, selector(GS::get_reg()));
    let task = tr();
    vmcs.write(field::HOST_TR_SELECTOR, task.selector);
    vmcs.write(field::HOST_TR_BASE, task.base);
    vmcs.write(field::HOST_CR0, control::Cr0::read_raw());
    vmcs.write(field::HOST_CR3, control::Cr3::read_raw().0.start_address().as_u64());
    vmcs.write(field::HOST_CR4, control::Cr4::read_raw());
    vmcs.write(field::HOST_FS_BASE, FsBase::read().as_u64());
    vmcs.write(field::HOST_GS_BASE, GsBase::read().as_u64());
    vmcs.write(field::HOST_GDTR_BASE, sgdt().base.as_u64());
    vmcs.write(field::HOST_IDTR_BASE, sidt().base.as_u64());
    vmcs.write(field::HOST_SYSENTER_CS, 0);
    vmcs.write(field::HOST_SYSENTER_ESP, 0);
    vmcs.write(field::HOST_SYSENTER_EIP, 0);
    vmcs.write(field::HOST_EFER, control::Efer::read_raw());
    // SAFETY: every processor with VMX has IA32_PAT, and reading it changes nothing.
    vmcs.write(field::HOST_PAT, unsafe { Msr::new(lamina_arch::msr::IA32_PAT).read() });
}

/// Guest state after reset: real mode at 0xfffffff0.
fn guest_state(vmcs: &mut Current<'_>) {
    const DATA: u32 = 0x93;
    const CODE: u32 = 0x9b;
    use lamina_arch::segment::SegmentName::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};
    for name in [Es, Cs, Ss, Ds, Fs, Gs, Ldtr, Tr] {
        let (selector, base, limit, rights) = field::segment(name);
        let (is_code, kind) = match name {
            Cs => (true, CODE),
            Ldtr => (false, 0x82),
            Tr => (false, 0x8b),
            _ => (false, DATA),
        };
        vmcs.write(selector, if is_code { 0xf000 } else { 0 });
        vmcs.write(base, if is_code { 0xffff_0000 } else { 0 });
        vmcs.write(limit, 0xffff);
        vmcs.write(rights, kind);
    }
    vmcs.write(field::GUEST_GDTR_BASE, 0);
    vmcs.write(field::GUEST_GDTR_LIMIT, 0xffff);
    vmcs.write(field::GUEST_IDTR_BASE, 0);
    vmcs.write(field::GUEST_IDTR_LIMIT, 0xffff);
    let cr0 = Cr0::CD | Cr0::NW | Cr0::ET;
    vmcs.write(field::CR0_READ_SHADOW, cr0.bits());
    vmcs.write(field::GUEST_CR0, ((cr0 - CR0_OWNED) | CR0_FORCED).bits());
    vmcs.write(field::CR4_READ_SHADOW, 0);
    vmcs.write(field::GUEST_CR4, CR4_FORCED.bits());
    vmcs.write(field::GUEST_CR3, 0);
    vmcs.write(field::GUEST_EFER, 0);
    vmcs.write(field::GUEST_PAT, 0x0007_0406_0007_0406);
    vmcs.write(field::GUEST_DR7, 0x400);
    vmcs.write(field::GUEST_DEBUGCTL, 0);
    vmcs.write(field::GUEST_RSP, 0);
    vmcs.write(field::GUEST_RIP, 0xfff0);
    vmcs.write(field::GUEST_RFLAGS, 2);
    vmcs.write(field::GUEST_SYSENTER_CS, 0);
    vmcs.write(field::GUEST_SYSENTER_ESP, 0);
    vmcs.write(field::GUEST_SYSENTER_EIP, 0);
    vmcs.write(field::GUEST_INTERRUPTIBILITY, 0);
    vmcs.write(field::GUEST_ACTIVITY, 0);
    vmcs.write(field::GUEST_PENDING_DEBUG, 0);
    vmcs.write(field::VMCS_LINK_POINTER, u64::MAX);
    for pdpte in [field::GUEST_PDPTE0, field::GUEST_PDPTE1, field::GUEST_PDPTE2, field::GUEST_PDPTE3] {
        vmcs.write(pdpte, 0);
    }
    vmcs.write(field::TSC_OFFSET, 0);
}
