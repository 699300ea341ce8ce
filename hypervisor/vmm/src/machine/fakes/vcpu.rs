//! A virtual processor that follows a script.

use std::sync::Arc;
use std::vec::Vec;

use lamina_arch::addr::Hpa;
use lamina_arch::cr::{Cr4, Rflags};
use lamina_arch::event::{Event, EventKind, Interruptibility, vector};
use lamina_arch::exit::{Direction, Exit, IoExit, Kind, NestedFault};
use lamina_arch::hypercall;
use lamina_arch::instruction::Instructions;
use lamina_arch::regs::{ExtendedRegister, Gprs, SysReg};
use lamina_arch::segment::{Segment, SegmentName};
use lamina_arch::time::Tsc;
use lamina_arch::watchpoints::Watchpoints;

use super::apic::FakeApic;
use super::host::{SERIAL_VECTOR, World};
use super::step::{Outcome, Program, Step};
use super::trace::Trace;
use crate::apic::{ApicMode, ApicPage};
use crate::exit::ByVcpu;
use crate::frames::FrameSize;
use crate::host::HostMemory;
use crate::nested::ept::Ept;
use crate::vcpu::{Answer, EntryFailure, Quick, Ran, UnknownLength, Vcpu};

/// As many entries without any time passing are a loop that never ends.
const SPINNING: u32 = 10_000;

/// The scripted processor.
///
/// Interrupt handlers are over in no time: an event that is injected is recorded, and the guest goes on where it was,
/// RFLAGS.IF unchanged. An NMI blocks others until [`FakeVcpu::nmi_blocked`] is cleared by the script.
pub struct FakeVcpu {
    id: u16,
    pub(super) world: World,
    program: Option<Program>,
    step: Option<Step>,
    gprs: Gprs,
    registers: [u64; 32],
    segments: [Segment; 8],
    /// In the one-instruction shadow of STI or MOV SS.
    pub shadow: bool,
    /// An NMI is being handled.
    pub nmi_blocked: bool,
    /// The registers of the extended state that were written.
    pub extended: Vec<(ExtendedRegister, Vec<u8>)>,
    /// Events delivered since the script last emptied this.
    pub delivered: Vec<Event>,
    /// Breakpoints that the guest has enabled.
    pub watchpoints: Option<Watchpoints>,
    event: Option<Event>,
    interrupted: Option<Event>,
    /// Of the instruction that exited, unless it is finished; what is inside may be untold.
    length: Option<Option<u8>>,
    interrupt_window: bool,
    nmi_window: bool,
    pub(super) root: Option<Hpa>,
    pub(super) apic: Option<FakeApic>,
    loaded: bool,
    /// When it was entered last, and how often at that time.
    entries: (Tsc, u32),
}

impl FakeVcpu {
    pub(super) fn new(id: u16, world: World, program: Program) -> FakeVcpu {
        FakeVcpu {
            id,
            world,
            program: Some(program),
            step: None,
            gprs: Gprs([0x5a5a; 16]),
            registers: [0; 32],
            segments: [Segment::default(); 8],
            shadow: false,
            nmi_blocked: false,
            extended: Vec::new(),
            delivered: Vec::new(),
            watchpoints: None,
            event: None,
            interrupted: None,
            length: None,
            interrupt_window: false,
            nmi_window: false,
            root: None,
            apic: None,
            loaded: false,
            entries: (Tsc(0), 0),
        }
    }

    /// The machine's time.
    pub fn now(&self) -> Tsc {
        self.world.now()
    }

    /// What RDTSC gives.
    pub fn tsc(&self) -> u64 {
        self.now().0.wrapping_add_signed(self.trace(|t| t.tsc_offset))
    }

    /// The world.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Sets RFLAGS.IF.
    pub fn set_interrupts(&mut self, enabled: bool) {
        let old = self.registers[SysReg::Rflags as usize] & !Rflags::IF.bits();
        self.registers[SysReg::Rflags as usize] = if enabled { old | Rflags::IF.bits() } else { old };
    }

    /// Reads guest memory, as the guest does: through the nested tables.
    ///
    /// # Panics
    /// Where the tables map nothing.
    pub fn read_memory(&self, gpa: u64, length: usize) -> Vec<u8> {
        (gpa..)
            .take(length)
            .map(|at| {
                self.world.with(|w| {
                    let mut byte = [0];
                    w.memory.read(self.walk(&w.memory, at), &mut byte);
                    byte[0]
                })
            })
            .collect()
    }

    /// Writes guest memory, as the guest does: through the nested tables.
    ///
    /// # Panics
    /// Where the tables map nothing.
    pub fn write_memory(&mut self, gpa: u64, bytes: &[u8]) {
        for (at, &byte) in (gpa..).zip(bytes) {
            let hpa = self.world.with(|w| self.walk(&w.memory, at));
            self.world.with_mut(|w| w.memory.write(hpa, &[byte]));
        }
    }

    /// SDM vol. 3, "EPT Translation Mechanism".
    fn walk(&self, memory: &impl HostMemory, gpa: u64) -> Hpa {
        let mut table = self.root.expect("the nested root is set before the guest runs").0;
        for shift in [39, 30, 21, 12] {
            let entry = memory.read_u64(Hpa(table + (gpa >> shift & 0x1ff) * 8));
            assert_eq!(entry & 7, 7, "the nested tables map {gpa:#x} for reading, writing and executing");
            table = entry & 0x000f_ffff_ffff_f000;
            if shift == 12 || entry & 0x80 != 0 {
                let size = 1u64 << shift;
                return Hpa(table & !(size - 1) | gpa & (size - 1));
            }
        }
        unreachable!("the last level maps a page")
    }

    fn trace<T>(&self, change: impl FnOnce(&mut Trace) -> T) -> T {
        self.world.with_mut(|w| change(w.traces.entry(self.id).or_default()))
    }

    fn enabled(&self) -> bool {
        self.registers[SysReg::Rflags as usize] & Rflags::IF.bits() != 0
    }

    /// Delivers what was injected, as strict as a VM entry (SDM vol. 3, "Checks on Guest Non-Register State").
    fn deliver(&mut self) {
        let Some(event) = self.event.take() else { return };
        match event.kind {
            EventKind::External => assert!(self.enabled() && !self.shadow, "{event:?} cannot be taken now"),
            EventKind::Nmi => {
                assert!(!self.nmi_blocked && !self.shadow, "an NMI cannot be taken now");
                self.nmi_blocked = true;
            }
            _ => {}
        }
        self.note(event);
    }

    fn note(&mut self, event: Event) {
        let now = self.now();
        self.trace(|t| t.delivered.push((now, event)));
        self.delivered.push(event);
    }

    fn next_step(&mut self) -> Step {
        self.step.take().unwrap_or_else(|| {
            let mut program = self.program.take().expect("a program does not run itself");
            let step = program(self);
            self.program = Some(program);
            step
        })
    }

    fn skip(&mut self, length: u8) {
        assert!(self.event.is_none(), "an instruction is finished although an event is to be delivered first");
        let rip = self.registers[SysReg::Rip as usize].wrapping_add(u64::from(length));
        self.registers[SysReg::Rip as usize] = rip;
        self.shadow = false;
        self.trace(|t| t.advanced.push(rip));
    }
}

impl FakeVcpu {
    /// Offers an exit to the short way, as a processor does that tells the instruction's length.
    fn offer<Q: Quick>(&mut self, exit: &Exit, quick: &mut Q) -> Answer {
        if self.interrupted.is_some() || !matches!(self.length, Some(Some(_))) {
            return Answer::Refused;
        }
        // As the seam has it.
        if self.watchpoints.is_some() && matches!(exit, Exit::Io(_) | Exit::NestedFault(_)) {
            return Answer::Refused;
        }
        let (at, registers) = (self.now(), &mut ByVcpu(self));
        let answer = match *exit {
            Exit::Cpuid => quick.cpuid(registers),
            Exit::Hypercall => quick.hypercall(registers),
            Exit::Rdmsr => quick.rdmsr(registers, at),
            Exit::Wrmsr => quick.wrmsr(registers, at),
            Exit::Io(IoExit { port, width, direction: Direction::In, string: None }) => {
                quick.port_in(registers, at, port, width)
            }
            Exit::Io(IoExit { port, width, direction: Direction::Out, string: None }) => {
                quick.port_out(registers, at, port, width)
            }
            Exit::NestedFault(fault) if !quick.is_device(fault.gpa) => quick.touch(fault.gpa),
            Exit::NestedFault(NestedFault {
                gpa,
                linear: Some(linear),
                write,
                table_walk: false,
                fetch: false,
                ..
            }) => {
                let (answer, length) = quick.device(registers, at, gpa, linear, write);
                self.length = Some(Some(length));
                answer
            }
            _ => Answer::Refused,
        };
        if answer != Answer::Refused {
            quick.account(exit.kind(), 0);
        }
        if matches!(answer, Answer::Done | Answer::Look) {
            let advanced = self.advance();
            assert!(advanced.is_ok(), "the length is told");
        }
        answer
    }

    /// Offers what is no exit of an instruction's to the short way, with the window no longer asked for.
    fn offer_window<Q: Quick>(&mut self, quick: &mut Q) -> Answer {
        let answer = quick.window();
        if answer != Answer::Refused {
            self.request_interrupt_window(false);
        }
        answer
    }

    /// Lets the short way do what is due before the next entry; when that exits at the latest, or `None` where it is
    /// the run loop's turn.
    fn look<Q: Quick>(&mut self, quick: &mut Q) -> Option<Tsc> {
        let now = self.now();
        let next = quick.look(&mut ByVcpu(self), now)?;
        self.trace(|t| t.deadlines.push(next.deadline));
        self.request_interrupt_window(next.window);
        if let Some(interrupt) = next.interrupt {
            self.inject(Event::external(interrupt));
            self.deliver();
        }
        Some(next.deadline)
    }
}

impl Vcpu for FakeVcpu {
    type Nested = Ept;

    const HYPERCALL_INSTRUCTION: u32 = hypercall::INSTRUCTION_VMCALL;
    const PDPTE_REGISTERS: bool = true;

    fn nested_format(&self) -> Ept {
        Ept { execute_only: false, largest: FrameSize::Size2M }
    }

    fn run<Q: Quick>(&mut self, mut deadline: Tsc, quick: &mut Q) -> Result<Ran, EntryFailure> {
        assert!(self.loaded, "a vCPU runs that is not loaded");
        assert!(self.root.is_some(), "a vCPU runs without nested tables");
        self.trace(|t| {
            t.runs += 1;
            t.deadlines.push(deadline);
        });
        let now = self.now();
        self.entries = (now, if self.entries.0 == now { self.entries.1 + 1 } else { 0 });
        assert!(self.entries.1 < SPINNING, "the guest is entered over and over and gets nowhere");
        self.interrupted = None;
        self.length = None;
        self.deliver();
        loop {
            if self.nmi_window && !self.nmi_blocked && !self.shadow {
                return Ok(Ran::Exit(Exit::NmiWindow));
            }
            if self.interrupt_window && self.enabled() && !self.shadow {
                if self.offer_window(quick) == Answer::Refused {
                    return Ok(Ran::Exit(Exit::InterruptWindow));
                }
                quick.account(Kind::Window, 0);
                match self.look(quick) {
                    Some(next) => deadline = next,
                    None => return Ok(Ran::Look),
                }
            }
            if !self.interrupt_window && self.enabled() && !self.shadow {
                let vector = self.apic.as_mut().and_then(FakeApic::deliver);
                if let Some(vector) = vector {
                    self.trace(|t| t.virtual_interrupts.push(vector));
                    self.note(Event::external(vector));
                }
            }
            let now = self.now();
            let machine = self.world.with(|w| w.next_interrupt());
            if machine.is_some_and(|at| at <= now) {
                return Ok(Ran::Exit(Exit::HostInterrupt { vector: Some(SERIAL_VECTOR) }));
            }
            if now >= deadline {
                match self.look(quick) {
                    Some(next) => deadline = next,
                    None => return Ok(Ran::Exit(Exit::SliceEnd)),
                }
                continue;
            }
            let mut step = self.next_step();
            let until = if self.shadow { now + 1 } else { machine.map_or(deadline, |at| at.min(deadline)) };
            let available = until.since(now);
            if step.ticks > available {
                // Here the shadow ends: the instruction behind it took the tick.
                self.shadow = false;
                step.ticks = step.ticks.saturating_sub(available);
                self.step = Some(step);
                self.world.pass(available);
                continue;
            }
            self.world.pass(step.ticks);
            if step.ticks > 0 && matches!(step.outcome, Outcome::None) {
                self.shadow = false;
            }
            if let Some(act) = step.act {
                act(self);
            }
            self.interrupted = step.interrupted;
            self.length = Some(step.length);
            match step.outcome {
                Outcome::Exit(exit) => match self.offer(&exit, quick) {
                    Answer::Done | Answer::Again => {}
                    Answer::Look | Answer::LookHere => match self.look(quick) {
                        Some(next) => deadline = next,
                        None => return Ok(Ran::Look),
                    },
                    Answer::Refused => return Ok(Ran::Exit(exit)),
                },
                Outcome::Refused(failure) => return Err(failure),
                Outcome::None => {}
            }
        }
    }

    fn holds_wide_addresses(&self) -> bool {
        false
    }

    fn has_tsc_aux(&self) -> bool {
        true
    }

    fn gprs(&mut self) -> &mut Gprs {
        &mut self.gprs
    }

    fn read(&mut self, register: SysReg) -> u64 {
        self.registers[register as usize]
    }

    fn write(&mut self, register: SysReg, value: u64) {
        self.registers[register as usize] = value;
    }

    fn segment(&mut self, name: SegmentName) -> Segment {
        self.segments[name as usize]
    }

    fn set_segment(&mut self, name: SegmentName, segment: Segment) {
        self.segments[name as usize] = segment;
    }

    fn extended(&mut self, register: ExtendedRegister, value: &mut [u8]) {
        match self.extended.iter().find(|(held, _)| *held == register) {
            Some((_, held)) => value.copy_from_slice(held),
            None => value.fill(0),
        }
    }

    fn set_extended(&mut self, register: ExtendedRegister, value: &[u8]) {
        self.extended.retain(|(held, _)| *held != register);
        self.extended.push((register, value.into()));
    }

    fn advance(&mut self) -> Result<(), UnknownLength> {
        let length = self.length.expect("only an instruction that exited can be finished, and once");
        self.skip(length.ok_or(UnknownLength)?);
        self.length = None;
        Ok(())
    }

    fn advance_by(&mut self, length: u8) {
        assert!(length <= 15, "no instruction has {length} bytes");
        self.length = None;
        self.skip(length);
    }

    fn begin_shadow(&mut self) {
        self.shadow = true;
    }

    fn end_shadow(&mut self) {
        self.shadow = false;
    }

    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.nmi_blocked = blocked;
    }

    fn interruptibility(&mut self) -> Interruptibility {
        Interruptibility {
            interrupts_enabled: self.enabled(),
            shadow: self.shadow,
            nmi_blocked: self.nmi_blocked,
            event_pending: self.event.is_some(),
        }
    }

    fn inject(&mut self, event: Event) {
        assert_eq!(self.event, None, "a second event is injected");
        self.event = Some(event);
    }

    fn interrupted_event(&mut self) -> Option<Event> {
        self.interrupted
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        if wanted != self.interrupt_window {
            self.interrupt_window = wanted;
            self.trace(|t| t.interrupt_windows.push(wanted));
        }
    }

    fn request_nmi_window(&mut self, wanted: bool) {
        if wanted != self.nmi_window {
            self.nmi_window = wanted;
            self.trace(|t| t.nmi_windows.push(wanted));
        }
    }

    fn set_nested_root(&mut self, root: Hpa) {
        self.root = Some(root);
    }

    fn invalidate_nested(&mut self) {
        self.trace(|t| t.nested_invalidations += 1);
    }

    fn invalidate_linear(&mut self) {
        self.trace(|t| t.linear_invalidations += 1);
    }

    fn allow_cr4(&mut self, bits: Cr4) {
        self.trace(|t| t.allowed_cr4 = Some(bits));
    }

    fn hide(&mut self, instructions: Instructions) {
        self.trace(|t| t.hidden = Some(instructions));
    }

    fn set_speculation_control(&mut self, value: u64) {
        self.trace(|t| t.speculation.push(Some(value)));
    }

    fn prediction_barrier(&mut self) {
        self.trace(|t| t.speculation.push(None));
    }

    fn watchpoints(&mut self) -> Option<Watchpoints> {
        self.watchpoints
    }

    fn meet(&mut self, breakpoints: u64) {
        self.write(SysReg::Dr6, breakpoints);
        self.event = Some(Event::exception(vector::DB, None));
    }

    fn set_pdptes(&mut self, entries: [u64; 4]) {
        self.trace(|t| t.pdptes.push(entries));
    }

    fn virtualizes_apic(&self) -> bool {
        self.world.with(|w| w.virtualizes_apic)
    }

    fn virtualize_apic(&mut self, registers: Arc<ApicPage>, access: Hpa) {
        self.apic = Some(FakeApic::new(registers, access));
    }

    fn apic_changed(&mut self, mode: ApicMode) {
        let old = self.apic().mode;
        self.apic().change(mode);
        if mode != old {
            self.trace(|t| t.apic_modes.push(mode));
        }
    }

    fn set_tsc_offset(&mut self, offset: i64) {
        self.trace(|t| t.tsc_offset = offset);
    }

    fn load(&mut self) {
        self.world.with_mut(|w| assert_eq!(w.loaded.replace(self.id), None, "two vCPUs are loaded"));
        self.loaded = true;
        self.trace(|t| t.loads += 1);
    }

    fn unload(&mut self) {
        if self.loaded {
            self.world.with_mut(|w| w.loaded = None);
            self.loaded = false;
            self.trace(|t| t.unloads += 1);
        }
    }
}
