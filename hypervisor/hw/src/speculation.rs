//! The MSRs by which a guest controls the processor's speculation.
//!
//! Owns the way to them. Never decides what is written: `lamina_vmm::msr::Speculation` has checked it against what CPUID
//! shows.

use lamina_arch::msr;
use x86_64::registers::model_specific::Msr;

/// CPUID leaf 7, EDX: there is IA32_ARCH_CAPABILITIES.
const HAS_CAPABILITIES: u32 = 1 << 29;

/// Sets IA32_SPEC_CTRL, to bits that the processor has: it has told the guest of them.
pub fn write_control(value: u64) {
    // SAFETY: the bits are ones that CPUID shows; each only restricts what is predicted.
    unsafe { Msr::new(msr::IA32_SPEC_CTRL).write(value) };
}

/// The barrier for indirect branches, which the processor has: it has told the guest so.
pub fn barrier() {
    // SAFETY: CPUID shows the command; it only makes the processor forget predictions.
    unsafe { Msr::new(msr::IA32_PRED_CMD).write(1) };
}

/// IA32_ARCH_CAPABILITIES; 0 where there is none.
pub fn capabilities() -> u64 {
    let leaf = |leaf| raw_cpuid::native_cpuid::cpuid_count(leaf, 0);
    if leaf(0).eax < 7 || leaf(7).edx & HAS_CAPABILITIES == 0 {
        return 0;
    }
    // SAFETY: CPUID shows it; reading it changes nothing.
    unsafe { Msr::new(msr::IA32_ARCH_CAPABILITIES).read() }
}
