//! What a processor that virtualizes the local APIC leaves to do. Both exits come behind their instruction.

use super::{Resume, chipset_now};
use crate::chipset::Chipset;
use crate::host::Host;
use crate::vm::Vm;

/// The guest has written the register at `offset`.
pub fn written<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &H, offset: u16) -> Resume {
    let now = chipset_now(vm, host);
    vm.chipset.apic_written(now, offset);
    Resume::Again
}

/// The processor has ended the level-triggered interrupt `vector`.
pub fn ended<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &H, vector: u8) -> Resume {
    let now = chipset_now(vm, host);
    vm.chipset.apic_ended(now, vector);
    Resume::Again
}
