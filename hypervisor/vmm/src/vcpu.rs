//! The seam: what the run loop asks of a virtual processor.
//!
//! Implemented by `hw::vmx`, `hw::svm` and, in tests, by a scripted fake that drives the whole loop without hardware.
//! State that an exit does not need is not read from the processor: `read` is lazy, `write` is written back at the
//! next entry.

use alloc::string::String;
use alloc::sync::Arc;
use lamina_arch::addr::{Gla, Gpa, Hpa};
use lamina_arch::cr::Cr4;
use lamina_arch::event::{Event, Interruptibility};
use lamina_arch::exit::{Exit, Kind, Width};
use lamina_arch::instruction::Instructions;
use lamina_arch::regs::{ExtendedRegister, Gprs, SysReg};
use lamina_arch::segment::{Segment, SegmentName};
use lamina_arch::time::Tsc;
use lamina_arch::watchpoints::Watchpoints;

use crate::apic::{ApicMode, ApicPage};
use crate::nested::EntryFormat;
use crate::walk::Paging;

/// The processor refused to enter the guest. Ends the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryFailure {
    /// What the processor said: the VM-instruction error or the exit reason, in words.
    pub error: String,
    /// The field and the rule of the manual that it breaks, as far as a check of our own finds them.
    pub broken_rules: alloc::vec::Vec<String>,
}

/// The processor does not tell how long the instruction is that exited: it must be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownLength;

/// What came of offering an exit to [`Quick`].
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// It is done: go past the instruction and enter the guest again.
    Done = 1,
    /// It is done: enter the guest again where it is.
    Again = 0,
    /// It is done: go past the instruction, and [`Quick::look`] before the guest is entered.
    Look = 3,
    /// It is done, or nothing was to be done: [`Quick::look`] before the guest is entered where it is.
    LookHere = 2,
    /// Nothing was done: return it as [`Ran::Exit`].
    Refused = 4,
}

impl Answer {
    /// Whether to go past the instruction.
    #[inline(always)]
    pub const fn advances(self) -> bool {
        self as u8 & 1 != 0
    }

    /// Whether [`Quick::look`] is due.
    #[inline(always)]
    pub const fn looks(self) -> bool {
        self as u8 & 2 != 0
    }
}

/// As much of a virtual processor as an answer to a [`Quick`] may touch.
pub trait QuickRegisters {
    /// The general-purpose registers, without RSP.
    fn gprs(&mut self) -> &mut Gprs;

    /// CR4 as the guest reads it, as far as the guest owns it.
    fn cr4(&mut self) -> u64;

    /// XCR0.
    fn xcr0(&mut self) -> u64;

    /// RSP.
    fn rsp(&mut self) -> u64;

    /// RIP, the registers that the translation of an instruction fetch depends on, and the current privilege level, where
    /// the guest is in 64-bit mode. `physical_bits` is how wide its physical addresses are.
    fn code(&mut self, physical_bits: u32) -> Option<(Gla, Paging, u8)>;

    /// The current privilege level, where the guest is in 64-bit mode.
    fn cpl_of_64_bit_code(&mut self) -> Option<u8>;

    /// Whether the guest, where it is now, would take an interrupt.
    fn can_take_interrupt(&mut self) -> bool;
}

/// How the guest is to be entered after [`Quick::look`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// It is to exit at this time (the machine's TSC) at the latest.
    pub deadline: Tsc,
    /// The vector of an interrupt to inject.
    pub interrupt: Option<u8>,
    /// Whether to ask for [`Exit::InterruptWindow`].
    pub window: bool,
}

/// Answers exits without leaving [`Vcpu::run`]: one function for each kind of exit that may be answered, so that the
/// vendor decides once which it is. `at` is when it came (the machine's TSC).
pub trait Quick {
    /// CPUID.
    fn cpuid<R: QuickRegisters>(&mut self, registers: &mut R) -> Answer;

    /// The vendor's hypercall instruction.
    fn hypercall<R: QuickRegisters>(&mut self, registers: &mut R) -> Answer;

    /// RDMSR.
    fn rdmsr<R: QuickRegisters>(&mut self, registers: &mut R, at: Tsc) -> Answer;

    /// WRMSR.
    fn wrmsr<R: QuickRegisters>(&mut self, registers: &mut R, at: Tsc) -> Answer;

    /// IN with AL, AX or EAX.
    fn port_in<R: QuickRegisters>(&mut self, registers: &mut R, at: Tsc, port: u16, width: Width) -> Answer;

    /// OUT with AL, AX or EAX.
    fn port_out<R: QuickRegisters>(&mut self, registers: &mut R, at: Tsc, port: u16, width: Width) -> Answer;

    /// An access to guest-physical `gpa` that the nested tables do not map, which was no part of an event's delivery.
    /// [`Answer::Again`] where it is to be tried again.
    fn touch(&mut self, gpa: Gpa) -> Answer;

    /// Whether an access to `gpa` is none to memory, in any VM: [`Quick::device`] is to be asked, else [`Quick::touch`].
    fn is_device(&self, gpa: Gpa) -> bool;

    /// A data access to guest-physical `gpa`, to which the processor has translated `linear`, for a write or a read. Also
    /// the length of the instruction that was finished. Unit: bytes.
    fn device<R: QuickRegisters>(
        &mut self,
        registers: &mut R,
        at: Tsc,
        gpa: Gpa,
        linear: Gla,
        write: bool,
    ) -> (Answer, u8);

    /// The guest can take the interrupt that a window was asked for; the vendor asks no longer.
    fn window(&mut self) -> Answer;

    /// Does what the run loop would do before the next entry: a timer that is due, an interrupt that waits. `None` where
    /// there is more to it, so that [`Ran::Look`] is due. `now` is when the exit came, or later.
    fn look<R: QuickRegisters>(&mut self, registers: &mut R, now: Tsc) -> Option<Next>;

    /// An exit that was answered took `ticks` in the hypervisor.
    fn account(&mut self, kind: Kind, ticks: u64);
}

/// How [`Vcpu::run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// The guest exited, and nothing was done about it yet.
    Exit(Exit),
    /// The last exit is answered, and there is something for the run loop to look at.
    Look,
}

/// A virtual processor of some vendor's.
pub trait Vcpu {
    /// The vendor's format of nested-table entries.
    type Nested: EntryFormat;

    /// What the hypercall leaf names: `INSTRUCTION_VMCALL` or `INSTRUCTION_VMMCALL` of `arch::hypercall`.
    const HYPERCALL_INSTRUCTION: u32;

    /// PAE paging goes by four PDPTE registers, which MOV to CR0 and CR4 check and load; else by the entries in memory,
    /// which nobody checks until they are used (APM vol. 2, "Nested Paging": "Legacy PAE Mode").
    const PDPTE_REGISTERS: bool;

    /// The nested-table format with the page sizes that this processor has.
    fn nested_format(&self) -> Self::Nested;

    /// Enters the guest and returns when it exits, at the latest at `deadline` (the machine's TSC): with
    /// [`Exit::SliceEnd`], or with the interrupt of a timer of the machine's. A vendor whose processor tells the
    /// instruction's length may offer exits to `quick`, and goes on after those that it answers.
    ///
    /// # Errors
    /// [`EntryFailure`] where the processor refuses the state.
    fn run<Q: Quick>(&mut self, deadline: Tsc, quick: &mut Q) -> Result<Ran, EntryFailure>;

    /// Whether its registers hold linear addresses of 57 bits where the processor has them, whatever the hypervisor's own
    /// paging: else guests are shown four levels.
    fn holds_wide_addresses(&self) -> bool;

    /// Whether the processor has IA32_TSC_AUX.
    fn has_tsc_aux(&self) -> bool;

    /// The general-purpose registers, without RSP.
    fn gprs(&mut self) -> &mut Gprs;

    /// Reads a register.
    fn read(&mut self, register: SysReg) -> u64;

    /// Writes a register. The value was checked: the guest's mistakes are found before they come here.
    fn write(&mut self, register: SysReg, value: u64);

    /// Reads a segment register.
    fn segment(&mut self, name: SegmentName) -> Segment;

    /// Writes a segment register.
    fn set_segment(&mut self, name: SegmentName, segment: Segment);

    /// Reads a register of the extended state into `value`, which has its size. Slow: for what the instruction emulator
    /// finishes.
    fn extended(&mut self, register: ExtendedRegister, value: &mut [u8]);

    /// Writes a register of the extended state. Slow, as [`Vcpu::extended`].
    fn set_extended(&mut self, register: ExtendedRegister, value: &[u8]);

    /// Moves RIP past the instruction that exited and ends the one-instruction shadow.
    ///
    /// # Errors
    /// [`UnknownLength`], with nothing changed: [`Vcpu::advance_by`] is due.
    fn advance(&mut self) -> Result<(), UnknownLength>;

    /// Moves RIP past an instruction of `length` bytes (decoded by us; 0 where it has set RIP itself) and ends the
    /// one-instruction shadow.
    fn advance_by(&mut self, length: u8);

    /// The next instruction is in the shadow of a load of SS.
    fn begin_shadow(&mut self);

    /// Ends the one-instruction shadow, where RIP was moved by other means.
    fn end_shadow(&mut self);

    /// NMIs are blocked until the next IRET, or no longer.
    fn set_nmi_blocked(&mut self, blocked: bool);

    /// What keeps the guest from taking an interrupt.
    fn interruptibility(&mut self) -> Interruptibility;

    /// Makes `event` happen at the next entry. One event at most: see [`Interruptibility::event_pending`].
    fn inject(&mut self, event: Event);

    /// The event whose delivery the last exit interrupted, to be injected again.
    fn interrupted_event(&mut self) -> Option<Event>;

    /// Asks for [`Exit::InterruptWindow`] as soon as the guest can take an interrupt, or no longer.
    fn request_interrupt_window(&mut self, wanted: bool);

    /// Asks for [`Exit::NmiWindow`] as soon as the guest can take an NMI, or no longer.
    fn request_nmi_window(&mut self, wanted: bool);

    /// The nested tables that the guest's memory goes through: the address of the top table.
    fn set_nested_root(&mut self, root: Hpa);

    /// Forgets every cached translation of the nested tables.
    fn invalidate_nested(&mut self);

    /// Forgets every cached translation of the guest's own paging, global ones too.
    fn invalidate_linear(&mut self);

    /// The CR4 bits that the guest may change without an exit; every other bit exits when it changes.
    fn allow_cr4(&mut self, bits: Cr4);

    /// Makes #UD of these instructions, which the processor has and CPUID does not show, as far as the vendor can. Once, before
    /// anything runs.
    fn hide(&mut self, instructions: Instructions);

    /// IA32_SPEC_CTRL while this virtual processor is loaded; 0 at first. Only where CPUID shows the bits.
    fn set_speculation_control(&mut self, value: u64);

    /// Indirect branches behind this are not predicted by those before it. Only where CPUID shows the barrier.
    fn prediction_barrier(&mut self);

    /// The guest's breakpoints, where it has enabled any: the processor does not look at accesses that software finishes. While
    /// there are some, accesses to ports and devices are never answered on the short way.
    fn watchpoints(&mut self) -> Option<Watchpoints>;

    /// The instruction that was just stepped over has met these breakpoints (bits 3:0, as in DR6): #DB before the next one.
    fn meet(&mut self, breakpoints: u64);

    /// The four page-directory-pointer-table entries of PAE paging, which the processor does not load by itself when
    /// software finishes a MOV to CR0 or CR4.
    fn set_pdptes(&mut self, entries: [u64; 4]);

    /// Whether this processor can virtualize a local APIC: [`Vcpu::virtualize_apic`].
    fn virtualizes_apic(&self) -> bool {
        false
    }

    /// Gives the processor the registers of the guest's local APIC, and the page `access`, whose place is theirs in the
    /// guest's memory: what the guest accesses there goes to the registers instead. Not before [`Vcpu::apic_changed`]
    /// says that it is on.
    fn virtualize_apic(&mut self, registers: Arc<ApicPage>, access: Hpa) {
        let _ = (registers, access);
    }

    /// The local APIC that was given is now in `mode`, and somebody else than the processor may have changed which
    /// interrupts are requested, in service or level-triggered. Forgets the cached translations of nested tables and
    /// guest where the mode is another than before.
    fn apic_changed(&mut self, mode: ApicMode) {
        let _ = mode;
    }

    /// The guest's TSC minus the machine's. Unit: ticks.
    fn set_tsc_offset(&mut self, offset: i64);

    /// This vCPU comes in on this processor: moves in what is not switched at every exit (extended state, MSRs, debug
    /// registers).
    fn load(&mut self);

    /// This vCPU goes out: saves what [`Vcpu::load`] moved in.
    fn unload(&mut self);
}
