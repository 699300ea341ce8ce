//! What both versions of Multiboot have in common: images that say themselves where they go, modules, and the tables of
//! symbols of an ELF file.

use alloc::vec::Vec;

use ::elf::ElfBytes;
use ::elf::abi::{SHF_ALLOC, SHT_STRTAB, SHT_SYMTAB};
use ::elf::endian::LittleEndian;
use ::elf::file::Class;
use lamina_arch::addr::{Gpa, PAGE_4K};

use super::bytes::{low32, put, slice_at};
use super::program::Program;
use super::space::Space;
use super::{LoadError, Module, Part, Piece};
use crate::layout::{HIGH_MEMORY, LOW_MEMORY_END};

/// What we call ourselves.
pub const LOADER_NAME: &str = "Lamina";

/// The text screen of a PC, in the words of the framebuffer information.
pub mod text_screen {
    /// Guest-physical address of the characters.
    pub const BUFFER: u64 = 0xb_8000;
    /// From one line to the next. Unit: bytes.
    pub const PITCH: u32 = COLUMNS * 2;
    /// Unit: characters.
    pub const COLUMNS: u32 = 80;
    /// Unit: characters.
    pub const LINES: u32 = 25;
    /// Of each character.
    pub const BITS: u8 = 16;
    /// Type of framebuffer: text, as EGA has it.
    pub const EGA_TEXT: u8 = 2;
}

/// The address fields of a header, which go before what the image's format says. Version 1 has them in its header,
/// version 2 in the address tag.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Where the beginning of the header goes.
    pub header: u64,
    /// Where the image's first byte that is loaded goes; `None`: the first byte of all.
    pub load: Option<u64>,
    /// Where the loaded bytes end; 0: with the image.
    pub load_end: u64,
    /// Where the zeros behind them end; 0: there are none.
    pub bss_end: u64,
}

impl Addresses {
    /// The program in `image`, whose header is at offset `header`; entered at `entry`.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn program<'a>(self, image: &'a [u8], header: usize, entry: u64) -> Result<Program<'a>, LoadError> {
        let bad = |field, value, reason| LoadError::BadField { field, value, reason };
        let below_image = "so far below header_addr that the image has no byte for it";
        let header = header as u64;
        let (load, offset) = match self.load {
            Some(load) => {
                let before = self.header.checked_sub(load).ok_or(bad("load_addr", load, "above header_addr"))?;
                (load, header.checked_sub(before).ok_or(bad("load_addr", load, below_image))?)
            }
            None => {
                let load = self.header.checked_sub(header);
                (load.ok_or(bad("header_addr", self.header, "so low that the image would start below 0"))?, 0)
            }
        };
        let length = match self.load_end {
            0 => (image.len() as u64).saturating_sub(offset),
            end => end.checked_sub(load).ok_or(bad("load_end_addr", end, "below load_addr"))?,
        };
        let bytes = slice_at(image, offset, length, "the image (by load_end_addr)")?;
        let memory_size = match self.bss_end {
            0 => length,
            end => {
                let size = end.checked_sub(load).filter(|&size| size >= length);
                size.ok_or(bad("bss_end_addr", end, "below the end of what is loaded"))?
            }
        };
        let mut program = Program::flat(load, bytes, memory_size, entry);
        program.enter_at(entry, "entry_addr")?;
        Ok(program)
    }
}

/// A module in memory.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// First byte.
    pub start: Gpa,
    /// First byte behind it.
    pub end: Gpa,
    /// Its command line.
    pub cmdline: &'a str,
}

/// The lowest address for what goes behind an image that ends at `end`: kernels that take the memory behind themselves
/// expect to find modules there.
pub fn behind(end: Gpa, space: &Space) -> Gpa {
    if end <= space.low_end() { end.max(HIGH_MEMORY) } else { HIGH_MEMORY }
}

/// Puts the modules into memory from `floor` on, each at a page of its own.
///
/// # Errors
/// [`LoadError::NoRoom`].
pub fn place_modules<'a>(
    modules: &[Module<'a>],
    floor: Gpa,
    space: &mut Space,
    pieces: &mut Vec<(Gpa, Piece<'a>)>,
) -> Result<Vec<Placed<'a>>, LoadError> {
    let place = |module: &Module<'a>| {
        let start = match module.bytes.len() {
            // An empty module has an address, but takes no place.
            0 => floor,
            length => space.take_lowest(Part::Module, length as u64, PAGE_4K, floor)?,
        };
        pieces.push((start, Piece::Given(module.bytes)));
        Ok(Placed { start, end: start + module.bytes.len() as u64, cmdline: module.cmdline })
    };
    modules.iter().map(place).collect()
}

/// KiB of memory below the legacy area, and KiB from 1 MiB on up to the first hole, as 32-bit fields.
pub fn basic_memory(space: &Space) -> ([u8; 4], [u8; 4]) {
    let kib = |start: Gpa, end: Gpa| low32(end.0.saturating_sub(start.0) >> 10);
    (kib(Gpa(0), LOW_MEMORY_END.min(space.low_end())), kib(HIGH_MEMORY, space.low_end()))
}

/// The section headers of an ELF file, for a program that looks its own symbols up.
#[derive(Clone, Debug)]
pub struct Sections {
    /// Number of headers.
    pub count: u32,
    /// Size of each. Unit: bytes.
    pub entry_size: u32,
    /// Which of them is the section of the sections' names.
    pub names: u32,
    /// The headers. Their addresses say where the sections are in memory.
    pub headers: Vec<u8>,
}

/// Puts the tables of symbols and strings that no segment holds into memory from `floor` on. `None` where the image is
/// no ELF file or has no sections.
///
/// # Errors
/// [`LoadError`].
pub fn place_sections<'a>(
    image: &'a [u8],
    floor: Gpa,
    space: &mut Space,
    pieces: &mut Vec<(Gpa, Piece<'a>)>,
) -> Result<Option<Sections>, LoadError> {
    let Ok(file) = ElfBytes::<LittleEndian>::minimal_parse(image) else { return Ok(None) };
    let Some(table) = file.section_headers().filter(|table| !table.is_empty()) else { return Ok(None) };
    // Width and place of `sh_addr` in a header.
    let (entry_size, address_at, address_width) = match file.ehdr.class {
        Class::ELF32 => (40u16, 12, 4),
        Class::ELF64 => (64, 16, 8),
    };
    let count = u16::try_from(table.len()).map_err(|_| LoadError::BadField {
        field: "e_shnum",
        value: table.len() as u64,
        reason: "too many sections",
    })?;
    let length = u64::from(count) * u64::from(entry_size);
    let mut headers = slice_at(image, file.ehdr.e_shoff, length, "the section headers")?.to_vec();
    for (index, section) in table.iter().enumerate() {
        let symbols = [SHT_SYMTAB, SHT_STRTAB].contains(&section.sh_type);
        if !symbols || section.sh_flags & u64::from(SHF_ALLOC) != 0 || section.sh_size == 0 {
            continue;
        }
        let bytes = slice_at(image, section.sh_offset, section.sh_size, "a table of symbols")?;
        let at = space.take_lowest(Part::Segment, section.sh_size, PAGE_4K, floor)?;
        pieces.push((at, Piece::Given(bytes)));
        if let Some(field) = at.0.to_le_bytes().get(..address_width) {
            put(&mut headers, index * usize::from(entry_size) + address_at, field);
        }
    }
    let names = u32::from(file.ehdr.e_shstrndx);
    Ok(Some(Sections { count: u32::from(count), entry_size: u32::from(entry_size), names, headers }))
}
