//! The local APIC under a processor that virtualizes it (Intel SDM vol. 3, "APIC Virtualization and Virtual Interrupts").
//!
//! Owns when that is, and that the page shows what the guest is to read there by itself. What the processor does with
//! the registers is its own: interrupts are requested here and delivered by it.

use super::{Effect, Lapic, VERSION, register};
use alloc::sync::Arc;
use lamina_arch::time::Tsc;
use lamina_vmm::apic::{ApicMode, ApicPage};
use lamina_vmm::layout;

impl Lapic {
    /// Gives the registers to a processor that virtualizes the APIC from now on.
    pub fn virtualize(&mut self) -> Arc<ApicPage> {
        self.given = true;
        self.changed = true;
        self.settle();
        self.registers.page()
    }

    /// Whether a processor delivers the interrupts.
    pub fn is_virtualized(&self) -> bool {
        self.mode != ApicMode::Off
    }

    /// Whether a processor has the registers and does not know of the latest change.
    pub const fn has_changed(&self) -> bool {
        self.changed
    }

    /// Takes the change: how the APIC is to be virtualized now.
    pub const fn take_change(&mut self) -> Option<ApicMode> {
        let changed = self.changed;
        self.changed = false;
        if changed { Some(self.mode) } else { None }
    }

    /// The guest has written the register at `offset` of the page by itself, and its value is there: what it does is done
    /// now, and the page shows what the register is then.
    pub fn written(&mut self, now: Tsc, offset: u16) -> Effect {
        let number = u32::from(offset >> 4);
        let value = self.registers.read(number);
        let effect = if self.x2apic() {
            // A fault would have been the guest's before it wrote.
            self.write_x2apic(now, number, value.into()).unwrap_or(Effect::None)
        } else {
            self.write_memory(now, number, value)
        };
        self.settle();
        effect
    }

    /// The processor has ended interrupt `vector`: whether an I/O APIC is to be told.
    pub fn ended(&self, vector: u8) -> Effect {
        if self.tmr.contains(&self.registers, vector) { Effect::Eoi(vector) } else { Effect::None }
    }

    /// Behind every write to a register: sees whether the APIC is still to be virtualized as it was, and shows the
    /// registers. One that software has disabled is not: it takes no messages, and the processor does not know. Nor is one
    /// whose registers were moved: the page that stands for them in the guest's memory has one place.
    pub(super) fn settle(&mut self) {
        if !self.given {
            return;
        }
        let mode = match (self.accepts_messages(), self.x2apic()) {
            (true, true) => ApicMode::X2apic,
            (true, false) if self.address == layout::LAPIC => ApicMode::Xapic,
            _ => ApicMode::Off,
        };
        if mode != self.mode {
            self.mode = mode;
            self.changed = true;
            let shared = self.is_virtualized();
            self.irr.share(&self.registers, shared);
            self.isr.share(&self.registers, shared);
        }
        if self.is_virtualized() {
            self.show();
        }
    }

    /// Writes to the page what the guest is to read of the registers that are not kept there. The processor priority and
    /// the current count are not among them: the one is the processor's, the other is never read without an exit.
    fn show(&self) {
        let id = if self.x2apic() { self.id.into() } else { u32::from(self.id) << 24 };
        for (number, value) in [
            (register::ID, id),
            (register::VERSION, VERSION),
            (register::EOI, 0),
            (register::LDR, self.logical_id()),
            (register::DFR, self.dfr),
            (register::SVR, self.svr),
            (register::ESR, self.esr.bits()),
            (register::INITIAL_COUNT, self.timer.initial()),
            (register::DIVIDE, self.timer.divide()),
        ] {
            self.registers.write(number, value);
        }
        for (number, entry) in (register::LVT_TIMER..).zip(self.lvt) {
            self.registers.write(number, entry);
        }
    }
}

#[cfg(test)]
#[path = "virtualized_tests.rs"]
mod tests;
