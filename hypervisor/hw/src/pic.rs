//! The legacy 8259 interrupt controllers: moved out of the exceptions' way and masked (Intel 8259A data sheet,
//! "Initialization Command Words"). The hypervisor takes its interrupts through the I/O APIC.

use x86_64::instructions::port::Port;

use crate::interrupts::LEGACY_PIC;

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;

/// Remaps both controllers to [`LEGACY_PIC`] and masks all inputs. What is spurious even so comes on vectors that the
/// hypervisor counts and forgets.
pub fn disable() {
    let out = |port: u16, value: u8| {
        // SAFETY: the 8259s' ports reach nothing but the 8259s, which only this function uses. Interrupts are off.
        unsafe { Port::<u8>::new(port).write(value) };
        // SAFETY: port 0x80 takes POST codes and has no effect; the write gives old controllers time between commands.
        unsafe { Port::<u8>::new(0x80).write(0) };
    };
    for (controller, vector, cascade) in [(MASTER, LEGACY_PIC, 1 << 2), (SLAVE, LEGACY_PIC + 8, 2)] {
        out(controller, 0x11);
        out(controller + 1, vector);
        out(controller + 1, cascade);
        out(controller + 1, 0x01);
        out(controller + 1, 0xff);
    }
}
