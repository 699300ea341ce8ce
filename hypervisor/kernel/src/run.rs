//! From a machine that is ready to its end: the bundle, the run loop, the last line.

use lamina_devices::pc::Pc;
use lamina_hw::guest_ram::GuestRam;
use lamina_hw::platform::{Backend, Platform};
use lamina_hw::report::refuse;
use lamina_hw::{exit, logger, serial};
use lamina_vmm::config::Bundle;
use lamina_vmm::frames::FramePool;
use lamina_vmm::machine::Machine;

use crate::bringup::Ready;

/// Takes a ready machine apart: its memory, the bundle's bytes and its description. A bundle that is not there or not
/// one ends the machine.
pub fn unpack(ready: Ready) -> (GuestRam, &'static [u8], Bundle) {
    let Some((image, description)) = ready.bundle else {
        refuse(format_args!("the boot image holds no bundle of virtual machines"));
    };
    match description {
        Ok(bundle) => (ready.memory, image, bundle),
        Err(error) => refuse(format_args!("the bundle cannot be read: {error}")),
    }
}

/// Runs the bundle's virtual machines on `platform` until all is over.
pub fn run<B: Backend>(platform: Platform<B>, bundle: Bundle, image: &'static [u8]) -> ! {
    logger::queue_lines();
    let pool = FramePool::new(&platform.pool());
    let (status, _platform) = Machine::<_, Pc>::new(platform, pool, bundle, image).run();
    serial::flush_polled();
    exit::end_machine(status)
}
