//! The numbers with which VMX instructions and VM entries fail.

use crate::vmx::exit::reason;

/// What a VM-instruction error means (SDM vol. 3, "VM Instruction Error Numbers").
pub const fn instruction_error(number: u32) -> &'static str {
    match number {
        0 => "no VMX instruction has failed",
        1 => "VMCALL was executed by the hypervisor itself",
        2 => "VMCLEAR: not a physical address of a VMCS",
        3 => "VMCLEAR: the address is that of the VMXON region",
        4 => "VMLAUNCH: this VMCS was launched before, use VMRESUME",
        5 => "VMRESUME: this VMCS was not launched yet, use VMLAUNCH",
        6 => "VMRESUME: VMX was turned off and on since the launch",
        7 => "VM entry: the control fields break a rule",
        8 => "VM entry: the host state breaks a rule",
        9 => "VMPTRLD: not a physical address of a VMCS",
        10 => "VMPTRLD: the address is that of the VMXON region",
        11 => "VMPTRLD: the region begins with another processor's revision identifier",
        12 => "VMREAD or VMWRITE: the processor has no such field",
        13 => "VMWRITE: the field is read-only",
        15 => "VMXON: VMX is on already",
        16 => "VM entry from SMM: the executive-VMCS pointer is invalid",
        17 => "VM entry from SMM: the executive VMCS was not launched",
        18 => "VM entry from SMM: the executive-VMCS pointer is not the VMXON region's address",
        19 => "VMCALL to the SMM monitor: the VMCS was launched",
        20 => "VMCALL to the SMM monitor: the exit controls are invalid",
        22 => "VMCALL to the SMM monitor: MSEG has another revision identifier",
        23 => "VMXOFF: the SMM monitor is active",
        24 => "VMCALL to the SMM monitor: MSEG asks for features that are not there",
        25 => "VM entry from SMM: the executive VMCS's execution controls are invalid",
        26 => "VM entry: the hypervisor's last instruction was a MOV to SS or POP SS",
        28 => "INVEPT or INVVPID: the operand is invalid",
        _ => "a number that the manual does not define",
    }
}

/// What an exit says that stands for a failed VM entry: `basic` is the basic exit reason, `qualification` the exit
/// qualification (SDM vol. 3, "VM-Entry Failures During or After Loading Guest State").
pub const fn entry_failure(basic: u16, qualification: u64) -> &'static str {
    match (basic, qualification) {
        (reason::ENTRY_FAILURE_GUEST_STATE, 2) => "the guest's PDPTEs are invalid",
        (reason::ENTRY_FAILURE_GUEST_STATE, 3) => "an NMI was injected right after the guest's STI",
        (reason::ENTRY_FAILURE_GUEST_STATE, 4) => "the VMCS link pointer is invalid",
        (reason::ENTRY_FAILURE_GUEST_STATE, _) => "the guest state breaks a rule",
        (reason::ENTRY_FAILURE_MSR_LOADING, _) => {
            "an entry of the MSR-load area cannot be loaded; the qualification is its number, from 1"
        }
        (reason::ENTRY_FAILURE_MACHINE_CHECK, _) => "a machine check came during the entry",
        _ => "not the reason of a failed entry",
    }
}
