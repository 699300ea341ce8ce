//! Before an entry: what the VMCB gets that belongs to this entry alone.
//!
//! There are two ways to give a guest an interrupt. EVENTINJ delivers it at VMRUN, whatever the guest's state. A virtual
//! interrupt (V_IRQ) is taken by the guest as a processor takes one, and is still pending at the exit where it was not
//! (APM vol. 2, "Injecting Virtual (INTR) Interrupts"). The first is the usual one. QEMU's emulation (7.2) delivers what is
//! injected so a second time, the guest's IF or not, where its own clock or another thread of it interrupts it between
//! VMRUN and the guest's next exit: a guest so interrupted takes a spin lock that it holds, and stands still. There, an
//! interrupt that the guest would take at once is a virtual one.

use lamina_arch::cr::Rflags;
use lamina_arch::event::{Event, EventKind};
use lamina_arch::svm::event;
use lamina_arch::svm::intercept::First;
use lamina_arch::svm::vmcb::{self, Vmcb, interrupt_control};

/// What an entry is to do besides running the guest.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// To be injected.
    pub event: Option<Event>,
    /// Exit as soon as the guest can take an interrupt.
    pub interrupt_window: bool,
    /// Exit as soon as `event` is delivered: an interrupt of the machine's is on its way for that.
    pub at_once: bool,
    /// What EVENTINJ injects may be delivered twice.
    pub injects_twice: bool,
    /// One of `tlb_control`.
    pub flush: u8,
}

/// Virtual interrupts: the guest's IF never masks the machine's; a pending one is taken, or exits, as soon as it can be.
const NONE_PENDING: u32 = interrupt_control::V_INTR_MASKING;
const PENDING: u32 =
    NONE_PENDING | interrupt_control::V_IRQ | interrupt_control::V_INTR_PRIO_HIGHEST | interrupt_control::V_IGN_TPR;

/// Writes what `entry` asks for; the clean bits of what stays as it was are kept. Returns the event where it is a virtual
/// interrupt now: see [`undelivered`].
pub fn resume(vmcb: &mut Vmcb, entry: &Entry) -> Option<Event> {
    let virtual_interrupt = entry.event.filter(|event| is_virtual(vmcb, event, entry));
    let injected = if virtual_interrupt.is_some() { None } else { entry.event };
    vmcb.write(vmcb::EVENTINJ, injected.as_ref().map_or(0, event::encode));
    if entry.event.is_some() {
        // Its delivery ends the shadow.
        vmcb.write(vmcb::INTERRUPT_STATE, 0);
    }
    vmcb.write(vmcb::TLB_CONTROL, entry.flush);
    let control = if entry.interrupt_window || virtual_interrupt.is_some() { PENDING } else { NONE_PENDING };
    if vmcb.read(vmcb::INTERRUPT_CONTROL) != control {
        vmcb.write(vmcb::INTERRUPT_CONTROL, control);
    }
    if let Some(event) = virtual_interrupt {
        vmcb.write(vmcb::INTERRUPT_VECTOR, event.vector.into());
    }
    // What is pending is a window, or to be taken; with neither the intercept does nothing.
    if control == PENDING {
        intercept_interrupt(vmcb, entry.interrupt_window);
    }
    virtual_interrupt
}

/// Whether `event` is better a virtual interrupt, and the guest would take it at once as that. Not where one is pending for a window, where
/// something else than the guest's own state keeps it waiting, and where the machine's interrupt, which goes first, would
/// come before it every time.
fn is_virtual(vmcb: &Vmcb, event: &Event, entry: &Entry) -> bool {
    entry.injects_twice
        && event.kind == EventKind::External
        && !entry.interrupt_window
        && !entry.at_once
        && vmcb.read(vmcb::RFLAGS) & Rflags::IF.bits() != 0
}

/// After an exit: whether the virtual interrupt that [`resume`] made is still pending. The exit then came before its
/// delivery was over, as where EXITINTINFO says so.
pub fn undelivered(vmcb: &Vmcb) -> bool {
    vmcb.read(vmcb::INTERRUPT_CONTROL) & interrupt_control::V_IRQ != 0
}

/// Whether a virtual interrupt exits instead of being taken.
fn intercept_interrupt(vmcb: &mut Vmcb, on: bool) {
    let mut intercepts = First::from_bits_retain(vmcb.read(vmcb::FIRST_INTERCEPTS));
    if intercepts.contains(First::VINTR) != on {
        intercepts.set(First::VINTR, on);
        vmcb.write(vmcb::FIRST_INTERCEPTS, intercepts.bits());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Entry =
        Entry { event: None, interrupt_window: false, at_once: false, injects_twice: true, flush: 0 };

    fn guest(flags: u64) -> Vmcb {
        let mut vmcb = Vmcb::new();
        vmcb.write(vmcb::RFLAGS, flags);
        vmcb.write(vmcb::FIRST_INTERCEPTS, First::VINTR.bits());
        vmcb
    }

    fn intercepts(vmcb: &Vmcb) -> bool {
        vmcb.read(vmcb::FIRST_INTERCEPTS) & First::VINTR.bits() != 0
    }

    #[test]
    fn an_interrupt_is_pending_until_the_guest_takes_it() {
        let mut vmcb = guest(0x202);
        vmcb.write(vmcb::INTERRUPT_STATE, vmcb::INTERRUPT_SHADOW);
        let interrupt = Event::external(0x31);
        assert_eq!(resume(&mut vmcb, &Entry { event: Some(interrupt), ..NOTHING }), Some(interrupt));
        assert_eq!((vmcb.read(vmcb::EVENTINJ), vmcb.read(vmcb::INTERRUPT_VECTOR)), (0, 0x31));
        assert_eq!((vmcb.read(vmcb::INTERRUPT_CONTROL), vmcb.read(vmcb::INTERRUPT_STATE)), (PENDING, 0));
        assert!(!intercepts(&vmcb) && undelivered(&vmcb));
        // The processor has taken it.
        vmcb.write(vmcb::INTERRUPT_CONTROL, PENDING & !interrupt_control::V_IRQ);
        assert!(!undelivered(&vmcb));
        assert_eq!(resume(&mut vmcb, &NOTHING), None);
        assert_eq!(vmcb.read(vmcb::INTERRUPT_CONTROL), NONE_PENDING);
        // The next that waits is a window again.
        assert_eq!(resume(&mut vmcb, &Entry { interrupt_window: true, ..NOTHING }), None);
        assert!(intercepts(&vmcb));
        assert_eq!(vmcb.read(vmcb::INTERRUPT_CONTROL), PENDING);
    }

    #[test]
    fn what_a_virtual_interrupt_cannot_do_is_injected() {
        let (interrupt, fault) = (Event::external(0x31), Event::exception(14, Some(2)));
        for (flags, entry) in [
            (0x202, Entry { event: Some(fault), ..NOTHING }),
            (0x202, Entry { event: Some(interrupt), interrupt_window: true, ..NOTHING }),
            (0x202, Entry { event: Some(interrupt), at_once: true, ..NOTHING }),
            (0x002, Entry { event: Some(interrupt), ..NOTHING }),
            (0x202, Entry { event: Some(interrupt), injects_twice: false, ..NOTHING }),
        ] {
            let mut vmcb = guest(flags);
            assert_eq!(resume(&mut vmcb, &entry), None, "{entry:?}");
            assert_eq!(Some(vmcb.read(vmcb::EVENTINJ)), entry.event.as_ref().map(event::encode));
            assert_eq!(vmcb.read(vmcb::INTERRUPT_CONTROL) == PENDING, entry.interrupt_window);
            assert!(intercepts(&vmcb));
        }
    }

    #[test]
    fn an_entry_that_asks_for_nothing_new_takes_no_clean_bit_back() {
        let mut vmcb = guest(0x202);
        resume(&mut vmcb, &NOTHING);
        vmcb.set_clean();
        let before = vmcb.clone();
        resume(&mut vmcb, &NOTHING);
        assert!(vmcb == before);
    }
}
