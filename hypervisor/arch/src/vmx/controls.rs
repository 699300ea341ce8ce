//! VMX controls and how they follow from the capability MSRs (SDM vol. 3, "VM-Execution Control Fields" and appendix
//! "VMX Capability Reporting Facility").

use bitflags::bitflags;

bitflags! {
    /// Pin-based VM-execution controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PinBased: u32 {
        /// External interrupts exit.
        const EXTERNAL_INTERRUPT_EXITING = 1 << 0;
        /// NMIs exit.
        const NMI_EXITING = 1 << 3;
        /// The guest has NMI blocking of its own.
        const VIRTUAL_NMIS = 1 << 5;
        /// The VMX-preemption timer counts in the guest.
        const PREEMPTION_TIMER = 1 << 6;
        /// Posted interrupts are taken without an exit.
        const POSTED_INTERRUPTS = 1 << 7;
    }

    /// Primary processor-based VM-execution controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ProcessorBased: u32 {
        /// Exit when the guest can take an interrupt.
        const INTERRUPT_WINDOW_EXITING = 1 << 2;
        /// RDTSC and its kin add the TSC offset.
        const USE_TSC_OFFSETTING = 1 << 3;
        /// HLT exits.
        const HLT_EXITING = 1 << 7;
        /// INVLPG exits.
        const INVLPG_EXITING = 1 << 9;
        /// MWAIT exits.
        const MWAIT_EXITING = 1 << 10;
        /// RDPMC exits.
        const RDPMC_EXITING = 1 << 11;
        /// RDTSC exits.
        const RDTSC_EXITING = 1 << 12;
        /// MOV to CR3 exits.
        const CR3_LOAD_EXITING = 1 << 15;
        /// MOV from CR3 exits.
        const CR3_STORE_EXITING = 1 << 16;
        /// The tertiary controls count.
        const ACTIVATE_TERTIARY_CONTROLS = 1 << 17;
        /// MOV to CR8 exits.
        const CR8_LOAD_EXITING = 1 << 19;
        /// MOV from CR8 exits.
        const CR8_STORE_EXITING = 1 << 20;
        /// CR8 goes to the virtual-APIC page.
        const USE_TPR_SHADOW = 1 << 21;
        /// Exit when the guest can take an NMI.
        const NMI_WINDOW_EXITING = 1 << 22;
        /// MOV to and from debug registers exits.
        const MOV_DR_EXITING = 1 << 23;
        /// Every port access exits.
        const UNCONDITIONAL_IO_EXITING = 1 << 24;
        /// The I/O bitmaps say which ports exit.
        const USE_IO_BITMAPS = 1 << 25;
        /// Exit after one instruction.
        const MONITOR_TRAP_FLAG = 1 << 27;
        /// The MSR bitmap says which MSRs exit.
        const USE_MSR_BITMAPS = 1 << 28;
        /// MONITOR exits.
        const MONITOR_EXITING = 1 << 29;
        /// PAUSE exits.
        const PAUSE_EXITING = 1 << 30;
        /// The secondary controls count.
        const ACTIVATE_SECONDARY_CONTROLS = 1 << 31;
    }

    /// Secondary processor-based VM-execution controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Secondary: u32 {
        /// Accesses to the APIC page are virtualized.
        const VIRTUALIZE_APIC_ACCESSES = 1 << 0;
        /// EPT.
        const ENABLE_EPT = 1 << 1;
        /// LGDT and its kin exit.
        const DESCRIPTOR_TABLE_EXITING = 1 << 2;
        /// RDTSCP and RDPID work.
        const ENABLE_RDTSCP = 1 << 3;
        /// x2APIC MSRs are virtualized.
        const VIRTUALIZE_X2APIC_MODE = 1 << 4;
        /// VPID.
        const ENABLE_VPID = 1 << 5;
        /// WBINVD exits.
        const WBINVD_EXITING = 1 << 6;
        /// The guest may run unpaged and in real mode.
        const UNRESTRICTED_GUEST = 1 << 7;
        /// Reads of APIC registers come from the virtual-APIC page.
        const APIC_REGISTER_VIRTUALIZATION = 1 << 8;
        /// Virtual interrupts are evaluated and delivered.
        const VIRTUAL_INTERRUPT_DELIVERY = 1 << 9;
        /// Loops of PAUSE exit.
        const PAUSE_LOOP_EXITING = 1 << 10;
        /// RDRAND exits.
        const RDRAND_EXITING = 1 << 11;
        /// INVPCID works.
        const ENABLE_INVPCID = 1 << 12;
        /// VMFUNC works.
        const ENABLE_VMFUNC = 1 << 13;
        /// The guest's VMREAD and VMWRITE go to a shadow VMCS.
        const VMCS_SHADOWING = 1 << 14;
        /// ENCLS exits.
        const ENCLS_EXITING = 1 << 15;
        /// RDSEED exits.
        const RDSEED_EXITING = 1 << 16;
        /// Dirtied pages are logged.
        const ENABLE_PML = 1 << 17;
        /// EPT violations may become #VE.
        const EPT_VIOLATION_VE = 1 << 18;
        /// Processor Trace does not see the guest's VMX use.
        const CONCEAL_FROM_PT = 1 << 19;
        /// XSAVES and XRSTORS work.
        const ENABLE_XSAVES = 1 << 20;
        /// EPT tells user from supervisor fetches.
        const MODE_BASED_EXECUTE = 1 << 22;
        /// EPT write permission for parts of pages.
        const SUB_PAGE_WRITE = 1 << 23;
        /// Processor Trace writes to guest-physical addresses.
        const PT_GUEST_PHYSICAL = 1 << 24;
        /// RDTSC and its kin multiply by the TSC multiplier.
        const USE_TSC_SCALING = 1 << 25;
    }

    /// Primary VM-exit controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ExitControls: u32 {
        /// DR7 and IA32_DEBUGCTL are saved.
        const SAVE_DEBUG_CONTROLS = 1 << 2;
        /// The host is in 64-bit mode.
        const HOST_ADDRESS_SPACE_SIZE = 1 << 9;
        /// The host's IA32_PERF_GLOBAL_CTRL is loaded.
        const LOAD_PERF_GLOBAL_CTRL = 1 << 12;
        /// An external interrupt's vector is taken from the controller and stored.
        const ACKNOWLEDGE_INTERRUPT = 1 << 15;
        /// The guest's IA32_PAT is saved.
        const SAVE_PAT = 1 << 18;
        /// The host's IA32_PAT is loaded.
        const LOAD_PAT = 1 << 19;
        /// The guest's IA32_EFER is saved.
        const SAVE_EFER = 1 << 20;
        /// The host's IA32_EFER is loaded.
        const LOAD_EFER = 1 << 21;
        /// The preemption timer's value is saved.
        const SAVE_PREEMPTION_TIMER = 1 << 22;
        /// IA32_BNDCFGS is cleared.
        const CLEAR_BNDCFGS = 1 << 23;
        /// Processor Trace does not see the exit.
        const CONCEAL_FROM_PT = 1 << 24;
        /// IA32_RTIT_CTL is cleared.
        const CLEAR_RTIT_CTL = 1 << 25;
        /// The user-interrupt notification vector is cleared.
        const CLEAR_UINV = 1 << 27;
        /// The host's state of control-flow enforcement is loaded.
        const LOAD_CET = 1 << 28;
        /// The host's IA32_PKRS is loaded.
        const LOAD_PKRS = 1 << 29;
        /// The secondary VM-exit controls count.
        const ACTIVATE_SECONDARY_CONTROLS = 1 << 31;
    }

    /// VM-entry controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EntryControls: u32 {
        /// DR7 and IA32_DEBUGCTL are loaded.
        const LOAD_DEBUG_CONTROLS = 1 << 2;
        /// The guest enters in IA-32e mode.
        const IA32E_MODE_GUEST = 1 << 9;
        /// The guest enters in system-management mode.
        const ENTRY_TO_SMM = 1 << 10;
        /// The SMM monitor ends its work.
        const DEACTIVATE_DUAL_MONITOR = 1 << 11;
        /// The guest's IA32_PERF_GLOBAL_CTRL is loaded.
        const LOAD_PERF_GLOBAL_CTRL = 1 << 13;
        /// The guest's IA32_PAT is loaded.
        const LOAD_PAT = 1 << 14;
        /// The guest's IA32_EFER is loaded.
        const LOAD_EFER = 1 << 15;
        /// The guest's IA32_BNDCFGS is loaded.
        const LOAD_BNDCFGS = 1 << 16;
        /// Processor Trace does not see the entry.
        const CONCEAL_FROM_PT = 1 << 17;
        /// The guest's IA32_RTIT_CTL is loaded.
        const LOAD_RTIT_CTL = 1 << 18;
        /// The guest's user-interrupt notification vector is loaded.
        const LOAD_UINV = 1 << 19;
        /// The guest's state of control-flow enforcement is loaded.
        const LOAD_CET = 1 << 20;
        /// The guest's IA32_PKRS is loaded.
        const LOAD_PKRS = 1 << 22;
    }
}

/// Controls that were asked for and that the processor does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing(pub u32);

/// The value for a control field from its capability MSR: bits 31:0 of `capability` must be 1, bits 63:32 may be 1.
/// `required` bits are wanted; `optional` ones are set where the processor has them.
///
/// # Errors
/// [`Missing`] with the required bits that the processor does not allow to be 1.
pub const fn adjust(capability: u64, required: u32, optional: u32) -> Result<u32, Missing> {
    let must = (capability & 0xffff_ffff) as u32;
    let may = (capability >> 32) as u32;
    if required & !may != 0 {
        return Err(Missing(required & !may));
    }
    Ok(must | required | optional & may)
}

bitflags! {
    /// IA32_VMX_EPT_VPID_CAP.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EptVpidCapabilities: u64 {
        /// Pages that can be executed and not read.
        const EXECUTE_ONLY = 1 << 0;
        /// Tables of four levels.
        const WALK_LENGTH_4 = 1 << 6;
        /// Tables of five levels.
        const WALK_LENGTH_5 = 1 << 7;
        /// Tables may be uncached.
        const UNCACHED = 1 << 8;
        /// Tables may be write-back cached.
        const WRITE_BACK = 1 << 14;
        /// 2 MiB pages.
        const PAGE_2M = 1 << 16;
        /// 1 GiB pages.
        const PAGE_1G = 1 << 17;
        /// INVEPT.
        const INVEPT = 1 << 20;
        /// Accessed and dirty flags.
        const ACCESSED_DIRTY = 1 << 21;
        /// Access rights of supervisor shadow-stack pages.
        const SUPERVISOR_SHADOW_STACK = 1 << 23;
        /// INVEPT of a single context.
        const INVEPT_SINGLE = 1 << 25;
        /// INVEPT of all contexts.
        const INVEPT_ALL = 1 << 26;
        /// INVVPID.
        const INVVPID = 1 << 32;
        /// INVVPID of a single context.
        const INVVPID_SINGLE = 1 << 41;
        /// INVVPID of all contexts.
        const INVVPID_ALL = 1 << 42;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pin-based controls of Bochs' Skylake-X.
    const PIN: u64 = 0x0000_007f_0000_0016;

    #[test]
    fn what_must_be_one_is_one_and_what_may_not_is_refused() {
        assert_eq!(adjust(PIN, 0, 0), Ok(0x16));
        assert_eq!(adjust(PIN, 1, 0), Ok(0x17));
        assert_eq!(adjust(PIN, 0x80, 0), Err(Missing(0x80)));
        assert_eq!(adjust(PIN, 0, 0x80 | 0x40), Ok(0x56));
    }
}
