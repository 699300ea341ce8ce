//! The vendor-neutral exit: why the guest stopped running, with what the hypervisor needs to go on.

use crate::addr::{Gla, Gpa};
use crate::event::Event;
use crate::regs::Gpr;

/// Why the guest exited to the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An interrupt of the machine's, to be handled by the host.
    HostInterrupt {
        /// The machine's vector, acknowledged; `None` where it still waits for the host to take it.
        vector: Option<u8>,
    },
    /// A non-maskable interrupt of the machine's.
    HostNmi,
    /// A machine check of the machine's: nobody can say whose fault it is.
    HostMachineCheck,
    /// The time slice, or the deadline given to `run`, is over.
    SliceEnd,
    /// The guest can now take an external interrupt.
    InterruptWindow,
    /// The guest can now take an NMI.
    NmiWindow,
    /// An exception of the guest's that the hypervisor asked to see.
    Exception(Event),
    /// #DB, which the hypervisor asked to see: not delivered yet, and DR6 need not show it yet.
    Debug {
        /// The bits of DR6 that it sets: B0 to B3, BD, BS.
        dr6: u64,
    },
    /// ICEBP, whose #DB is not delivered yet: a trap, which returns behind the instruction and sets nothing in DR6.
    Icebp,
    /// The guest could not deliver a double fault.
    TripleFault,
    /// CPUID.
    Cpuid,
    /// HLT.
    Hlt,
    /// PAUSE in a loop.
    Pause,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// RDMSR of the MSR in ECX.
    Rdmsr,
    /// WRMSR to the MSR in ECX.
    Wrmsr,
    /// INVD or WBINVD.
    CacheFlush,
    /// XSETBV of EDX:EAX to the register in ECX.
    Xsetbv,
    /// An instruction that the guest's processor does not have (VMX or SVM, MONITOR, RDPMC, …): #UD.
    Undefined,
    /// An instruction that is there but that the guest may not use (RDPMC without a counter, …): #GP(0).
    Forbidden,
    /// IN, OUT, INS or OUTS.
    Io(IoExit),
    /// An access to a control register that the hypervisor keeps a part of.
    Cr(CrExit),
    /// The guest has written a register of its local APIC that the processor keeps for it, and what the register does is
    /// not done yet. The instruction is over.
    ApicWrite {
        /// Offset of the register in the page. Unit: bytes.
        offset: u16,
    },
    /// The processor has ended an interrupt of the guest's whose end is to be told.
    ApicEoi {
        /// The interrupt's vector.
        vector: u8,
    },
    /// An access to guest-physical memory that the nested tables do not allow.
    NestedFault(NestedFault),
    /// A nested-table entry that the processor refuses: a bug of ours, which ends the VM.
    NestedMisconfiguration {
        /// Where.
        gpa: Gpa,
    },
    /// A task switch, which needs software.
    TaskSwitch {
        /// Selector of the new TSS; `None` where it is the link in the current one.
        selector: Option<u16>,
        /// What asks for it.
        source: TaskSource,
    },
    /// A reason that this hypervisor does not know or never asked for.
    Unknown {
        /// The basic exit reason or exit code, as the processor gave it.
        reason: u64,
        /// Exit qualification, or EXITINFO1.
        qualification: u64,
    },
}

/// The kinds of exits, as they are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Interrupt of the machine.
    HostInterrupt,
    /// NMI of the machine.
    HostNmi,
    /// End of slice or deadline.
    SliceEnd,
    /// Interrupt or NMI window.
    Window,
    /// Exception.
    Exception,
    /// CPUID.
    Cpuid,
    /// HLT.
    Hlt,
    /// PAUSE.
    Pause,
    /// Hypercall.
    Hypercall,
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// Port access.
    Io,
    /// Control register.
    Cr,
    /// Local APIC that the processor virtualizes.
    Apic,
    /// Device or unmapped memory.
    Nested,
    /// Other.
    Other,
}

impl Kind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Kind; 16] = [
        Kind::HostInterrupt,
        Kind::HostNmi,
        Kind::SliceEnd,
        Kind::Window,
        Kind::Exception,
        Kind::Cpuid,
        Kind::Hlt,
        Kind::Pause,
        Kind::Hypercall,
        Kind::Rdmsr,
        Kind::Wrmsr,
        Kind::Io,
        Kind::Cr,
        Kind::Apic,
        Kind::Nested,
        Kind::Other,
    ];

    /// What to call it in a table.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::HostInterrupt => "interrupt of the machine",
            Kind::HostNmi => "NMI of the machine",
            Kind::SliceEnd => "end of slice or deadline",
            Kind::Window => "interrupt or NMI window",
            Kind::Exception => "exception",
            Kind::Cpuid => "CPUID",
            Kind::Hlt => "HLT",
            Kind::Pause => "PAUSE",
            Kind::Hypercall => "hypercall",
            Kind::Rdmsr => "RDMSR",
            Kind::Wrmsr => "WRMSR",
            Kind::Io => "port access",
            Kind::Cr => "control register",
            Kind::Apic => "virtualized local APIC",
            Kind::Nested => "device or unmapped memory",
            Kind::Other => "other",
        }
    }
}

impl Exit {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Exit::HostInterrupt { .. } => Kind::HostInterrupt,
            Exit::HostNmi => Kind::HostNmi,
            Exit::SliceEnd => Kind::SliceEnd,
            Exit::InterruptWindow | Exit::NmiWindow => Kind::Window,
            Exit::Exception(_) | Exit::Debug { .. } | Exit::Icebp => Kind::Exception,
            Exit::Cpuid => Kind::Cpuid,
            Exit::Hlt => Kind::Hlt,
            Exit::Pause => Kind::Pause,
            Exit::Hypercall => Kind::Hypercall,
            Exit::Rdmsr => Kind::Rdmsr,
            Exit::Wrmsr => Kind::Wrmsr,
            Exit::Io(_) => Kind::Io,
            Exit::Cr(_) => Kind::Cr,
            Exit::ApicWrite { .. } | Exit::ApicEoi { .. } => Kind::Apic,
            Exit::NestedFault(_) | Exit::NestedMisconfiguration { .. } => Kind::Nested,
            Exit::TripleFault
            | Exit::HostMachineCheck
            | Exit::CacheFlush
            | Exit::Xsetbv
            | Exit::Undefined
            | Exit::Forbidden
            | Exit::TaskSwitch { .. }
            | Exit::Unknown { .. } => Kind::Other,
        }
    }
}

/// What asks for a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskSource {
    /// CALL.
    Call,
    /// IRET with RFLAGS.NT set.
    Iret,
    /// JMP.
    Jmp,
    /// An event whose gate in the IDT is a task gate.
    Gate,
}

/// Width of an access. Unit: bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Width {
    /// 8 bits.
    B1 = 1,
    /// 16 bits.
    B2 = 2,
    /// 32 bits.
    B4 = 4,
    /// 64 bits.
    B8 = 8,
}

impl Width {
    /// Unit: bytes.
    pub const fn bytes(self) -> usize {
        self as usize
    }

    /// Unit: bits.
    pub const fn bits(self) -> u32 {
        self as u32 * 8
    }

    /// The width of `bytes` bytes, if there is one.
    pub const fn from_bytes(bytes: usize) -> Option<Width> {
        Some(match bytes {
            1 => Width::B1,
            2 => Width::B2,
            4 => Width::B4,
            8 => Width::B8,
            _ => return None,
        })
    }

    /// The bits of a 64-bit value that a value of this width has.
    pub const fn mask(self) -> u64 {
        match self {
            Width::B8 => u64::MAX,
            _ => (1 << self.bits()) - 1,
        }
    }
}

/// Direction of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the device to the processor.
    In,
    /// From the processor to the device.
    Out,
}

/// A port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoExit {
    /// The port.
    pub port: u16,
    /// 1, 2 or 4 bytes.
    pub width: Width,
    /// Direction.
    pub direction: Direction,
    /// INS or OUTS, with its details; `None` for IN and OUT with AL, AX or EAX.
    pub string: Option<StringIo>,
}

/// What a string instruction adds to a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringIo {
    /// A REP prefix: count in rCX.
    pub rep: bool,
    /// Width of rCX, rSI, rDI: 2, 4 or 8 bytes.
    pub address_width: Width,
    /// Linear address of the first element, where the processor gives it.
    pub linear: Option<Gla>,
}

/// Access to a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrExit {
    /// What was done; `None` where the processor does not say, so that the instruction must be decoded.
    pub access: Option<CrAccess>,
}

/// Kinds of access to a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrAccess {
    /// MOV to control register `cr` (0, 3, 4 or 8) from `source`.
    Write {
        /// Number of the control register.
        cr: u8,
        /// Where the value comes from.
        source: Gpr,
    },
    /// MOV from control register `cr` (0, 3, 4 or 8) to `target`.
    Read {
        /// Number of the control register.
        cr: u8,
        /// Where the value goes.
        target: Gpr,
    },
    /// CLTS.
    Clts,
    /// LMSW with the 16-bit source.
    Lmsw {
        /// The new machine status word.
        value: u16,
    },
}

/// An access that the nested tables refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// Data read.
    pub read: bool,
    /// Data write.
    pub write: bool,
    /// Instruction fetch.
    pub fetch: bool,
    /// The address was that of a guest page-table entry, not of the access itself.
    pub table_walk: bool,
    /// The guest-linear address, where the processor gives it.
    pub linear: Option<Gla>,
}
