//! Intercept vectors of the VMCB (APM vol. 2, appendix "VMCB Layout", table "VMCB Layout, Control Area").

use bitflags::bitflags;

bitflags! {
    /// The first vector, offset 0xc.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct First: u32 {
        /// Physical interrupt.
        const INTR = 1 << 0;
        /// Physical NMI.
        const NMI = 1 << 1;
        /// Virtual interrupt.
        const VINTR = 1 << 4;
        /// Writes of CR0 that change more than TS and MP.
        const CR0_SELECTIVE_WRITE = 1 << 5;
        /// RDPMC.
        const RDPMC = 1 << 15;
        /// CPUID.
        const CPUID = 1 << 18;
        /// RSM.
        const RSM = 1 << 19;
        /// IRET, before it is executed.
        const IRET = 1 << 20;
        /// INVD.
        const INVD = 1 << 22;
        /// HLT.
        const HLT = 1 << 24;
        /// INVLPGA.
        const INVLPGA = 1 << 26;
        /// Port accesses that the permission map names.
        const IO = 1 << 27;
        /// MSR accesses that the permission map names.
        const MSR = 1 << 28;
        /// Shutdown: the end of a triple fault.
        const SHUTDOWN = 1 << 31;
    }

    /// The second vector, offset 0x10.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Second: u32 {
        /// VMRUN: must be set.
        const VMRUN = 1 << 0;
        /// VMMCALL.
        const VMMCALL = 1 << 1;
        /// VMLOAD.
        const VMLOAD = 1 << 2;
        /// VMSAVE.
        const VMSAVE = 1 << 3;
        /// STGI.
        const STGI = 1 << 4;
        /// CLGI.
        const CLGI = 1 << 5;
        /// SKINIT.
        const SKINIT = 1 << 6;
        /// ICEBP, before it raises #DB.
        const ICEBP = 1 << 8;
        /// WBINVD and WBNOINVD.
        const WBINVD = 1 << 9;
        /// MONITOR and MONITORX.
        const MONITOR = 1 << 10;
        /// MWAIT and MWAITX.
        const MWAIT = 1 << 11;
        /// MWAIT where the monitor is armed.
        const MWAIT_ARMED = 1 << 12;
        /// XSETBV.
        const XSETBV = 1 << 13;
        /// RDPRU.
        const RDPRU = 1 << 14;
    }

    /// The third vector, offset 0x14.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Third: u32 {
        /// INVLPGB.
        const INVLPGB = 1 << 0;
        /// INVLPGB that is illegal in a guest.
        const INVLPGB_ILLEGAL = 1 << 1;
        /// INVPCID.
        const INVPCID = 1 << 2;
        /// MCOMMIT.
        const MCOMMIT = 1 << 3;
        /// TLBSYNC.
        const TLBSYNC = 1 << 4;
    }
}

/// The bit for control register `number` in the vectors for reads and writes.
pub const fn control_register(number: u8) -> u16 {
    1 << (number & 15)
}
