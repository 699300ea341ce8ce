//! The machine as the run loop sees it: physical memory, time, waiting, the console's serial port.
//!
//! Implemented by `hw` and, in tests, by a fake machine. Owns nothing itself.

use alloc::string::String;
use lamina_arch::addr::Hpa;
use lamina_arch::time::{Frequency, Tsc};

use crate::frames::FrameStock;
use crate::ownership::Announcement;
use crate::vcpu::Vcpu;

/// The machine's physical memory, as far as VMs and their tables may own it. An address outside of what the frame
/// pool manages is a bug of ours, and panics.
pub trait HostMemory {
    /// Somebody hears of it when memory changes its owner.
    const ANNOUNCES: bool = false;

    /// Copies from host-physical memory at `from` into `data`.
    fn read(&self, from: Hpa, data: &mut [u8]);

    /// Copies `data` to host-physical memory at `to`.
    fn write(&mut self, to: Hpa, data: &[u8]);

    /// Fills `length` bytes from `at` with zero.
    fn zero(&mut self, at: Hpa, length: u64);

    /// Reads an aligned 64-bit table entry in one access.
    fn read_u64(&self, at: Hpa) -> u64;

    /// Writes an aligned 64-bit table entry in one access.
    fn write_u64(&mut self, at: Hpa, value: u64);

    /// The cleared frames that are at hand.
    fn stock(&mut self) -> &mut FrameStock;

    /// Another VM comes in: memory that was within the hypervisor's reach is out of it until it is accessed again.
    fn release(&mut self) {}

    /// Tells whoever listens.
    #[inline(always)]
    fn announce(&self, _: Announcement) {}
}

/// A bug of ours that was contained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bug {
    /// The number of the VM that was worked for.
    pub vm: usize,
    /// What it was.
    pub what: String,
}

/// The machine.
pub trait Host: HostMemory {
    /// The vendor's virtual processor.
    type Vcpu: Vcpu;

    /// Does `work`; true where that came to its end. False where a bug of ours came up in a part of it that was done for
    /// one VM, and that part was abandoned: nothing on its stack was dropped, what it had borrowed is as it left it, and
    /// [`Host::take_bug`] tells. A bug anywhere else is the end of the machine.
    fn survive(work: &mut dyn FnMut()) -> bool;

    /// From here on, until [`Host::end_work`], what is done is done for VM `vm` alone.
    fn begin_work(&mut self, vm: usize);

    /// What is done from here on is everybody's.
    fn end_work(&mut self);

    /// Work that may take long without a guest's exit, or that a guest can make as long as it likes, has come a step further:
    /// no step takes more than a fraction of a second.
    fn progress(&self);

    /// The bug for which work was abandoned.
    fn take_bug(&mut self) -> Option<Bug>;

    /// The vCPU that is loaded, if one is, will never be unloaded: what it left in the processor is nobody's.
    fn forget_vcpu(&mut self);

    /// The machine's time-stamp counter.
    fn now(&self) -> Tsc;

    /// Its rate, measured.
    fn tsc_frequency(&self) -> Frequency;

    /// Wall-clock time. Unit: seconds since 1970-01-01 00:00 UTC.
    fn unix_seconds(&self) -> u64;

    /// Makes a virtual processor as after reset, for the guest with the number `vm`, from 1, by which its translations are
    /// kept apart from those of other guests.
    ///
    /// # Errors
    /// A sentence that says what could not be had.
    fn create_vcpu(&mut self, vm: u16) -> Result<Self::Vcpu, String>;

    /// Handles an interrupt of the machine's that ended a guest's run: `vector`, which was acknowledged, or, where it
    /// is `None`, whatever waits to be taken.
    fn handle_interrupt(&mut self, vector: Option<u8>);

    /// Handles the interrupts of the machine's that wait, without waiting for any, and looks after a serial port that gives
    /// none. A guest's exit hands over one at a time, and not every machine exits for one at once, so each turn of the run
    /// loop looks.
    fn handle_pending_interrupts(&mut self);

    /// Handles a machine check of the machine's that came up while a guest ran. Ends the machine, with a report.
    fn handle_machine_check(&mut self);

    /// Handles a non-maskable interrupt of the machine's that ended a guest's run.
    fn handle_nmi(&mut self);

    /// Halts the processor until an interrupt of the machine's has been handled, or until `until`.
    fn idle(&mut self, until: Option<Tsc>);

    /// Puts bytes into the ring of the machine's serial port; returns how many it had room for.
    fn serial_write(&mut self, bytes: &[u8]) -> usize;

    /// Whether [`Host::serial_read`] or [`Host::take_log_line`] would give anything: all that the console may have to do
    /// that it does not know of.
    fn has_news(&self) -> bool;

    /// The next byte that the machine's serial port received.
    fn serial_read(&mut self) -> Option<u8>;

    /// CPUID of the machine's processor: EAX, EBX, ECX, EDX of `leaf` and `subleaf`. Slow: never on an exit.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];

    /// IA32_ARCH_CAPABILITIES of the machine's processor; 0 where it has none.
    fn arch_capabilities(&self) -> u64 {
        0
    }

    /// How much of the hypervisor's heap is in use. Unit: bytes.
    fn heap_used(&self) -> u64 {
        0
    }

    /// Time since the loader handed the machine over, where somebody has looked. Unit: ticks of the machine's TSC.
    fn since_loader(&self) -> Option<u64> {
        None
    }

    /// Tells `violation`, in a sentence each, what is wrong with the hypervisor's own memory: pages that can be written
    /// and run, memory of VMs that is within its reach although nobody uses it.
    fn audit(&mut self, violation: &mut dyn FnMut(String));

    /// Makes a page of the hypervisor's code writable; whether it could.
    #[cfg(any(test, feature = "plant"))]
    fn plant_writable_code(&mut self) -> bool;

    /// Maps a VM's frame for the hypervisor, and leaves it so; whether it could.
    #[cfg(any(test, feature = "plant"))]
    fn plant_mapping(&mut self, frame: Hpa) -> bool;

    /// What the hypercall [`COUNTS`] gives; `None` in a build that does not count.
    ///
    /// [`COUNTS`]: lamina_arch::hypercall::COUNTS
    fn events(&self) -> Option<u64> {
        None
    }

    /// The oldest line of the hypervisor's log that the console has not shown yet.
    fn take_log_line(&mut self) -> Option<String> {
        None
    }
}
