//! Records of what a guest sees of its exits.

use lamina_arch::event::Event;
use lamina_arch::exit::Width;
use lamina_arch::regs::{Gpr, Gprs};

use super::*;
use crate::trace::{Code, REGISTERS, RIP, Record};
use crate::vcpu::Vcpu;

fn traced(records: u32, code: &[u8], steps: impl IntoIterator<Item = Step>) -> (Vec<String>, World) {
    let (status, world) = Bench::new().vm("a", script(steps)).code(code).traced(records).run::<FakeChipset>();
    assert_eq!(status, 0, "{:?}", world.lines());
    let lines = world.lines_of("lamina");
    (lines.iter().filter_map(|line| line.strip_prefix("trace a ")).map(String::from).collect(), world)
}

fn records(lines: &[String]) -> Vec<Record> {
    lines.iter().map(|line| Record::parse(line).unwrap_or_else(|| panic!("{line}"))).collect()
}

fn of(record: &Record, register: usize) -> Option<u64> {
    record.changed.iter().find(|(index, _)| *index == register).map(|(_, value)| *value)
}

fn of_guest(record: &Record, register: usize) -> Option<u64> {
    record.computed.iter().find(|(index, _)| *index == register).map(|(_, value)| *value)
}

#[test]
fn each_exit_with_its_instruction_and_what_it_changed() {
    // The fake's instructions have lengths of their own; the bytes are those of the image.
    let (lines, _) = traced(100, &[0x0f, 0xa2, 0xf4, 0xf4], [cpuid(0, 0), power_off()]);
    let all = records(&lines);
    let [first, .., last] = all.as_slice() else { panic!("{lines:?}") };
    assert_eq!((first.what.as_str(), first.rip), ("cpuid:0", ENTRY));
    assert_eq!(first.code, Some(Code { bits: 64, bytes: vec![0x0f, 0xa2] }));
    assert_eq!(of(first, RIP), Some(ENTRY + 2));
    assert!(of(first, Gpr::Rbx as usize).is_some_and(|vendor| vendor != 0), "{first}");
    // The exit that ends the VM is there too.
    assert!(last.what.starts_with("out"), "{last}");
}

#[test]
fn what_is_nothing_to_the_guest_is_no_record() {
    let (lines, world) = traced(100, &[0xf4; 16], [Step::compute(3 * SLICE), power_off()]);
    assert_eq!(records(&lines).len(), 1, "{lines:?}");
    assert!(world.lines().len() > 1);
}

#[test]
fn faults_belong_to_their_exit_and_interrupts_stand_alone() {
    let (lines, _) = traced(100, &[0xf4; 32], [rdmsr(0xdead_0000), power_off()]);
    let all = records(&lines);
    assert_eq!((all[0].what.as_str(), all[0].event.as_deref()), ("rdmsr:dead0000", Some("exception:d/0")));
    // The fault is at the instruction.
    assert_eq!((of(&all[0], RIP), of_guest(&all[0], RIP)), (None, Some(ENTRY)));
    let mut recorder = crate::trace::Recorder::new(1);
    let mut registers = [0; REGISTERS.len()];
    registers[RIP] = 7;
    recorder.event(Event::external(0x20), registers);
    let made = recorder.take();
    assert_eq!(of_guest(&made[0], RIP), Some(7));
    assert_eq!((made[0].what.as_str(), made[0].rip, recorder.is_done()), ("interrupt:20", 7, true));
}

#[test]
fn there_are_as_many_as_were_asked_for_and_none_is_lost() {
    let many = || (0..500).map(|_| inp(0x80, Width::B1)).chain([power_off()]);
    let (lines, world) = traced(400, &[0xf4; 2000], many());
    assert_eq!(lines.len(), 401);
    assert_eq!(lines.last().map(String::as_str), Some("end"));
    assert_eq!(records(&lines[..400]).len(), 400);
    let (none, _) = traced(0, &[0xf4; 2000], many());
    assert!(none.is_empty());
    drop(world);
}

#[test]
fn recording_changes_nothing_of_what_the_guest_sees() {
    let steps = |notes: &Notes<Gprs>| {
        let see = |notes: &Notes<Gprs>| notes.note(|cpu| *cpu.gprs());
        vec![cpuid(1, 0), see(notes), inp(0x64, Width::B1), see(notes), rdmsr(0x1b), see(notes), power_off()]
    };
    let (with, without) = (Notes::new(), Notes::new());
    traced(100, &[0xf4; 64], steps(&with));
    traced(0, &[0xf4; 64], steps(&without));
    assert_eq!(with.taken(), without.taken());
    assert_eq!(with.taken().len(), 3);
}
