//! Multiboot images (Multiboot Specification, version 0.6.96) in ELF64, as far as it is needed here: one that asks for
//! nothing in its header.

use core::ops::Range;

use crate::machine::{self, Descent, Physical};

/// What an ELF file begins with.
pub const ELF_MAGIC: &[u8] = b"\x7fELF";

const ENTRY: usize = 24;
const PROGRAM_HEADERS: usize = 32;
const PROGRAM_HEADER_SIZE: usize = 54;
const PROGRAM_HEADER_COUNT: usize = 56;
const LOAD: u64 = 1;
/// Of the information: the command line is there.
const HAS_COMMAND_LINE: u32 = 1 << 2;
const INFORMATION_SIZE: usize = 116;
/// What is made, from the top of memory down, each in a place of its own. Unit: bytes.
const ROOM: u64 = 0x1_0000;

/// The field of `bytes` (1 to 8) at `at`.
fn field(image: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let mut value = [0; 8];
    value.get_mut(..bytes)?.copy_from_slice(image.get(at..at.checked_add(bytes)?)?);
    Some(u64::from_le_bytes(value))
}

/// A segment that is loaded.
struct Segment<'a> {
    at: u64,
    bytes: &'a [u8],
    /// With what is zero behind the bytes.
    length: u64,
}

fn segments(image: &[u8]) -> impl Iterator<Item = Option<Segment<'_>>> {
    let number = |at, bytes| field(image, at, bytes).and_then(|value| usize::try_from(value).ok());
    let first = number(PROGRAM_HEADERS, 8).unwrap_or(usize::MAX);
    let size = number(PROGRAM_HEADER_SIZE, 2).unwrap_or(0);
    let headers =
        (0..number(PROGRAM_HEADER_COUNT, 2).unwrap_or(0)).map(move |index| first.saturating_add(index * size));
    headers.filter(|&at| field(image, at, 4) == Some(LOAD)).map(move |at| {
        let (offset, length) = (number(at + 8, 8)?, number(at + 32, 8)?);
        let bytes = image.get(offset..offset.checked_add(length)?)?;
        Some(Segment { at: field(image, at + 24, 8)?, bytes, length: field(image, at + 40, 8)? })
    })
}

/// Puts the image and what belongs to it at the top of memory; `None` where something is not as it should be.
pub fn place(memory: &Physical, free: &Range<u64>, image: &[u8], cmdline: &[u8]) -> Option<Descent> {
    let (mut low, mut high) = (u64::MAX, 0);
    for segment in segments(image) {
        let segment = segment?;
        low = low.min(segment.at);
        high = high.max(segment.at.checked_add(segment.length)?);
    }
    let length = high.checked_sub(low)?;
    let top = free.end & !0xfff;
    let code = top.checked_sub(ROOM)?;
    let tables = code.checked_sub(ROOM)?;
    let information = tables.checked_sub(ROOM)?;
    let line = information + 0x1000;
    let from = information.checked_sub(length)? & !0xfff;
    if high > from || from < free.start || cmdline.len() as u64 >= ROOM - 0x2000 {
        return None;
    }
    for at in (from..from + length).step_by(8) {
        memory.write(at, &[0; 8])?;
    }
    for segment in segments(image) {
        let segment = segment?;
        memory.write(from + (segment.at - low), segment.bytes)?;
    }
    let mut bytes = [0; INFORMATION_SIZE];
    bytes[..4].copy_from_slice(&HAS_COMMAND_LINE.to_le_bytes());
    bytes[16..20].copy_from_slice(&u32::try_from(line).ok()?.to_le_bytes());
    memory.write(information, &bytes)?;
    memory.write(line, cmdline)?;
    memory.write(line + cmdline.len() as u64, &[0])?;
    memory.write(code, machine::descent())?;
    let tables = machine::identity_tables(memory, tables)?;
    Some(Descent { code, tables, from, to: low, length, information, entry: field(image, ENTRY, 8)? })
}
