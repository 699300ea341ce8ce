//! The PC's ports: who answers where, and what an access of which width is to them.
//!
//! Most devices are eight bits wide, and a wider access is several of theirs at consecutive ports, as on the ISA bus.
//! The exceptions: ACPI's registers, PCI's two ports and the status port take an access as a whole. Port 0xcf9 lies
//! within PCI's address port; a byte there is the reset control register, a doubleword at 0xcf8 the address.

use super::timers::Timer;
use super::{Pc, has_ide};
use crate::acpi_pm;
use crate::debug_port::DebugPort;
use crate::ide::{self, BUS_MASTER_PORTS};
use crate::pic::Which;
use lamina_vmm::bus::{Overlap, PortMap, open_bus};
use lamina_vmm::chipset::{Extras, Signal};
use lamina_vmm::layout;

/// What ends the VM, written bytewise to [`layout::SHUTDOWN_PORT`].
const SHUTDOWN: &[u8; 8] = b"Shutdown";
/// The serial port's line status register, from its first.
const LINE_STATUS: u8 = 5;
/// Reset control: a rising edge of this bit resets the processor.
const RESET_CPU: u8 = 1 << 2;
/// Reset control: bits that read back.
const RESET_KEPT: u8 = 0x0e;

/// Who answers at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Pic(Which),
    Elcr,
    Pit,
    /// Port 0x61.
    SystemControl,
    KeyboardData,
    KeyboardCommand,
    FastA20,
    Cmos,
    Uart,
    AcpiPm,
    ConfigAddress,
    ConfigData,
    FwCfg,
    FwCfgDma,
    Debug,
    Ide(ide::Which),
    IdeControl(ide::Which),
    IdeBusMaster,
    Vga,
    Post,
    Status,
    Shutdown,
}

/// The map of all ports that do not move.
pub(super) fn map(extras: &Extras) -> Result<PortMap<Port>, Overlap> {
    let mut map = PortMap::new();
    map.claim(0x20, 2, Port::Pic(Which::Master))?;
    map.claim(0x40, 4, Port::Pit)?;
    map.claim(0x60, 1, Port::KeyboardData)?;
    map.claim(0x61, 1, Port::SystemControl)?;
    map.claim(0x64, 1, Port::KeyboardCommand)?;
    map.claim(0x70, 2, Port::Cmos)?;
    map.claim(0x80, 1, Port::Post)?;
    map.claim(0x92, 1, Port::FastA20)?;
    map.claim(0xa0, 2, Port::Pic(Which::Slave))?;
    map.claim(layout::STATUS_PORT, 1, Port::Status)?;
    map.claim(layout::COM1_PORT, 8, Port::Uart)?;
    map.claim(0x4d0, 2, Port::Elcr)?;
    map.claim(layout::PM1A_EVENT_PORT, u16::from(acpi_pm::BLOCK_SIZE), Port::AcpiPm)?;
    map.claim(0xcf8, 4, Port::ConfigAddress)?;
    map.claim(0xcfc, 4, Port::ConfigData)?;
    map.claim(layout::SHUTDOWN_PORT, 1, Port::Shutdown)?;
    if extras.firmware.is_some() {
        map.claim(layout::FW_CFG_PORT, 2, Port::FwCfg)?;
        map.claim(layout::FW_CFG_DMA_PORT, 8, Port::FwCfgDma)?;
    }
    if extras.debug_port {
        map.claim(layout::DEBUG_PORT, 1, Port::Debug)?;
    }
    if has_ide(extras) {
        for (n, which) in [ide::Which::Primary, ide::Which::Secondary].into_iter().enumerate() {
            map.claim(layout::IDE_PORTS[n], 8, Port::Ide(which))?;
            map.claim(layout::IDE_CONTROL_PORTS[n], 1, Port::IdeControl(which))?;
        }
    }
    if extras.vga {
        // Between the two places of the CRT controller lies a parallel port that this PC has not.
        for (first, length) in [(0x3b4, 2), (0x3ba, 1), (0x3c0, 0x10), (0x3d4, 2), (0x3da, 1)] {
            map.claim(first, length, Port::Vga)?;
        }
    }
    Ok(map)
}

impl Pc {
    /// IN. False where no device answers any byte of it; `data` is all ones then.
    pub(super) fn read_port(&mut self, port: u16, data: &mut [u8]) -> bool {
        let Some((device, offset)) = self.find(port) else { return self.read_bytes(port, data) };
        let offset = (offset & 0xff) as u8;
        match (device, data.len()) {
            (Port::AcpiPm, _) => {
                self.pm.read(self.now, offset, data);
                self.pm_changed();
            }
            (Port::ConfigData, _) => self.pci.read_data(offset, data),
            (Port::ConfigAddress, 4) if offset == 0 => data.copy_from_slice(&self.pci.read_address().to_le_bytes()),
            (Port::ConfigAddress, 1) if port == layout::RESET_PORT => data.fill(self.reset_control),
            (Port::FwCfgDma, _) if let Some(fw_cfg) = &self.fw_cfg => fw_cfg.read_address(offset, data),
            (Port::Ide(which), _)
                if offset == 0
                    && let Some(ide) = &mut self.ide =>
            {
                ide.read_data(which, data);
                self.ide_changed();
            }
            (_, 1) => return self.read_one(device, offset, port, data),
            _ => return self.read_bytes(port, data),
        }
        true
    }

    fn read_one(&mut self, device: Port, offset: u8, port: u16, data: &mut [u8]) -> bool {
        let value = self.read_device(device, offset, port);
        data.fill(value.unwrap_or(0xff));
        value.is_some()
    }

    /// What a drive has ready, up to the end of its block: there its status changes, and its interrupt rises.
    pub(super) fn read_block(&mut self, port: u16, width: usize, data: &mut [u8]) -> usize {
        let Some((Port::Ide(which), 0)) = self.find(port) else { return 0 };
        let Some(ide) = &mut self.ide else { return 0 };
        let ready = ide.ready(which).min(data.len());
        let length = ready - ready.checked_rem(width).unwrap_or(ready);
        if length != 0 {
            ide.read_data(which, &mut data[..length]);
            self.ide_changed();
        }
        length
    }

    /// OUT. `None` where no device answers any byte of it.
    pub(super) fn write_port(&mut self, port: u16, data: &[u8]) -> Option<Signal> {
        let Some((device, offset)) = self.find(port) else { return self.write_bytes(port, data) };
        let offset = (offset & 0xff) as u8;
        match (device, data) {
            (Port::AcpiPm, _) => {
                let signal = self.pm.write(self.now, offset, data);
                self.pm_changed();
                Some(signal)
            }
            (Port::ConfigData, _) => {
                self.pci.write_data(offset, data);
                // Its registers route PCI's interrupt lines.
                self.intx_changed();
                Some(Signal::None)
            }
            (Port::ConfigAddress, &[a, b, c, d]) if offset == 0 => {
                self.pci.write_address(u32::from_le_bytes([a, b, c, d]));
                Some(Signal::None)
            }
            (Port::ConfigAddress, &[value]) if port == layout::RESET_PORT => Some(self.write_reset_control(value)),
            (Port::FwCfg, &[low, high])
                if offset == 0
                    && let Some(fw_cfg) = &mut self.fw_cfg =>
            {
                fw_cfg.select(u16::from_le_bytes([low, high]));
                Some(Signal::None)
            }
            (Port::FwCfgDma, _) if let Some(fw_cfg) = &mut self.fw_cfg => {
                Some(if fw_cfg.write_address(offset, data) { Signal::Dma } else { Signal::None })
            }
            (Port::Ide(which), _)
                if offset == 0
                    && let Some(ide) = &mut self.ide =>
            {
                ide.write_data(which, data);
                self.ide_changed();
                Some(Signal::None)
            }
            (Port::Status, _) => {
                let value = data.iter().take(4).rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
                Some(Signal::Status(value))
            }
            _ => self.write_bytes(port, data),
        }
    }

    fn read_bytes(&mut self, port: u16, data: &mut [u8]) -> bool {
        let mut answered = false;
        open_bus(data);
        for (n, byte) in (0u16..).zip(data) {
            if let Some(value) = self.read_byte(port.wrapping_add(n)) {
                *byte = value;
                answered = true;
            }
        }
        answered
    }

    fn write_bytes(&mut self, port: u16, data: &[u8]) -> Option<Signal> {
        let mut result = None;
        for (n, &byte) in (0u16..).zip(data) {
            let signal = self.write_byte(port.wrapping_add(n), byte);
            // The first byte that asks for something decides.
            if matches!(result, None | Some(Signal::None)) && signal.is_some() {
                result = signal;
            }
        }
        result
    }

    /// A byte of the eight-bit devices.
    fn read_byte(&mut self, port: u16) -> Option<u8> {
        let (device, offset) = self.find(port)?;
        self.read_device(device, (offset & 0xff) as u8, port)
    }

    /// A byte of what is read most, with as little work as its registers need; `None` for all the rest.
    #[inline(never)]
    pub(super) fn read_frequent(&mut self, device: Port, offset: u8) -> Option<u8> {
        Some(match device {
            Port::SystemControl => self.pit.read_control(self.now),
            // The interrupt mask: nothing is acknowledged by reading it.
            Port::Pic(which) if offset != 0 => self.pic.mask(which)?,
            Port::Uart if offset == LINE_STATUS => self.uart.quiet_line_status()?,
            Port::Post => self.post,
            _ => return None,
        })
    }

    /// A byte of the eight-bit `device` that answers at `port`.
    fn read_device(&mut self, device: Port, offset: u8, port: u16) -> Option<u8> {
        Some(match device {
            Port::Uart => {
                let value = self.uart.read(self.now, offset);
                self.uart_changed();
                value
            }
            Port::Pic(which) => {
                let before = self.pic.intr();
                // A read after the poll command acknowledges.
                let value = self.pic.read(which, offset != 0);
                if self.pic.intr() != before {
                    self.deliver();
                }
                value
            }
            Port::Elcr => self.pic.read_elcr(if offset == 0 { Which::Master } else { Which::Slave }),
            Port::Pit => self.pit.read(self.now, offset),
            Port::SystemControl => self.pit.read_control(self.now),
            Port::KeyboardData => {
                self.i8042.advance(self.now);
                let value = self.i8042.read_data();
                // The next byte is an edge of its own.
                self.drive(layout::KEYBOARD_IRQ, false);
                self.keyboard_changed();
                value
            }
            Port::KeyboardCommand => self.i8042.read_status(),
            Port::FastA20 => self.i8042.read_fast_a20(),
            Port::Cmos if offset == 1 => {
                let value = self.rtc.read_data(self.now);
                self.rtc_changed();
                value
            }
            Port::FwCfg if offset == 1 => self.fw_cfg.as_mut()?.read_data(),
            Port::Ide(which) => {
                let value = self.ide.as_mut()?.read(which, offset);
                self.ide_changed();
                value
            }
            Port::IdeControl(which) => self.ide.as_ref()?.read_alternate_status(which),
            Port::IdeBusMaster => self.ide.as_ref()?.read_bus_master(u16::from(offset)),
            Port::Vga => self.vga.as_mut()?.read(self.now, port)?,
            Port::Debug => DebugPort::READS_AS,
            Port::Post => self.post,
            // The index port is write-only, as are the last two; the others are not eight bits wide.
            Port::Cmos | Port::Status | Port::Shutdown => return None,
            Port::AcpiPm | Port::ConfigAddress | Port::ConfigData | Port::FwCfg | Port::FwCfgDma => return None,
        })
    }

    /// A byte to the eight-bit devices.
    fn write_byte(&mut self, port: u16, value: u8) -> Option<Signal> {
        let (device, offset) = self.find(port)?;
        let offset = (offset & 0xff) as u8;
        let mut signal = Signal::None;
        match device {
            Port::Uart => {
                self.uart.write(self.now, offset, value);
                self.uart_changed();
            }
            Port::Pic(which) => {
                self.pic.write(which, offset != 0, value);
                self.deliver();
            }
            Port::Elcr => {
                self.pic.write_elcr(if offset == 0 { Which::Master } else { Which::Slave }, value);
                self.deliver();
            }
            Port::Pit => {
                self.pit.write(self.now, offset, value);
                self.pit_changed();
                // Rising edges were told already.
                if !self.pit.out0(self.now) && !self.hpet_replaces_legacy() {
                    self.drive(layout::PIT_IRQ, false);
                }
            }
            Port::SystemControl => self.pit.write_control(self.now, value),
            Port::KeyboardData => {
                signal = self.i8042.write_data(value);
                self.keyboard_changed();
            }
            Port::KeyboardCommand => {
                signal = self.i8042.write_command(value);
                self.keyboard_changed();
            }
            Port::FastA20 => signal = self.i8042.write_fast_a20(value),
            Port::Cmos if offset == 0 => self.rtc.write_index(value),
            Port::Cmos => {
                self.rtc.write_data(self.now, value);
                self.rtc_changed();
            }
            Port::Ide(which) => {
                self.ide.as_mut()?.write(which, offset, value);
                self.ide_changed();
            }
            Port::IdeControl(which) => {
                self.ide.as_mut()?.write_control(which, value);
                self.ide_changed();
            }
            Port::IdeBusMaster => self.ide.as_mut()?.write_bus_master(u16::from(offset), value),
            Port::Vga => {
                if !self.vga.as_mut()?.write(port, value) {
                    return None;
                }
            }
            Port::Debug => signal = if self.debug.write(value) { Signal::DebugLine } else { Signal::None },
            Port::Post => self.post = value,
            Port::Shutdown => signal = self.write_shutdown(value),
            Port::AcpiPm | Port::ConfigAddress | Port::ConfigData | Port::Status => return None,
            Port::FwCfg | Port::FwCfgDma => return None,
        }
        Some(signal)
    }

    /// The device at `port`, with how far the port is into its range. Those that do not move go first.
    fn find(&self, port: u16) -> Option<(Port, u16)> {
        if let Some(found) = self.ports.find(port) {
            return Some(found);
        }
        let within = |first: Option<u16>, length: u16, device| {
            let offset = port.checked_sub(first?)?;
            (offset < length).then_some((device, offset))
        };
        within(self.pci.bus_master_ports(), BUS_MASTER_PORTS, Port::IdeBusMaster)
            .or_else(|| within(self.pci.power_ports(), u16::from(acpi_pm::BLOCK_SIZE), Port::AcpiPm))
    }

    pub(super) fn keyboard_changed(&mut self) {
        self.drive(layout::KEYBOARD_IRQ, self.i8042.irq());
        self.refresh(Timer::Keyboard);
    }

    fn write_reset_control(&mut self, value: u8) -> Signal {
        let rises = value & !self.reset_control & RESET_CPU != 0;
        self.reset_control = value & RESET_KEPT;
        if rises { Signal::Reset } else { Signal::None }
    }

    fn write_shutdown(&mut self, value: u8) -> Signal {
        let expected = SHUTDOWN.get(self.shutdown);
        self.shutdown = if expected == Some(&value) { self.shutdown + 1 } else { usize::from(value == SHUTDOWN[0]) };
        if self.shutdown == SHUTDOWN.len() {
            self.shutdown = 0;
            return Signal::PowerOff;
        }
        Signal::None
    }
}
