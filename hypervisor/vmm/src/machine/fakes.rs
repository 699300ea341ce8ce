//! A machine that is none, for tests: processor, memory, time, serial port and devices that follow a script, driven by
//! the same loop as the real ones.
//!
//! [`Bench`] describes VMs and what their guests do, [`Bench::boot`] makes a [`Machine`](super::Machine) of it, and
//! [`World`] shows what has happened. The fakes are as strict as a processor: what the loop must never do (inject an
//! interrupt where it cannot be taken, enter a vCPU that is not loaded, halt for ever) panics, and fails the test.

mod apic;
mod bench;
mod chipset;
mod host;
mod instructions;
mod step;
mod trace;
mod vcpu;

pub use bench::{Bench, ENTRY, elf_image};
pub use chipset::{
    BUG_PORT, CONSOLE_PORT, CONSOLE_STATUS_PORT, CONSOLE_VECTOR, DATA_PORT, FakeChipset, INTERRUPT_PORT, NMI_PORT,
    REGISTER, TIMER_VECTOR, UNMASKED_PORT,
};
pub use host::{FakeHost, HZ, Idle, SERIAL_VECTOR, World};
pub use instructions::*;
pub use step::{Program, Step};
pub use trace::Trace;
pub use vcpu::FakeVcpu;
