//! The hypervisor's binary: entry from the loader, the heap, the panic handler. Wiring only.
//!
//! [`bringup`] turns a machine as the loader leaves it into one that virtual machines can run on. Nothing is decided
//! here.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "the loader's entry point is an exported symbol, and what it hands over is raw memory")]

extern crate alloc;

mod bringup;
mod panic;
mod run;

use bootloader_api::config::{BootloaderConfig, Mapping};
use bootloader_api::{BootInfo, entry_point};
use lamina_hw::memory::KernelHeap;
use lamina_hw::platform::{Handover, Platform};
use lamina_hw::report::refuse;
use lamina_hw::svm::{self, Svm};
use lamina_hw::vmx::{self, Vmx};
use lamina_hw::{memory, paging, timer};

/// Where the image is loaded: the last 2 GiB, as the target's code model wants it.
const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// Size of the boot processor's stack, on which the run loop runs. Unit: bytes.
const STACK_SIZE: u64 = 256 << 10;

/// What is asked of the loader: everything at the address where it stays.
static CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.kernel_stack_size = STACK_SIZE;
    config.mappings.kernel_base = Mapping::FixedAddress(IMAGE);
    config.mappings.kernel_stack = Mapping::FixedAddress(paging::STACKS);
    config.mappings.physical_memory = Some(Mapping::FixedAddress(memory::DIRECT_MAP));
    config
};

#[global_allocator]
static HEAP: KernelHeap = KernelHeap::empty();

entry_point!(start, config = &CONFIG);

fn start(boot: &'static mut BootInfo) -> ! {
    let handover = Handover { at: timer::now(), heap: &HEAP };
    let ready = bringup::bring_up(boot, &HEAP);
    let (memory, image, bundle) = run::unpack(ready);
    // The only place that knows of vendors: from here on, the back end is a type.
    match Vmx::enable(bundle.mitigations) {
        Ok(vmx) => run::run(Platform::new(memory, vmx, handover), bundle, image),
        Err(vmx::Unsupported::NoVmx) => match Svm::enable(bundle.mitigations) {
            Ok(svm) => run::run(Platform::new(memory, svm, handover), bundle, image),
            Err(svm::Unsupported::NoSvm) => refuse(format_args!("{}", lamina_hw::NEITHER)),
            Err(unsupported) => refuse(format_args!("{unsupported}")),
        },
        Err(unsupported) => refuse(format_args!("{unsupported}")),
    }
}
