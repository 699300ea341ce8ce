//! The watchdog: notices that this processor is stuck in the hypervisor, with interrupts off as always.
//!
//! Owns channel 0 of the 8254, whose output comes through the I/O APIC as a non-maskable interrupt 18 times a second, and
//! the count of those that found no progress. Progress is a number that changes with each exit of a guest ([`exited`],
//! one store) and with each pass of whatever may take long ([`progress`]). Counting interrupts and not time, it never
//! suspects a processor that did not run at all, as under a host that is busy. What follows is the report's
//! ([`report::stuck`]): a VM's end, or the machine's.
//!
//! Source: Intel 8254 data sheet, "Mode 2: Rate Generator"; 82093AA data sheet, "Delivery Mode".

use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lamina_arch::time::Tsc;
use x86_64::instructions::port::Port;

use crate::idt::TrapFrame;
use crate::ioapic::{self, Delivery, IoApics, Unroutable};
use crate::madt::Madt;
use crate::percpu::{self, PerCpu, count};
use crate::{nmi_status, platform, report, timer};

/// The ISA interrupt of the 8254's channel 0.
const IRQ: u8 = 0;
const CHANNEL_0: u16 = 0x40;
const COMMAND: u16 = 0x43;
/// Channel 0, low byte then high byte, mode 2 (rate generator), binary.
const RATE_GENERATOR: u8 = 0x34;
/// So many interrupts in a row without progress, and the processor counts as stuck. Nothing takes that long: what is
/// proportional to the machine's memory, or to what a guest asks for, tells of its progress in between.
pub const PATIENCE: u32 = 72;
/// The same in time: the channel counts down from 65536 at 1.193 MHz. Unit: seconds.
pub const PATIENCE_SECONDS: u32 = 4;

/// When it was started, 0 before. Unit: ticks of the TSC. There is one watchdog.
static STARTED: AtomicU64 = AtomicU64::new(0);
/// [`check`] has looked.
static CHECKED: AtomicBool = AtomicBool::new(false);
/// How long the interrupts are counted before it is said whether they come. Unit: seconds.
const TRIAL: u64 = 2;
/// How many there are in that time, about.
const EXPECTED: u64 = TRIAL * 18;

/// Starts it for the processor whose local APIC is `lapic_id`.
///
/// # Errors
/// The 8254's interrupt cannot be had: then there is no watchdog.
pub fn start(apics: &mut IoApics, madt: &Madt, lapic_id: u32) -> Result<(), Unroutable> {
    // SAFETY: the 8254's ports reach no memory, and only this module uses channel 0.
    unsafe {
        Port::<u8>::new(COMMAND).write(RATE_GENERATOR);
        Port::<u8>::new(CHANNEL_0).write(0);
        Port::<u8>::new(CHANNEL_0).write(0);
    }
    ioapic::route_isa(apics, madt, IRQ, Delivery::Nmi, lapic_id)?;
    STARTED.store(timer::now().0, Ordering::Relaxed);
    Ok(())
}

/// Looks once, some time after the start, whether the interrupts come as often as they should, and says so if not: an
/// emulated 8254 may wait for an end of interrupt, and an HPET may have taken its place.
pub fn check() {
    let started = STARTED.load(Ordering::Relaxed);
    if CHECKED.load(Ordering::Relaxed) || started == 0 {
        return;
    }
    let elapsed = timer::now().0.wrapping_sub(started);
    let trial = timer::frequency().ticks_in_ns(TRIAL * 1_000_000_000);
    if elapsed < trial {
        return;
    }
    CHECKED.store(true, Ordering::Relaxed);
    let seen = percpu::current().nmis.load(Ordering::Relaxed);
    // In so many times the time of the trial.
    let expected = EXPECTED.saturating_mul(elapsed / trial.max(1));
    if seen < expected / 4 || seen > expected.saturating_mul(8) {
        log::warn!(
            "the watchdog is not to be relied on: {seen} of its interrupts came where about {expected} should have"
        );
    }
}

/// A guest has exited at `at`. One store.
#[inline(always)]
pub fn exited(at: Tsc) {
    // SAFETY: a store to this processor's own structure through the base that `percpu::init` set; the field is an atomic,
    // so that it may change under a shared reference.
    unsafe {
        asm!(
            "mov gs:[{progress}], {at}",
            progress = const offset_of!(PerCpu, progress),
            at = in(reg) at.0,
            options(nostack, preserves_flags),
        );
    }
}

/// Something that may take long has come a step further.
#[inline]
pub fn progress() {
    let progress = &percpu::current().progress;
    // Only this processor writes it.
    progress.store(progress.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// The same where this processor may not have its structure yet: in reports and at the machine's end. Reads an MSR.
pub fn progress_if_up() {
    if percpu::try_current().is_some() {
        progress();
    }
}

/// A non-maskable interrupt of the machine's, in the middle of anything: `frame` is where it goes on. Takes no lock, unless
/// the processor is stuck. One that tells of the machine's own failure is no tick, and ends it.
pub fn nmi(frame: &mut TrapFrame) {
    // HLT behind STI: an interrupt that the shadow of STI kept waiting comes before HLT now, and would not end it.
    if frame.rip == platform::halt_address() {
        frame.rip += platform::HALT_LENGTH;
    }
    if let Some(failure) = nmi_status::take_failure() {
        report::machine_failure(frame, failure);
    }
    let Some(cpu) = percpu::try_current() else { return };
    count(&cpu.nmis);
    let now = cpu.progress.load(Ordering::Relaxed);
    if cpu.progress_seen.swap(now, Ordering::Relaxed) != now {
        cpu.stalls.store(0, Ordering::Relaxed);
        return;
    }
    let stalls = cpu.stalls.load(Ordering::Relaxed) + 1;
    if stalls < PATIENCE {
        cpu.stalls.store(stalls, Ordering::Relaxed);
        return;
    }
    cpu.stalls.store(0, Ordering::Relaxed);
    report::stuck(frame);
}
