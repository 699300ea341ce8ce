//! Code, page tables and the IDT where neither memory nor a device answers: all ones.

use lamina_arch::addr::{Gla, Gpa};
use lamina_arch::cr::Cr0;
use lamina_arch::event::{Event, EventKind, vector};
use lamina_arch::exit::{Exit, NestedFault};
use lamina_arch::regs::{Gpr, SysReg};

use super::*;
use crate::vcpu::Vcpu;

/// An address on the bus where no device is.
const NOWHERE: u64 = 0xd800_0000;

const FAULT: NestedFault =
    NestedFault { gpa: Gpa(NOWHERE), read: true, write: false, fetch: false, table_walk: false, linear: None };

fn exits(fault: NestedFault) -> Step {
    Step::exit(Exit::NestedFault(fault))
}

/// What the guest gets after `steps`, which exit with RIP at `code`; and the VM's end, if it ended.
fn gets(code: &[u8], steps: Vec<Step>) -> (Vec<Event>, Option<String>) {
    let (mut machine, world) = Bench::new().vm("a", script(steps)).code(code).boot::<FakeChipset>();
    machine.step();
    let ended = alive(&machine, 0).is_none();
    while ended && machine.step().is_none() {}
    let events = world.trace(1).delivered.iter().map(|(_, event)| *event).collect();
    (events, ended.then(|| world.lines()[0].clone()))
}

/// The read of the gate of `event`, in an IDT that is nowhere.
fn gate_of(event: Event) -> Step {
    let gate = NOWHERE + u64::from(event.vector) * 16;
    let fault = NestedFault { gpa: Gpa(gate), linear: Some(Gla(gate + 8)), ..FAULT };
    exits(fault).interrupting(event).with(|cpu| cpu.write(SysReg::IdtBase, NOWHERE))
}

#[test]
fn a_gate_that_is_nowhere_is_a_protection_fault_with_its_number() {
    let int = |kind| Event { kind, vector: 0x21, error: None, length: 2 };
    for (event, error) in [
        (int(EventKind::SoftwareInterrupt), 0x21 << 3 | 2),
        (Event::external(0x30), 0x30 << 3 | 3),
        (Event::exception(vector::UD, None), u32::from(vector::UD) << 3 | 3),
    ] {
        let (events, ended) = gets(&[0x90], vec![gate_of(event)]);
        assert_eq!((events, ended), (vec![Event::exception(vector::GP, Some(error))], None), "{event:?}");
    }
}

#[test]
fn an_idt_that_is_nowhere_ends_in_a_triple_fault() {
    let protection = Event::exception(vector::GP, Some(0));
    let double = Event::exception(vector::DF, Some(0));
    let (events, ended) = gets(&[0x90], vec![gate_of(protection), gate_of(double)]);
    assert_eq!(events, [double]);
    assert_eq!(ended.as_deref(), Some("[lamina] a stopped: triple fault at rip 0x100000 (status 0)"));
}

#[test]
fn what_else_an_events_delivery_reaches_nowhere_ends_the_vm() {
    let stack = exits(NestedFault { linear: Some(Gla(0x7000)), ..FAULT }).interrupting(Event::external(0x30));
    let real = gate_of(Event::external(0x30)).with(|cpu| cpu.write(SysReg::Cr0, (Cr0::ET | Cr0::NE).bits()));
    for step in [stack, real] {
        let (events, ended) = gets(&[0x90], vec![step]);
        assert!(events.is_empty() && ended.is_some_and(|line| line.contains("read outside its memory at 0xd8000")));
    }
}

#[test]
fn code_that_is_nowhere_is_undefined() {
    let jump = Step::act(|cpu| cpu.write(SysReg::Rip, NOWHERE));
    let fetch = NestedFault { read: false, fetch: true, linear: Some(Gla(NOWHERE)), ..FAULT };
    let (events, ended) = gets(&[0x90], vec![jump, exits(fetch)]);
    assert_eq!((events, ended), (vec![Event::exception(vector::UD, None)], None));
}

/// Page tables of which the entry for linear `LOST` names a table that is nowhere.
const LOST: u64 = 0x4000_0000;

fn paging(cpu: &mut FakeVcpu) {
    for (at, entry) in [
        (0x2_0000, 0x2_1003),
        (0x2_1000, 0x2_2003),
        // The first 2 MiB are where they are.
        (0x2_2000, 0x83),
        (0x2_1008, NOWHERE | 3),
    ] {
        cpu.write_memory(at, &u64::to_le_bytes(entry));
    }
    cpu.write(SysReg::Cr3, 0x2_0000);
    cpu.gprs().set(Gpr::Rbx, LOST);
}

#[test]
fn a_page_table_that_is_nowhere_has_reserved_bits_set() {
    let walk = NestedFault { gpa: Gpa(NOWHERE), linear: Some(Gla(LOST)), table_walk: true, ..FAULT };
    // MOV EAX, [RBX]; MOV [RBX], EAX.
    for (code, error) in [([0x8b, 0x03], 0b1001), ([0x89, 0x03], 0b1011)] {
        let (events, ended) = gets(&code, vec![Step::act(paging), exits(walk)]);
        assert_eq!((events, ended), (vec![Event::exception(vector::PF, Some(error))], None));
    }
    // An IDT, and a stack, behind such a table.
    for (idt, error) in [(LOST, 0b1001), (LOST + 0x1000, 0b1011)] {
        let event = Event::external(0);
        let set = Step::act(move |cpu| {
            paging(cpu);
            cpu.write(SysReg::IdtBase, idt);
        });
        let (events, ended) = gets(&[0x90], vec![set, exits(walk).interrupting(event)]);
        assert_eq!((events, ended), (vec![Event::exception(vector::PF, Some(error))], None));
    }
}
