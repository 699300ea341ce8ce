//! Instructions on devices, which Lamina finishes in software: each must do what the processor would have done.
//!
//! The register in the middle of it all is the initial count of the local APIC's timer, whose entry is masked: 32 bits
//! that hold what was written.

use guest_rt::extended::{Extended, Width};
use guest_rt::probe;

use crate::engine::{DATA, RAX, RBX, RCX, RDI, RDX, RSI, Run, run};
use crate::seen::{Checked, Seen, all, expect, expect_end};
use crate::segments::{APIC_DATA, READ_ONLY, SMALL_DATA};
use crate::window::{self, ACCESSED, DIRTY, KERNEL, PRESENT, USER};
use crate::{Case, code};

const LAPIC: u64 = 0xfee0_0000;
const COUNT: u64 = LAPIC + 0x380;
const FS_BASE: u32 = 0xc000_0100;
const BACKWARDS: u64 = 1 << 10;
const CARRY: u64 = 1;
const ZERO: u64 = 1 << 6;

pub const CASES: &[Case] = &[
    ("emulate-mov", || becomes(code!("mov [rdi], eax"), 7, 0x1234_5678, 0x1234_5678)),
    ("emulate-mov-immediate", || becomes(code!("mov dword ptr [rdi], 0x7fffffff"), 7, 0, 0x7fff_ffff)),
    ("emulate-add", || becomes(code!("add [rdi], eax"), 7, 5, 12)),
    ("emulate-sub", || becomes(code!("sub dword ptr [rdi], 8"), 7, 0, 0xffff_ffff)),
    ("emulate-and-or-xor", || {
        becomes(code!("and dword ptr [rdi], 0xf", "or dword ptr [rdi], 0x30", "xor dword ptr [rdi], 1"), 0x17, 0, 0x36)
    }),
    ("emulate-inc-dec-neg-not", || {
        becomes(
            code!("inc dword ptr [rdi]", "neg dword ptr [rdi]", "not dword ptr [rdi]", "dec dword ptr [rdi]"),
            7,
            0,
            6,
        )
    }),
    ("emulate-shift", || {
        becomes(code!("shl dword ptr [rdi], 33", "ror dword ptr [rdi], 1", "rol dword ptr [rdi], 4"), 0x10, 0, 0x100)
    }),
    ("emulate-xchg", || becomes(code!("xchg [rdi], eax", "mov ebx, eax"), 7, 9, 9)),
    ("emulate-xadd", || becomes(code!("lock xadd [rdi], eax"), 7, 9, 16)),
    ("emulate-cmpxchg-equal", || becomes(code!("mov ecx, 0x55", "lock cmpxchg [rdi], ecx"), 7, 7, 0x55)),
    ("emulate-cmpxchg-unequal", || becomes(code!("mov ecx, 0x55", "lock cmpxchg [rdi], ecx"), 7, 8, 7)),
    ("emulate-upper-half", || {
        all(|| {
            for code in [
                code!("mov eax, [rdi]"),
                code!("xchg [rdi], eax"),
                code!("lock xadd [rdi], eax"),
                code!("add eax, [rdi]"),
                code!("imul eax, [rdi]"),
                code!("movzx eax, byte ptr [rdi]"),
                code!("movsx eax, word ptr [rdi]"),
            ] {
                set(3);
                let ran = Run::new(code).with(RDI, COUNT).with(RAX, 0xffff_ffff_0000_0005).go();
                expect_end(&ran, Seen::Completes)?;
                expect("the upper half behind a write of 32 bits", ran.gprs[RAX] >> 32, 0)?;
            }
            Ok(())
        })
    }),
    ("emulate-flags", || {
        all(|| {
            set(1);
            let ran = on(code!("sub dword ptr [rdi], 1", "pushf", "pop rax"));
            expect("ZF and CF of 1 - 1", ran[RAX] & (ZERO | CARRY), ZERO)?;
            set(0);
            let ran = on(code!("sub dword ptr [rdi], 1", "pushf", "pop rax"));
            expect("ZF and CF of 0 - 1", ran[RAX] & (ZERO | CARRY), CARRY)
        })
    }),
    ("emulate-bit-offset-negative", || {
        all(|| {
            set(0);
            let ran = Run::new(code!("bts dword ptr [rdi], eax")).with(RDI, COUNT + 4).with(RAX, 0xffff_ffff).go();
            expect_end(&ran, Seen::Completes)?;
            expect("bit 31 of the word before", get(), 1 << 31)
        })
    }),
    ("emulate-bit-offset-far", || {
        all(|| {
            // Bit -128 of what lies 16 bytes on.
            set(0);
            let run =
                Run::new(code!("bts qword ptr [rdi], rax")).with(RDI, COUNT + 16).with(RAX, (-128i64).cast_unsigned());
            expect_end(&run.go(), Seen::Completes)?;
            expect("bit 0", get(), 1)
        })
    }),
    ("emulate-bit-offset-wraps", || {
        Run::new(code!("bts qword ptr [rdi], rax")).with(RDI, COUNT).with(RAX, 1 << 62).go().into()
    }),
    ("emulate-lock-mov", || seen(code!(".byte 0xf0", "mov [rdi], eax"))),
    ("emulate-lock-read", || seen(code!(".byte 0xf0", "add eax, [rdi]"))),
    ("emulate-cmpxchg8b-register", || run(code!(".byte 0x0f, 0xc7, 0xc8")).into()),
    ("emulate-cmpxchg8b-prefixes", || {
        all(|| {
            for prefix in [0x66u8, 0xf2, 0xf3, 0xf0] {
                let ran = Run::new(&[prefix, 0x0f, 0xc7, 0x0f]).with(RDI, DATA.address()).go();
                expect_end(&ran, Seen::Completes)?;
            }
            Ok(())
        })
    }),
    ("emulate-cmpxchg16b-misaligned", || Run::new(code!("cmpxchg16b [rdi + 8]")).with(RDI, DATA.address()).go().into()),
    ("emulate-fifteen-bytes", || {
        all(|| {
            let mut code = [0x2e; 15];
            code[13..].copy_from_slice(&[0x89, 0x07]);
            set(0);
            expect_end(&Run::new(&code).with(RDI, COUNT).with(RAX, 77).go(), Seen::Completes)?;
            expect("the count", get(), 77)
        })
    }),
    ("emulate-sixteen-bytes", || {
        let mut code = [0x2e; 16];
        code[14..].copy_from_slice(&[0x89, 0x07]);
        Run::new(&code).with(RDI, COUNT).go().into()
    }),
    ("emulate-code-across-pages", || {
        all(|| {
            set(0);
            let run = Run::new(code!("mov [rdi], eax")).with(RDI, COUNT).with(RAX, 99).at(4095);
            expect_end(&run.go(), Seen::Completes)?;
            expect("the count", get(), 99)
        })
    }),
    ("emulate-code-into-no-page", || {
        // The second byte of the instruction is not mapped.
        DATA.put(4095, &[0x89]);
        let first = window::map(window::FREE, DATA.address(), KERNEL);
        window::map(window::FREE + 1, 0, 0);
        let ran = Run::new(code!("jmp rbx")).with(RBX, first + 4095).with(RDI, COUNT).go();
        ran.into()
    }),
    ("emulate-data-across-memory-and-device", || {
        all(|| {
            DATA.fill(0);
            let page = window::map(window::FREE, DATA.address(), KERNEL);
            window::map(window::FREE + 1, LAPIC, KERNEL);
            let ran = Run::new(code!("mov [rdi], eax")).with(RDI, page + 4094).with(RAX, 0x1122_3344).go();
            expect_end(&ran, Seen::Completes)?;
            expect("the bytes in memory", DATA.word(4094) & 0xffff, 0x3344)?;
            expect("the byte behind them", DATA.word(4096), 0)
        })
    }),
    ("emulate-data-across-device-and-memory", || {
        all(|| {
            DATA.fill(0);
            let page = window::map(window::FREE, LAPIC, KERNEL);
            window::map(window::FREE + 1, DATA.address(), KERNEL);
            let ran = Run::new(code!("mov [rdi], rax")).with(RDI, page + 4092).with(RAX, 0x1122_3344_5566_7788).go();
            expect_end(&ran, Seen::Completes)?;
            expect("the bytes in memory", DATA.word(0), 0x1122_3344)
        })
    }),
    ("emulate-data-across-device-and-nothing", || {
        let page = window::map(window::FREE, LAPIC, KERNEL);
        window::map(window::FREE + 1, 0, 0);
        Run::new(code!("mov [rdi], rax")).with(RDI, page + 4092).go().into()
    }),
    ("emulate-write-protected", || {
        let page = window::map(window::FREE, LAPIC, PRESENT);
        let code = code!("mov rbx, cr0", "mov rcx, rbx", "or ecx, 0x10000", "mov cr0, rcx", "mov [rdi + 0x380], eax");
        Run::new(code).with(RDI, page).go().into()
    }),
    ("emulate-kernel-device-at-3", || {
        let page = window::map(window::FREE, LAPIC, KERNEL);
        Run::new(code!("mov [rdi + 0x380], eax")).with(RDI, page).user().go().into()
    }),
    ("emulate-accessed-and-dirty", || {
        all(|| {
            let page = window::map(window::FREE, LAPIC, KERNEL);
            Run::new(code!("mov eax, [rdi + 0x20]")).with(RDI, page).go();
            expect("A and D after a read", window::entry(window::FREE) & (ACCESSED | DIRTY), ACCESSED)?;
            Run::new(code!("mov [rdi + 0x380], eax")).with(RDI, page).go();
            expect("A and D after a write", window::entry(window::FREE) & (ACCESSED | DIRTY), ACCESSED | DIRTY)
        })
    }),
    ("emulate-accessed-and-dirty-by-ins", || {
        all(|| {
            // The processor exits before it has touched the page: the tables are the emulator's to update.
            let page = window::map(window::FREE, DATA.address(), KERNEL);
            expect_end(&ins(page, 1), Seen::Completes)?;
            expect("A and D", window::entry(window::FREE) & (ACCESSED | DIRTY), ACCESSED | DIRTY)
        })
    }),
    ("emulate-ins-across-pages", || {
        all(|| {
            DATA.fill(0);
            let ran = ins(DATA.address() + 4000, 200);
            expect_end(&ran, Seen::Completes)?;
            expect("RCX", ran.gprs[RCX], 0)?;
            expect("RDI", ran.gprs[RDI], DATA.address() + 4200)
        })
    }),
    ("emulate-ins-into-no-page", || {
        let page = window::map(window::FREE, DATA.address(), KERNEL);
        window::map(window::FREE + 1, 0, 0);
        let ran = ins(page + 4090, 10);
        all(|| {
            expect("RCX", ran.gprs[RCX], 4)?;
            expect("RDI", ran.gprs[RDI], page + 4096)?;
            expect("the vector", ran.fault.map_or(0, |fault| fault.vector.into()), 14)
        })
    }),
    ("emulate-ins-write-protected", || {
        let page = window::map(window::FREE, DATA.address(), PRESENT);
        let code = code!("mov rbx, cr0", "mov r8, rbx", "or r8d, 0x10000", "mov cr0, r8", "rep insb");
        Run::new(code).with(RDI, page).with(RCX, 1).with(RDX, 0x71).go().into()
    }),
    ("emulate-ins-into-device", || {
        all(|| {
            set(0);
            let ran = Run::new(code!("insd")).with(RDI, COUNT).with(RDX, 0xcf8).go();
            expect_end(&ran, Seen::Completes)?;
            expect("the count", get(), Run::new(code!("in eax, dx")).with(RDX, 0xcf8).go().gprs[RAX])
        })
    }),
    ("emulate-ins-nothing", || {
        // No iteration: no access, so no fault either.
        Run::new(code!("rep insb")).with(RDI, 0x7f00_0000_0000).with(RDX, 0x71).go().into()
    }),
    ("emulate-ins-non-canonical", || ins(1 << 47, 1).into()),
    ("emulate-ins-wraps", || ins(u64::MAX - 3, 8).into()),
    ("emulate-ins-backwards", || {
        all(|| {
            let run = Run::new(code!("rep insb", "cld")).with(RDI, DATA.address() + 4100).with(RCX, 10).with(RDX, 0x71);
            let ran = run.flags(BACKWARDS).go();
            expect_end(&ran, Seen::Completes)?;
            expect("RDI", ran.gprs[RDI], DATA.address() + 4090)
        })
    }),
    ("emulate-ins-address-size", || {
        all(|| {
            // With 32-bit addresses EDI and ECX count, and their upper halves go.
            let run = Run::new(code!(".byte 0x67", "rep insb")).with(RDI, 0xdead << 32 | DATA.address());
            let ran = run.with(RCX, 0xbeef << 32 | 4).with(RDX, 0x71).go();
            expect_end(&ran, Seen::Completes)?;
            expect("RDI", ran.gprs[RDI], DATA.address() + 4)
        })
    }),
    ("emulate-outs-from-device", || {
        let run = Run::new(code!("rep outsd")).with(RSI, LAPIC + 0x20).with(RCX, 3).with(RDX, 0x80);
        run.go().into()
    }),
    ("emulate-outs-across-pages", || {
        let ran = Run::new(code!("rep outsw")).with(RSI, DATA.address() + 4091).with(RCX, 7).with(RDX, 0x80).go();
        all(|| {
            expect_end(&ran, Seen::Completes)?;
            expect("RSI", ran.gprs[RSI], DATA.address() + 4091 + 14)
        })
    }),
    ("emulate-outs-from-no-page", || Run::new(code!("outsb")).with(RSI, 0x7f00_0000_0000).with(RDX, 0x80).go().into()),
    ("emulate-outs-odd-port", || {
        // Port 0xffff with a width of 4 wraps to port 2.
        Run::new(code!("outsd")).with(RSI, DATA.address()).with(RDX, 0xffff).go().into()
    }),
    ("emulate-ins-beyond-the-limit", || in_segment(SMALL_DATA, code!("insb"), 0x1000)),
    ("emulate-ins-across-the-limit", || in_segment(SMALL_DATA, code!("insd"), 0xffe)),
    ("emulate-ins-wraps-in-segment", || in_segment(SMALL_DATA, code!("insd"), 0xffff_fffe)),
    ("emulate-ins-null-segment", || in_segment(0, code!("insb"), 0)),
    ("emulate-ins-read-only-segment", || in_segment(READ_ONLY, code!("insb"), 0)),
    ("emulate-outs-beyond-the-limit", || {
        in_segment(SMALL_DATA, code!(".byte 0x57, 0x5e", ".byte 0x26", "outsb"), 0x1000)
    }),
    ("emulate-mov-beyond-the-limit", || in_segment(APIC_DATA, code!(".byte 0x26, 0x89, 0x07"), 0xffe)),
    ("emulate-mov-in-segment", || {
        all(|| {
            set(0);
            let seen = in_segment(APIC_DATA, code!(".byte 0x26, 0x89, 0x07"), 0x380);
            if seen == Seen::Completes { Ok(()) } else { Err(seen) }?;
            expect("the count", get(), 0x5555)
        })
    }),
    ("emulate-fs-base", || {
        all(|| {
            set(0);
            let run = Run::new(code!("wrmsr", "mov dword ptr fs:[0], 31")).with(RCX, FS_BASE.into()).edx_eax(COUNT);
            let ran = run.go();
            expect_end(&ran, Seen::Completes)?;
            expect("the count", get(), 31)
        })
    }),
    ("emulate-push", || {
        all(|| {
            set(0);
            let ran = Run::new(code!("push rax")).with(RAX, 0x99).stack(COUNT + 8).go();
            expect_end(&ran, Seen::Completes)?;
            expect("RSP", ran.place.rsp, COUNT)?;
            expect("the count", get(), 0x99)
        })
    }),
    ("emulate-movs-to-device", || {
        all(|| {
            DATA.put(0, &0x4242u64.to_le_bytes());
            let ran = Run::new(code!("movsd")).with(RSI, DATA.address()).with(RDI, COUNT).go();
            expect_end(&ran, Seen::Completes)?;
            expect("the count", get(), 0x4242)
        })
    }),
    ("emulate-movs-from-device-to-device", || {
        let run = Run::new(code!("rep movsd")).with(RSI, LAPIC + 0x20).with(RDI, COUNT).with(RCX, 2);
        run.go().into()
    }),
    ("emulate-movs-device-to-page", || {
        let run = Run::new(code!("rep movsd")).with(RSI, LAPIC).with(RDI, DATA.address()).with(RCX, 1024);
        let ran = run.go();
        all(|| {
            expect_end(&ran, Seen::Completes)?;
            expect("RCX", ran.gprs[RCX], 0)
        })
    }),
    ("emulate-stos-backwards", || {
        let run = Run::new(code!("rep stosd", "cld")).with(RDI, LAPIC + 0x3fc).with(RCX, 4).flags(BACKWARDS);
        let ran = run.go();
        all(|| {
            expect_end(&ran, Seen::Completes)?;
            expect("RDI", ran.gprs[RDI], LAPIC + 0x3ec)
        })
    }),
    ("emulate-lods-scas-cmps", || {
        Run::new(code!("lodsd", "scasd", "mov rdi, rsi", "cmpsd"))
            .with(RSI, LAPIC + 0x20)
            .with(RDI, LAPIC + 0x20)
            .go()
            .into()
    }),
    ("emulate-changed-code", || {
        // The instruction that exits was written by the one before it.
        all(|| {
            set(0);
            let code = code!("mov dword ptr [rip + 77f + 2], 0x380", "jmp 77f", "77: mov [rdi + 0x11223344], eax");
            let ran = Run::new(code).with(RDI, LAPIC).with(RAX, 55).go();
            expect_end(&ran, Seen::Completes)?;
            expect("the count", get(), 55)
        })
    }),
    ("emulate-at-3", || {
        all(|| {
            set(0);
            let page = window::map(window::FREE, LAPIC, USER);
            let ran = Run::new(code!("mov [rdi + 0x380], eax")).with(RDI, page).with(RAX, 66).user().go();
            expect_end(&ran, Seen::Completes)?;
            expect("the count", get(), 66)
        })
    }),
    ("emulate-undefined-on-device", || seen(code!(".byte 0x0f, 0x0b"))),
    ("emulate-high-byte-registers", || {
        all(|| {
            set(0);
            // AH without REX, SPL with it: the width and the register must be the instruction's.
            let ran = Run::new(code!("mov [rdi], ah")).with(RDI, COUNT).with(RAX, 0xab00).go();
            expect_end(&ran, Seen::Completes)
        })
    }),
    ("emulate-movzx-movsx", || {
        all(|| {
            set(0x8000_00ff);
            let gprs = on(code!("movsxd rax, dword ptr [rdi]", "mov ebx, [rdi]"));
            expect("sign-extended", gprs[RAX], 0xffff_ffff_8000_00ff)?;
            expect("zero-extended", gprs[RBX], 0x8000_00ff)
        })
    }),
    ("emulate-x87", || {
        // An integer in, twice it out, and what is no integer of this size.
        becomes(code!("fninit", "fild dword ptr [rdi]", "fadd st, st(0)", "fistp dword ptr [rdi]"), 7, 0, 14)
    }),
    ("emulate-x87-invalid", || {
        becomes(code!("fninit", "fld1", "fldz", "fdivp", "fistp dword ptr [rdi]", "fninit"), 7, 0, 0x8000_0000)
    }),
    ("emulate-x87-not-available", || {
        let seen = seen(code!("mov rax, cr0", "or eax, 8", "mov cr0, rax", "fild dword ptr [rdi]"));
        run(code!("clts"));
        seen
    }),
    ("emulate-masked-store", || {
        if Extended::enable().width() != Width::Zmm {
            return Seen::Lacking("AVX-512");
        }
        // kmovw k1, eax; vpbroadcastd zmm1, eax; vmovdqu32 [rdi - 4]{k1}, zmm1: the second element alone.
        let code = code!(
            ".byte 0xc5, 0xf8, 0x92, 0xc8",
            ".byte 0x62, 0xf2, 0x7d, 0x48, 0x7c, 0xc8",
            ".byte 0x62, 0xf1, 0x7e, 0x49, 0x7f, 0x8f, 0xfc, 0xff, 0xff, 0xff"
        );
        becomes(code, 7, 2, 2)
    }),
];

fn set(value: u32) {
    Run::new(code!("mov [rdi], eax")).with(RDI, COUNT).with(RAX, value.into()).go();
}

fn get() -> u64 {
    probe::read_memory(COUNT).unwrap_or(u64::MAX) & 0xffff_ffff
}

fn on(code: &[u8]) -> [u64; 16] {
    Run::new(code).with(RDI, COUNT).go().gprs
}

fn seen(code: &[u8]) -> Seen {
    Run::new(code).with(RDI, COUNT).go().into()
}

/// The register holds `before`, RAX is `rax`; then it holds `after`.
fn becomes(code: &[u8], before: u32, rax: u64, after: u64) -> Seen {
    all(|| -> Checked {
        set(before);
        expect_end(&Run::new(code).with(RDI, COUNT).with(RAX, rax).go(), Seen::Completes)?;
        expect("the register", get(), after)
    })
}

/// REP INSB of `count` bytes from CMOS.
fn ins(to: u64, count: u64) -> crate::engine::Ran {
    Run::new(code!("rep insb")).with(RDI, to).with(RCX, count).with(RDX, 0x71).go()
}

/// In 32-bit code, with ES as given and this in EDI.
fn in_segment(segment: u16, code: &[u8], edi: u64) -> Seen {
    let mut all_of_it = [0; 32];
    // mov es, ebx; the rest. The bytes mean the same in 32-bit code.
    all_of_it[..2].copy_from_slice(&[0x8e, 0xc3]);
    let length = 2 + code.len().min(30);
    all_of_it[2..length].copy_from_slice(&code[..length - 2]);
    let run = Run::new(&all_of_it[..length]).with(RBX, segment.into()).with(RDI, edi).with(RDX, 0x71);
    run.with(RAX, 0x5555).compatibility().go().into()
}
