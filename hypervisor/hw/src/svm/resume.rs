//! Before an entry: what the VMCB gets that belongs to this entry alone.

use lamina_arch::event::Event;
use lamina_arch::svm::event;
use lamina_arch::svm::vmcb::{self, Vmcb, interrupt_control};

/// What an entry is to do besides running the guest.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// To be injected.
    pub event: Option<Event>,
    /// Exit as soon as the guest can take an interrupt.
    pub interrupt_window: bool,
    /// One of `tlb_control`.
    pub flush: u8,
}

/// Virtual interrupts: the guest's IF never masks the machine's; a pending one exits as soon as it could be taken.
const NO_WINDOW: u32 = interrupt_control::V_INTR_MASKING;
const WINDOW: u32 =
    NO_WINDOW | interrupt_control::V_IRQ | interrupt_control::V_INTR_PRIO_HIGHEST | interrupt_control::V_IGN_TPR;

/// Writes what `entry` asks for; the clean bits of what stays as it was are kept.
pub fn resume(vmcb: &mut Vmcb, entry: &Entry) {
    vmcb.write(vmcb::EVENTINJ, entry.event.as_ref().map_or(0, event::encode));
    if entry.event.is_some() {
        // Its delivery ends the shadow.
        vmcb.write(vmcb::INTERRUPT_STATE, 0);
    }
    vmcb.write(vmcb::TLB_CONTROL, entry.flush);
    let control = if entry.interrupt_window { WINDOW } else { NO_WINDOW };
    if vmcb.read(vmcb::INTERRUPT_CONTROL) != control {
        vmcb.write(vmcb::INTERRUPT_CONTROL, control);
    }
}
