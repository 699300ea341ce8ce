//! The information structure of Multiboot 2: tags, each at a multiple of 8 bytes.

use alloc::vec::Vec;

use lamina_arch::addr::{Gpa, PAGE_4K};

use crate::load::bytes::{low32, put};
use crate::load::multiboot::{LOADER_NAME, Placed, Sections, basic_memory, text_screen};
use crate::load::space::Space;
use crate::load::{BOOT_DATA_FLOOR, LoadArgs, LoadError, Part, Piece, c_string};

/// Types of tags in the information structure.
mod tag {
    pub const END: u32 = 0;
    pub const COMMAND_LINE: u32 = 1;
    pub const LOADER_NAME: u32 = 2;
    pub const MODULE: u32 = 3;
    pub const BASIC_MEMORY: u32 = 4;
    pub const MEMORY_MAP: u32 = 6;
    pub const FRAMEBUFFER: u32 = 8;
    pub const ELF_SECTIONS: u32 = 9;
    pub const ACPI_OLD: u32 = 14;
    pub const ACPI_NEW: u32 = 15;
    pub const LOAD_BASE: u32 = 21;
}

/// Size of an entry of the memory map. Unit: bytes.
const MAP_ENTRY_SIZE: u32 = 24;
/// Length of the RSDP of ACPI 1.0, which a later one starts with (ACPI Specification, "Root System Description
/// Pointer (RSDP) Structure"). Unit: bytes.
const RSDP_V1_SIZE: usize = 20;
/// In it: its checksum.
const RSDP_CHECKSUM: usize = 8;
/// In it: its revision.
const RSDP_REVISION: usize = 15;

/// What the structure tells.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// What the image is started with.
    pub args: &'a LoadArgs<'a>,
    /// Where its modules are.
    pub modules: &'a [Placed<'a>],
    /// Its ELF sections.
    pub sections: Option<&'a Sections>,
    /// Where it was loaded, if it could be loaded elsewhere.
    pub load_base: Option<u64>,
}

impl Content<'_> {
    /// Puts the structure into low memory.
    ///
    /// # Errors
    /// [`LoadError::NoRoom`].
    pub fn place(&self, space: &mut Space, pieces: &mut Vec<(Gpa, Piece<'_>)>) -> Result<Gpa, LoadError> {
        let bytes = self.build(space);
        let at = space.take_lowest(Part::BootData, bytes.len() as u64, PAGE_4K, BOOT_DATA_FLOOR)?;
        pieces.push((at, Piece::Made(bytes)));
        Ok(at)
    }

    fn build(&self, space: &Space) -> Vec<u8> {
        let mut tags = Tags::new();
        tags.add(tag::COMMAND_LINE, &[&c_string(self.args.cmdline)]);
        tags.add(tag::LOADER_NAME, &[&c_string(LOADER_NAME)]);
        for module in self.modules {
            tags.add(tag::MODULE, &[&low32(module.start.0), &low32(module.end.0), &c_string(module.cmdline)]);
        }
        let (lower, upper) = basic_memory(space);
        tags.add(tag::BASIC_MEMORY, &[&lower, &upper]);
        let map: Vec<u8> = space
            .memory_map()
            .flat_map(|entry| {
                let (start, length) = (entry.region.start.0.to_le_bytes(), entry.region.length.to_le_bytes());
                [start, length, u64::from(entry.kind as u32).to_le_bytes()].concat()
            })
            .collect();
        let version = 0u32;
        tags.add(tag::MEMORY_MAP, &[&MAP_ENTRY_SIZE.to_le_bytes(), &version.to_le_bytes(), &map]);
        if self.args.text_screen {
            tags.add(
                tag::FRAMEBUFFER,
                &[
                    &text_screen::BUFFER.to_le_bytes(),
                    &text_screen::PITCH.to_le_bytes(),
                    &text_screen::COLUMNS.to_le_bytes(),
                    &text_screen::LINES.to_le_bytes(),
                    &[text_screen::BITS, text_screen::EGA_TEXT, 0, 0],
                ],
            );
        }
        if let Some(sections) = self.sections {
            let numbers = [sections.count, sections.entry_size, sections.names].map(u32::to_le_bytes);
            tags.add(tag::ELF_SECTIONS, &[numbers.as_flattened(), &sections.headers]);
        }
        if let Some(rsdp) = self.args.rsdp {
            if let Some(old) = rsdp_v1(rsdp.bytes) {
                tags.add(tag::ACPI_OLD, &[&old]);
            }
            tags.add(tag::ACPI_NEW, &[rsdp.bytes]);
        }
        if let Some(base) = self.load_base {
            tags.add(tag::LOAD_BASE, &[&low32(base)]);
        }
        tags.finish()
    }
}

/// The structure being made.
struct Tags(Vec<u8>);

impl Tags {
    /// With room for the structure's own head: its size, and a field that is 0.
    fn new() -> Tags {
        Tags([0; 8].into())
    }

    fn add(&mut self, kind: u32, content: &[&[u8]]) {
        let size: usize = 8 + content.iter().map(|part| part.len()).sum::<usize>();
        self.0.extend(kind.to_le_bytes());
        self.0.extend(low32(size as u64));
        content.iter().for_each(|part| self.0.extend(*part));
        self.0.resize(self.0.len().next_multiple_of(8), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add(tag::END, &[]);
        let size = low32(self.0.len() as u64);
        put(&mut self.0, 0, &size);
        self.0
    }
}

/// The RSDP as ACPI 1.0 has it. `None` where it could not name a table: it has no room for the address of an XSDT.
fn rsdp_v1(rsdp: &[u8]) -> Option<[u8; RSDP_V1_SIZE]> {
    let mut old = *rsdp.first_chunk::<RSDP_V1_SIZE>()?;
    if old.last_chunk::<4>() == Some(&[0; 4]) {
        return None;
    }
    old[RSDP_REVISION] = 0;
    old[RSDP_CHECKSUM] = 0;
    old[RSDP_CHECKSUM] = old.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    Some(old)
}
