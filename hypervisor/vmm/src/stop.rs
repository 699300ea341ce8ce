//! Why a VM stopped: the VM's end, told from the guest's own fault and from a bug of ours.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use lamina_arch::addr::Gpa;

use crate::vcpu::EntryFailure;

/// Why a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The guest powered itself off.
    PowerOff,
    /// The guest ended itself by hypercall.
    Exited,
    /// The guest halted with interrupts off, so nothing can wake it.
    Halted,
    /// Asked for at the console.
    Console,
    /// The guest could not deliver a double fault.
    TripleFault {
        /// Where.
        rip: u64,
    },
    /// An access to a guest-physical address where there is neither memory nor a device.
    OutsideMemory {
        /// The address.
        gpa: Gpa,
        /// `read`, `write`, `instruction fetch`, or `access` where the processor did not tell.
        access: &'static str,
        /// Where.
        rip: u64,
    },
    /// An instruction that would have to be finished in software and is not supported there.
    NotEmulated {
        /// The instruction's bytes.
        bytes: Vec<u8>,
        /// What was wanted of it.
        why: String,
        /// Where.
        rip: u64,
    },
    /// An exit that nobody asked for.
    UnknownExit {
        /// Exit reason or exit code.
        reason: u64,
        /// Exit qualification or EXITINFO1.
        qualification: u64,
        /// Where.
        rip: u64,
    },
    /// Its memory is backed on first touch, and the machine had no frame left for what it touched.
    OutOfFrames,
    /// It was reset again and again without running in between.
    ResetLoop {
        /// How often.
        resets: u32,
    },
    /// The processor refused to enter the guest.
    EntryFailed(EntryFailure),
    /// The configuration, the image or the machine did not allow it to start.
    Refused(String),
    /// A bug of ours came up while the hypervisor was at work for this VM, and was contained: what it was.
    Bug(String),
    /// A nested-table entry was malformed.
    NestedMisconfiguration {
        /// The address.
        gpa: Gpa,
    },
}

impl StopReason {
    /// Whether the VM ended as it was meant to, its status aside.
    pub const fn is_intended(&self) -> bool {
        matches!(self, StopReason::PowerOff | StopReason::Exited | StopReason::Halted | StopReason::Console)
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopReason::PowerOff => write!(f, "powered off"),
            StopReason::Exited => write!(f, "exited"),
            StopReason::Halted => write!(f, "halted with interrupts off"),
            StopReason::Console => write!(f, "stopped from the console"),
            StopReason::TripleFault { rip } => write!(f, "triple fault at rip {rip:#x}"),
            StopReason::OutsideMemory { gpa, access, rip } => {
                write!(f, "{access} outside its memory at {:#x}, rip {rip:#x}", gpa.0)
            }
            StopReason::NotEmulated { bytes, why, rip } => {
                write!(f, "{why} at rip {rip:#x}, bytes")?;
                bytes.iter().try_for_each(|b| write!(f, " {b:02x}"))
            }
            StopReason::UnknownExit { reason, qualification, rip } => {
                write!(f, "unknown exit reason {reason:#x}, qualification {qualification:#x}, rip {rip:#x}")
            }
            StopReason::OutOfFrames => write!(f, "the machine has no memory left for what it touched first"),
            StopReason::ResetLoop { resets } => write!(f, "reset {resets} times in a row"),
            StopReason::EntryFailed(failure) => {
                write!(f, "VM entry failed: {}", failure.error)?;
                failure.broken_rules.iter().try_for_each(|rule| write!(f, "; {rule}"))
            }
            StopReason::Refused(why) => write!(f, "refused: {why}"),
            StopReason::Bug(what) => write!(f, "a bug of the hypervisor's: {what}"),
            StopReason::NestedMisconfiguration { gpa } => write!(f, "nested table misconfigured at {:#x}", gpa.0),
        }
    }
}
