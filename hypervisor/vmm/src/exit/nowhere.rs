//! What the processor reads by itself where neither memory nor a device answers: code, page tables, the IDT. It finds all
//! ones there, as on a PC, and the guest gets what a processor makes of them.
//!
//! Owns what all ones mean. What is not here ends the VM: stacks, segments and tasks of an event's delivery there.

use lamina_arch::addr::Gla;
use lamina_arch::cr::{Cr0, Efer};
use lamina_arch::event::{Event, EventKind, GuestFault, vector};
use lamina_arch::exit::NestedFault;
use lamina_arch::regs::SysReg;

use super::emulate::{self, Cause};
use super::{Resume, chipset_now};
use crate::chipset::Chipset;
use crate::host::Host;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// Error code: the selector is an index into the IDT; the fault came up in delivering what is outside of the program.
const IDT: u32 = 1 << 1;
const EXTERNAL: u32 = 1;

/// Answers `fault`, which is no data access of an instruction's: `delivering` is the event whose delivery made it. `None`
/// where a device answers, or where that is not known.
pub fn read<H: Host, C: Chipset>(
    vm: &mut Vm<H::Vcpu, C>,
    host: &mut H,
    fault: &NestedFault,
    delivering: Option<Event>,
) -> Option<Resume> {
    let now = chipset_now(vm, host);
    if vm.chipset.mmio_read(now, fault.gpa, &mut [0xff; 4]) {
        return None;
    }
    let Some(event) = delivering else { return Some(emulate::finish(vm, host, Cause::Memory(fault))) };
    let linear = fault.linear?;
    let gate = is_gate(&mut vm.vcpu, event.vector, linear)?;
    if fault.table_walk {
        let translated = emulate::translate_for_system(vm, host, linear, !gate);
        return translated.err().map(Resume::Inject);
    }
    gate.then(|| Resume::Inject(no_gate(event)))
}

/// Whether `linear` is in the gate of `vector`; `None` in real mode, where there are no gates.
fn is_gate<V: Vcpu>(vcpu: &mut V, vector: u8, linear: Gla) -> Option<bool> {
    if vcpu.read(SysReg::Cr0) & Cr0::PE.bits() == 0 {
        return None;
    }
    let size = if vcpu.read(SysReg::Efer) & Efer::LMA.bits() != 0 { 16 } else { 8 };
    let gate = vcpu.read(SysReg::IdtBase).wrapping_add(u64::from(vector) * size);
    Some(linear.0.wrapping_sub(gate) < size)
}

/// A descriptor of all ones is no gate: its S flag is set (SDM vol. 2, "INT n/INTO/INT3/INT1", "Operation").
const fn no_gate(event: Event) -> GuestFault {
    let external = match event.kind {
        EventKind::SoftwareInterrupt | EventKind::SoftwareException => 0,
        _ => EXTERNAL,
    };
    let error = (event.vector as u32) << 3 | IDT | external;
    GuestFault { vector: vector::GP, error: Some(error), cr2: None }
}
