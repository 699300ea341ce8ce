//! Control registers as the hypervisor wants them for itself.
//!
//! Owns the protections that hold for the hypervisor's own code. Never touches what belongs to guests (XCR0, VMXE).

use core::arch::asm;

use raw_cpuid::{CpuId, CpuIdReaderNative};
use x86_64::instructions::tables::sgdt;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};

/// What CPUID says about the machine's processor.
pub fn cpuid() -> CpuId<CpuIdReaderNative> {
    CpuId::new()
}

/// Whether page tables may map 1 GiB at once.
pub fn has_huge_pages() -> bool {
    cpuid().get_extended_processor_and_feature_identifiers().is_some_and(|f| f.has_1gib_pages())
}

/// Turns on every protection the processor has that the hypervisor runs under: write protection also for itself, no
/// execution of data, none of user pages (there are none: a wild jump or access below 2^47 faults), machine checks.
///
/// # Panics
/// On a processor without NX: every one with VMX or SVM and nested paging has it.
pub fn protect() {
    let cpuid = cpuid();
    let nx = cpuid.get_extended_processor_and_feature_identifiers().is_some_and(|f| f.has_execute_disable());
    assert!(nx, "the processor has no execute-disable bit");
    // SAFETY: long mode is on and stays on; NX bits in the loader's tables are set only where nothing is executed.
    unsafe { Efer::update(|efer| efer.insert(EferFlags::NO_EXECUTE_ENABLE)) };
    // SAFETY: WP only takes away, and nothing of ours writes to a read-only page; NE concerns the x87, which is not used.
    // Caches on is what memory's mappings are made for; some firmware leaves them off.
    unsafe {
        Cr0::update(|cr0| {
            cr0.insert(Cr0Flags::WRITE_PROTECT | Cr0Flags::NUMERIC_ERROR);
            cr0.remove(Cr0Flags::CACHE_DISABLE | Cr0Flags::NOT_WRITE_THROUGH);
        });
    }

    let mut wanted = Cr4Flags::PAGE_GLOBAL;
    if let Some(features) = cpuid.get_feature_info()
        && features.has_mce()
    {
        wanted |= Cr4Flags::MACHINE_CHECK_EXCEPTION;
    }
    if let Some(features) = cpuid.get_extended_feature_info() {
        wanted.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, features.has_smep());
        wanted.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, features.has_smap());
        wanted.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, features.has_umip());
    }
    // SAFETY: each bit is one the processor says it has, and restricts only user mode or access to user pages, of which
    // the hypervisor has none.
    unsafe { Cr4::update(|cr4| cr4.insert(wanted)) };
}

/// The protections that are on, for the log.
pub fn protections() -> Cr4Flags {
    Cr4::read()
        & (Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION
            | Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION
            | Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION)
}

/// The task register.
#[derive(Clone, Copy, Debug)]
pub struct TaskRegister {
    /// Selector.
    pub selector: u16,
    /// Base of the TSS.
    pub base: u64,
}

/// The task register, its base taken from the descriptor.
pub fn tr() -> TaskRegister {
    let selector: u16;
    // SAFETY: STR only reads the task register.
    unsafe { asm!("str {:x}", out(reg) selector, options(nostack, nomem, preserves_flags)) };
    let table: *const [u64; 2] = sgdt().base.as_ptr();
    // SAFETY: the selector names the system descriptor (16 bytes) that `gdt` put into the table that is in force.
    let [low, high] = unsafe { table.byte_add(usize::from(selector & !7)).read_unaligned() };
    let base = low >> 16 & 0xff_ffff | (low >> 56 & 0xff) << 24 | (high & 0xffff_ffff) << 32;
    TaskRegister { selector, base }
}
