//! Interrupt lines between the devices, the controllers and the processor.
//!
//! An ISA line drives its input of the 8259 pair and its pin of the I/O APIC at once (interrupt 0: pin 2). PCI's four lines
//! have pins of the I/O APIC of their own, and drive the ISA lines that the ISA bridge's registers route them to.

use super::Pc;
use crate::lapic::Effect;
use lamina_vmm::chipset::{Attention, Extras};
use lamina_vmm::layout;

/// ISA interrupts that are level-triggered: ACPI's, and PCI's where no firmware will see to it.
pub(super) fn level_triggered(extras: &Extras) -> u16 {
    let pci = if extras.firmware.is_some() { &[][..] } else { &layout::PIRQ_ISA_IRQS };
    pci.iter().fold(1 << layout::SCI_IRQ, |all, irq| all | 1 << irq)
}

impl Pc {
    /// A rising edge of an ISA interrupt line, even where the one before was not seen to fall.
    pub(super) fn pulse(&mut self, irq: u8) {
        self.drive(irq, false);
        self.drive(irq, true);
    }

    /// Sets the level of an ISA interrupt line.
    pub(super) fn drive(&mut self, irq: u8, high: bool) {
        let bit = 1u16 << (irq & 15);
        if (self.lines & bit != 0) == high {
            return;
        }
        self.lines ^= bit;
        self.line_changed(irq);
    }

    /// Passes the level of an ISA interrupt line on to both controllers.
    fn line_changed(&mut self, irq: u8) {
        let high = (self.lines | self.routed) >> (irq & 15) & 1 != 0;
        self.pic.set_line(irq, high);
        let pin = if irq == layout::PIT_IRQ { layout::PIT_GSI } else { irq };
        self.ioapic.set_line(pin, high);
        self.deliver();
    }

    /// Asserts interrupt pin `pin` (0: INTA#) of the PCI device in `slot`, or takes it back.
    pub fn set_intx(&mut self, slot: u8, pin: u8, asserted: bool) {
        let pins = &mut self.intx[usize::from(slot & 31)];
        let bit = 1 << (pin & 3);
        *pins = if asserted { *pins | bit } else { *pins & !bit };
        self.intx_changed();
    }

    /// Brings PCI's interrupt lines to the I/O APIC and, as they are routed, to ISA's. An asserted line is low.
    pub(super) fn intx_changed(&mut self) {
        let mut lines = [false; 4];
        for (slot, pins) in (0..).zip(self.intx) {
            for pin in 0..4 {
                lines[usize::from(layout::pirq(slot, pin))] |= pins >> pin & 1 != 0;
            }
        }
        let mut routed = 0;
        for (line, asserted) in (0..).zip(lines) {
            self.ioapic.set_line(layout::PIRQ_GSI + line, !asserted);
            if asserted && let Some(irq) = self.pci.route(line) {
                routed |= 1 << (irq & 15);
            }
        }
        let changed = core::mem::replace(&mut self.routed, routed) ^ routed;
        (0..16).filter(|irq| changed >> irq & 1 != 0).for_each(|irq| self.line_changed(irq));
        self.deliver();
    }

    /// Carries out what a write to the local APIC asks of the I/O APIC.
    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            // The I/O APIC and the pair of 8259s have nothing to do with it.
            Effect::None => return self.update_attention(),
            Effect::Eoi(vector) => self.ioapic.eoi(vector),
            Effect::Accepting => self.ioapic.resend(),
        }
        self.deliver();
    }

    /// Moves what waits between the interrupt controllers, and sees whether the processor is to be interrupted.
    pub(super) fn deliver(&mut self) {
        while let Some(message) = self.ioapic.take_message() {
            if self.lapic.accept(&message) {
                self.ioapic.accepted(&message);
            }
        }
        self.lapic.set_lint0(self.pic.intr());
        self.update_attention();
    }

    /// Sees whether the processor is to be interrupted.
    pub(super) fn update_attention(&mut self) {
        self.external = self.pic.intr() && self.extint_passes();
        self.apic_interrupts_changed();
    }

    /// The same where nothing has changed but what the local APIC itself requests, or has in service.
    #[inline]
    pub(super) fn apic_interrupts_changed(&mut self) {
        let own = !self.lapic.is_virtualized() && self.lapic.deliverable().is_some();
        self.attention = if own || self.external { Attention::INTERRUPT } else { Attention::empty() };
        if self.lapic.has_changed() {
            self.attention |= Attention::APIC;
        }
    }

    /// Whether the 8259's output reaches the processor.
    pub(super) fn extint_passes(&self) -> bool {
        self.lapic.passes_extint() || (self.ioapic.extint_enabled() && self.lapic.accepts_messages())
    }
}
