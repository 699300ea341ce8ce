//! The local APIC's timer (SDM vol. 3, "Local APIC", "APIC Timer").

use core::arch::asm;

use crate::cpu;
use crate::trap::{self, Frame};

const IA32_APIC_BASE: u32 = 0x1b;
const BASE_ENABLED: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
const X2APIC_FIRST: u32 = 0x800;

/// Registers by their offset. Unit: bytes.
const EOI: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const LVT_TIMER: u32 = 0x320;
const INITIAL_COUNT: u32 = 0x380;
const CURRENT_COUNT: u32 = 0x390;
const DIVIDE: u32 = 0x3e0;

/// Software enable, in the spurious-interrupt vector register.
const SOFTWARE_ENABLE: u32 = 1 << 8;
const DIVIDE_BY_1: u32 = 0b1011;
/// In an entry of the local vector table: no interrupt.
const MASKED: u32 = 1 << 16;

/// Vectors within `trap`'s table, behind those of the 8259 pair.
const TIMER_VECTOR: u8 = 0x30;
const SPURIOUS_VECTOR: u8 = 0x3f;

/// How the registers are reached.
#[derive(Clone, Copy, Debug)]
enum Access {
    /// Through memory at this address.
    Memory(u64),
    /// Through MSRs.
    Msr,
}

/// The local APIC of the one processor, enabled.
#[derive(Debug)]
pub struct LocalApic {
    access: Access,
}

impl LocalApic {
    /// Enables the local APIC, in x2APIC mode where the processor has it, with its timer stopped.
    pub fn enable() -> LocalApic {
        // SAFETY: every processor that reports a local APIC has this MSR, and Lamina's all do.
        let base = unsafe { rdmsr(IA32_APIC_BASE) };
        let access = if cpu::has(1, 0, 2, 21) {
            // SAFETY: the processor reports x2APIC mode.
            unsafe { wrmsr(IA32_APIC_BASE, base | BASE_ENABLED | BASE_X2APIC) };
            Access::Msr
        } else {
            Access::Memory(base & 0xf_ffff_f000)
        };
        trap::set_handler(TIMER_VECTOR, on_timer);
        trap::set_handler(SPURIOUS_VECTOR, |_| {});
        let apic = LocalApic { access };
        apic.write(SPURIOUS, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
        apic.write(DIVIDE, DIVIDE_BY_1);
        apic.write(LVT_TIMER, u32::from(TIMER_VECTOR));
        apic
    }

    /// Halts the processor until the timer has counted `ticks`, or another interrupt came.
    pub fn halt_for(&self, ticks: u32) {
        self.write(INITIAL_COUNT, ticks.max(1));
        cpu::wait_for_interrupt();
        // The timer's handler has no way to the registers: acknowledged here, with interrupts out again.
        self.write(INITIAL_COUNT, 0);
        self.write(EOI, 0);
    }

    /// Has the timer count down from `ticks` without an interrupt at its end.
    pub fn count_from(&self, ticks: u32) {
        self.write(LVT_TIMER, MASKED | u32::from(TIMER_VECTOR));
        self.write(INITIAL_COUNT, ticks);
    }

    /// What is left to count.
    pub fn remaining(&self) -> u32 {
        match self.access {
            // SAFETY: the registers' page, mapped one to one; this one is read without effect.
            Access::Memory(base) => unsafe { ((base + u64::from(CURRENT_COUNT)) as *const u32).read_volatile() },
            // SAFETY: the mode is on.
            Access::Msr => (unsafe { rdmsr(X2APIC_FIRST + (CURRENT_COUNT >> 4)) } & 0xffff_ffff) as u32,
        }
    }

    fn write(&self, register: u32, value: u32) {
        match self.access {
            // SAFETY: the registers' page, mapped one to one as all below 4 GiB is; what is written starts a timer
            // whose vector has a handler, or ends an interrupt.
            Access::Memory(base) => unsafe {
                ((base + u64::from(register)) as *mut u32).write_volatile(value);
            },
            // SAFETY: as above, through the MSR of the register; the mode is on.
            Access::Msr => unsafe { wrmsr(X2APIC_FIRST + (register >> 4), value.into()) },
        }
    }
}

/// Has woken the processor, which is all it is for.
fn on_timer(_: &mut Frame) {}

/// # Safety
/// The MSR must exist.
unsafe fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's duty.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// # Safety
/// The MSR must exist, and the value must keep the program's memory, mode and vectors as they are.
unsafe fn wrmsr(msr: u32, value: u64) {
    let (low, high) = ((value & 0xffff_ffff) as u32, (value >> 32) as u32);
    // SAFETY: the caller's duty.
    unsafe { asm!("wrmsr", in("ecx") msr, in("eax") low, in("edx") high, options(nostack, preserves_flags)) };
}
