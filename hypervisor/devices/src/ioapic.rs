//! The I/O APIC (Intel 82093AA, "I/O Advanced Programmable Interrupt Controller").
//!
//! Owns the index register, the redirection table, the levels of the 24 inputs and which of them have a message to
//! send. Whether a local APIC takes a message is not known here: the caller fetches each with
//! [`IoApic::take_message`] and reports back with [`IoApic::accepted`].

use lamina_vmm::fault::{self, Site};

/// Inputs.
pub const PINS: u8 = 24;
const ALL_PINS: u32 = (1 << PINS) - 1;
/// Version 0x11, and the number of the last redirection entry.
const VERSION: u32 = 0x11 | (PINS as u32 - 1) << 16;
const ID_MASK: u32 = 0x0f00_0000;
const ENTRY_LOGICAL: u64 = 1 << 11;
const ENTRY_ACTIVE_LOW: u64 = 1 << 13;
const ENTRY_REMOTE_IRR: u64 = 1 << 14;
const ENTRY_LEVEL: u64 = 1 << 15;
const ENTRY_MASKED: u64 = 1 << 16;
/// Vector, delivery mode, destination mode, polarity, trigger mode, mask, destination. The delivery status always
/// reads idle: a message goes out at once.
const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_afff;

/// What an interrupt message asks of its destination (Intel SDM vol. 3, "Delivery Mode" of the ICR and of the I/O
/// APIC's redirection entries alike).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, at every destination.
    Fixed,
    /// The vector, at the destination of the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// Initialization.
    Init,
    /// The vector comes from an 8259.
    ExtInt,
    /// An encoding without a meaning here.
    Reserved,
}

impl DeliveryMode {
    /// From bits 10:8 of a register.
    pub const fn from_bits(bits: u64) -> DeliveryMode {
        match bits & 7 {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            2 => DeliveryMode::Smi,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            7 => DeliveryMode::ExtInt,
            _ => DeliveryMode::Reserved,
        }
    }
}

/// A message to the local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The input that it comes from.
    pub pin: u8,
    /// The interrupt vector.
    pub vector: u8,
    /// What it asks.
    pub mode: DeliveryMode,
    /// The destination is a logical one.
    pub logical: bool,
    /// Level-triggered: to be taken back by an EOI.
    pub level: bool,
    /// The destination field.
    pub destination: u8,
}

/// The I/O APIC.
#[derive(Clone, Debug, PartialEq)]
pub struct IoApic {
    id: u32,
    index: u8,
    entries: [u64; PINS as usize],
    /// Levels of the inputs as driven, before polarity.
    lines: u32,
    /// Inputs with a message to send.
    to_send: u32,
}

impl IoApic {
    /// As after reset: everything masked.
    pub const fn new() -> IoApic {
        IoApic { id: 0, index: 0, entries: [ENTRY_MASKED; PINS as usize], lines: 0, to_send: 0 }
    }

    /// Whether an input that is not masked is delivered as an NMI.
    pub fn has_nmi_input(&self) -> bool {
        self.entries
            .iter()
            .any(|entry| entry & ENTRY_MASKED == 0 && DeliveryMode::from_bits(entry >> 8) == DeliveryMode::Nmi)
    }

    /// Reads `data.len()` bytes from `offset` in the page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        fault::point(Site::IoApicRead);
        let value = match offset & !3 {
            0x00 => u32::from(self.index),
            0x10 => self.read_window(),
            _ => 0,
        };
        for (n, byte) in ((offset & 3)..).zip(data) {
            *byte = if n < 4 { (value >> (8 * n) & 0xff) as u8 } else { 0 };
        }
    }

    /// Writes to `offset` in the page. The window takes doublewords only.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        fault::point(Site::IoApicWrite);
        match (offset, data) {
            (0x00, [index, ..]) => self.index = *index,
            (0x10, [a, b, c, d, ..]) => self.write_window(u32::from_le_bytes([*a, *b, *c, *d])),
            _ => {}
        }
    }

    /// Sets the level of input `pin`; one that does not exist is ignored.
    pub fn set_line(&mut self, pin: u8, high: bool) {
        if pin >= PINS {
            return;
        }
        let bit = 1 << pin;
        let was_active = self.active(pin);
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
        let entry = self.entry(pin);
        if entry & ENTRY_LEVEL != 0 {
            self.update_level(pin);
        } else if self.active(pin) && !was_active && entry & ENTRY_MASKED == 0 {
            // An edge at a masked input is lost (82093AA, "Interrupt Mask").
            self.to_send |= bit;
        }
    }

    /// The next message to deliver. Whether it was accepted is told by [`IoApic::accepted`].
    pub fn take_message(&mut self) -> Option<Message> {
        loop {
            let pin = u8::try_from(self.to_send.trailing_zeros()).unwrap_or(PINS);
            if pin >= PINS {
                return None;
            }
            self.to_send &= !(1 << pin);
            let entry = self.entry(pin);
            let mode = DeliveryMode::from_bits(entry >> 8);
            // ExtINT is no message that waits: the 8259's output stands behind it, see `extint_enabled`.
            if mode == DeliveryMode::ExtInt {
                continue;
            }
            return Some(Message {
                pin,
                vector: (entry & 0xff) as u8,
                mode,
                logical: entry & ENTRY_LOGICAL != 0,
                level: entry & ENTRY_LEVEL != 0,
                destination: (entry >> 56 & 0xff) as u8,
            });
        }
    }

    /// A local APIC accepted `message`; a level-triggered one is not sent again before its EOI.
    pub fn accepted(&mut self, message: &Message) {
        let sets_remote_irr = matches!(message.mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if message.level
            && sets_remote_irr
            && let Some(entry) = self.entries.get_mut(usize::from(message.pin))
        {
            *entry |= ENTRY_REMOTE_IRR;
        }
    }

    /// A local APIC's EOI for `vector`: inputs that are still active send again.
    pub fn eoi(&mut self, vector: u8) {
        for pin in 0..PINS {
            let entry = self.entry(pin);
            if entry & 0xff == u64::from(vector) && entry & ENTRY_REMOTE_IRR != 0 {
                self.set_entry(pin, entry & !ENTRY_REMOTE_IRR);
                self.update_level(pin);
            }
        }
    }

    /// Offers the messages of active level-triggered inputs again, after a local APIC may have begun to accept them.
    pub fn resend(&mut self) {
        for pin in 0..PINS {
            self.update_level(pin);
        }
    }

    /// Whether input 0, where the 8259's output arrives, passes it on as ExtINT.
    pub fn extint_enabled(&self) -> bool {
        let entry = self.entry(0);
        entry & ENTRY_MASKED == 0 && DeliveryMode::from_bits(entry >> 8) == DeliveryMode::ExtInt
    }

    fn entry(&self, pin: u8) -> u64 {
        self.entries.get(usize::from(pin)).copied().unwrap_or(ENTRY_MASKED)
    }

    fn set_entry(&mut self, pin: u8, entry: u64) {
        if let Some(place) = self.entries.get_mut(usize::from(pin)) {
            *place = entry;
        }
    }

    fn active(&self, pin: u8) -> bool {
        let high = self.lines & ALL_PINS & (1 << pin) != 0;
        high != (self.entry(pin) & ENTRY_ACTIVE_LOW != 0)
    }

    /// Whether a level-triggered input has a message to send.
    fn update_level(&mut self, pin: u8) {
        let entry = self.entry(pin);
        if entry & ENTRY_LEVEL == 0 {
            return;
        }
        if self.active(pin) && entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR) == 0 {
            self.to_send |= 1 << pin;
        } else {
            self.to_send &= !(1 << pin);
        }
    }

    /// Input and half (1: high) of the redirection entry that the index selects.
    fn selected_entry(&self) -> Option<(u8, bool)> {
        let at = self.index.checked_sub(0x10)?;
        (at < 2 * PINS).then_some((at / 2, at & 1 != 0))
    }

    fn read_window(&self) -> u32 {
        match (self.index, self.selected_entry()) {
            (_, Some((pin, high))) => {
                let entry = self.entry(pin);
                if high { (entry >> 32) as u32 } else { (entry & 0xffff_ffff) as u32 }
            }
            // The arbitration ID follows the ID.
            (0x00 | 0x02, _) => self.id,
            (0x01, _) => VERSION,
            _ => 0,
        }
    }

    fn write_window(&mut self, value: u32) {
        if let Some((pin, high)) = self.selected_entry() {
            self.write_entry(pin, high, value);
        } else if self.index == 0 {
            self.id = value & ID_MASK;
        }
    }

    fn write_entry(&mut self, pin: u8, high: bool, value: u32) {
        let old = self.entry(pin);
        let written =
            if high { old & 0xffff_ffff | u64::from(value) << 32 } else { old & !0xffff_ffff | u64::from(value) };
        let mut entry = written & ENTRY_WRITABLE | old & ENTRY_REMOTE_IRR;
        if entry & ENTRY_LEVEL == 0 {
            // Drivers end a level-triggered interrupt this way where there is no EOI register (version below 0x20).
            entry &= !ENTRY_REMOTE_IRR;
            self.to_send &= !(1 << pin);
        }
        self.set_entry(pin, entry);
        self.update_level(pin);
    }
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
#[path = "ioapic_tests.rs"]
mod tests;
