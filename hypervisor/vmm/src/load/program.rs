//! What of an image goes to memory, checked: the segments of an ELF file (System V ABI, "Program Loading and Dynamic
//! Linking"), or one run of bytes.

use alloc::vec;
use alloc::vec::Vec;

use ::elf::ElfBytes;
use ::elf::abi::{EI_CLASS, ELFCLASS64, ELFMAGIC, ET_DYN, ET_EXEC, PT_LOAD};
use ::elf::endian::LittleEndian;
use lamina_arch::addr::Gpa;

use super::bytes::slice_at;
use super::space::Space;
use super::{LoadError, Part, Piece};

/// Most loadable segments.
const SEGMENTS_MAX: usize = 64;

/// Whether the image says that it is a 64-bit ELF file.
pub fn is_elf64(image: &[u8]) -> bool {
    image.starts_with(&ELFMAGIC) && image.get(EI_CLASS) == Some(&ELFCLASS64)
}

/// One segment that goes to memory.
#[derive(Clone, Copy, Debug)]
struct Segment<'a> {
    virtual_address: u64,
    physical_address: u64,
    /// Unit: bytes.
    memory_size: u64,
    bytes: &'a [u8],
}

/// A program, as far as loading needs it.
#[derive(Clone, Debug)]
pub struct Program<'a> {
    segments: Vec<Segment<'a>>,
    entry: u64,
}

impl<'a> Program<'a> {
    /// Reads the headers of an ELF file for one of `machines` (values of `e_machine`).
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn parse_elf(image: &'a [u8], machines: &[u16]) -> Result<Program<'a>, LoadError> {
        // The parser looks the section headers up, too, which loading does not need; where they are cut off, so is
        // something that the image says it has.
        let file = ElfBytes::<LittleEndian>::minimal_parse(image).map_err(|_| LoadError::BadField {
            field: "the ELF header",
            value: image.len() as u64,
            reason: "the file of this many bytes is cut off, or its tables are not where the header says",
        })?;
        let header = &file.ehdr;
        if !machines.contains(&header.e_machine) {
            let value = u64::from(header.e_machine);
            return Err(LoadError::BadField { field: "e_machine", value, reason: "not a program for this processor" });
        }
        if ![ET_EXEC, ET_DYN].contains(&header.e_type) {
            let value = u64::from(header.e_type);
            return Err(LoadError::BadField { field: "e_type", value, reason: "not an executable" });
        }
        let mut segments = Vec::new();
        let loadable = || file.segments().into_iter().flatten().filter(|s| s.p_type == PT_LOAD && s.p_memsz != 0);
        let count = loadable().take(SEGMENTS_MAX + 1).count();
        if count > SEGMENTS_MAX {
            return Err(LoadError::TooManySegments { count: count as u64, limit: SEGMENTS_MAX as u64 });
        }
        for segment in loadable() {
            if segment.p_filesz > segment.p_memsz {
                let reason = "more than p_memsz";
                return Err(LoadError::BadField { field: "p_filesz", value: segment.p_filesz, reason });
            }
            segments.push(Segment {
                virtual_address: segment.p_vaddr,
                physical_address: segment.p_paddr,
                memory_size: segment.p_memsz,
                bytes: slice_at(image, segment.p_offset, segment.p_filesz, "a segment")?,
            });
        }
        if segments.is_empty() {
            return Err(LoadError::BadField { field: "e_phnum", value: 0, reason: "no segment is to be loaded" });
        }
        Ok(Program { segments, entry: header.e_entry })
    }

    /// `bytes` at `address`, with zeros behind them up to `memory_size`; entered at `entry`.
    pub fn flat(address: u64, bytes: &'a [u8], memory_size: u64, entry: u64) -> Program<'a> {
        let segment = Segment { virtual_address: address, physical_address: address, memory_size, bytes };
        Program { segments: vec![segment], entry }
    }

    /// The first address that it takes, and the first behind it.
    pub fn span(&self) -> (u64, u64) {
        let start = self.segments.iter().map(|segment| segment.physical_address).min().unwrap_or(0);
        let end = |segment: &Segment<'_>| segment.physical_address.saturating_add(segment.memory_size);
        (start, self.segments.iter().map(end).max().unwrap_or(0))
    }

    /// Moves all of it, and where it is entered, by the way from `from` to `to`.
    pub fn relocate(&mut self, from: u64, to: u64) {
        let way = to.wrapping_sub(from);
        self.entry = self.entry.wrapping_add(way);
        for segment in &mut self.segments {
            segment.physical_address = segment.physical_address.wrapping_add(way);
            segment.virtual_address = segment.virtual_address.wrapping_add(way);
        }
    }

    /// It is entered at this physical address, which must be in it.
    ///
    /// # Errors
    /// [`LoadError::BadField`], which blames `field`.
    pub fn enter_at(&mut self, entry: u64, field: &'static str) -> Result<(), LoadError> {
        let inside = |segment: &Segment<'_>| {
            entry.checked_sub(segment.physical_address).is_some_and(|offset| offset < segment.memory_size)
        };
        if !self.segments.iter().any(inside) {
            return Err(LoadError::BadField { field, value: entry, reason: "not in the image" });
        }
        self.entry = entry;
        Ok(())
    }

    /// The entry point as a guest-physical address below `end`. An image linked for high virtual addresses names a
    /// virtual one, which the segment that holds it translates.
    ///
    /// # Errors
    /// [`LoadError::BadField`] where it is in no segment.
    pub fn entry(&self, end: u64) -> Result<u64, LoadError> {
        let within = |start: u64, segment: &Segment<'_>| {
            self.entry.checked_sub(start).filter(|&offset| offset < segment.memory_size)
        };
        let physical = self.segments.iter().any(|segment| within(segment.physical_address, segment).is_some());
        let found = if physical {
            Some(self.entry)
        } else {
            self.segments.iter().find_map(|segment| {
                within(segment.virtual_address, segment).and_then(|offset| segment.physical_address.checked_add(offset))
            })
        };
        found.filter(|&entry| entry < end).ok_or(LoadError::BadField {
            field: "e_entry",
            value: self.entry,
            reason: "in no segment that can be reached at the entry",
        })
    }

    /// Makes the entry point the physical address that [`Program::entry`] finds.
    ///
    /// # Errors
    /// As there.
    pub fn fix_entry(&mut self, end: u64) -> Result<(), LoadError> {
        self.entry = self.entry(end)?;
        Ok(())
    }

    /// Takes the segments' places in `space` and adds their bytes to `pieces`. Returns where the last one ends.
    ///
    /// # Errors
    /// [`LoadError::OutsideMemory`], [`LoadError::Overlap`].
    pub fn place(&self, space: &mut Space, pieces: &mut Vec<(Gpa, Piece<'a>)>) -> Result<Gpa, LoadError> {
        let mut end = Gpa(0);
        for segment in &self.segments {
            let at = Gpa(segment.physical_address);
            space.take(Part::Segment, at, segment.memory_size)?;
            pieces.push((at, Piece::Given(segment.bytes)));
            end = end.max(at + segment.memory_size);
        }
        Ok(end)
    }
}
