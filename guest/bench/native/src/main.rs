//! Boots Linux or a Multiboot image on the bare machine, for the benchmarks: what Lamina's loader does in a VM, without
//! Lamina. It says on Linux' command line, in `lamina_entry_tsc=`, what the TSC was at the jump to the kernel.
//!
//! The ramdisk holds three numbers (64 bits, little-endian), the lengths of a bzImage or a Multiboot 1 image in ELF64, an
//! initrd (for Linux) and a command line, and then these three. What does not fit is told on the serial port, and the machine stands still.
#![no_std]
#![no_main]

mod linux;
mod machine;
mod multiboot;

use bootloader_api::config::{BootloaderConfig, Mapping};
use bootloader_api::info::MemoryRegionKind;
use bootloader_api::{BootInfo, entry_point};

use linux::Zero;
use machine::Physical;

/// Where all of physical memory is mapped. Entry 0 of the top table is not used by anything of ours, nor by the loader's
/// choices, so that it can be replaced.
const PHYSICAL: u64 = 0xffff_a000_0000_0000;
const PAGE: u64 = 0x1000;
const LARGE_PAGE: u64 = 0x20_0000;
/// Everything is placed below this, where the zero page's older fields can name it.
const LIMIT: u64 = 1 << 32;

static CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.mappings.kernel_base = Mapping::FixedAddress(0xffff_ffff_8000_0000);
    config.mappings.kernel_stack = Mapping::FixedAddress(0xffff_b000_0000_0000);
    config.mappings.boot_info = Mapping::FixedAddress(0xffff_c000_0000_0000);
    config.mappings.framebuffer = Mapping::FixedAddress(0xffff_d000_0000_0000);
    config.mappings.ramdisk_memory = Mapping::FixedAddress(0xffff_e000_0000_0000);
    config.mappings.physical_memory = Some(Mapping::FixedAddress(PHYSICAL));
    config
};

entry_point!(start, config = &CONFIG);

fn start(boot: &'static mut BootInfo) -> ! {
    match prepare(boot) {
        Some((memory, Jump::Linux(jump))) => jump.enter(&memory),
        // SAFETY: `multiboot::place` put everything where it says.
        Some((_, Jump::Multiboot(descent))) => unsafe { machine::descend(&descent) },
        None => machine::give_up("bench-native: this machine or this ramdisk does not do\r\n"),
    }
}

/// Where it goes on.
enum Jump {
    Linux(linux::Jump),
    Multiboot(machine::Descent),
}

/// Puts everything into memory; `None` where something is not as it should be.
fn prepare(boot: &BootInfo) -> Option<(Physical, Jump)> {
    let ramdisk = *boot.ramdisk_addr.as_ref()?;
    // SAFETY: the loader mapped the ramdisk there for good, and nothing writes it: it is in memory that the map calls in
    // use, and only usable memory is written here.
    let ramdisk = unsafe { core::slice::from_raw_parts(ramdisk as *const u8, usize::try_from(boot.ramdisk_len).ok()?) };
    let (kernel, rest) = (number(ramdisk, 0)?, ramdisk.get(24..)?);
    let (kernel, rest) = rest.split_at_checked(kernel)?;
    let (initrd, rest) = rest.split_at_checked(number(ramdisk, 8)?)?;
    let cmdline = rest.get(..number(ramdisk, 16)?)?;
    let usable = boot.memory_regions.iter().filter(|r| r.kind == MemoryRegionKind::Usable && r.end <= LIMIT);
    let region = usable.max_by_key(|region| region.end - region.start)?;
    // SAFETY: all of physical memory is mapped at `PHYSICAL`; the region is usable memory, so nothing is in it.
    let memory = unsafe { Physical::new(PHYSICAL, region.start..region.end) };
    let region = region.start..region.end;

    if kernel.starts_with(multiboot::ELF_MAGIC) {
        let descent = multiboot::place(&memory, &region, kernel, cmdline)?;
        return Some((memory, Jump::Multiboot(descent)));
    }
    let kernel = linux::Kernel::parse(kernel)?;
    // From the bottom: the kernel with the memory that it works in, the pages that we make. At the top: the initrd.
    let kernel_at = region.start.next_multiple_of(kernel.alignment.max(LARGE_PAGE));
    let pages = (kernel_at + kernel.init_size).next_multiple_of(PAGE);
    let (zero_at, cmdline_at, tables_at) = (pages, pages + PAGE, pages + 2 * PAGE);
    let initrd_at = region.end.checked_sub(initrd.len() as u64)? & !(PAGE - 1);
    if cmdline.len() as u64 >= PAGE || tables_at + machine::TABLES_SIZE > initrd_at {
        return None;
    }
    memory.write(kernel_at, kernel.code)?;
    memory.write(initrd_at, initrd)?;
    memory.write(cmdline_at, cmdline)?;
    memory.write(cmdline_at + cmdline.len() as u64, &[0])?;

    let mut zero = Zero::of(&kernel);
    zero.place(kernel_at, cmdline_at, initrd_at, initrd.len())?;
    if let Some(rsdp) = boot.rsdp_addr.as_ref() {
        zero.rsdp(*rsdp);
    }
    for region in boot.memory_regions.iter() {
        let kind = match region.kind {
            // What the loader uses is memory like any other for what comes after it.
            MemoryRegionKind::Usable | MemoryRegionKind::Bootloader => linux::E820_RAM,
            MemoryRegionKind::UnknownBios(kind) => kind,
            _ => linux::E820_RESERVED,
        };
        zero.region(region.start, region.end, kind)?;
    }
    memory.write(zero_at, zero.bytes())?;
    let tables = machine::identity_tables(&memory, tables_at)?;
    let entry_tsc = linux::find_variable(cmdline).map(|offset| cmdline_at + offset);
    let jump = linux::Jump { entry: kernel_at + linux::ENTRY64, zero: zero_at, tables, entry_tsc };
    Some((memory, Jump::Linux(jump)))
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 8)?.try_into().ok()?;
    usize::try_from(u64::from_le_bytes(bytes)).ok()
}
