//! PCI configuration space by mechanism 1 (PCI Local Bus Specification, "Configuration Mechanism #1") and in memory (PCI
//! Express Base Specification, "PCI Express Enhanced Configuration Access Mechanism (ECAM)"), with the
//! functions of a PC of the i440FX kind: host bridge (Intel 82441FX), ISA bridge, IDE (Intel 82371SB) and power
//! management (Intel 82371AB).
//!
//! Owns the address register and the configuration registers. Everywhere else on the bus reads give all ones, writes
//! go nowhere. What the registers mean beyond their own bits is for others to act on: [`Pci::attributes`] tells what
//! the programmable attribute map says of an address, [`Pci::bus_master_ports`] and [`Pci::power_ports`] where IDE's bus
//! master and power management answer, [`Pci::route`] which interrupt a PCI interrupt line has. The map has no effect on memory: all of 0xc0000 to 0xfffff
//! is memory that the guest may write, filled with the firmware's image at the start. Firmware that shadows itself
//! copies that image over itself, and finds afterwards what it wrote.

mod function;

use alloc::vec::Vec;
use function::{Function, SIZE};
use lamina_arch::addr::Gpa;
use lamina_vmm::fault::{self, Site};
use lamina_vmm::layout::{PIRQ_ISA_IRQS, PM1A_EVENT_PORT};

/// Address register: the data port reaches configuration space.
const ENABLE: u32 = 1 << 31;
/// Address register: bits that exist (enable, bus, device, function, doubleword).
const ADDRESS_MASK: u32 = ENABLE | 0x00ff_fffc;
/// Bus, device and function, as the address register packs them.
const HOST_BRIDGE: u32 = 0x0000;
const ISA_BRIDGE: u32 = 0x0008;
const IDE: u32 = 0x0009;
const POWER: u32 = 0x000b;
/// Command register: decodes ports.
const COMMAND_IO: u8 = 1 << 0;
/// Host bridge: the first of the programmable attribute map's seven registers.
const PAM: usize = 0x59;
/// ISA bridge: route of the first of four interrupt lines.
const PIRQ: usize = 0x60;
/// PIRQ route: goes nowhere.
const PIRQ_OFF: u8 = 1 << 7;
/// IDE: base of the bus master's ports.
const BAR4: usize = 0x20;
/// Power management: base of its ports; and whether they answer there.
const PMBASE: usize = 0x40;
const PMREGMISC: usize = 0x80;
/// Where the bus master's ports are before anyone moves them.
const BUS_MASTER_PORT: u16 = 0xc000;
/// Subsystem of a machine that has the firmware configuration device: vendor and device of QEMU's, by which SeaBIOS
/// knows where to look for it.
const SUBSYSTEM: [u8; 4] = [0xf4, 0x1a, 0x00, 0x11];

/// Which functions there are besides the two bridges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Functions {
    /// The IDE controller, 00:01.1.
    pub ide: bool,
    /// What firmware needs: power management, 00:01.3, and subsystem identifiers of the host bridge.
    pub firmware: bool,
}

/// What the programmable attribute map says of an address (Intel 82441FX, "PAM: Programmable Attribute Map Registers").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Reads go to memory, else to the ROM.
    pub read: bool,
    /// Writes go to memory, else nowhere.
    pub write: bool,
}

/// Configuration space and its address register.
#[derive(Clone, Debug, PartialEq)]
pub struct Pci {
    address: u32,
    /// Each with its bus, device and function number.
    functions: Vec<(u32, Function)>,
}

impl Pci {
    /// As after power-on.
    pub fn new(present: Functions) -> Pci {
        let mut functions =
            Vec::from([(HOST_BRIDGE, host_bridge(present.firmware)), (ISA_BRIDGE, isa_bridge(&present))]);
        if present.ide {
            functions.push((IDE, ide()));
        }
        if present.firmware {
            functions.push((POWER, power()));
        }
        Pci { address: 0, functions }
    }

    /// Reads the address register (a doubleword at 0xcf8; any other access there is no business of PCI's).
    pub const fn read_address(&self) -> u32 {
        self.address
    }

    /// Writes the address register.
    pub const fn write_address(&mut self, value: u32) {
        self.address = value & ADDRESS_MASK;
    }

    /// Reads through the data port, `offset` bytes from 0xcfc. What lies beyond 0xcff reads as ones.
    pub fn read_data(&self, offset: u8, data: &mut [u8]) {
        fault::point(Site::PciRead);
        let base = self.register();
        let function = self.target().and_then(|target| self.function(target));
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = match function {
                Some(function) if at < 4 => function.read(base + at),
                _ => 0xff,
            };
        }
    }

    /// Writes through the data port, `offset` bytes from 0xcfc.
    pub fn write_data(&mut self, offset: u8, data: &[u8]) {
        fault::point(Site::PciWrite);
        let base = self.register();
        let Some(target) = self.target() else { return };
        let Some(function) = self.function_mut(target) else { return };
        for (at, &byte) in (usize::from(offset)..4).zip(data) {
            function.write(base + at, byte);
        }
    }

    /// Reads at `offset` in the configuration space in memory. Functions have no registers beyond their first 256 bytes.
    pub fn read_memory(&self, offset: u64, data: &mut [u8]) {
        let (target, register) = place(offset);
        let function = self.function(target);
        for (at, byte) in (register..).zip(data) {
            *byte = match function {
                Some(function) if at < SIZE => function.read(at),
                _ => 0xff,
            };
        }
    }

    /// Writes at `offset` in the configuration space in memory.
    pub fn write_memory(&mut self, offset: u64, data: &[u8]) {
        let (target, register) = place(offset);
        let Some(function) = self.function_mut(target) else { return };
        for (at, &byte) in (register..SIZE).zip(data) {
            function.write(at, byte);
        }
    }

    /// What the programmable attribute map says of `gpa`; `None` outside of 0xc0000 to 0xfffff.
    pub fn attributes(&self, gpa: Gpa) -> Option<Attributes> {
        // The map's nibbles: none, the upper 64 KiB, then 16 KiB each from 0xc0000 on.
        let nibble = match gpa.0 {
            0xf_0000..=0xf_ffff => 1,
            0xc_0000..=0xe_ffff => usize::try_from((gpa.0 - 0xc_0000) >> 14).ok()? + 2,
            _ => return None,
        };
        let bits = self.function(HOST_BRIDGE)?.read(PAM + nibble / 2) >> (4 * (nibble & 1));
        Some(Attributes { read: bits & 1 != 0, write: bits & 2 != 0 })
    }

    /// The first of the 16 ports where IDE's bus master answers; `None` where it does not.
    pub fn bus_master_ports(&self) -> Option<u16> {
        let ide = self.function(IDE)?;
        let base = u16::from_le_bytes([ide.read(BAR4) & 0xf0, ide.read(BAR4 + 1)]);
        let high = ide.read(BAR4 + 2) | ide.read(BAR4 + 3);
        (ide.read(0x04) & COMMAND_IO != 0 && high == 0 && base != 0).then_some(base)
    }

    /// The first of the ports where power management answers besides those that ACPI tells of; `None` where it does not.
    pub fn power_ports(&self) -> Option<u16> {
        let power = self.function(POWER)?;
        let base = u16::from_le_bytes([power.read(PMBASE) & 0xc0, power.read(PMBASE + 1)]);
        (power.read(PMREGMISC) & 1 != 0 && base != 0).then_some(base)
    }

    /// The ISA interrupt that PCI interrupt line `pirq` (0 to 3: A to D) is routed to.
    pub fn route(&self, pirq: u8) -> Option<u8> {
        let route = self.function(ISA_BRIDGE)?.read(PIRQ + usize::from(pirq & 3));
        // Interrupts 0 to 2, 8 and 13 are taken, and reserved as routes.
        let reserved = matches!(route & 0xf, 0..=2 | 8 | 13);
        (route & PIRQ_OFF == 0 && !reserved).then_some(route & 0xf)
    }

    const fn register(&self) -> usize {
        (self.address & 0xfc) as usize
    }

    /// Bus, device and function of the address register, as it packs them; `None` while it is not enabled.
    const fn target(&self) -> Option<u32> {
        if self.address & ENABLE != 0 { Some(self.address >> 8 & 0xffff) } else { None }
    }

    fn function(&self, target: u32) -> Option<&Function> {
        self.functions.iter().find(|(number, _)| *number == target).map(|(_, function)| function)
    }

    fn function_mut(&mut self, target: u32) -> Option<&mut Function> {
        self.functions.iter_mut().find(|(number, _)| *number == target).map(|(_, function)| function)
    }
}

const _: () = assert!(PAM + 12 / 2 < SIZE);

/// Bus, device and function, as the address register packs them, and the register at `offset` in the space in memory.
const fn place(offset: u64) -> (u32, usize) {
    ((offset >> 12 & 0xffff) as u32, (offset & 0xfff) as usize)
}

/// Command: memory and bus master are on and stay so.
fn host_bridge(firmware: bool) -> Function {
    let bridge = Function::new(0x8086, 0x1237, 0x06_0000, 2)
        .preset(0x04, &[0x06])
        .allow(0x05, 0x05, 0x01)
        .allow(0x0d, 0x0d, 0xf8)
        .allow(PAM, 0x5f, 0x77)
        // System management RAM, which there is not: its register is kept, for firmware that looks whether it is closed.
        .allow(0x72, 0x72, 0x7f);
    if firmware { bridge.preset(0x2c, &SUBSYSTEM).preset(0x72, &[0x02]) } else { bridge }
}

/// Command: all three accesses are on. Interrupt routes start disconnected where firmware will make them, else as it would
/// have.
fn isa_bridge(present: &Functions) -> Function {
    let multifunction = present.ide || present.firmware;
    let routes = if present.firmware { [PIRQ_OFF; 4] } else { PIRQ_ISA_IRQS };
    Function::new(0x8086, 0x7000, 0x06_0100, 0)
        .preset(0x04, &[0x07])
        .preset(0x0e, &[if multifunction { 0x80 } else { 0 }])
        .preset(0x4c, &[0x4d, 0x00, 0x03])
        .preset(PIRQ, &routes)
        .allow(0x4c, 0x4c, 0xff)
        .allow(0x4e, 0x4f, 0xff)
        .allow(PIRQ, PIRQ + 3, 0x8f)
        .allow(0x69, 0x69, 0xfe)
        .allow(0x82, 0x82, 0x0f)
}

/// Both channels at their ISA ports and interrupts, whatever the timing registers say. Ports and bus master are on, as
/// firmware leaves them.
fn ide() -> Function {
    let [low, high] = BUS_MASTER_PORT.to_le_bytes();
    Function::new(0x8086, 0x7010, 0x01_0180, 0)
        .preset(0x04, &[COMMAND_IO | 0x04])
        .allow(0x04, 0x04, 0x05)
        .allow(0x0d, 0x0d, 0xf0)
        .preset(BAR4, &[low | 1, high])
        .allow(BAR4, BAR4, 0xf0)
        .allow(BAR4 + 1, BAR4 + 3, 0xff)
        // The decode enables of both channels.
        .preset(0x40, &[0x00, 0x80, 0x00, 0x80])
        .allow(0x40, 0x44, 0xff)
}

/// The function by which firmware and guests know where the power management ports are, and move them. There is no SMBus behind it (its host controller reads as not enabled), and no system management mode: the control
/// register says that its interrupt is set up already, so that firmware does not try to.
fn power() -> Function {
    let [low, high] = PM1A_EVENT_PORT.to_le_bytes();
    Function::new(0x8086, 0x7113, 0x06_8000, 3)
        .preset(0x04, &[COMMAND_IO])
        .preset(0x3c, &[9, 1])
        .allow(0x3c, 0x3c, 0xff)
        .preset(PMBASE, &[low | 1, high])
        .allow(PMBASE, PMBASE, 0xc0)
        .allow(PMBASE + 1, PMBASE + 1, 0xff)
        .preset(0x5b, &[0x02])
        .preset(PMREGMISC, &[0x01])
        .allow(PMREGMISC, PMREGMISC, 0x01)
}

#[cfg(test)]
#[path = "pci_tests.rs"]
mod tests;
