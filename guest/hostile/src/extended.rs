//! Extended state (SDM vol. 1, "Managing State Using the XSAVE Feature Set").

use guest_rt::extended::Extended;
use guest_rt::{cpu, probe};

use crate::engine::{DATA, RCX, RDI, Run, run};
use crate::seen::{GP0, Seen, all};
use crate::{Case, code};

pub const CASES: &[Case] = &[
    ("xsetbv-without-osxsave", || {
        run(code!(
            "mov rax, cr4",
            "and eax, ~0x40000",
            "mov cr4, rax",
            "xor ecx, ecx",
            "xor edx, edx",
            "mov eax, 1",
            "xsetbv"
        ))
        .into()
    }),
    ("xsetbv-without-x87", || xsetbv(0, 6)),
    ("xsetbv-zero", || xsetbv(0, 0)),
    ("xsetbv-avx-without-sse", || xsetbv(0, 5)),
    ("xsetbv-part-of-avx512", || xsetbv(0, 0x27)),
    ("xsetbv-avx512-without-avx", || xsetbv(0, 0xe3)),
    ("xsetbv-bound-registers-half", || xsetbv(0, 0xb)),
    ("xsetbv-tiles-half", || xsetbv(0, 0x2_0003)),
    ("xsetbv-reserved", || xsetbv(0, 1 << 63 | 1)),
    ("xsetbv-supervisor-state", || xsetbv(0, 1 << 11 | 1)),
    ("xsetbv-another-register", || xsetbv(1, 1)),
    ("xsetbv-dirty-upper-rcx", || with_extended(code!("xsetbv"), 0xffff_ffff_0000_0000, 3)),
    ("xsetbv-every-value", || {
        let _ = Extended::enable();
        let before = probe::xgetbv().unwrap_or(1);
        all(|| {
            (0..1024u64).try_for_each(|value| {
                let fault = Run::new(code!("xsetbv")).edx_eax(value).go().fault;
                match fault {
                    None if probe::xgetbv() == Ok(value) => Ok(()),
                    Some(GP0) if probe::xgetbv().is_ok_and(|now| now != value || now == before) => Ok(()),
                    _ => Err(Seen::Deviates("XCR0", probe::xgetbv().unwrap_or(0), value)),
                }
            })?;
            Run::new(code!("xsetbv")).edx_eax(before).go();
            Ok(())
        })
    }),
    ("xsetbv-at-3", || {
        let _ = Extended::enable();
        Run::new(code!("xsetbv")).edx_eax(3).user().go().into()
    }),
    ("xgetbv-unknown-register", || with_extended(code!("xgetbv"), 7, 0)),
    ("xsaves", || with_extended(code!("xsaves [rdi]"), 0, 7)),
    ("xrstors", || with_extended(code!("xrstors [rdi]"), 0, 7)),
    ("xsave-misaligned", || with_extended(code!("xsave [rdi + 8]"), 0, 7)),
    ("xrstor-bad-header", || {
        DATA.fill(0xff);
        let seen = with_extended(code!("xrstor [rdi]"), 0, 7);
        DATA.fill(0);
        seen
    }),
    ("xrstor-bad-mxcsr", || {
        DATA.fill(0);
        DATA.put(24, &u32::MAX.to_le_bytes());
        let run = with_extended(code!("fxrstor [rdi]"), 0, 7);
        DATA.fill(0);
        run
    }),
    ("x87-task-switched", || {
        let seen = run(code!("mov rax, cr0", "or eax, 8", "mov cr0, rax", "fninit")).into();
        run(code!("clts"));
        seen
    }),
    ("avx-after-avx-off", || {
        if !cpu::has(1, 0, 2, 28) {
            return Seen::Lacking("AVX");
        }
        let _ = Extended::enable();
        let before = probe::xgetbv().unwrap_or(1);
        let seen = run(code!("xor ecx, ecx", "xor edx, edx", "mov eax, 3", "xsetbv", "vpxor ymm0, ymm0, ymm0")).into();
        Run::new(code!("xsetbv")).edx_eax(before).go();
        seen
    }),
    ("shadow-stack-instructions", || run(code!("rdsspq rax", "test rax, rax")).into()),
    ("shadow-stack-token", || run(code!(".byte 0xf3, 0x0f, 0x01, 0xe8")).into()),
];

fn xsetbv(register: u64, value: u64) -> Seen {
    with_extended(code!("xsetbv"), register, value)
}

/// With CR4.OSXSAVE set, this in RCX and EDX:EAX, and the data pages in RDI.
fn with_extended(code: &[u8], rcx: u64, value: u64) -> Seen {
    if !cpu::has(1, 0, 2, 26) {
        return Seen::Lacking("XSAVE");
    }
    let _ = Extended::enable();
    let seen = Run::new(code).with(RCX, rcx).edx_eax(value).with(RDI, DATA.address()).go().into();
    let _ = Extended::enable();
    seen
}
