//! Accesses to guest-physical addresses that the nested tables refuse: memory that is touched for the first time, or
//! what is no memory at all.

use lamina_arch::exit::NestedFault;

use super::{Resume, Surroundings, mmio};
use crate::chipset::Chipset;
use crate::fault::{self, Site};
use crate::host::Host;
use crate::memory::Touched;
use crate::stop::StopReason;
use crate::vm::Vm;

/// Handles an access that the nested tables refused.
pub fn fault<H: Host, C: Chipset>(
    vm: &mut Vm<H::Vcpu, C>,
    around: &mut Surroundings<'_, H>,
    fault: &NestedFault,
) -> Resume {
    fault::point(Site::Nested);
    match vm.memory.touch(around.host, around.pool, fault.gpa) {
        Touched::NotLazy => mmio::access(vm, around.host, fault),
        Touched::NoFrame => Resume::Stop(StopReason::OutOfFrames),
        Touched::Backed { gpa, hpa, size } => match vm.map(around.host, around.pool, gpa, hpa, size) {
            Ok(()) => Resume::Again,
            Err(_) => Resume::Stop(StopReason::OutOfFrames),
        },
    }
}
