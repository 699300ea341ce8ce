//! The guest's local APIC, virtualized by the processor (SDM vol. 3, "APIC Virtualization and Virtual Interrupts").
//!
//! Owns the controls for each mode of the APIC and the fields that say which interrupts wait, are in service, and exit
//! at their end. Never changes a register: those are the chipset's and the processor's.

use alloc::sync::Arc;

use lamina_arch::addr::Hpa;
use lamina_arch::vmx::controls::{ProcessorBased, Secondary};
use lamina_arch::vmx::field;
use lamina_vmm::apic::{ApicMode, ApicPage};

use super::enable::Shared;
use super::vmcs::Current;
use crate::memory::hpa_of;

/// The primary controls that are as they are for the APIC's sake.
const PRIMARY: ProcessorBased =
    ProcessorBased::CR8_LOAD_EXITING.union(ProcessorBased::CR8_STORE_EXITING).union(ProcessorBased::USE_TPR_SHADOW);

/// A virtualized local APIC.
pub struct VirtualApic {
    /// The processor reaches it by its address, which is in the VMCS; it must not go before that does.
    registers: Arc<ApicPage>,
    mode: ApicMode,
    /// EOI-exit bitmap as the VMCS has it.
    eoi_exits: [u64; 4],
}

impl VirtualApic {
    /// Tells the VMCS where the registers are, and the page in whose place the guest finds them. Nothing is on yet.
    pub fn new(vmcs: &mut Current<'_>, registers: Arc<ApicPage>, access: Hpa) -> VirtualApic {
        vmcs.write(field::VIRTUAL_APIC_ADDRESS, hpa_of(Arc::as_ptr(&registers)).0);
        vmcs.write(field::APIC_ACCESS_ADDRESS, access.0);
        // With virtual-interrupt delivery no threshold counts.
        vmcs.write(field::TPR_THRESHOLD, 0);
        let mut apic = VirtualApic { registers, mode: ApicMode::Off, eoi_exits: [u64::MAX; 4] };
        apic.write_eoi_exits(vmcs, [0; 4]);
        apic
    }

    /// Writes the controls for `mode`, where it is another than before; `primary` are the primary ones, `secondary` the
    /// secondary ones without the APIC's. Whether it is another: then the cached translations are to be forgotten (SDM vol. 3, "Guidelines for Use of the INVVPID
    /// Instruction"). VMWRITEs: 3.
    pub fn set_mode(
        &mut self,
        vmcs: &mut Current<'_>,
        shared: &Shared,
        mode: ApicMode,
        primary: &mut u32,
        secondary: u32,
    ) -> bool {
        if self.mode == mode {
            return false;
        }
        self.mode = mode;
        let delivery = Secondary::APIC_REGISTER_VIRTUALIZATION | Secondary::VIRTUAL_INTERRUPT_DELIVERY;
        let (virtualized, bitmap) = match mode {
            ApicMode::Off => (Secondary::empty(), &shared.msr_bitmap),
            ApicMode::Xapic => (delivery | Secondary::VIRTUALIZE_APIC_ACCESSES, &shared.msr_bitmap),
            ApicMode::X2apic => (delivery | Secondary::VIRTUALIZE_X2APIC_MODE, &shared.x2apic_bitmap),
        };
        vmcs.write(field::SECONDARY_CONTROLS, secondary | virtualized.bits());
        vmcs.write(field::MSR_BITMAP, bitmap.hpa().0);
        let on = match mode {
            ApicMode::Off => PRIMARY - ProcessorBased::USE_TPR_SHADOW,
            ApicMode::Xapic | ApicMode::X2apic => ProcessorBased::USE_TPR_SHADOW,
        };
        *primary = *primary & !PRIMARY.bits() | on.bits();
        vmcs.write(field::PROCESSOR_BASED_CONTROLS, *primary);
        true
    }

    /// Looks up in the registers which interrupts wait and are in service, and whose end exits. VMWRITEs: 1, and one for
    /// each 64 vectors of which another is level-triggered than before.
    pub fn look(&mut self, vmcs: &mut Current<'_>) {
        if self.mode != ApicMode::Off {
            vmcs.write(field::GUEST_INTERRUPT_STATUS, self.registers.interrupt_status());
            self.write_eoi_exits(vmcs, self.registers.level_triggered());
        }
    }

    fn write_eoi_exits(&mut self, vmcs: &mut Current<'_>, vectors: [u64; 4]) {
        let fields =
            [field::EOI_EXIT_BITMAP0, field::EOI_EXIT_BITMAP1, field::EOI_EXIT_BITMAP2, field::EOI_EXIT_BITMAP3];
        for ((field, new), old) in fields.into_iter().zip(vectors).zip(&mut self.eoi_exits) {
            if *old != new {
                vmcs.write(field, new);
                *old = new;
            }
        }
    }
}
