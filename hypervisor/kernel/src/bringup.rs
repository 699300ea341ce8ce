//! Bring-up: from the loader's hands to a machine that virtual machines can run on, in the one order that works.
//!
//! Serial port and log first, so that everything after can be told; then the heap; then what must still be read
//! through the loader's page tables; then our own tables and everything that needs them.

use alloc::vec::Vec;
use bootloader_api::BootInfo;
use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use lamina_arch::addr::{Hpa, PAGE_1G, PAGE_4K};
use lamina_hw::guest_ram::GuestRam;
use lamina_hw::hpet::Hpet;
use lamina_hw::ioapic::{Delivery, IoApics};
use lamina_hw::madt::Madt;
use lamina_hw::memory::{KernelHeap, Region, RegionKind};
use lamina_hw::nmi_status::Earlier;
use lamina_hw::paging::AddressSpace;
use lamina_hw::report::refuse;
use lamina_hw::screen::Layout;
use lamina_hw::{
    acpi, apic, control, gdt, idt, interrupts, ioapic, logger, machine_check, memory, nmi_status, paging, percpu, pic,
    screen, serial, symbols, timer, watchdog,
};
use lamina_vmm::config::{self, Bundle, BundleError};

/// The serial port's ISA interrupt.
const SERIAL_IRQ: u8 = 4;
/// The image is at most this large. Unit: bytes.
const IMAGE_LIMIT: u64 = 32 << 20;

/// A machine that is ready.
pub struct Ready {
    /// The memory that virtual machines may have.
    pub memory: GuestRam,
    /// What the host packed for us, in read-only memory that stays, and its description or what is wrong with it.
    pub bundle: Option<(&'static [u8], Result<Bundle, BundleError>)>,
}

/// Brings the machine up. What makes it unfit is told in one line, and ends it.
pub fn bring_up(boot: &'static mut BootInfo, heap: &'static KernelHeap) -> Ready {
    idt::init_early();
    serial::init();
    let framebuffer = framebuffer(boot);
    if let Some((start, layout)) = framebuffer {
        let pixels = core::ptr::with_exposed_provenance_mut(usize::try_from(start).unwrap_or(0));
        // SAFETY: the loader maps the framebuffer there, and its own use of it is over. It is taken anew before the
        // loader's page tables go.
        unsafe { screen::init(pixels, layout) };
    }
    logger::init();
    log::info!("Lamina {}", env!("CARGO_PKG_VERSION"));

    let regions = || boot.memory_regions.iter().map(region);
    let Some((heap_start, heap_length)) = memory::choose_heap(regions()) else {
        refuse(format_args!("this machine has too little memory"));
    };
    // SAFETY: first and only call. The loader says that this memory is usable, so nothing is there; it is mapped in the
    // direct map, where the loader was asked to put it and where our own tables have it too; `pool` leaves it out.
    unsafe { heap.init(heap_start, heap_length) };
    let regions: Vec<Region> = regions().collect();
    let pool = memory::pool(&regions, (heap_start, heap_length));
    let pool_size: u64 = pool.iter().map(|&(_, length)| length).sum();
    log::info!("memory: {} MiB for virtual machines, {} MiB heap", pool_size >> 20, heap_length >> 20);

    control::protect();
    let bundle = bundle(boot).map(|image| (image, config::check(image).and_then(|()| config::parse(image))));
    // So early, so that the level holds for most of bring-up.
    if let Some((_, Ok(description))) = &bundle {
        logger::set_level(description.log);
        screen::show(description.screen);
    }
    let framebuffer = framebuffer.and_then(|(start, layout)| Some((paging::translate(start)?, layout)));
    // SAFETY: the loader keeps the image's file where it says, in memory marked as in use; the direct map has it.
    let image = unsafe { bytes_at(Hpa(boot.kernel_addr), boot.kernel_len) };
    symbols::init(image, boot.kernel_image_offset);
    let mapped = regions.iter().map(|region| region.end).fold(Hpa(4 * PAGE_1G), Hpa::max);
    // SAFETY: the loader maps memory up to the end of its last region, and at least 4 GiB.
    let acpi = unsafe { acpi::read(boot.rsdp_addr.into_option().map(Hpa), mapped) };
    // In memory there are no registers.
    let is_memory = |at: Hpa| regions.iter().any(|r| r.kind != RegionKind::Other && (r.start..r.end).contains(&at));
    let hpet = acpi.hpet.filter(|&at| !is_memory(at));

    let stack = boot.kernel_stack_bottom..boot.kernel_stack_bottom + boot.kernel_stack_len;
    let first = boot.kernel_image_offset;
    let space = AddressSpace {
        ram: &memory::ram(&regions, &pool),
        image: first..first + IMAGE_LIMIT,
        stack,
        read_only: &bundle.iter().map(|(image, _)| whole_pages(image)).collect::<Vec<_>>(),
    };
    // SAFETY: called once, with the loader's tables current; image, stack and direct map hold all that is still used:
    // `boot` is not touched any more.
    let image_pages = unsafe { paging::activate(&space) };
    // At once: the early table needs the loader's segments, which lie in what is not mapped any more.
    gdt::init();
    idt::init();
    // Before the first source of non-maskable interrupts is let in.
    let earlier = nmi_status::forget_earlier();
    if let Some((hpa, layout)) = framebuffer
        && let Some(length) = layout.bytes()
    {
        let pixels = paging::map_framebuffer(hpa, length as u64);
        // SAFETY: just mapped for good. Nothing was drawn since the loader's tables went.
        unsafe { screen::init(pixels, layout) };
    }
    log::debug!("page tables: {image_pages} pages of image, {:?}", control::protections());

    machine_check::enable();
    pic::disable();
    let mode = apic::init(acpi.x2apic_opt_out);
    let cpu = percpu::init(0, apic::id());
    let mut hpet = hpet.and_then(Hpet::find);
    if hpet.as_mut().is_some_and(Hpet::end_legacy_replacement) {
        log::info!("firmware had given the 8254's interrupt to the HPET; taken back");
    }
    let calibration = match timer::calibrate(hpet, acpi.pm_timer) {
        Ok(calibration) => calibration,
        Err(misses) => refuse(format_args!("the time-stamp counter's rate could not be measured: {misses}")),
    };
    log::info!("{calibration}");
    let tsc = calibration.frequency;
    let timer = apic::init_timer(tsc);
    log::info!("processor: TSC {}.{:03} MHz, {mode}, {timer}", tsc.hz() / 1_000_000, tsc.hz() / 1000 % 1000);

    let mut io_apics = ioapic::init(&acpi.madt);
    log::debug!("{} processors, {io_apics:?}", acpi.madt.processors);
    start_serial(&mut io_apics, &acpi.madt, cpu.lapic_id);
    if let Some(Earlier { failure, stays }) = earlier {
        let further = if stays { ", and is not looked at further: port 0x61 goes on telling of it" } else { "" };
        log::warn!("the machine has told of {failure} before now{further}");
    }
    if calibration.pit_is_dead() {
        log::warn!("no watchdog: the 8254 does not count");
    } else if let Err(why) = watchdog::start(&mut io_apics, &acpi.madt, cpu.lapic_id) {
        log::warn!("no watchdog: {why}");
    }

    // SAFETY: first and only call. The pool is memory that the loader calls usable, left out of the direct map, and
    // without the heap, so no object of Rust's is in it.
    let memory = unsafe { GuestRam::new(pool) };
    Ready { memory, bundle }
}

/// From here on the serial port works by its interrupt; or it is polled, where the interrupt cannot be had or does not come.
fn start_serial(io_apics: &mut IoApics, madt: &Madt, lapic_id: u32) {
    if !serial::is_present() {
        return;
    }
    match ioapic::route_isa(io_apics, madt, SERIAL_IRQ, Delivery::Vector(interrupts::SERIAL), lapic_id) {
        Ok(line) if serial::enable_interrupts() => log::debug!("the serial port interrupts on line {line}"),
        Ok(line) => log::warn!("the serial port is polled: it gives no interrupt on line {line}"),
        Err(why) => {
            serial::poll();
            log::warn!("the serial port is polled: {why}");
        }
    }
}

/// The framebuffer, if the loader set one up: its address in the loader's tables, and its layout.
fn framebuffer(boot: &BootInfo) -> Option<(u64, Layout)> {
    let framebuffer = boot.framebuffer.as_ref()?;
    let info = framebuffer.info();
    let layout = Layout { width: info.width, height: info.height, stride: info.stride, pixel: info.bytes_per_pixel };
    let start = framebuffer.buffer().as_ptr().expose_provenance() as u64;
    (layout.bytes()? <= info.byte_len).then_some((start, layout))
}

/// A region of the loader's map, in our terms.
fn region(region: &MemoryRegion) -> Region {
    // ACPI's tables and its non-volatile storage have the types 3 and 4 in E820, 9 and 10 in UEFI.
    let kind = match region.kind {
        MemoryRegionKind::Usable => RegionKind::Usable,
        MemoryRegionKind::Bootloader => RegionKind::InUse,
        MemoryRegionKind::UnknownBios(3 | 4) | MemoryRegionKind::UnknownUefi(9 | 10) => RegionKind::Acpi,
        _ => RegionKind::Other,
    };
    Region { start: Hpa(region.start), end: Hpa(region.end), kind }
}

/// The ramdisk, through the direct map: the loader put it in one piece.
fn bundle(boot: &BootInfo) -> Option<&'static [u8]> {
    let address = *boot.ramdisk_addr.as_ref()?;
    let start = paging::translate(address)?;
    // SAFETY: the loader keeps the ramdisk there, in memory marked as in use; nothing writes it.
    Some(unsafe { bytes_at(start, boot.ramdisk_len) })
}

/// Memory that the loader filled.
///
/// # Safety
/// It is mapped in the direct map for good, and nothing writes it.
unsafe fn bytes_at(start: Hpa, length: u64) -> &'static [u8] {
    let length = usize::try_from(length).unwrap_or(0);
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(memory::direct(start), length) }
}

/// The pages that hold `bytes`: start and end.
fn whole_pages(bytes: &[u8]) -> (Hpa, Hpa) {
    let start = memory::hpa_of(bytes.as_ptr());
    let end = start + bytes.len() as u64;
    (start.align_down(PAGE_4K), (end + (PAGE_4K - 1)).align_down(PAGE_4K))
}
