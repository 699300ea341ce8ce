//! Control and debug registers (SDM vol. 3, "Control Registers", "Debug Registers").

use core::arch::asm;

use guest_rt::trap::Fault;
use guest_rt::{cpu, probe};

use crate::engine::{DATA, RAX, RCX, RDI, Run, run};
use crate::seen::{GP0, Seen, all, expect, works_or_gp0};
use crate::{Case, code};

/// MSRs that several chapters need.
pub const EFER: u32 = 0xc000_0080;
/// See [`EFER`].
pub const STAR: u32 = 0xc000_0081;
/// See [`EFER`].
pub const LSTAR: u32 = 0xc000_0082;
/// See [`EFER`].
pub const FMASK: u32 = 0xc000_0084;
/// See [`EFER`].
pub const SYSENTER_CS: u32 = 0x174;

pub const CASES: &[Case] = &[
    ("cr0-paging-without-protection", || probe::cr0(|value| value & !1).into()),
    ("cr0-not-write-through-alone", || probe::cr0(|value| value & !(1 << 30) | 1 << 29).into()),
    ("cr0-paging-off-in-64-bit-code", || probe::cr0(|value| value & !(1 << 31)).into()),
    ("cr0-upper-half", || probe::cr0(|value| value | 1 << 32).into()),
    ("cr0-every-bit", || all(|| sweep(|change| probe::cr0(change)))),
    ("cr0-lmsw-keeps-protection", || {
        all(|| {
            let ran = run(code!("xor eax, eax", "lmsw ax", "mov rax, cr0"));
            expect("CR0.PE", ran.gprs[RAX] & 1, 1)
        })
    }),
    ("cr0-clts", || {
        all(|| {
            let ran = run(code!("mov rax, cr0", "or rax, 8", "mov cr0, rax", "clts", "mov rax, cr0"));
            expect("CR0.TS", ran.gprs[RAX] & 8, 0)
        })
    }),
    ("cr0-cache-disable-reads-back", || {
        all(|| {
            let code = code!(
                "mov rbx, cr0",
                "mov rax, rbx",
                "or rax, 0x40000000",
                "mov cr0, rax",
                "mov rcx, cr0",
                "mov cr0, rbx"
            );
            expect("CR0.CD", run(code).gprs[RCX] >> 30 & 1, 1)
        })
    }),
    ("cr0-ne-clear", || probe::cr0(|value| value & !(1 << 5)).into()),
    ("cr2-non-canonical", || Run::new(code!("mov cr2, rax", "mov rbx, cr2")).with(RAX, 1 << 47).go().into()),
    ("cr3-reserved-bits", || Run::new(code!("mov cr3, rax")).with(RAX, 1 << 62).go().into()),
    ("cr3-beyond-the-address-width", || {
        let width = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
        if width >= 52 {
            return Seen::Lacking("bits beyond its address width");
        }
        Run::new(code!("mov cr3, rax")).with(RAX, 1 << width).go().into()
    }),
    ("cr4-pae-off", || probe::cr4(|value| value & !(1 << 5)).into()),
    ("cr4-vmxe", || probe::cr4(|value| value | 1 << 13).into()),
    ("cr4-smxe", || probe::cr4(|value| value | 1 << 14).into()),
    ("cr4-la57", || probe::cr4(|value| value | 1 << 12).into()),
    ("cr4-cet", || probe::cr4(|value| value | 1 << 23).into()),
    ("cr4-upper-half", || probe::cr4(|value| value | 1 << 32).into()),
    ("cr4-every-bit", || all(|| sweep(|change| probe::cr4(change)))),
    ("cr4-pcid-with-a-pcid-in-cr3", || {
        if !cpu::has(1, 0, 2, 17) {
            return Seen::Lacking("PCID");
        }
        let code = code!(
            "mov rbx, cr3",
            "mov rcx, rbx",
            "or rcx, 8",
            "mov cr3, rcx",
            "mov rax, cr4",
            "or eax, 0x20000",
            "mov cr4, rax"
        );
        let seen = run(code).into();
        crate::window::load();
        seen
    }),
    ("cr4-mce-clear", || probe::cr4(|value| value & !(1 << 6)).into()),
    ("cr8-every-value", || {
        all(|| {
            (0..256u64).try_for_each(|value| {
                let wanted = if value < 16 { None } else { Some(GP0) };
                let found = probe::cr8(|_| value).err();
                if found == wanted { Ok(()) } else { Err(Seen::Deviates("refusal of CR8", value, 16)) }
            })
        })
    }),
    ("cr-unknown", || run(code!(".byte 0x0f, 0x20, 0xc8")).into()),
    ("dr4-with-extensions", || {
        run(code!("mov rax, cr4", "or eax, 8", "mov cr4, rax", ".byte 0x0f, 0x21, 0xe0")).into()
    }),
    ("dr6-upper-half", || Run::new(code!("mov dr6, rax")).with(RAX, 1 << 32).go().into()),
    ("dr7-upper-half", || Run::new(code!("mov dr7, rax")).with(RAX, 1 << 32).go().into()),
    ("dr7-general-detect", || Run::new(code!("mov dr7, rax", "mov rbx, dr0")).with(RAX, 0x2400).go().into()),
    ("efer-every-bit", || {
        let efer = read(EFER);
        all(|| (0..64).try_for_each(|bit| works_or_gp0(bit, probe::wrmsr(EFER, efer ^ 1 << bit).err())))
    }),
    ("efer-long-mode-off", || probe::wrmsr(EFER, read(EFER) & !(1 << 8)).into()),
    ("efer-svme", || probe::wrmsr(EFER, read(EFER) | 1 << 12).into()),
    ("efer-active-is-the-processors", || {
        let efer = read(EFER);
        all(|| {
            // LMA cannot be cleared by software.
            let _ = write(EFER, efer & !(1 << 10));
            expect("EFER.LMA", read(EFER) >> 10 & 1, 1)
        })
    }),
    ("smsw-and-friends", || {
        Run::new(code!("smsw ax", "sgdt [rdi]", "sidt [rdi]", "sldt ax", "str ax"))
            .with(RDI, DATA.address())
            .go()
            .into()
    }),
];

/// Each bit the other way around: taken or refused, nothing else.
fn sweep(write: fn(&dyn Fn(u64) -> u64) -> Result<(), Fault>) -> Result<(), Seen> {
    (0..64).try_for_each(|bit| works_or_gp0(bit, write(&|value| value ^ 1 << bit).err()))
}

/// RDMSR; 0 where it is refused.
pub fn read(msr: u32) -> u64 {
    probe::rdmsr(msr).unwrap_or(0)
}

/// WRMSR, for good. Whether it was taken.
pub fn write(msr: u32, value: u64) -> bool {
    try_write(msr, value).is_none()
}

/// WRMSR, for good.
pub fn try_write(msr: u32, value: u64) -> Option<Fault> {
    Run::new(code!("wrmsr")).with(RCX, msr.into()).edx_eax(value).go().fault
}

/// Puts debug registers and CR4's debugging extensions back.
pub fn calm() {
    // SAFETY: no breakpoint, no single step, no extension that is not there.
    unsafe {
        asm!(
            "mov {t}, cr4", "and {t}, ~8", "mov cr4, {t}",
            "mov {t:e}, 0x400", "mov dr7, {t}", "mov {t:e}, 0xffff0ff0", "mov dr6, {t}",
            t = out(reg) _, options(nostack)
        );
    }
}
