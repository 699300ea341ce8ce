//! Which port accesses and MSR accesses do not exit (APM vol. 2, "I/O Permissions Map" and "MSR Permissions Map"). One
//! set for all guests: what passes is what the VMCB holds, or what the back end switches.

use lamina_arch::msr;
use lamina_vmm::msr::{PASSED, WATCHED};

use crate::memory::HostBlock;

/// Unit: bytes. 64 Ki ports, and what an access at the last ones reaches beyond.
const IOPM_SIZE: usize = 12 << 10;
/// Unit: bytes. Four ranges of 8 Ki MSRs with two bits each; the last is reserved.
const MSRPM_SIZE: usize = 8 << 10;
/// First MSRs of the ranges that the map covers.
const RANGES: [u32; 3] = [0, 0xc000_0000, 0xc001_0000];
/// MSRs in a range.
const RANGE: u32 = 0x2000;
/// Bits of one MSR: RDMSR exits, WRMSR exits.
const BOTH: u8 = 0b11;
const READ: u8 = 0b01;

/// The I/O permission map: every access exits.
pub fn io() -> HostBlock {
    let mut map = HostBlock::new(IOPM_SIZE);
    map.bytes_mut().fill(0xff);
    map
}

/// The MSR permission map: VMLOAD and VMSAVE move what passes. `tsc_aux`: the processor has TSC_AUX, which is switched with the vCPU.
pub fn msr(tsc_aux: bool) -> HostBlock {
    let mut map = HostBlock::new(MSRPM_SIZE);
    let bytes = map.bytes_mut();
    bytes.fill(0xff);
    let passed = PASSED.map(|index| (index, BOTH)).into_iter();
    let watched = WATCHED.into_iter().chain(tsc_aux.then_some(msr::IA32_TSC_AUX)).map(|index| (index, READ));
    for (index, bits) in passed.chain(watched) {
        if let Some((byte, shift)) = place(index) {
            bytes[byte] &= !(bits << shift);
        }
    }
    map
}

/// The byte of an MSR and the place of its two bits in it.
fn place(index: u32) -> Option<(usize, u32)> {
    let range = RANGES.iter().position(|&first| (first..first + RANGE).contains(&index))?;
    let in_range = index % RANGE;
    let byte = range * (RANGE as usize / 4) + in_range as usize / 4;
    Some((byte, in_range % 4 * 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msrs_are_where_the_manual_has_them() {
        assert_eq!(place(0), Some((0, 0)));
        assert_eq!(place(msr::IA32_SYSENTER_CS), Some((0x5d, 0)));
        assert_eq!(place(0x1fff), Some((0x7ff, 6)));
        assert_eq!(place(msr::IA32_LSTAR), Some((0x820, 4)));
        assert_eq!(place(msr::IA32_KERNEL_GS_BASE), Some((0x840, 4)));
        assert_eq!(place(msr::VM_CR), Some((0x1045, 0)));
        for beyond in [0x2000, 0x4000_0000, 0xc000_2000, 0xc001_2000, u32::MAX] {
            assert_eq!(place(beyond), None);
        }
    }
}
