//! Multiboot 1 images (Multiboot Specification, version 0.6.96).
//!
//! An ELF file of 32 or 64 bits, or anything with the address fields in its header. Entered in 32-bit protected mode
//! as "I386 machine state" says, whatever the class of the ELF file.

use alloc::vec;
use alloc::vec::Vec;

use ::elf::abi::{EM_386, EM_X86_64};
use lamina_arch::addr::{Gpa, PAGE_4K};
use lamina_arch::regs::Gpr;

use super::bytes::{low32, put, slice_at, u32_at};
use super::elf_image::ElfImage;
use super::space::Space;
use super::{BOOT_DATA_FLOOR, InitialState, LoadArgs, LoadError, Part, Piece, Plan, c_string};
use crate::layout::{ABOVE_4G, HIGH_MEMORY, LOW_MEMORY_END};

/// The header is in the first so many bytes, "longword (32-bit) aligned".
const SEARCH_END: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What EAX holds at the entry.
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// Modules are aligned to pages: we always do that.
const FLAG_PAGE_ALIGN: u32 = 1 << 0;
/// Memory sizes are wanted: we always give them.
const FLAG_MEMORY_INFO: u32 = 1 << 1;
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
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;
/// One entry of the memory map, with its size field. Unit: bytes.
const MAP_ENTRY_SIZE: usize = 24;
/// One entry of the list of modules. Unit: bytes.
const MODULE_ENTRY_SIZE: usize = 16;

/// Where the header is: the offset of its magic number. `None` where there is none with a right checksum.
pub fn find_header(image: &[u8]) -> Option<usize> {
    let window = &image[..image.len().min(SEARCH_END)];
    (0..window.len()).step_by(4).find(|&offset| {
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

/// Takes the place of the image that the address fields of the header at `header` describe. Returns the entry point
/// and where the image ends.
fn place_by_addresses<'a>(
    image: &'a [u8],
    header: usize,
    space: &mut Space,
    pieces: &mut Vec<(Gpa, Piece<'a>)>,
) -> Result<(u64, Gpa), LoadError> {
    let field = |offset, what| u32_at(image, header + offset, what).map(u64::from);
    let header_addr = field(12, "header_addr")?;
    let load_addr = field(16, "load_addr")?;
    let load_end_addr = field(20, "load_end_addr")?;
    let bss_end_addr = field(24, "bss_end_addr")?;
    let entry_addr = field(28, "entry_addr")?;

    let bad = |field, value, reason| LoadError::BadField { field, value, reason };
    let before_header = header_addr.checked_sub(load_addr).ok_or(bad("load_addr", load_addr, "above header_addr"))?;
    let offset = (header as u64).checked_sub(before_header);
    let offset =
        offset.ok_or(bad("load_addr", load_addr, "so far below header_addr that the image has no byte for it"))?;
    // 0 stands for all of the image, and for no zeroed memory behind it.
    let length = match load_end_addr {
        0 => image.len() as u64 - offset,
        end => end.checked_sub(load_addr).ok_or(bad("load_end_addr", end, "below load_addr"))?,
    };
    let bytes = slice_at(image, offset, length, "the image (by load_end_addr)")?;
    let memory_size = match bss_end_addr {
        0 => length,
        end => {
            let size = end.checked_sub(load_addr).filter(|&size| size >= length);
            size.ok_or(bad("bss_end_addr", end, "below the end of what is loaded"))?
        }
    };
    if entry_addr.checked_sub(load_addr).is_none_or(|offset| offset >= memory_size) {
        return Err(bad("entry_addr", entry_addr, "not in the image"));
    }
    space.take(Part::Segment, Gpa(load_addr), memory_size)?;
    pieces.push((Gpa(load_addr), Piece::Given(bytes)));
    Ok((entry_addr, Gpa(load_addr + memory_size)))
}

/// How to start the image.
///
/// # Errors
/// [`LoadError`].
pub fn plan<'a>(image: &'a [u8], mut space: Space, args: &LoadArgs<'a>) -> Result<Plan<'a>, LoadError> {
    let header = find_header(image).ok_or(LoadError::UnknownFormat)?;
    let flags = u32_at(image, header + 4, "flags")?;
    let unknown = flags & FLAGS_REQUIRED & !(FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO);
    if unknown != 0 {
        return Err(LoadError::MultibootFlags(unknown));
    }
    let mut pieces = Vec::new();
    let (entry, end) = if flags & FLAG_ADDRESSES != 0 {
        place_by_addresses(image, header, &mut space, &mut pieces)?
    } else {
        let program = ElfImage::parse(image, &[EM_386, EM_X86_64])?;
        let end = program.place(&mut space, &mut pieces)?;
        (program.entry(ABOVE_4G.0)?, end)
    };
    let entry = u32::try_from(entry).map_err(|_| LoadError::BadField {
        field: "e_entry",
        value: entry,
        reason: "beyond 4 GiB",
    })?;

    // Behind the image, where kernels that take the memory behind themselves expect to find modules.
    let floor = if end <= space.low_end() { end.max(HIGH_MEMORY) } else { HIGH_MEMORY };
    let mut modules = Vec::new();
    for module in args.modules {
        let start = match module.bytes.len() {
            // An empty module has an address, but takes no place.
            0 => floor,
            length => space.take_lowest(Part::Module, length as u64, PAGE_4K, floor)?,
        };
        pieces.push((start, Piece::Given(module.bytes)));
        modules.push((start, start + module.bytes.len() as u64, module.cmdline));
    }
    let info = place_info(&mut space, args.cmdline, &modules, &mut pieces)?;
    let gprs = vec![(Gpr::Rax, LOADER_MAGIC), (Gpr::Rbx, info.0)];
    let state = InitialState::protected32(entry, gprs, &mut space, &mut pieces)?;
    Ok(Plan { pieces, state })
}

/// Makes the information structure, with all that it points to behind it, in low memory.
fn place_info(
    space: &mut Space,
    cmdline: &str,
    modules: &[(Gpa, Gpa, &str)],
    pieces: &mut Vec<(Gpa, Piece<'_>)>,
) -> Result<Gpa, LoadError> {
    let map: Vec<_> = space.memory_map().collect();
    let map_offset = INFO_SIZE.next_multiple_of(8);
    let map_size = map.len() * MAP_ENTRY_SIZE;
    let modules_offset = map_offset + map_size;
    let strings_offset = modules_offset + modules.len() * MODULE_ENTRY_SIZE;

    let mut strings = Vec::new();
    let mut add_string = |line: &str| {
        let offset = strings_offset + strings.len();
        strings.extend_from_slice(&c_string(line));
        offset
    };
    let cmdline_offset = add_string(cmdline);
    let loader_name_offset = add_string("Lamina");
    let module_lines: Vec<usize> = modules.iter().map(|&(_, _, line)| add_string(line)).collect();

    let length = strings_offset + strings.len();
    let info = space.take_lowest(Part::BootData, length as u64, PAGE_4K, BOOT_DATA_FLOOR)?;
    let mut bytes = vec![0; length];
    // Everything that `Space` gives away lies below 4 GiB.
    let pointer = |offset: usize| low32(info.0 + offset as u64);
    let kib = |start: Gpa, end: Gpa| low32(end.0.saturating_sub(start.0) >> 10);
    let flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME;
    put(&mut bytes, 0, &flags.to_le_bytes());
    put(&mut bytes, 4, &kib(Gpa(0), LOW_MEMORY_END.min(space.low_end())));
    put(&mut bytes, 8, &kib(HIGH_MEMORY, space.low_end()));
    put(&mut bytes, 16, &pointer(cmdline_offset));
    put(&mut bytes, 20, &low32(modules.len() as u64));
    put(&mut bytes, 24, &pointer(modules_offset));
    put(&mut bytes, 44, &low32(map_size as u64));
    put(&mut bytes, 48, &pointer(map_offset));
    put(&mut bytes, 64, &pointer(loader_name_offset));
    for (i, entry) in map.iter().enumerate() {
        let at = map_offset + i * MAP_ENTRY_SIZE;
        put(&mut bytes, at, &low32(MAP_ENTRY_SIZE as u64 - 4));
        put(&mut bytes, at + 4, &entry.region.start.0.to_le_bytes());
        put(&mut bytes, at + 12, &entry.region.length.to_le_bytes());
        put(&mut bytes, at + 20, &(entry.kind as u32).to_le_bytes());
    }
    for (i, (&(start, end, _), &line)) in modules.iter().zip(&module_lines).enumerate() {
        let at = modules_offset + i * MODULE_ENTRY_SIZE;
        put(&mut bytes, at, &low32(start.0));
        put(&mut bytes, at + 4, &low32(end.0));
        put(&mut bytes, at + 8, &pointer(line));
    }
    put(&mut bytes, strings_offset, &strings);
    pieces.push((info, Piece::Made(bytes)));
    Ok(info)
}
