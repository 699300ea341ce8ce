//! For each rule, a VMCS that would be good if it did not break that rule.

extern crate std;

use std::collections::BTreeSet;
use std::vec::Vec;

use super::*;

/// What is done to a field.
#[derive(Clone, Copy)]
enum Change {
    To(u64),
    Or(u64),
    Clear(u64),
}
use Change::{Clear, Or, To};

/// A good VMCS, what is changed in it, and the fields that are reported then.
type Case = (fn() -> Machine, &'static [(&'static str, Change)], &'static [&'static str]);

/// Not canonical with 48 bits.
const BAD: Change = To(0x8000_0000_0000);
/// Beyond 40 bits of physical address.
const HIGH: Change = To(1 << 45);

fn rich() -> Machine {
    with_everything(long())
}

/// A processor with EPT, and neither accessed and dirty flags nor anything newer.
fn plain_ept() -> Machine {
    let mut m = long().with(&[("EPT_POINTER", 0x1e)]);
    m.capabilities.ept_vpid &= !EVERY_EPT_FORMAT;
    m
}

/// A 32-bit host, which Lamina never is: so one rule is always broken.
fn host32() -> Machine {
    let m = protected();
    let exit = m.get("EXIT_CONTROLS") & !u64::from(ExitControls::HOST_ADDRESS_SPACE_SIZE.bits());
    m.with(&[("EXIT_CONTROLS", exit), ("HOST_EFER", 0x801), ("HOST_RIP", 0x1000)])
}

/// A guest right after an STI, or a MOV SS, about to be single-stepped.
fn shadow() -> Machine {
    long().with(&[("GUEST_INTERRUPTIBILITY", 1), ("GUEST_RFLAGS", 0x202)])
}

const CONTROLS: &[Case] = &[
    (long, &[("PIN_BASED_CONTROLS", Clear(2))], &["PIN_BASED_CONTROLS"]),
    (long, &[("PIN_BASED_CONTROLS", Or(1 << 7))], &["PIN_BASED_CONTROLS"]),
    (long, &[("PROCESSOR_BASED_CONTROLS", Clear(2))], &["PROCESSOR_BASED_CONTROLS"]),
    (long, &[("SECONDARY_CONTROLS", Or(1 << 27))], &["SECONDARY_CONTROLS"]),
    (rich, &[("PROCESSOR_BASED_CONTROLS", Or(1 << 17)), ("TERTIARY_CONTROLS", To(0x10))], &["TERTIARY_CONTROLS"]),
    (long, &[("CR3_TARGET_COUNT", To(5))], &["CR3_TARGET_COUNT"]),
    (long, &[("IO_BITMAP_A", To(0x1800))], &["IO_BITMAP_A"]),
    (long, &[("IO_BITMAP_B", HIGH)], &["IO_BITMAP_B"]),
    (long, &[("MSR_BITMAP", To(1))], &["MSR_BITMAP"]),
    (long, &[("SECONDARY_CONTROLS", Or(1 << 14)), ("VMREAD_BITMAP", To(1))], &["VMREAD_BITMAP"]),
    (long, &[("SECONDARY_CONTROLS", Or(1 << 14)), ("VMWRITE_BITMAP", HIGH)], &["VMWRITE_BITMAP"]),
    (long, &[("PROCESSOR_BASED_CONTROLS", Or(1 << 21)), ("VIRTUAL_APIC_ADDRESS", To(8))], &["VIRTUAL_APIC_ADDRESS"]),
    (long, &[("PROCESSOR_BASED_CONTROLS", Or(1 << 21)), ("TPR_THRESHOLD", To(0x10))], &["TPR_THRESHOLD"]),
    (long, &[("SECONDARY_CONTROLS", Or(1 << 4))], &["SECONDARY_CONTROLS"]),
    (long, &[("SECONDARY_CONTROLS", Or(1 << 8))], &["SECONDARY_CONTROLS"]),
    (long, &[("SECONDARY_CONTROLS", Or(1 << 9))], &["SECONDARY_CONTROLS"]),
    (long, &[("SECONDARY_CONTROLS", Or(1)), ("APIC_ACCESS_ADDRESS", To(1))], &["APIC_ACCESS_ADDRESS"]),
    (
        long,
        &[("PROCESSOR_BASED_CONTROLS", Or(1 << 21)), ("SECONDARY_CONTROLS", Or(1 | 1 << 4))],
        &["SECONDARY_CONTROLS"],
    ),
    (long, &[("PIN_BASED_CONTROLS", Clear(1 << 3))], &["PIN_BASED_CONTROLS"]),
    (
        long,
        &[("PIN_BASED_CONTROLS", Clear(1 << 5)), ("PROCESSOR_BASED_CONTROLS", Or(1 << 22))],
        &["PROCESSOR_BASED_CONTROLS"],
    ),
    (
        long,
        &[
            ("PIN_BASED_CONTROLS", Clear(1)),
            ("PROCESSOR_BASED_CONTROLS", Or(1 << 21)),
            ("SECONDARY_CONTROLS", Or(1 << 9)),
        ],
        &["PIN_BASED_CONTROLS"],
    ),
    (rich, &[("PIN_BASED_CONTROLS", Or(1 << 7))], &["PIN_BASED_CONTROLS"]),
    (posted, &[("EXIT_CONTROLS", Clear(1 << 15))], &["EXIT_CONTROLS"]),
    (posted, &[("POSTED_INTERRUPT_VECTOR", To(0x100))], &["POSTED_INTERRUPT_VECTOR"]),
    (posted, &[("POSTED_INTERRUPT_DESCRIPTOR", To(0x20))], &["POSTED_INTERRUPT_DESCRIPTOR"]),
    (long, &[("VIRTUAL_PROCESSOR_ID", To(0))], &["VIRTUAL_PROCESSOR_ID"]),
    (long, &[("EPT_POINTER", To(0x1d))], &["EPT_POINTER"]),
    (plain_ept, &[("EPT_POINTER", To(0x18))], &["EPT_POINTER"]),
    (plain_ept, &[("EPT_POINTER", To(0x26))], &["EPT_POINTER"]),
    (long, &[("EPT_POINTER", To(0x16))], &["EPT_POINTER"]),
    (plain_ept, &[("EPT_POINTER", To(0x5e))], &["EPT_POINTER"]),
    (long, &[("EPT_POINTER", To(0x9e))], &["EPT_POINTER"]),
    (long, &[("EPT_POINTER", Or(0x100))], &["EPT_POINTER"]),
    (long, &[("EPT_POINTER", Or(1 << 45))], &["EPT_POINTER"]),
    (long, &[("SECONDARY_CONTROLS", Clear(1 << 1))], &["SECONDARY_CONTROLS"]),
    (no_ept, &[("SECONDARY_CONTROLS", Or(1 << 17))], &["SECONDARY_CONTROLS"]),
    (no_ept, &[("SECONDARY_CONTROLS", Or(1 << 22))], &["SECONDARY_CONTROLS"]),
    (no_ept, &[("SECONDARY_CONTROLS", Or(1 << 23))], &["SECONDARY_CONTROLS"]),
    (
        no_ept,
        &[("SECONDARY_CONTROLS", Or(1 << 24)), ("EXIT_CONTROLS", Or(1 << 25)), ("ENTRY_CONTROLS", Or(1 << 18))],
        &["SECONDARY_CONTROLS"],
    ),
    (long, &[("SECONDARY_CONTROLS", Or(1 << 17)), ("PML_ADDRESS", To(1))], &["PML_ADDRESS"]),
    (
        rich,
        &[("SECONDARY_CONTROLS", Or(1 << 23)), ("SUB_PAGE_PERMISSION_TABLE", To(1))],
        &["SUB_PAGE_PERMISSION_TABLE"],
    ),
    (
        rich,
        &[("SECONDARY_CONTROLS", Or(1 << 18)), ("VIRTUALIZATION_EXCEPTION_ADDRESS", To(1))],
        &["VIRTUALIZATION_EXCEPTION_ADDRESS"],
    ),
    (long, &[("SECONDARY_CONTROLS", Or(1 << 13)), ("VM_FUNCTION_CONTROLS", To(1))], &["VM_FUNCTION_CONTROLS"]),
    (no_ept, &[("SECONDARY_CONTROLS", Or(1 << 13)), ("VM_FUNCTION_CONTROLS", To(1))], &["VM_FUNCTION_CONTROLS"]),
    (
        rich,
        &[("SECONDARY_CONTROLS", Or(1 << 13)), ("VM_FUNCTION_CONTROLS", To(1)), ("EPTP_LIST_ADDRESS", To(1))],
        &["EPTP_LIST_ADDRESS"],
    ),
    (long, &[("SECONDARY_CONTROLS", Or(1 << 25))], &["TSC_MULTIPLIER"]),
    (long, &[("EXIT_CONTROLS", Clear(2))], &["EXIT_CONTROLS"]),
    (rich, &[("EXIT_CONTROLS", Or(1 << 31)), ("SECONDARY_EXIT_CONTROLS", To(2))], &["SECONDARY_EXIT_CONTROLS"]),
    (long, &[("PIN_BASED_CONTROLS", Clear(1 << 6))], &["EXIT_CONTROLS"]),
    (rich, &[("SECONDARY_CONTROLS", Or(1 << 24)), ("ENTRY_CONTROLS", Or(1 << 18))], &["EXIT_CONTROLS"]),
    (rich, &[("SECONDARY_CONTROLS", Or(1 << 24)), ("EXIT_CONTROLS", Or(1 << 25))], &["ENTRY_CONTROLS"]),
    (long, &[("EXIT_MSR_STORE_COUNT", To(1)), ("EXIT_MSR_STORE_ADDRESS", To(8))], &["EXIT_MSR_STORE_ADDRESS"]),
    (
        long,
        &[("EXIT_MSR_LOAD_COUNT", To(3)), ("EXIT_MSR_LOAD_ADDRESS", To((1 << 40) - 32))],
        &["EXIT_MSR_LOAD_ADDRESS"],
    ),
    (long, &[("ENTRY_CONTROLS", Clear(2))], &["ENTRY_CONTROLS"]),
    (long, &[("ENTRY_CONTROLS", Or(1 << 10))], &["ENTRY_CONTROLS"]),
    (long, &[("ENTRY_CONTROLS", Or(1 << 11))], &["ENTRY_CONTROLS"]),
    (long, &[("ENTRY_MSR_LOAD_COUNT", To(1)), ("ENTRY_MSR_LOAD_ADDRESS", HIGH)], &["ENTRY_MSR_LOAD_ADDRESS"]),
];

fn posted() -> Machine {
    let m = rich();
    let pin = m.get("PIN_BASED_CONTROLS") | u64::from(PinBased::POSTED_INTERRUPTS.bits());
    let processor = m.get("PROCESSOR_BASED_CONTROLS") | u64::from(ProcessorBased::USE_TPR_SHADOW.bits());
    let secondary = m.get("SECONDARY_CONTROLS") | u64::from(Secondary::VIRTUAL_INTERRUPT_DELIVERY.bits());
    m.with(&[("PIN_BASED_CONTROLS", pin), ("PROCESSOR_BASED_CONTROLS", processor), ("SECONDARY_CONTROLS", secondary)])
}

fn no_ept() -> Machine {
    let m = rich();
    let nested = Secondary::ENABLE_EPT | Secondary::UNRESTRICTED_GUEST;
    let secondary = m.get("SECONDARY_CONTROLS") & !u64::from(nested.bits());
    m.with(&[("SECONDARY_CONTROLS", secondary)])
}

const EVENT: &str = "ENTRY_INTERRUPTION_INFORMATION";
const INJECTION: &[Case] = &[
    (long, &[(EVENT, To(0x8000_1202))], &[EVENT]),
    (long, &[(EVENT, To(0x8000_0100))], &[EVENT]),
    (long, &[(EVENT, To(0x8000_0700))], &[EVENT]),
    (rich, &[(EVENT, To(0x8000_0701))], &[EVENT]),
    (long, &[(EVENT, To(0x8000_0203))], &[EVENT]),
    (long, &[(EVENT, To(0x8000_0320))], &[EVENT]),
    (long, &[(EVENT, To(0x8000_0c80)), ("ENTRY_INSTRUCTION_LENGTH", To(2))], &[EVENT]),
    (real, &[(EVENT, To(0x8000_0b0d))], &[EVENT]),
    (long, &[(EVENT, To(0x8000_0b06))], &[EVENT]),
    (long, &[(EVENT, To(0x8000_030e))], &[EVENT]),
    (long, &[(EVENT, To(0x8000_0b0d)), ("ENTRY_EXCEPTION_ERROR_CODE", To(0x1_0000))], &["ENTRY_EXCEPTION_ERROR_CODE"]),
    (long, &[(EVENT, To(0x8000_0480)), ("ENTRY_INSTRUCTION_LENGTH", To(16))], &["ENTRY_INSTRUCTION_LENGTH"]),
    // What the guest's state says to it.
    (long, &[(EVENT, To(0x8000_0020))], &["GUEST_RFLAGS"]),
    (shadow, &[(EVENT, To(0x8000_0020))], &["GUEST_INTERRUPTIBILITY"]),
    (shadow, &[(EVENT, To(0x8000_0202))], &["GUEST_INTERRUPTIBILITY"]),
    (long, &[(EVENT, To(0x8000_0202)), ("GUEST_INTERRUPTIBILITY", To(8))], &["GUEST_INTERRUPTIBILITY"]),
    (long, &[(EVENT, To(0x8000_0306)), ("GUEST_ACTIVITY", To(1))], &["GUEST_ACTIVITY"]),
    (long, &[(EVENT, To(0x8000_0301)), ("GUEST_ACTIVITY", To(2))], &["GUEST_ACTIVITY"]),
    (long, &[(EVENT, To(0x8000_0202)), ("GUEST_ACTIVITY", To(3))], &["GUEST_ACTIVITY"]),
];

const HOST: &[Case] = &[
    (long, &[("HOST_CR0", Clear(0x20))], &["HOST_CR0"]),
    (long, &[("HOST_CR0", Or(1 << 32))], &["HOST_CR0"]),
    (long, &[("HOST_CR4", Clear(0x2000))], &["HOST_CR4"]),
    (long, &[("HOST_CR4", Or(1 << 23))], &["HOST_CR4"]),
    (rich, &[("HOST_CR4", Or(1 << 23)), ("HOST_CR0", Clear(1 << 16))], &["HOST_CR4"]),
    (long, &[("HOST_CR3", HIGH)], &["HOST_CR3"]),
    (long, &[("HOST_CR3", Or(1 << 62))], &["HOST_CR3"]),
    (long, &[("HOST_SYSENTER_ESP", BAD)], &["HOST_SYSENTER_ESP"]),
    (long, &[("HOST_SYSENTER_EIP", BAD)], &["HOST_SYSENTER_EIP"]),
    (long, &[("HOST_PAT", To(2))], &["HOST_PAT"]),
    (long, &[("HOST_EFER", Or(1 << 12))], &["HOST_EFER"]),
    (long, &[("HOST_EFER", Clear(1 << 10))], &["HOST_EFER"]),
    (long, &[("HOST_EFER", Clear(1 << 8))], &["HOST_EFER"]),
    (rich, &[("EXIT_CONTROLS", Or(1 << 28)), ("HOST_S_CET", To(0x40))], &["HOST_S_CET"]),
    (rich, &[("EXIT_CONTROLS", Or(1 << 28)), ("HOST_S_CET", To(0xc00))], &["HOST_S_CET"]),
    (rich, &[("EXIT_CONTROLS", Or(1 << 28)), ("HOST_S_CET", BAD)], &["HOST_S_CET"]),
    (rich, &[("EXIT_CONTROLS", Or(1 << 28)), ("HOST_SSP", To(2))], &["HOST_SSP"]),
    (rich, &[("EXIT_CONTROLS", Or(1 << 28)), ("HOST_SSP", BAD)], &["HOST_SSP"]),
    (rich, &[("EXIT_CONTROLS", Or(1 << 28)), ("HOST_INTERRUPT_SSP_TABLE", BAD)], &["HOST_INTERRUPT_SSP_TABLE"]),
    (rich, &[("EXIT_CONTROLS", Or(1 << 29)), ("HOST_PKRS", To(1 << 32))], &["HOST_PKRS"]),
    (long, &[("HOST_CS_SELECTOR", Or(3))], &["HOST_CS_SELECTOR"]),
    (long, &[("HOST_SS_SELECTOR", Or(4))], &["HOST_SS_SELECTOR"]),
    (long, &[("HOST_DS_SELECTOR", Or(1))], &["HOST_DS_SELECTOR"]),
    (long, &[("HOST_ES_SELECTOR", Or(1))], &["HOST_ES_SELECTOR"]),
    (long, &[("HOST_FS_SELECTOR", Or(1))], &["HOST_FS_SELECTOR"]),
    (long, &[("HOST_GS_SELECTOR", Or(1))], &["HOST_GS_SELECTOR"]),
    (long, &[("HOST_TR_SELECTOR", Or(1))], &["HOST_TR_SELECTOR"]),
    (long, &[("HOST_CS_SELECTOR", To(0))], &["HOST_CS_SELECTOR"]),
    (long, &[("HOST_TR_SELECTOR", To(0))], &["HOST_TR_SELECTOR"]),
    (host32, &[("HOST_SS_SELECTOR", To(0))], &["HOST_SS_SELECTOR", "EXIT_CONTROLS"]),
    (long, &[("HOST_FS_BASE", BAD)], &["HOST_FS_BASE"]),
    (long, &[("HOST_GS_BASE", BAD)], &["HOST_GS_BASE"]),
    (long, &[("HOST_TR_BASE", BAD)], &["HOST_TR_BASE"]),
    (long, &[("HOST_GDTR_BASE", BAD)], &["HOST_GDTR_BASE"]),
    (long, &[("HOST_IDTR_BASE", BAD)], &["HOST_IDTR_BASE"]),
    (host32, &[], &["EXIT_CONTROLS"]),
    (long, &[("HOST_CR4", Clear(0x20))], &["HOST_CR4"]),
    (long, &[("HOST_RIP", BAD)], &["HOST_RIP"]),
    (
        host32,
        &[
            ("ENTRY_CONTROLS", Or(1 << 9)),
            ("GUEST_EFER", To(0xd00)),
            ("GUEST_CR0", Or(1 << 31)),
            ("GUEST_CR4", Or(0x20)),
        ],
        &["EXIT_CONTROLS", "ENTRY_CONTROLS"],
    ),
    (host32, &[("HOST_CR4", Or(1 << 17))], &["EXIT_CONTROLS", "HOST_CR4"]),
    (host32, &[("HOST_RIP", To(1 << 32))], &["EXIT_CONTROLS", "HOST_RIP"]),
];

const REGISTERS: &[Case] = &[
    (long, &[("GUEST_CR0", Clear(0x20))], &["GUEST_CR0"]),
    (restricted, &[("GUEST_CR0", Clear(1 << 31))], &["GUEST_CR0"]),
    (real, &[("GUEST_CR0", Or(1 << 31))], &["GUEST_CR0"]),
    (long, &[("GUEST_CR4", Clear(0x2000))], &["GUEST_CR4"]),
    (rich, &[("GUEST_CR4", Or(1 << 23)), ("GUEST_CR0", Clear(1 << 16))], &["GUEST_CR4"]),
    (long, &[("GUEST_CR0", Clear(1 << 31))], &["GUEST_CR0"]),
    (long, &[("GUEST_CR4", Clear(0x20))], &["GUEST_CR4"]),
    (protected, &[("GUEST_CR4", Or(1 << 17))], &["GUEST_CR4"]),
    (long, &[("GUEST_CR3", HIGH)], &["GUEST_CR3"]),
    (long, &[("GUEST_DEBUGCTL", To(8))], &["GUEST_DEBUGCTL"]),
    (long, &[("GUEST_DR7", To(1 << 32))], &["GUEST_DR7"]),
    (long, &[("GUEST_SYSENTER_ESP", BAD)], &["GUEST_SYSENTER_ESP"]),
    (long, &[("GUEST_SYSENTER_EIP", BAD)], &["GUEST_SYSENTER_EIP"]),
    (long, &[("GUEST_PAT", To(3 << 56))], &["GUEST_PAT"]),
    (long, &[("GUEST_EFER", Or(1 << 12))], &["GUEST_EFER"]),
    (protected, &[("GUEST_EFER", Or(1 << 10))], &["GUEST_EFER"]),
    (long, &[("GUEST_EFER", Clear(1 << 8))], &["GUEST_EFER"]),
    (rich, &[("ENTRY_CONTROLS", Or(1 << 16)), ("GUEST_BNDCFGS", To(4))], &["GUEST_BNDCFGS"]),
    (rich, &[("ENTRY_CONTROLS", Or(1 << 16)), ("GUEST_BNDCFGS", BAD)], &["GUEST_BNDCFGS"]),
    (rich, &[("ENTRY_CONTROLS", Or(1 << 19)), ("GUEST_UINV", To(0x100))], &["GUEST_UINV"]),
    (rich, &[("ENTRY_CONTROLS", Or(1 << 20)), ("GUEST_S_CET", To(0x200))], &["GUEST_S_CET"]),
    (rich, &[("ENTRY_CONTROLS", Or(1 << 20)), ("GUEST_SSP", To(1))], &["GUEST_SSP"]),
    (rich, &[("ENTRY_CONTROLS", Or(1 << 20)), ("GUEST_SSP", To(1 << 50))], &["GUEST_SSP"]),
    (rich, &[("ENTRY_CONTROLS", Or(1 << 22)), ("GUEST_PKRS", To(1 << 32))], &["GUEST_PKRS"]),
    (long, &[("GUEST_GDTR_BASE", BAD)], &["GUEST_GDTR_BASE"]),
    (long, &[("GUEST_IDTR_BASE", BAD)], &["GUEST_IDTR_BASE"]),
    (long, &[("GUEST_GDTR_LIMIT", To(0x1_0000))], &["GUEST_GDTR_LIMIT"]),
    (long, &[("GUEST_IDTR_LIMIT", To(0x1_0000))], &["GUEST_IDTR_LIMIT"]),
    (long, &[("GUEST_RIP", To(1 << 50))], &["GUEST_RIP"]),
    (protected, &[("GUEST_RIP", To(1 << 32))], &["GUEST_RIP"]),
    (long, &[("GUEST_RFLAGS", To(0))], &["GUEST_RFLAGS"]),
    (long, &[("GUEST_RFLAGS", Or(1 << 22))], &["GUEST_RFLAGS"]),
    (virtual_8086, &[("GUEST_CR0", Clear(1))], &["GUEST_RFLAGS"]),
    (
        virtual_8086,
        &[
            ("ENTRY_CONTROLS", Or(1 << 9)),
            ("GUEST_EFER", To(0xd00)),
            ("GUEST_CR0", Or(1 << 31)),
            ("GUEST_CR4", Or(0x20)),
        ],
        &["GUEST_RFLAGS"],
    ),
];

const SEGMENTS: &[Case] = &[
    (virtual_8086, &[("GUEST_CS_BASE", To(0x1_2341))], &["GUEST_CS_BASE"]),
    (virtual_8086, &[("GUEST_GS_LIMIT", To(0xfffe))], &["GUEST_GS_LIMIT"]),
    (virtual_8086, &[("GUEST_DS_ACCESS_RIGHTS", To(0x1_00f3))], &["GUEST_DS_ACCESS_RIGHTS"]),
    (long, &[("GUEST_FS_BASE", BAD)], &["GUEST_FS_BASE"]),
    (long, &[("GUEST_GS_BASE", BAD)], &["GUEST_GS_BASE"]),
    (long, &[("GUEST_CS_BASE", To(1 << 32))], &["GUEST_CS_BASE"]),
    (long, &[("GUEST_SS_BASE", To(1 << 32))], &["GUEST_SS_BASE"]),
    (long, &[("GUEST_DS_BASE", To(1 << 32))], &["GUEST_DS_BASE"]),
    (long, &[("GUEST_ES_BASE", To(1 << 32))], &["GUEST_ES_BASE"]),
    (long, &[("GUEST_CS_ACCESS_RIGHTS", Clear(0x10))], &["GUEST_CS_ACCESS_RIGHTS"]),
    (long, &[("GUEST_DS_ACCESS_RIGHTS", Clear(0x80))], &["GUEST_DS_ACCESS_RIGHTS"]),
    (long, &[("GUEST_ES_ACCESS_RIGHTS", Or(0x100))], &["GUEST_ES_ACCESS_RIGHTS"]),
    (long, &[("GUEST_SS_ACCESS_RIGHTS", Or(1 << 17))], &["GUEST_SS_ACCESS_RIGHTS"]),
    (long, &[("GUEST_DS_LIMIT", To(0xffff_fffe))], &["GUEST_DS_ACCESS_RIGHTS"]),
    (long, &[("GUEST_DS_ACCESS_RIGHTS", Clear(1 << 15))], &["GUEST_DS_ACCESS_RIGHTS"]),
    (restricted, &[("GUEST_CS_ACCESS_RIGHTS", To(0xc093))], &["GUEST_CS_ACCESS_RIGHTS"]),
    (long, &[("GUEST_CS_ACCESS_RIGHTS", To(0xa09a))], &["GUEST_CS_ACCESS_RIGHTS"]),
    (long, &[("GUEST_CS_ACCESS_RIGHTS", Or(1 << 14))], &["GUEST_CS_ACCESS_RIGHTS"]),
    (long, &[("GUEST_SS_ACCESS_RIGHTS", To(0xc091))], &["GUEST_SS_ACCESS_RIGHTS"]),
    (long, &[("GUEST_DS_ACCESS_RIGHTS", To(0xc092))], &["GUEST_DS_ACCESS_RIGHTS"]),
    (long, &[("GUEST_DS_ACCESS_RIGHTS", To(0xc099))], &["GUEST_DS_ACCESS_RIGHTS"]),
    (restricted, &[("GUEST_DS_SELECTOR", To(0x1b))], &["GUEST_DS_ACCESS_RIGHTS"]),
    (protected, &[("GUEST_CS_ACCESS_RIGHTS", To(0xc0f3))], &["GUEST_CS_ACCESS_RIGHTS"]),
    (long, &[("GUEST_CS_ACCESS_RIGHTS", Or(0x60))], &["GUEST_CS_ACCESS_RIGHTS"]),
    (long, &[("GUEST_CS_ACCESS_RIGHTS", To(0xa0ff))], &["GUEST_CS_ACCESS_RIGHTS"]),
    (
        protected,
        &[("GUEST_CS_ACCESS_RIGHTS", To(0xc093)), ("GUEST_SS_ACCESS_RIGHTS", Or(0x60))],
        &["GUEST_SS_ACCESS_RIGHTS"],
    ),
    (real, &[("GUEST_CS_ACCESS_RIGHTS", To(0x9f)), ("GUEST_SS_ACCESS_RIGHTS", Or(0x60))], &["GUEST_SS_ACCESS_RIGHTS"]),
    (restricted, &[("GUEST_CS_SELECTOR", Or(1))], &["GUEST_SS_SELECTOR"]),
    (
        restricted,
        &[("GUEST_SS_ACCESS_RIGHTS", Or(0x60)), ("GUEST_CS_ACCESS_RIGHTS", Or(0x60))],
        &["GUEST_SS_ACCESS_RIGHTS"],
    ),
    (real, &[("GUEST_LDTR_SELECTOR", To(4))], &["GUEST_LDTR_SELECTOR"]),
    (real, &[("GUEST_LDTR_BASE", BAD)], &["GUEST_LDTR_BASE"]),
    (real, &[("GUEST_LDTR_ACCESS_RIGHTS", To(0x83))], &["GUEST_LDTR_ACCESS_RIGHTS"]),
    (real, &[("GUEST_LDTR_ACCESS_RIGHTS", To(0x92))], &["GUEST_LDTR_ACCESS_RIGHTS"]),
    (real, &[("GUEST_LDTR_ACCESS_RIGHTS", To(0x02))], &["GUEST_LDTR_ACCESS_RIGHTS"]),
    (long, &[("GUEST_TR_SELECTOR", To(4))], &["GUEST_TR_SELECTOR"]),
    (long, &[("GUEST_TR_BASE", BAD)], &["GUEST_TR_BASE"]),
    (long, &[("GUEST_TR_ACCESS_RIGHTS", To(0x83))], &["GUEST_TR_ACCESS_RIGHTS"]),
    (real, &[("GUEST_TR_ACCESS_RIGHTS", To(0x89))], &["GUEST_TR_ACCESS_RIGHTS"]),
    (long, &[("GUEST_TR_ACCESS_RIGHTS", Or(1 << 16))], &["GUEST_TR_ACCESS_RIGHTS"]),
    (long, &[("GUEST_TR_LIMIT", To(0x10_0000))], &["GUEST_TR_ACCESS_RIGHTS"]),
];

const STATE: &[Case] = &[
    (long, &[("GUEST_ACTIVITY", To(4))], &["GUEST_ACTIVITY"]),
    (virtual_8086, &[("GUEST_ACTIVITY", To(1))], &["GUEST_ACTIVITY"]),
    (shadow, &[("GUEST_ACTIVITY", To(1))], &["GUEST_ACTIVITY"]),
    (long, &[("GUEST_INTERRUPTIBILITY", To(0x20))], &["GUEST_INTERRUPTIBILITY"]),
    (shadow, &[("GUEST_INTERRUPTIBILITY", Or(2))], &["GUEST_INTERRUPTIBILITY"]),
    (shadow, &[("GUEST_RFLAGS", To(2))], &["GUEST_INTERRUPTIBILITY"]),
    (long, &[("GUEST_INTERRUPTIBILITY", To(4))], &["GUEST_INTERRUPTIBILITY"]),
    (long, &[("GUEST_INTERRUPTIBILITY", To(0x12))], &["GUEST_INTERRUPTIBILITY"]),
    (long, &[("GUEST_PENDING_DEBUG", To(0x10))], &["GUEST_PENDING_DEBUG"]),
    (shadow, &[("GUEST_RFLAGS", Or(0x100))], &["GUEST_PENDING_DEBUG"]),
    (shadow, &[("GUEST_PENDING_DEBUG", To(0x4000))], &["GUEST_PENDING_DEBUG"]),
    (
        shadow,
        &[("GUEST_RFLAGS", Or(0x100)), ("GUEST_DEBUGCTL", To(2)), ("GUEST_PENDING_DEBUG", To(0x4000))],
        &["GUEST_PENDING_DEBUG"],
    ),
    (long, &[("GUEST_PENDING_DEBUG", To(0x1_0000))], &["GUEST_PENDING_DEBUG"]),
    (long, &[("VMCS_LINK_POINTER", To(0x800))], &["VMCS_LINK_POINTER"]),
    (long, &[("VMCS_LINK_POINTER", HIGH)], &["VMCS_LINK_POINTER"]),
    (pae, &[("GUEST_PDPTE0", Or(2))], &["GUEST_PDPTE0"]),
    (pae, &[("GUEST_PDPTE3", To(1 | 1 << 45))], &["GUEST_PDPTE3"]),
];

/// Unusual, and allowed: what a rule that says too much would report.
const ALLOWED: &[Case] = &[
    (long, &[("PROCESSOR_BASED_CONTROLS", Or(1 << 22))], &[]),
    (long, &[("PIN_BASED_CONTROLS", Clear(1 << 5 | 1 << 3))], &[]),
    (long, &[("PIN_BASED_CONTROLS", Clear(1 << 6)), ("EXIT_CONTROLS", Clear(1 << 22))], &[]),
    (
        long,
        &[("PROCESSOR_BASED_CONTROLS", Clear(1 << 25 | 1 << 28)), ("IO_BITMAP_A", To(1)), ("MSR_BITMAP", To(1))],
        &[],
    ),
    (long, &[("PROCESSOR_BASED_CONTROLS", Or(1 << 21)), ("TPR_THRESHOLD", To(15))], &[]),
    (long, &[("SECONDARY_CONTROLS", Or(1)), ("APIC_ACCESS_ADDRESS", To(0xfee0_0000))], &[]),
    (long, &[("SECONDARY_CONTROLS", Or(1 << 17 | 1 << 25)), ("TSC_MULTIPLIER", To(1 << 48))], &[]),
    (long, &[("CR3_TARGET_COUNT", To(4))], &[]),
    (rich, &[("EPT_POINTER", To(0xe0))], &[]),
    (no_ept, &[("EPT_POINTER", To(1)), ("GUEST_PDPTE0", To(0x1ff))], &[]),
    (posted, &[("POSTED_INTERRUPT_VECTOR", To(0xff)), ("POSTED_INTERRUPT_DESCRIPTOR", To(0x40))], &[]),
    (
        rich,
        &[("SECONDARY_CONTROLS", Or(1 << 24)), ("ENTRY_CONTROLS", Or(1 << 18)), ("EXIT_CONTROLS", Or(1 << 25))],
        &[],
    ),
    (
        rich,
        &[("SECONDARY_CONTROLS", Or(1 << 13)), ("VM_FUNCTION_CONTROLS", To(1)), ("EPTP_LIST_ADDRESS", To(0x1000))],
        &[],
    ),
    (rich, &[("PROCESSOR_BASED_CONTROLS", Or(1 << 17)), ("TERTIARY_CONTROLS", To(0xf))], &[]),
    (rich, &[("EXIT_CONTROLS", Or(1 << 31)), ("SECONDARY_EXIT_CONTROLS", To(1))], &[]),
    (long, &[("HOST_SS_SELECTOR", To(0)), ("HOST_CR0", Or(3 << 29)), ("HOST_CR4", Or(1 << 17))], &[]),
    (long, &[("EXIT_CONTROLS", Clear(1 << 19 | 1 << 21)), ("HOST_PAT", To(2)), ("HOST_EFER", To(0))], &[]),
    // With five levels, RIP has 57 bits; the bases' width is the processor's, whatever the paging.
    (rich, &[("HOST_CR4", Or(1 << 12)), ("HOST_RIP", BAD)], &[]),
    (rich, &[("EXIT_CONTROLS", Or(1 << 28)), ("HOST_S_CET", To(0x83f)), ("HOST_SSP", To(0x1004))], &[]),
    (rich, &[("HOST_CR4", Or(1 << 23)), ("EXIT_CONTROLS", Or(1 << 29)), ("HOST_PKRS", To(0xffff_ffff))], &[]),
    (long, &[("GUEST_CR4", Or(1 << 17)), ("GUEST_DEBUGCTL", To(0xffc7)), ("GUEST_DR7", To(0xffff_ffff))], &[]),
    (long, &[("ENTRY_CONTROLS", Clear(1 << 14)), ("GUEST_PAT", To(2))], &[]),
    (protected, &[("GUEST_EFER", To(0x900))], &[]),
    (rich, &[("GUEST_CR4", Or(1 << 23)), ("ENTRY_CONTROLS", Or(1 << 20)), ("GUEST_S_CET", To(0x43f))], &[]),
    (rich, &[("ENTRY_CONTROLS", Or(1 << 16 | 1 << 19)), ("GUEST_BNDCFGS", To(0x1003)), ("GUEST_UINV", To(0xff))], &[]),
    (virtual_8086, &[("GUEST_RFLAGS", Or(0x3f_7fd7))], &[]),
    (long, &[("GUEST_CS_ACCESS_RIGHTS", To(0xa09f)), ("GUEST_SS_ACCESS_RIGHTS", To(0xc0f3))], &[]),
    (long, &[("GUEST_CS_ACCESS_RIGHTS", To(0xa0fb)), ("GUEST_SS_ACCESS_RIGHTS", To(0xc0f7))], &[]),
    (long, &[("GUEST_SS_ACCESS_RIGHTS", To(0x1_0000)), ("GUEST_SS_BASE", To(1 << 32))], &[]),
    (long, &[("GUEST_DS_ACCESS_RIGHTS", To(0x1_0000)), ("GUEST_ES_ACCESS_RIGHTS", To(0xd091))], &[]),
    (long, &[("GUEST_DS_ACCESS_RIGHTS", To(0xc09b)), ("GUEST_ES_ACCESS_RIGHTS", To(0xc09f))], &[]),
    (restricted, &[("GUEST_DS_SELECTOR", To(0x1b)), ("GUEST_DS_ACCESS_RIGHTS", To(0xc09f))], &[]),
    (restricted, &[("GUEST_DS_SELECTOR", To(0x1b)), ("GUEST_DS_ACCESS_RIGHTS", To(0xc0fb))], &[]),
    (protected, &[("GUEST_DS_SELECTOR", To(0x1b)), ("GUEST_CS_SELECTOR", To(0x13))], &[]),
    (real, &[("GUEST_CS_ACCESS_RIGHTS", To(0x93)), ("GUEST_TR_ACCESS_RIGHTS", To(0x83))], &[]),
    (real, &[("GUEST_DS_LIMIT", To(0xf_1234)), ("GUEST_GDTR_LIMIT", To(0xffff))], &[]),
    (long, &[("GUEST_LDTR_SELECTOR", To(4)), ("GUEST_LDTR_BASE", BAD), ("GUEST_LDTR_LIMIT", To(0x10_0000))], &[]),
    (long, &[("GUEST_ACTIVITY", To(1)), ("GUEST_RFLAGS", To(0x202))], &[]),
    (long, &[("GUEST_ACTIVITY", To(3)), ("GUEST_INTERRUPTIBILITY", To(8))], &[]),
    (long, &[("GUEST_INTERRUPTIBILITY", To(2)), ("GUEST_PENDING_DEBUG", To(0x180f))], &[]),
    (long, &[("GUEST_INTERRUPTIBILITY", To(0x18)), ("GUEST_PENDING_DEBUG", To(0x5000))], &[]),
    (shadow, &[("GUEST_RFLAGS", Or(0x100)), ("GUEST_PENDING_DEBUG", To(0x4000))], &[]),
    (shadow, &[("GUEST_RFLAGS", Or(0x100)), ("GUEST_DEBUGCTL", To(2))], &[]),
    (shadow, &[("GUEST_PENDING_DEBUG", To(0x1_1000))], &[]),
    (long, &[(EVENT, To(0x0000_7fff))], &[]),
    (long, &[(EVENT, To(0x8000_0b0d)), ("ENTRY_EXCEPTION_ERROR_CODE", To(0xffff))], &[]),
    (long, &[("PIN_BASED_CONTROLS", Clear(1 << 5)), (EVENT, To(0x8000_0202)), ("GUEST_INTERRUPTIBILITY", To(8))], &[]),
    (long, &[("VMCS_LINK_POINTER", To(0x10_1000))], &[]),
    (long, &[("GUEST_PDPTE0", To(0x1ff))], &[]),
    (protected, &[("GUEST_CR4", Or(0x20)), ("GUEST_PDPTE0", To(0x1ff))], &[]),
    (protected, &[("GUEST_CR0", Or(1 << 31)), ("GUEST_PDPTE0", To(0x1ff))], &[]),
    (pae, &[("GUEST_PDPTE2", To(0x10_0e19))], &[]),
];

/// All cases' violations.
fn run(cases: &[Case], mut seen: impl FnMut(&'static str)) {
    for (number, (base, changes, expected)) in cases.iter().enumerate() {
        let mut machine = base();
        for (name, change) in *changes {
            let old = machine.get(name);
            machine.set(
                name,
                match *change {
                    To(value) => value,
                    Or(bits) => old | bits,
                    Clear(bits) => old & !bits,
                },
            );
        }
        let found = machine.violations();
        let fields: Vec<_> = found.iter().map(|violation| violation.field).collect();
        let changed: Vec<_> = changes.iter().map(|(name, _)| *name).collect();
        assert_eq!(fields, *expected, "case {number}, which changes {changed:?}: {found:#x?}");
        for violation in &found {
            assert!(!violation.section.is_empty());
            assert_eq!(violation.value, machine.get(violation.field));
            seen(violation.rule);
        }
    }
}

#[test]
fn each_broken_control_is_named() {
    run(CONTROLS, |_| ());
}

#[test]
fn each_wrong_injection_is_named() {
    run(INJECTION, |_| ());
}

#[test]
fn each_wrong_host_field_is_named() {
    run(HOST, |_| ());
}

#[test]
fn each_wrong_guest_register_is_named() {
    run(REGISTERS, |_| ());
}

#[test]
fn each_wrong_segment_is_named() {
    run(SEGMENTS, |_| ());
}

#[test]
fn each_wrong_guest_state_is_named() {
    run(STATE, |_| ());
}

#[test]
fn what_is_unusual_and_allowed_is_not_reported() {
    run(ALLOWED, |_| ());
}

/// The string literals of a source file that are rules: whole sentences.
fn rules(source: &'static str) -> impl Iterator<Item = &'static str> {
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split('"').skip(1).step_by(2)).filter(|text| text.ends_with('.'))
}

#[test]
fn every_rule_has_a_case_that_breaks_it() {
    let mut broken = BTreeSet::new();
    for cases in [CONTROLS, INJECTION, HOST, REGISTERS, SEGMENTS, STATE] {
        run(cases, |rule| {
            broken.insert(rule);
        });
    }
    let written: BTreeSet<_> = [
        include_str!("../../rules.rs"),
        include_str!("../controls.rs"),
        include_str!("../host.rs"),
        include_str!("../guest.rs"),
        include_str!("../guest/segments.rs"),
        include_str!("../guest/state.rs"),
    ]
    .into_iter()
    .flat_map(rules)
    .collect();
    assert!(written.len() > 100, "the rules are found in the sources");
    assert_eq!(written.difference(&broken).collect::<Vec<_>>(), Vec::<&&str>::new());
}
