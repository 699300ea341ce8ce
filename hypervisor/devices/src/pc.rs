//! The PC: all devices, wired.
//!
//! Owns the devices, the map of ports and registers, the interrupt lines between them, and two cached answers that
//! every VM entry asks for: when a timer is due next, and what is to be done for an interrupt. Devices never see each other;
//! what one does to another passes through here.
//!
//! Interrupts: `interrupts` has the lines from the devices to the controllers. The 8259 pair's output reaches the processor
//! through the local APIC's LINT0, through pin 0 of the I/O APIC, or, with the local APIC disabled, directly. An interrupt
//! of the 8259's goes before the local APIC's own and is not subject to the task priority (Intel SDM vol. 3, "External
//! Interrupts"; ExtINT delivery mode). Where the processor virtualizes the local APIC, it delivers that one's own, and the
//! 8259's alone are for the run loop.

mod hpet_lines;
mod interrupts;
mod ports;
mod timers;

use crate::acpi_pm::AcpiPm;
use crate::atapi::Cdrom;
use crate::debug_port::DebugPort;
use crate::fw_cfg::FwCfg;
use crate::hpet::Hpet;
use crate::i8042::I8042;
use crate::ide::{self, Ide};
use crate::ioapic::IoApic;
use crate::lapic::Lapic;
use crate::pci::{Functions, Pci};
use crate::pic::Pic;
use crate::pit::Pit;
use crate::rtc::Rtc;
use crate::uart::Uart;
use crate::vga::Vga;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use lamina_arch::addr::{Gpa, PAGE_4K};
use lamina_arch::event::GuestFault;
use lamina_arch::msr::{IA32_APIC_BASE, IA32_TSC_DEADLINE, X2APIC_FIRST};
use lamina_arch::time::Tsc;
use lamina_vmm::apic::{ApicMode, ApicPage};
use lamina_vmm::bus::{Bus, Overlap, PortMap, open_bus};
use lamina_vmm::chipset::{Attention, Chipset, ChipsetSetup, Extras, Key, Signal};
use lamina_vmm::dma::{DmaRequest, TRANSFER_MAX};
use lamina_vmm::fault::{self, Site};
use lamina_vmm::layout;
use ports::Port;
use timers::Deadlines;

/// The x2APIC's registers as MSRs. Those below the spurious-interrupt vector register (task priority, EOI and the like)
/// and the self-IPI do not concern its timer.
const X2APIC_SPURIOUS: u32 = X2APIC_FIRST + 0xf;
const X2APIC_CURRENT_COUNT: u32 = X2APIC_FIRST + 0x39;
const X2APIC_SELF_IPI: u32 = X2APIC_FIRST + 0x3f;
/// Registers of the local APIC below this offset (task priority, EOI and the like) do not concern its timer.
const LAPIC_TIMER_UNCONCERNED: u64 = 0xf0;
/// The local APIC's end-of-interrupt register.
const LAPIC_EOI: u64 = 0xb0;

/// CMOS registers by which SeaBIOS learns in what order to try the drives: a CD, then a hard disk; no floppy.
const BOOT_ORDER: [(u8, u8); 2] = [(0x38, 0x01), (0x3d, 0x23)];

/// Who answers in memory.
#[derive(Clone, Copy, Debug)]
enum Page {
    Lapic,
    IoApic,
    Hpet,
    Vga,
    /// PCI's configuration space.
    Ecam,
}

/// The devices of one VM.
#[derive(Clone, Debug)]
pub struct Pc {
    ports: PortMap<Port>,
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
    fw_cfg: Option<FwCfg>,
    ide: Option<Ide>,
    vga: Option<Vga>,
    hpet: Option<Hpet>,
    debug: DebugPort,
    /// Port 0xcf9.
    reset_control: u8,
    /// The last power-on self-test code (port 0x80).
    post: u8,
    /// How many bytes of the shutdown string have come.
    shutdown: usize,
    /// The latest time seen: nothing here goes backwards, whatever the caller says.
    now: Tsc,
    deadlines: Deadlines,
    /// Levels of the ISA interrupt lines.
    lines: u16,
    /// Interrupt pins that PCI devices assert, by slot: a bit for each of INTA# to INTD#.
    intx: [u8; 32],
    /// Levels of the ISA interrupt lines as far as PCI's interrupt lines are routed to them.
    routed: u16,
    /// I/O APIC pins that the HPET holds high.
    hpet_pins: u32,
    /// An interrupt of the 8259's waits, and reaches the processor.
    external: bool,
    /// What the run loop has to do.
    attention: Attention,
    unclaimed: u64,
}

impl Chipset for Pc {
    fn new(setup: &ChipsetSetup) -> Pc {
        let below_4g = setup.memory.min(layout::PCI_HOLE.0);
        let extras = &setup.extras;
        let functions = Functions { ide: has_ide(extras), firmware: extras.firmware.is_some() };
        let mut rtc = Rtc::new(setup.tsc, setup.now, setup.unix_seconds, below_4g, setup.memory - below_4g);
        if extras.firmware.is_some() {
            BOOT_ORDER.into_iter().for_each(|(index, value)| rtc.preset(index, value));
        }
        let mut pc = Pc {
            // The maps depend on nothing but the extras, and a test builds all; without one, its devices would not
            // answer.
            ports: ports::map(extras).unwrap_or_default(),
            memory: memory_map(extras).unwrap_or_default(),
            uart: Uart::new(setup.tsc),
            pic: Pic::new(interrupts::level_triggered(extras)),
            pit: Pit::new(setup.tsc, setup.now),
            rtc,
            lapic: Lapic::new(setup.apic_id, setup.tsc),
            ioapic: IoApic::new(),
            pm: AcpiPm::new(setup.tsc, setup.now),
            i8042: I8042::new(setup.tsc),
            pci: Pci::new(functions),
            fw_cfg: extras.firmware.as_ref().map(|files| FwCfg::new(setup.memory, files)),
            ide: has_ide(extras).then(|| Ide::new(extras.cdrom.map(Cdrom::new))),
            vga: extras.vga.then(|| Vga::new(setup.tsc, setup.now)),
            hpet: extras.hpet.then(|| Hpet::new(setup.tsc, setup.now)),
            debug: DebugPort::default(),
            reset_control: 0,
            post: 0,
            shutdown: 0,
            now: setup.now,
            deadlines: Deadlines::new(),
            lines: 0,
            intx: [0; 32],
            routed: 0,
            hpet_pins: 0,
            external: false,
            attention: Attention::empty(),
            unclaimed: 0,
        };
        // PCI's interrupt lines are high while nobody asserts them.
        pc.intx_changed();
        pc
    }

    fn port_read(&mut self, now: Tsc, port: u16, data: &mut [u8]) {
        self.advance(now);
        if !self.read_port(port, data) {
            self.count_unclaimed();
        }
    }

    #[inline(always)]
    fn port_peek(&mut self, now: Tsc, port: u16) -> Option<u8> {
        if self.deadlines.is_due(now) {
            return None;
        }
        self.now = self.now.max(now);
        let (device, offset) = self.ports.find(port)?;
        let offset = (offset & 0xff) as u8;
        // Of these the one that has most to do.
        if device == Port::Pit { Some(self.pit.read(self.now, offset)) } else { self.read_frequent(device, offset) }
    }

    fn port_read_block(&mut self, now: Tsc, port: u16, width: usize, data: &mut [u8]) -> usize {
        self.advance(now);
        self.read_block(port, width, data)
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
        match self.page(gpa) {
            Some((Page::Lapic, offset)) => {
                self.lapic.read(self.now, offset, data);
                // An error may have become an interrupt, and a timer that was read may have expired.
                self.apic_timer_changed();
                self.update_attention();
            }
            Some((Page::IoApic, offset)) => self.ioapic.read(offset, data),
            Some((Page::Ecam, offset)) => self.pci.read_memory(offset, data),
            Some((Page::Hpet, offset)) if let Some(hpet) = &mut self.hpet => {
                hpet.read(self.now, offset, data);
                self.hpet_changed();
            }
            Some((Page::Vga, offset)) if let Some(vga) = &mut self.vga => {
                let mut answered = false;
                for (at, byte) in (offset..).zip(data) {
                    let value = vga.read_memory(at);
                    answered |= value.is_some();
                    *byte = value.unwrap_or(0xff);
                }
                return self.answered(answered);
            }
            _ => {
                open_bus(data);
                return self.answered(false);
            }
        }
        true
    }

    #[inline(always)]
    fn mmio_write(&mut self, now: Tsc, gpa: Gpa, data: &[u8]) -> bool {
        self.advance(now);
        // Of all registers this one is written most.
        if self.lapic.offset_of(gpa) == Some(LAPIC_EOI) && data.len() == 4 && self.lapic.end_edge_triggered() {
            self.apic_interrupts_changed();
            return true;
        }
        self.write_memory(gpa, data)
    }

    #[inline(always)]
    fn msr_read(&mut self, now: Tsc, msr: u32) -> Result<u64, GuestFault> {
        if msr == IA32_APIC_BASE { Ok(self.lapic.apic_base()) } else { self.read_apic_msr(now, msr) }
    }

    #[inline(always)]
    fn msr_write(&mut self, now: Tsc, msr: u32, value: u64) -> Result<(), GuestFault> {
        self.advance(now);
        if self.lapic.write_frequent(self.now, msr, value) {
            if msr == IA32_TSC_DEADLINE {
                self.apic_timer_changed();
            }
            self.apic_interrupts_changed();
            return Ok(());
        }
        self.write_apic_msr(msr, value)
    }

    fn cr8(&self) -> u64 {
        self.lapic.cr8()
    }

    fn set_cr8(&mut self, value: u64) -> Result<(), GuestFault> {
        self.lapic.set_cr8(value)?;
        self.update_attention();
        Ok(())
    }

    fn interrupt_pending(&self) -> bool {
        self.attention.contains(Attention::INTERRUPT)
            || self.lapic.is_virtualized() && self.lapic.deliverable().is_some()
    }

    #[inline]
    fn attention(&self) -> Attention {
        self.attention
    }

    fn virtualize_apic(&mut self) -> Option<Arc<ApicPage>> {
        let page = self.lapic.virtualize();
        self.apic_timer_changed();
        self.update_attention();
        Some(page)
    }

    fn take_apic_change(&mut self) -> Option<ApicMode> {
        self.attention -= Attention::APIC;
        self.lapic.take_change()
    }

    fn apic_written(&mut self, now: Tsc, offset: u16) {
        self.advance(now);
        let effect = self.lapic.written(self.now, offset);
        self.apic_timer_changed();
        self.carry_out(effect);
    }

    fn apic_ended(&mut self, now: Tsc, vector: u8) {
        self.advance(now);
        let effect = self.lapic.ended(vector);
        self.carry_out(effect);
    }

    #[inline(always)]
    fn acknowledge(&mut self) -> Option<u8> {
        fault::point(Site::Acknowledge);
        if !self.attention.contains(Attention::INTERRUPT) {
            return None;
        }
        if self.external {
            return Some(self.acknowledge_pic());
        }
        let vector = self.lapic.acknowledge(self.now);
        if vector.is_some_and(|vector| self.lapic.is_of_timer(vector)) {
            // The next expiry counts again.
            self.apic_timer_changed();
        }
        // The highest is in service now, so the local APIC has no other for the processor; nor has the pair of 8259s.
        self.attention -= Attention::INTERRUPT;
        vector
    }

    fn nmi_possible(&self) -> bool {
        self.lapic.has_nmi_line() || self.ioapic.has_nmi_input()
    }

    #[inline]
    fn take_nmi(&mut self) -> bool {
        self.lapic.take_nmi()
    }

    #[inline]
    fn advance(&mut self, now: Tsc) {
        if now > self.now {
            self.now = now;
        }
        if self.deadlines.is_due(self.now) {
            self.expire();
        }
    }

    #[inline]
    fn next_deadline(&self) -> Option<Tsc> {
        self.deadlines.first()
    }

    fn take_output(&mut self, now: Tsc, sink: &mut dyn FnMut(u8) -> bool) {
        if self.uart.has_output() {
            self.advance(now);
            self.uart.take_output(sink);
            self.drive(layout::COM1_IRQ, self.uart.irq());
        }
    }

    #[inline]
    fn has_output(&self) -> bool {
        self.uart.has_output()
    }

    fn give_input(&mut self, now: Tsc, bytes: &[u8]) -> usize {
        self.advance(now);
        let taken = self.uart.give_input(self.now, bytes);
        self.uart_changed();
        taken
    }

    fn dma_request(&mut self, data: &mut [u8; TRANSFER_MAX]) -> Option<DmaRequest> {
        self.fw_cfg.as_mut()?.dma_request(data)
    }

    fn dma_complete(&mut self, data: Option<&[u8]>) {
        if let Some(fw_cfg) = &mut self.fw_cfg {
            fw_cfg.dma_complete(data);
        }
    }

    fn take_debug_line(&mut self) -> Option<String> {
        self.debug.take_line()
    }

    fn type_key(&mut self, now: Tsc, key: Key) -> bool {
        self.advance(now);
        self.i8042.advance(self.now);
        let typed = self.i8042.type_key(key);
        self.keyboard_changed();
        typed
    }

    fn screen(&self) -> Option<Vec<String>> {
        self.vga.as_ref()?.screen()
    }

    fn unclaimed(&self) -> u64 {
        self.unclaimed
    }
}

impl Pc {
    /// A write to memory-mapped registers; false where nobody answers.
    #[inline(never)]
    fn write_memory(&mut self, gpa: Gpa, data: &[u8]) -> bool {
        match self.page(gpa) {
            Some((Page::Lapic, offset)) => {
                let effect = self.lapic.write(self.now, offset, data);
                if offset >= LAPIC_TIMER_UNCONCERNED {
                    self.apic_timer_changed();
                }
                self.carry_out(effect);
            }
            Some((Page::IoApic, offset)) => {
                self.ioapic.write(offset, data);
                self.deliver();
            }
            Some((Page::Ecam, offset)) => {
                self.pci.write_memory(offset, data);
                self.intx_changed();
            }
            Some((Page::Hpet, offset)) if let Some(hpet) = &mut self.hpet => {
                hpet.write(self.now, offset, data);
                self.hpet_changed();
                // Who drives these two lines may just have changed.
                self.rtc_changed();
                self.pit_changed();
            }
            Some((Page::Vga, offset)) if let Some(vga) = &mut self.vga => {
                let mut answered = false;
                for (at, &byte) in (offset..).zip(data) {
                    answered |= vga.write_memory(at, byte);
                }
                return self.answered(answered);
            }
            _ => return self.answered(false),
        }
        true
    }

    /// RDMSR of all but the base.
    #[inline(never)]
    fn read_apic_msr(&mut self, now: Tsc, msr: u32) -> Result<u64, GuestFault> {
        self.advance(now);
        let value = self.lapic.read_msr(self.now, msr);
        // A timer that was read may have expired.
        if matches!(msr, IA32_TSC_DEADLINE | X2APIC_CURRENT_COUNT) {
            self.apic_timer_changed();
            self.update_attention();
        }
        value
    }

    /// WRMSR of what is not written so often.
    #[inline(never)]
    fn write_apic_msr(&mut self, msr: u32, value: u64) -> Result<(), GuestFault> {
        let effect = self.lapic.write_msr(self.now, msr, value)?;
        if !matches!(msr, X2APIC_FIRST..X2APIC_SPURIOUS | X2APIC_SELF_IPI) {
            self.apic_timer_changed();
        }
        self.carry_out(effect);
        Ok(())
    }

    /// The INTA cycle with the pair of 8259s.
    #[cold]
    fn acknowledge_pic(&mut self) -> u8 {
        let vector = self.pic.acknowledge();
        self.deliver();
        vector
    }

    /// Who answers at `gpa`. The local APIC goes before what is at its place, as it is nearer to the processor.
    fn page(&self, gpa: Gpa) -> Option<(Page, u64)> {
        match self.lapic.offset_of(gpa) {
            Some(offset) => Some((Page::Lapic, offset)),
            None => self.memory.find(gpa),
        }
    }

    fn ide_changed(&mut self) {
        let Some(ide) = &self.ide else { return };
        let levels = [ide::Which::Primary, ide::Which::Secondary].map(|which| ide.irq(which));
        for (irq, level) in layout::IDE_IRQS.into_iter().zip(levels) {
            self.drive(irq, level);
        }
    }

    /// Counts an access that was not `answered`.
    fn answered(&mut self, answered: bool) -> bool {
        if !answered {
            self.count_unclaimed();
        }
        answered
    }

    fn count_unclaimed(&mut self) {
        self.unclaimed = self.unclaimed.saturating_add(1);
    }
}

/// Whether there is an IDE controller: with a drive, and where firmware will look for one.
fn has_ide(extras: &Extras) -> bool {
    extras.cdrom.is_some() || extras.firmware.is_some()
}

fn memory_map(extras: &Extras) -> Result<Bus<Gpa, Page>, Overlap> {
    let mut map = Bus::new();
    if extras.vga {
        map.claim(layout::VGA_WINDOW, layout::VGA_WINDOW_SIZE, Page::Vga)?;
    }
    if extras.hpet {
        map.claim(layout::HPET, PAGE_4K, Page::Hpet)?;
    }
    map.claim(layout::ECAM, layout::ECAM_SIZE, Page::Ecam)?;
    map.claim(layout::IOAPIC, PAGE_4K, Page::IoApic)?;
    Ok(map)
}

#[cfg(test)]
#[path = "pc_tests.rs"]
mod tests;
