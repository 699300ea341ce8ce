//! After an exit: the VMREADs that decoding needs, and no others.

use lamina_arch::vmx::exit::{Captured, IO_STRING, Needs, decode, needs};
use lamina_arch::vmx::field;
use lamina_arch::vmx::interruption::{ERROR_CODE_VALID, VALID, is_software};

use super::vmcs::{Current, peek};

/// Bit 7 of an EPT violation's qualification: the guest-linear address is valid.
const LINEAR_VALID: u64 = 1 << 7;

/// Reads what the decoding of an exit with `reason` needs. How many VMREADs that are for each reason stands at [`needs`].
pub fn capture(vmcs: &Current<'_>, reason: u32) -> Captured {
    let mut c = Captured { reason, ..Captured::default() };
    let needs = needs((c.reason & 0xffff) as u16);
    if needs.is_empty() {
        return c;
    }
    if needs.contains(Needs::QUALIFICATION) {
        c.qualification = vmcs.read(field::EXIT_QUALIFICATION);
    }
    if needs.contains(Needs::INTERRUPTION) {
        c.interruption = vmcs.read(field::EXIT_INTERRUPTION_INFORMATION);
        if c.interruption & (VALID | ERROR_CODE_VALID) == VALID | ERROR_CODE_VALID {
            c.interruption_error = vmcs.read(field::EXIT_INTERRUPTION_ERROR_CODE);
        }
        if is_software(c.interruption) {
            c.instruction_length = vmcs.read(field::EXIT_INSTRUCTION_LENGTH);
        }
    }
    if needs.contains(Needs::IDT_VECTORING) {
        c.idt_vectoring = vmcs.read(field::IDT_VECTORING_INFORMATION);
        if c.idt_vectoring & VALID != 0 {
            c.instruction_length = vmcs.read(field::EXIT_INSTRUCTION_LENGTH);
            if c.idt_vectoring & ERROR_CODE_VALID != 0 {
                c.idt_vectoring_error = vmcs.read(field::IDT_VECTORING_ERROR_CODE);
            }
        }
    }
    if needs.contains(Needs::GUEST_PHYSICAL) {
        c.guest_physical = vmcs.read(field::GUEST_PHYSICAL_ADDRESS);
    }
    if needs.contains(Needs::GUEST_LINEAR) && c.qualification & LINEAR_VALID != 0 {
        c.guest_linear = vmcs.read(field::GUEST_LINEAR_ADDRESS);
    }
    if needs.contains(Needs::STRING_IO) && c.qualification & IO_STRING != 0 {
        c.instruction_information = vmcs.read(field::EXIT_INSTRUCTION_INFORMATION);
        c.guest_linear = vmcs.read(field::GUEST_LINEAR_ADDRESS);
    }
    c
}

/// For the report of a bug: what the guest whose VMCS is current last exited for, and its RIP then.
pub fn last_exit() -> Option<(&'static str, u64)> {
    let reason = peek(field::EXIT_REASON)?;
    let kind = decode(&Captured { reason, ..Captured::default() }).kind();
    Some((kind.name(), peek(field::GUEST_RIP)?))
}
