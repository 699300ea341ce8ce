//! The firmware configuration device (QEMU documentation, "QEMU Firmware Configuration (fw_cfg) Device"): how firmware
//! learns what machine it starts, by selecting items and reading their bytes through a port or by DMA.
//!
//! Owns the items, the selector, how far an item has been read, and the DMA command that is being carried out. All
//! items are read-only. Every number of the device's own is big-endian, those within items little-endian.

use alloc::vec::Vec;
use lamina_arch::addr::Gpa;
use lamina_vmm::chipset::FirmwareFile;
use lamina_vmm::dma::{DmaDirection, DmaRequest, TRANSFER_MAX};
use lamina_vmm::layout;

/// What the address register of DMA reads as.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
const KEY_SIGNATURE: u16 = 0x00;
const KEY_ID: u16 = 0x01;
const KEY_RAM_SIZE: u16 = 0x03;
const KEY_NO_GRAPHICS: u16 = 0x04;
const KEY_CPUS: u16 = 0x05;
const KEY_MAX_CPUS: u16 = 0x0f;
const KEY_DIRECTORY: u16 = 0x19;
/// The first file's.
const KEY_FIRST_FILE: u16 = 0x20;
/// Bits of a key that select; bit 14 would ask for writing, which no item allows.
const KEY_MASK: u16 = 0xbfff;
/// Most files.
const FILES_MAX: usize = 0x1000;
/// Longest name in the directory; a zero byte follows. Unit: bytes.
const NAME_MAX: usize = lamina_vmm::config::FW_CFG_NAME_MAX;
/// Interface: ports, and DMA.
const ID: u32 = 0b11;
/// Number of processors.
const CPUS: u16 = 1;

/// Control field of a DMA command.
const CONTROL_ERROR: u32 = 1 << 0;
const CONTROL_READ: u32 = 1 << 1;
const CONTROL_SKIP: u32 = 1 << 2;
const CONTROL_SELECT: u32 = 1 << 3;
const CONTROL_WRITE: u32 = 1 << 4;
/// A DMA command: control (4 bytes), length (4), address (8).
const COMMAND_SIZE: usize = 16;

/// How far a DMA command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dma {
    Idle,
    /// The command at this address is to be fetched.
    Fetch {
        command: Gpa,
    },
    /// The item's bytes go to `to`.
    Copy {
        command: Gpa,
        to: Gpa,
        left: u32,
    },
    /// The control field is to be overwritten with how it went.
    Report {
        command: Gpa,
        control: u32,
    },
}

/// The device.
#[derive(Clone, Debug, PartialEq)]
pub struct FwCfg {
    files: Vec<FirmwareFile>,
    /// Items that are no files.
    items: Vec<(u16, Vec<u8>)>,
    key: u16,
    offset: usize,
    /// The DMA address register, as its bytes stand in port order.
    address: [u8; 8],
    dma: Dma,
}

impl FwCfg {
    /// The device of a VM with `memory` bytes of memory. To `files` it adds `etc/e820`, the map of memory, unless it
    /// is among them. Where two files have one name, the first counts; a name that is too long does not.
    pub fn new(memory: u64, files: &[FirmwareFile]) -> FwCfg {
        let mut known: Vec<FirmwareFile> = Vec::new();
        for file in files.iter().chain(&[FirmwareFile::new("etc/e820", e820(memory))]) {
            let taken = known.iter().any(|other| other.name == file.name);
            if !taken && file.name.len() <= NAME_MAX && known.len() < FILES_MAX {
                known.push(file.clone());
            }
        }
        let cpus = CPUS.to_le_bytes().to_vec();
        let items = [
            (KEY_SIGNATURE, b"QEMU".to_vec()),
            (KEY_ID, ID.to_le_bytes().to_vec()),
            (KEY_RAM_SIZE, memory.to_le_bytes().to_vec()),
            (KEY_NO_GRAPHICS, 0u16.to_le_bytes().to_vec()),
            (KEY_CPUS, cpus.clone()),
            (KEY_MAX_CPUS, cpus),
            (KEY_DIRECTORY, directory(&known)),
        ];
        FwCfg { files: known, items: items.into(), key: 0, offset: 0, address: [0; 8], dma: Dma::Idle }
    }

    /// Writes the selector (port 0x510, 16 bits).
    pub fn select(&mut self, key: u16) {
        self.key = key & KEY_MASK;
        self.offset = 0;
    }

    /// Reads the data port (0x511): the item's next byte, 0 beyond its end.
    pub fn read_data(&mut self) -> u8 {
        let byte = self.item().get(self.offset).copied().unwrap_or(0);
        self.offset = self.offset.saturating_add(1);
        byte
    }

    /// Reads the DMA address register, `offset` bytes into it: there is a signature.
    pub fn read_address(&self, offset: u8, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = DMA_SIGNATURE.get(at).copied().unwrap_or(0xff);
        }
    }

    /// Writes the DMA address register, `offset` bytes into it. The last byte starts the command; true where a transfer
    /// is now to be done. While one is being carried out, nothing happens.
    pub fn write_address(&mut self, offset: u8, data: &[u8]) -> bool {
        if self.dma != Dma::Idle {
            return false;
        }
        let mut complete = false;
        for (at, &byte) in (usize::from(offset)..).zip(data) {
            if let Some(place) = self.address.get_mut(at) {
                *place = byte;
                complete |= at == 7;
            }
        }
        if complete {
            let command = Gpa(u64::from_be_bytes(core::mem::take(&mut self.address)));
            self.dma = Dma::Fetch { command };
        }
        complete
    }

    /// What is to be transferred next. Where it goes to memory, its bytes are put into `data`.
    pub fn dma_request(&mut self, data: &mut [u8; TRANSFER_MAX]) -> Option<DmaRequest> {
        match self.dma {
            Dma::Idle => None,
            Dma::Fetch { command } => {
                Some(DmaRequest { direction: DmaDirection::FromMemory, gpa: command, length: COMMAND_SIZE })
            }
            Dma::Copy { to, left, .. } => {
                let length = usize::try_from(left).unwrap_or(TRANSFER_MAX).min(TRANSFER_MAX);
                let rest = self.item().get(self.offset..).unwrap_or(&[]);
                for (n, byte) in data[..length].iter_mut().enumerate() {
                    *byte = rest.get(n).copied().unwrap_or(0);
                }
                Some(DmaRequest { direction: DmaDirection::ToMemory, gpa: to, length })
            }
            Dma::Report { command, control } => {
                data[..4].copy_from_slice(&control.to_be_bytes());
                Some(DmaRequest { direction: DmaDirection::ToMemory, gpa: command, length: 4 })
            }
        }
    }

    /// The transfer that was asked for is done, or could not be (`None`).
    pub fn dma_complete(&mut self, data: Option<&[u8]>) {
        self.dma = match (self.dma, data) {
            (Dma::Fetch { command }, Some(bytes)) => self.start(command, bytes),
            // Nobody can be told that its command cannot be read.
            (Dma::Fetch { .. } | Dma::Report { .. } | Dma::Idle, _) => Dma::Idle,
            (Dma::Copy { command, .. }, None) => Dma::Report { command, control: CONTROL_ERROR },
            (Dma::Copy { command, to, left }, Some(bytes)) => {
                self.offset = self.offset.saturating_add(bytes.len());
                let moved = u32::try_from(bytes.len()).unwrap_or(left);
                match (left.saturating_sub(moved), to.checked_add(u64::from(moved))) {
                    (0, _) => Dma::Report { command, control: 0 },
                    (left, Some(to)) => Dma::Copy { command, to, left },
                    (_, None) => Dma::Report { command, control: CONTROL_ERROR },
                }
            }
        };
    }

    /// Begins the command whose `bytes` were fetched.
    fn start(&mut self, command: Gpa, bytes: &[u8]) -> Dma {
        let Some(&[c0, c1, c2, c3, l0, l1, l2, l3, ref address @ ..]) = bytes.first_chunk::<COMMAND_SIZE>() else {
            return Dma::Idle;
        };
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let to = Gpa(u64::from_be_bytes(*address));
        if control & CONTROL_SELECT != 0 {
            self.select((control >> 16 & 0xffff) as u16);
        }
        if control & CONTROL_READ != 0 {
            if length != 0 {
                return Dma::Copy { command, to, left: length };
            }
        } else if control & CONTROL_WRITE != 0 {
            return Dma::Report { command, control: CONTROL_ERROR };
        } else if control & CONTROL_SKIP != 0 {
            self.offset = self.offset.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        }
        Dma::Report { command, control: 0 }
    }

    /// The bytes of the selected item; none where there is no such item.
    fn item(&self) -> &[u8] {
        let file = self.key.checked_sub(KEY_FIRST_FILE).and_then(|n| self.files.get(usize::from(n)));
        match (file, self.items.iter().find(|(key, _)| *key == self.key)) {
            (Some(file), _) => &file.bytes,
            (None, Some((_, bytes))) => bytes,
            (None, None) => &[],
        }
    }
}

/// The directory: a count, then size, key, two unused bytes and name of each file.
fn directory(files: &[FirmwareFile]) -> Vec<u8> {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = number(files.len()).to_vec();
    for (key, file) in (KEY_FIRST_FILE..).zip(files) {
        bytes.extend_from_slice(&number(file.bytes.len()));
        bytes.extend_from_slice(&key.to_be_bytes());
        bytes.extend_from_slice(&[0; 2]);
        let mut name = [0; NAME_MAX + 1];
        for (place, byte) in name[..NAME_MAX].iter_mut().zip(file.name.bytes()) {
            *place = byte;
        }
        bytes.extend_from_slice(&name);
    }
    bytes
}

/// All memory below and above the hole, for firmware to cut its own parts from, and what of the hole is reserved: address,
/// length (8 bytes each), kind (4 bytes; 1 is memory, 2 reserved).
fn e820(memory: u64) -> Vec<u8> {
    let below = memory.min(layout::PCI_HOLE.0);
    let mut bytes = Vec::new();
    let reserved = (layout::ECAM.0, layout::ECAM_SIZE, 2u32);
    for (start, length, kind) in [(0, below, 1), reserved, (layout::ABOVE_4G.0, memory - below, 1)] {
        if length != 0 {
            bytes.extend_from_slice(&start.to_le_bytes());
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&kind.to_le_bytes());
        }
    }
    bytes
}

#[cfg(test)]
#[path = "fw_cfg_tests.rs"]
mod tests;
