//! The probe: a kernel that turns on the processor's virtualization as the hypervisor does, says which it is, and ends
//! the machine. `cargo xtask` boots it to find out what a host offers.
//!
//! Its line is `[lamina] usable: VMX` or `[lamina] usable: SVM`, or an error with the reason; never runs a guest.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "the loader's entry point is an exported symbol, and what it hands over is raw memory")]

use core::panic::PanicInfo;

use bootloader_api::config::{BootloaderConfig, Mapping};
use bootloader_api::info::MemoryRegionKind;
use bootloader_api::{BootInfo, entry_point};
use lamina_arch::addr::Hpa;
use lamina_arch::speculation::Mitigations;
use lamina_hw::memory::{self, KernelHeap, Region, RegionKind};
use lamina_hw::report::refuse;
use lamina_hw::svm::{self, Svm};
use lamina_hw::vmx::{self, Vmx};
use lamina_hw::{control, idt, logger, paging, report, serial};

/// As the hypervisor's own, whose code this is.
static CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.mappings.kernel_base = Mapping::FixedAddress(0xffff_ffff_8000_0000);
    config.mappings.kernel_stack = Mapping::FixedAddress(paging::STACKS);
    config.mappings.physical_memory = Some(Mapping::FixedAddress(memory::DIRECT_MAP));
    config
};

#[global_allocator]
static HEAP: KernelHeap = KernelHeap::empty();

entry_point!(start, config = &CONFIG);

fn start(boot: &'static mut BootInfo) -> ! {
    idt::init_early();
    serial::init();
    logger::init();
    let regions = boot.memory_regions.iter().map(|region| {
        let usable = region.kind == MemoryRegionKind::Usable;
        let kind = if usable { RegionKind::Usable } else { RegionKind::Other };
        Region { start: Hpa(region.start), end: Hpa(region.end), kind }
    });
    let Some((heap, length)) = memory::choose_heap(regions) else {
        refuse(format_args!("this machine has too little memory"));
    };
    // SAFETY: first and only call. The loader says that this memory is usable, so nothing is there, and maps all memory
    // at the direct map's place, as it was asked to.
    unsafe { HEAP.init(heap, length) };
    control::protect();
    let name = match Vmx::enable(Mitigations::Off) {
        Ok(_) => "VMX",
        Err(vmx::Unsupported::NoVmx) => match Svm::enable(Mitigations::Off) {
            Ok(_) => "SVM",
            Err(svm::Unsupported::NoSvm) => refuse(format_args!("{}", lamina_hw::NEITHER)),
            Err(unsupported) => refuse(format_args!("{unsupported}")),
        },
        Err(unsupported) => refuse(format_args!("{unsupported}")),
    };
    log::info!("usable: {name}");
    report::end(0)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    report::panic(info)
}
