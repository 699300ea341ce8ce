//! Records while a VM runs.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use lamina_arch::addr::Gpa;
use lamina_arch::event::{Event, EventKind};
use lamina_arch::exit::{Direction, Exit};
use lamina_arch::regs::{Gpr, SysReg};

use super::{Code, REGISTERS, RIP, Record, Registers, Store, digest};
use crate::chipset::Chipset;
use crate::exit::instruction_at_rip;
use crate::host::Host;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// A VM whose recorder holds so many records leaves the processor, so that they go out.
const FULL: usize = 64;
/// Most places whose instruction is told once: then every record tells its own.
const KNOWN_MAX: usize = 1 << 16;
/// Most stores that one record keeps apart; what comes behind them goes into one.
const STORES_MAX: usize = 16;

/// What was written to guest memory on the guest's behalf since the last record.
#[derive(Debug, Default)]
pub struct Written(Vec<Store>);

impl Written {
    /// Notes that `data` was written at `gpa`.
    pub fn note(&mut self, gpa: Gpa, data: &[u8]) {
        let digest = digest(data);
        let is_full = self.0.len() == STORES_MAX;
        match self.0.last_mut() {
            Some(last) if is_full => {
                last.length = last.length.wrapping_add(data.len() as u64);
                last.digest = last.digest.rotate_left(1) ^ digest ^ gpa.0;
            }
            _ => self.0.push(Store { gpa: gpa.0, length: data.len() as u64, digest }),
        }
    }

    /// Takes what was noted.
    pub fn take(&mut self) -> Vec<Store> {
        core::mem::take(&mut self.0)
    }
}

/// The recorder of one VM.
#[derive(Debug)]
pub struct Recorder {
    /// How many records are still to be made.
    left: u32,
    /// Those that were made and not taken yet.
    records: Vec<Record>,
    /// The exit that is being handled.
    open: Option<Record>,
    /// As they were last seen: at the exit that is being handled, or at the last entry.
    registers: Registers,
    /// Where the instruction was told.
    known: BTreeSet<u64>,
}

impl Recorder {
    /// A recorder that makes `count` records.
    pub fn new(count: u32) -> Recorder {
        let registers = [0; REGISTERS.len()];
        Recorder { left: count, records: Vec::new(), open: None, registers, known: BTreeSet::new() }
    }

    /// Whether it is time to take the records.
    pub fn is_full(&self) -> bool {
        self.records.len() >= FULL
    }

    /// Whether it has made all that it was to make.
    pub fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Takes the records that were made.
    pub fn take(&mut self) -> Vec<Record> {
        core::mem::take(&mut self.records)
    }

    /// The registers are `now`; which of them changed.
    fn changes(&mut self, now: Registers) -> Vec<(usize, u64)> {
        let pairs = now.iter().zip(&self.registers).enumerate();
        let changes = pairs.filter(|(_, (new, old))| new != old).map(|(index, (new, _))| (index, *new)).collect();
        self.registers = now;
        changes
    }

    fn push(&mut self, record: Record) {
        if self.left > 0 {
            self.left -= 1;
            self.records.push(record);
        }
    }

    /// The guest is to get `event`: its own doing, which belongs to the exit that is being handled, or an interrupt.
    pub(crate) fn event(&mut self, event: Event, registers: Registers) {
        let words = match event.error {
            Some(error) => format!("{}:{:x}/{error:x}", name(event.kind), event.vector),
            None => format!("{}:{:x}", name(event.kind), event.vector),
        };
        match &mut self.open {
            Some(open) => open.event = Some(words),
            None => {
                let (rip, computed) = (registers[RIP], self.changes(registers));
                self.push(Record { what: words, rip, computed, ..Record::default() });
            }
        }
    }
}

/// The guest has exited, and nothing was done about it yet.
pub(crate) fn exited<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H, exit: &Exit) {
    let Some(what) = what(&mut vm.vcpu, exit) else { return };
    let rip = vm.vcpu.read(SysReg::Rip);
    let known = vm.trace.as_ref().is_some_and(|trace| trace.known.contains(&rip));
    let code = if known { None } else { instruction_at_rip(vm, host).map(|(bits, bytes)| Code { bits, bytes }) };
    let now = registers(&mut vm.vcpu);
    if let Some(trace) = &mut vm.trace {
        if trace.known.len() < KNOWN_MAX {
            trace.known.insert(rip);
        }
        let computed = trace.changes(now);
        trace.open = Some(Record { what, rip, code, computed, ..Record::default() });
    }
}

/// Everything about the last exit is done: closes its record.
pub(crate) fn handled<V: Vcpu, C>(vm: &mut Vm<V, C>) {
    let Some(mut record) = vm.trace.as_mut().and_then(|trace| trace.open.take()) else { return };
    let now = registers(&mut vm.vcpu);
    record.stores = vm.memory.take_written();
    if let Some(trace) = &mut vm.trace {
        record.changed = trace.changes(now);
        trace.push(record);
    }
}

/// All registers as they are now. Slow, as they come from the processor.
pub(crate) fn registers<V: Vcpu>(vcpu: &mut V) -> Registers {
    let mut all = [0; REGISTERS.len()];
    all[..16].copy_from_slice(&vcpu.gprs().0);
    let others = [
        (4, SysReg::Rsp),
        (16, SysReg::Rip),
        (17, SysReg::Rflags),
        (18, SysReg::Cr0),
        (19, SysReg::Cr2),
        (20, SysReg::Cr3),
        (21, SysReg::Cr4),
        (22, SysReg::Efer),
    ];
    for (index, register) in others {
        all[index] = vcpu.read(register);
    }
    all
}

const fn name(kind: EventKind) -> &'static str {
    match kind {
        EventKind::External => "interrupt",
        EventKind::Nmi => "nmi",
        EventKind::HardwareException => "exception",
        EventKind::SoftwareInterrupt => "int",
        EventKind::PrivilegedSoftwareException => "int1",
        EventKind::SoftwareException => "int3-into",
    }
}

/// What the exit is to the guest; `None` where it is nothing to it.
fn what<V: Vcpu>(vcpu: &mut V, exit: &Exit) -> Option<String> {
    let gprs = vcpu.gprs();
    Some(match exit {
        Exit::HostInterrupt { .. }
        | Exit::HostNmi
        | Exit::HostMachineCheck
        | Exit::SliceEnd
        | Exit::InterruptWindow
        | Exit::NmiWindow => return None,
        // The local APIC of a VM that is recorded is never virtualized.
        Exit::ApicWrite { .. } | Exit::ApicEoi { .. } => return None,
        Exit::Exception(event) => format!("exception:{:x}", event.vector),
        Exit::Debug { .. } | Exit::Icebp => "exception:1".into(),
        Exit::TripleFault => "triple-fault".into(),
        Exit::Cpuid => format!("cpuid:{:x}", gprs.get32(Gpr::Rax)),
        Exit::Hlt => "hlt".into(),
        Exit::Pause => "pause".into(),
        Exit::Hypercall => format!("hypercall:{:x}", gprs.get(Gpr::Rax)),
        Exit::Rdmsr => format!("rdmsr:{:x}", gprs.get32(Gpr::Rcx)),
        Exit::Wrmsr => format!("wrmsr:{:x}", gprs.get32(Gpr::Rcx)),
        Exit::CacheFlush => "cache-flush".into(),
        Exit::Xsetbv => "xsetbv".into(),
        Exit::Undefined => "undefined".into(),
        Exit::Forbidden => "forbidden".into(),
        Exit::Io(io) => {
            let direction = if io.direction == Direction::In { "in" } else { "out" };
            let string = if io.string.is_some() { "s" } else { "" };
            format!("{direction}{string}{}:{:x}", io.width.bits(), io.port)
        }
        Exit::Cr(_) => "control-register".into(),
        Exit::NestedFault(fault) => format!("memory:{:x}", fault.gpa.0),
        Exit::NestedMisconfiguration { .. } => "nested-misconfiguration".into(),
        Exit::TaskSwitch { selector: Some(selector), .. } => format!("task-switch:{selector:x}"),
        Exit::TaskSwitch { selector: None, .. } => "task-switch:link".into(),
        Exit::Unknown { .. } => "unknown".into(),
    })
}
