//! The segments of an ELF file, checked (System V ABI, "Program Loading and Dynamic Linking").

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

/// An ELF file, as far as loading needs it.
#[derive(Clone, Debug)]
pub struct ElfImage<'a> {
    segments: Vec<Segment<'a>>,
    entry: u64,
}

impl<'a> ElfImage<'a> {
    /// Reads the headers of `image` for one of `machines` (values of `e_machine`).
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn parse(image: &'a [u8], machines: &[u16]) -> Result<ElfImage<'a>, LoadError> {
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
        Ok(ElfImage { segments, entry: header.e_entry })
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
