//! Multiboot 2 images (Multiboot2 Specification, version 2.0).
//!
//! An ELF file of 32 or 64 bits, or anything with an address tag in its header. Entered in 32-bit protected mode as
//! "i386 machine state" says, whatever the class of the ELF file: ours is no EFI platform.

use alloc::vec;

use ::elf::abi::{EM_386, EM_X86_64};
use lamina_arch::addr::{Gpa, PAGE_4K};
use lamina_arch::regs::Gpr;

use super::bytes::{slice_at, u16_at, u32_at};
use super::multiboot::{Addresses, behind, place_modules, place_sections};
use super::program::Program;
use super::space::Space;
use super::{InitialState, LoadArgs, LoadError, Part, Plan};
use crate::layout::ABOVE_4G;

mod info;

/// The header is in the first so many bytes, "64-bit aligned".
const SEARCH_END: usize = 32768;
const HEADER_MAGIC: u32 = 0xe852_50d6;
/// `architecture`: 32-bit protected mode of i386.
const ARCHITECTURE_I386: u32 = 0;
/// Magic, architecture, length and checksum. Unit: bytes.
const HEADER_SIZE: usize = 16;
/// What EAX holds at the entry.
const LOADER_MAGIC: u64 = 0x36d7_6289;

/// Types of tags in the header.
mod tag {
    pub const END: u16 = 0;
    pub const INFORMATION_REQUEST: u16 = 1;
    pub const ADDRESS: u16 = 2;
    pub const ENTRY_ADDRESS: u16 = 3;
    pub const CONSOLE_FLAGS: u16 = 4;
    pub const FRAMEBUFFER: u16 = 5;
    pub const MODULE_ALIGNMENT: u16 = 6;
    pub const EFI_BOOT_SERVICES: u16 = 7;
    pub const ENTRY_EFI_I386: u16 = 8;
    pub const ENTRY_EFI_AMD64: u16 = 9;
    pub const RELOCATABLE: u16 = 10;
}

/// In a tag's flags: the image can do without.
const OPTIONAL: u16 = 1 << 0;
/// Console flags: "at least one of supported consoles must be present".
const CONSOLE_REQUIRED: u32 = 1 << 0;
/// Console flags: the image can use a text screen.
const CONSOLE_EGA_TEXT: u32 = 1 << 1;
/// Highest type of information that the specification defines.
const INFORMATION_MAX: u32 = 21;
/// `load_addr` of an image whose first byte is loaded first.
const LOAD_FROM_START: u32 = u32::MAX;

/// Where the header is: its offset. `None` where there is none with a right checksum.
pub fn find_header(image: &[u8]) -> Option<usize> {
    let window = &image[..image.len().min(SEARCH_END)];
    // Most images have none, and every VM that starts waits for that answer: few words are looked at twice.
    let words = window.as_chunks::<8>().0.iter().zip((0..).step_by(8));
    let magics = words.filter(|(word, _)| word[..4] == HEADER_MAGIC.to_le_bytes());
    magics.map(|(_, offset)| offset).find(|&offset| {
        let Some(header) = window.get(offset..).and_then(|rest| rest.first_chunk::<HEADER_SIZE>()) else {
            return false;
        };
        let words = [0, 4, 8, 12].map(|at| u32_at(header, at, "the header").unwrap_or(0));
        words[0] == HEADER_MAGIC && words.into_iter().fold(0, u32::wrapping_add) == 0
    })
}

/// Where a relocatable image may go.
#[derive(Clone, Copy, Debug)]
struct Relocatable {
    lowest: u64,
    /// "Highest possible physical address at which image should be loaded": of its end.
    highest: u64,
    align: u64,
    preference: Preference,
}

#[derive(Clone, Copy, Debug)]
enum Preference {
    None,
    Lowest,
    Highest,
}

/// What the header asks for.
#[derive(Debug, Default)]
struct Header {
    addresses: Option<Addresses>,
    entry: Option<u64>,
    relocatable: Option<Relocatable>,
}

impl Header {
    fn parse(image: &[u8], start: usize, text_screen: bool) -> Result<Header, LoadError> {
        let architecture = u32_at(image, start + 4, "architecture")?;
        if architecture != ARCHITECTURE_I386 {
            let reason = "not for this processor";
            return Err(LoadError::BadField { field: "architecture", value: u64::from(architecture), reason });
        }
        let length = u32_at(image, start + 8, "header_length")?;
        let end = start as u64 + u64::from(length);
        if end > SEARCH_END as u64 || (length as usize) < HEADER_SIZE {
            let reason = "the header does not end in the first 32 KiB of the image, or within itself";
            return Err(LoadError::BadField { field: "header_length", value: u64::from(length), reason });
        }
        let header = slice_at(image, start as u64, u64::from(length), "the header")?;
        let mut found = Header::default();
        let mut at = HEADER_SIZE;
        // A header without the end tag ends with its length.
        while at < header.len() {
            let size = u32_at(header, at + 4, "a tag of the header")?;
            if size < 8 {
                let reason = "smaller than a tag's own head";
                return Err(LoadError::BadField { field: "size of a tag", value: u64::from(size), reason });
            }
            let tag = slice_at(header, at as u64, u64::from(size), "a tag of the header")?;
            let kind = u16_at(tag, 0, "type")?;
            if kind == tag::END {
                break;
            }
            found.tag(kind, tag, text_screen)?;
            // Not more than 32 KiB, as the slice shows.
            at += tag.len().next_multiple_of(8);
        }
        Ok(found)
    }

    fn tag(&mut self, kind: u16, tag: &[u8], text_screen: bool) -> Result<(), LoadError> {
        let optional = u16_at(tag, 2, "flags")? & OPTIONAL != 0;
        let field = |at, what| u32_at(tag, at, what).map(u64::from);
        match kind {
            tag::INFORMATION_REQUEST => {
                let requests = tag.get(8..).unwrap_or_default().as_chunks::<4>().0;
                // What is known and not there is left out, as the specification says.
                match requests.iter().map(|word| u32::from_le_bytes(*word)).find(|&word| word > INFORMATION_MAX) {
                    Some(information) if !optional => return Err(LoadError::Multiboot2Information(information)),
                    _ => {}
                }
            }
            tag::ADDRESS => {
                let load = u32_at(tag, 12, "load_addr")?;
                self.addresses = Some(Addresses {
                    header: field(8, "header_addr")?,
                    load: (load != LOAD_FROM_START).then_some(u64::from(load)),
                    load_end: field(16, "load_end_addr")?,
                    bss_end: field(20, "bss_end_addr")?,
                });
            }
            tag::ENTRY_ADDRESS => self.entry = Some(field(8, "entry_addr")?),
            tag::CONSOLE_FLAGS => {
                let flags = u32_at(tag, 8, "console_flags")?;
                let have_one = text_screen && flags & CONSOLE_EGA_TEXT != 0;
                if flags & CONSOLE_REQUIRED != 0 && !have_one && !optional {
                    return Err(LoadError::Multiboot2Tag { kind, wants: "a console that this machine has not got" });
                }
            }
            tag::FRAMEBUFFER if !optional => {
                return Err(LoadError::Multiboot2Tag { kind, wants: "a framebuffer with graphics" });
            }
            // Modules are always aligned to pages. What concerns EFI is for loaders on EFI platforms.
            tag::FRAMEBUFFER
            | tag::MODULE_ALIGNMENT
            | tag::EFI_BOOT_SERVICES
            | tag::ENTRY_EFI_I386
            | tag::ENTRY_EFI_AMD64 => {}
            tag::RELOCATABLE => {
                let align = field(16, "align")?.max(1);
                if !align.is_power_of_two() {
                    return Err(LoadError::BadField { field: "align", value: align, reason: "not a power of two" });
                }
                let preference = match u32_at(tag, 20, "preference")? {
                    1 => Preference::Lowest,
                    2 => Preference::Highest,
                    _ => Preference::None,
                };
                let (lowest, highest) = (field(8, "min_addr")?, field(12, "max_addr")?);
                self.relocatable = Some(Relocatable { lowest, highest, align, preference });
            }
            _ if optional => {}
            _ => return Err(LoadError::Multiboot2Tag { kind, wants: "something that nobody here knows" }),
        }
        Ok(())
    }

    /// The program in `image`, where it was linked to be.
    fn program<'a>(&self, image: &'a [u8], start: usize) -> Result<Program<'a>, LoadError> {
        match (self.addresses, self.entry) {
            (Some(addresses), Some(entry)) => addresses.program(image, start, entry),
            (Some(addresses), None) => {
                let reason = "there is an address tag, but no entry address tag";
                Err(LoadError::BadField { field: "load_addr", value: addresses.load.unwrap_or(0), reason })
            }
            (None, entry) => {
                let mut program = Program::parse_elf(image, &[EM_386, EM_X86_64])?;
                if let Some(entry) = entry {
                    program.enter_at(entry, "entry_addr")?;
                }
                Ok(program)
            }
        }
    }
}

impl Relocatable {
    /// Moves the program to a free place that the image likes.
    fn apply(self, program: &mut Program<'_>, space: &Space) -> Result<(), LoadError> {
        let (start, end) = program.span();
        let length = end.saturating_sub(start);
        // The entry must be found before the segments move away from it.
        program.fix_entry(ABOVE_4G.0)?;
        let no_room = LoadError::NoRoom { part: Part::Segment, length, below: Gpa(self.highest) };
        let allowed = |at: u64| at >= self.lowest && at.saturating_add(length) <= self.highest;
        let mut space = space.clone();
        let linked_here = allowed(start) && start.is_multiple_of(self.align);
        let at = match self.preference {
            Preference::None if linked_here && space.take(Part::Segment, Gpa(start), length).is_ok() => start,
            Preference::None | Preference::Lowest => {
                space.take_lowest(Part::Segment, length, self.align, Gpa(self.lowest.max(PAGE_4K)))?.0
            }
            Preference::Highest => space.take_highest(Part::Segment, length, self.align, Gpa(self.highest))?.0,
        };
        if !allowed(at) {
            return Err(no_room);
        }
        program.relocate(start, at);
        Ok(())
    }
}

/// How to start the image.
///
/// # Errors
/// [`LoadError`].
pub fn plan<'a>(image: &'a [u8], mut space: Space, args: &LoadArgs<'a>) -> Result<Plan<'a>, LoadError> {
    let start = find_header(image).ok_or(LoadError::UnknownFormat)?;
    let header = Header::parse(image, start, args.text_screen)?;
    let mut program = header.program(image, start)?;
    if let Some(relocatable) = header.relocatable {
        relocatable.apply(&mut program, &space)?;
    }
    let mut pieces = alloc::vec::Vec::new();
    let end = program.place(&mut space, &mut pieces)?;
    let entry = program.entry(ABOVE_4G.0)?;
    let beyond = LoadError::BadField { field: "the entry address", value: entry, reason: "beyond 4 GiB" };
    let entry = u32::try_from(entry).map_err(|_| beyond)?;

    let floor = behind(end, &space);
    let modules = place_modules(args.modules, floor, &mut space, &mut pieces)?;
    let sections = match header.addresses {
        None => place_sections(image, floor, &mut space, &mut pieces)?,
        Some(_) => None,
    };
    let load_base = header.relocatable.map(|_| program.span().0);
    let content = info::Content { args, modules: &modules, sections: sections.as_ref(), load_base };
    let info = content.place(&mut space, &mut pieces)?;
    let gprs = vec![(Gpr::Rax, LOADER_MAGIC), (Gpr::Rbx, info.0)];
    let state = InitialState::protected32(entry, gprs, &mut space, &mut pieces)?;
    Ok(Plan { pieces, state })
}
