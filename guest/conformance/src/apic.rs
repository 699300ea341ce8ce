//! The local APIC in both modes, its timer, and the I/O APIC.

use guest_rt::cpu;

use crate::machine::{GP, NOTHING, SECOND, VECTOR, breathe, count, forget, last, outb, rdmsr, read32, write32, wrmsr};
use crate::{Test, Verdict};

const LOCAL: u64 = 0xfee0_0000;
const IO: u64 = 0xfec0_0000;
const APIC_BASE: u32 = 0x1b;
const ENABLED: u64 = 0xfee0_0900;
const X2: u64 = 1 << 10;
const TPR: u64 = 0x80;
const EOI: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const IRR: u64 = 0x200;
const ESR: u64 = 0x280;
const ICR: u64 = 0x300;
const LVT_TIMER: u64 = 0x320;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;
/// The task priority register's address: it keeps eight bits.
pub const TASK_PRIORITY: u64 = LOCAL + TPR;
/// The interrupt command for an NMI. To self, but by its number: the shorthand knows fixed interrupts only.
pub const SELF_NMI: u32 = 1 << 14 | 4 << 8;

pub const TESTS: &[Test] = &[
    ("apic version", || same(u64::from(read(0x30) & 0xff >= 0x10), 1u64)),
    ("apic self ipi", self_interrupt),
    ("apic priority keeps an interrupt waiting", priority),
    ("apic higher vector first", higher_first),
    ("apic task priority is cr8", tpr_is_cr8),
    ("apic error of an illegal vector", illegal_vector),
    ("apic timer one-shot", one_shot),
    ("apic timer periodic", periodic),
    ("apic timer tsc deadline", tsc_deadline),
    ("apic timer tsc deadline is cleared", || crate::same(CLEARED.load(core::sync::atomic::Ordering::Relaxed), 0)),
    ("apic timer stopped", stopped),
    ("apic divide register", divide),
    ("apic lvt masked after software disable", software_disable),
    ("ioapic identification and version", ioapic_version),
    ("ioapic entry", ioapic_entry),
    ("ioapic edge from the interval timer", ioapic_edge),
    ("pic through lint0", pic),
];

/// Switches of the mode. Each goes through the disabled state, out of which not every machine comes: these are last.
pub const MODES: &[Test] = &[
    ("apic disabled is told by cpuid", disabled),
    ("x2apic from disabled", || mode(&[0xfee0_0100], 0xfee0_0100 | X2 | 1 << 11, NOTHING)),
    ("x2apic back to xapic", x2_to_x),
    ("x2apic self ipi", x2_self),
    ("x2apic reserved registers", x2_reserved),
    ("x2apic read-only and write-only registers", x2_rights),
    ("x2apic command in one write", x2_command),
];

fn disabled() -> Verdict {
    crate::same(wrmsr(APIC_BASE, 0xfee0_0100), NOTHING)?;
    let shown = cpu::has(1, 0, 3, 9);
    wrmsr(APIC_BASE, ENABLED);
    enable();
    crate::same(u64::from(shown) << 1 | u64::from(cpu::has(1, 0, 3, 9)), 1)
}

fn read(register: u64) -> u32 {
    read32(LOCAL + register)
}

fn write(register: u64, value: u32) {
    write32(LOCAL + register, value);
}

/// Switches the local APIC on, in xAPIC mode, with nothing pending.
fn enable() {
    write(SPURIOUS, 0x13f);
    write(TPR, 0);
}

/// The address of the interrupt command register; its upper half names this processor.
pub fn command() -> u64 {
    enable();
    write(ICR + 0x10, read(0x20) & 0xff00_0000);
    LOCAL + ICR
}

/// Ends an interrupt, in whichever mode the local APIC is.
pub fn end_of_interrupt() {
    // A handler may not disturb what its test records: this reads the mode without awaiting anything.
    let (low, high): (u32, u32);
    // SAFETY: every processor with a local APIC has this MSR.
    unsafe { core::arch::asm!("rdmsr", in("ecx") APIC_BASE, out("eax") low, out("edx") high) };
    let _ = high;
    if u64::from(low) & X2 != 0 {
        // SAFETY: the mode is on.
        unsafe { core::arch::asm!("wrmsr", in("ecx") 0x80b, in("eax") 0, in("edx") 0) };
    } else {
        write(EOI, 0);
    }
}

/// An interrupt to self, by the shorthand.
pub fn self_ipi(vector: u8) {
    enable();
    write(ICR, 1 << 18 | 1 << 14 | u32::from(vector));
}

/// Sets the task priority.
pub fn set_priority(value: u32) {
    write(TPR, value);
}

/// An NMI to self.
pub fn self_nmi() {
    command();
    write(ICR, SELF_NMI);
}

fn self_interrupt() -> Verdict {
    forget();
    self_ipi(VECTOR);
    same(read(IRR + 0x10) >> (VECTOR - 32) & 1, 1u64)?;
    same(count(), 0u64)?;
    breathe();
    same(count() << 8 | last().vector, 1 << 8 | u64::from(VECTOR))
}

fn same(found: impl Into<u64>, expected: impl Into<u64>) -> Verdict {
    crate::same(found.into(), expected.into())
}

fn priority() -> Verdict {
    forget();
    self_ipi(VECTOR);
    write(TPR, 0x30);
    breathe();
    let kept = count();
    write(TPR, 0);
    breathe();
    same(kept << 4 | count(), 1u64)
}

fn higher_first() -> Verdict {
    forget();
    self_ipi(SECOND);
    self_ipi(VECTOR);
    breathe();
    breathe();
    // The lower one is served last.
    same(count() << 8 | last().vector, 2 << 8 | u64::from(SECOND))
}

fn tpr_is_cr8() -> Verdict {
    enable();
    write(TPR, 0x50);
    let cr8: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, cr8", out(reg) cr8) };
    write(TPR, 0);
    same(cr8, 5u64)
}

fn illegal_vector() -> Verdict {
    enable();
    write(ESR, 0);
    write(ESR, 0);
    write(ICR, 1 << 18 | 1 << 14 | 5);
    write(ESR, 0);
    let error = read(ESR);
    write(ESR, 0);
    // Sending one is reported; receiving it may be too.
    same(u64::from(error & 0x60 != 0), 1u64)
}

fn wait_for(events: u64) -> u64 {
    let until = cpu::tsc() + 50_000_000;
    while count() < events && cpu::tsc() < until {
        breathe();
    }
    count()
}

fn timer(mode: u32, ticks: u32) {
    enable();
    forget();
    write(DIVIDE, 0b1011);
    write(LVT_TIMER, mode << 17 | u32::from(VECTOR));
    write(INITIAL, ticks);
}

/// The timer interrupts once, after so many of its ticks.
pub fn start_timer(ticks: u32) {
    timer(0, ticks);
}

/// It does not.
pub fn stop_timer() {
    write(INITIAL, 0);
    write(LVT_TIMER, 1 << 16);
    breathe();
}

fn one_shot() -> Verdict {
    timer(0, 1000);
    let taken = wait_for(1);
    let left = read(CURRENT);
    write(LVT_TIMER, 1 << 16);
    same(taken << 32 | u64::from(left), 1u64 << 32)
}

fn periodic() -> Verdict {
    timer(1, 5000);
    let taken = wait_for(3);
    write(INITIAL, 0);
    write(LVT_TIMER, 1 << 16);
    breathe();
    same(u64::from(taken >= 3), 1u64)
}

fn tsc_deadline() -> Verdict {
    if !cpu::has(1, 0, 2, 24) {
        return Ok(());
    }
    enable();
    forget();
    write(LVT_TIMER, 2 << 17 | u32::from(VECTOR));
    let at = cpu::tsc() + 20_000;
    crate::same(wrmsr(0x6e0, at), NOTHING)?;
    let armed = rdmsr(0x6e0).unwrap_or(1);
    forget();
    let taken = wait_for(1);
    let early = cpu::tsc() < at;
    let left = rdmsr(0x6e0).unwrap_or(1);
    write(LVT_TIMER, 1 << 16);
    crate::same(u64::from(armed == at || armed == 0), 1)?;
    CLEARED.store(left, core::sync::atomic::Ordering::Relaxed);
    crate::same(taken << 8 | u64::from(early), 1 << 8)
}

fn stopped() -> Verdict {
    timer(0, 100_000_000);
    let counts = read(CURRENT) != 0;
    write(INITIAL, 0);
    let left = read(CURRENT);
    write(LVT_TIMER, 1 << 16);
    same(u64::from(counts) << 32 | u64::from(left), 1u64 << 32)
}

fn divide() -> Verdict {
    enable();
    write(DIVIDE, 0xffff_ffff);
    let kept = read(DIVIDE);
    write(DIVIDE, 0b1011);
    same(kept, 0b1011u32)
}

fn software_disable() -> Verdict {
    enable();
    write(LVT_TIMER, u32::from(VECTOR));
    write(SPURIOUS, 0x3f);
    let masked = read(LVT_TIMER) >> 16 & 1;
    enable();
    write(LVT_TIMER, 1 << 16);
    same(masked, 1u32)
}

/// Sets IA32_APIC_BASE to each of `through`, then to `last`, and goes back to xAPIC mode.
fn mode(through: &[u64], last: u64, expected: u64) -> Verdict {
    for &value in through {
        crate::same(wrmsr(APIC_BASE, value), NOTHING)?;
    }
    let raised = wrmsr(APIC_BASE, last);
    wrmsr(APIC_BASE, 0xfee0_0100);
    wrmsr(APIC_BASE, ENABLED);
    enable();
    // From disabled, the next mode is xAPIC: straight to x2APIC is refused.
    crate::same(raised, if expected == NOTHING { GP } else { expected })
}

fn in_x2(test: impl FnOnce() -> Verdict) -> Verdict {
    if !cpu::has(1, 0, 2, 21) {
        return Ok(());
    }
    crate::same(wrmsr(APIC_BASE, ENABLED | X2), NOTHING)?;
    let verdict = test();
    wrmsr(APIC_BASE, 0xfee0_0100);
    wrmsr(APIC_BASE, ENABLED);
    enable();
    verdict
}

fn x2_to_x() -> Verdict {
    in_x2(|| crate::same(wrmsr(APIC_BASE, ENABLED), GP))
}

fn x2_self() -> Verdict {
    in_x2(|| {
        wrmsr(0x80f, 0x13f);
        wrmsr(0x808, 0);
        crate::same(wrmsr(0x83f, VECTOR.into()), NOTHING)?;
        forget();
        breathe();
        same(count() << 8 | last().vector, 1 << 8 | u64::from(VECTOR))
    })
}

fn x2_reserved() -> Verdict {
    in_x2(|| {
        // Reserved: 0x800, 0x801, 0x804 to 0x807, 0x809 (arbitration), 0x80c, 0x80e (destination format), 0x831.
        for msr in [0x800, 0x801, 0x804, 0x805, 0x806, 0x807, 0x80c, 0x80e, 0x831, 0x83a, 0x8ff] {
            let read = rdmsr(msr).err().unwrap_or(NOTHING);
            if read != GP {
                return Err((u64::from(msr), read));
            }
        }
        Ok(())
    })
}

fn x2_rights() -> Verdict {
    in_x2(|| {
        // Identification, version, processor priority, logical destination, first of ISR, TMR, IRR, current count.
        for msr in [0x802, 0x803, 0x80a, 0x80d, 0x810, 0x818, 0x820, 0x839] {
            crate::same(u64::from(rdmsr(msr).is_ok()) << 32 | u64::from(msr), 1 << 32 | u64::from(msr))?;
            crate::same(wrmsr(msr, 0), GP)?;
        }
        // EOI and SELF IPI cannot be read.
        for msr in [0x80b, 0x83f] {
            crate::same(rdmsr(msr).err().unwrap_or(NOTHING), GP)?;
        }
        // EOI takes 0 only; a priority has eight bits.
        crate::same(wrmsr(0x80b, 1), GP)?;
        crate::same(wrmsr(0x808, 0x100), GP)
    })
}

fn x2_command() -> Verdict {
    in_x2(|| {
        wrmsr(0x80f, 0x13f);
        let id = rdmsr(0x802).unwrap_or(0);
        crate::same(wrmsr(0x830, id << 32 | 1 << 14 | u64::from(VECTOR)), NOTHING)?;
        forget();
        breathe();
        same(count(), 1u64)
    })
}

fn io_read(index: u32) -> u32 {
    write32(IO, index);
    read32(IO + 0x10)
}

fn io_write(index: u32, value: u32) {
    write32(IO, index);
    write32(IO + 0x10, value);
}

fn ioapic_version() -> Verdict {
    let version = io_read(1);
    same(u64::from(version >> 16 & 0xff), 23u64)?;
    io_write(0, 0x0f00_0000);
    same(io_read(0) >> 24 & 0xf, 0xfu32)
}

fn ioapic_entry() -> Verdict {
    // Masked, edge, physical; delivery status and remote IRR cannot be written.
    io_write(0x10 + 2 * 5, 1 << 16 | 1 << 14 | 1 << 12 | 0x40);
    let entry = io_read(0x10 + 2 * 5);
    io_write(0x10 + 2 * 5, 1 << 16);
    same(entry, 1u32 << 16 | 0x40)
}

/// The interval timer's counter 0 as a square wave of 1 kHz.
fn start_pit() {
    outb(0x43, 0x36);
    outb(0x40, 0xa9);
    outb(0x40, 0x04);
}

fn ioapic_edge() -> Verdict {
    enable();
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    start_pit();
    forget();
    let id = read(0x20) & 0xff00_0000;
    io_write(0x15, id);
    io_write(0x14, VECTOR.into());
    let taken = wait_for(2);
    io_write(0x14, 1 << 16);
    breathe();
    same(u64::from(taken >= 2), 1u64)
}

fn pic() -> Verdict {
    enable();
    write(0x350, 0x700);
    guest_rt::pic::init();
    start_pit();
    guest_rt::trap::set_handler(32, |_| {
        TICKS.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        guest_rt::pic::end_of_interrupt();
    });
    guest_rt::pic::unmask(0);
    let until = cpu::tsc() + 50_000_000;
    while TICKS.load(core::sync::atomic::Ordering::Relaxed) < 2 && cpu::tsc() < until {
        breathe();
    }
    outb(0x21, 0xff);
    breathe();
    same(u64::from(TICKS.load(core::sync::atomic::Ordering::Relaxed) >= 2), 1u64)
}

/// What IA32_TSC_DEADLINE held behind its interrupt.
static CLEARED: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
static TICKS: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);
