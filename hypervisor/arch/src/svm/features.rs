//! What a processor's SVM can do (APM vol. 3, "CPUID Fn8000_000A SVM Features").

use bitflags::bitflags;

/// The CPUID leaf.
pub const LEAF: u32 = 0x8000_000a;
/// CPUID 0x8000_0001, ECX: the processor has SVM.
pub const LEAF1_ECX_SVM: u32 = 1 << 2;
/// VM_CR: SVM is disabled (APM vol. 2, "VM_CR MSR").
pub const VM_CR_SVMDIS: u64 = 1 << 4;

bitflags! {
    /// EDX of the leaf, as far as it is used.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Features: u32 {
        /// Nested paging.
        const NESTED_PAGING = 1 << 0;
        /// VM_CR.SVMDIS can be cleared with a key only: the firmware decides.
        const LOCK = 1 << 2;
        /// The processor saves where the next instruction is.
        const NEXT_RIP = 1 << 3;
        /// Clean bits in the VMCB count.
        const CLEAN_BITS = 1 << 5;
        /// TLB_CONTROL can name one guest's translations.
        const FLUSH_BY_ASID = 1 << 6;
        /// Accesses to control registers are described.
        const DECODE_ASSISTS = 1 << 7;
    }
}

/// What the leaf says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Features.
    pub features: Features,
    /// Address-space identifiers, 0 included, which is the host's.
    pub asids: u32,
    /// Width of physical addresses. Unit: bits.
    pub physical_bits: u8,
}

impl Capabilities {
    /// From EAX, EBX, ECX, EDX of [`LEAF`] and the width of physical addresses.
    pub const fn of(leaf: [u32; 4], physical_bits: u8) -> Capabilities {
        Capabilities { features: Features::from_bits_truncate(leaf[3]), asids: leaf[1], physical_bits }
    }

    /// The bits that no physical address has.
    pub const fn beyond_physical(&self) -> u64 {
        if self.physical_bits >= 64 { 0 } else { !((1 << self.physical_bits) - 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leaf_is_read_as_the_manual_has_it() {
        let c = Capabilities::of([1, 0x8000, 0, 0x1_bcff], 48);
        assert_eq!(c.asids, 0x8000);
        assert!(c.features.contains(Features::all()));
        assert_eq!(c.beyond_physical(), 0xffff_0000_0000_0000);
        // QEMU's emulation: nested paging, and nothing else that counts here.
        let c = Capabilities::of([1, 16, 0, 0x1001_0001], 40);
        assert_eq!(c.features, Features::NESTED_PAGING);
    }
}
