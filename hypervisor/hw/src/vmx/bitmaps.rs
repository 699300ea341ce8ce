//! Which port accesses and MSR accesses do not exit (SDM vol. 3, "I/O-Bitmap Addresses", "MSR-Bitmap Address"). One
//! set for all guests: what passes is what the back end switches between them.

use lamina_arch::msr;
use lamina_arch::vmx::controls::Secondary;

use crate::memory::HostPage;

/// Offset of the bitmap for reads of MSRs 0 to 0x1fff. Unit: bytes.
const READ_LOW: usize = 0;
/// Offset of the bitmap for reads of MSRs 0xc0000000 to 0xc0001fff.
const READ_HIGH: usize = 1024;
/// Offset from a bitmap for reads to the one for writes.
const WRITE: usize = 2048;

/// MSRs that the guest reads and writes itself: they are fields of the VMCS, or switched with the vCPU.
const PASSED: [u32; 12] = [
    msr::IA32_SYSENTER_CS,
    msr::IA32_SYSENTER_ESP,
    msr::IA32_SYSENTER_EIP,
    msr::IA32_PAT,
    msr::IA32_STAR,
    msr::IA32_LSTAR,
    msr::IA32_CSTAR,
    msr::IA32_FMASK,
    msr::IA32_FS_BASE,
    msr::IA32_GS_BASE,
    msr::IA32_KERNEL_GS_BASE,
    msr::IA32_TSC_AUX,
];
/// MSRs that the guest only reads itself: the processor adds the TSC offset; EFER is a field of the VMCS.
const READ_ONLY: [u32; 2] = [msr::IA32_TIME_STAMP_COUNTER, msr::IA32_EFER];

/// The port of power-on self-test codes. Guests write there for a delay, as Linux does around its accesses to old
/// devices, and all of them reach the machine's own port. It leads nowhere but to a display of two digits; what one
/// guest wrote last, another may read.
const POST: usize = 0x80;

/// The bitmap of ports 0 to 0x7fff.
pub fn low_ports() -> HostPage {
    let mut page = all_exit();
    page.bytes_mut()[POST / 8] &= !(1 << (POST % 8));
    page
}

/// A bitmap in which every bit is set.
pub fn all_exit() -> HostPage {
    let mut page = HostPage::new();
    page.bytes_mut().fill(0xff);
    page
}

/// The MSR bitmap, given the secondary controls in force.
pub fn msr_bitmap(secondary: u32) -> HostPage {
    let mut page = all_exit();
    let bitmap = page.bytes_mut();
    for index in PASSED {
        // Without RDTSCP there is no IA32_TSC_AUX for the guest to reach.
        if index == msr::IA32_TSC_AUX && secondary & Secondary::ENABLE_RDTSCP.bits() == 0 {
            continue;
        }
        pass(bitmap, index, false);
        pass(bitmap, index, true);
    }
    for index in READ_ONLY {
        pass(bitmap, index, false);
    }
    page
}

fn pass(bitmap: &mut [u8; 4096], index: u32, write: bool) {
    let area = if index >= 0xc000_0000 { READ_HIGH } else { READ_LOW };
    let bit = (index & 0x1fff) as usize;
    bitmap[area + if write { WRITE } else { 0 } + bit / 8] &= !(1 << (bit % 8));
}
