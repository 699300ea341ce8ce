//! The figures of one virtual machine by itself.

use guest_rt::hypercall::Lamina;
use guest_rt::{cpu, pic};

use crate::instruction::{clear, cpuid, hypercall, inb, load, nops, rdmsr, store, wrmsr};
use crate::{counts, interrupts, measure};

const IA32_APIC_BASE: u32 = 0x1b;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Counter 0 of the interval timer.
const PIT: u16 = 0x40;
/// Interrupt mask of the first 8259.
const PIC: u16 = 0x21;
/// Line status of the first serial port.
const UART: u16 = 0x3fd;
/// The port of power-on self-test codes, which Linux writes to for a delay.
const POST: u16 = 0x80;
/// The local APIC's registers, at their address after reset.
const APIC: u64 = 0xfee0_0000;
const APIC_VERSION: u64 = APIC + 0x30;
const APIC_EOI: u64 = APIC + 0xb0;
/// Memory that nobody has touched: above the program and whatever loaded it, in any VM of 64 MiB.
const FRESH: u64 = 32 << 20;

/// Measures all that this machine has.
pub fn run(lamina: Option<Lamina>) {
    // On a bare machine firmware has left the timer interrupting, with a vector of an exception's.
    pic::init();
    measure::calibrate();
    measure::operation("nop/100", nops);
    measure::operation("cpuid/0", || cpuid(0));
    measure::operation("cpuid/1", || cpuid(1));
    // CPUID says whether a hypervisor is there; on a bare machine the instruction is none.
    if cpu::has(1, 0, 2, 31) {
        let amd = lamina.is_some_and(Lamina::uses_vmmcall);
        measure::operation("hypercall/nop", || hypercall(amd));
    }
    // SAFETY: both MSRs exist on every processor with a local APIC that this is meant for, and get their own values.
    unsafe {
        measure::operation("rdmsr/apic-base", || {
            rdmsr(IA32_APIC_BASE);
        });
        let base = rdmsr(IA32_APIC_BASE);
        measure::operation("wrmsr/apic-base", || wrmsr(IA32_APIC_BASE, base));
        measure::operation("rdmsr/misc-enable", || {
            rdmsr(IA32_MISC_ENABLE);
        });
    }
    measure::operation("port/pit", || inb(PIT));
    measure::operation("port/pic", || inb(PIC));
    measure::operation("port/uart", || inb(UART));
    measure::operation("port/post", || inb(POST));
    // SAFETY: the local APIC is enabled at its address after reset; the version is only read, and an end of interrupt
    // without one in service does nothing.
    unsafe {
        measure::operation("mmio/apic-version", || load(APIC_VERSION));
        measure::operation("mmio/apic-eoi", || store(APIC_EOI, 0));
    }
    let mut page = FRESH;
    measure::operation("touch/first", || {
        // SAFETY: memory of the machine's where neither this program nor its loader has put anything.
        unsafe { store(page, 1) };
        // Every other page: neighbours that are all in use would get a large frame, and most of the samples no exit.
        page += 2 * 4096;
    });
    // What clearing a page costs, which the stock of cleared frames has done ahead.
    measure::operation("clear/page", || {
        // SAFETY: as above, and it is touched.
        unsafe { clear(FRESH) };
    });
    if cpu::has(1, 0, 2, 21) && cpu::has(1, 0, 2, 24) {
        interrupts::enable();
        interrupts::self_ipi();
        // SAFETY: the timer has the mode for it; 0 disarms it.
        measure::operation("wrmsr/tsc-deadline", || unsafe { wrmsr(IA32_TSC_DEADLINE, u64::MAX / 2) });
        // SAFETY: as above.
        unsafe { wrmsr(IA32_TSC_DEADLINE, 0) };
        if !counts::is_enabled() {
            interrupts::deadline("deadline/spinning", 20_000, false);
            interrupts::deadline("deadline/halted", 100_000, true);
        }
    }
}
