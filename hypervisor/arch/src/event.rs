//! Events that are delivered through the guest's IDT.

/// Vectors that the architecture names (SDM vol. 3, "Exception and Interrupt Reference").
pub mod vector {
    /// Divide error.
    pub const DE: u8 = 0;
    /// Debug.
    pub const DB: u8 = 1;
    /// Non-maskable interrupt.
    pub const NMI: u8 = 2;
    /// Breakpoint.
    pub const BP: u8 = 3;
    /// Overflow.
    pub const OF: u8 = 4;
    /// BOUND range exceeded.
    pub const BR: u8 = 5;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// Device not available.
    pub const NM: u8 = 7;
    /// Double fault.
    pub const DF: u8 = 8;
    /// Invalid TSS.
    pub const TS: u8 = 10;
    /// Segment not present.
    pub const NP: u8 = 11;
    /// Stack fault.
    pub const SS: u8 = 12;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
    /// x87 floating-point error.
    pub const MF: u8 = 16;
    /// Alignment check.
    pub const AC: u8 = 17;
    /// Machine check.
    pub const MC: u8 = 18;
}

/// What kind of event is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// An external interrupt.
    External,
    /// A non-maskable interrupt.
    Nmi,
    /// A fault, trap or abort of the processor's.
    HardwareException,
    /// INT n.
    SoftwareInterrupt,
    /// INT1 (ICEBP).
    PrivilegedSoftwareException,
    /// INT3 or INTO.
    SoftwareException,
}

/// One event to deliver to the guest, or whose delivery an exit interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Kind.
    pub kind: EventKind,
    /// Vector, 0 to 255.
    pub vector: u8,
    /// Error code, where the vector pushes one.
    pub error: Option<u32>,
    /// Length of the instruction that caused a software event. Unit: bytes; 0 otherwise.
    pub length: u8,
}

impl Event {
    /// An external interrupt with `vector`.
    pub const fn external(vector: u8) -> Event {
        Event { kind: EventKind::External, vector, error: None, length: 0 }
    }

    /// Whether RF is set in the flags that its delivery saves: a fault's instruction is executed again, and its own
    /// breakpoint must not stop it a second time. Not for debug exceptions, which come before the instruction or behind
    /// it (SDM vol. 3, "Masking Exceptions and Interrupts": "RF (Resume) Flag").
    pub const fn sets_resume_flag(&self) -> bool {
        matches!(self.kind, EventKind::HardwareException)
            && !matches!(self.vector, vector::DB | vector::BP | vector::OF | vector::DF | vector::MC)
    }

    /// A hardware exception.
    pub const fn exception(vector: u8, error: Option<u32>) -> Event {
        Event { kind: EventKind::HardwareException, vector, error, length: 0 }
    }
}

/// The guest's fault: an exception that it gets for what it did, as a real processor would give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestFault {
    /// Vector of the exception.
    pub vector: u8,
    /// Error code, where the vector pushes one.
    pub error: Option<u32>,
    /// The linear address that CR2 gets, for a page fault.
    pub cr2: Option<u64>,
}

impl GuestFault {
    /// #GP(0).
    pub const GP0: GuestFault = GuestFault { vector: vector::GP, error: Some(0), cr2: None };
    /// #UD.
    pub const UD: GuestFault = GuestFault { vector: vector::UD, error: None, cr2: None };

    /// #PF with `error` for the linear address `address`.
    pub const fn page_fault(address: u64, error: u32) -> GuestFault {
        GuestFault { vector: vector::PF, error: Some(error), cr2: Some(address) }
    }
}

/// What keeps the guest from taking an interrupt at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Interruptibility {
    /// RFLAGS.IF.
    pub interrupts_enabled: bool,
    /// The one-instruction shadow after STI, MOV SS or POP SS.
    pub shadow: bool,
    /// NMIs are blocked until the next IRET.
    pub nmi_blocked: bool,
    /// An event is already waiting to be injected at the next entry.
    pub event_pending: bool,
}

impl Interruptibility {
    /// Whether an external interrupt can be injected at the next entry.
    pub const fn can_take_interrupt(self) -> bool {
        self.interrupts_enabled && !self.shadow && !self.event_pending
    }
}
