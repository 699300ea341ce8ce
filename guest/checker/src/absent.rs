//! What CPUID does not report must not work: control-register bits are refused and instructions unknown. What it does
//! report is not tried here.

use guest_rt::trap::Fault;
use guest_rt::{cpu, probe};

use crate::{GP0, Report, UD};

/// EAX, EBX, ECX, EDX.
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// A feature's place in CPUID: leaf, subleaf, register, bit.
type Place = (u32, u32, usize, u32);

/// CR4 bits with the features that allow them (SDM vol. 3, "Control Registers").
const CR4_BITS: [(&str, u32, &[Place]); 13] = [
    ("UMIP", 11, &[(7, 0, ECX, 2)]),
    ("LA57", 12, &[(7, 0, ECX, 16)]),
    ("VMXE", 13, &[(1, 0, ECX, 5)]),
    ("SMXE", 14, &[(1, 0, ECX, 6)]),
    ("FSGSBASE", 16, &[(7, 0, EBX, 0)]),
    ("PCIDE", 17, &[(1, 0, ECX, 17)]),
    ("OSXSAVE", 18, &[(1, 0, ECX, 26)]),
    ("SMEP", 20, &[(7, 0, EBX, 7)]),
    ("SMAP", 21, &[(7, 0, EBX, 20)]),
    ("PKE", 22, &[(7, 0, ECX, 3)]),
    ("CET", 23, &[(7, 0, ECX, 7), (7, 0, EDX, 20)]),
    ("PKS", 24, &[(7, 0, ECX, 31)]),
    ("31", 31, &[]),
];

type Instruction = fn() -> Result<(), Fault>;

/// Instructions that the processor or the hypervisor can take away, with their features.
const INSTRUCTIONS: [(&str, Place, Instruction); 15] = [
    ("RDTSCP", (0x8000_0001, 0, EDX, 27), probe::rdtscp),
    ("RDPID", (7, 0, ECX, 22), probe::rdpid),
    ("INVPCID", (7, 0, EBX, 10), probe::invpcid),
    ("RDRAND", (1, 0, ECX, 30), probe::rdrand),
    ("RDSEED", (7, 0, EBX, 18), probe::rdseed),
    ("MONITOR", (1, 0, ECX, 3), probe::monitor),
    ("TPAUSE", (7, 0, ECX, 5), probe::tpause),
    ("XSAVE", (1, 0, ECX, 26), probe::xsave),
    ("XSAVES", (0xd, 1, 0, 3), probe::xsaves),
    ("RDFSBASE", (7, 0, EBX, 0), probe::rdfsbase),
    ("CLAC", (7, 0, EBX, 20), probe::clac),
    ("VMXON", (1, 0, ECX, 5), probe::vmxon),
    ("VMXOFF", (1, 0, ECX, 5), probe::vmxoff),
    ("VMRUN", (0x8000_0001, 0, ECX, 2), probe::vmrun),
    ("GETSEC", (1, 0, ECX, 6), probe::getsec),
];

/// MSRs that come with a feature.
const MSRS: [(&str, u32, Place); 9] = [
    ("IA32_FEATURE_CONTROL", 0x3a, (1, 0, ECX, 5)),
    ("IA32_VMX_BASIC", 0x480, (1, 0, ECX, 5)),
    ("IA32_VMX_TRUE_ENTRY_CTLS", 0x490, (1, 0, ECX, 5)),
    ("IA32_TSC_ADJUST", 0x3b, (7, 0, EBX, 1)),
    ("IA32_SPEC_CTRL", 0x48, (7, 0, EDX, 26)),
    ("IA32_XSS", 0xda0, (0xd, 1, 0, 3)),
    ("IA32_TSC_AUX", 0xc000_0103, (0x8000_0001, 0, EDX, 27)),
    ("IA32_PMC0", 0xc1, (0xa, 0, 0, 8)),
    ("VM_HSAVE_PA", 0xc001_0117, (0x8000_0001, 0, ECX, 2)),
];

/// Numbers that no processor gives a meaning.
const NO_MSRS: [u32; 4] = [0x0000_1fff, 0x4fff_ffff, 0x7654_3210, 0xc000_1fff];

fn reported(place: Place) -> bool {
    cpu::has(place.0, place.1, place.2, place.3)
}

pub(crate) fn check(report: &mut Report) {
    for (name, bit, features) in CR4_BITS {
        if !features.iter().copied().any(reported) {
            let result = probe::cr4(|value| value | 1 << bit);
            report.check_item("absent-cr4-", format_args!("{name}"), result == Err(GP0), result);
        }
    }
    for (name, feature, execute) in INSTRUCTIONS {
        if !reported(feature) {
            let result = execute();
            let unknown = result == Err(Fault { vector: UD, error: 0 });
            report.check_item("absent-instruction-", format_args!("{name}"), unknown, result);
        }
    }
    for (name, msr, feature) in MSRS {
        // Two names for one MSR: RDPID reads it too. Leaf 0xA counts counters in its bits 8 to 15.
        let other_way = (msr == 0xc000_0103 && reported((7, 0, ECX, 22))) || (msr == 0xc1 && counters() > 0);
        if !reported(feature) && !other_way {
            let result = probe::rdmsr(msr);
            report.check_item("absent-msr-", format_args!("{name}"), result == Err(GP0), result);
        }
    }
    for msr in NO_MSRS {
        let read = probe::rdmsr(msr);
        report.check_item("unknown-msr-read-", format_args!("{msr:#x}"), read == Err(GP0), read);
        let write = probe::wrmsr(msr, 0);
        report.check_item("unknown-msr-write-", format_args!("{msr:#x}"), write == Err(GP0), write);
    }
}

fn counters() -> u32 {
    if cpu::cpuid(0, 0)[0] >= 0xa { cpu::cpuid(0xa, 0)[0] >> 8 & 0xff } else { 0 }
}
