//! Tests of the emulator: forms assembled by a library, against a model that computes bit by bit, on a processor with
//! a little memory, a device and a page table that can refuse.

mod arithmetic;
mod bmi;
mod far;
mod faults;
mod forms;
mod harness;
mod machine;
mod model;
mod segments;
mod stacks;
mod strings;
mod system;
mod tasks;
mod totality;
mod vectors;
mod x87;
