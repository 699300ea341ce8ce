//! A panic is a bug of the hypervisor's: reported, and the end of the machine. It never hangs.

use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    lamina_hw::report::panic(info)
}
