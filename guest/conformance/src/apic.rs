//! The local APIC in its first mode, its timer, and the pair of 8259s through it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_rt::{cpu, trap};

use crate::machine::{
    self, NOTHING, SECOND, VECTOR, breathe, count, forget, last, outb, rdmsr, read32, write32, wrmsr,
};
use crate::{Test, Verdict, ioapic};

const LOCAL: u64 = 0xfee0_0000;
const APIC_BASE: u32 = 0x1b;
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
    ("apic timer tsc deadline is cleared", || crate::same(CLEARED.load(Ordering::Relaxed), 0)),
    ("apic timer stopped", stopped),
    ("apic divide register", divide),
    ("apic lvt masked after software disable", software_disable),
    ("apic timer mode changed while it counts", timer_modes),
    ("apic timer masked counts on", timer_masked),
    ("apic timer started anew", timer_anew),
    ("apic timer deadline in the past", deadline_past),
    ("apic timer deadline taken back", deadline_back),
    ("apic timer deadline in another mode", deadline_elsewhere),
    ("apic in service and pending", in_service),
    ("apic physical broadcast", || sent(0xff, 0, 1)),
    ("apic shorthand for all", || sent(0, 2 << 18, 1)),
    ("apic shorthand for the others", || sent(0, 3 << 18, 0)),
    ("apic to an identifier that nobody has", || sent(0x7e, 0, 0)),
    ("apic logical destination", || logical(0x0200_0000, 0xffff_ffff, 2, 1)),
    ("apic logical destination of others", || logical(0x0200_0000, 0xffff_ffff, 4, 0)),
    ("apic logical destination in a cluster", || logical(0x1200_0000, 0x0fff_ffff, 0x16, 1)),
    ("apic init and start-up of others", others),
    ("apic registers that are not there", || error_of(|| drop_read(0x40))),
    ("apic version cannot be written", version_kept),
    ("pic through lint0", pic),
];

/// Reads a register.
pub fn read(register: u64) -> u32 {
    read32(LOCAL + register)
}

/// Writes a register.
pub fn write(register: u64, value: u32) {
    write32(LOCAL + register, value);
}

/// Switches the local APIC on, in xAPIC mode, with nothing pending.
pub fn enable() {
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

/// Lets interrupts in until so many have come, or for half a second: how many there were.
pub fn wait_for(events: u64) -> u64 {
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
    CLEARED.store(left, Ordering::Relaxed);
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

fn pic() -> Verdict {
    enable();
    write(0x350, 0x700);
    guest_rt::pic::init();
    ioapic::start_pit();
    trap::set_handler(32, |_| {
        TICKS.fetch_add(1, Ordering::Relaxed);
        guest_rt::pic::end_of_interrupt();
    });
    guest_rt::pic::unmask(0);
    let until = cpu::tsc() + 50_000_000;
    while TICKS.load(Ordering::Relaxed) < 2 && cpu::tsc() < until {
        breathe();
    }
    outb(0x21, 0xff);
    breathe();
    same(u64::from(TICKS.load(Ordering::Relaxed) >= 2), 1u64)
}

fn timer_modes() -> Verdict {
    timer(0, 100_000);
    while read(CURRENT) > 50_000 {}
    // From one-shot to periodic: the count goes on, and then starts again.
    write(LVT_TIMER, 1 << 17 | 1 << 16);
    let kept = read(CURRENT) < 50_001;
    while read(CURRENT) < 50_001 {}
    let again = read(CURRENT) > 50_000;
    while read(CURRENT) > 50_000 {}
    write(LVT_TIMER, 1 << 16);
    let still = read(CURRENT) < 50_001;
    let until = cpu::tsc() + 50_000_000;
    while read(CURRENT) != 0 && cpu::tsc() < until {}
    let ended = read(CURRENT) == 0;
    write(LVT_TIMER, 1 << 17 | 1 << 16);
    let stays = read(CURRENT) == 0;
    let initial = read(INITIAL);
    stop_timer();
    let all = [kept, again, still, ended, stays].iter().fold(0u64, |sum, &good| sum << 1 | u64::from(good));
    same(all << 32 | u64::from(initial), 0b11111 << 32 | 100_000u64)
}

fn timer_masked() -> Verdict {
    // It is masked before its end, whatever an access to the timer costs.
    timer(0, 1_000_000);
    write(LVT_TIMER, 1 << 16 | u32::from(VECTOR));
    let until = cpu::tsc() + 50_000_000;
    while read(CURRENT) != 0 && cpu::tsc() < until {}
    breathe();
    let left = read(CURRENT);
    write(LVT_TIMER, VECTOR.into());
    breathe();
    stop_timer();
    same(u64::from(left) << 32 | count(), 0u64)
}

fn timer_anew() -> Verdict {
    timer(0, 50_000_000);
    let first = read(CURRENT);
    write(INITIAL, 1000);
    let taken = wait_for(1);
    stop_timer();
    same(u64::from(first > 1_000_000) << 8 | taken, 1 << 8 | 1u64)
}

/// The timer in the mode where it waits for a time, if there is that mode.
fn deadline_mode() -> bool {
    enable();
    forget();
    write(LVT_TIMER, 2 << 17 | u32::from(VECTOR));
    cpu::has(1, 0, 2, 24)
}

fn deadline_past() -> Verdict {
    if !deadline_mode() {
        return Ok(());
    }
    // SAFETY: interrupts have handlers. The NOP is the one instruction that the interrupt may take.
    unsafe {
        core::arch::asm!(
            "sti", "mov ecx, 0x10", "rdmsr", "mov ecx, 0x6e0", "wrmsr", "nop", "cli",
            out("rax") _, out("rcx") _, out("rdx") _,
        );
    }
    let taken = count();
    write(LVT_TIMER, 1 << 16);
    same(taken, 1u64)
}

fn deadline_back() -> Verdict {
    if !deadline_mode() {
        return Ok(());
    }
    wrmsr(0x6e0, cpu::tsc() + 1_000_000);
    wrmsr(0x6e0, 0);
    let left = rdmsr(0x6e0).unwrap_or(1);
    let until = cpu::tsc() + 2_000_000;
    while cpu::tsc() < until {
        breathe();
    }
    write(LVT_TIMER, 1 << 16);
    same(left << 8 | count(), 0u64)
}

fn deadline_elsewhere() -> Verdict {
    if !deadline_mode() {
        return Ok(());
    }
    wrmsr(0x6e0, cpu::tsc() + 100_000_000);
    // Another mode disarms it, and ignores what is written.
    write(LVT_TIMER, VECTOR.into());
    let disarmed = rdmsr(0x6e0).unwrap_or(1);
    wrmsr(0x6e0, cpu::tsc() + 1000);
    let ignored = rdmsr(0x6e0).unwrap_or(1);
    write(LVT_TIMER, 1 << 16);
    same(disarmed | ignored, 0u64)
}

fn in_service() -> Verdict {
    const ISR: u64 = 0x100;
    const PPR: u64 = 0xa0;
    static SEEN: AtomicU64 = AtomicU64::new(0);
    enable();
    forget();
    self_ipi(VECTOR);
    trap::set_handler(VECTOR, |_| {
        let bit = u32::from(VECTOR - 32);
        let serving = read(ISR + 0x10) >> bit & 1;
        let pending = read(IRR + 0x10) >> bit & 1;
        self_ipi(VECTOR);
        self_ipi(VECTOR);
        let again = read(IRR + 0x10) >> bit & 1;
        let priority = read(PPR);
        write(EOI, 0);
        let after = read(ISR + 0x10) >> bit & 1;
        let seen = u64::from(serving << 3 | pending << 2 | again << 1 | after) << 8 | u64::from(priority);
        SEEN.store(seen, Ordering::Relaxed);
        machine::install();
    });
    breathe();
    breathe();
    same(SEEN.load(Ordering::Relaxed) << 8 | count(), 0b1010 << 16 | 0x30 << 8 | 1u64)
}

/// Sends a fixed interrupt to `destination` with more bits of the command: how often it comes.
fn sent(destination: u32, command: u32, expected: u64) -> Verdict {
    enable();
    forget();
    write(ICR + 0x10, destination << 24);
    write(ICR, command | 1 << 14 | u32::from(VECTOR));
    let busy = read(ICR) >> 12 & 1;
    breathe();
    breathe();
    same(u64::from(busy) << 8 | count(), expected)
}

fn logical(identifier: u32, format: u32, destination: u32, expected: u64) -> Verdict {
    const LDR: u64 = 0xd0;
    const DFR: u64 = 0xe0;
    enable();
    write(DFR, format);
    write(LDR, identifier);
    let found = sent(destination, 1 << 11, expected);
    write(DFR, 0xffff_ffff);
    found
}

/// Processors that there are none of are reset and started: nothing comes of it, and nothing waits for them.
fn others() -> Verdict {
    enable();
    forget();
    write(ICR, 3 << 18 | 1 << 14 | 5 << 8);
    let first = read(ICR) >> 12 & 1;
    write(ICR, 3 << 18 | 6 << 8);
    let second = read(ICR) >> 12 & 1;
    breathe();
    same(u64::from(first | second) << 8 | count(), 0u64)
}

fn drop_read(register: u64) {
    let _ = read(register);
}

/// An access to a register that does not exist is an error.
fn error_of(act: impl Fn()) -> Verdict {
    enable();
    write(ESR, 0);
    write(ESR, 0);
    act();
    write(ESR, 0);
    let error = read(ESR);
    write(ESR, 0);
    same(error, 1u32 << 7)
}

fn version_kept() -> Verdict {
    let before = read(0x30);
    write(0x30, !before);
    same(read(0x30), before)
}

/// What IA32_TSC_DEADLINE held behind its interrupt.
static CLEARED: AtomicU64 = AtomicU64::new(0);
static TICKS: AtomicU32 = AtomicU32::new(0);
