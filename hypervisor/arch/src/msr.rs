//! Model-specific registers by their architectural names (SDM vol. 4, "Architectural MSRs").

#![allow(missing_docs, reason = "each constant is the architectural MSR of its name")]

pub const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
pub const IA32_PLATFORM_ID: u32 = 0x17;
pub const IA32_APIC_BASE: u32 = 0x1b;
pub const IA32_FEATURE_CONTROL: u32 = 0x3a;
pub const IA32_TSC_ADJUST: u32 = 0x3b;
pub const IA32_SPEC_CTRL: u32 = 0x48;
pub const IA32_PRED_CMD: u32 = 0x49;
pub const IA32_BIOS_UPDT_TRIG: u32 = 0x79;
pub const IA32_BIOS_SIGN_ID: u32 = 0x8b;
pub const MSR_PLATFORM_INFO: u32 = 0xce;
pub const IA32_MTRRCAP: u32 = 0xfe;
pub const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
pub const IA32_FLUSH_CMD: u32 = 0x10b;
pub const IA32_SYSENTER_CS: u32 = 0x174;
pub const IA32_SYSENTER_ESP: u32 = 0x175;
pub const IA32_SYSENTER_EIP: u32 = 0x176;
pub const IA32_MCG_CAP: u32 = 0x179;
pub const IA32_MCG_STATUS: u32 = 0x17a;
pub const IA32_MC0_CTL: u32 = 0x400;
pub const IA32_MISC_ENABLE: u32 = 0x1a0;
pub const IA32_DEBUGCTL: u32 = 0x1d9;
pub const IA32_MTRR_PHYSBASE0: u32 = 0x200;
pub const IA32_MTRR_PHYSMASK0: u32 = 0x201;
pub const IA32_MTRR_FIX64K_00000: u32 = 0x250;
pub const IA32_MTRR_FIX16K_80000: u32 = 0x258;
pub const IA32_MTRR_FIX16K_A0000: u32 = 0x259;
pub const IA32_MTRR_FIX4K_C0000: u32 = 0x268;
pub const IA32_MTRR_FIX4K_F8000: u32 = 0x26f;
pub const IA32_PAT: u32 = 0x277;
pub const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
pub const IA32_VMX_BASIC: u32 = 0x480;
pub const IA32_VMX_PINBASED_CTLS: u32 = 0x481;
pub const IA32_VMX_PROCBASED_CTLS: u32 = 0x482;
pub const IA32_VMX_EXIT_CTLS: u32 = 0x483;
pub const IA32_VMX_ENTRY_CTLS: u32 = 0x484;
pub const IA32_VMX_MISC: u32 = 0x485;
pub const IA32_VMX_CR0_FIXED0: u32 = 0x486;
pub const IA32_VMX_CR0_FIXED1: u32 = 0x487;
pub const IA32_VMX_CR4_FIXED0: u32 = 0x488;
pub const IA32_VMX_CR4_FIXED1: u32 = 0x489;
pub const IA32_VMX_PROCBASED_CTLS2: u32 = 0x48b;
pub const IA32_VMX_EPT_VPID_CAP: u32 = 0x48c;
pub const IA32_VMX_TRUE_PINBASED_CTLS: u32 = 0x48d;
pub const IA32_VMX_TRUE_PROCBASED_CTLS: u32 = 0x48e;
pub const IA32_VMX_TRUE_EXIT_CTLS: u32 = 0x48f;
pub const IA32_VMX_TRUE_ENTRY_CTLS: u32 = 0x490;
pub const IA32_VMX_VMFUNC: u32 = 0x491;
pub const IA32_VMX_PROCBASED_CTLS3: u32 = 0x492;
pub const IA32_VMX_EXIT_CTLS2: u32 = 0x493;
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// The address in IA32_APIC_BASE after reset (SDM vol. 3, "Local APIC State After Power-Up or Reset").
pub const APIC_BASE_AFTER_RESET: u64 = 0xfee0_0000;
/// First MSR of the x2APIC's range (SDM vol. 3, "x2APIC Register Address Space"): MMIO offset / 16 + this.
pub const X2APIC_FIRST: u32 = 0x800;
/// Last MSR of the x2APIC's range.
pub const X2APIC_LAST: u32 = 0x8ff;
pub const IA32_XSS: u32 = 0xda0;
/// AMD's system configuration (APM vol. 2, "SYSCFG Register").
pub const SYSCFG: u32 = 0xc001_0010;
/// AMD's hardware configuration (APM vol. 2, "Hardware Configuration Register (HWCR)").
pub const HWCR: u32 = 0xc001_0015;
/// AMD's northbridge configuration (BIOS and Kernel Developer's Guides, "Northbridge Configuration 1 Register").
pub const NB_CFG: u32 = 0xc001_001f;
/// AMD's configuration of decoding (AMD's "Software Techniques for Managing Speculation").
pub const DE_CFG: u32 = 0xc001_1029;
/// AMD's control of SVM (APM vol. 2, "VM_CR MSR").
pub const VM_CR: u32 = 0xc001_0114;
/// Where AMD's VMRUN saves the host (APM vol. 2, "VM_HSAVE_PA MSR").
pub const VM_HSAVE_PA: u32 = 0xc001_0117;
pub const IA32_EFER: u32 = 0xc000_0080;
pub const IA32_STAR: u32 = 0xc000_0081;
pub const IA32_LSTAR: u32 = 0xc000_0082;
pub const IA32_CSTAR: u32 = 0xc000_0083;
pub const IA32_FMASK: u32 = 0xc000_0084;
pub const IA32_FS_BASE: u32 = 0xc000_0100;
pub const IA32_GS_BASE: u32 = 0xc000_0101;
pub const IA32_KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const IA32_TSC_AUX: u32 = 0xc000_0103;
