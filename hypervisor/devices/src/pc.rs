//! The PC: all devices, wired.
//!
//! Owns the devices, the map of ports and registers, the interrupt lines between them, and two cached answers that
//! every VM entry asks for: when a timer is due next, and whether an interrupt waits. Devices never see each other;
//! what one does to another passes through here.
//!
//! Interrupts: an ISA line drives its input of the 8259 pair and its pin of the I/O APIC at once (interrupt 0: pin 2).
//! The pair's output reaches the processor through the local APIC's LINT0, through pin 0 of the I/O APIC, or, with the
//! local APIC disabled, directly. An interrupt of the 8259's goes before the local APIC's own and is not subject to the
//! task priority (Intel SDM vol. 3, "External Interrupts"; ExtINT delivery mode).

mod ports;

use crate::acpi_pm::AcpiPm;
use crate::i8042::I8042;
use crate::ioapic::IoApic;
use crate::lapic::{Effect, Lapic};
use crate::pci::Pci;
use crate::pic::Pic;
use crate::pit::Pit;
use crate::rtc::Rtc;
use crate::uart::Uart;
use lamina_arch::addr::{Gpa, PAGE_4K};
use lamina_arch::event::GuestFault;
use lamina_arch::time::Tsc;
use lamina_vmm::bus::{Bus, Overlap, open_bus};
use lamina_vmm::chipset::{Chipset, ChipsetSetup, Signal};
use lamina_vmm::layout;
use ports::Port;

/// Interrupt line of the keyboard.
const KEYBOARD_IRQ: u8 = 1;
/// Stands for "no timer is running" among deadlines: a guest's TSC does not get there.
const NEVER: u64 = u64::MAX;
/// Registers of the local APIC below this offset (task priority, EOI and the like) do not concern its timer.
const LAPIC_TIMER_UNCONCERNED: u64 = 0xf0;

/// Who answers in memory.
#[derive(Clone, Copy, Debug)]
enum Page {
    Lapic,
    IoApic,
}

/// The devices with a deadline, as indices into [`Pc::deadlines`].
#[derive(Clone, Copy, Debug)]
enum Timer {
    Pit,
    Rtc,
    AcpiPm,
    Uart,
    Lapic,
}

/// The devices of one VM.
#[derive(Clone, Debug)]
pub struct Pc {
    ports: Bus<u16, Port>,
    memory: Bus<Gpa, Page>,
    uart: Uart,
    pic: Pic,
    pit: Pit,
    rtc: Rtc,
    lapic: Lapic,
    ioapic: IoApic,
    pm: AcpiPm,
    i8042: I8042,
    pci: Pci,
    /// Port 0xcf9.
    reset_control: u8,
    /// The last power-on self-test code (port 0x80).
    post: u8,
    /// How many bytes of the shutdown string have come.
    shutdown: usize,
    /// The latest time seen: nothing here goes backwards, whatever the caller says.
    now: Tsc,
    deadlines: [u64; 5],
    /// The earliest of `deadlines`.
    deadline: u64,
    /// Levels of the ISA interrupt lines.
    lines: u16,
    /// Whether the processor would be interrupted.
    pending: bool,
    unclaimed: u64,
}

impl Chipset for Pc {
    fn new(setup: &ChipsetSetup) -> Pc {
        let below_4g = setup.memory.min(layout::PCI_HOLE.0);
        Pc {
            // Both maps are constant, and a test builds them; without one, its devices would not answer.
            ports: ports::map().unwrap_or_default(),
            memory: memory_map().unwrap_or_default(),
            uart: Uart::new(setup.tsc),
            pic: Pic::new(1 << layout::SCI_IRQ),
            pit: Pit::new(setup.tsc, setup.now),
            rtc: Rtc::new(setup.tsc, setup.now, setup.unix_seconds, below_4g, setup.memory - below_4g),
            lapic: Lapic::new(setup.apic_id, setup.tsc),
            ioapic: IoApic::new(),
            pm: AcpiPm::new(setup.tsc, setup.now),
            i8042: I8042::new(),
            pci: Pci::new(),
            reset_control: 0,
            post: 0,
            shutdown: 0,
            now: setup.now,
            deadlines: [NEVER; 5],
            deadline: NEVER,
            lines: 0,
            pending: false,
            unclaimed: 0,
        }
    }

    fn port_read(&mut self, now: Tsc, port: u16, data: &mut [u8]) {
        self.advance(now);
        if !self.read_port(port, data) {
            self.count_unclaimed();
        }
    }

    fn port_write(&mut self, now: Tsc, port: u16, data: &[u8]) -> Signal {
        self.advance(now);
        self.write_port(port, data).unwrap_or_else(|| {
            self.count_unclaimed();
            Signal::None
        })
    }

    fn mmio_read(&mut self, now: Tsc, gpa: Gpa, data: &mut [u8]) -> bool {
        self.advance(now);
        match self.memory.find(gpa) {
            Some((Page::Lapic, offset)) if self.lapic.in_memory() => {
                self.lapic.read(self.now, offset, data);
                // An error may have become an interrupt, and a timer that was read may have expired.
                self.refresh(Timer::Lapic);
                self.deliver();
            }
            Some((Page::IoApic, offset)) => self.ioapic.read(offset, data),
            _ => {
                open_bus(data);
                self.count_unclaimed();
                return false;
            }
        }
        true
    }

    fn mmio_write(&mut self, now: Tsc, gpa: Gpa, data: &[u8]) -> bool {
        self.advance(now);
        match self.memory.find(gpa) {
            Some((Page::Lapic, offset)) if self.lapic.in_memory() => {
                let effect = self.lapic.write(self.now, offset, data);
                if offset >= LAPIC_TIMER_UNCONCERNED {
                    self.refresh(Timer::Lapic);
                }
                self.carry_out(effect);
            }
            Some((Page::IoApic, offset)) => {
                self.ioapic.write(offset, data);
                self.deliver();
            }
            _ => {
                self.count_unclaimed();
                return false;
            }
        }
        true
    }

    fn msr_read(&mut self, now: Tsc, msr: u32) -> Result<u64, GuestFault> {
        self.advance(now);
        let value = self.lapic.read_msr(self.now, msr);
        self.refresh(Timer::Lapic);
        self.deliver();
        value
    }

    fn msr_write(&mut self, now: Tsc, msr: u32, value: u64) -> Result<(), GuestFault> {
        self.advance(now);
        let effect = self.lapic.write_msr(self.now, msr, value)?;
        self.refresh(Timer::Lapic);
        self.carry_out(effect);
        Ok(())
    }

    fn cr8(&self) -> u64 {
        self.lapic.cr8()
    }

    fn set_cr8(&mut self, value: u64) -> Result<(), GuestFault> {
        self.lapic.set_cr8(value)?;
        self.update_pending();
        Ok(())
    }

    fn interrupt_pending(&self) -> bool {
        self.pending
    }

    fn acknowledge(&mut self) -> Option<u8> {
        if !self.pending {
            return None;
        }
        let vector = if self.extint_passes() && self.pic.intr() {
            Some(self.pic.acknowledge())
        } else {
            let vector = self.lapic.acknowledge(self.now);
            self.refresh(Timer::Lapic);
            vector
        };
        self.deliver();
        vector
    }

    fn take_nmi(&mut self) -> bool {
        self.lapic.take_nmi()
    }

    fn advance(&mut self, now: Tsc) {
        if now > self.now {
            self.now = now;
        }
        if self.now.0 >= self.deadline {
            self.expire();
        }
    }

    fn next_deadline(&self) -> Option<Tsc> {
        (self.deadline != NEVER).then_some(Tsc(self.deadline))
    }

    fn take_output(&mut self, now: Tsc, sink: &mut dyn FnMut(u8) -> bool) {
        if self.uart.has_output() {
            self.advance(now);
            self.uart.take_output(sink);
            self.drive(layout::COM1_IRQ, self.uart.irq());
        }
    }

    fn has_output(&self) -> bool {
        self.uart.has_output()
    }

    fn give_input(&mut self, now: Tsc, bytes: &[u8]) -> usize {
        self.advance(now);
        let taken = self.uart.give_input(self.now, bytes);
        self.uart_changed();
        taken
    }

    fn unclaimed(&self) -> u64 {
        self.unclaimed
    }
}

impl Pc {
    /// Brings the timers that are due up to now, with their interrupt lines.
    fn expire(&mut self) {
        let due = |deadline: u64| deadline <= self.now.0;
        let [pit, rtc, pm, uart, lapic] = self.deadlines.map(due);
        if pit {
            self.pit.advance(self.now);
            self.pit_changed();
        }
        if rtc {
            self.rtc.advance(self.now);
            self.rtc_changed();
        }
        if pm {
            self.pm.advance(self.now);
            self.pm_changed();
        }
        if uart {
            self.uart.advance(self.now);
            self.uart_changed();
        }
        if lapic {
            self.lapic.advance(self.now);
            self.refresh(Timer::Lapic);
            self.update_pending();
        }
    }

    /// Asks a timer anew when it is due.
    fn refresh(&mut self, timer: Timer) {
        let deadline = match timer {
            Timer::Pit => self.pit.next_deadline(),
            Timer::Rtc => self.rtc.next_deadline(),
            Timer::AcpiPm => self.pm.next_deadline(),
            Timer::Uart => self.uart.next_deadline(),
            Timer::Lapic => self.lapic.next_deadline(),
        };
        self.deadlines[timer as usize] = deadline.map_or(NEVER, |tsc| tsc.0);
        self.deadline = self.deadlines.into_iter().fold(NEVER, u64::min);
    }

    /// An edge of the timer's output is a pulse here, so that one whose predecessor was not seen to fall counts too.
    fn pit_changed(&mut self) {
        if self.pit.take_edge() {
            self.drive(layout::PIT_IRQ, false);
            self.drive(layout::PIT_IRQ, true);
        }
        self.refresh(Timer::Pit);
    }

    fn rtc_changed(&mut self) {
        self.drive(layout::RTC_IRQ, self.rtc.irq());
        self.refresh(Timer::Rtc);
    }

    fn pm_changed(&mut self) {
        self.drive(layout::SCI_IRQ, self.pm.sci());
        self.refresh(Timer::AcpiPm);
    }

    fn uart_changed(&mut self) {
        self.drive(layout::COM1_IRQ, self.uart.irq());
        self.refresh(Timer::Uart);
    }

    /// Sets the level of an ISA interrupt line.
    fn drive(&mut self, irq: u8, high: bool) {
        let bit = 1u16 << (irq & 15);
        if (self.lines & bit != 0) == high {
            return;
        }
        self.lines ^= bit;
        self.pic.set_line(irq, high);
        let pin = if irq == layout::PIT_IRQ { layout::PIT_GSI } else { irq };
        self.ioapic.set_line(pin, high);
        self.deliver();
    }

    /// Carries out what a write to the local APIC asks of the I/O APIC.
    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Eoi(vector) => self.ioapic.eoi(vector),
            Effect::Accepting => self.ioapic.resend(),
        }
        self.deliver();
    }

    /// Moves what waits between the interrupt controllers, and sees whether the processor is to be interrupted.
    fn deliver(&mut self) {
        while let Some(message) = self.ioapic.take_message() {
            if self.lapic.accept(&message) {
                self.ioapic.accepted(&message);
            }
        }
        self.lapic.set_lint0(self.pic.intr());
        self.update_pending();
    }

    fn update_pending(&mut self) {
        self.pending = self.lapic.deliverable().is_some() || (self.pic.intr() && self.extint_passes());
    }

    /// Whether the 8259's output reaches the processor.
    fn extint_passes(&self) -> bool {
        self.lapic.passes_extint() || (self.ioapic.extint_enabled() && self.lapic.accepts_messages())
    }

    fn count_unclaimed(&mut self) {
        self.unclaimed = self.unclaimed.saturating_add(1);
    }
}

fn memory_map() -> Result<Bus<Gpa, Page>, Overlap> {
    let mut map = Bus::new();
    map.claim(layout::IOAPIC, PAGE_4K, Page::IoApic)?;
    map.claim(layout::LAPIC, PAGE_4K, Page::Lapic)?;
    Ok(map)
}

#[cfg(test)]
#[path = "pc_tests.rs"]
mod tests;
