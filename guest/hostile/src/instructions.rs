//! Instructions of a processor's virtualization and of other things that a guest has not, and CPUID, which must say so.

use guest_rt::{cpu, probe};

use crate::engine::{DATA, RCX, RDI, Run, run};
use crate::seen::{Seen, UD, all, expect, works_or_gp0};
use crate::{Case, code};

pub const CASES: &[Case] = &[
    ("vmx-vmxon", || at(code!("vmxon [rdi]"))),
    ("vmx-vmxoff", || at(code!("vmxoff"))),
    ("vmx-vmclear", || at(code!("vmclear [rdi]"))),
    ("vmx-vmptrld", || at(code!("vmptrld [rdi]"))),
    ("vmx-vmptrst", || at(code!("vmptrst [rdi]"))),
    ("vmx-vmread", || at(code!("vmread rax, rbx"))),
    ("vmx-vmread-memory", || at(code!("vmread [rdi], rbx"))),
    ("vmx-vmwrite", || at(code!("vmwrite rax, rbx"))),
    ("vmx-vmlaunch", || at(code!("vmlaunch"))),
    ("vmx-vmresume", || at(code!("vmresume"))),
    ("vmx-invept", || at(code!("invept rax, [rdi]"))),
    ("vmx-invvpid", || at(code!("invvpid rax, [rdi]"))),
    ("vmx-vmfunc", || at(code!("vmfunc"))),
    ("vmx-vmxon-at-3", || Run::new(code!("vmxoff")).user().go().into()),
    ("svm-vmrun", || at(code!("vmrun rax"))),
    ("svm-vmload", || at(code!("vmload rax"))),
    ("svm-vmsave", || at(code!("vmsave rax"))),
    ("svm-stgi", || at(code!("stgi"))),
    ("svm-clgi", || at(code!("clgi"))),
    ("svm-skinit", || at(code!("skinit eax"))),
    ("svm-invlpga", || at(code!("invlpga rax, ecx"))),
    ("smx-getsec", || at(code!("getsec"))),
    ("sgx-encls", || at(code!(".byte 0x0f, 0x01, 0xcf"))),
    ("sgx-enclu", || at(code!(".byte 0x0f, 0x01, 0xd7"))),
    ("sgx-enclv", || at(code!(".byte 0x0f, 0x01, 0xc0"))),
    ("pconfig", || at(code!(".byte 0x0f, 0x01, 0xc5"))),
    ("monitor", || at(code!("mov rax, rdi", "xor ecx, ecx", "xor edx, edx", "monitor"))),
    ("mwait", || at(code!("xor eax, eax", "xor ecx, ecx", "mwait"))),
    ("umwait", || at(code!(".byte 0xf2, 0x0f, 0xae, 0xf1"))),
    ("rdpmc", || at(code!("rdpmc"))),
    ("rdpmc-fixed-counter", || Run::new(code!("rdpmc")).with(RCX, 1 << 30).go().into()),
    ("rdpru", || at(code!(".byte 0x0f, 0x01, 0xfd"))),
    ("rdpkru", || at(code!(".byte 0x0f, 0x01, 0xee"))),
    ("wrpkru", || at(code!(".byte 0x0f, 0x01, 0xef"))),
    ("clzero", || at(code!(".byte 0x0f, 0x01, 0xfc"))),
    ("ud0-and-ud1", || {
        all(|| {
            for code in [code!(".byte 0x0f, 0xff, 0xc0"), code!(".byte 0x0f, 0xb9, 0xc0")] {
                let fault = run(code).fault;
                if fault != Some(UD) {
                    return Err(run(code).into());
                }
            }
            Ok(())
        })
    }),
    ("rdtsc-disabled-at-3", || {
        let toggle = || run(code!("mov rax, cr4", "xor eax, 4", "mov cr4, rax"));
        toggle();
        let seen = Run::new(code!("rdtsc")).user().go().into();
        toggle();
        seen
    }),
    ("cpuid-every-basic-leaf", || {
        // Beyond the highest: what the highest says. None ends anything.
        all(|| {
            (0..0x100).try_for_each(|leaf| {
                (0..8).try_for_each(|subleaf| {
                    cpu::cpuid(leaf, subleaf);
                    Ok(())
                })
            })
        })
    }),
    ("cpuid-every-range", || {
        all(|| {
            for range in [0x4000_0000u32, 0x8000_0000, 0xc000_0000, 0x2000_0000, 0xffff_ff00, 0x4000_0100, 0x8086_0000]
            {
                for leaf in range..=range | 0xff {
                    cpu::cpuid(leaf, u32::MAX);
                }
            }
            Ok(())
        })
    }),
    ("cpuid-agrees-with-cr4", || {
        all(|| {
            /// CR4 bit, leaf, register, bit.
            const BITS: [(u64, u32, usize, u32); 12] = [
                (0, 1, 3, 1),
                (2, 1, 3, 4),
                (3, 1, 3, 2),
                (7, 1, 3, 13),
                (9, 1, 3, 24),
                (11, 7, 2, 2),
                (16, 7, 1, 0),
                (17, 1, 2, 17),
                (18, 1, 2, 26),
                (20, 7, 1, 7),
                (21, 7, 1, 20),
                (22, 7, 2, 3),
            ];
            for (bit, leaf, register, place) in BITS {
                let works = probe::cr4(|value| value | 1 << bit).is_ok();
                expect(
                    "a bit of CR4 and its feature",
                    u64::from(works) | bit << 8,
                    u64::from(cpu::has(leaf, 0, register, place)) | bit << 8,
                )?;
            }
            Ok(())
        })
    }),
    ("cpuid-agrees-with-msrs", || {
        all(|| {
            /// MSR, leaf, register, bit.
            const MSRS: [(u32, u32, usize, u32); 8] = [
                (0x3b, 7, 1, 1),
                (0x48, 7, 3, 26),
                (0x10a, 7, 3, 29),
                (0x3a, 1, 2, 5),
                (0x480, 1, 2, 5),
                (0xc000_0103, 0x8000_0001, 3, 27),
                (0xfe, 1, 3, 12),
                (0x6e0, 1, 2, 24),
            ];
            for (msr, leaf, register, place) in MSRS {
                let works = probe::rdmsr(msr).is_ok();
                expect(
                    "an MSR and its feature",
                    u64::from(works) | u64::from(msr) << 8,
                    u64::from(cpu::has(leaf, 0, register, place)) | u64::from(msr) << 8,
                )?;
            }
            Ok(())
        })
    }),
    ("cpuid-agrees-with-xcr0", || {
        let _ = guest_rt::extended::Extended::enable();
        let before = probe::xgetbv().unwrap_or(1);
        let [low, _, _, high] = cpu::cpuid(0xd, 0);
        let all_of_it = u64::from(high) << 32 | u64::from(low);
        let seen = all(|| {
            works_or_gp0(0, Run::new(code!("xsetbv")).edx_eax(all_of_it).go().fault)?;
            expect("XCR0", probe::xgetbv().unwrap_or(0), all_of_it)
        });
        Run::new(code!("xsetbv")).edx_eax(before).go();
        seen
    }),
    ("cpuid-has-no-virtualization", || {
        all(|| {
            expect("VMX", u64::from(cpu::has(1, 0, 2, 5)), 0)?;
            expect("SVM", u64::from(cpu::has(0x8000_0001, 0, 2, 2)), 0)?;
            expect("SMX", u64::from(cpu::has(1, 0, 2, 6)), 0)
        })
    }),
];

fn at(code: &[u8]) -> Seen {
    Run::new(code).with(RDI, DATA.address()).go().into()
}
