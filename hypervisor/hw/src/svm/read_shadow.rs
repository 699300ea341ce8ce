//! Bits of CR0 and CR4 that the guest reads as it has written them, and that are the machine's.
//!
//! Owns what VMX has guest/host masks and read shadows for. SVM has none: as long as the guest's bits are not those of the
//! real register, its reads of that are intercepted (SMSW too), and so are its writes of CR0. Those of CR4 always are.

use lamina_arch::cr::{Cr0, Cr4};
use lamina_arch::svm::intercept::control_register;
use lamina_arch::svm::vmcb::{self, Field, ReadWrite, Vmcb};

/// The CR0 bits that the guest does not get: the cache controls, which would be the machine's.
pub const CR0_OWNED: Cr0 = Cr0::CD.union(Cr0::NW);
/// The CR0 bits that are set in the machine's register while a guest runs, whatever it reads.
pub const CR0_FORCED: Cr0 = Cr0::ET;
/// The CR4 bits that are set in the machine's register while a guest runs, whatever it reads: without MCE, a machine
/// check would shut the processor down.
pub const CR4_FORCED: Cr4 = Cr4::MCE;

/// What the guest reads of those bits.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadShadow {
    cr0: u64,
    cr4: u64,
}

impl ReadShadow {
    /// CR0 as the guest reads it.
    pub fn cr0(&self, vmcb: &Vmcb) -> u64 {
        vmcb.read(vmcb::CR0) & !CR0_OWNED.bits() | self.cr0
    }

    /// CR4 as the guest reads it.
    pub fn cr4(&self, vmcb: &Vmcb) -> u64 {
        vmcb.read(vmcb::CR4) & !CR4_FORCED.bits() | self.cr4
    }

    /// CR0 becomes `value`, to the guest.
    pub fn set_cr0(&mut self, vmcb: &mut Vmcb, value: u64) {
        self.cr0 = value & CR0_OWNED.bits();
        vmcb.write(vmcb::CR0, value & !CR0_OWNED.bits() | CR0_FORCED.bits());
        let differs = self.cr0 != 0;
        intercept(vmcb, vmcb::CR_READ_INTERCEPTS, 0, differs);
        // The selective intercept compares with the real register.
        intercept(vmcb, vmcb::CR_WRITE_INTERCEPTS, 0, differs);
    }

    /// CR4 becomes `value`, to the guest.
    pub fn set_cr4(&mut self, vmcb: &mut Vmcb, value: u64) {
        self.cr4 = value & CR4_FORCED.bits();
        vmcb.write(vmcb::CR4, value | CR4_FORCED.bits());
        intercept(vmcb, vmcb::CR_READ_INTERCEPTS, 4, self.cr4 != CR4_FORCED.bits());
    }
}

/// Intercepts accesses to control register `number`, or no longer.
fn intercept(vmcb: &mut Vmcb, field: Field<u16, ReadWrite>, number: u8, on: bool) {
    let old = vmcb.read(field);
    let bit = control_register(number);
    let new = if on { old | bit } else { old & !bit };
    if new != old {
        vmcb.write(field, new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intercepts(vmcb: &Vmcb) -> (u16, u16) {
        (vmcb.read(vmcb::CR_READ_INTERCEPTS), vmcb.read(vmcb::CR_WRITE_INTERCEPTS))
    }

    #[test]
    fn the_cache_controls_are_the_guests_to_read_only() {
        let (mut vmcb, mut shadow) = (Vmcb::new(), ReadShadow::default());
        vmcb.write(vmcb::CR_READ_INTERCEPTS, 1 << 8);
        for (value, real, differs) in
            [(0x6000_0010, 0x10, true), (0x8005_0033, 0x8005_0033, false), (0x4000_0021, 0x31, true)]
        {
            shadow.set_cr0(&mut vmcb, value);
            assert_eq!((vmcb.read(vmcb::CR0), shadow.cr0(&vmcb)), (real, value | 0x10));
            assert_eq!(intercepts(&vmcb), (1 << 8 | u16::from(differs), u16::from(differs)));
        }
        // What the guest changes by itself is seen.
        vmcb.write(vmcb::CR0, 0x39);
        assert_eq!(shadow.cr0(&vmcb), 0x4000_0039);
    }

    #[test]
    fn machine_checks_are_enabled_whatever_the_guest_reads() {
        let (mut vmcb, mut shadow) = (Vmcb::new(), ReadShadow::default());
        for (value, differs) in [(0, true), (0x60, false), (0x20, true)] {
            shadow.set_cr4(&mut vmcb, value);
            assert_eq!((vmcb.read(vmcb::CR4), shadow.cr4(&vmcb)), (value | 0x40, value));
            assert_eq!(intercepts(&vmcb), (u16::from(differs) << 4, 0));
        }
    }

    #[test]
    fn what_stays_takes_no_clean_bit_back() {
        let (mut vmcb, mut shadow) = (Vmcb::new(), ReadShadow::default());
        shadow.set_cr0(&mut vmcb, 0x8000_0011);
        shadow.set_cr4(&mut vmcb, 0x60);
        vmcb.set_clean();
        let clean = vmcb.clone();
        intercept(&mut vmcb, vmcb::CR_READ_INTERCEPTS, 0, false);
        assert!(vmcb == clean);
    }
}
