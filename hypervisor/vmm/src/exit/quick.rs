//! The short way: exits that are answered from the general-purpose registers and the devices, while the vCPU stays on
//! the processor and nothing else of the VM is looked at.
//!
//! The vendor's `run` offers such an exit here before it decodes anything. What is answered is done for good: the
//! vendor moves RIP and enters the guest again. What is refused has changed nothing, and goes the long way through
//! `dispatch`, which also gives the guest its faults. A handler that changes what the run loop has prepared (a timer's
//! deadline, a waiting interrupt, bytes for the console) asks for the loop to look.
//!
//! What an exit costs here beside its instructions, under VMX: 5 VMREADs (reason, length, RIP, RFLAGS,
//! interruptibility; 6 with a port's qualification) and 2 VMWRITEs (RIP, timer). No MSR is touched. The first touch of a
//! page costs 4 VMREADs (reason, interrupted event, qualification, guest-physical address) and 1 VMWRITE (timer).

use lamina_arch::addr::Gpa;
use lamina_arch::exit::{Kind, Width};
use lamina_arch::hypercall as abi;
use lamina_arch::msr;
use lamina_arch::regs::Gpr;
use lamina_arch::time::Tsc;

use super::{io, msr as msrs};
use crate::chipset::{Chipset, Signal};
use crate::cpuid::Cpuid;
use crate::host::HostMemory;
use crate::memory::GuestMemory;
use crate::msr::Msrs;
use crate::nested::{Access, EntryFormat, NestedTables};
use crate::vcpu::{Answer, Quick, QuickRegisters, Vcpu};
use crate::vm::{Counters, Vm};

/// The part of a VM that the short way may touch, and what it left to do.
#[derive(Debug)]
pub struct Shortcut<'a, C, F, H> {
    chipset: &'a mut C,
    cpuid: &'a Cpuid,
    msrs: &'a mut Msrs,
    counters: &'a mut Counters,
    memory: &'a mut GuestMemory,
    tables: &'a mut NestedTables<F>,
    host: &'a mut H,
    /// The machine's TSC when the VM started.
    started: Tsc,
    /// What the run loop went by: when a timer is due, and whether an interrupt waits.
    deadline: Option<Tsc>,
    pending: bool,
    /// What a device asked for.
    signal: Signal,
    /// An NMI waits.
    nmi: bool,
}

impl<'a, C: Chipset, F: EntryFormat, H: HostMemory> Shortcut<'a, C, F, H> {
    /// The virtual processor of `vm`, and beside it all that the short way may touch, from an entry on.
    pub fn split<V: Vcpu<Nested = F>>(vm: &'a mut Vm<V, C>, host: &'a mut H) -> (&'a mut V, Self) {
        let Vm { vcpu, chipset, cpuid, msrs, counters, memory, tables, started, .. } = vm;
        let (deadline, pending) = (chipset.next_deadline(), chipset.interrupt_pending());
        let started = *started;
        let (signal, nmi) = (Signal::None, false);
        let shortcut =
            Shortcut { chipset, cpuid, msrs, counters, memory, tables, host, started, deadline, pending, signal, nmi };
        (vcpu, shortcut)
    }

    /// What is left to do: a device's signal, and whether an NMI has come up.
    pub fn left(self) -> (Signal, bool) {
        (self.signal, self.nmi)
    }

    /// Whether what the run loop has prepared still holds after a device was reached.
    #[inline(always)]
    fn unchanged(&mut self) -> Answer {
        self.nmi |= self.chipset.take_nmi();
        let same = !self.nmi
            && self.chipset.next_deadline() == self.deadline
            && self.chipset.interrupt_pending() == self.pending
            && !self.chipset.has_output();
        if same { Answer::Done } else { Answer::Look }
    }
}

impl<C: Chipset, F: EntryFormat, H: HostMemory> Quick for Shortcut<'_, C, F, H> {
    #[inline(always)]
    fn cpuid<R: QuickRegisters>(&mut self, registers: &mut R) -> Answer {
        super::answer_cpuid(self.cpuid, registers);
        Answer::Done
    }

    #[inline(always)]
    fn hypercall<R: QuickRegisters>(&mut self, registers: &mut R) -> Answer {
        if registers.gprs().get(Gpr::Rax) == abi::NOP { Answer::Done } else { Answer::Refused }
    }

    #[inline(always)]
    fn rdmsr<R: QuickRegisters>(&mut self, registers: &mut R, at: Tsc) -> Answer {
        let index = registers.gprs().get32(Gpr::Rcx);
        let now = Tsc(at.since(self.started));
        let (value, changes) = match index {
            msr::IA32_APIC_BASE => (self.chipset.msr_read(now, index), false),
            msr::IA32_TSC_DEADLINE => (msrs::read_deadline(self.chipset, self.msrs.tsc_adjust, now), true),
            _ if msrs::is_apic(index) => (self.chipset.msr_read(now, index), true),
            // Registers of the vCPU's, which may exit or not.
            msr::IA32_TIME_STAMP_COUNTER | msr::IA32_EFER | msr::IA32_PAT => return Answer::Refused,
            _ => (self.msrs.read(index), false),
        };
        let Ok(value) = value else { return Answer::Refused };
        registers.gprs().set_edx_eax(value);
        // A timer that was read may have expired.
        if changes { self.unchanged() } else { Answer::Done }
    }

    #[inline(always)]
    fn wrmsr<R: QuickRegisters>(&mut self, registers: &mut R, at: Tsc) -> Answer {
        let gprs = registers.gprs();
        let (index, value) = (gprs.get32(Gpr::Rcx), gprs.edx_eax());
        let now = Tsc(at.since(self.started));
        let written = match index {
            // What is there already changes nothing; what does change is shown by CPUID too.
            msr::IA32_APIC_BASE if self.chipset.msr_read(now, index) == Ok(value) => return Answer::Done,
            msr::IA32_APIC_BASE => return Answer::Refused,
            msr::IA32_TSC_DEADLINE => msrs::write_deadline(self.chipset, self.msrs.tsc_adjust, now, value),
            _ if msrs::is_apic(index) => self.chipset.msr_write(now, index, value),
            // These move the TSC, or are the vCPU's.
            msr::IA32_TIME_STAMP_COUNTER | msr::IA32_TSC_ADJUST | msr::IA32_EFER | msr::IA32_PAT => {
                return Answer::Refused;
            }
            _ => self.msrs.write(index, value),
        };
        if written.is_ok() { self.unchanged() } else { Answer::Refused }
    }

    #[inline(always)]
    fn port_in<R: QuickRegisters>(&mut self, registers: &mut R, at: Tsc, port: u16, width: Width) -> Answer {
        let now = Tsc(at.since(self.started));
        if width == Width::B1
            && let Some(value) = self.chipset.port_peek(now, port)
        {
            io::finish_in(registers.gprs(), Width::B1, u64::from(value));
            return Answer::Done;
        }
        let mut data = [0; 8];
        self.chipset.port_read(now, port, &mut data[..width.bytes()]);
        io::finish_in(registers.gprs(), width, u64::from_le_bytes(data));
        self.unchanged()
    }

    #[inline(always)]
    fn port_out<R: QuickRegisters>(&mut self, registers: &mut R, at: Tsc, port: u16, width: Width) -> Answer {
        let now = Tsc(at.since(self.started));
        let data = registers.gprs().get(Gpr::Rax).to_le_bytes();
        self.signal = self.chipset.port_write(now, port, &data[..width.bytes()]);
        if self.signal == Signal::None { self.unchanged() } else { Answer::Look }
    }

    #[inline(always)]
    fn touch(&mut self, gpa: Gpa) -> Answer {
        let backed = self.memory.touch_page(self.host, gpa);
        let mapped = backed.is_some_and(|(page, frame)| self.tables.map_absent(self.host, page, frame, Access::RWX));
        if mapped { Answer::Again } else { Answer::Refused }
    }

    #[inline(always)]
    fn account(&mut self, kind: Kind, ticks: u64) {
        let counter = &mut self.counters.exits[kind as usize];
        counter.count += 1;
        counter.ticks += ticks;
    }
}
