//! The virtual processor: `lamina_vmm::vcpu::Vcpu` over one VMCS.
//!
//! Owns what belongs to one vCPU: its VMCS, registers, extended state and the MSRs and debug registers that move only
//! when another vCPU comes in.

mod run;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use lamina_arch::addr::Hpa;
use lamina_arch::cr::{Cr0, Cr4, Efer, Rflags};
use lamina_arch::event::{Event, EventKind, Interruptibility};
use lamina_arch::hypercall;
use lamina_arch::instruction::Instructions;
use lamina_arch::msr;
use lamina_arch::regs::{ExtendedRegister, Gprs, SysReg};
use lamina_arch::segment::{AccessRights, Segment, SegmentName};
use lamina_arch::speculation::Acts;
use lamina_arch::time::Tsc;
use lamina_arch::vmx::controls::{EntryControls, EptVpidCapabilities, ProcessorBased, Secondary};
use lamina_arch::vmx::exit::{Captured, interrupted_event};
use lamina_arch::vmx::field;
use lamina_arch::watchpoints::Watchpoints;
use lamina_vmm::apic::{ApicMode, ApicPage};
use lamina_vmm::frames::FrameSize;
use lamina_vmm::nested::ept::Ept;
use lamina_vmm::vcpu::{EntryFailure, Quick, Ran, UnknownLength, Vcpu};

use super::apic::VirtualApic;
use super::cache::{Cache, Slot};
use super::enable::Shared;
use super::entry::Frame;
use super::explain::explain;
use super::setup::{CR0_FORCED, CR0_OWNED, CR4_FORCED, setup};
use super::switched::Switched;
use super::vmcs::{Current, Vmcs, invalidate_ept, invalidate_vpid};
use crate::percpu;
use crate::speculation;
use crate::xstate::ExtendedState;

/// EPT pointer: tables of four levels (bits 5:3), write-back (bits 2:0).
const EPT_POINTER_FLAGS: u64 = 3 << 3 | 6;

/// Interruptibility state: blocking by STI.
pub(super) const BLOCKING_BY_STI: u32 = 1;
/// Interruptibility state: blocking by MOV SS.
pub(super) const BLOCKING_BY_MOV_SS: u32 = 1 << 1;
/// Interruptibility state: blocking by NMI.
const BLOCKING_BY_NMI: u32 = 1 << 3;

/// Pending debug exceptions: a single step.
const SINGLE_STEP: u64 = 1 << 14;

/// In the pending debug exceptions: breakpoints of bits 3:0 were enabled (SDM vol. 3, "Guest Non-Register State").
const ENABLED_BREAKPOINT: u64 = 1 << 12;
/// DR7 with no breakpoint enabled: as after reset.
const DR7_RESET: u64 = 0x400;

/// One virtual processor under VMX.
pub struct VmxVcpu {
    /// Boxed: its address is on the stack while the guest runs.
    frame: Box<Frame>,
    vmcs: Vmcs,
    cache: Cache,
    captured: Captured,
    /// To be injected at the next entry.
    event: Option<Event>,
    /// An instruction was stepped over with RFLAGS.TF set: its trap is pending, and goes before any interrupt.
    trap_pending: bool,
    /// MOV of a debug register does not exit: the guest may have breakpoints enabled.
    watched: bool,
    /// Processor-based controls as the VMCS has them.
    processor_controls: u32,
    /// Secondary controls, without those of the local APIC.
    secondary_controls: u32,
    extended: ExtendedState,
    switched: Switched,
    ept_pointer: u64,
    apic: Option<VirtualApic>,
    vpid: u16,
    loaded: bool,
    shared: &'static Shared,
}

impl VmxVcpu {
    /// A virtual processor as after reset, for the guest with the identifier `vm`.
    pub fn new(shared: &'static Shared, vm: u16) -> VmxVcpu {
        let mut vmcs = Vmcs::new(shared.capabilities.revision());
        let frame = Box::new(Frame::new(&shared.plan));
        setup(&mut vmcs.current(), shared, vm, &frame);
        invalidate_vpid(vm);
        VmxVcpu {
            frame,
            vmcs,
            cache: Cache::default(),
            captured: Captured::default(),
            event: None,
            trap_pending: false,
            watched: false,
            processor_controls: shared.controls.processor,
            secondary_controls: shared.controls.secondary,
            extended: ExtendedState::new(),
            switched: Switched::new(shared.controls.secondary & Secondary::ENABLE_RDTSCP.bits() != 0),
            ept_pointer: 0,
            apic: None,
            vpid: vm,
            loaded: false,
            shared,
        }
    }

    fn slot(&mut self, slot: Slot) -> u64 {
        self.cache.read(slot, &self.vmcs.current())
    }

    /// MOV of a debug register exits again.
    #[cold]
    fn unwatch(&mut self) {
        self.watched = false;
        self.set_control(ProcessorBased::MOV_DR_EXITING, true);
    }

    /// The breakpoints, of a guest that may have enabled some; where it has not, it is not watched until it touches a debug
    /// register again. VMREADs: two.
    #[cold]
    fn enabled_watchpoints(&mut self) -> Option<Watchpoints> {
        let dr7 = self.vmcs.current().read(field::GUEST_DR7);
        let ports = self.read(SysReg::Cr4) & Cr4::DE.bits() != 0;
        let watchpoints = Watchpoints::new(|| self.switched.breakpoints(), dr7, || ports);
        if watchpoints.is_none() {
            self.unwatch();
        }
        watchpoints
    }

    fn set_control(&mut self, control: ProcessorBased, on: bool) {
        set_control(&mut self.vmcs.current(), &mut self.processor_controls, control, on);
    }

    fn failure(&mut self, error: String) -> EntryFailure {
        explain(&self.vmcs.current(), &self.shared.capabilities, error)
    }

    /// RIP after an instruction of `length` bytes; ends the one-instruction shadow. VMREADs: RIP, interruptibility.
    fn step(&mut self, length: u64) {
        let old = self.slot(Slot::Rip);
        let mut rip = old.wrapping_add(length);
        // Only a crossing of a 4 GiB border can need the width of the instruction pointer.
        if (rip ^ old) >> 32 != 0 {
            let long =
                self.read(SysReg::Efer) & Efer::LMA.bits() != 0 && self.segment(SegmentName::Cs).rights.is_long();
            if !long {
                rip &= 0xffff_ffff;
            }
        }
        self.cache.write(Slot::Rip, rip);
        let flags = self.slot(Slot::Rflags);
        let mut vmcs = self.vmcs.current();
        if flags & (Rflags::TF | Rflags::RF).bits() != 0 {
            // What the processor does behind an instruction: RF is over, and a single step traps.
            self.cache.write(Slot::Rflags, flags & !Rflags::RF.bits());
            if flags & Rflags::TF.bits() != 0 {
                let pending = vmcs.read(field::GUEST_PENDING_DEBUG);
                vmcs.write(field::GUEST_PENDING_DEBUG, pending | SINGLE_STEP);
                self.trap_pending = true;
            }
        }
        let state = vmcs.read(field::GUEST_INTERRUPTIBILITY);
        if state & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS) != 0 {
            vmcs.write(field::GUEST_INTERRUPTIBILITY, state & !(BLOCKING_BY_STI | BLOCKING_BY_MOV_SS));
        }
    }
}

/// Turns a control on or off. VMWRITEs: one where it changes.
fn set_control(vmcs: &mut Current<'_>, controls: &mut u32, control: ProcessorBased, on: bool) {
    let new = if on { *controls | control.bits() } else { *controls & !control.bits() };
    if new != *controls {
        *controls = new;
        vmcs.write(field::PROCESSOR_BASED_CONTROLS, new);
    }
}

impl Vcpu for VmxVcpu {
    type Nested = Ept;

    const HYPERCALL_INSTRUCTION: u32 = hypercall::INSTRUCTION_VMCALL;
    const PDPTE_REGISTERS: bool = true;

    fn nested_format(&self) -> Ept {
        let capabilities = self.shared.capabilities.ept_vpid();
        let largest = if self.shared.plan.does(Acts::SMALL_PAGES) {
            FrameSize::Size4K
        } else if capabilities.contains(EptVpidCapabilities::PAGE_1G) {
            FrameSize::Size1G
        } else if capabilities.contains(EptVpidCapabilities::PAGE_2M) {
            FrameSize::Size2M
        } else {
            FrameSize::Size4K
        };
        Ept { execute_only: false, largest }
    }

    fn run<Q: Quick>(&mut self, deadline: Tsc, quick: &mut Q) -> Result<Ran, EntryFailure> {
        self.enter(deadline, quick)
    }

    fn holds_wide_addresses(&self) -> bool {
        self.shared.wide_addresses
    }

    fn has_tsc_aux(&self) -> bool {
        self.switched.has_tsc_aux()
    }

    fn gprs(&mut self) -> &mut Gprs {
        &mut self.frame.gprs
    }

    fn read(&mut self, register: SysReg) -> u64 {
        match register {
            SysReg::Rip => self.slot(Slot::Rip),
            SysReg::Rsp => self.slot(Slot::Rsp),
            SysReg::Rflags => self.slot(Slot::Rflags),
            SysReg::Cr0 => {
                let owned = CR0_OWNED.bits();
                self.slot(Slot::Cr0) & !owned | self.slot(Slot::Cr0Shadow) & owned
            }
            SysReg::Cr2 => self.switched.cr2(),
            SysReg::Cr3 => self.slot(Slot::Cr3),
            SysReg::Dr6 => self.switched.dr6(),
            SysReg::Cr4 => {
                let forced = CR4_FORCED.bits();
                self.slot(Slot::Cr4) & !forced | self.slot(Slot::Cr4Shadow) & forced
            }
            SysReg::Star => self.switched.msr(msr::IA32_STAR),
            SysReg::Lstar => self.switched.msr(msr::IA32_LSTAR),
            SysReg::Cstar => self.switched.msr(msr::IA32_CSTAR),
            SysReg::Fmask => self.switched.msr(msr::IA32_FMASK),
            SysReg::KernelGsBase => self.switched.msr(msr::IA32_KERNEL_GS_BASE),
            SysReg::TscAux => self.switched.msr(msr::IA32_TSC_AUX),
            SysReg::Xcr0 => self.extended.xcr0(),
            _ => {
                let vmcs = self.vmcs.current();
                match register {
                    SysReg::Dr7 => vmcs.read(field::GUEST_DR7),
                    SysReg::Efer => vmcs.read(field::GUEST_EFER),
                    SysReg::Pat => vmcs.read(field::GUEST_PAT),
                    SysReg::FsBase => vmcs.read(field::GUEST_FS_BASE),
                    SysReg::GsBase => vmcs.read(field::GUEST_GS_BASE),
                    SysReg::SysenterCs => vmcs.read(field::GUEST_SYSENTER_CS).into(),
                    SysReg::SysenterEsp => vmcs.read(field::GUEST_SYSENTER_ESP),
                    SysReg::SysenterEip => vmcs.read(field::GUEST_SYSENTER_EIP),
                    SysReg::GdtBase => vmcs.read(field::GUEST_GDTR_BASE),
                    SysReg::GdtLimit => vmcs.read(field::GUEST_GDTR_LIMIT).into(),
                    SysReg::IdtBase => vmcs.read(field::GUEST_IDTR_BASE),
                    _ => vmcs.read(field::GUEST_IDTR_LIMIT).into(),
                }
            }
        }
    }

    fn write(&mut self, register: SysReg, value: u64) {
        let low = (value & 0xffff_ffff) as u32;
        match register {
            SysReg::Rip => self.cache.write(Slot::Rip, value),
            SysReg::Rsp => self.cache.write(Slot::Rsp, value),
            SysReg::Rflags => self.cache.write(Slot::Rflags, value | Rflags::FIXED.bits()),
            SysReg::Cr0 => {
                let real = (Cr0::from_bits_retain(value) - CR0_OWNED) | CR0_FORCED;
                self.cache.write(Slot::Cr0, real.bits());
                self.cache.write(Slot::Cr0Shadow, value);
            }
            SysReg::Cr2 => self.switched.set_cr2(value),
            SysReg::Cr3 => self.cache.write(Slot::Cr3, value),
            SysReg::Dr6 => self.switched.set_dr6(value),
            SysReg::Cr4 => {
                self.cache.write(Slot::Cr4, value | CR4_FORCED.bits());
                self.cache.write(Slot::Cr4Shadow, value);
            }
            SysReg::Star => self.switched.set_msr(msr::IA32_STAR, value),
            SysReg::Lstar => self.switched.set_msr(msr::IA32_LSTAR, value),
            SysReg::Cstar => self.switched.set_msr(msr::IA32_CSTAR, value),
            SysReg::Fmask => self.switched.set_msr(msr::IA32_FMASK, value),
            SysReg::KernelGsBase => self.switched.set_msr(msr::IA32_KERNEL_GS_BASE, value),
            SysReg::TscAux => self.switched.set_msr(msr::IA32_TSC_AUX, value),
            SysReg::Xcr0 => self.extended.set_xcr0(value),
            _ => {
                let mut vmcs = self.vmcs.current();
                match register {
                    SysReg::Dr7 => vmcs.write(field::GUEST_DR7, value),
                    SysReg::Efer => {
                        vmcs.write(field::GUEST_EFER, value);
                        let mut entry = vmcs.read(field::ENTRY_CONTROLS) & !EntryControls::IA32E_MODE_GUEST.bits();
                        if value & Efer::LMA.bits() != 0 {
                            entry |= EntryControls::IA32E_MODE_GUEST.bits();
                        }
                        vmcs.write(field::ENTRY_CONTROLS, entry);
                    }
                    SysReg::Pat => vmcs.write(field::GUEST_PAT, value),
                    SysReg::FsBase => vmcs.write(field::GUEST_FS_BASE, value),
                    SysReg::GsBase => vmcs.write(field::GUEST_GS_BASE, value),
                    SysReg::SysenterCs => vmcs.write(field::GUEST_SYSENTER_CS, low),
                    SysReg::SysenterEsp => vmcs.write(field::GUEST_SYSENTER_ESP, value),
                    SysReg::SysenterEip => vmcs.write(field::GUEST_SYSENTER_EIP, value),
                    SysReg::GdtBase => vmcs.write(field::GUEST_GDTR_BASE, value),
                    SysReg::GdtLimit => vmcs.write(field::GUEST_GDTR_LIMIT, low),
                    SysReg::IdtBase => vmcs.write(field::GUEST_IDTR_BASE, value),
                    _ => vmcs.write(field::GUEST_IDTR_LIMIT, low),
                }
            }
        }
    }

    fn segment(&mut self, name: SegmentName) -> Segment {
        let vmcs = self.vmcs.current();
        let (selector, base, limit, rights) = field::segment(name);
        Segment {
            selector: vmcs.read(selector),
            base: vmcs.read(base),
            limit: vmcs.read(limit),
            rights: AccessRights(vmcs.read(rights)),
        }
    }

    fn set_segment(&mut self, name: SegmentName, segment: Segment) {
        let mut vmcs = self.vmcs.current();
        let (selector, base, limit, rights) = field::segment(name);
        vmcs.write(selector, segment.selector);
        vmcs.write(base, segment.base);
        vmcs.write(limit, segment.limit);
        vmcs.write(rights, segment.rights.0);
    }

    fn extended(&mut self, register: ExtendedRegister, value: &mut [u8]) {
        self.extended.read(register, value);
    }

    fn set_extended(&mut self, register: ExtendedRegister, value: &[u8]) {
        self.extended.write(register, value);
    }

    fn advance(&mut self) -> Result<(), UnknownLength> {
        let length = self.vmcs.current().read(field::EXIT_INSTRUCTION_LENGTH);
        self.step(u64::from(length));
        Ok(())
    }

    fn advance_by(&mut self, length: u8) {
        self.step(u64::from(length));
    }

    fn begin_shadow(&mut self) {
        let mut vmcs = self.vmcs.current();
        let state = vmcs.read(field::GUEST_INTERRUPTIBILITY);
        vmcs.write(field::GUEST_INTERRUPTIBILITY, state & !BLOCKING_BY_STI | BLOCKING_BY_MOV_SS);
    }

    fn end_shadow(&mut self) {
        let mut vmcs = self.vmcs.current();
        let state = vmcs.read(field::GUEST_INTERRUPTIBILITY);
        vmcs.write(field::GUEST_INTERRUPTIBILITY, state & !(BLOCKING_BY_STI | BLOCKING_BY_MOV_SS));
    }

    fn set_nmi_blocked(&mut self, blocked: bool) {
        let mut vmcs = self.vmcs.current();
        let state = vmcs.read(field::GUEST_INTERRUPTIBILITY);
        let state = if blocked { state | BLOCKING_BY_NMI } else { state & !BLOCKING_BY_NMI };
        vmcs.write(field::GUEST_INTERRUPTIBILITY, state);
    }

    fn interruptibility(&mut self) -> Interruptibility {
        let flags = self.slot(Slot::Rflags);
        let state = self.vmcs.current().read(field::GUEST_INTERRUPTIBILITY);
        Interruptibility {
            interrupts_enabled: flags & Rflags::IF.bits() != 0,
            shadow: state & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS) != 0,
            nmi_blocked: state & BLOCKING_BY_NMI != 0,
            event_pending: self.event.is_some() || self.trap_pending,
        }
    }

    fn inject(&mut self, event: Event) {
        // The delivery of an exception ends the one-instruction shadow, and VM entry refuses a shadow with RFLAGS.TF set
        // and no single-step pending; an NMI is injected only where none is blocked, or again after its own delivery
        // was cut short (SDM vol. 3, "Checks on Guest Non-Register State").
        let ends = match event.kind {
            EventKind::External => 0,
            EventKind::Nmi => BLOCKING_BY_NMI,
            _ => BLOCKING_BY_STI | BLOCKING_BY_MOV_SS,
        };
        if ends != 0 {
            let mut vmcs = self.vmcs.current();
            let state = vmcs.read(field::GUEST_INTERRUPTIBILITY);
            if state & ends != 0 {
                vmcs.write(field::GUEST_INTERRUPTIBILITY, state & !ends);
            }
        }
        self.event = Some(event);
    }

    fn interrupted_event(&mut self) -> Option<Event> {
        interrupted_event(&self.captured)
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.set_control(ProcessorBased::INTERRUPT_WINDOW_EXITING, wanted);
    }

    fn request_nmi_window(&mut self, wanted: bool) {
        self.set_control(ProcessorBased::NMI_WINDOW_EXITING, wanted);
    }

    fn set_nested_root(&mut self, root: Hpa) {
        self.ept_pointer = root.0 | EPT_POINTER_FLAGS;
        self.vmcs.current().write(field::EPT_POINTER, self.ept_pointer);
        // An earlier guest may have had its tables at the same address.
        invalidate_ept(self.ept_pointer);
    }

    fn invalidate_nested(&mut self) {
        if self.ept_pointer != 0 {
            invalidate_ept(self.ept_pointer);
        }
    }

    fn invalidate_linear(&mut self) {
        invalidate_vpid(self.vpid);
    }

    fn allow_cr4(&mut self, bits: Cr4) {
        self.vmcs.current().write(field::CR4_GUEST_HOST_MASK, !(bits - CR4_FORCED).bits());
    }

    fn hide(&mut self, instructions: Instructions) {
        let allowed = self.shared.capabilities.allowed_secondary();
        let mut controls = Secondary::from_bits_retain(self.secondary_controls);
        controls.set(Secondary::RDRAND_EXITING, instructions.contains(Instructions::RDRAND));
        controls.set(Secondary::RDSEED_EXITING, instructions.contains(Instructions::RDSEED));
        if instructions.contains(Instructions::INVPCID) {
            controls.remove(Secondary::ENABLE_INVPCID);
        }
        self.secondary_controls = (controls & allowed).bits();
        self.vmcs.current().write(field::SECONDARY_CONTROLS, self.secondary_controls);
    }

    fn set_speculation_control(&mut self, value: u64) {
        self.frame.defences.set_control(value, self.loaded);
    }

    fn prediction_barrier(&mut self) {
        speculation::barrier();
    }

    fn watchpoints(&mut self) -> Option<Watchpoints> {
        if self.watched { self.enabled_watchpoints() } else { None }
    }

    fn meet(&mut self, breakpoints: u64) {
        let mut vmcs = self.vmcs.current();
        let pending = vmcs.read(field::GUEST_PENDING_DEBUG);
        vmcs.write(field::GUEST_PENDING_DEBUG, pending | breakpoints | ENABLED_BREAKPOINT);
        self.trap_pending = true;
    }

    fn set_pdptes(&mut self, entries: [u64; 4]) {
        let mut vmcs = self.vmcs.current();
        let fields = [field::GUEST_PDPTE0, field::GUEST_PDPTE1, field::GUEST_PDPTE2, field::GUEST_PDPTE3];
        for (field, entry) in fields.into_iter().zip(entries) {
            vmcs.write(field, entry);
        }
    }

    fn virtualizes_apic(&self) -> bool {
        self.shared.capabilities.virtualizes_apic()
    }

    fn virtualize_apic(&mut self, registers: Arc<ApicPage>, access: Hpa) {
        self.apic = Some(VirtualApic::new(&mut self.vmcs.current(), registers, access));
    }

    fn apic_changed(&mut self, mode: ApicMode) {
        let Some(apic) = &mut self.apic else { return };
        let mut vmcs = self.vmcs.current();
        let secondary = self.secondary_controls;
        if apic.set_mode(&mut vmcs, self.shared, mode, &mut self.processor_controls, secondary) {
            // Translations do not tell whether accesses to the page were virtualized.
            invalidate_ept(self.ept_pointer);
            invalidate_vpid(self.vpid);
        }
        apic.look(&mut vmcs);
    }

    fn set_tsc_offset(&mut self, offset: i64) {
        self.vmcs.current().write(field::TSC_OFFSET, offset.cast_unsigned());
    }

    fn load(&mut self) {
        if self.loaded {
            return;
        }
        self.extended.load();
        self.switched.load();
        let current = &percpu::current().current_vm;
        self.frame.defences.load(|| current.load(Ordering::Relaxed) != self.vpid);
        current.store(self.vpid, Ordering::Relaxed);
        self.loaded = true;
    }

    fn unload(&mut self) {
        if !self.loaded {
            return;
        }
        self.loaded = false;
        self.extended.save();
        self.switched.unload();
        if self.switched.has_idle_breakpoints() && self.vmcs.current().read(field::GUEST_DR7) == DR7_RESET {
            self.switched.leave_breakpoints();
            self.unwatch();
        }
        self.frame.defences.unload();
    }
}
