//! The records of VMs that are traced, on their way to the console.

use super::{Machine, State};
use crate::chipset::Chipset;
use crate::console::Console;
use crate::host::Host;
use crate::trace::{self, PREFIX};
use crate::vcpu::Vcpu;
use crate::vm::Vm;

impl<H: Host, C: Chipset> Machine<H, C> {
    /// Shows the records that wait. None is lost: the machine waits for the serial port instead.
    pub(super) fn show_records(&mut self) {
        for index in 0..self.slots.len() {
            if let State::Alive(vm) = &mut self.slots[index].state
                && vm.trace.is_some()
                && show(&mut self.console, &mut *vm)
            {
                self.flush();
            }
        }
    }
}

/// Gives the records of `vm` to the console; whether there were any. One that has made all its records is told so.
pub(super) fn show<V: Vcpu, C>(console: &mut Console, vm: &mut Vm<V, C>) -> bool {
    let Some(recorder) = &mut vm.trace else { return false };
    let records = recorder.take();
    for record in &records {
        console.announce(&trace::line(&vm.name, record));
    }
    if recorder.is_done() {
        console.announce(&alloc::format!("{PREFIX}{} end", vm.name));
        vm.trace = None;
    }
    !records.is_empty()
}
