//! The run loop, driven by scripted guests.

use std::cell::RefCell;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

use super::fakes::*;
use super::{Machine, State};
use crate::vm::Vm;

mod audit;
mod console;
mod contain;
mod decoding;
mod ends;
mod events;
mod hypercalls;
mod lazy;
mod mmio;
mod nowhere;
mod processor;
mod string_io;
mod time;
mod trace;
mod tsc;
mod watchpoints;

type Fake = Machine<FakeHost, FakeChipset>;

/// Ticks of a time slice.
const SLICE: u64 = HZ / 200;
const MIB: u64 = 1 << 20;

/// Values that a script leaves for its test.
#[derive(Clone)]
struct Notes<T>(Rc<RefCell<Vec<T>>>);

impl<T: Clone + 'static> Notes<T> {
    fn new() -> Notes<T> {
        Notes(Rc::new(RefCell::new(Vec::new())))
    }

    /// A step that notes what `look` sees.
    fn note(&self, look: impl FnOnce(&mut FakeVcpu) -> T + 'static) -> Step {
        let notes = self.0.clone();
        Step::act(move |cpu| {
            let value = look(cpu);
            notes.borrow_mut().push(value);
        })
    }

    fn push(&self, value: T) {
        self.0.borrow_mut().push(value);
    }

    fn taken(&self) -> Vec<T> {
        self.0.borrow().clone()
    }
}

/// The VM in place `index`, if it lives.
fn alive(machine: &Fake, index: usize) -> Option<&Vm<FakeVcpu, FakeChipset>> {
    match &machine.slots[index].state {
        State::Alive(vm) => Some(vm),
        State::Ended { .. } => None,
    }
}

/// Steps until `done`.
fn step_until(machine: &mut Fake, mut done: impl FnMut(&Fake) -> bool) {
    for _ in 0..10_000 {
        if done(machine) {
            return;
        }
        assert_eq!(machine.step(), None, "the machine ends too early");
    }
    panic!("what is waited for does not happen");
}

/// Steps until the machine ends.
fn finish(machine: &mut Fake) -> u32 {
    (0..100_000).find_map(|_| machine.step()).expect("the machine ends")
}

/// Runs one guest, which has to power itself off in the end.
fn run_one(steps: impl IntoIterator<Item = Step>) -> World {
    run_with(&[0xf4], steps)
}

/// The same, with `code` at the entry.
fn run_with(code: &[u8], steps: impl IntoIterator<Item = Step>) -> World {
    let steps: Vec<Step> = steps.into_iter().chain([power_off()]).collect();
    let (status, world) = Bench::new().vm("a", script(steps)).code(code).run::<FakeChipset>();
    assert_eq!(world.lines().last().map(String::as_str), Some("[lamina] exit 0"), "{:?}", world.lines());
    assert_eq!(status, 0);
    world
}

/// Runs one guest that ends by `last`, and gives what the console says of its end.
fn reason_of(last: Step) -> String {
    reason_after([last])
}

/// Runs one guest that ends by the last of `steps`, and gives what the console says of its end.
fn reason_after(steps: impl IntoIterator<Item = Step>) -> String {
    let (mut machine, world) = Bench::new().vm("a", script(steps)).boot::<FakeChipset>();
    finish(&mut machine);
    assert_eq!(machine.pool.used(), 0, "a VM that has ended keeps memory");
    let lines = world.lines_of("lamina");
    let reason = lines.iter().find_map(|line| line.strip_prefix("a stopped: ")).expect("a stops");
    reason.into()
}
