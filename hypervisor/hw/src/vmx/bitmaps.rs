//! Which port accesses and MSR accesses do not exit (SDM vol. 3, "I/O-Bitmap Addresses", "MSR-Bitmap Address"). The same
//! for all guests: what passes is what the back end switches between them, and, of an x2APIC that the processor
//! virtualizes, what that answers for.

use lamina_arch::msr;
use lamina_arch::vmx::controls::Secondary;
use lamina_vmm::msr::{PASSED, WATCHED};

use crate::memory::HostPage;

/// Offset of the bitmap for reads of MSRs 0 to 0x1fff. Unit: bytes.
const READ_LOW: usize = 0;
/// Offset of the bitmap for reads of MSRs 0xc0000000 to 0xc0001fff.
const READ_HIGH: usize = 1024;
/// Offset from a bitmap for reads to the one for writes.
const WRITE: usize = 2048;

/// MSRs that the guest only reads itself: the processor adds the TSC offset; EFER is a field of the VMCS.
const READ_ONLY: [u32; 2] = [msr::IA32_TIME_STAMP_COUNTER, msr::IA32_EFER];

/// The x2APIC's registers that the guest reads itself where the processor virtualizes them: all that can be read but the
/// timer's current count, which is nowhere to be read. Others than these would read as whatever is in the page.
const X2APIC_READ: [(u32, u32); 12] = [
    (0x802, 0x803), // ID, version
    (0x808, 0x808), // task priority
    (0x80a, 0x80a), // processor priority
    (0x80d, 0x80d), // logical destination
    (0x80f, 0x80f), // spurious interrupt
    (0x810, 0x817), // in service
    (0x818, 0x81f), // trigger mode
    (0x820, 0x827), // requested
    (0x828, 0x828), // errors
    (0x830, 0x830), // interrupt command
    (0x832, 0x838), // local vector table, initial count
    (0x83e, 0x83e), // divide configuration
];
/// Those that the guest writes itself: task priority, EOI, self-IPI. The processor gives the faults.
const X2APIC_WRITTEN: [u32; 3] = [0x808, 0x80b, 0x83f];

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

/// The same for a guest whose x2APIC the processor virtualizes (SDM vol. 3, "Virtualizing MSR-Based APIC Accesses").
pub fn x2apic_bitmap(secondary: u32) -> HostPage {
    let mut page = msr_bitmap(secondary);
    let bitmap = page.bytes_mut();
    for (first, last) in X2APIC_READ {
        (first..=last).for_each(|index| pass(bitmap, index, false));
    }
    for index in X2APIC_WRITTEN {
        pass(bitmap, index, true);
    }
    page
}

/// The MSR bitmap, given the secondary controls in force.
pub fn msr_bitmap(secondary: u32) -> HostPage {
    let mut page = all_exit();
    let bitmap = page.bytes_mut();
    // Fields of the VMCS, or switched with the vCPU. Without RDTSCP there is no IA32_TSC_AUX for the guest to reach.
    let tsc_aux = (secondary & Secondary::ENABLE_RDTSCP.bits() != 0).then_some(msr::IA32_TSC_AUX);
    for index in PASSED.into_iter().chain([msr::IA32_PAT]) {
        pass(bitmap, index, false);
        pass(bitmap, index, true);
    }
    for index in READ_ONLY.into_iter().chain(WATCHED).chain(tsc_aux) {
        pass(bitmap, index, false);
    }
    page
}

fn pass(bitmap: &mut [u8; 4096], index: u32, write: bool) {
    let area = if index >= 0xc000_0000 { READ_HIGH } else { READ_LOW };
    let bit = (index & 0x1fff) as usize;
    bitmap[area + if write { WRITE } else { 0 } + bit / 8] &= !(1 << (bit % 8));
}
