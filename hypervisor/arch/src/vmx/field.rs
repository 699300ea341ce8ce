//! VMCS fields, typed by width and access (SDM vol. 3, appendix "Field Encoding in VMCS").
//!
//! A field never turns into an integer by accident: only [`Field::encoding`] gives its number, and a read-only field
//! has no way to be written.

use core::marker::PhantomData;

/// A 16-bit field.
#[derive(Clone, Copy, Debug)]
pub struct Bits16;
/// A 32-bit field.
#[derive(Clone, Copy, Debug)]
pub struct Bits32;
/// A 64-bit field.
#[derive(Clone, Copy, Debug)]
pub struct Bits64;
/// A field of the processor's natural width: 64 bits here.
#[derive(Clone, Copy, Debug)]
pub struct Natural;

/// A width of VMCS fields.
pub trait Width {
    /// Bits 14:13 of the encoding.
    const CODE: u32;
    /// The Rust type of the value.
    type Value: Copy + Into<u64>;
    /// The value within what VMREAD returned.
    fn from_vmread(raw: u64) -> Self::Value;
}

impl Width for Bits16 {
    const CODE: u32 = 0;
    type Value = u16;
    fn from_vmread(raw: u64) -> u16 {
        (raw & 0xffff) as u16
    }
}

impl Width for Bits32 {
    const CODE: u32 = 2;
    type Value = u32;
    fn from_vmread(raw: u64) -> u32 {
        (raw & 0xffff_ffff) as u32
    }
}

impl Width for Bits64 {
    const CODE: u32 = 1;
    type Value = u64;
    fn from_vmread(raw: u64) -> u64 {
        raw
    }
}

impl Width for Natural {
    const CODE: u32 = 3;
    type Value = u64;
    fn from_vmread(raw: u64) -> u64 {
        raw
    }
}

/// A field that software may write.
#[derive(Clone, Copy, Debug)]
pub struct ReadWrite;
/// A field that only the processor writes (VM-exit information).
#[derive(Clone, Copy, Debug)]
pub struct ReadOnly;

/// Whether software may write a field.
pub trait Access {
    /// Whether bits 11:10 of the encoding must be 1 (VM-exit information).
    const READ_ONLY: bool;
}
impl Access for ReadWrite {
    const READ_ONLY: bool = false;
}
impl Access for ReadOnly {
    const READ_ONLY: bool = true;
}

/// One VMCS field of width `W` and access `A`.
#[derive(Debug)]
pub struct Field<W, A> {
    encoding: u32,
    kind: PhantomData<(W, A)>,
}

impl<W, A> Clone for Field<W, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<W, A> Copy for Field<W, A> {}

impl<W: Width, A: Access> Field<W, A> {
    /// The field with `encoding`; at compile time, refuses one whose width or access bits say otherwise.
    const fn new(encoding: u32) -> Self {
        assert!(encoding >> 13 & 3 == W::CODE, "the encoding is of another width");
        assert!((encoding >> 10 & 3 == 1) == A::READ_ONLY, "the encoding is of another access type");
        assert!(encoding & 1 == 0 && encoding >> 15 == 0, "reserved bits, or the high half of a field");
        Field { encoding, kind: PhantomData }
    }

    /// The number that VMREAD and VMWRITE take.
    pub const fn encoding(self) -> u32 {
        self.encoding
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $width:ident $access:ident = $encoding:literal;)*) => {
        $($(#[$doc])* pub const $name: Field<$width, $access> = Field::new($encoding);)*

        /// Name and encoding of every field here, for reports.
        pub const ALL: &[(&str, u32)] = &[$((stringify!($name), $encoding)),*];
    };
}

fields! {
    /// Virtual-processor identifier.
    VIRTUAL_PROCESSOR_ID: Bits16 ReadWrite = 0x0000;
    /// Posted-interrupt notification vector.
    POSTED_INTERRUPT_VECTOR: Bits16 ReadWrite = 0x0002;
    /// Guest ES selector.
    GUEST_ES_SELECTOR: Bits16 ReadWrite = 0x0800;
    /// Guest CS selector.
    GUEST_CS_SELECTOR: Bits16 ReadWrite = 0x0802;
    /// Guest SS selector.
    GUEST_SS_SELECTOR: Bits16 ReadWrite = 0x0804;
    /// Guest DS selector.
    GUEST_DS_SELECTOR: Bits16 ReadWrite = 0x0806;
    /// Guest FS selector.
    GUEST_FS_SELECTOR: Bits16 ReadWrite = 0x0808;
    /// Guest GS selector.
    GUEST_GS_SELECTOR: Bits16 ReadWrite = 0x080a;
    /// Guest LDTR selector.
    GUEST_LDTR_SELECTOR: Bits16 ReadWrite = 0x080c;
    /// Guest TR selector.
    GUEST_TR_SELECTOR: Bits16 ReadWrite = 0x080e;
    /// Guest interrupt status: requesting virtual interrupt (bits 7:0), servicing virtual interrupt (bits 15:8).
    GUEST_INTERRUPT_STATUS: Bits16 ReadWrite = 0x0810;
    /// Index of the next entry of the page-modification log.
    GUEST_PML_INDEX: Bits16 ReadWrite = 0x0812;
    /// Guest's user-interrupt notification vector.
    GUEST_UINV: Bits16 ReadWrite = 0x0814;
    /// Host ES selector.
    HOST_ES_SELECTOR: Bits16 ReadWrite = 0x0c00;
    /// Host CS selector.
    HOST_CS_SELECTOR: Bits16 ReadWrite = 0x0c02;
    /// Host SS selector.
    HOST_SS_SELECTOR: Bits16 ReadWrite = 0x0c04;
    /// Host DS selector.
    HOST_DS_SELECTOR: Bits16 ReadWrite = 0x0c06;
    /// Host FS selector.
    HOST_FS_SELECTOR: Bits16 ReadWrite = 0x0c08;
    /// Host GS selector.
    HOST_GS_SELECTOR: Bits16 ReadWrite = 0x0c0a;
    /// Host TR selector.
    HOST_TR_SELECTOR: Bits16 ReadWrite = 0x0c0c;
    /// Address of I/O bitmap A.
    IO_BITMAP_A: Bits64 ReadWrite = 0x2000;
    /// Address of I/O bitmap B.
    IO_BITMAP_B: Bits64 ReadWrite = 0x2002;
    /// Address of the MSR bitmap.
    MSR_BITMAP: Bits64 ReadWrite = 0x2004;
    /// Address of the VM-exit MSR-store area.
    EXIT_MSR_STORE_ADDRESS: Bits64 ReadWrite = 0x2006;
    /// Address of the VM-exit MSR-load area.
    EXIT_MSR_LOAD_ADDRESS: Bits64 ReadWrite = 0x2008;
    /// Address of the VM-entry MSR-load area.
    ENTRY_MSR_LOAD_ADDRESS: Bits64 ReadWrite = 0x200a;
    /// Address of the page-modification log.
    PML_ADDRESS: Bits64 ReadWrite = 0x200e;
    /// TSC offset.
    TSC_OFFSET: Bits64 ReadWrite = 0x2010;
    /// Address of the virtual-APIC page.
    VIRTUAL_APIC_ADDRESS: Bits64 ReadWrite = 0x2012;
    /// Guest-physical page whose accesses are virtualized.
    APIC_ACCESS_ADDRESS: Bits64 ReadWrite = 0x2014;
    /// Address of the posted-interrupt descriptor.
    POSTED_INTERRUPT_DESCRIPTOR: Bits64 ReadWrite = 0x2016;
    /// VM-function controls.
    VM_FUNCTION_CONTROLS: Bits64 ReadWrite = 0x2018;
    /// EPT pointer.
    EPT_POINTER: Bits64 ReadWrite = 0x201a;
    /// EOI-exit bitmap, vectors 0 to 63.
    EOI_EXIT_BITMAP0: Bits64 ReadWrite = 0x201c;
    /// EOI-exit bitmap, vectors 64 to 127.
    EOI_EXIT_BITMAP1: Bits64 ReadWrite = 0x201e;
    /// EOI-exit bitmap, vectors 128 to 191.
    EOI_EXIT_BITMAP2: Bits64 ReadWrite = 0x2020;
    /// EOI-exit bitmap, vectors 192 to 255.
    EOI_EXIT_BITMAP3: Bits64 ReadWrite = 0x2022;
    /// Address of the list of EPT pointers.
    EPTP_LIST_ADDRESS: Bits64 ReadWrite = 0x2024;
    /// Address of the VMREAD bitmap.
    VMREAD_BITMAP: Bits64 ReadWrite = 0x2026;
    /// Address of the VMWRITE bitmap.
    VMWRITE_BITMAP: Bits64 ReadWrite = 0x2028;
    /// Address of the virtualization-exception information area.
    VIRTUALIZATION_EXCEPTION_ADDRESS: Bits64 ReadWrite = 0x202a;
    /// Which leaves of ENCLS exit.
    ENCLS_EXITING_BITMAP: Bits64 ReadWrite = 0x202e;
    /// Address of the sub-page-permission table.
    SUB_PAGE_PERMISSION_TABLE: Bits64 ReadWrite = 0x2030;
    /// TSC multiplier. Unit: 2^-48.
    TSC_MULTIPLIER: Bits64 ReadWrite = 0x2032;
    /// Tertiary processor-based VM-execution controls.
    TERTIARY_CONTROLS: Bits64 ReadWrite = 0x2034;
    /// Secondary VM-exit controls.
    SECONDARY_EXIT_CONTROLS: Bits64 ReadWrite = 0x2044;
    /// Guest-physical address of an EPT violation or misconfiguration.
    GUEST_PHYSICAL_ADDRESS: Bits64 ReadOnly = 0x2400;
    /// VMCS link pointer.
    VMCS_LINK_POINTER: Bits64 ReadWrite = 0x2800;
    /// Guest IA32_DEBUGCTL.
    GUEST_DEBUGCTL: Bits64 ReadWrite = 0x2802;
    /// Guest IA32_PAT.
    GUEST_PAT: Bits64 ReadWrite = 0x2804;
    /// Guest IA32_EFER.
    GUEST_EFER: Bits64 ReadWrite = 0x2806;
    /// Guest IA32_PERF_GLOBAL_CTRL.
    GUEST_PERF_GLOBAL_CTRL: Bits64 ReadWrite = 0x2808;
    /// Guest PDPTE 0.
    GUEST_PDPTE0: Bits64 ReadWrite = 0x280a;
    /// Guest PDPTE 1.
    GUEST_PDPTE1: Bits64 ReadWrite = 0x280c;
    /// Guest PDPTE 2.
    GUEST_PDPTE2: Bits64 ReadWrite = 0x280e;
    /// Guest PDPTE 3.
    GUEST_PDPTE3: Bits64 ReadWrite = 0x2810;
    /// Guest IA32_BNDCFGS.
    GUEST_BNDCFGS: Bits64 ReadWrite = 0x2812;
    /// Guest IA32_RTIT_CTL.
    GUEST_RTIT_CTL: Bits64 ReadWrite = 0x2814;
    /// Guest IA32_PKRS.
    GUEST_PKRS: Bits64 ReadWrite = 0x2818;
    /// Host IA32_PAT.
    HOST_PAT: Bits64 ReadWrite = 0x2c00;
    /// Host IA32_EFER.
    HOST_EFER: Bits64 ReadWrite = 0x2c02;
    /// Host IA32_PERF_GLOBAL_CTRL.
    HOST_PERF_GLOBAL_CTRL: Bits64 ReadWrite = 0x2c04;
    /// Host IA32_PKRS.
    HOST_PKRS: Bits64 ReadWrite = 0x2c06;
    /// Pin-based VM-execution controls.
    PIN_BASED_CONTROLS: Bits32 ReadWrite = 0x4000;
    /// Primary processor-based VM-execution controls.
    PROCESSOR_BASED_CONTROLS: Bits32 ReadWrite = 0x4002;
    /// Exception bitmap.
    EXCEPTION_BITMAP: Bits32 ReadWrite = 0x4004;
    /// Page-fault error-code mask.
    PAGE_FAULT_ERROR_CODE_MASK: Bits32 ReadWrite = 0x4006;
    /// Page-fault error-code match.
    PAGE_FAULT_ERROR_CODE_MATCH: Bits32 ReadWrite = 0x4008;
    /// CR3-target count.
    CR3_TARGET_COUNT: Bits32 ReadWrite = 0x400a;
    /// VM-exit controls.
    EXIT_CONTROLS: Bits32 ReadWrite = 0x400c;
    /// VM-exit MSR-store count.
    EXIT_MSR_STORE_COUNT: Bits32 ReadWrite = 0x400e;
    /// VM-exit MSR-load count.
    EXIT_MSR_LOAD_COUNT: Bits32 ReadWrite = 0x4010;
    /// VM-entry controls.
    ENTRY_CONTROLS: Bits32 ReadWrite = 0x4012;
    /// VM-entry MSR-load count.
    ENTRY_MSR_LOAD_COUNT: Bits32 ReadWrite = 0x4014;
    /// VM-entry interruption-information field.
    ENTRY_INTERRUPTION_INFORMATION: Bits32 ReadWrite = 0x4016;
    /// VM-entry exception error code.
    ENTRY_EXCEPTION_ERROR_CODE: Bits32 ReadWrite = 0x4018;
    /// VM-entry instruction length. Unit: bytes.
    ENTRY_INSTRUCTION_LENGTH: Bits32 ReadWrite = 0x401a;
    /// TPR threshold: a virtual TPR whose class is lower makes an exit.
    TPR_THRESHOLD: Bits32 ReadWrite = 0x401c;
    /// Secondary processor-based VM-execution controls.
    SECONDARY_CONTROLS: Bits32 ReadWrite = 0x401e;
    /// VM-instruction error.
    INSTRUCTION_ERROR: Bits32 ReadOnly = 0x4400;
    /// Exit reason.
    EXIT_REASON: Bits32 ReadOnly = 0x4402;
    /// VM-exit interruption information.
    EXIT_INTERRUPTION_INFORMATION: Bits32 ReadOnly = 0x4404;
    /// VM-exit interruption error code.
    EXIT_INTERRUPTION_ERROR_CODE: Bits32 ReadOnly = 0x4406;
    /// IDT-vectoring information.
    IDT_VECTORING_INFORMATION: Bits32 ReadOnly = 0x4408;
    /// IDT-vectoring error code.
    IDT_VECTORING_ERROR_CODE: Bits32 ReadOnly = 0x440a;
    /// VM-exit instruction length. Unit: bytes.
    EXIT_INSTRUCTION_LENGTH: Bits32 ReadOnly = 0x440c;
    /// VM-exit instruction information.
    EXIT_INSTRUCTION_INFORMATION: Bits32 ReadOnly = 0x440e;
    /// Guest ES limit.
    GUEST_ES_LIMIT: Bits32 ReadWrite = 0x4800;
    /// Guest CS limit.
    GUEST_CS_LIMIT: Bits32 ReadWrite = 0x4802;
    /// Guest SS limit.
    GUEST_SS_LIMIT: Bits32 ReadWrite = 0x4804;
    /// Guest DS limit.
    GUEST_DS_LIMIT: Bits32 ReadWrite = 0x4806;
    /// Guest FS limit.
    GUEST_FS_LIMIT: Bits32 ReadWrite = 0x4808;
    /// Guest GS limit.
    GUEST_GS_LIMIT: Bits32 ReadWrite = 0x480a;
    /// Guest LDTR limit.
    GUEST_LDTR_LIMIT: Bits32 ReadWrite = 0x480c;
    /// Guest TR limit.
    GUEST_TR_LIMIT: Bits32 ReadWrite = 0x480e;
    /// Guest GDTR limit.
    GUEST_GDTR_LIMIT: Bits32 ReadWrite = 0x4810;
    /// Guest IDTR limit.
    GUEST_IDTR_LIMIT: Bits32 ReadWrite = 0x4812;
    /// Guest ES access rights.
    GUEST_ES_ACCESS_RIGHTS: Bits32 ReadWrite = 0x4814;
    /// Guest CS access rights.
    GUEST_CS_ACCESS_RIGHTS: Bits32 ReadWrite = 0x4816;
    /// Guest SS access rights.
    GUEST_SS_ACCESS_RIGHTS: Bits32 ReadWrite = 0x4818;
    /// Guest DS access rights.
    GUEST_DS_ACCESS_RIGHTS: Bits32 ReadWrite = 0x481a;
    /// Guest FS access rights.
    GUEST_FS_ACCESS_RIGHTS: Bits32 ReadWrite = 0x481c;
    /// Guest GS access rights.
    GUEST_GS_ACCESS_RIGHTS: Bits32 ReadWrite = 0x481e;
    /// Guest LDTR access rights.
    GUEST_LDTR_ACCESS_RIGHTS: Bits32 ReadWrite = 0x4820;
    /// Guest TR access rights.
    GUEST_TR_ACCESS_RIGHTS: Bits32 ReadWrite = 0x4822;
    /// Guest interruptibility state.
    GUEST_INTERRUPTIBILITY: Bits32 ReadWrite = 0x4824;
    /// Guest activity state.
    GUEST_ACTIVITY: Bits32 ReadWrite = 0x4826;
    /// Guest IA32_SYSENTER_CS.
    GUEST_SYSENTER_CS: Bits32 ReadWrite = 0x482a;
    /// VMX-preemption timer value. Unit: TSC ticks shifted right by IA32_VMX_MISC bits 4:0.
    PREEMPTION_TIMER: Bits32 ReadWrite = 0x482e;
    /// Host IA32_SYSENTER_CS.
    HOST_SYSENTER_CS: Bits32 ReadWrite = 0x4c00;
    /// CR0 guest/host mask: a set bit belongs to the host.
    CR0_GUEST_HOST_MASK: Natural ReadWrite = 0x6000;
    /// CR4 guest/host mask: a set bit belongs to the host.
    CR4_GUEST_HOST_MASK: Natural ReadWrite = 0x6002;
    /// CR0 read shadow.
    CR0_READ_SHADOW: Natural ReadWrite = 0x6004;
    /// CR4 read shadow.
    CR4_READ_SHADOW: Natural ReadWrite = 0x6006;
    /// Exit qualification.
    EXIT_QUALIFICATION: Natural ReadOnly = 0x6400;
    /// Guest-linear address of the exit.
    GUEST_LINEAR_ADDRESS: Natural ReadOnly = 0x640a;
    /// Guest CR0.
    GUEST_CR0: Natural ReadWrite = 0x6800;
    /// Guest CR3.
    GUEST_CR3: Natural ReadWrite = 0x6802;
    /// Guest CR4.
    GUEST_CR4: Natural ReadWrite = 0x6804;
    /// Guest ES base.
    GUEST_ES_BASE: Natural ReadWrite = 0x6806;
    /// Guest CS base.
    GUEST_CS_BASE: Natural ReadWrite = 0x6808;
    /// Guest SS base.
    GUEST_SS_BASE: Natural ReadWrite = 0x680a;
    /// Guest DS base.
    GUEST_DS_BASE: Natural ReadWrite = 0x680c;
    /// Guest FS base.
    GUEST_FS_BASE: Natural ReadWrite = 0x680e;
    /// Guest GS base.
    GUEST_GS_BASE: Natural ReadWrite = 0x6810;
    /// Guest LDTR base.
    GUEST_LDTR_BASE: Natural ReadWrite = 0x6812;
    /// Guest TR base.
    GUEST_TR_BASE: Natural ReadWrite = 0x6814;
    /// Guest GDTR base.
    GUEST_GDTR_BASE: Natural ReadWrite = 0x6816;
    /// Guest IDTR base.
    GUEST_IDTR_BASE: Natural ReadWrite = 0x6818;
    /// Guest DR7.
    GUEST_DR7: Natural ReadWrite = 0x681a;
    /// Guest RSP.
    GUEST_RSP: Natural ReadWrite = 0x681c;
    /// Guest RIP.
    GUEST_RIP: Natural ReadWrite = 0x681e;
    /// Guest RFLAGS.
    GUEST_RFLAGS: Natural ReadWrite = 0x6820;
    /// Guest pending debug exceptions.
    GUEST_PENDING_DEBUG: Natural ReadWrite = 0x6822;
    /// Guest IA32_SYSENTER_ESP.
    GUEST_SYSENTER_ESP: Natural ReadWrite = 0x6824;
    /// Guest IA32_SYSENTER_EIP.
    GUEST_SYSENTER_EIP: Natural ReadWrite = 0x6826;
    /// Guest IA32_S_CET.
    GUEST_S_CET: Natural ReadWrite = 0x6828;
    /// Guest shadow-stack pointer.
    GUEST_SSP: Natural ReadWrite = 0x682a;
    /// Guest IA32_INTERRUPT_SSP_TABLE_ADDR.
    GUEST_INTERRUPT_SSP_TABLE: Natural ReadWrite = 0x682c;
    /// Host CR0.
    HOST_CR0: Natural ReadWrite = 0x6c00;
    /// Host CR3.
    HOST_CR3: Natural ReadWrite = 0x6c02;
    /// Host CR4.
    HOST_CR4: Natural ReadWrite = 0x6c04;
    /// Host FS base.
    HOST_FS_BASE: Natural ReadWrite = 0x6c06;
    /// Host GS base.
    HOST_GS_BASE: Natural ReadWrite = 0x6c08;
    /// Host TR base.
    HOST_TR_BASE: Natural ReadWrite = 0x6c0a;
    /// Host GDTR base.
    HOST_GDTR_BASE: Natural ReadWrite = 0x6c0c;
    /// Host IDTR base.
    HOST_IDTR_BASE: Natural ReadWrite = 0x6c0e;
    /// Host IA32_SYSENTER_ESP.
    HOST_SYSENTER_ESP: Natural ReadWrite = 0x6c10;
    /// Host IA32_SYSENTER_EIP.
    HOST_SYSENTER_EIP: Natural ReadWrite = 0x6c12;
    /// Host RSP.
    HOST_RSP: Natural ReadWrite = 0x6c14;
    /// Host RIP.
    HOST_RIP: Natural ReadWrite = 0x6c16;
    /// Host IA32_S_CET.
    HOST_S_CET: Natural ReadWrite = 0x6c18;
    /// Host shadow-stack pointer.
    HOST_SSP: Natural ReadWrite = 0x6c1a;
    /// Host IA32_INTERRUPT_SSP_TABLE_ADDR.
    HOST_INTERRUPT_SSP_TABLE: Natural ReadWrite = 0x6c1c;
}

use crate::segment::SegmentName;

/// The four fields of one guest segment register: selector, base, limit, access rights.
pub type SegmentFields =
    (Field<Bits16, ReadWrite>, Field<Natural, ReadWrite>, Field<Bits32, ReadWrite>, Field<Bits32, ReadWrite>);

/// The fields of the guest's segment register `name`.
pub const fn segment(name: SegmentName) -> SegmentFields {
    match name {
        SegmentName::Es => (GUEST_ES_SELECTOR, GUEST_ES_BASE, GUEST_ES_LIMIT, GUEST_ES_ACCESS_RIGHTS),
        SegmentName::Cs => (GUEST_CS_SELECTOR, GUEST_CS_BASE, GUEST_CS_LIMIT, GUEST_CS_ACCESS_RIGHTS),
        SegmentName::Ss => (GUEST_SS_SELECTOR, GUEST_SS_BASE, GUEST_SS_LIMIT, GUEST_SS_ACCESS_RIGHTS),
        SegmentName::Ds => (GUEST_DS_SELECTOR, GUEST_DS_BASE, GUEST_DS_LIMIT, GUEST_DS_ACCESS_RIGHTS),
        SegmentName::Fs => (GUEST_FS_SELECTOR, GUEST_FS_BASE, GUEST_FS_LIMIT, GUEST_FS_ACCESS_RIGHTS),
        SegmentName::Gs => (GUEST_GS_SELECTOR, GUEST_GS_BASE, GUEST_GS_LIMIT, GUEST_GS_ACCESS_RIGHTS),
        SegmentName::Ldtr => (GUEST_LDTR_SELECTOR, GUEST_LDTR_BASE, GUEST_LDTR_LIMIT, GUEST_LDTR_ACCESS_RIGHTS),
        SegmentName::Tr => (GUEST_TR_SELECTOR, GUEST_TR_BASE, GUEST_TR_LIMIT, GUEST_TR_ACCESS_RIGHTS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_fields_share_an_encoding() {
        for (i, (name, encoding)) in ALL.iter().enumerate() {
            for (other, twin) in &ALL[i + 1..] {
                assert_ne!(encoding, twin, "{name} and {other}");
            }
        }
    }

    #[test]
    fn guest_and_host_fields_say_so_in_their_encoding() {
        for (name, encoding) in ALL {
            let area = encoding >> 10 & 3;
            assert_eq!(name.starts_with("HOST_"), area == 3, "{name}");
            if name.starts_with("GUEST_") && !matches!(*name, "GUEST_PHYSICAL_ADDRESS" | "GUEST_LINEAR_ADDRESS") {
                assert_eq!(area, 2, "{name}");
            }
        }
    }

    #[test]
    fn narrow_fields_keep_their_low_bits() {
        assert_eq!(Bits16::from_vmread(0xffff_1234_abcd), 0xabcd);
        assert_eq!(Bits32::from_vmread(0x1_8000_0001), 0x8000_0001);
    }
}
