//! The local APIC, the I/O APIC, and what they can do to the processor (SDM vol. 3, "Advanced Programmable Interrupt
//! Controller (APIC)").

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::{cpu, probe, trap};

use crate::engine::{RAX, RDI, Run};
use crate::registers::{read, try_write, write};
use crate::seen::{Checked, GP0, Seen, all, expect, expect_end, works_or_gp0};
use crate::{Case, code, devices};

const BASE_MSR: u32 = 0x1b;
const BASE: u64 = 0xfee0_0000;
const ENABLED: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;
const IOAPIC: u64 = 0xfec0_0000;

/// Registers by their offset.
const TASK_PRIORITY: u64 = 0x80;
const EOI: u64 = 0xb0;
const LOGICAL: u64 = 0xd0;
const FORMAT: u64 = 0xe0;
const SPURIOUS: u64 = 0xf0;
const SERVICE: u64 = 0x100;
const REQUEST: u64 = 0x200;
const ERRORS: u64 = 0x280;
const COMMAND: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_ERROR: u64 = 0x370;
const INITIAL: u64 = 0x380;
const DIVIDE: u64 = 0x3e0;

const ON: u32 = 0x13f;
const SELF: u32 = 1 << 18;
/// An NMI to processor 0, by its number: the shorthand for self knows fixed interrupts only.
const NMI: u32 = 4 << 8;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 1 << 18;
/// Vector for tests.
const VECTOR: u32 = 0x31;
const SEND_ILLEGAL: u64 = 1 << 5;
const RECEIVE_ILLEGAL: u64 = 1 << 6;

static COUNT: AtomicU64 = AtomicU64::new(0);

pub const CASES: &[Case] = &[
    ("apic-error-interrupt-recursion", || {
        with_apic(|| {
            // The error interrupt has an illegal vector, which is an error (XSA-462).
            store(LVT_ERROR, 3);
            store(COMMAND, SELF | 5);
            errors();
            expect("illegal vectors seen", errors() & !(SEND_ILLEGAL | RECEIVE_ILLEGAL), 0)
        })
    }),
    ("apic-vectors-0-to-15-sent", || {
        with_apic(|| {
            (0..16).try_for_each(|vector| {
                errors();
                store(COMMAND, SELF | vector);
                expect("the error status", errors() & (SEND_ILLEGAL | RECEIVE_ILLEGAL) & SEND_ILLEGAL, SEND_ILLEGAL)
            })
        })
    }),
    ("apic-vectors-0-to-15-of-the-timer", || {
        with_apic(|| {
            (0..16).try_for_each(|vector| {
                store(LVT_TIMER, vector);
                store(INITIAL, 1);
                (0..200).for_each(|_| {
                    load(0x390);
                });
                store(LVT_TIMER, MASKED | VECTOR);
                expect("vectors requested below 16", u64::from(load(REQUEST) & 0xffff), 0)
            })
        })
    }),
    ("apic-straddles-its-page", || {
        let mut seen = Seen::Behaves;
        for offset in [0xffd, 0xffe, 0xfff] {
            let ran = Run::new(code!("mov eax, [rdi]", "mov [rdi], eax")).with(RDI, BASE + offset).go();
            if ran.fault.is_some() {
                seen = ran.into();
            }
        }
        seen
    }),
    ("apic-misaligned", || {
        all(|| {
            (0..0x400).try_for_each(|offset| {
                expect_end(&Run::new(code!("mov eax, [rdi]")).with(RDI, BASE + offset).go(), Seen::Completes)
            })
        })
    }),
    ("apic-every-width-read", || {
        all(|| {
            (0..0x1000).step_by(4).try_for_each(|offset| {
                let code = code!("mov al, [rdi]", "mov ax, [rdi]", "mov eax, [rdi]", "mov rax, [rdi]");
                expect_end(&Run::new(code).with(RDI, BASE + offset).go(), Seen::Completes)
            })
        })
    }),
    ("apic-every-register-zero", || every_register(0)),
    ("apic-every-register-ones", || every_register(u32::MAX)),
    ("apic-every-register-byte", || {
        with_apic(|| {
            (0..0x1000).filter(|at| at & !0xff != COMMAND).try_for_each(|offset| {
                expect_end(
                    &Run::new(code!("mov [rdi], al")).with(RDI, BASE + offset).with(RAX, 0x5a).go(),
                    Seen::Completes,
                )
            })
        })
    }),
    ("apic-read-only-registers", || {
        with_apic(|| {
            for register in [0x30, 0xa0, 0x390, SERVICE, REQUEST, 0x180] {
                let before = load(register);
                store(register, !before);
                expect("a read-only register", load(register).into(), before.into())?;
            }
            Ok(())
        })
    }),
    ("apic-lowest-priority-no-target", || {
        with_apic(|| {
            store(COMMAND_HIGH, 0x7e << 24);
            store(COMMAND, 1 << 8 | VECTOR);
            store(COMMAND, 1 << 8 | 1 << 11 | VECTOR);
            expect("delivery status", u64::from(load(COMMAND) >> 12 & 1), 0)?;
            expect("requests", u64::from(load(REQUEST + 0x10)), 0)
        })
    }),
    ("apic-eoi-storm", || {
        with_apic(|| {
            (0..20_000).for_each(|_| store(EOI, 0));
            Ok(())
        })
    }),
    ("apic-init-to-itself", || commands(0x500)),
    ("apic-startup-to-itself", || commands(0x600)),
    ("apic-smi-to-itself", || commands(0x200)),
    ("apic-reserved-delivery-modes", || {
        with_apic(|| {
            for mode in [0x300, 0x700] {
                store(COMMAND, SELF | mode | VECTOR);
            }
            expect("requests", u64::from(load(REQUEST + 0x10)), 0)
        })
    }),
    ("apic-nmi-to-itself", || {
        with_apic(|| {
            COUNT.store(0, Ordering::Relaxed);
            trap::set_handler(2, count);
            store(COMMAND, NMI);
            (0..100).for_each(|_| {
                cpu::cpuid(0, 0);
            });
            expect("NMIs", COUNT.load(Ordering::Relaxed), 1)
        })
    }),
    ("apic-nmi-within-nmi", || {
        with_apic(|| {
            // The second waits until the first has returned; a third is lost.
            COUNT.store(0, Ordering::Relaxed);
            trap::set_handler(2, |_| {
                if COUNT.fetch_add(1, Ordering::Relaxed) == 0 {
                    store(COMMAND, NMI);
                    store(COMMAND, NMI);
                    cpu::cpuid(0, 0);
                    NESTED.store(COUNT.load(Ordering::Relaxed), Ordering::Relaxed);
                }
            });
            store(COMMAND, NMI);
            (0..100).for_each(|_| {
                cpu::cpuid(0, 0);
            });
            expect("NMIs within the first", NESTED.load(Ordering::Relaxed), 1)?;
            expect("NMIs", COUNT.load(Ordering::Relaxed), 2)
        })
    }),
    ("apic-self-interrupt", || {
        with_apic(|| {
            COUNT.store(0, Ordering::Relaxed);
            trap::set_handler(0x31, |frame| {
                count(frame);
                store(EOI, 0);
            });
            (0..50).for_each(|_| {
                store(COMMAND, SELF | VECTOR);
                let_in();
            });
            expect("interrupts", COUNT.load(Ordering::Relaxed), 50)
        })
    }),
    ("apic-task-priority-holds", || {
        with_apic(|| {
            COUNT.store(0, Ordering::Relaxed);
            trap::set_handler(0x31, |frame| {
                count(frame);
                store(EOI, 0);
            });
            store(TASK_PRIORITY, 0x30);
            store(COMMAND, SELF | VECTOR);
            let_in();
            expect("interrupts while held", COUNT.load(Ordering::Relaxed), 0)?;
            store(TASK_PRIORITY, 0);
            let_in();
            expect("interrupts", COUNT.load(Ordering::Relaxed), 1)
        })
    }),
    ("apic-off-and-on", || {
        all(|| {
            let before = read(BASE_MSR);
            expect("taking it away", u64::from(write(BASE_MSR, before & !ENABLED)), 1)?;
            let gone = Run::new(code!("mov eax, [rdi + 0x30]")).with(RDI, BASE).go();
            expect_end(&gone, Seen::Completes)?;
            expect("a register of what is not there", gone.gprs[RAX], 0xffff_ffff)?;
            expect("giving it back", u64::from(write(BASE_MSR, before)), 1)
        })
    }),
    ("apic-x2-to-x", || with_x2apic(|| works_as(try_write(BASE_MSR, read(BASE_MSR) & !X2APIC), true))),
    ("apic-x2-without-enable", || all(|| works_as(try_write(BASE_MSR, read(BASE_MSR) & !ENABLED | X2APIC), true))),
    ("apic-x2-memory-is-gone", || {
        with_x2apic(|| {
            let ran = Run::new(code!("mov eax, [rdi + 0x30]")).with(RDI, BASE).go();
            expect_end(&ran, Seen::Completes)?;
            expect("a register in memory", ran.gprs[RAX], 0xffff_ffff)
        })
    }),
    ("apic-x2-read-every-register", || {
        with_x2apic(|| (0x800..0x900u32).try_for_each(|msr| works_or_gp0(msr.into(), probe::rdmsr(msr).err())))
    }),
    ("apic-x2-write-ones", || {
        with_x2apic(|| (0x800..0x900u32).try_for_each(|msr| works_or_gp0(msr.into(), try_write(msr, u64::MAX))))
    }),
    ("apic-x2-write-zero", || {
        with_x2apic(|| (0x800..0x900u32).try_for_each(|msr| works_or_gp0(msr.into(), try_write(msr, 0))))
    }),
    ("apic-x2-reserved-bits", || {
        with_x2apic(|| {
            for msr in [0x808, 0x80b, 0x80f, 0x828, 0x832, 0x837, 0x838, 0x83e, 0x83f] {
                works_as(try_write(msr, 1 << 32), true)?;
            }
            Ok(())
        })
    }),
    ("apic-x2-read-only", || {
        with_x2apic(|| {
            [0x802, 0x803, 0x80a, 0x80d, 0x810, 0x818, 0x820, 0x839]
                .into_iter()
                .try_for_each(|msr| works_as(try_write(msr, 0), true))
        })
    }),
    ("apic-x2-self-vectors-0-to-15", || {
        with_x2apic(|| {
            (0..16).try_for_each(|vector| works_or_gp0(vector, try_write(0x83f, vector)))?;
            expect("vectors requested below 16", probe::rdmsr(0x820).unwrap_or(0) & 0xffff, 0)
        })
    }),
    ("apic-x2-without-x2", || {
        all(|| {
            (0x800..0x900u32).try_for_each(|msr| {
                works_as(probe::rdmsr(msr).err(), true)?;
                works_as(try_write(msr, 0), true)
            })
        })
    }),
    ("apic-deadline-in-another-mode", || {
        all(|| {
            // Outside deadline mode the MSR reads as zero and writes are ignored.
            works_as(try_write(0x6e0, 12345), false)?;
            expect("IA32_TSC_DEADLINE", read(0x6e0), 0)
        })
    }),
    ("apic-deadline-extremes", || {
        with_apic(|| {
            store(LVT_TIMER, MASKED | DEADLINE | VECTOR);
            for value in [1, u64::MAX, 1 << 63, u64::MAX - 1, 0] {
                works_as(try_write(0x6e0, value), false)?;
            }
            Ok(())
        })
    }),
    ("apic-timer-every-divisor", || {
        with_apic(|| {
            for divide in 0..16 {
                store(DIVIDE, divide);
                for count in [0, 1, 2, u32::MAX] {
                    store(INITIAL, count);
                    load(0x390);
                }
            }
            Ok(())
        })
    }),
    ("ioapic-every-register", || {
        all(|| {
            for index in 0..256u32 {
                for value in [0, u32::MAX, 0x1_0000] {
                    ioapic(0, index);
                    let before = ioapic_read(0x10);
                    ioapic(0x10, value);
                    ioapic(0x10, if index < 0x10 { before } else { 0x1_0000 });
                }
            }
            Ok(())
        })
    }),
    ("ioapic-every-offset", || {
        all(|| {
            (0..0x1000).try_for_each(|offset| {
                let code = code!("mov eax, [rdi]", "mov al, [rdi]", "mov rax, [rdi]");
                expect_end(&Run::new(code).with(RDI, IOAPIC + offset).go(), Seen::Completes)
            })
        })
    }),
    ("ioapic-illegal-vectors", || {
        with_apic(|| {
            for vector in 0..16 {
                // The timer's pin, edge-triggered, to this processor.
                ioapic(0, 0x14);
                ioapic(0x10, vector);
                devices::tick();
            }
            ioapic(0, 0x14);
            ioapic(0x10, 0x1_0000);
            expect("vectors requested below 16", u64::from(load(REQUEST) & 0xffff), 0)
        })
    }),
    ("ioapic-smi-nmi-init", || {
        with_apic(|| {
            trap::set_handler(2, |_| {});
            for mode in [2, 4, 5] {
                ioapic(0, 0x14);
                ioapic(0x10, mode << 8 | VECTOR);
                devices::tick();
            }
            ioapic(0, 0x14);
            ioapic(0x10, 0x1_0000);
            Ok(())
        })
    }),
];

static NESTED: AtomicU64 = AtomicU64::new(0);

fn count(_: &mut trap::Frame) {
    COUNT.fetch_add(1, Ordering::Relaxed);
}

fn let_in() {
    // SAFETY: whatever comes in has a handler.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) };
}

fn store(register: u64, value: u32) {
    // SAFETY: a device's register; its interrupts have handlers or are masked.
    unsafe { ((BASE + register) as *mut u32).write_volatile(value) };
}

fn load(register: u64) -> u32 {
    // SAFETY: as above.
    unsafe { ((BASE + register) as *const u32).read_volatile() }
}

/// The error status since this was last asked.
fn errors() -> u64 {
    store(ERRORS, 0);
    load(ERRORS).into()
}

fn ioapic(register: u64, value: u32) {
    // SAFETY: as above.
    unsafe { ((IOAPIC + register) as *mut u32).write_volatile(value) };
}

fn ioapic_read(register: u64) -> u32 {
    // SAFETY: as above.
    unsafe { ((IOAPIC + register) as *const u32).read_volatile() }
}

/// With the local APIC on; afterwards it is as after a reset, nearly.
fn with_apic(checks: impl FnOnce() -> Checked) -> Seen {
    trap::set_handler(0x31, |_| store(EOI, 0));
    trap::set_handler(0x3f, |_| {});
    store(SPURIOUS, ON);
    let seen = all(checks);
    restore();
    seen
}

fn restore() {
    for lvt in (LVT_TIMER..=LVT_ERROR).step_by(16) {
        store(lvt, MASKED);
    }
    store(INITIAL, 0);
    store(TASK_PRIORITY, 0);
    store(LOGICAL, 0);
    store(FORMAT, u32::MAX);
    store(COMMAND_HIGH, 0);
    // What was requested is taken and ended.
    trap::set_handler(0x31, |_| store(EOI, 0));
    let_in();
    (0..16).for_each(|_| store(EOI, 0));
    store(SPURIOUS, 0xff);
    errors();
}

fn with_x2apic(checks: impl FnOnce() -> Checked) -> Seen {
    if !cpu::has(1, 0, 2, 21) {
        return Seen::Lacking("x2APIC mode");
    }
    let before = read(BASE_MSR);
    if !write(BASE_MSR, before | X2APIC) {
        return Seen::Deviates("x2APIC mode", 0, 1);
    }
    let seen = all(checks);
    write(BASE_MSR, before & !ENABLED & !X2APIC);
    write(BASE_MSR, before);
    restore();
    seen
}

/// One check: refused with #GP(0), or not.
fn works_as(fault: Option<trap::Fault>, refused: bool) -> Checked {
    match fault {
        None if !refused => Ok(()),
        Some(GP0) if refused => Ok(()),
        None => Err(Seen::Completes),
        Some(fault) => Err(Seen::Fault(fault)),
    }
}

fn commands(mode: u32) -> Seen {
    with_apic(|| {
        for bits in [SELF, 0, 1 << 14, 1 << 15 | 1 << 14, 2 << 18, 3 << 18] {
            store(COMMAND, bits | mode | 0x10);
        }
        expect("requests", u64::from(load(REQUEST)), 0)
    })
}

fn every_register(value: u32) -> Seen {
    let seen = all(|| {
        (0..0x1000).step_by(16).try_for_each(|offset| {
            let ran = Run::new(code!("mov [rdi], eax")).with(RDI, BASE + offset).with(RAX, value.into()).go();
            expect_end(&ran, Seen::Completes)
        })
    });
    restore();
    seen
}

fn wait_for_ever() -> Seen {
    loop {
        // SAFETY: the handlers are set.
        unsafe { asm!("sti", "nop", options(nostack)) };
    }
}

/// The APIC's timer as fast as it goes.
pub fn timer_storm() -> Seen {
    trap::set_handler(0x31, |_| store(EOI, 0));
    store(SPURIOUS, ON);
    store(DIVIDE, 0b1011);
    store(LVT_TIMER, PERIODIC | VECTOR);
    store(INITIAL, 1);
    wait_for_ever()
}

/// Each interrupt sends the next.
pub fn ipi_storm() -> Seen {
    trap::set_handler(0x31, |_| {
        store(EOI, 0);
        store(COMMAND, SELF | VECTOR);
    });
    store(SPURIOUS, ON);
    store(COMMAND, SELF | VECTOR);
    wait_for_ever()
}

/// Each NMI sends the next.
pub fn nmi_storm() -> Seen {
    trap::set_handler(2, |_| store(COMMAND, NMI));
    store(SPURIOUS, ON);
    store(COMMAND, NMI);
    wait_for_ever()
}

/// A deadline that has always passed.
pub fn deadline_storm() -> Seen {
    trap::set_handler(0x31, |_| {
        store(EOI, 0);
        write(0x6e0, 1);
    });
    store(SPURIOUS, ON);
    store(LVT_TIMER, DEADLINE | VECTOR);
    write(0x6e0, 1);
    wait_for_ever()
}
