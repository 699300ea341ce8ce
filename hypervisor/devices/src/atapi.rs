//! A CD-ROM drive's packet commands (SCSI Multimedia Commands, MMC-3, and SCSI Primary Commands, SPC-2, as ATA/ATAPI-4
//! transports them), and what it tells of itself.
//!
//! Owns the sense data and whether the tray is open and locked; the medium is an image that nobody changes. Moves no
//! data: a command's answer is either bytes in a small buffer or a range of the medium, for the IDE channel to hand out.

/// Size of a block of the medium. Unit: bytes.
pub const BLOCK: u64 = 2048;
/// Bytes of the longest answer that is not data of the medium.
pub const ANSWER_MAX: usize = 64;
/// First track, and the only one.
const TRACK: u8 = 1;
/// What a table of contents calls the lead-out area.
const LEAD_OUT: u8 = 0xaa;
/// A track of data, which may be copied.
const DATA_TRACK: u8 = 0x14;
/// Frames of pre-gap before block 0, and frames per second, in times on a disc.
const PRE_GAP: u64 = 150;
const FRAMES: u64 = 75;
/// Profile: CD-ROM.
const PROFILE_CD_ROM: u8 = 0x08;

/// What went wrong: sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// The sense key.
    pub key: u8,
    code: u8,
    qualifier: u8,
}

impl Sense {
    const NONE: Sense = Sense { key: 0, code: 0, qualifier: 0 };
    /// Medium not present, tray open.
    const NO_MEDIUM: Sense = Sense { key: 2, code: 0x3a, qualifier: 2 };
    const INVALID_COMMAND: Sense = Sense { key: 5, code: 0x20, qualifier: 0 };
    const OUT_OF_RANGE: Sense = Sense { key: 5, code: 0x21, qualifier: 0 };
    const INVALID_FIELD: Sense = Sense { key: 5, code: 0x24, qualifier: 0 };
    const REMOVAL_PREVENTED: Sense = Sense { key: 5, code: 0x53, qualifier: 2 };
}

/// What a command answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing but success.
    Done,
    /// The first `length` of these bytes.
    Bytes {
        /// What to hand out.
        bytes: [u8; ANSWER_MAX],
        /// How much of it.
        length: usize,
    },
    /// Bytes of the medium, `length` from `start` on.
    Medium {
        /// Unit: bytes.
        start: u64,
        /// Unit: bytes.
        length: u64,
    },
}

impl Answer {
    /// At most `allowed` of `bytes`.
    fn of(bytes: &[u8], allowed: usize) -> Answer {
        let mut answer = [0; ANSWER_MAX];
        for (place, byte) in answer.iter_mut().zip(bytes) {
            *place = *byte;
        }
        match bytes.len().min(ANSWER_MAX).min(allowed) {
            0 => Answer::Done,
            length => Answer::Bytes { bytes: answer, length },
        }
    }
}

/// The drive.
#[derive(Clone, Debug, PartialEq)]
pub struct Cdrom {
    medium: &'static [u8],
    sense: Sense,
    locked: bool,
    open: bool,
}

impl Cdrom {
    /// A drive with the image `medium` in it.
    pub const fn new(medium: &'static [u8]) -> Cdrom {
        Cdrom { medium, sense: Sense::NONE, locked: false, open: false }
    }

    /// Copies from the medium, `offset` bytes into it. Behind its end are zeros.
    pub fn read_medium(&self, offset: u64, data: &mut [u8]) {
        let rest = usize::try_from(offset).ok().and_then(|at| self.medium.get(at..)).unwrap_or(&[]);
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = rest.get(n).copied().unwrap_or(0);
        }
    }

    /// The 512 bytes of IDENTIFY PACKET DEVICE (ATA/ATAPI-4, "IDENTIFY PACKET DEVICE"). No DMA of any kind is offered.
    pub fn identify() -> [u8; 512] {
        let mut bytes = [0; 512];
        let mut word = |at: usize, value: u16| {
            if let Some(place) = bytes.get_mut(2 * at..2 * at + 2) {
                place.copy_from_slice(&value.to_le_bytes());
            }
        };
        // ATAPI, CD-ROM, removable, data requested within 50 us, packets of 12 bytes.
        word(0, 0x85c0);
        // LBA, IORDY.
        word(49, 0x0a00);
        // Words 64 to 70 are valid: modes 3 and 4, 120 ns.
        word(53, 0x0002);
        word(64, 0x0003);
        word(67, 120);
        word(68, 120);
        // ATA/ATAPI-4; NOP, DEVICE RESET, PACKET are supported and on.
        word(80, 0x001e);
        for at in [82, 85] {
            word(at, 0x4210);
        }
        for at in [83, 84, 87] {
            word(at, 0x4000);
        }
        // Strings are padded with blanks, and the bytes of each word are swapped.
        for (first, words, text) in [(10, 10, "1"), (23, 4, "1.0"), (27, 20, "LAMINA CD-ROM")] {
            let text = text.as_bytes();
            for n in 0..words {
                let at = |i: usize| text.get(i).copied().unwrap_or(b' ');
                word(first + n, u16::from_be_bytes([at(2 * n), at(2 * n + 1)]));
            }
        }
        bytes
    }

    /// Carries out the command in `packet`.
    ///
    /// # Errors
    /// The sense key and codes; REQUEST SENSE tells them again.
    pub fn command(&mut self, packet: &[u8; 12]) -> Result<Answer, Sense> {
        let result = self.carry_out(packet);
        match result {
            Err(sense) => self.sense = sense,
            // REQUEST SENSE tells what it clears.
            Ok(_) => self.sense = Sense::NONE,
        }
        result
    }

    fn carry_out(&mut self, packet: &[u8; 12]) -> Result<Answer, Sense> {
        let [code, p1, p2, p3, p4, p5, p6, p7, p8, p9, ..] = *packet;
        let short = usize::from(p4);
        let long = usize::from(u16::from_be_bytes([p7, p8]));
        let block = u64::from(u32::from_be_bytes([p2, p3, p4, p5]));
        match code {
            // TEST UNIT READY
            0x00 => self.ready().map(|()| Answer::Done),
            // REQUEST SENSE
            0x03 => {
                let Sense { key, code, qualifier } = self.sense;
                let sense = [0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0];
                Ok(Answer::of(&sense, short))
            }
            // INQUIRY
            0x12 => inquiry(p1, short),
            // START STOP UNIT
            0x1b => self.start_stop(p4),
            // PREVENT ALLOW MEDIUM REMOVAL
            0x1e => {
                self.locked = p4 & 1 != 0;
                Ok(Answer::Done)
            }
            // READ CAPACITY: the last block, and the size of each.
            0x25 => {
                self.ready()?;
                let last = be32(self.blocks().saturating_sub(1));
                let [a, b, c, d] = be32(BLOCK);
                Ok(Answer::of(&[last[0], last[1], last[2], last[3], a, b, c, d], ANSWER_MAX))
            }
            // READ(10), READ(12)
            0x28 => self.read(block, u64::from(u16::from_be_bytes([p7, p8]))),
            0xa8 => self.read(block, u64::from(u32::from_be_bytes([p6, p7, p8, p9]))),
            // SEEK(10)
            0x2b => {
                self.ready()?;
                if block < self.blocks() { Ok(Answer::Done) } else { Err(Sense::OUT_OF_RANGE) }
            }
            // READ TOC/PMA/ATIP; the format was in byte 9 before it was in byte 2.
            0x43 => self.table_of_contents(p1 & 2 != 0, if p2 & 0xf != 0 { p2 & 0xf } else { p9 >> 6 }, p6, long),
            // GET CONFIGURATION
            0x46 => Ok(self.configuration(p1 & 3, u16::from_be_bytes([p2, p3]), long)),
            // GET EVENT STATUS NOTIFICATION
            0x4a => self.event_status(p1, p4, long),
            // READ DISC INFORMATION
            0x51 => {
                self.ready()?;
                // Complete, one session, one track, no more to be written.
                let mut information = [0; 34];
                [information[1], information[2]] = [32, 0x0e];
                [information[3], information[4], information[5], information[6]] = [TRACK; 4];
                [information[7]] = [0x20];
                Ok(Answer::of(&information, long))
            }
            // MODE SENSE(10)
            0x5a => self.mode_sense(p2, long),
            // MECHANISM STATUS
            0xbd => Ok(Answer::of(&[0; 8], usize::from(u16::from_be_bytes([p8, p9])))),
            // SET CD SPEED
            0xbb => Ok(Answer::Done),
            _ => Err(Sense::INVALID_COMMAND),
        }
    }

    fn blocks(&self) -> u64 {
        (self.medium.len() as u64).div_ceil(BLOCK)
    }

    fn ready(&self) -> Result<(), Sense> {
        if self.open || self.medium.is_empty() { Err(Sense::NO_MEDIUM) } else { Ok(()) }
    }

    fn read(&self, first: u64, count: u64) -> Result<Answer, Sense> {
        self.ready()?;
        if first + count > self.blocks() {
            return Err(Sense::OUT_OF_RANGE);
        }
        if count == 0 { Ok(Answer::Done) } else { Ok(Answer::Medium { start: first * BLOCK, length: count * BLOCK }) }
    }

    fn start_stop(&mut self, what: u8) -> Result<Answer, Sense> {
        // Bit 1: load or eject, bit 0: which; without it, the motor's business.
        match what & 3 {
            2 if self.locked => return Err(Sense::REMOVAL_PREVENTED),
            2 => self.open = true,
            3 => self.open = false,
            _ => {}
        }
        Ok(Answer::Done)
    }

    fn table_of_contents(&self, times: bool, format: u8, from: u8, allowed: usize) -> Result<Answer, Sense> {
        self.ready()?;
        let address = |block: u64| if times { time(block) } else { be32(block) };
        let descriptor = |track: u8, block: u64| {
            let [a, b, c, d] = address(block);
            [0, DATA_TRACK, track, 0, a, b, c, d]
        };
        let mut toc = [0; 20];
        let length = match format {
            0 if from > TRACK && from != LEAD_OUT => return Err(Sense::INVALID_FIELD),
            0 if from == LEAD_OUT => {
                toc[4..12].copy_from_slice(&descriptor(LEAD_OUT, self.blocks()));
                12
            }
            0 => {
                toc[4..12].copy_from_slice(&descriptor(TRACK, 0));
                toc[12..20].copy_from_slice(&descriptor(LEAD_OUT, self.blocks()));
                20
            }
            // Where the last session begins: there is one.
            1 => {
                toc[4..12].copy_from_slice(&descriptor(TRACK, 0));
                12
            }
            _ => return Err(Sense::INVALID_FIELD),
        };
        // The length counts what follows it; then the first and the last track.
        [toc[1], toc[2], toc[3]] = [length - 2, TRACK, TRACK];
        Ok(Answer::of(&toc[..usize::from(length)], allowed))
    }

    /// Profile list, core and removable medium features; `which` 2: only the one numbered `from`.
    fn configuration(&self, which: u8, from: u16, allowed: usize) -> Answer {
        let current = u8::from(self.ready().is_ok());
        let profile = if current != 0 { PROFILE_CD_ROM } else { 0 };
        let mut bytes = [0; ANSWER_MAX];
        let mut length = 8;
        let features: [(u16, &[u8]); 3] = [
            (0, &[0, 0, 0x03, 4, 0, PROFILE_CD_ROM, current, 0]),
            // Core: the interface is ATAPI.
            (1, &[0, 1, 0x03, 4, 0, 0, 0, 2]),
            // Removable medium: a tray, which can be locked and opened.
            (3, &[0, 3, 0x03, 4, 0x29, 0, 0, 0]),
        ];
        for (number, feature) in features {
            if if which == 2 { number == from } else { number >= from } {
                bytes[length..length + feature.len()].copy_from_slice(feature);
                length += feature.len();
            }
        }
        // What follows the first four bytes; and the current profile.
        bytes[3] = u8::try_from(length - 4).unwrap_or(u8::MAX);
        bytes[7] = profile;
        Answer::of(&bytes[..length], allowed)
    }

    fn event_status(&self, flags: u8, classes: u8, allowed: usize) -> Result<Answer, Sense> {
        // Without the immediate bit, the drive would have to tell when something happens.
        if flags & 1 == 0 {
            return Err(Sense::INVALID_FIELD);
        }
        // Class 4 is the medium's; no other is known.
        const MEDIA: u8 = 1 << 4;
        if classes & MEDIA == 0 {
            return Ok(Answer::of(&[0, 2, 0x80, MEDIA], allowed));
        }
        let present = self.ready().is_ok();
        let status = u8::from(self.open) | u8::from(present) << 1;
        Ok(Answer::of(&[0, 6, 4, MEDIA, 0, status, 0, 0], allowed))
    }

    fn mode_sense(&self, page: u8, allowed: usize) -> Result<Answer, Sense> {
        let mut bytes = [0; 30];
        let length = match page & 0x3f {
            // Read error recovery.
            0x01 => {
                [bytes[8], bytes[9]] = [0x01, 6];
                16
            }
            // Capabilities: a tray that can be locked and opened, multi-session discs.
            0x2a => {
                [bytes[8], bytes[9]] = [0x2a, 0x14];
                [bytes[12], bytes[14]] = [0x40, 0x29 | u8::from(self.locked) << 1];
                30
            }
            _ => return Err(Sense::INVALID_FIELD),
        };
        bytes[1] = length - 2;
        // Medium type: a data disc, or the door is open.
        bytes[2] = if self.ready().is_ok() { 0x01 } else { 0x71 };
        Ok(Answer::of(&bytes[..usize::from(length)], allowed))
    }
}

fn inquiry(flags: u8, allowed: usize) -> Result<Answer, Sense> {
    // Vital product data are not there.
    if flags & 1 != 0 {
        return Err(Sense::INVALID_FIELD);
    }
    // CD-ROM, removable, no version, an ATAPI response; 31 bytes follow.
    let mut bytes = *b"\x05\x80\x00\x21\x1f\0\0\0LAMINA  CD-ROM          1.0 ";
    bytes[4] = 31;
    Ok(Answer::of(&bytes, allowed))
}

fn be32(value: u64) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes()
}

/// The time on a disc at `block`: minute, second, frame.
fn time(block: u64) -> [u8; 4] {
    let frames = block + PRE_GAP;
    let part = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
    [0, part(frames / FRAMES / 60), part(frames / FRAMES % 60), part(frames % FRAMES)]
}

#[cfg(test)]
#[path = "atapi_tests.rs"]
mod tests;
