//! Accesses to guest-physical addresses that the nested tables do not map: devices, open bus, or the VM's end.

use lamina_arch::addr::Gpa;
use lamina_arch::exit::NestedFault;
use lamina_arch::regs::SysReg;

use super::Resume;
use super::emulate::{self, Cause};
use super::nowhere;
use crate::chipset::Chipset;
use crate::host::Host;
use crate::layout;
use crate::stop::StopReason;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// Whether a PC has a bus behind `gpa`, so that an address without a device is open bus and no error. On a PC it is
/// behind all that is no memory, and firmware and Multiboot images may rely on it; a bzImage or a plain ELF file, which
/// was given a map of its memory by us, goes beyond by mistake only, and that is its end.
pub const fn is_bus<V: Vcpu, C>(vm: &Vm<V, C>, gpa: Gpa) -> bool {
    vm.open_bus
        || (layout::LOW_MEMORY_END.0 <= gpa.0 && gpa.0 < layout::HIGH_MEMORY.0)
        || (layout::PCI_HOLE.0 <= gpa.0 && gpa.0 < layout::ABOVE_4G.0)
}

/// Handles an access that the nested tables refused.
pub fn access<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H, fault: &NestedFault) -> Resume {
    let delivering = vm.vcpu.interrupted_event();
    let is_bus = is_bus(vm, fault.gpa);
    let is_data = !fault.table_walk && !fault.fetch && delivering.is_none();
    let resume = match (is_bus, is_data) {
        (true, true) => Some(emulate::finish(vm, host, Cause::Memory(fault))),
        (true, false) => nowhere::read(vm, host, fault, delivering),
        (false, _) => None,
    };
    resume.unwrap_or_else(|| {
        let access = match (fault.fetch, fault.write, fault.read) {
            (true, ..) => "instruction fetch",
            (_, true, _) => "write",
            (_, _, true) => "read",
            // Not every exit tells.
            _ => "access",
        };
        let rip = vm.vcpu.read(SysReg::Rip);
        Resume::Stop(StopReason::OutsideMemory { gpa: fault.gpa, access, rip })
    })
}
