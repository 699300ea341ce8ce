//! Rules for the VM-execution, VM-exit and VM-entry control fields ("Checks on VMX Controls").

use super::{Checker, Injection, Reader, kind};
use crate::cr::Cr0;
use crate::event::vector;
use crate::vmx::controls::{EntryControls, EptVpidCapabilities, ExitControls, PinBased, ProcessorBased, Secondary};
use crate::vmx::field::{self, Bits32, Bits64, Field, ReadWrite};

pub(super) fn check<R: Reader>(c: &mut Checker<'_, R>) {
    c.section = "VM-Execution Control Fields";
    reserved_execution_bits(c);
    bitmaps(c);
    apic(c);
    interrupts_and_nmis(c);
    nested_paging(c);
    functions(c);
    c.section = "VM-Exit Control Fields";
    exit(c);
    c.section = "VM-Entry Control Fields";
    entry(c);
}

/// Whether `value` is 1 where a capability MSR's low half is and 0 where its high half is.
fn allowed(value: u32, capability: u64) -> bool {
    let must = (capability & 0xffff_ffff) as u32;
    let may = (capability >> 32) as u32;
    value & must == must && value & !may == 0
}

impl<R: Reader> Checker<'_, R> {
    /// A page that the hypervisor gives to the processor.
    fn page(&mut self, field: Field<Bits64, ReadWrite>) {
        let holds = self.read(field) & (0xfff | !self.capabilities.structure_mask()) == 0;
        self.rule(field, holds, "The address is a multiple of 4 KiB within the physical-address width.");
    }

    /// An area of `count` MSRs, 16 bytes each, at `address`.
    fn msr_area(&mut self, count: Field<Bits32, ReadWrite>, address: Field<Bits64, ReadWrite>) {
        let length = u64::from(self.read(count)) * 16;
        if length == 0 {
            return;
        }
        let first = self.read(address);
        let inside = |last: u64| (first | last) & !self.capabilities.structure_mask() == 0;
        let fits = first.checked_add(length - 1).is_some_and(inside);
        self.rule(address, first & 0xf == 0, "An MSR area is aligned to 16 bytes.");
        self.rule(address, fits, "An MSR area ends within the physical-address width.");
    }

    fn secondary_without(&mut self, control: Secondary, holds: bool, rule: &'static str) {
        self.rule(field::SECONDARY_CONTROLS, holds || !self.secondary.intersects(control), rule);
    }
}

fn reserved_execution_bits<R: Reader>(c: &mut Checker<'_, R>) {
    let capabilities = c.capabilities;
    let holds = allowed(c.read(field::PIN_BASED_CONTROLS), capabilities.pin_controls());
    c.rule(field::PIN_BASED_CONTROLS, holds, "The pin-based controls keep to their capability MSR.");
    let holds = allowed(c.read(field::PROCESSOR_BASED_CONTROLS), capabilities.processor_controls());
    c.rule(field::PROCESSOR_BASED_CONTROLS, holds, "The primary controls keep to their capability MSR.");
    if c.processor.contains(ProcessorBased::ACTIVATE_SECONDARY_CONTROLS) {
        let holds = allowed(c.read(field::SECONDARY_CONTROLS), capabilities.secondary_controls());
        c.rule(field::SECONDARY_CONTROLS, holds, "The secondary controls keep to their capability MSR.");
    }
    if c.processor.contains(ProcessorBased::ACTIVATE_TERTIARY_CONTROLS) {
        let holds = c.read(field::TERTIARY_CONTROLS) & !capabilities.tertiary == 0;
        c.rule(field::TERTIARY_CONTROLS, holds, "The tertiary controls keep to their capability MSR.");
    }
    let holds = c.read(field::CR3_TARGET_COUNT) <= capabilities.cr3_targets();
    c.rule(field::CR3_TARGET_COUNT, holds, "There are no more CR3 targets than IA32_VMX_MISC says.");
}

fn bitmaps<R: Reader>(c: &mut Checker<'_, R>) {
    if c.processor.contains(ProcessorBased::USE_IO_BITMAPS) {
        c.page(field::IO_BITMAP_A);
        c.page(field::IO_BITMAP_B);
    }
    if c.processor.contains(ProcessorBased::USE_MSR_BITMAPS) {
        c.page(field::MSR_BITMAP);
    }
    if c.secondary.contains(Secondary::VMCS_SHADOWING) {
        c.page(field::VMREAD_BITMAP);
        c.page(field::VMWRITE_BITMAP);
    }
}

fn apic<R: Reader>(c: &mut Checker<'_, R>) {
    let shadow = c.processor.contains(ProcessorBased::USE_TPR_SHADOW);
    let delivery = c.secondary.contains(Secondary::VIRTUAL_INTERRUPT_DELIVERY);
    if shadow {
        c.page(field::VIRTUAL_APIC_ADDRESS);
        let holds = delivery || c.read(field::TPR_THRESHOLD) >> 4 == 0;
        c.rule(field::TPR_THRESHOLD, holds, "Bits 31:4 of the TPR threshold are 0.");
    }
    let needs_shadow = Secondary::VIRTUALIZE_X2APIC_MODE
        .union(Secondary::APIC_REGISTER_VIRTUALIZATION)
        .union(Secondary::VIRTUAL_INTERRUPT_DELIVERY);
    c.secondary_without(needs_shadow, shadow, "Virtualizing APIC registers or interrupts needs the TPR shadow.");
    if c.secondary.contains(Secondary::VIRTUALIZE_APIC_ACCESSES) {
        c.page(field::APIC_ACCESS_ADDRESS);
        let x2apic = Secondary::VIRTUALIZE_X2APIC_MODE;
        c.secondary_without(x2apic, false, "Virtualized x2APIC mode excludes virtualized APIC accesses.");
    }
}

fn interrupts_and_nmis<R: Reader>(c: &mut Checker<'_, R>) {
    let pin = c.pin;
    let delivery = c.secondary.contains(Secondary::VIRTUAL_INTERRUPT_DELIVERY);
    let holds = pin.contains(PinBased::NMI_EXITING) || !pin.contains(PinBased::VIRTUAL_NMIS);
    c.rule(field::PIN_BASED_CONTROLS, holds, "Virtual NMIs need NMI exiting.");
    let window = c.processor.contains(ProcessorBased::NMI_WINDOW_EXITING);
    let holds = pin.contains(PinBased::VIRTUAL_NMIS) || !window;
    c.rule(field::PROCESSOR_BASED_CONTROLS, holds, "NMI-window exiting needs virtual NMIs.");
    let holds = pin.contains(PinBased::EXTERNAL_INTERRUPT_EXITING) || !delivery;
    c.rule(field::PIN_BASED_CONTROLS, holds, "Virtual-interrupt delivery needs external-interrupt exiting.");
    if pin.contains(PinBased::POSTED_INTERRUPTS) {
        c.rule(field::PIN_BASED_CONTROLS, delivery, "Posted interrupts need virtual-interrupt delivery.");
        let acknowledged = c.exit.contains(ExitControls::ACKNOWLEDGE_INTERRUPT);
        c.rule(field::EXIT_CONTROLS, acknowledged, "Posted interrupts need interrupts acknowledged on exit.");
        let holds = c.read(field::POSTED_INTERRUPT_VECTOR) >> 8 == 0;
        c.rule(field::POSTED_INTERRUPT_VECTOR, holds, "The posted-interrupt vector is below 256.");
        let holds = c.read(field::POSTED_INTERRUPT_DESCRIPTOR) & (0x3f | !c.capabilities.structure_mask()) == 0;
        c.rule(field::POSTED_INTERRUPT_DESCRIPTOR, holds, "The posted-interrupt descriptor is aligned to 64 bytes.");
    }
}

fn nested_paging<R: Reader>(c: &mut Checker<'_, R>) {
    if c.secondary.contains(Secondary::ENABLE_VPID) {
        let holds = c.read(field::VIRTUAL_PROCESSOR_ID) != 0;
        c.rule(field::VIRTUAL_PROCESSOR_ID, holds, "VPID 0 is the hypervisor's own.");
    }
    let ept = c.secondary.contains(Secondary::ENABLE_EPT);
    if ept {
        ept_pointer(c);
    }
    c.secondary_without(Secondary::UNRESTRICTED_GUEST, ept, "An unrestricted guest needs EPT.");
    c.secondary_without(Secondary::ENABLE_PML, ept, "The page-modification log needs EPT.");
    c.secondary_without(Secondary::MODE_BASED_EXECUTE, ept, "Mode-based execute control needs EPT.");
    c.secondary_without(Secondary::SUB_PAGE_WRITE, ept, "Sub-page write permissions need EPT.");
    c.secondary_without(Secondary::PT_GUEST_PHYSICAL, ept, "Processor Trace to guest-physical memory needs EPT.");
    if c.secondary.contains(Secondary::ENABLE_PML) {
        c.page(field::PML_ADDRESS);
    }
    if c.secondary.contains(Secondary::SUB_PAGE_WRITE) {
        c.page(field::SUB_PAGE_PERMISSION_TABLE);
    }
    if c.secondary.contains(Secondary::EPT_VIOLATION_VE) {
        c.page(field::VIRTUALIZATION_EXCEPTION_ADDRESS);
    }
}

/// Table "Format of Extended-Page-Table Pointer".
fn ept_pointer<R: Reader>(c: &mut Checker<'_, R>) {
    let pointer = c.read(field::EPT_POINTER);
    let has = |capability| c.capabilities.ept_vpid().contains(capability);
    let memory_type = match pointer & 7 {
        0 => has(EptVpidCapabilities::UNCACHED),
        6 => has(EptVpidCapabilities::WRITE_BACK),
        _ => false,
    };
    let levels = match pointer >> 3 & 7 {
        3 => has(EptVpidCapabilities::WALK_LENGTH_4),
        4 => has(EptVpidCapabilities::WALK_LENGTH_5),
        _ => false,
    };
    let accessed_dirty = pointer & 1 << 6 == 0 || has(EptVpidCapabilities::ACCESSED_DIRTY);
    let shadow_stack = pointer & 1 << 7 == 0 || has(EptVpidCapabilities::SUPERVISOR_SHADOW_STACK);
    let reserved = pointer & (0xf00 | !c.capabilities.physical_mask()) == 0;
    let eptp = field::EPT_POINTER;
    c.rule(eptp, memory_type, "EPTP bits 2:0 are a memory type that EPT supports: 6 (WB) or 0 (UC).");
    c.rule(eptp, levels, "EPTP bits 5:3 are the number of supported table levels less 1.");
    c.rule(eptp, accessed_dirty, "EPTP bit 6 needs accessed and dirty flags for EPT.");
    c.rule(eptp, shadow_stack, "EPTP bit 7 needs EPT's rights for supervisor shadow stacks.");
    c.rule(eptp, reserved, "EPTP bits 11:8 and those beyond the physical-address width are 0.");
}

fn functions<R: Reader>(c: &mut Checker<'_, R>) {
    if c.secondary.contains(Secondary::ENABLE_VMFUNC) {
        let functions = c.read(field::VM_FUNCTION_CONTROLS);
        let holds = functions & !c.capabilities.vmfunc == 0;
        c.rule(field::VM_FUNCTION_CONTROLS, holds, "The VM functions keep to IA32_VMX_VMFUNC.");
        if functions & c.capabilities.vmfunc & 1 != 0 {
            let ept = c.secondary.contains(Secondary::ENABLE_EPT);
            c.rule(field::VM_FUNCTION_CONTROLS, ept, "Switching EPT pointers needs EPT.");
            c.page(field::EPTP_LIST_ADDRESS);
        }
    }
    if c.secondary.contains(Secondary::USE_TSC_SCALING) {
        let holds = c.read(field::TSC_MULTIPLIER) != 0;
        c.rule(field::TSC_MULTIPLIER, holds, "The TSC multiplier is not 0.");
    }
}

fn exit<R: Reader>(c: &mut Checker<'_, R>) {
    let holds = allowed(c.read(field::EXIT_CONTROLS), c.capabilities.exit_controls());
    c.rule(field::EXIT_CONTROLS, holds, "The exit controls keep to their capability MSR.");
    if c.exit.contains(ExitControls::ACTIVATE_SECONDARY_CONTROLS) {
        let holds = c.read(field::SECONDARY_EXIT_CONTROLS) & !c.capabilities.secondary_exit == 0;
        c.rule(field::SECONDARY_EXIT_CONTROLS, holds, "The secondary exit controls keep to their capability MSR.");
    }
    let saved = c.exit.contains(ExitControls::SAVE_PREEMPTION_TIMER);
    let holds = c.pin.contains(PinBased::PREEMPTION_TIMER) || !saved;
    c.rule(field::EXIT_CONTROLS, holds, "Saving the preemption timer needs the timer to be active.");
    let trace = c.secondary.contains(Secondary::PT_GUEST_PHYSICAL);
    let holds = c.exit.contains(ExitControls::CLEAR_RTIT_CTL) || !trace;
    c.rule(field::EXIT_CONTROLS, holds, "Processor Trace to guest-physical memory is turned off on exit.");
    c.msr_area(field::EXIT_MSR_STORE_COUNT, field::EXIT_MSR_STORE_ADDRESS);
    c.msr_area(field::EXIT_MSR_LOAD_COUNT, field::EXIT_MSR_LOAD_ADDRESS);
}

fn entry<R: Reader>(c: &mut Checker<'_, R>) {
    let holds = allowed(c.read(field::ENTRY_CONTROLS), c.capabilities.entry_controls());
    c.rule(field::ENTRY_CONTROLS, holds, "The entry controls keep to their capability MSR.");
    let smm = EntryControls::ENTRY_TO_SMM.union(EntryControls::DEACTIVATE_DUAL_MONITOR);
    let holds = !c.entry.intersects(smm);
    c.rule(field::ENTRY_CONTROLS, holds, "Only a processor in SMM enters SMM or ends the SMM monitor's work.");
    let trace = c.secondary.contains(Secondary::PT_GUEST_PHYSICAL);
    let holds = c.entry.contains(EntryControls::LOAD_RTIT_CTL) || !trace;
    c.rule(field::ENTRY_CONTROLS, holds, "Processor Trace to guest-physical memory is set up on entry.");
    c.msr_area(field::ENTRY_MSR_LOAD_COUNT, field::ENTRY_MSR_LOAD_ADDRESS);
    if let Some(injection) = c.injection {
        inject(c, injection);
    }
}

/// Whether a protected-mode exception pushes an error code; #CP (21) is not among those that the check knows.
fn pushes_error_code(number: u32) -> bool {
    use vector::{AC, DF, GP, NP, PF, SS, TS};
    [DF, TS, NP, SS, GP, PF, AC].iter().any(|with| u32::from(*with) == number)
}

fn inject<R: Reader>(c: &mut Checker<'_, R>, event: Injection) {
    let information = field::ENTRY_INTERRUPTION_INFORMATION;
    let reserved = c.read(information) & 0x7fff_f000;
    c.rule(information, reserved == 0, "Bits 30:12 of the injected event are 0.");
    let trap_flag = c.capabilities.processor_controls() >> 32 & u64::from(ProcessorBased::MONITOR_TRAP_FLAG.bits());
    let known = match event.kind {
        kind::RESERVED => false,
        kind::OTHER => trap_flag != 0,
        _ => true,
    };
    c.rule(information, known, "The injected type is not 1, and 7 only where there is a monitor trap flag.");
    let vector = match event.kind {
        kind::NMI => event.vector == u32::from(vector::NMI),
        kind::HARDWARE_EXCEPTION => event.vector < 32,
        kind::OTHER => event.vector == 0,
        _ => true,
    };
    c.rule(information, vector, "An NMI has vector 2, an exception one below 32, a monitor trap 0.");
    error_code(c, event);
    let software =
        matches!(event.kind, kind::SOFTWARE_INTERRUPT | kind::PRIVILEGED_SOFTWARE_EXCEPTION | kind::SOFTWARE_EXCEPTION);
    if software {
        let length = c.read(field::ENTRY_INSTRUCTION_LENGTH);
        let holds = length <= 15 && (length > 0 || c.capabilities.zero_length_injection());
        c.rule(field::ENTRY_INSTRUCTION_LENGTH, holds, "A software event's instruction has 1 to 15 bytes.");
    }
}

fn error_code<R: Reader>(c: &mut Checker<'_, R>, event: Injection) {
    let information = field::ENTRY_INTERRUPTION_INFORMATION;
    let exception = event.kind == kind::HARDWARE_EXCEPTION;
    let protected = c.read(field::GUEST_CR0) & Cr0::PE.bits() != 0;
    let by_vector = exception && !c.capabilities.any_error_code();
    let pushes = pushes_error_code(event.vector);
    if event.error_code {
        c.rule(information, exception, "Only a hardware exception has an error code.");
        c.rule(information, protected, "There are no error codes in real mode.");
        c.rule(information, pushes || !by_vector, "This exception has no error code.");
        let holds = c.read(field::ENTRY_EXCEPTION_ERROR_CODE) >> 16 == 0;
        c.rule(field::ENTRY_EXCEPTION_ERROR_CODE, holds, "Bits 31:16 of an injected error code are 0.");
    } else {
        let missing = by_vector && protected && pushes;
        c.rule(information, !missing, "In protected mode this exception has an error code.");
    }
}
