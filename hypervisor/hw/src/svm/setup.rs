//! A VMCB from nothing: intercepts, and the guest as after reset (APM vol. 2, "Initial Processor State").

use lamina_arch::cr::{Cr0, Efer};
use lamina_arch::event::vector;
use lamina_arch::segment::{AccessRights, SegmentName};
use lamina_arch::svm::intercept::{First, Second, Third, control_register};
use lamina_arch::svm::segment::attributes;
use lamina_arch::svm::vmcb::{self, Vmcb};

use super::enable::Shared;
use super::read_shadow::ReadShadow;

/// The EFER bits that are set while a guest runs, whatever it reads.
pub const EFER_FORCED: Efer = Efer::SVME;

/// Writes every field that never changes, or whose first value counts. Returns what the guest reads otherwise.
pub fn setup(vmcb: &mut Vmcb, shared: &Shared, asid: u32) -> ReadShadow {
    // CR0: only what is more than TS and MP, and what `read_shadow` adds. CR3 is the guest's own affair. CR8 is the
    // chipset's.
    vmcb.write(vmcb::CR_READ_INTERCEPTS, control_register(8));
    vmcb.write(vmcb::CR_WRITE_INTERCEPTS, control_register(4) | control_register(8));
    // #AC and #DB can be made to recur in their own delivery without an instruction in between; seen here and injected,
    // each recurrence is an exit. #MC is the machine's. Everything else is the guest's own affair.
    vmcb.write(vmcb::EXCEPTION_INTERCEPTS, 1 << vector::AC | 1 << vector::DB | 1 << vector::MC);
    let first = First::INTR
        | First::NMI
        | First::VINTR
        | First::CR0_SELECTIVE_WRITE
        | First::RDPMC
        | First::CPUID
        | First::RSM
        | First::INVD
        | First::HLT
        | First::INVLPGA
        | First::IO
        | First::MSR
        | First::SHUTDOWN;
    vmcb.write(vmcb::FIRST_INTERCEPTS, first.bits());
    // All of them but INVPCID: a guest has no SVM, MONITOR or RDPRU; the caches and XCR0 are seen to by the run loop.
    vmcb.write(vmcb::SECOND_INTERCEPTS, Second::all().bits());
    vmcb.write(vmcb::THIRD_INTERCEPTS, (Third::all() - Third::INVPCID).bits());
    vmcb.write(vmcb::IOPM_BASE_PA, shared.io_map.hpa().0);
    vmcb.write(vmcb::MSRPM_BASE_PA, shared.msr_map.hpa().0);
    vmcb.write(vmcb::GUEST_ASID, asid);
    vmcb.write(vmcb::NESTED_CONTROL, vmcb::NESTED_PAGING);
    guest_state(vmcb)
}

/// Guest state after reset: real mode at 0xfffffff0.
fn guest_state(vmcb: &mut Vmcb) -> ReadShadow {
    use SegmentName::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};
    for name in [Es, Cs, Ss, Ds, Fs, Gs, Ldtr, Tr] {
        let (selector, attribute, limit, base) = vmcb::segment(name);
        let is_code = name == Cs;
        let rights = match name {
            Cs => AccessRights(0x9b),
            Ldtr => AccessRights::LDT,
            Tr => AccessRights::TSS_BUSY,
            _ => AccessRights(0x93),
        };
        vmcb.write(selector, if is_code { 0xf000 } else { 0 });
        vmcb.write(base, if is_code { 0xffff_0000 } else { 0 });
        vmcb.write(limit, 0xffff);
        vmcb.write(attribute, attributes(rights));
    }
    vmcb.write(vmcb::GDTR_LIMIT, 0xffff);
    vmcb.write(vmcb::IDTR_LIMIT, 0xffff);
    vmcb.write(vmcb::EFER, EFER_FORCED.bits());
    vmcb.write(vmcb::G_PAT, 0x0007_0406_0007_0406);
    vmcb.write(vmcb::DR6, 0xffff_0ff0);
    vmcb.write(vmcb::DR7, 0x400);
    vmcb.write(vmcb::RIP, 0xfff0);
    vmcb.write(vmcb::RFLAGS, 2);
    let mut shadow = ReadShadow::default();
    shadow.set_cr0(vmcb, (Cr0::CD | Cr0::NW | Cr0::ET).bits());
    shadow.set_cr4(vmcb, 0);
    shadow
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_arch::svm::features::Capabilities;
    use lamina_arch::svm::rules;

    #[test]
    fn the_state_after_reset_breaks_no_rule() {
        let mut vmcb = Vmcb::new();
        vmcb.write(vmcb::SECOND_INTERCEPTS, Second::all().bits());
        vmcb.write(vmcb::GUEST_ASID, 1);
        vmcb.write(vmcb::NESTED_CONTROL, vmcb::NESTED_PAGING);
        guest_state(&mut vmcb);
        let capabilities = Capabilities::of([1, 16, 0, 1], 40);
        rules::check(&vmcb, &capabilities, &mut |violation| panic!("{violation:?}"));
    }
}
