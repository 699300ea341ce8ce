//! The virtual processor: `lamina_vmm::vcpu::Vcpu` over one VMCB.
//!
//! Owns what belongs to one vCPU: its VMCB, registers, extended state and what moves only when another vCPU comes in.

use alloc::boxed::Box;
use core::sync::atomic::Ordering;

use lamina_arch::addr::Hpa;
use lamina_arch::cr::{Cr4, Efer, Rflags};
use lamina_arch::event::{Event, EventKind, Interruptibility};
use lamina_arch::exit::{Exit, Kind, TaskSource};
use lamina_arch::hypercall;
use lamina_arch::instruction::Instructions;
use lamina_arch::regs::{ExtendedRegister, Gpr, Gprs, SysReg};
use lamina_arch::segment::{AccessRights, Segment, SegmentName};
use lamina_arch::svm::exit::{Captured, decode, interrupted_event};
use lamina_arch::svm::features::Features;
use lamina_arch::svm::intercept::Third;
use lamina_arch::svm::segment::{attributes, rights};
use lamina_arch::svm::vmcb::{self, Field, ReadWrite, tlb_control};
use lamina_arch::time::Tsc;
use lamina_arch::watchpoints::Watchpoints;
use lamina_vmm::nested::npt::Npt;
use lamina_vmm::vcpu::{Answer, EntryFailure, Quick, Ran, UnknownLength, Vcpu};

use super::asid::Asid;
use super::capture::capture;
use super::enable::Shared;
use super::entry::{Frame, enter};
use super::explain::explain;
use super::quick::{InGuest, next_rip, offer, step};
use super::read_shadow::ReadShadow;
use super::resume::{Entry, resume, undelivered};
use super::setup::{EFER_FORCED, setup};
use super::step::{Follows, Stepper, behind_instruction, met};
use super::switched::{read_debug, write_debug, write_tsc_aux};
use super::vmcb::VmcbPage;
use crate::xstate::{self, ExtendedState};
use crate::{apic, percpu, speculation, timer, watchdog};

/// DPL in a segment's rights, bits 6:5.
const DPL: u32 = 3 << 5;

/// One virtual processor under SVM.
pub struct SvmVcpu {
    /// Boxed: its address is on the stack while the guest runs.
    frame: Box<Frame>,
    vmcb: VmcbPage,
    read_shadow: ReadShadow,
    captured: Captured,
    /// To be injected at the next entry.
    event: Option<Event>,
    /// The interrupt that the last exit came before, where VMRUN was to deliver it.
    undelivered: Option<Event>,
    stepper: Stepper,
    interrupt_window: bool,
    nmi_window: bool,
    /// The next entry forgets this guest's translations.
    flush: bool,
    extended: ExtendedState,
    tsc_aux: u64,
    /// DR0 to DR3.
    debug: [u64; 4],
    /// The guest: what the processor knows it by is `asid`.
    vm: u16,
    asid: Asid,
    loaded: bool,
    shared: &'static Shared,
}

impl SvmVcpu {
    /// A virtual processor as after reset, of the guest `vm`, whose identifier is `asid`.
    pub fn new(shared: &'static Shared, vm: u16, asid: Asid) -> SvmVcpu {
        let mut vmcb = VmcbPage::new();
        let read_shadow = setup(vmcb.fields(), shared, asid.number);
        SvmVcpu {
            frame: Box::new(Frame::new(&shared.plan)),
            vmcb,
            read_shadow,
            captured: Captured::default(),
            event: None,
            undelivered: None,
            stepper: Stepper::default(),
            interrupt_window: false,
            nmi_window: false,
            // An earlier guest may have had this identifier.
            flush: true,
            extended: ExtendedState::new(),
            tsc_aux: 0,
            debug: [0; 4],
            vm,
            asid,
            loaded: false,
            shared,
        }
    }

    /// One entry and exit.
    fn enter(&mut self, deadline: Tsc) {
        let event = self.event.take();
        // An NMI waits for an event to be delivered: the guest comes back as soon as the timer can make it.
        let at_once = self.nmi_window && event.is_some() && !self.stepper.is_nmi_blocked();
        let flush = match (core::mem::take(&mut self.flush), self.shared.capabilities.features) {
            (false, _) => tlb_control::NOTHING,
            (true, f) if f.contains(Features::FLUSH_BY_ASID) => tlb_control::FLUSH_GUEST,
            (true, _) => tlb_control::FLUSH_ALL,
        };
        let rax = self.frame.gprs.get(Gpr::Rax);
        let vmcb = self.vmcb.fields();
        vmcb.write(vmcb::RAX, rax);
        let awaited = self.interrupt_window || self.nmi_window;
        let in_shadow = self.stepper.before_entry(vmcb, event.is_some(), awaited);
        if event.is_some_and(|event| event.kind == EventKind::Nmi) {
            self.stepper.nmi_injected(vmcb);
        }
        let interrupt_window = self.interrupt_window && !in_shadow;
        let entry = Entry { event, interrupt_window, at_once, injects_twice: self.shared.is_qemu, flush };
        let virtual_interrupt = resume(vmcb, &entry);
        // There is no timer in the VMCB: the machine's ends the guest's run like any interrupt.
        apic::arm(if at_once { Tsc(0) } else { deadline });
        percpu::current().current_vm.store(self.vm, Ordering::Relaxed);
        // SAFETY: SVM is on (`Shared` is made by `Svm` only, with a save area and the host's state); `setup` made the
        // VMCB, whose borrow has ended; `load` moved this vCPU's extended state and MSRs in (the run loop loads before
        // it runs).
        unsafe { enter(&mut self.frame, self.vmcb.hpa(), self.shared.host.hpa()) };
        let vmcb = self.vmcb.fields();
        self.frame.gprs.set(Gpr::Rax, vmcb.read(vmcb::RAX));
        self.undelivered = virtual_interrupt.filter(|_| undelivered(vmcb));
    }

    /// Has `quick` do what the run loop would before the next entry. False where the run loop itself is to: a trap that
    /// is pending goes before any interrupt, and it knows how.
    fn look<Q: Quick>(&mut self, deadline: &mut Tsc, quick: &mut Q) -> bool {
        if self.event.is_some() {
            return false;
        }
        let vmcb = self.vmcb.fields();
        let registers = &mut InGuest { frame: &mut self.frame, vmcb, extended: &self.extended };
        let Some(next) = quick.look(registers, timer::now()) else { return false };
        *deadline = next.deadline;
        self.interrupt_window = next.window;
        self.event = next.interrupt.map(Event::external);
        true
    }

    fn field(register: SysReg) -> Option<Field<u64, ReadWrite>> {
        Some(match register {
            SysReg::Rip => vmcb::RIP,
            SysReg::Rsp => vmcb::RSP,
            SysReg::Rflags => vmcb::RFLAGS,
            SysReg::Cr2 => vmcb::CR2,
            SysReg::Cr3 => vmcb::CR3,
            SysReg::Dr6 => vmcb::DR6,
            SysReg::Dr7 => vmcb::DR7,
            SysReg::Efer => vmcb::EFER,
            SysReg::Pat => vmcb::G_PAT,
            SysReg::FsBase => vmcb::FS_BASE,
            SysReg::GsBase => vmcb::GS_BASE,
            SysReg::KernelGsBase => vmcb::KERNEL_GS_BASE,
            SysReg::SysenterCs => vmcb::SYSENTER_CS,
            SysReg::SysenterEsp => vmcb::SYSENTER_ESP,
            SysReg::SysenterEip => vmcb::SYSENTER_EIP,
            SysReg::Star => vmcb::STAR,
            SysReg::Lstar => vmcb::LSTAR,
            SysReg::Cstar => vmcb::CSTAR,
            SysReg::Fmask => vmcb::SFMASK,
            SysReg::GdtBase => vmcb::GDTR_BASE,
            SysReg::IdtBase => vmcb::IDTR_BASE,
            SysReg::Cr0 | SysReg::Cr4 | SysReg::GdtLimit | SysReg::IdtLimit | SysReg::TscAux | SysReg::Xcr0 => {
                return None;
            }
        })
    }

    /// RIP becomes `rip`, cut to the width of the code; ends the one-instruction shadow.
    fn go_to(&mut self, rip: u64) {
        let long = self.read(SysReg::Efer) & Efer::LMA.bits() != 0 && self.segment(SegmentName::Cs).rights.is_long();
        let vmcb = self.vmcb.fields();
        vmcb.write(vmcb::RIP, if long { rip } else { rip & 0xffff_ffff });
        vmcb.write(vmcb::INTERRUPT_STATE, vmcb.read(vmcb::INTERRUPT_STATE) & !vmcb::INTERRUPT_SHADOW);
    }

    /// RIP after an instruction that is done, which goes to `rip`, and what the processor does behind it.
    fn step(&mut self, rip: u64) {
        self.go_to(rip);
        if let Some(trap) = behind_instruction(self.vmcb.fields()) {
            self.event = Some(trap);
        }
    }
}

impl Vcpu for SvmVcpu {
    type Nested = Npt;

    const HYPERCALL_INSTRUCTION: u32 = hypercall::INSTRUCTION_VMMCALL;
    const PDPTE_REGISTERS: bool = false;

    fn nested_format(&self) -> Npt {
        Npt { largest: self.shared.largest_page }
    }

    fn run<Q: Quick>(&mut self, mut deadline: Tsc, quick: &mut Q) -> Result<Ran, EntryFailure> {
        self.frame.defences.before_first_entry();
        let features = self.shared.capabilities.features;
        let tells_next_rip = features.contains(Features::NEXT_RIP);
        loop {
            self.enter(deadline);
            let at = timer::now();
            watchdog::exited(at);
            let vmcb = self.vmcb.fields();
            if !self.stepper.is_stepping() && self.undelivered.is_none() {
                let registers = &mut InGuest { frame: &mut self.frame, vmcb, extended: &self.extended };
                let (answer, kind) = offer(registers, tells_next_rip, at, quick);
                if answer != Answer::Refused {
                    vmcb.set_clean();
                    self.interrupt_window &= kind != Kind::Window;
                    let next = next_rip(vmcb);
                    if matches!(answer, Answer::Done | Answer::Look) && !step(vmcb, next) {
                        self.step(next);
                    }
                    let goes_on = !matches!(answer, Answer::Look | Answer::LookHere) || self.look(&mut deadline, quick);
                    quick.account(kind, timer::now().0.wrapping_sub(at.0));
                    if goes_on {
                        continue;
                    }
                    return Ok(Ran::Look);
                }
            }
            self.captured = capture(vmcb, features);
            if self.captured.is_invalid() {
                let failure = explain(vmcb, &self.shared.capabilities);
                if !self.shared.is_qemu || !failure.broken_rules.is_empty() {
                    return Err(failure);
                }
                // A guest that ran: `Captured::is_invalid` has why.
            }
            vmcb.set_clean();
            match self.stepper.after_exit(vmcb, self.captured.code) {
                Follows::Decode => return Ok(Ran::Exit(decode(&self.captured))),
                Follows::TaskSwitch if self.undelivered.is_none() => {
                    return Ok(Ran::Exit(Exit::TaskSwitch { selector: None, source: TaskSource::Iret }));
                }
                Follows::NmiWindow if self.nmi_window => return Ok(Ran::Exit(Exit::NmiWindow)),
                Follows::TaskSwitch | Follows::NmiWindow | Follows::Again => self.event = self.undelivered.take(),
            }
        }
    }

    fn holds_wide_addresses(&self) -> bool {
        // VMLOAD and VMSAVE move them, in the processor's full width (APM vol. 2, "Canonicalization and Consistency
        // Checks").
        true
    }

    fn has_tsc_aux(&self) -> bool {
        self.shared.tsc_aux
    }

    fn gprs(&mut self) -> &mut Gprs {
        &mut self.frame.gprs
    }

    fn read(&mut self, register: SysReg) -> u64 {
        let vmcb = self.vmcb.fields();
        match register {
            SysReg::Efer => vmcb.read(vmcb::EFER) & !EFER_FORCED.bits(),
            SysReg::Cr0 => self.read_shadow.cr0(vmcb),
            SysReg::Cr4 => self.read_shadow.cr4(vmcb),
            SysReg::GdtLimit => vmcb.read(vmcb::GDTR_LIMIT).into(),
            SysReg::IdtLimit => vmcb.read(vmcb::IDTR_LIMIT).into(),
            SysReg::TscAux => self.tsc_aux,
            SysReg::Xcr0 => self.extended.xcr0(),
            _ => Self::field(register).map_or(0, |field| vmcb.read(field)),
        }
    }

    fn write(&mut self, register: SysReg, value: u64) {
        let low = (value & 0xffff_ffff) as u32;
        let vmcb = self.vmcb.fields();
        match register {
            SysReg::GdtLimit => vmcb.write(vmcb::GDTR_LIMIT, low),
            SysReg::IdtLimit => vmcb.write(vmcb::IDTR_LIMIT, low),
            SysReg::TscAux => {
                self.tsc_aux = value;
                if self.loaded && self.shared.tsc_aux {
                    write_tsc_aux(value);
                }
            }
            SysReg::Xcr0 => self.extended.set_xcr0(value),
            SysReg::Cr0 => self.read_shadow.set_cr0(vmcb, value),
            SysReg::Cr4 => self.read_shadow.set_cr4(vmcb, value),
            _ => {
                let forced = match register {
                    SysReg::Efer => EFER_FORCED.bits(),
                    SysReg::Rflags => Rflags::FIXED.bits(),
                    _ => 0,
                };
                if let Some(field) = Self::field(register) {
                    vmcb.write(field, value | forced);
                }
            }
        }
    }

    fn segment(&mut self, name: SegmentName) -> Segment {
        let vmcb = self.vmcb.fields();
        let (selector, attribute, limit, base) = vmcb::segment(name);
        let mut rights = rights(vmcb.read(attribute));
        if name == SegmentName::Ss {
            // The privilege level has a field of its own, and SS need not agree with it.
            rights = AccessRights(rights.0 & !DPL | u32::from(vmcb.read(vmcb::CPL)) << 5 & DPL);
        }
        Segment { selector: vmcb.read(selector), base: vmcb.read(base), limit: vmcb.read(limit), rights }
    }

    fn set_segment(&mut self, name: SegmentName, segment: Segment) {
        let vmcb = self.vmcb.fields();
        let (selector, attribute, limit, base) = vmcb::segment(name);
        vmcb.write(selector, segment.selector);
        vmcb.write(base, segment.base);
        vmcb.write(limit, segment.limit);
        vmcb.write(attribute, attributes(segment.rights));
        if name == SegmentName::Ss {
            vmcb.write(vmcb::CPL, segment.rights.dpl());
        }
    }

    fn extended(&mut self, register: ExtendedRegister, value: &mut [u8]) {
        self.extended.read(register, value);
    }

    fn set_extended(&mut self, register: ExtendedRegister, value: &[u8]) {
        self.extended.write(register, value);
    }

    fn advance(&mut self) -> Result<(), UnknownLength> {
        let next = self.captured.after_instruction().ok_or(UnknownLength)?;
        self.step(next);
        Ok(())
    }

    fn advance_by(&mut self, length: u8) {
        let rip = self.vmcb.fields().read(vmcb::RIP);
        self.step(rip.wrapping_add(u64::from(length)));
    }

    fn begin_shadow(&mut self) {
        let vmcb = self.vmcb.fields();
        vmcb.write(vmcb::INTERRUPT_STATE, vmcb.read(vmcb::INTERRUPT_STATE) | vmcb::INTERRUPT_SHADOW);
    }

    fn end_shadow(&mut self) {
        let vmcb = self.vmcb.fields();
        vmcb.write(vmcb::INTERRUPT_STATE, vmcb.read(vmcb::INTERRUPT_STATE) & !vmcb::INTERRUPT_SHADOW);
    }

    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.stepper.set_nmi_blocked(self.vmcb.fields(), blocked);
    }

    fn interruptibility(&mut self) -> Interruptibility {
        let vmcb = self.vmcb.fields();
        Interruptibility {
            interrupts_enabled: vmcb.read(vmcb::RFLAGS) & Rflags::IF.bits() != 0,
            shadow: vmcb.read(vmcb::INTERRUPT_STATE) & vmcb::INTERRUPT_SHADOW != 0,
            nmi_blocked: self.stepper.is_nmi_blocked(),
            event_pending: self.event.is_some(),
        }
    }

    fn inject(&mut self, event: Event) {
        if event.length != 0 {
            // The processor adds no length to what it injects as an exception: RIP is where the handler returns to.
            let rip = self.vmcb.fields().read(vmcb::RIP);
            self.go_to(rip.wrapping_add(u64::from(event.length)));
        }
        self.event = Some(event);
    }

    fn interrupted_event(&mut self) -> Option<Event> {
        self.undelivered.or_else(|| interrupted_event(&self.captured))
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.interrupt_window = wanted;
    }

    fn request_nmi_window(&mut self, wanted: bool) {
        self.nmi_window = wanted;
    }

    fn set_nested_root(&mut self, root: Hpa) {
        self.vmcb.fields().write(vmcb::NESTED_CR3, root.0);
        self.flush = true;
    }

    fn invalidate_nested(&mut self) {
        // Before the next entry. If there is none, nobody uses this guest's translations: the next guest with its
        // identifier forgets them first.
        self.flush = true;
    }

    fn invalidate_linear(&mut self) {
        self.flush = true;
    }

    fn allow_cr4(&mut self, _bits: Cr4) {
        // The processor knows no single bits of CR4: every write exits.
    }

    fn hide(&mut self, instructions: Instructions) {
        // RDRAND and RDSEED cannot be intercepted.
        if instructions.contains(Instructions::INVPCID) {
            let vmcb = self.vmcb.fields();
            vmcb.write(vmcb::THIRD_INTERCEPTS, vmcb.read(vmcb::THIRD_INTERCEPTS) | Third::INVPCID.bits());
        }
    }

    fn set_speculation_control(&mut self, value: u64) {
        self.frame.defences.set_control(value, self.loaded);
    }

    fn prediction_barrier(&mut self) {
        speculation::barrier();
    }

    fn watchpoints(&mut self) -> Option<Watchpoints> {
        let ports = self.read(SysReg::Cr4) & Cr4::DE.bits() != 0;
        let dr7 = self.vmcb.fields().read(vmcb::DR7);
        Watchpoints::new(|| if self.loaded { read_debug() } else { self.debug }, dr7, || ports)
    }

    fn meet(&mut self, breakpoints: u64) {
        self.event = Some(met(self.vmcb.fields(), breakpoints));
    }

    fn set_pdptes(&mut self, _entries: [u64; 4]) {
        // Under nested paging the processor reads them from memory whenever it needs them (APM vol. 2, "Legacy PAE
        // Mode" under "Nested Paging").
    }

    fn set_tsc_offset(&mut self, offset: i64) {
        self.vmcb.fields().write(vmcb::TSC_OFFSET, offset.cast_unsigned());
    }

    fn load(&mut self) {
        if self.loaded {
            return;
        }
        self.flush |= self.asid.shared;
        if self.shared.keeps_pointers {
            xstate::overwrite_pointers();
        }
        self.extended.load();
        if self.shared.tsc_aux {
            write_tsc_aux(self.tsc_aux);
        }
        write_debug(&self.debug);
        self.frame.defences.load(|| percpu::current().current_vm.load(Ordering::Relaxed) != self.vm);
        percpu::current().current_vmcb.store(self.vmcb.hpa().0, Ordering::Relaxed);
        self.loaded = true;
    }

    fn unload(&mut self) {
        if !self.loaded {
            return;
        }
        percpu::current().current_vmcb.store(0, Ordering::Relaxed);
        self.loaded = false;
        self.extended.follow_xcr0();
        self.extended.save();
        self.debug = read_debug();
        self.frame.defences.unload();
    }
}
