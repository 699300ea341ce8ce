//! An IDE controller with both of its channels (ATA/ATAPI-4, "Register descriptions", "Packet command protocols"; Intel
//! 82371SB, "IDE Interface"), programmed I/O only, and the drives on them: a CD-ROM drive, or none.
//!
//! Owns the task files, the data phase of a command, and the levels of both interrupt lines. Every command is carried
//! out at once: no guest ever sees a channel busy, but during a reset. A drive that is not there reads as zero. The bus
//! master's registers are kept and have no effect, since no drive offers DMA.

mod channel;

use crate::atapi::Cdrom;
use channel::Channel;

/// Ports of the bus master: eight for each channel.
pub const BUS_MASTER_PORTS: u16 = 16;
/// Bus master command: start, and direction.
const COMMAND_KEPT: u8 = 0x09;
/// Bus master status: which drives firmware set up for DMA.
const STATUS_KEPT: u8 = 0x60;

/// One of the two channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Ports 0x1f0 to 0x1f7 and 0x3f6, interrupt 14.
    Primary,
    /// Ports 0x170 to 0x177 and 0x376, interrupt 15.
    Secondary,
}

/// One channel's half of the bus master.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct BusMaster {
    command: u8,
    status: u8,
    table: [u8; 4],
}

/// The controller.
#[derive(Clone, Debug, PartialEq)]
pub struct Ide {
    channels: [Channel; 2],
    bus_master: [BusMaster; 2],
}

impl Ide {
    /// A controller with `cdrom` as master of the secondary channel, and nothing else.
    pub fn new(cdrom: Option<Cdrom>) -> Ide {
        Ide { channels: [Channel::new(None), Channel::new(cdrom)], bus_master: [BusMaster::default(); 2] }
    }

    /// Reads a register of the task file, 1 to 7 from the channel's first port.
    pub fn read(&mut self, which: Which, register: u8) -> u8 {
        self.channel(which).read(register)
    }

    /// Writes a register of the task file, 1 to 7 from the channel's first port.
    pub fn write(&mut self, which: Which, register: u8, value: u8) {
        self.channel(which).write(register, value);
    }

    /// Reads the data register. Bytes beyond what there is are 0.
    pub fn read_data(&mut self, which: Which, data: &mut [u8]) {
        self.channel(which).read_data(data);
    }

    /// How many bytes the data register gives before the drive has something to say. Unit: bytes.
    pub fn ready(&self, which: Which) -> usize {
        self.channels[which as usize].ready()
    }

    /// Writes the data register.
    pub fn write_data(&mut self, which: Which, data: &[u8]) {
        self.channel(which).write_data(data);
    }

    /// Reads the alternate status.
    pub fn read_alternate_status(&self, which: Which) -> u8 {
        self.channels[which as usize].status()
    }

    /// Writes the device control register.
    pub fn write_control(&mut self, which: Which, value: u8) {
        self.channel(which).write_control(value);
    }

    /// The level of the channel's interrupt line.
    pub fn irq(&self, which: Which) -> bool {
        self.channels[which as usize].irq()
    }

    /// Reads one of the bus master's ports.
    pub fn read_bus_master(&self, offset: u16) -> u8 {
        let half = &self.bus_master[usize::from(offset >> 3 & 1)];
        match offset & 7 {
            0 => half.command,
            2 => half.status,
            at @ 4..=7 => half.table[usize::from(at - 4)],
            _ => 0,
        }
    }

    /// Writes one of the bus master's ports.
    pub fn write_bus_master(&mut self, offset: u16, value: u8) {
        let half = &mut self.bus_master[usize::from(offset >> 3 & 1)];
        match offset & 7 {
            0 => half.command = value & COMMAND_KEPT,
            2 => half.status = value & STATUS_KEPT,
            4 => half.table[0] = value & 0xfc,
            at @ 5..=7 => half.table[usize::from(at - 4)] = value,
            _ => {}
        }
    }

    fn channel(&mut self, which: Which) -> &mut Channel {
        &mut self.channels[which as usize]
    }
}

#[cfg(test)]
#[path = "ide_tests.rs"]
mod tests;
