//! The short way: exits that are answered from the general-purpose registers and the devices, while the vCPU stays on
//! the processor and nothing else of the VM is looked at.
//!
//! The vendor's `run` offers such an exit here before it decodes anything. What is answered is done for good: the
//! vendor moves RIP and enters the guest again. What is refused has changed nothing, and goes the long way through
//! `dispatch`, which also gives the guest its faults. A handler that changes what the run loop has prepared (a timer's
//! deadline, a waiting interrupt, bytes for the console) asks for a look: what that cannot settle is left to the loop.
//! No entry goes beyond the loop's limit, so the others have their turn whatever the guest does.
//!
//! What an exit costs here beside its instructions, under VMX: 5 VMREADs (reason, length, RIP, RFLAGS,
//! interruptibility; 6 with a port's qualification) and 2 VMWRITEs (RIP, timer). No MSR is touched. The first touch of a
//! page costs 4 VMREADs (reason, interrupted event, qualification, guest-physical address) and 1 VMWRITE (timer); a MOV to
//! or from a device 15 VMREADs and 3 VMWRITEs; an interrupt 2 VMREADs and 1 VMWRITE more.

use lamina_arch::addr::{Gla, Gpa, PAGE_4K};
use lamina_arch::exit::{Kind, Width};
use lamina_arch::hypercall as abi;
use lamina_arch::msr;
use lamina_arch::regs::Gpr;
use lamina_arch::time::Tsc;

use super::mov::{Mov, What};
use super::{LastMov, io, msr as msrs};
use crate::chipset::{Attention, Chipset, Signal};
use crate::cpuid::Cpuid;
use crate::fault::{self, Site};
use crate::host::{Host, HostMemory};
use crate::layout;
use crate::memory::GuestMemory;
use crate::msr::Msrs;
use crate::nested::{Access, EntryFormat, NestedTables};
use crate::vcpu::{Answer, Next, Quick, QuickRegisters, Vcpu};
use crate::vm::{Counters, Vm};

/// A timer that was due is not looked at again for this long: one that is faster than it can be served would leave the
/// guest no time for a single instruction. Unit: nanoseconds.
pub const TIMER_REST_NS: u64 = 20_000;

/// The part of a VM that the short way may touch, and what it left to do.
#[derive(Debug)]
pub struct Shortcut<'a, C, F, H> {
    chipset: &'a mut C,
    cpuid: &'a Cpuid,
    msrs: &'a mut Msrs,
    counters: &'a mut Counters,
    memory: &'a mut GuestMemory,
    tables: &'a mut NestedTables<F>,
    last_mov: &'a mut LastMov,
    host: &'a mut H,
    /// An interrupt window is asked for.
    window: &'a mut bool,
    /// The machine's TSC when the VM started.
    started: Tsc,
    /// When the run loop is to look again.
    limit: Tsc,
    /// [`TIMER_REST_NS`]. Unit: ticks.
    timer_rest: u64,
    /// What was gone by before the entry: when a timer is due, and what was left to do.
    deadline: Option<Tsc>,
    attention: Attention,
    /// What a device asked for.
    signal: Signal,
    /// An NMI waits.
    nmi: bool,
    /// The guest gives the rest of its slice away.
    yields: bool,
}

/// What the short way has left to do.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// What a device asked for.
    pub signal: Signal,
    /// Whether an NMI waits.
    pub nmi: bool,
    /// Whether the guest gives the rest of its slice away.
    pub yields: bool,
}

impl<'a, C: Chipset, F: EntryFormat, H: HostMemory> Shortcut<'a, C, F, H> {
    /// The virtual processor of `vm`, and beside it all that the short way may touch, from an entry on and until `limit`.
    pub fn split<V: Vcpu<Nested = F>>(vm: &'a mut Vm<V, C>, host: &'a mut H, limit: Tsc) -> (&'a mut V, Self)
    where
        H: Host,
    {
        let Vm { vcpu, chipset, cpuid, msrs, counters, memory, tables, last_mov, started, .. } = vm;
        let (window, nmi) = (&mut vm.interrupt_window, vm.nmi_waits);
        let (deadline, attention) = (chipset.next_deadline(), chipset.attention());
        let (started, signal, timer_rest) = (*started, Signal::None, vm.timer_rest);
        let shortcut = Shortcut {
            chipset,
            cpuid,
            msrs,
            counters,
            memory,
            tables,
            last_mov,
            host,
            window,
            started,
            limit,
            timer_rest,
            deadline,
            attention,
            signal,
            nmi,
            yields: false,
        };
        (vcpu, shortcut)
    }

    /// What is left to do.
    pub fn left(self) -> Left {
        Left { signal: self.signal, nmi: self.nmi, yields: self.yields }
    }

    /// Whether what the run loop has prepared still holds after a device was reached.
    #[inline(always)]
    fn unchanged(&mut self) -> Answer {
        self.nmi |= self.chipset.take_nmi();
        let same = !self.nmi
            && self.chipset.next_deadline() == self.deadline
            && self.chipset.attention() == self.attention
            && !self.chipset.has_output();
        if same { Answer::Done } else { Answer::Look }
    }

    /// The MOV at RIP, where it is one of those that [`mov::decode`] knows and goes to `linear`.
    #[inline(always)]
    fn mov_to<R: QuickRegisters>(&mut self, registers: &mut R, linear: Gla) -> Option<Mov> {
        let (rip, paging, cpl) = registers.code(self.cpuid.physical_bits())?;
        let mov = self.last_mov.find(self.memory, self.host, rip, &paging, cpl)?;
        (mov.address(|register| read_gpr(registers, register)) == linear.0).then_some(mov)
    }
}

#[inline(always)]
fn read_gpr<R: QuickRegisters>(registers: &mut R, register: Gpr) -> u64 {
    if register == Gpr::Rsp { registers.rsp() } else { registers.gprs().get(register) }
}

impl<C: Chipset, F: EntryFormat, H: HostMemory> Quick for Shortcut<'_, C, F, H> {
    #[inline(always)]
    fn cpuid<R: QuickRegisters>(&mut self, registers: &mut R) -> Answer {
        fault::point(Site::Cpuid);
        super::answer_cpuid(self.cpuid, registers);
        Answer::Done
    }

    #[inline(always)]
    fn hypercall<R: QuickRegisters>(&mut self, registers: &mut R) -> Answer {
        fault::point(Site::Hypercall);
        match registers.gprs().get(Gpr::Rax) {
            abi::NOP => Answer::Done,
            abi::YIELD if registers.cpl_of_64_bit_code() == Some(0) => {
                registers.gprs().set(Gpr::Rax, 0);
                self.yields = true;
                Answer::Look
            }
            _ => Answer::Refused,
        }
    }

    #[inline(always)]
    fn rdmsr<R: QuickRegisters>(&mut self, registers: &mut R, at: Tsc) -> Answer {
        fault::point(Site::Rdmsr);
        let index = registers.gprs().get32(Gpr::Rcx);
        let now = Tsc(at.since(self.started));
        let (value, changes) = match index {
            msr::IA32_APIC_BASE => (self.chipset.msr_read(now, index).ok(), false),
            msr::IA32_TSC_DEADLINE => (msrs::read_deadline(self.chipset, self.msrs.tsc_adjust, now).ok(), true),
            _ if msrs::is_apic(index) => (self.chipset.msr_read(now, index).ok(), true),
            // Registers of the vCPU's, which may exit or not.
            msr::IA32_TIME_STAMP_COUNTER | msr::IA32_EFER | msr::IA32_PAT => return Answer::Refused,
            _ => (self.msrs.get(index), false),
        };
        let Some(value) = value else { return Answer::Refused };
        registers.gprs().set_edx_eax(value);
        // A timer that was read may have expired.
        if changes { self.unchanged() } else { Answer::Done }
    }

    #[inline(always)]
    fn wrmsr<R: QuickRegisters>(&mut self, registers: &mut R, at: Tsc) -> Answer {
        fault::point(Site::Wrmsr);
        let gprs = registers.gprs();
        let (index, value) = (gprs.get32(Gpr::Rcx), gprs.edx_eax());
        let now = Tsc(at.since(self.started));
        // The two first that are written most.
        let written = match index {
            msr::IA32_TSC_DEADLINE => msrs::write_deadline(self.chipset, self.msrs.tsc_adjust, now, value),
            _ if msrs::is_x2apic(index) => self.chipset.msr_write(now, index, value),
            // What is there already changes nothing; what does change is shown by CPUID too.
            msr::IA32_APIC_BASE if self.chipset.msr_read(now, index).is_ok_and(|old| old == value) => {
                return Answer::Done;
            }
            msr::IA32_APIC_BASE => return Answer::Refused,
            msr::IA32_MISC_ENABLE if self.msrs.get(index) != Some(value) => return Answer::Refused,
            // These move the TSC, or are the vCPU's.
            msr::IA32_TIME_STAMP_COUNTER
            | msr::IA32_TSC_ADJUST
            | msr::IA32_EFER
            | msr::IA32_PAT
            | msr::IA32_SPEC_CTRL
            | msr::IA32_PRED_CMD => return Answer::Refused,
            _ => self.msrs.write(index, value),
        };
        if written.is_ok() { self.unchanged() } else { Answer::Refused }
    }

    #[inline(always)]
    fn port_in<R: QuickRegisters>(&mut self, registers: &mut R, at: Tsc, port: u16, width: Width) -> Answer {
        fault::point(Site::PortIn);
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
        fault::point(Site::PortOut);
        let now = Tsc(at.since(self.started));
        let data = registers.gprs().get(Gpr::Rax).to_le_bytes();
        self.signal = self.chipset.port_write(now, port, &data[..width.bytes()]);
        if self.signal == Signal::None { self.unchanged() } else { Answer::Look }
    }

    #[inline(always)]
    fn touch(&mut self, gpa: Gpa) -> Answer {
        fault::point(Site::Touch);
        let backed = self.memory.touch_page(self.host, gpa);
        let mapped = backed.is_some_and(|(page, frame)| self.tables.map_absent(self.host, page, frame, Access::RWX));
        if mapped { Answer::Again } else { Answer::Refused }
    }

    /// In the video window and below 4 GiB a PC has no memory but a bus, whatever the VM started in.
    #[inline(always)]
    fn is_device(&self, gpa: Gpa) -> bool {
        gpa.0.wrapping_sub(layout::PCI_HOLE.0) < layout::ABOVE_4G.0 - layout::PCI_HOLE.0
            || gpa.0.wrapping_sub(layout::VGA_WINDOW.0) < layout::VGA_WINDOW_SIZE
    }

    /// Finishes a MOV of an aligned doubleword in 64-bit code that goes where the processor was going, which is no
    /// memory: the common access to a device, without the general decoder. The processor has checked the access itself.
    #[inline(always)]
    fn device<R: QuickRegisters>(
        &mut self,
        registers: &mut R,
        at: Tsc,
        gpa: Gpa,
        linear: Gla,
        write: bool,
    ) -> (Answer, u8) {
        const WIDTH: usize = 4;
        const REFUSED: (Answer, u8) = (Answer::Refused, 0);
        if !linear.0.is_multiple_of(WIDTH as u64) || linear.offset_in(PAGE_4K) != gpa.offset_in(PAGE_4K) {
            return REFUSED;
        }
        let Some(mov) = self.mov_to(registers, linear) else { return REFUSED };
        let now = Tsc(at.since(self.started));
        let value = match mov.what {
            What::Load(Gpr::Rsp) => return REFUSED,
            What::Load(into) => {
                let mut data = [0xff; WIDTH];
                let _claimed = self.chipset.mmio_read(now, gpa, &mut data);
                registers.gprs().set(into, u32::from_le_bytes(data).into());
                return (self.unchanged(), mov.length);
            }
            What::Store(from) => (read_gpr(registers, from) & 0xffff_ffff) as u32,
            What::Constant(value) => value,
        };
        if !write {
            return REFUSED;
        }
        let _claimed = self.chipset.mmio_write(now, gpa, &value.to_le_bytes());
        (self.unchanged(), mov.length)
    }

    #[inline(always)]
    fn window(&mut self) -> Answer {
        *self.window = false;
        Answer::LookHere
    }

    fn look<R: QuickRegisters>(&mut self, registers: &mut R, now: Tsc) -> Option<Next> {
        fault::point(Site::Look);
        if self.yields {
            return None;
        }
        let mut soonest = now;
        let at = Tsc(now.since(self.started));
        if self.chipset.next_deadline().is_some_and(|timer| timer <= at) {
            self.chipset.advance(at);
            soonest = now + self.timer_rest;
        }
        self.nmi |= self.chipset.take_nmi();
        if now >= self.limit || self.nmi || self.signal != Signal::None || self.chipset.has_output() {
            return None;
        }
        let attention = self.chipset.attention();
        if attention.contains(Attention::APIC) {
            return None;
        }
        let mut interrupt = None;
        if attention.contains(Attention::INTERRUPT) && !*self.window && registers.can_take_interrupt() {
            interrupt = self.chipset.acknowledge();
            self.counters.interrupts += u64::from(interrupt.is_some());
        }
        (self.deadline, self.attention) = (self.chipset.next_deadline(), self.chipset.attention());
        let window = self.attention.contains(Attention::INTERRUPT);
        *self.window = window;
        let timer = self.deadline.map_or(Tsc(u64::MAX), |timer| (self.started + timer.0).max(soonest));
        Some(Next { deadline: self.limit.min(timer), interrupt, window })
    }

    #[inline(always)]
    fn account(&mut self, kind: Kind, ticks: u64) {
        let counter = &mut self.counters.exits[kind as usize];
        counter.count += 1;
        counter.ticks += ticks;
    }
}
