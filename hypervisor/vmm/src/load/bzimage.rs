//! Linux kernels (Linux, Documentation/arch/x86/boot.rst "The Linux/x86 Boot Protocol", and zero-page.rst).
//!
//! The kernel is entered at its 64-bit entry point where it has one, else at its 32-bit one, with the zero page in RSI:
//! no code of the image's 16-bit part runs.

use alloc::vec;
use alloc::vec::Vec;

use lamina_arch::addr::{Gpa, PAGE_4K};
use lamina_arch::regs::Gpr;

use super::bytes::{low32, put, slice_at, u8_at, u16_at, u32_at, u64_at};
use super::space::Space;
use super::{BOOT_DATA_FLOOR, InitialState, LoadArgs, LoadError, Part, Piece, Plan, c_string};
use crate::layout::HIGH_MEMORY;
use crate::memory::{E820Entry, E820Kind};

/// Offsets in the image and in the zero page alike: fields of the setup header.
mod header {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const VID_MODE: usize = 0x1fa;
    pub const BOOT_FLAG: usize = 0x1fe;
    /// Second byte of a short jump: how far behind the next byte the header ends.
    pub const JUMP: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE_KERNEL: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PAYLOAD_OFFSET: usize = 0x248;
    pub const PAYLOAD_LENGTH: usize = 0x24c;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    /// Behind the last field that this loader needs.
    pub const NEEDED_END: usize = 0x264;
    /// Where the zero page has something else.
    pub const MAX_END: usize = 0x290;
}

/// Offsets in the zero page only.
mod zero_page {
    pub const ACPI_RSDP_ADDR: usize = 0x70;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const E820_TABLE: usize = 0x2d0;
    pub const SIZE: usize = 4096;
}

const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: &[u8] = b"HdrS";
/// First version with `pref_address` and `init_size`: without them nobody knows how much memory the kernel takes.
const VERSION_2_10: u16 = 0x20a;
/// First version with `xloadflags`.
const VERSION_2_12: u16 = 0x20c;
/// In `loadflags`: the protected-mode code goes to 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// In `xloadflags`: there is a 64-bit entry point, at [`ENTRY64`].
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry point, from the start of the protected-mode code.
const ENTRY64: u64 = 0x200;
/// `type_of_loader` of loaders without a number of their own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `vid_mode` "normal".
const VIDEO_NORMAL: u16 = 0xffff;
/// The first fields of the zero page, `screen_info`, for a VGA in text mode 3 with the cursor at the top left: its page,
/// mode, columns, lines, `orig_video_isVGA` and the height of a character (Linux, include/uapi/linux/screen_info.h).
const SCREEN_INFO: [u8; 18] = [0, 0, 0, 0, 0, 0, 3, 80, 0, 0, 0, 0, 0, 0, 25, 1, 16, 0];
/// Stack for the first instructions; Linux sets up its own at once. Unit: bytes.
const STACK_SIZE: u64 = PAGE_4K;

/// Whether the image says that it is one of these.
pub fn is_bzimage(image: &[u8]) -> bool {
    u16_at(image, header::BOOT_FLAG, "boot_flag") == Ok(BOOT_FLAG)
        && image.get(header::MAGIC..).is_some_and(|rest| rest.starts_with(MAGIC))
}

/// What of the setup header matters here.
#[derive(Debug)]
struct SetupHeader<'a> {
    /// The header as it stands in the image, from `setup_sects` on.
    bytes: &'a [u8],
    /// The protected-mode code.
    code: &'a [u8],
    /// Where it goes.
    load_address: u64,
    /// Memory that the kernel uses from there on before it reads the memory map. Unit: bytes.
    init_size: u64,
    /// Highest address that the initrd may use.
    initrd_addr_max: u64,
    /// Longest command line, without the zero byte. Unit: bytes.
    cmdline_size: u64,
    /// It has the 64-bit entry point.
    entry64: bool,
}

impl<'a> SetupHeader<'a> {
    fn parse(image: &'a [u8]) -> Result<SetupHeader<'a>, LoadError> {
        let version = u16_at(image, header::VERSION, "version")?;
        if version < VERSION_2_10 {
            return Err(LoadError::OldBootProtocol(version));
        }
        let jump = u8_at(image, header::JUMP, "jump")?;
        let end = header::JUMP + 1 + usize::from(jump);
        if end < header::NEEDED_END {
            let reason = "the setup header is too short for its version";
            return Err(LoadError::BadField { field: "jump", value: u64::from(jump), reason });
        }
        let end = end.min(header::MAX_END);
        let start = header::SETUP_SECTS;
        let bytes = slice_at(image, start as u64, (end - start) as u64, "the setup header")?;

        let xloadflags = u16_at(image, header::XLOADFLAGS, "xloadflags")?;
        let entry64 = version >= VERSION_2_12 && xloadflags & XLF_KERNEL_64 != 0;
        let loadflags = u8_at(image, header::LOADFLAGS, "loadflags")?;
        if loadflags & LOADED_HIGH == 0 {
            let reason = "the kernel wants to be loaded below 1 MiB";
            return Err(LoadError::BadField { field: "loadflags", value: u64::from(loadflags), reason });
        }
        let code = protected_mode_code(image, entry64)?;

        let init_size = u64::from(u32_at(image, header::INIT_SIZE, "init_size")?);
        if init_size < code.len() as u64 {
            let reason = "smaller than the kernel itself";
            return Err(LoadError::BadField { field: "init_size", value: init_size, reason });
        }
        let initrd_addr_max = u64::from(u32_at(image, header::INITRD_ADDR_MAX, "initrd_addr_max")?);
        let cmdline_size = u64::from(u32_at(image, header::CMDLINE_SIZE, "cmdline_size")?);
        let load_address = load_address(image)?;
        Ok(SetupHeader { bytes, code, load_address, init_size, initrd_addr_max, cmdline_size, entry64 })
    }
}

/// The part of the image behind the 16-bit code. It may have a tail that `syssize` does not count: a signature.
fn protected_mode_code(image: &[u8], entry64: bool) -> Result<&[u8], LoadError> {
    let setup_sects = match u8_at(image, header::SETUP_SECTS, "setup_sects")? {
        // "For backwards compatibility."
        0 => 4,
        sectors => u64::from(sectors),
    };
    let offset = (setup_sects + 1) * 512;
    // In paragraphs of 16 bytes, rounded up.
    let length = u64::from(u32_at(image, header::SYSSIZE, "syssize")?) * 16;
    if length <= if entry64 { ENTRY64 } else { 0 } {
        let reason = "the kernel ends before its entry point";
        return Err(LoadError::BadField { field: "syssize", value: length / 16, reason });
    }
    let present = (image.len() as u64).saturating_sub(offset);
    let padding = 15;
    let code = slice_at(image, offset, length.min(present.max(length - padding)), "the kernel (by syssize)")?;

    let payload_offset = u32_at(image, header::PAYLOAD_OFFSET, "payload_offset")?;
    let payload_length = u32_at(image, header::PAYLOAD_LENGTH, "payload_length")?;
    let payload_end = u64::from(payload_offset) + u64::from(payload_length);
    if payload_end > length {
        let needed = offset + payload_end;
        return Err(LoadError::Truncated { what: "the payload", needed, length: offset + length });
    }
    Ok(code)
}

/// Where the kernel goes: the address that it prefers. Lower, a relocatable kernel moves itself there anyway; higher
/// would be possible, but where the preferred place does not fit, nothing above it does.
fn load_address(image: &[u8]) -> Result<u64, LoadError> {
    let preferred = u64_at(image, header::PREF_ADDRESS, "pref_address")?;
    let bad = |reason| LoadError::BadField { field: "pref_address", value: preferred, reason };
    if preferred < HIGH_MEMORY.0 {
        return Err(bad("below 1 MiB"));
    }
    if u8_at(image, header::RELOCATABLE_KERNEL, "relocatable_kernel")? == 0 {
        return Ok(preferred);
    }
    let alignment = u64::from(u32_at(image, header::KERNEL_ALIGNMENT, "kernel_alignment")?);
    if !alignment.is_power_of_two() {
        let reason = "not a power of two";
        return Err(LoadError::BadField { field: "kernel_alignment", value: alignment, reason });
    }
    preferred.checked_next_multiple_of(alignment).ok_or(bad("no address above it has the kernel's alignment"))
}

/// How to start the kernel.
///
/// # Errors
/// [`LoadError`].
pub fn plan<'a>(image: &'a [u8], mut space: Space, args: &LoadArgs<'a>) -> Result<Plan<'a>, LoadError> {
    let setup = SetupHeader::parse(image)?;
    let mut pieces = Vec::new();
    let load_address = Gpa(setup.load_address);
    space.take(Part::Kernel, load_address, setup.init_size)?;
    pieces.push((load_address, Piece::Given(setup.code)));

    let length = args.cmdline.len() as u64;
    if length > setup.cmdline_size {
        return Err(LoadError::CommandLineTooLong { length, limit: setup.cmdline_size });
    }
    let zero_page_size = zero_page::SIZE as u64;
    let zero_page_at = space.take_lowest(Part::BootData, zero_page_size, PAGE_4K, BOOT_DATA_FLOOR)?;
    let gprs = vec![(Gpr::Rsi, zero_page_at.0)];
    let state = if setup.entry64 {
        let stack = space.take_lowest(Part::BootData, STACK_SIZE, PAGE_4K, BOOT_DATA_FLOOR)?;
        let entry = load_address.0 + ENTRY64;
        InitialState::long64(entry, (stack + STACK_SIZE).0, gprs, &mut space, &mut pieces)?
    } else {
        let entry = u32::try_from(load_address.0).map_err(|_| LoadError::BadField {
            field: "pref_address",
            value: load_address.0,
            reason: "beyond 4 GiB, for a kernel of 32 bits",
        })?;
        InitialState::protected32(entry, gprs, &mut space, &mut pieces)?
    };
    let cmdline_at = space.take_lowest(Part::CommandLine, length + 1, PAGE_4K, BOOT_DATA_FLOOR)?;
    pieces.push((cmdline_at, Piece::Made(c_string(args.cmdline))));

    let mut initrd_at = Gpa(0);
    let initrd = args.initrd.unwrap_or_default();
    if !initrd.is_empty() {
        // As high as may be: out of the way of a kernel that moves itself and unpacks.
        let below = Gpa(setup.initrd_addr_max + 1);
        initrd_at = space.take_highest(Part::Initrd, initrd.len() as u64, PAGE_4K, below)?;
        pieces.push((initrd_at, Piece::Given(initrd)));
    }

    let zero_page = zero_page(&setup, space.memory_map(), cmdline_at, initrd_at, initrd.len() as u64, args);
    pieces.push((zero_page_at, Piece::Made(zero_page)));
    Ok(Plan { pieces, state })
}

/// The zero page: the image's setup header with what a loader fills in, the memory map, and the ACPI root pointer.
fn zero_page(
    setup: &SetupHeader<'_>,
    map: impl Iterator<Item = E820Entry>,
    cmdline: Gpa,
    initrd: Gpa,
    initrd_length: u64,
    args: &LoadArgs<'_>,
) -> Vec<u8> {
    let mut page = vec![0; zero_page::SIZE];
    // Everything that `Space` gives away lies below 4 GiB.
    put(&mut page, header::SETUP_SECTS, setup.bytes);
    put(&mut page, header::VID_MODE, &VIDEO_NORMAL.to_le_bytes());
    put(&mut page, header::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(&mut page, header::CODE32_START, &low32(setup.load_address));
    put(&mut page, header::RAMDISK_IMAGE, &low32(initrd.0));
    put(&mut page, header::RAMDISK_SIZE, &low32(initrd_length));
    put(&mut page, header::CMD_LINE_PTR, &low32(cmdline.0));
    put(&mut page, zero_page::ACPI_RSDP_ADDR, &args.rsdp.map_or(Gpa(0), |rsdp| rsdp.at).0.to_le_bytes());
    if args.text_screen {
        put(&mut page, 0, &SCREEN_INFO);
    }
    let mut entries = 0u8;
    for entry in map {
        let at = zero_page::E820_TABLE + 20 * usize::from(entries);
        let kind = match entry.kind {
            E820Kind::Ram => 1u32,
            E820Kind::Reserved => 2,
        };
        put(&mut page, at, &entry.region.start.0.to_le_bytes());
        put(&mut page, at + 8, &entry.region.length.to_le_bytes());
        put(&mut page, at + 16, &kind.to_le_bytes());
        entries += 1;
    }
    put(&mut page, zero_page::E820_ENTRIES, &[entries]);
    page
}
