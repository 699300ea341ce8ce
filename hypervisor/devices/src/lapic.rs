//! The local APIC in both its modes (Intel SDM vol. 3, "Advanced Programmable Interrupt Controller (APIC)").
//!
//! Owns its registers, the MSRs IA32_APIC_BASE and IA32_TSC_DEADLINE, and which interrupt the processor takes next.
//! Knows of one processor: messages to others reach nobody. INIT, SMI and start-up messages have no effect.
//!
//! A processor that virtualizes the APIC is given the page that the registers are in. While it does, the guest reads that
//! page, so that it shows every register; the processor changes the task priority, the interrupt command and what is
//! requested and in service, and delivers interrupts itself. Whatever else is written there comes here behind the fact.
//!
//! The registers can be moved within the hole for devices below 4 GiB; elsewhere is refused with #GP. Suppression of EOI
//! broadcasts and the CMCI entry of the LVT are not offered, and remote read is answered with 0.

mod msrs;
mod registers;
mod timer;
mod vectors;
mod virtualized;

use crate::ioapic::{DeliveryMode, Message};
use bitflags::bitflags;
use lamina_arch::addr::{Gpa, PAGE_4K};
use lamina_arch::event::GuestFault;
use lamina_arch::time::{Frequency, Tsc};
use lamina_vmm::apic::ApicMode;
use lamina_vmm::fault::{self, Site};
use lamina_vmm::layout;
use registers::Registers;
use timer::{Mode, Timer};
use vectors::Vectors;

bitflags! {
    /// IA32_APIC_BASE without the address.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Base: u64 {
        const BSP = 1 << 8;
        const EXTD = 1 << 10;
        const EN = 1 << 11;
    }

    /// Error status register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Esr: u32 {
        const SEND_ILLEGAL_VECTOR = 1 << 5;
        const RECEIVE_ILLEGAL_VECTOR = 1 << 6;
        const ILLEGAL_REGISTER = 1 << 7;
    }
}

/// Registers by their number: offset in the page divided by 16, or MSR less 0x800.
mod register {
    pub(super) const ID: u32 = 0x02;
    pub(super) const VERSION: u32 = 0x03;
    pub(super) const TPR: u32 = 0x08;
    pub(super) const PPR: u32 = 0x0a;
    pub(super) const EOI: u32 = 0x0b;
    pub(super) const RRD: u32 = 0x0c;
    pub(super) const LDR: u32 = 0x0d;
    pub(super) const DFR: u32 = 0x0e;
    pub(super) const SVR: u32 = 0x0f;
    pub(super) const ISR: u32 = 0x10;
    pub(super) const TMR: u32 = 0x18;
    pub(super) const IRR: u32 = 0x20;
    pub(super) const ESR: u32 = 0x28;
    pub(super) const ICR: u32 = 0x30;
    pub(super) const ICR_HIGH: u32 = 0x31;
    pub(super) const LVT_TIMER: u32 = 0x32;
    pub(super) const LVT_ERROR: u32 = 0x37;
    pub(super) const INITIAL_COUNT: u32 = 0x38;
    pub(super) const CURRENT_COUNT: u32 = 0x39;
    pub(super) const DIVIDE: u32 = 0x3e;
    pub(super) const SELF_IPI: u32 = 0x3f;
}

/// Version 0x14 with six LVT entries.
const VERSION: u32 = 0x14 | 5 << 16;
const SVR_ENABLED: u32 = 1 << 8;
/// Vector, enable, focus checking.
const SVR_WRITABLE: u32 = 0x3ff;
const LVT_MASKED: u32 = 1 << 16;
const TIMER: usize = 0;
const LINT0: usize = 3;
const LINT1: usize = 4;
const ERROR: usize = 5;
/// Writable bits of timer, thermal, performance, LINT0, LINT1 and error entry.
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
/// Vector, delivery mode, destination mode, level, trigger mode, shorthand.
const ICR_WRITABLE: u32 = 0x000c_cfff;
const DFR_FLAT: u32 = 0xffff_ffff;

/// What a write asks of the rest of the chipset.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// An EOI of a level-triggered interrupt, to be told to the I/O APIC.
    Eoi(u8),
    /// Messages that were refused so far may be accepted now.
    Accepting,
}

/// A local APIC.
#[derive(Clone, Debug, PartialEq)]
pub struct Lapic {
    id: u8,
    tsc: Frequency,
    base: Base,
    /// Where the registers are. A multiple of 4 KiB.
    address: Gpa,
    /// Task priority, interrupt command, and what the three sets of vectors below are in.
    registers: Registers,
    svr: u32,
    /// Logical ID, in bits 31:24. Only the xAPIC's; the x2APIC derives its own.
    ldr: u32,
    dfr: u32,
    /// Errors as last latched, and those since.
    esr: Esr,
    errors: Esr,
    lvt: [u32; 6],
    irr: Vectors<{ register::IRR }>,
    isr: Vectors<{ register::ISR }>,
    tmr: Vectors<{ register::TMR }>,
    /// A processor has the registers, and virtualizes the APIC wherever it is enabled.
    given: bool,
    /// How it does now.
    mode: ApicMode,
    /// Something has changed that it goes by.
    changed: bool,
    timer: Timer,
    lint0: bool,
    nmi: bool,
}

impl Lapic {
    /// The boot processor's local APIC as firmware leaves it, in virtual wire mode: software-enabled, with the 8259's
    /// interrupts on LINT0 and NMI on LINT1 (Intel MultiProcessor Specification, "Virtual Wire Mode").
    pub fn new(id: u8, tsc: Frequency) -> Lapic {
        Lapic::with(id, tsc, Registers::new())
    }

    /// The same in `registers`, which are 0.
    const fn with(id: u8, tsc: Frequency, registers: Registers) -> Lapic {
        let mut lapic = Lapic {
            id,
            tsc,
            base: Base::BSP.union(Base::EN),
            address: layout::LAPIC,
            registers,
            svr: 0xff,
            ldr: 0,
            dfr: DFR_FLAT,
            esr: Esr::empty(),
            errors: Esr::empty(),
            lvt: [LVT_MASKED; 6],
            irr: Vectors::new(),
            isr: Vectors::new(),
            tmr: Vectors::new(),
            given: false,
            mode: ApicMode::Off,
            changed: false,
            timer: Timer::new(tsc),
            lint0: false,
            nmi: false,
        };
        lapic.svr |= SVR_ENABLED;
        lapic.lvt[LINT0] = 0b111 << 8;
        lapic.lvt[LINT1] = 0b100 << 8;
        lapic
    }

    /// The offset of `gpa` in the page of the registers; `None` where they are elsewhere, or not in memory: that is when
    /// the local APIC is disabled or an x2APIC.
    #[inline]
    pub const fn offset_of(&self, gpa: Gpa) -> Option<u64> {
        let offset = gpa.0.wrapping_sub(self.address.0);
        if offset < PAGE_4K && self.base.contains(Base::EN) && !self.x2apic() { Some(offset) } else { None }
    }

    /// Reads from `offset` in the page; registers are doublewords at multiples of 16.
    pub fn read(&mut self, now: Tsc, offset: u64, data: &mut [u8]) {
        fault::point(Site::LapicRead);
        let number = (offset >> 4 & 0xff) as u32;
        let value = match self.read_register(now, number) {
            Some(value) => value,
            None => {
                self.error(Esr::ILLEGAL_REGISTER);
                0
            }
        };
        for (n, byte) in ((offset & 0xf)..).zip(data) {
            *byte = if n < 4 { (value >> (8 * n) & 0xff) as u8 } else { 0 };
        }
    }

    /// Writes to `offset` in the page. What is not a whole doubleword at a multiple of 16 has no effect.
    pub fn write(&mut self, now: Tsc, offset: u64, data: &[u8]) -> Effect {
        fault::point(Site::LapicWrite);
        let (0, &[a, b, c, d, ..]) = (offset & 0xf, data) else { return Effect::None };
        let effect = self.write_memory(now, (offset >> 4 & 0xff) as u32, u32::from_le_bytes([a, b, c, d]));
        self.settle();
        effect
    }

    fn write_memory(&mut self, now: Tsc, number: u32, value: u32) -> Effect {
        match number {
            // Read-only registers.
            register::ID | register::VERSION | register::PPR | register::RRD | register::CURRENT_COUNT => Effect::None,
            register::ISR..register::ESR => Effect::None,
            register::LDR => {
                self.ldr = value & 0xff00_0000;
                Effect::Accepting
            }
            register::DFR => {
                self.dfr = value | 0x0fff_ffff;
                Effect::Accepting
            }
            register::ICR => {
                self.registers.write(register::ICR, value & ICR_WRITABLE);
                self.send();
                Effect::None
            }
            register::ICR_HIGH => {
                self.registers.write(register::ICR_HIGH, value & 0xff00_0000);
                Effect::None
            }
            _ => match self.write_register(now, number, value) {
                Some(effect) => effect,
                None => {
                    self.error(Esr::ILLEGAL_REGISTER);
                    Effect::None
                }
            },
        }
    }

    /// CR8: bits 7:4 of the task priority.
    pub fn cr8(&self) -> u64 {
        u64::from(self.tpr() >> 4)
    }

    /// MOV to CR8.
    ///
    /// # Errors
    /// #GP(0) where a bit above the low four is set.
    pub fn set_cr8(&mut self, value: u64) -> Result<(), GuestFault> {
        match u8::try_from(value) {
            Ok(class @ 0..=15) => {
                self.registers.write(register::TPR, u32::from(class << 4));
                Ok(())
            }
            _ => Err(GuestFault::GP0),
        }
    }

    /// The interrupt that the processor would take now: the highest requested, if its class is above the processor's
    /// priority.
    #[inline]
    pub fn deliverable(&self) -> Option<u8> {
        let vector = self.irr.highest(&self.registers)?;
        let in_service = self.isr.highest(&self.registers).unwrap_or(0);
        (vector >> 4 > self.tpr().max(in_service) >> 4).then_some(vector)
    }

    /// Takes what [`Lapic::deliverable`] tells of into service. `now` is a time already seen: expiries of the timer up
    /// to it merge with the interrupt that is being taken.
    #[inline]
    pub fn acknowledge(&mut self, now: Tsc) -> Option<u8> {
        self.advance(now);
        let vector = self.deliverable()?;
        self.irr.remove(&self.registers, vector);
        self.isr.insert(&self.registers, vector);
        Some(vector)
    }

    /// Whether the 8259's interrupts reach the processor through LINT0: always without a local APIC.
    pub fn passes_extint(&self) -> bool {
        let lint0 = self.lvt[LINT0];
        !self.base.contains(Base::EN) || (lint0 & LVT_MASKED == 0 && local_mode(lint0) == DeliveryMode::ExtInt)
    }

    /// Whether a message of ExtINT from an I/O APIC is accepted.
    pub const fn accepts_messages(&self) -> bool {
        self.base.contains(Base::EN) && self.software_enabled()
    }

    /// The level of LINT0, where the 8259's output is connected. With another delivery mode than ExtINT a rising edge
    /// is an interrupt of its own.
    pub fn set_lint0(&mut self, high: bool) {
        let rises = high && !self.lint0;
        self.lint0 = high;
        let entry = self.lvt[LINT0];
        if rises && entry & LVT_MASKED == 0 && self.base.contains(Base::EN) {
            match local_mode(entry) {
                DeliveryMode::Fixed => self.request((entry & 0xff) as u8, false),
                DeliveryMode::Nmi => self.nmi = true,
                _ => {}
            }
        }
    }

    /// Whether what the 8259 pair signals on LINT0 is an NMI.
    pub fn has_nmi_line(&self) -> bool {
        let entry = self.lvt[LINT0];
        self.base.contains(Base::EN) && entry & LVT_MASKED == 0 && local_mode(entry) == DeliveryMode::Nmi
    }

    /// Takes a pending NMI.
    pub const fn take_nmi(&mut self) -> bool {
        let nmi = self.nmi;
        self.nmi = false;
        nmi
    }

    /// A message from an I/O APIC; false where it is not for this processor, or not accepted.
    pub fn accept(&mut self, message: &Message) -> bool {
        if !self.base.contains(Base::EN) || !self.addressed(message.destination, message.logical) {
            return false;
        }
        match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if self.software_enabled() => {
                self.request(message.vector, message.level);
                true
            }
            DeliveryMode::Nmi => {
                self.nmi = true;
                true
            }
            _ => false,
        }
    }

    const fn x2apic(&self) -> bool {
        self.base.contains(Base::EXTD)
    }

    const fn software_enabled(&self) -> bool {
        self.svr & SVR_ENABLED != 0
    }

    fn tpr(&self) -> u8 {
        (self.registers.read(register::TPR) & 0xff) as u8
    }

    /// The interrupt command register. As an xAPIC's its halves are two registers.
    fn icr(&self) -> u64 {
        let high = if self.x2apic() {
            self.registers.read_high(register::ICR)
        } else {
            self.registers.read(register::ICR_HIGH)
        };
        u64::from(high) << 32 | u64::from(self.registers.read(register::ICR))
    }

    /// The processor priority: the higher class of task priority and interrupt in service.
    fn ppr(&self) -> u8 {
        let (tpr, in_service) = (self.tpr(), self.isr.highest(&self.registers).unwrap_or(0));
        if tpr >> 4 >= in_service >> 4 { tpr } else { in_service & 0xf0 }
    }

    fn logical_id(&self) -> u32 {
        if self.x2apic() { u32::from(self.id >> 4) << 16 | 1 << (self.id & 0xf) } else { self.ldr }
    }

    /// A register that both modes have in common; `None` where it does not exist.
    fn read_register(&mut self, now: Tsc, number: u32) -> Option<u32> {
        Some(match number {
            register::ID if self.x2apic() => u32::from(self.id),
            register::ID => u32::from(self.id) << 24,
            register::VERSION => VERSION,
            register::TPR => u32::from(self.tpr()),
            register::PPR => u32::from(self.ppr()),
            // Write-only; and no remote read has ever been answered.
            register::EOI | register::RRD => 0,
            register::LDR => self.logical_id(),
            register::DFR => self.dfr,
            register::SVR => self.svr,
            register::ISR..register::ESR => self.registers.read(number),
            register::ESR => self.esr.bits(),
            register::ICR | register::ICR_HIGH => self.registers.read(number),
            register::LVT_TIMER..=register::LVT_ERROR => self.lvt[(number - register::LVT_TIMER) as usize],
            register::INITIAL_COUNT => self.timer.initial(),
            register::CURRENT_COUNT => {
                self.advance(now);
                self.timer.current(now)
            }
            register::DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// A register that both modes write alike; `None` where it does not exist.
    fn write_register(&mut self, now: Tsc, number: u32, value: u32) -> Option<Effect> {
        match number {
            register::TPR => self.registers.write(register::TPR, value & 0xff),
            register::EOI => return Some(self.end_of_interrupt()),
            register::SVR => return Some(self.write_svr(value)),
            register::ESR => {
                self.esr = core::mem::replace(&mut self.errors, Esr::empty());
            }
            register::LVT_TIMER..=register::LVT_ERROR => {
                self.write_lvt(now, (number - register::LVT_TIMER) as usize, value);
            }
            register::INITIAL_COUNT => {
                self.advance(now);
                if self.timer_mode() != Mode::TscDeadline {
                    self.timer.set_initial(now, value);
                }
            }
            register::DIVIDE => {
                self.advance(now);
                self.timer.set_divide(now, value);
            }
            _ => return None,
        }
        Some(Effect::None)
    }

    fn write_svr(&mut self, value: u32) -> Effect {
        let was_enabled = self.software_enabled();
        self.svr = value & SVR_WRITABLE;
        if !self.software_enabled() {
            for entry in &mut self.lvt {
                *entry |= LVT_MASKED;
            }
        }
        if !was_enabled && self.software_enabled() { Effect::Accepting } else { Effect::None }
    }

    fn write_lvt(&mut self, now: Tsc, n: usize, value: u32) {
        self.advance(now);
        let old_mode = self.timer_mode();
        let mut entry = value & LVT_WRITABLE[n];
        if !self.software_enabled() {
            entry |= LVT_MASKED;
        }
        self.lvt[n] = entry;
        let new_mode = self.timer_mode();
        if old_mode != new_mode && (old_mode == Mode::TscDeadline || new_mode == Mode::TscDeadline) {
            self.timer.disarm();
        }
    }

    /// End of interrupt where that concerns nobody else; false where it does, and nothing was done.
    #[inline(always)]
    pub fn end_edge_triggered(&mut self) -> bool {
        if self.given {
            return false;
        }
        let Some(vector) = self.isr.highest(&self.registers) else { return true };
        // An I/O APIC is to hear of the end of a level-triggered one.
        if self.tmr.contains(&self.registers, vector) {
            return false;
        }
        self.isr.remove(&self.registers, vector);
        true
    }

    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.isr.highest(&self.registers) else { return Effect::None };
        self.isr.remove(&self.registers, vector);
        self.changed = self.given;
        if self.tmr.contains(&self.registers, vector) { Effect::Eoi(vector) } else { Effect::None }
    }

    /// Whether this processor is a destination of an 8-bit destination field.
    fn addressed(&self, destination: u8, logical: bool) -> bool {
        if destination == 0xff {
            return true;
        }
        if !logical {
            return destination == self.id;
        }
        if self.x2apic() {
            return self.addressed_x2apic(u32::from(destination), true);
        }
        let own = (self.ldr >> 24 & 0xff) as u8;
        match self.dfr >> 28 {
            0xf => own & destination != 0,
            // Clusters: the high nibble names one, 15 all of them.
            0x0 => (destination >> 4 == own >> 4 || destination >> 4 == 0xf) && own & destination & 0xf != 0,
            _ => false,
        }
    }

    /// Whether this processor is a destination of a 32-bit destination field.
    fn addressed_x2apic(&self, destination: u32, logical: bool) -> bool {
        let own = self.logical_id();
        match (destination, logical) {
            (u32::MAX, _) => true,
            (_, false) => destination == u32::from(self.id),
            (_, true) => destination >> 16 == own >> 16 && destination & own & 0xffff != 0,
        }
    }

    /// Sends the message that the interrupt command register describes.
    fn send(&mut self) {
        let icr = self.icr();
        let logical = icr & (1 << 11) != 0;
        let to_self = match icr >> 18 & 3 {
            0 if self.x2apic() => self.addressed_x2apic((icr >> 32) as u32, logical),
            0 => self.addressed((icr >> 56) as u8, logical),
            1 | 2 => true,
            _ => false,
        };
        match DeliveryMode::from_bits(icr >> 8) {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => self.send_fixed((icr & 0xff) as u8, to_self),
            // With the shorthand for self, the manual has fixed interrupts only (SDM vol. 3, "Valid Combinations for the
            // ... Local xAPIC Interrupt Command Register").
            DeliveryMode::Nmi if to_self && icr >> 18 & 3 != 1 => self.nmi = true,
            _ => {}
        }
    }

    fn send_fixed(&mut self, vector: u8, to_self: bool) {
        if vector < 16 {
            self.error(Esr::SEND_ILLEGAL_VECTOR);
        } else if to_self && self.software_enabled() {
            self.request(vector, false);
        }
    }

    /// Requests an interrupt.
    fn request(&mut self, vector: u8, level: bool) {
        if vector < 16 {
            self.error(Esr::RECEIVE_ILLEGAL_VECTOR);
        } else {
            self.raise(vector, level);
        }
    }

    #[inline]
    fn raise(&mut self, vector: u8, level: bool) {
        self.irr.insert(&self.registers, vector);
        if level {
            self.tmr.insert(&self.registers, vector);
        } else {
            self.tmr.remove(&self.registers, vector);
        }
        self.changed = self.given;
    }

    /// Records an error and raises the error interrupt, if it is one that can be raised.
    fn error(&mut self, error: Esr) {
        let new = !self.errors.contains(error);
        self.errors |= error;
        let entry = self.lvt[ERROR];
        let vector = (entry & 0xff) as u8;
        if !new || entry & LVT_MASKED != 0 {
            return;
        }
        if vector < 16 {
            self.errors |= Esr::RECEIVE_ILLEGAL_VECTOR;
        } else {
            self.raise(vector, false);
        }
    }
}

/// The delivery mode of a local vector table entry.
fn local_mode(entry: u32) -> DeliveryMode {
    DeliveryMode::from_bits(u64::from(entry >> 8))
}

#[cfg(test)]
#[path = "lapic_tests.rs"]
mod tests;
