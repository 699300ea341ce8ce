//! The way back from a bug of ours that came up in work for one virtual machine.
//!
//! Owns the checkpoint that the run loop goes on from, and the rule when that may be: a VM is being worked for, no report
//! is being made, and nobody holds a lock. Never decides what becomes of that VM: `lamina_vmm::machine` does.
//! `docs/adr/0007-containing-our-own-bugs.md` has why it is sound to leave a stack behind.

use alloc::string::String;
use core::arch::{asm, naked_asm};
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use lamina_vmm::host::Bug;
use spin::Mutex;

use crate::percpu::{self, PerCpu};
use crate::{logger, memory, paging, screen, serial};

/// The bug that was contained last, until the run loop takes it. Shared by all processors.
static BUG: Mutex<Option<Bug>> = Mutex::new(None);

/// From here on work is done for the VM `number`, counted from 1, or for none (0). One store.
#[inline(always)]
pub fn work_for(number: u64) {
    // SAFETY: a store to this processor's own structure through the base that `percpu::init` set; the field is an atomic,
    // so that it may change under a shared reference. It counts as one to all memory that is known outside: the caller sees
    // to it that what has to be is.
    unsafe {
        asm!(
            "mov gs:[{work}], {number}",
            work = const offset_of!(PerCpu, work),
            number = in(reg) number,
            options(nostack, preserves_flags),
        );
    }
}

/// Does `work`; true where it came to its end, false where [`leave`] cut it short.
pub fn survive(work: &mut dyn FnMut()) -> bool {
    let mut work = work;
    let checkpoint = &percpu::current().checkpoint;
    // SAFETY: `call` gets the pointer that is meant for it, to a value that outlives the call. What happens if the call is
    // cut short, the ADR has: nothing of the abandoned stack is used again, and what was borrowed on it is looked at
    // before it is.
    let left = unsafe { call_with_checkpoint(checkpoint.as_ptr(), call, (&raw mut work).cast()) };
    checkpoint.store(0, Ordering::Relaxed);
    left == 0
}

/// Calls the work that is at `work`.
unsafe extern "sysv64" fn call(work: *mut ()) {
    // SAFETY: `survive` passes a pointer to this type, which nobody else uses meanwhile.
    let work = unsafe { &mut *work.cast::<&mut dyn FnMut()>() };
    work();
}

/// Calls `function` with `argument`, and returns 0 when it returns; 1 where [`leave`] was called first. RDI: where the
/// stack pointer is kept for that.
///
/// # Safety
/// `checkpoint` is this processor's, and `function` may be called with `argument`.
#[unsafe(naked)]
unsafe extern "sysv64" fn call_with_checkpoint(
    checkpoint: *mut u64,
    function: unsafe extern "sysv64" fn(*mut ()),
    argument: *mut (),
) -> u64 {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        // For the alignment of the call.
        "sub rsp, 8",
        "mov [rdi], rsp",
        "mov rdi, rdx",
        "call rsi",
        "xor eax, eax",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Goes on behind the call whose stack pointer was kept: it returns 1. RDI: that stack pointer.
///
/// # Safety
/// The call has not returned, and nothing on the stack below is used any more.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn leave(checkpoint: u64) -> ! {
    naked_asm!(
        "mov rsp, rdi",
        "mov eax, 1",
        "cld",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// A bug that can be contained, and whose report is being made.
#[derive(Debug)]
pub struct Containable {
    cpu: &'static PerCpu,
    vm: usize,
}

/// Looks whether what is going on on this processor can be abandoned; from then on it is being reported, and what goes
/// wrong in that is not contained.
///
/// A lock that is held now is held by what would be abandoned, as no other processor runs: what it protects may be in the
/// middle of a change. The heap's, the serial port's, the screen's, the log's and that of the
/// hypervisor's own page tables are all there are.
pub fn begin() -> Option<Containable> {
    let cpu = percpu::try_current()?;
    let vm = usize::try_from(cpu.work.load(Ordering::Relaxed).checked_sub(1)?).ok()?;
    let locked = serial::is_locked()
        || paging::is_locked()
        || logger::is_locked()
        || screen::is_locked()
        || memory::heap_is_locked()
        || BUG.is_locked();
    let fit = cpu.checkpoint.load(Ordering::Relaxed) != 0 && !locked && !cpu.reporting.swap(true, Ordering::Relaxed);
    fit.then_some(Containable { cpu, vm })
}

impl Containable {
    /// The number of the VM that was worked for.
    pub const fn vm(&self) -> usize {
        self.vm
    }

    /// The report is made: remembers `what` for the run loop, and where it goes on ([`leave`]).
    pub fn end(self, what: String) -> u64 {
        *BUG.lock() = Some(Bug { vm: self.vm, what });
        self.cpu.work.store(0, Ordering::Relaxed);
        self.cpu.reporting.store(false, Ordering::Relaxed);
        self.cpu.checkpoint.load(Ordering::Relaxed)
    }
}

/// Takes the bug that was contained last.
pub fn take_bug() -> Option<Bug> {
    BUG.lock().take()
}
