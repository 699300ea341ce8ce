//! What is done about an exit: dispatch to one handler each, which answers with a [`Resume`]; one place applies it.
//!
//! A handler reads and changes the VM through the seam and the chipset. It never enters the guest, never moves RIP,
//! never injects, and never decides who runs next: that is what its answer is for.

mod apic;
mod code;
mod control;
mod emulate;
mod hypercall;
mod io;
mod linear;
mod mmio;
pub(crate) mod mov;
pub(crate) mod msr;
mod nested;
mod nowhere;
mod quick;
mod task;

use lamina_arch::addr::Gla;
use lamina_arch::cr::Efer;
use lamina_arch::event::{Event, EventKind, GuestFault, vector};
use lamina_arch::exit::Exit;
use lamina_arch::regs::{Gpr, Gprs, SysReg};
use lamina_arch::segment::SegmentName;
use lamina_arch::time::Tsc;

use crate::chipset::Chipset;
use crate::console::Console;
use crate::cpuid::Cpuid;
use crate::fault::{self, Site};
use crate::frames::FramePool;
use crate::host::Host;
use crate::stop::StopReason;
use crate::vcpu::{QuickRegisters, Vcpu};
use crate::vm::Vm;
use crate::walk::Paging;

pub(crate) use code::LastMov;
pub(crate) use emulate::{instruction_at_rip, step_over};
pub(crate) use io::obey;
pub(crate) use quick::{Left as QuickLeft, Shortcut, TIMER_REST_NS};

/// What follows from an exit.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The instruction is done: go past it.
    Advance,
    /// The instruction, which we decoded, is done: go past its bytes; past none where it has set RIP itself.
    AdvanceBy(u8),
    /// As [`Resume::AdvanceBy`], and the next instruction is in the shadow of a load of SS.
    AdvanceIntoShadow(u8),
    /// Enter the guest where it is.
    Again,
    /// The guest's fault: it gets an exception.
    Inject(GuestFault),
    /// The event whose delivery the exit interrupted has been delivered in software, if there was one.
    Delivered,
    /// As [`Resume::Delivered`]; behind it comes an exception.
    InjectAfter(GuestFault),
    /// The exception that the exit was for goes on its way.
    Deliver(Event),
    /// HLT: go past it and wait for an interrupt.
    Halt,
    /// Go past the instruction and give up the rest of the time slice.
    Yield,
    /// The time slice or a deadline is over.
    SliceEnd,
    /// The VM's end.
    Stop(StopReason),
    /// Start again from the pristine image.
    Reset,
}

/// What a handler may use besides the VM.
#[derive(Debug)]
pub struct Surroundings<'a, H> {
    /// The machine.
    pub host: &'a mut H,
    /// The frames that nobody has.
    pub pool: &'a mut FramePool,
    /// The console.
    pub console: &'a mut Console,
    /// The VM's number on the console.
    pub slot: usize,
}

/// Handles `exit` of `vm`.
pub fn dispatch<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, around: &mut Surroundings<'_, H>, exit: Exit) -> Resume {
    match exit {
        Exit::Cpuid => cpuid(vm),
        Exit::Rdmsr => msr::read(vm, around.host),
        Exit::Wrmsr => msr::write(vm, around.host),
        Exit::Io(access) => io::access(vm, around, &access),
        Exit::NestedFault(fault) => nested::fault(vm, around, &fault),
        Exit::Hlt => Resume::Halt,
        Exit::SliceEnd => Resume::SliceEnd,
        Exit::HostInterrupt { vector } => {
            around.host.handle_interrupt(vector);
            Resume::SliceEnd
        }
        Exit::HostMachineCheck => {
            around.host.handle_machine_check();
            Resume::Again
        }
        Exit::HostNmi => {
            around.host.handle_nmi();
            Resume::Again
        }
        Exit::InterruptWindow => {
            vm.interrupt_window = false;
            vm.vcpu.request_interrupt_window(false);
            Resume::Again
        }
        Exit::NmiWindow => {
            vm.vcpu.request_nmi_window(false);
            Resume::Again
        }
        Exit::ApicWrite { offset } => apic::written(vm, around.host, offset),
        Exit::ApicEoi { vector } => apic::ended(vm, around.host, vector),
        Exit::Hypercall => hypercall::call(vm, around),
        Exit::Cr(access) => control::access(vm, around.host, &access),
        Exit::Xsetbv => control::xsetbv(vm),
        // The caches of a guest hold nothing that memory does not: the machine's are coherent.
        Exit::CacheFlush => Resume::Advance,
        Exit::Pause => Resume::Yield,
        Exit::Undefined => Resume::Inject(GuestFault::UD),
        Exit::Forbidden => Resume::Inject(GuestFault::GP0),
        Exit::Exception(event) => Resume::Deliver(event),
        Exit::Debug { dr6 } => debug(vm, dr6),
        Exit::Icebp => icebp(vm, around.host),
        Exit::TripleFault => Resume::Stop(StopReason::TripleFault { rip: vm.vcpu.read(SysReg::Rip) }),
        Exit::NestedMisconfiguration { gpa } => Resume::Stop(StopReason::NestedMisconfiguration { gpa }),
        Exit::TaskSwitch { selector, source } => task::switch(vm, around.host, selector, source),
        Exit::Unknown { reason, qualification } => {
            Resume::Stop(StopReason::UnknownExit { reason, qualification, rip: vm.vcpu.read(SysReg::Rip) })
        }
    }
}

/// #DB: what the processor would have done to the debug registers, then its delivery (SDM vol. 3, "Debug Exception
/// (#DB)—Interrupt Vector 1").
fn debug<V: Vcpu, C>(vm: &mut Vm<V, C>, status: u64) -> Resume {
    /// DR6: B0 to B3 tell of the last exception alone; BD and BS stay until software clears them.
    const BREAKPOINTS: u64 = 0xf;
    /// DR7: general detect, which the delivery clears.
    const GENERAL_DETECT: u64 = 1 << 13;
    let dr6 = vm.vcpu.read(SysReg::Dr6) & !BREAKPOINTS | status;
    vm.vcpu.write(SysReg::Dr6, dr6);
    let dr7 = vm.vcpu.read(SysReg::Dr7);
    if dr7 & GENERAL_DETECT != 0 {
        vm.vcpu.write(SysReg::Dr7, dr7 & !GENERAL_DETECT);
    }
    Resume::Inject(GuestFault { vector: vector::DB, error: None, cr2: None })
}

/// ICEBP: #DB behind the instruction.
fn icebp<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H) -> Resume {
    let kind = EventKind::PrivilegedSoftwareException;
    match emulate::length(vm, host) {
        Ok(length) => Resume::Deliver(Event { kind, vector: vector::DB, error: None, length }),
        Err(reason) => Resume::Stop(reason),
    }
}

/// The registers of a vCPU that goes the long way.
pub(crate) struct ByVcpu<'a, V>(pub &'a mut V);

impl<V: Vcpu> QuickRegisters for ByVcpu<'_, V> {
    fn gprs(&mut self) -> &mut Gprs {
        self.0.gprs()
    }

    fn cr4(&mut self) -> u64 {
        self.0.read(SysReg::Cr4)
    }

    fn xcr0(&mut self) -> u64 {
        self.0.read(SysReg::Xcr0)
    }

    fn rsp(&mut self) -> u64 {
        self.0.read(SysReg::Rsp)
    }

    fn code(&mut self, physical_bits: u32) -> Option<(Gla, Paging, u8)> {
        self.cpl_of_64_bit_code()?;
        let (paging, cpl) = linear::paging(self.0, physical_bits);
        Some((Gla(self.0.read(SysReg::Rip)), paging, cpl))
    }

    fn cpl_of_64_bit_code(&mut self) -> Option<u8> {
        let long = self.0.read(SysReg::Efer) & Efer::LMA.bits() != 0;
        (long && self.0.segment(SegmentName::Cs).rights.is_long()).then(|| linear::cpl(self.0))
    }

    fn can_take_interrupt(&mut self) -> bool {
        self.0.interruptibility().can_take_interrupt()
    }
}

fn cpuid<V: Vcpu, C>(vm: &mut Vm<V, C>) -> Resume {
    fault::point(Site::Cpuid);
    answer_cpuid(&vm.cpuid, &mut ByVcpu(&mut vm.vcpu));
    Resume::Advance
}

fn answer_cpuid<R: QuickRegisters>(cpuid: &Cpuid, registers: &mut R) {
    let gprs = registers.gprs();
    let (leaf, subleaf) = (gprs.get32(Gpr::Rax), gprs.get32(Gpr::Rcx));
    // Only three leaves depend on registers that would have to be read.
    let [eax, ebx, ecx, edx] = if leaf == 1 {
        cpuid.features(registers.cr4())
    } else if let Some(answer) = cpuid.plain(leaf) {
        *answer
    } else {
        let cr4 = if leaf == 7 { registers.cr4() } else { 0 };
        cpuid.answer(leaf, subleaf, cr4, if leaf == 0xd { registers.xcr0() } else { 0 })
    };
    let gprs = registers.gprs();
    gprs.set(Gpr::Rax, u64::from(eax));
    gprs.set(Gpr::Rbx, u64::from(ebx));
    gprs.set(Gpr::Rcx, u64::from(ecx));
    gprs.set(Gpr::Rdx, u64::from(edx));
}

/// The time that a VM's chipset counts: ticks since the VM started, whatever the guest wrote to its own TSC.
pub(crate) fn chipset_now<H: Host, C>(vm: &Vm<H::Vcpu, C>, host: &H) -> Tsc {
    Tsc(host.now().0.saturating_sub(vm.started.0))
}
