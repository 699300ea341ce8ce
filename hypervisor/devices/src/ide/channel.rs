//! One IDE channel: the task file that both drives share, and the data phase of the selected one's command.

use crate::atapi::{ANSWER_MAX, Answer, Cdrom};

pub const STATUS_ERROR: u8 = 1 << 0;
pub const STATUS_DATA: u8 = 1 << 3;
/// Seek complete, or service: set by every drive that is at rest.
const STATUS_REST: u8 = 1 << 4;
const STATUS_READY: u8 = 1 << 6;
pub const STATUS_BUSY: u8 = 1 << 7;
const READY: u8 = STATUS_READY | STATUS_REST;
const ERROR_ABORTED: u8 = 1 << 2;
/// Error register after a diagnostic: passed.
const PASSED: u8 = 0x01;
const CONTROL_NO_INTERRUPT: u8 = 1 << 1;
const CONTROL_RESET: u8 = 1 << 2;
/// Device register: the second drive.
const SECOND: u8 = 1 << 4;
/// Device register: bits that read as ones in old drives.
const DEVICE_ONES: u8 = 0xa0;
/// Interrupt reason: the packet is to be written.
const REASON_COMMAND: u8 = 1 << 0;
/// Interrupt reason: to the host.
const REASON_TO_HOST: u8 = 1 << 1;
/// What the signature of a packet device is, in the cylinder registers.
const SIGNATURE: [u8; 2] = [0x14, 0xeb];
const PACKET: usize = 12;

/// Where the bytes of a data phase come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Identify,
    Answer([u8; ANSWER_MAX]),
    /// From this byte of the medium on.
    Medium(u64),
}

/// What the data register is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    None,
    /// It takes the bytes of a packet.
    Packet {
        bytes: [u8; PACKET],
        have: usize,
        limit: u64,
    },
    /// It gives the bytes `at` to `end` of the source, in blocks of at most `limit`; the present one ends at `block`.
    Data {
        source: Source,
        at: u64,
        block: u64,
        end: u64,
        limit: u64,
    },
}

/// The channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Channel {
    master: Option<Cdrom>,
    features: u8,
    error: u8,
    /// Sector count, or why a packet device interrupts.
    reason: u8,
    sector: u8,
    cylinder: [u8; 2],
    device: u8,
    status: u8,
    control: u8,
    interrupt: bool,
    phase: Phase,
}

impl Channel {
    pub fn new(master: Option<Cdrom>) -> Channel {
        let mut channel = Channel {
            master,
            features: 0,
            error: 0,
            reason: 0,
            sector: 0,
            cylinder: [0; 2],
            device: 0,
            status: 0,
            control: 0,
            interrupt: false,
            phase: Phase::None,
        };
        channel.reset();
        channel
    }

    /// Whether the selected drive is there.
    fn present(&self) -> bool {
        self.master.is_some() && self.device & SECOND == 0
    }

    pub fn irq(&self) -> bool {
        self.interrupt && self.present() && self.control & CONTROL_NO_INTERRUPT == 0
    }

    pub fn status(&self) -> u8 {
        match (self.present(), self.control & CONTROL_RESET != 0) {
            (false, _) => 0,
            (true, true) => STATUS_BUSY,
            (true, false) => self.status,
        }
    }

    pub fn read(&mut self, register: u8) -> u8 {
        match register {
            _ if !self.present() => 0,
            1 => self.error,
            2 => self.reason,
            3 => self.sector,
            4 => self.cylinder[0],
            5 => self.cylinder[1],
            6 => self.device | DEVICE_ONES,
            _ => {
                self.interrupt = false;
                self.status()
            }
        }
    }

    pub fn write(&mut self, register: u8, value: u8) {
        match register {
            1 => self.features = value,
            2 => self.reason = value,
            3 => self.sector = value,
            4 => self.cylinder[0] = value,
            5 => self.cylinder[1] = value,
            6 => self.device = value,
            _ => self.command(value),
        }
    }

    pub fn write_control(&mut self, value: u8) {
        let was = core::mem::replace(&mut self.control, value);
        if was & CONTROL_RESET != 0 && value & CONTROL_RESET == 0 {
            self.reset();
        }
    }

    /// How much of the block is left that [`Channel::read_data`] gives.
    pub fn ready(&self) -> usize {
        match self.phase {
            Phase::Data { at, block, .. } if self.present() => usize::try_from(block - at).unwrap_or(0),
            _ => 0,
        }
    }

    pub fn read_data(&mut self, data: &mut [u8]) {
        data.fill(0);
        let Phase::Data { source, at, block, end, limit } = self.phase else { return };
        if !self.present() {
            return;
        }
        let left = usize::try_from(block - at).unwrap_or(usize::MAX);
        let count = data.len().min(left);
        let part = &mut data[..count];
        match (source, &self.master) {
            (Source::Medium(start), Some(cdrom)) => cdrom.read_medium(start.saturating_add(at), part),
            (Source::Answer(bytes), _) => copy(&bytes, at, part),
            (Source::Identify, _) => copy(&Cdrom::identify(), at, part),
            (Source::Medium(_), None) => {}
        }
        let at = at + count as u64;
        self.phase = Phase::Data { source, at, block, end, limit };
        if at == block {
            self.next_block();
        }
    }

    pub fn write_data(&mut self, data: &[u8]) {
        let Phase::Packet { mut bytes, mut have, limit } = self.phase else { return };
        if !self.present() {
            return;
        }
        for &byte in data {
            if let Some(place) = bytes.get_mut(have) {
                *place = byte;
                have += 1;
            }
        }
        self.phase = Phase::Packet { bytes, have, limit };
        if have == PACKET {
            self.packet(&bytes, limit);
        }
    }

    /// What a reset leaves: the signature, nothing in progress, the first drive selected.
    fn reset(&mut self) {
        self.device = 0;
        self.status = 0;
        self.error = PASSED;
        self.interrupt = false;
        self.phase = Phase::None;
        self.sign();
    }

    fn sign(&mut self) {
        (self.reason, self.sector, self.cylinder) = (1, 1, SIGNATURE);
    }

    fn command(&mut self, value: u8) {
        // A diagnostic is for both drives, whichever is selected.
        if value == 0x90 && self.master.is_some() {
            self.reset();
            self.interrupt = true;
            return;
        }
        if !self.present() {
            return;
        }
        self.interrupt = false;
        self.error = 0;
        self.phase = Phase::None;
        match value {
            // DEVICE RESET, which does not interrupt.
            0x08 => self.reset(),
            // PACKET. With DMA, which was not offered, it is none.
            0xa0 if self.features & 1 == 0 => {
                let limit = u64::from(u16::from_le_bytes(self.cylinder));
                self.phase = Phase::Packet { bytes: [0; PACKET], have: 0, limit };
                self.reason = REASON_COMMAND;
                self.status = READY | STATUS_DATA;
            }
            // IDENTIFY PACKET DEVICE
            0xa1 => self.begin(Source::Identify, 512, 512),
            // IDENTIFY DEVICE and READ SECTORS, by which a host tells packet devices from disks.
            0xec | 0x20 => {
                self.sign();
                self.abort();
            }
            // SET FEATURES: transfer mode, of which programmed I/O's are known.
            0xef if self.features == 0x03 && self.reason >> 3 > 1 => self.abort(),
            // IDLE and the like, CHECK POWER MODE (which answers that it runs), SET FEATURES.
            0xe5 => {
                self.complete();
                self.reason = 0xff;
            }
            0xe0..=0xe3 | 0xe6 | 0xef => self.complete(),
            _ => self.abort(),
        }
    }

    fn packet(&mut self, packet: &[u8; PACKET], limit: u64) {
        let Some(cdrom) = &mut self.master else { return };
        match cdrom.command(packet) {
            Ok(Answer::Done) => self.complete(),
            Ok(Answer::Bytes { bytes, length }) => self.begin(Source::Answer(bytes), length as u64, limit),
            Ok(Answer::Medium { start, length }) => self.begin(Source::Medium(start), length, limit),
            Err(sense) => {
                self.complete();
                self.error = sense.key << 4;
                self.status |= STATUS_ERROR;
            }
        }
    }

    /// A data phase of `length` bytes, handed out in blocks of at most `limit` (0 is no limit).
    fn begin(&mut self, source: Source, length: u64, limit: u64) {
        // The register counts even blocks up to 0xfffe.
        let limit = match limit & 0xfffe {
            0 => 0xfffe,
            limit => limit,
        };
        self.phase = Phase::Data { source, at: 0, block: 0, end: length, limit };
        self.next_block();
    }

    fn next_block(&mut self) {
        let Phase::Data { source, at, end, limit, .. } = self.phase else { return };
        if at >= end {
            // IDENTIFY ends with its data; a packet command tells of its end.
            if source == Source::Identify {
                self.phase = Phase::None;
                self.status = READY;
            } else {
                self.complete();
            }
            return;
        }
        let length = limit.min(end - at);
        self.phase = Phase::Data { source, at, block: at + length, end, limit };
        self.cylinder = u16::try_from(length).unwrap_or(0xfffe).to_le_bytes();
        self.reason = REASON_TO_HOST;
        self.status = READY | STATUS_DATA;
        self.interrupt = true;
    }

    fn complete(&mut self) {
        self.phase = Phase::None;
        self.reason = REASON_TO_HOST | REASON_COMMAND;
        self.status = READY;
        self.interrupt = true;
    }

    fn abort(&mut self) {
        self.phase = Phase::None;
        self.error = ERROR_ABORTED;
        self.status = READY | STATUS_ERROR;
        self.interrupt = true;
    }
}

fn copy(from: &[u8], at: u64, to: &mut [u8]) {
    let rest = usize::try_from(at).ok().and_then(|at| from.get(at..)).unwrap_or(&[]);
    for (place, byte) in to.iter_mut().zip(rest) {
        *place = *byte;
    }
}
