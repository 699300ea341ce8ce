//! The local APIC of the machine's processor (SDM vol. 3, "Advanced Programmable Interrupt Controller (APIC)").
//!
//! Owns its registers, in xAPIC or x2APIC mode, and its timer. IA32_APIC_BASE.EN is only ever set, never cleared:
//! setting it again is not reliable everywhere.

use core::fmt;
use core::sync::atomic::{Ordering, fence};
use lamina_arch::addr::Hpa;
use lamina_arch::msr::{IA32_APIC_BASE, IA32_TSC_DEADLINE, X2APIC_FIRST};
use lamina_arch::time::{Frequency, Tsc};
use spin::Once;
use x86_64::registers::model_specific::Msr;

use crate::events::{self, Event};
use crate::{control, interrupts, paging, percpu, timer};

/// Offsets of registers in the xAPIC's page. Unit: bytes. In x2APIC mode, 1/16 of it is the MSR's offset.
mod register {
    pub const ID: u16 = 0x20;
    pub const TASK_PRIORITY: u16 = 0x80;
    pub const END_OF_INTERRUPT: u16 = 0xb0;
    pub const SPURIOUS: u16 = 0xf0;
    pub const IN_SERVICE: u16 = 0x100;
    pub const ERROR_STATUS: u16 = 0x280;
    pub const INTERRUPT_COMMAND: u16 = 0x300;
    pub const LVT_TIMER: u16 = 0x320;
    pub const LVT_LINT0: u16 = 0x350;
    pub const LVT_LINT1: u16 = 0x360;
    pub const LVT_ERROR: u16 = 0x370;
    pub const INITIAL_COUNT: u16 = 0x380;
    pub const CURRENT_COUNT: u16 = 0x390;
    pub const DIVIDE: u16 = 0x3e0;
}

const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
/// An interrupt command: INIT, asserted, to all but this processor.
const INIT_OTHERS: u32 = 5 << 8 | 1 << 14 | 3 << 18;
const LVT_NMI: u32 = 4 << 8;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
/// Divide configuration: by 16.
const DIVIDE_BY_16: u32 = 3;

/// How registers are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Through a page of memory, at this virtual address.
    XApic(usize),
    /// Through MSRs.
    X2Apic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::XApic(_) => "xAPIC",
            Mode::X2Apic => "x2APIC",
        })
    }
}

/// What the timer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// It fires at a value of the TSC.
    TscDeadline,
    /// It counts down at this rate.
    OneShot(Frequency),
}

impl fmt::Display for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Timer::TscDeadline => f.write_str("TSC-deadline timer"),
            Timer::OneShot(rate) => write!(f, "one-shot timer at {} kHz", rate.hz() / 1000),
        }
    }
}

/// The same for all processors.
static MODE: Once<Mode> = Once::new();
/// The same for all processors.
static TIMER: Once<Timer> = Once::new();

fn mode() -> Mode {
    match MODE.get() {
        Some(mode) => *mode,
        None => panic!("the local APIC is used before it is set up"),
    }
}

fn read(register: u16) -> u32 {
    match mode() {
        Mode::XApic(base) => {
            // SAFETY: `init` mapped the register page there for good, and the offset is an aligned one in the page.
            unsafe { core::ptr::with_exposed_provenance::<u32>(base + usize::from(register)).read_volatile() }
        }
        Mode::X2Apic => {
            events::count(Event::Rdmsr);
            // The register is 32 bits wide; the upper half of the MSR reads as 0.
            // SAFETY: in x2APIC mode these MSRs exist and reading one only reads.
            unsafe { u32::try_from(x2apic(register).read()).unwrap_or(u32::MAX) }
        }
    }
}

fn write(register: u16, value: u32) {
    match mode() {
        Mode::XApic(base) => {
            // SAFETY: as in `read`; what the registers written in this module do is wanted where they are written, and
            // none of them touches memory.
            unsafe {
                core::ptr::with_exposed_provenance_mut::<u32>(base + usize::from(register)).write_volatile(value)
            };
        }
        Mode::X2Apic => {
            events::count(Event::Wrmsr);
            // SAFETY: as above.
            unsafe { x2apic(register).write(u64::from(value)) }
        }
    }
}

const fn x2apic(register: u16) -> Msr {
    Msr::new(X2APIC_FIRST + register as u32 / 16)
}

/// What IA32_APIC_BASE is to become, by one write after the other, where it is `value`: the local APIC on, in x2APIC mode
/// where that is on already or `wants_x2apic`. Both bits never change in one write, and x2APIC mode is never left: each is
/// #GP (SDM vol. 3, "x2APIC State Transitions").
fn base_writes(value: u64, wants_x2apic: bool) -> [Option<u64>; 2] {
    let on = value | BASE_ENABLE;
    let x2apic = on | if wants_x2apic { BASE_X2APIC } else { 0 };
    [(on != value).then_some(on), (x2apic != on).then_some(x2apic)]
}

/// Sets this processor's local APIC up, every local source masked but NMI: in x2APIC mode where firmware left it so, or
/// where the processor has it and firmware does not ask for it to be left off (`opt_out`). Has all other processors wait
/// for a start-up. Returns the mode. Once, after the page tables are ours.
pub fn init(opt_out: bool) -> Mode {
    let mut base = Msr::new(IA32_APIC_BASE);
    let has_x2apic = control::cpuid().get_feature_info().is_some_and(|f| f.has_x2apic());
    // SAFETY: every processor with a local APIC has this MSR.
    let mut value = unsafe { base.read() };
    for wanted in base_writes(value, has_x2apic && !opt_out).into_iter().flatten() {
        // SAFETY: turns the APIC on where it stands, or into x2APIC mode, which the processor has. Interrupts are off.
        unsafe { base.write(wanted) };
        value = wanted;
    }
    MODE.call_once(|| {
        if value & BASE_X2APIC != 0 {
            Mode::X2Apic
        } else {
            Mode::XApic(paging::map_registers(Hpa(value & BASE_ADDRESS)).expose_provenance())
        }
    });
    // Firmware may have left them to halt in memory that is anybody's now: from here on they wait for a start-up (SDM vol. 3,
    // "MP Initialization Protocol Algorithm for MP Systems").
    write(register::INTERRUPT_COMMAND, INIT_OTHERS);
    write(register::TASK_PRIORITY, 0);
    write(register::LVT_TIMER, LVT_MASKED);
    write(register::LVT_LINT0, LVT_MASKED);
    write(register::LVT_LINT1, LVT_NMI);
    write(register::LVT_ERROR, u32::from(interrupts::APIC_ERROR));
    write(register::SPURIOUS, SOFTWARE_ENABLE | u32::from(interrupts::SPURIOUS));
    clear_error();
    end_of_interrupt();
    mode()
}

/// ID of this processor's local APIC.
pub fn id() -> u32 {
    match mode() {
        Mode::XApic(_) => read(register::ID) >> 24,
        Mode::X2Apic => read(register::ID),
    }
}

/// Ends the interrupt with the highest priority in service.
pub fn end_of_interrupt() {
    write(register::END_OF_INTERRUPT, 0);
}

/// Whether `vector` is in service: delivered, and not ended yet.
pub fn in_service(vector: u8) -> bool {
    let word = read(register::IN_SERVICE + u16::from(vector / 32) * 16);
    word & 1 << (vector % 32) != 0
}

/// Forgets the errors seen so far; the write is what the processor asks for before a read.
pub fn clear_error() {
    write(register::ERROR_STATUS, 0);
}

/// Sets this processor's timer up, stopped: in TSC-deadline mode where the processor has it, else measured against the
/// TSC, which counts `tsc` ticks per second. Returns what it counts.
pub fn init_timer(tsc: Frequency) -> Timer {
    let has_deadline = control::cpuid().get_feature_info().is_some_and(|f| f.has_tsc_deadline());
    let timer = *TIMER.call_once(|| if has_deadline { Timer::TscDeadline } else { Timer::OneShot(measure(tsc)) });
    let mode = if timer == Timer::TscDeadline { LVT_TSC_DEADLINE } else { 0 };
    write(register::DIVIDE, DIVIDE_BY_16);
    write(register::LVT_TIMER, mode | u32::from(interrupts::TIMER));
    // In xAPIC mode the deadline's MSR must not overtake the mode's write to memory (SDM vol. 3, "TSC-Deadline Mode").
    fence(Ordering::SeqCst);
    stop();
    timer
}

/// The timer's rate, measured over 10 ms of the TSC.
fn measure(tsc: Frequency) -> Frequency {
    write(register::DIVIDE, DIVIDE_BY_16);
    write(register::INITIAL_COUNT, u32::MAX);
    let start = timer::now();
    while timer::now().since(start) < tsc.ticks_in_ns(10_000_000) {
        core::hint::spin_loop();
    }
    let counted = u64::from(u32::MAX - read(register::CURRENT_COUNT));
    let elapsed = timer::now().since(start);
    write(register::INITIAL_COUNT, 0);
    Frequency::from_hz(Frequency::from_hz(elapsed).convert(counted, tsc))
}

fn timer() -> Timer {
    match TIMER.get() {
        Some(timer) => *timer,
        None => panic!("the local APIC's timer is used before it is set up"),
    }
}

/// Lets this processor's timer interrupt at `deadline` (the machine's TSC), at once where that is past, and not before.
/// A one-shot timer that cannot reach that far interrupts earlier. Costs no access where it is armed for that already.
pub fn arm(deadline: Tsc) {
    // 0 stands for a timer that is not armed.
    let deadline = Tsc(deadline.0.max(1));
    let armed = &percpu::current().timer_deadline;
    if armed.load(Ordering::Relaxed) == deadline.0 {
        return;
    }
    armed.store(deadline.0, Ordering::Relaxed);
    match timer() {
        Timer::TscDeadline => {
            events::count(Event::Wrmsr);
            // SAFETY: CPUID says that the MSR is there; the interrupt that follows is handled.
            unsafe { Msr::new(IA32_TSC_DEADLINE).write(deadline.0) };
        }
        Timer::OneShot(rate) => {
            let ticks = timer::frequency().convert_up(deadline.since(timer::now()), rate);
            write(register::INITIAL_COUNT, u32::try_from(ticks.max(1)).unwrap_or(u32::MAX));
        }
    }
}

/// Stops this processor's timer. Costs no access where it has interrupted, and so stopped by itself.
pub fn disarm() {
    let armed = &percpu::current().timer_deadline;
    if armed.load(Ordering::Relaxed) != 0 {
        armed.store(0, Ordering::Relaxed);
        stop();
    }
}

fn stop() {
    match timer() {
        Timer::TscDeadline => {
            events::count(Event::Wrmsr);
            // SAFETY: as in `arm`.
            unsafe { Msr::new(IA32_TSC_DEADLINE).write(0) }
        }
        Timer::OneShot(_) => write(register::INITIAL_COUNT, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the bit of the bootstrap processor.
    const XAPIC: u64 = 0xfee0_0100 | BASE_ENABLE;
    const X2APIC: u64 = XAPIC | BASE_X2APIC;
    const OFF: u64 = XAPIC & !BASE_ENABLE;

    #[test]
    fn the_local_apic_comes_on_before_x2apic_mode() {
        assert_eq!(base_writes(OFF, true), [Some(XAPIC), Some(X2APIC)]);
        assert_eq!(base_writes(OFF, false), [Some(XAPIC), None]);
        assert_eq!(base_writes(XAPIC, true), [None, Some(X2APIC)]);
    }

    #[test]
    fn what_firmware_left_is_kept() {
        assert_eq!(base_writes(X2APIC, true), [None, None]);
        assert_eq!(base_writes(X2APIC, false), [None, None]);
        assert_eq!(base_writes(XAPIC, false), [None, None]);
    }
}
