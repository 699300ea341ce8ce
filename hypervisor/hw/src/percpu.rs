//! What each processor has of its own, reached through the GS base.
//!
//! Owns the structure and its registration. Nothing that belongs to one processor lives in a plain static: more
//! processors will come.

use alloc::boxed::Box;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

/// State of one processor. Only that processor changes it; others may read the counters.
#[repr(C)]
#[derive(Debug)]
pub struct PerCpu {
    /// Its own address, so that one load through GS finds it. Must stay first.
    this: u64,
    /// Number of the processor, from 0, the one that booted.
    pub id: u32,
    /// Its local APIC's ID.
    pub lapic_id: u32,
    /// The guest that it last entered, by its number from 1; 0 for none.
    pub current_vm: AtomicU16,
    /// Address of its current VMCS, 0 for none.
    pub current_vmcs: AtomicU64,
    /// The deadline that its timer is armed for (the machine's TSC), 0 for none.
    pub timer_deadline: AtomicU64,
    /// Interrupts of its timer.
    pub timer_interrupts: AtomicU64,
    /// Interrupts of the serial port.
    pub serial_interrupts: AtomicU64,
    /// Interrupts that nothing asked for.
    pub unexpected_interrupts: AtomicU64,
    /// Non-maskable interrupts.
    pub nmis: AtomicU64,
    /// The VM that is worked for, from 1; 0 for none: what a bug can be contained in.
    pub work: AtomicU64,
    /// The stack pointer that the run loop goes on with where work is abandoned, 0 for none.
    pub checkpoint: AtomicU64,
    /// Changes whenever something has come further; see `watchdog`.
    pub progress: AtomicU64,
    /// What it was at the last non-maskable interrupt.
    pub progress_seen: AtomicU64,
    /// How many of those in a row have found no progress.
    pub stalls: AtomicU32,
    /// Host-physical address of the VMCB that is loaded, 0 for none.
    pub current_vmcb: AtomicU64,
    /// A bug is being reported that is to be contained.
    pub reporting: AtomicBool,
    /// What is in the registers that move with a vCPU while none is loaded.
    pub left: Left,
}

/// How many MSRs move with a vCPU at most.
pub const SWITCHED_MSRS: usize = 6;

/// The registers that move with a vCPU, as the last one left them.
#[derive(Debug, Default)]
pub struct Left {
    /// Whether one has been here.
    pub known: AtomicBool,
    /// The MSRs, in the order in which they move.
    pub msrs: [AtomicU64; SWITCHED_MSRS],
    /// DR6.
    pub dr6: AtomicU64,
}

const _: () = assert!(core::mem::offset_of!(PerCpu, this) == 0);

/// Adds one to a counter of this processor's.
pub fn count(counter: &AtomicU64) {
    // Only this processor writes it, so a plain load and store would do; relaxed costs the same.
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Makes the structure of this processor and points GS at it. Once for each processor, after its GDT is loaded.
pub fn init(id: u32, lapic_id: u32) -> &'static PerCpu {
    let state = Box::leak(Box::new(PerCpu {
        this: 0,
        id,
        lapic_id,
        current_vm: AtomicU16::new(0),
        current_vmcs: AtomicU64::new(0),
        timer_deadline: AtomicU64::new(0),
        timer_interrupts: AtomicU64::new(0),
        serial_interrupts: AtomicU64::new(0),
        unexpected_interrupts: AtomicU64::new(0),
        nmis: AtomicU64::new(0),
        work: AtomicU64::new(0),
        checkpoint: AtomicU64::new(0),
        progress: AtomicU64::new(0),
        progress_seen: AtomicU64::new(0),
        stalls: AtomicU32::new(0),
        current_vmcb: AtomicU64::new(0),
        reporting: AtomicBool::new(false),
        left: Left::default(),
    }));
    let address = core::ptr::from_mut(state).expose_provenance() as u64;
    state.this = address;
    GsBase::write(VirtAddr::new(address));
    state
}

/// This processor's structure.
///
/// To be called after [`init`]: the GS base then holds it for good (a guest's exit restores it before any Rust code).
pub fn current() -> &'static PerCpu {
    let address: usize;
    // SAFETY: a load of the first field, which is never written again, through the base that `init` set.
    unsafe { asm!("mov {}, gs:[0]", out(reg) address, options(nostack, preserves_flags, readonly)) };
    // SAFETY: `init` stored there the address of a leaked structure, which is only reached by shared reference since.
    unsafe { &*core::ptr::with_exposed_provenance(address) }
}

/// This processor's structure, or `None` before [`init`]: for the report of a bug.
pub fn try_current() -> Option<&'static PerCpu> {
    (GsBase::read().as_u64() != 0).then(current)
}
