//! Multiboot 1 images (Multiboot Specification, version 0.6.96).
//!
//! An ELF file of 32 or 64 bits, or anything with the address fields in its header. Entered in 32-bit protected mode
//! as "I386 machine state" says, whatever the class of the ELF file.

use alloc::vec;
use alloc::vec::Vec;

use ::elf::abi::{EM_386, EM_X86_64};
use lamina_arch::addr::{Gpa, PAGE_4K};
use lamina_arch::regs::Gpr;

use super::bytes::{low32, put, u32_at};
use super::multiboot::{
    Addresses, LOADER_NAME, Placed, Sections, basic_memory, behind, place_modules, place_sections, text_screen,
};
use super::program::Program;
use super::space::Space;
use super::{BOOT_DATA_FLOOR, InitialState, LoadArgs, LoadError, Part, Piece, Plan, c_string};
use crate::layout::ABOVE_4G;

/// The header is in the first so many bytes, "longword (32-bit) aligned".
const SEARCH_END: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What EAX holds at the entry.
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// Modules are aligned to pages: we always do that.
const FLAG_PAGE_ALIGN: u32 = 1 << 0;
/// Memory sizes are wanted: we always give them.
const FLAG_MEMORY_INFO: u32 = 1 << 1;
/// The table of video modes must be there; which mode is wanted is only a wish. A text screen that is told of is all
/// that we have.
const FLAG_VIDEO_MODE: u32 = 1 << 2;
/// The address fields are valid.
const FLAG_ADDRESSES: u32 = 1 << 16;
/// Features that a loader must not ignore when it does not know them.
const FLAGS_REQUIRED: u32 = 0xffff;

/// Magic, flags and checksum. Unit: bytes.
const HEADER_SIZE: usize = 12;
/// The information structure up to and with `framebuffer` and `color_info`. Unit: bytes.
const INFO_SIZE: usize = 116;
const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_SECTIONS: u32 = 1 << 5;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;
const INFO_FRAMEBUFFER: u32 = 1 << 12;
/// One entry of the memory map, with its size field. Unit: bytes.
const MAP_ENTRY_SIZE: usize = 24;
/// One entry of the list of modules. Unit: bytes.
const MODULE_ENTRY_SIZE: usize = 16;

/// Where the header is: the offset of its magic number. `None` where there is none with a right checksum.
pub fn find_header(image: &[u8]) -> Option<usize> {
    let window = &image[..image.len().min(SEARCH_END)];
    // Most images have none, and every VM that starts waits for that answer: few words are looked at twice.
    let magics =
        window.as_chunks().0.iter().zip((0..).step_by(4)).filter(|(word, _)| **word == HEADER_MAGIC.to_le_bytes());
    magics.map(|(_, offset)| offset).find(|&offset| {
        let Some([magic, flags, checksum]) =
            window.get(offset..).and_then(|rest| rest.first_chunk::<HEADER_SIZE>()).map(|header| {
                [0, 4, 8].map(|at| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]))
            })
        else {
            return false;
        };
        magic == HEADER_MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0
    })
}

/// The program that the header at offset `header` describes.
fn program(image: &[u8], header: usize, flags: u32) -> Result<Program<'_>, LoadError> {
    if flags & FLAG_ADDRESSES == 0 {
        return Program::parse_elf(image, &[EM_386, EM_X86_64]);
    }
    let field = |offset, what| u32_at(image, header + offset, what).map(u64::from);
    let addresses = Addresses {
        header: field(12, "header_addr")?,
        load: Some(field(16, "load_addr")?),
        load_end: field(20, "load_end_addr")?,
        bss_end: field(24, "bss_end_addr")?,
    };
    addresses.program(image, header, field(28, "entry_addr")?)
}

/// How to start the image.
///
/// # Errors
/// [`LoadError`].
pub fn plan<'a>(image: &'a [u8], mut space: Space, args: &LoadArgs<'a>) -> Result<Plan<'a>, LoadError> {
    let header = find_header(image).ok_or(LoadError::UnknownFormat)?;
    let flags = u32_at(image, header + 4, "flags")?;
    let mut known = FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO;
    if args.text_screen {
        known |= FLAG_VIDEO_MODE;
    }
    if flags & FLAGS_REQUIRED & !known != 0 {
        return Err(LoadError::MultibootFlags(flags & FLAGS_REQUIRED & !known));
    }
    let program = program(image, header, flags)?;
    let mut pieces = Vec::new();
    let end = program.place(&mut space, &mut pieces)?;
    let entry = program.entry(ABOVE_4G.0)?;
    let entry = u32::try_from(entry).map_err(|_| LoadError::BadField {
        field: "e_entry",
        value: entry,
        reason: "beyond 4 GiB",
    })?;

    let floor = behind(end, &space);
    let modules = place_modules(args.modules, floor, &mut space, &mut pieces)?;
    let sections = match flags & FLAG_ADDRESSES {
        0 => place_sections(image, floor, &mut space, &mut pieces)?,
        _ => None,
    };
    let info = place_info(&mut space, args, &modules, sections.as_ref(), &mut pieces)?;
    let gprs = vec![(Gpr::Rax, LOADER_MAGIC), (Gpr::Rbx, info.0)];
    let state = InitialState::protected32(entry, gprs, &mut space, &mut pieces)?;
    Ok(Plan { pieces, state })
}

/// Makes the information structure, with all that it points to behind it, in low memory.
fn place_info(
    space: &mut Space,
    args: &LoadArgs<'_>,
    modules: &[Placed<'_>],
    sections: Option<&Sections>,
    pieces: &mut Vec<(Gpa, Piece<'_>)>,
) -> Result<Gpa, LoadError> {
    let map: Vec<_> = space.memory_map().collect();
    let map_offset = INFO_SIZE.next_multiple_of(8);
    let map_size = map.len() * MAP_ENTRY_SIZE;
    let modules_offset = map_offset + map_size;
    let sections_offset = modules_offset + modules.len() * MODULE_ENTRY_SIZE;
    let strings_offset = sections_offset + sections.map_or(0, |sections| sections.headers.len());

    let mut strings = Vec::new();
    let mut add_string = |line: &str| {
        let offset = strings_offset + strings.len();
        strings.extend_from_slice(&c_string(line));
        offset
    };
    let cmdline_offset = add_string(args.cmdline);
    let loader_name_offset = add_string(LOADER_NAME);
    let module_lines: Vec<usize> = modules.iter().map(|module| add_string(module.cmdline)).collect();

    let length = strings_offset + strings.len();
    let info = space.take_lowest(Part::BootData, length as u64, PAGE_4K, BOOT_DATA_FLOOR)?;
    let mut bytes = vec![0; length];
    // Everything that `Space` gives away lies below 4 GiB.
    let pointer = |offset: usize| low32(info.0 + offset as u64);
    let mut flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME;
    let (lower, upper) = basic_memory(space);
    put(&mut bytes, 4, &lower);
    put(&mut bytes, 8, &upper);
    put(&mut bytes, 16, &pointer(cmdline_offset));
    put(&mut bytes, 20, &low32(modules.len() as u64));
    put(&mut bytes, 24, &pointer(modules_offset));
    put(&mut bytes, 44, &low32(map_size as u64));
    put(&mut bytes, 48, &pointer(map_offset));
    put(&mut bytes, 64, &pointer(loader_name_offset));
    if let Some(sections) = sections {
        flags |= INFO_SECTIONS;
        put(&mut bytes, 28, &sections.count.to_le_bytes());
        put(&mut bytes, 32, &sections.entry_size.to_le_bytes());
        put(&mut bytes, 36, &pointer(sections_offset));
        put(&mut bytes, 40, &sections.names.to_le_bytes());
        put(&mut bytes, sections_offset, &sections.headers);
    }
    if args.text_screen {
        flags |= INFO_FRAMEBUFFER;
        put(&mut bytes, 88, &text_screen::BUFFER.to_le_bytes());
        put(&mut bytes, 96, &text_screen::PITCH.to_le_bytes());
        put(&mut bytes, 100, &text_screen::COLUMNS.to_le_bytes());
        put(&mut bytes, 104, &text_screen::LINES.to_le_bytes());
        put(&mut bytes, 108, &[text_screen::BITS, text_screen::EGA_TEXT]);
    }
    put(&mut bytes, 0, &flags.to_le_bytes());
    for (i, entry) in map.iter().enumerate() {
        let at = map_offset + i * MAP_ENTRY_SIZE;
        put(&mut bytes, at, &low32(MAP_ENTRY_SIZE as u64 - 4));
        put(&mut bytes, at + 4, &entry.region.start.0.to_le_bytes());
        put(&mut bytes, at + 12, &entry.region.length.to_le_bytes());
        put(&mut bytes, at + 20, &(entry.kind as u32).to_le_bytes());
    }
    for (i, (module, &line)) in modules.iter().zip(&module_lines).enumerate() {
        let at = modules_offset + i * MODULE_ENTRY_SIZE;
        put(&mut bytes, at, &low32(module.start.0));
        put(&mut bytes, at + 4, &low32(module.end.0));
        put(&mut bytes, at + 8, &pointer(line));
    }
    put(&mut bytes, strings_offset, &strings);
    pieces.push((info, Piece::Made(bytes)));
    Ok(info)
}
