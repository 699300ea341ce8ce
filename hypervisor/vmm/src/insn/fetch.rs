//! Fetching and decoding the instruction at RIP.

use crate::fault::{self, Site};
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction};
use lamina_arch::addr::{Gla, PAGE_4K};
use lamina_arch::cr::Efer;
use lamina_arch::event::GuestFault;
use lamina_arch::regs::SysReg;
use lamina_arch::segment::SegmentName;

use super::address::is_canonical;
use super::{MAX_LENGTH, Processor, Purpose, Refused};

/// What was found at RIP.
#[derive(Clone, Copy, Debug)]
pub struct Fetched {
    bytes: [u8; MAX_LENGTH],
    have: usize,
    /// The instruction, if [`Fetched::bytes`] begin with one.
    pub instruction: Result<Instruction, Refused>,
    /// Where.
    pub rip: u64,
}

impl Fetched {
    /// The bytes of the instruction, or of as much as was fetched of what is none.
    pub fn bytes(&self) -> &[u8] {
        let length = self.instruction.map_or(self.have, |instruction| instruction.len());
        self.bytes.get(..length).unwrap_or(&self.bytes)
    }
}

/// Fetches and decodes the instruction at RIP with the guest's privilege. The next page is touched only by an
/// instruction that reaches into it.
pub fn fetch<P: Processor>(processor: &mut P) -> Fetched {
    fault::point(Site::Fetch);
    let cs = processor.segment(SegmentName::Cs);
    let rip = processor.read(SysReg::Rip);
    let long = cs.rights.is_long() && processor.read(SysReg::Efer) & Efer::LMA.bits() != 0;
    let (bits, base) = match (long, cs.rights.is_default32()) {
        (true, _) => (64, 0),
        (false, true) => (32, cs.base),
        (false, false) => (16, cs.base),
    };
    let mut fetched = Fetched { bytes: [0; MAX_LENGTH], have: 0, instruction: Err(Refused::Undecodable), rip };
    // Bytes up to the segment's limit; the rest of the 15 is #GP for whoever needs them.
    let allowed = if long {
        MAX_LENGTH
    } else {
        match u64::from(cs.limit).checked_sub(rip) {
            Some(left) => usize::try_from(left).map_or(MAX_LENGTH, |left| left.saturating_add(1).min(MAX_LENGTH)),
            None => 0,
        }
    };
    loop {
        if fetched.have == allowed {
            // Past the segment's limit, or longer than an instruction can be.
            fetched.instruction = Err(GuestFault::GP0.into());
            return fetched;
        }
        let mut at = Gla(base.wrapping_add(rip).wrapping_add(fetched.have as u64));
        if !long {
            at.0 &= 0xffff_ffff;
        }
        if long && !is_canonical(processor, at.0) {
            fetched.instruction = Err(GuestFault::GP0.into());
            return fetched;
        }
        let gpa = match processor.translate(at, Purpose::Fetch) {
            Ok(gpa) => gpa,
            Err(fault) => {
                fetched.instruction = Err(fault.into());
                return fetched;
            }
        };
        let left = usize::try_from(PAGE_4K - at.offset_in(PAGE_4K)).unwrap_or(1);
        let end = allowed.min(fetched.have + left);
        if let Some(part) = fetched.bytes.get_mut(fetched.have..end) {
            processor.load(gpa, part);
        }
        fetched.have = end;
        match decode(fetched.bytes.get(..end).unwrap_or_default(), bits, rip) {
            Decoded::Instruction(instruction) => {
                fetched.instruction = Ok(instruction);
                return fetched;
            }
            Decoded::Nothing => {
                fetched.instruction = Err(Refused::Undecodable);
                return fetched;
            }
            Decoded::Undefined => {
                fetched.instruction = Err(GuestFault::UD.into());
                return fetched;
            }
            Decoded::Incomplete => {}
        }
    }
}

enum Decoded {
    Instruction(Instruction),
    Nothing,
    /// LOCK in front of what cannot be locked. A processor refuses it before it accesses anything; QEMU's emulation (7.2)
    /// takes no notice of it.
    Undefined,
    /// The bytes end before the instruction does.
    Incomplete,
}

fn decode(bytes: &[u8], bits: u32, rip: u64) -> Decoded {
    let run = |bytes, options| {
        let mut decoder = Decoder::with_ip(bits, bytes, rip, options);
        let instruction = decoder.decode();
        (instruction, decoder.last_error())
    };
    let (instruction, error) = run(bytes, DecoderOptions::NONE);
    if instruction.code() != Code::INVALID {
        return Decoded::Instruction(instruction);
    }
    // With 15 bytes the decoder calls "too long" what it calls "incomplete" with fewer.
    let incomplete = match bytes {
        _ if error == DecoderError::NoMoreBytes => true,
        [shorter @ .., _] if bytes.len() == MAX_LENGTH => {
            run(shorter, DecoderOptions::NONE).1 == DecoderError::NoMoreBytes
        }
        _ => false,
    };
    if incomplete {
        return Decoded::Incomplete;
    }
    let (lenient, _) = run(bytes, DecoderOptions::NO_INVALID_CHECK);
    if lenient.code() != Code::INVALID && lenient.has_lock_prefix() { Decoded::Undefined } else { Decoded::Nothing }
}
