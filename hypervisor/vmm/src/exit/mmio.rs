//! Accesses to guest-physical addresses that the nested tables do not map: devices, open bus, or the VM's end.

use lamina_arch::addr::Gpa;
use lamina_arch::exit::{NestedFault, Width};
use lamina_arch::regs::SysReg;
use lamina_arch::time::Tsc;

use super::{Resume, chipset_now, linear};
use crate::chipset::Chipset;
use crate::host::Host;
use crate::insn::{self, Done, Operand};
use crate::layout;
use crate::stop::StopReason;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// The device side of an emulated instruction.
struct Device<'a, C> {
    chipset: &'a mut C,
    now: Tsc,
    gpa: Gpa,
}

impl<C: Chipset> Operand for Device<'_, C> {
    fn read(&mut self, width: Width) -> u64 {
        let mut data = [0; 8];
        // An address that nobody claims reads as all ones, and the chipset counts it.
        let _claimed = self.chipset.mmio_read(self.now, self.gpa, &mut data[..width.bytes()]);
        u64::from_le_bytes(data)
    }

    fn write(&mut self, value: u64, width: Width) {
        let _claimed = self.chipset.mmio_write(self.now, self.gpa, &value.to_le_bytes()[..width.bytes()]);
    }
}

/// Whether a PC has a bus behind `gpa`, so that an address without a device is open bus and no error.
const fn is_bus(gpa: Gpa) -> bool {
    (layout::LOW_MEMORY_END.0 <= gpa.0 && gpa.0 < layout::HIGH_MEMORY.0)
        || (layout::PCI_HOLE.0 <= gpa.0 && gpa.0 < layout::ABOVE_4G.0)
}

/// Handles an access that the nested tables refused.
pub fn access<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H, fault: &NestedFault) -> Resume {
    let delivering = vm.vcpu.interrupted_event().is_some();
    if !is_bus(fault.gpa) || fault.table_walk || fault.fetch || delivering {
        let access = match (fault.fetch, fault.write) {
            (true, _) => "instruction fetch",
            (false, true) => "write",
            (false, false) => "read",
        };
        let rip = vm.vcpu.read(SysReg::Rip);
        return Resume::Stop(StopReason::OutsideMemory { gpa: fault.gpa, access, rip });
    }
    let mut bytes = [0; insn::MAX_LENGTH];
    let (have, bits, rip) = linear::fetch(vm, host, &mut bytes);
    let now = chipset_now(vm, host);
    let mut device = Device { chipset: &mut vm.chipset, now, gpa: fault.gpa };
    let outcome = insn::decode(&bytes[..have], bits, rip)
        .and_then(|instruction| insn::execute(&mut vm.vcpu, &instruction, &mut device));
    match outcome {
        Ok(Done::Advance(length)) => Resume::AdvanceBy(length),
        Ok(Done::Again) => Resume::Again,
        Err(_) => Resume::Stop(StopReason::NotEmulated {
            bytes: bytes[..have].to_vec(),
            why: "access to a device by an instruction that is not emulated",
            rip,
        }),
    }
}
