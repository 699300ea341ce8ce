//! MSRs, control registers, the time-stamp counter.

use core::arch::asm;

use guest_rt::cpu;

use crate::machine::{GP, NOTHING, rdmsr, wrmsr};
use crate::{Test, Verdict, raises, same};

pub const TESTS: &[Test] = &[
    ("msr sysenter", || kept(&[(0x174, 0x1234), (0x175, 0x1234_5678_9abc), (0x176, 0x1234_5678_9abc)])),
    ("msr syscall", || kept(&[(0xc000_0082, 0x1234_5678_9abc), (0xc000_0083, 0x1234), (0xc000_0084, 0xffff_ffff)])),
    ("msr star", || kept(&[(0xc000_0081, 0x0023_0010_1234_5678)])),
    ("msr bases", || kept(&[(0xc000_0100, 0x1234_5678_9abc), (0xc000_0102, 0x1234_5678_9abc)])),
    ("msr pat", || kept(&[(0x277, 0x0007_0407_0007_0406)])),
    ("msr pat with a reserved type", || same(wrmsr(0x277, 0x0002_0406_0007_0406), GP)),
    ("msr efer sce", || kept(&[(0xc000_0080, 0x501)])),
    ("msr efer nxe", || kept(&[(0xc000_0080, 0xd00)])),
    ("msr efer lme while paging", || same(wrmsr(0xc000_0080, 0), GP)),
    ("msr efer reserved", || same(wrmsr(0xc000_0080, 1 << 20 | 0x500), GP)),
    ("msr lstar not canonical", || same(wrmsr(0xc000_0082, 1 << 63), GP)),
    ("msr sysenter eip not canonical", || same(wrmsr(0x176, 1 << 47), GP)),
    ("msr fs base not canonical", || same(wrmsr(0xc000_0100, 1 << 50), GP)),
    ("msr misc enable", misc_enable),
    ("msr misc enable takes execute disable away", execute_disable),
    ("msr apic base reserved", || same(wrmsr(0x1b, 0xfee0_0900 | 1), GP)),
    ("msr mtrr fixed", || kept(&[(0x250, 0x0505_0505_0505_0505), (0x268, 0)])),
    ("msr mtrr fixed with a reserved type", || same(wrmsr(0x250, 0x0202_0202_0202_0202), GP)),
    ("msr mtrr variable", || kept(&[(0x20e, 0x8000_0006), (0x20f, 0xf_c000_0800)])),
    ("msr mtrr capabilities are read-only", || same(wrmsr(0xfe, 0), GP)),
    ("tsc goes on", tsc_goes_on),
    ("tsc written", tsc_written),
    ("tsc adjusted", tsc_adjusted),
    ("cr0 nw without cd", || same(cr0(|cr0| cr0 & !(1 << 30) | 1 << 29), GP)),
    ("cr0 pg without pe", || same(cr0(|cr0| cr0 & !1), GP)),
    ("cr0 upper half", || same(cr0(|cr0| cr0 | 1 << 32), GP)),
    ("cr0 ts, mp, wp and am", || same(cr0(|cr0| cr0 ^ 0x5_000a), NOTHING)),
    ("cr0 reserved bits are ignored", cr0_reserved),
    ("cr0 cache disable is read back", cache_disable),
    ("cr4 mce is read back", machine_check_enable),
    ("cr4 reserved", || same(cr4(|cr4| cr4 | 1 << 40), GP)),
    ("cr4 without pae", || same(cr4(|cr4| cr4 & !(1 << 5)), GP)),
    ("cr4 pge, tsd and de", || same(cr4(|cr4| cr4 ^ 0x8c), NOTHING)),
    ("cr4 osxsave is told by cpuid", osxsave),
    ("cr8", cr8),
    ("xsetbv without x87", || same(xsetbv(0), GP)),
    ("xsetbv avx without sse", || same(xsetbv(5), GP)),
    ("clts and lmsw", lmsw),
    ("debug registers", debug_registers),
    ("dr7 upper half", || same(raises!(["mov dr7, {v}"] v = in(reg) 1u64 << 32,), GP)),
    ("dr6 upper half", || same(raises!(["mov dr6, {v}"] v = in(reg) 1u64 << 32,), GP)),
    ("rdpmc", || same(raises!(["rdpmc"] in("ecx") 0x4000_1234, out("eax") _, out("edx") _,), GP)),
    ("cpuid keeps what it shows", cpuid_is_stable),
];

/// What is written is read, and the former value comes back.
fn kept(msrs: &[(u32, u64)]) -> Verdict {
    for &(msr, value) in msrs {
        let before = rdmsr(msr).map_err(|raised| (raised, NOTHING))?;
        same(wrmsr(msr, value), NOTHING)?;
        let after = rdmsr(msr).map_err(|raised| (raised, NOTHING))?;
        same(wrmsr(msr, before), NOTHING)?;
        same(after, value)?;
    }
    Ok(())
}

const MISC_ENABLE: u32 = 0x1a0;
const XD_DISABLE: u64 = 1 << 34;

fn misc_enable() -> Verdict {
    // Fast strings, thermal control, SpeedStep, MONITOR, leaves, xTPR, execute disable; three bits are read-only.
    let before = rdmsr(MISC_ENABLE).map_err(|raised| (raised, NOTHING))?;
    kept(&[(MISC_ENABLE, 0x4_00c5_0809 & !0x1880 | before & 0x1880)])
}

fn execute_disable() -> Verdict {
    let before = rdmsr(MISC_ENABLE).map_err(|raised| (raised, NOTHING))?;
    same(wrmsr(MISC_ENABLE, before | XD_DISABLE), NOTHING)?;
    let shown = cpu::has(0x8000_0001, 0, 3, 20);
    let refused = wrmsr(0xc000_0080, 0xd00);
    wrmsr(MISC_ENABLE, before);
    wrmsr(0xc000_0080, 0x500);
    same(u64::from(shown) << 1 | u64::from(cpu::has(0x8000_0001, 0, 3, 20)), 1)?;
    same(refused, GP)
}

fn tsc_goes_on() -> Verdict {
    let mut last = cpu::tsc();
    for _ in 0..10_000 {
        let now = cpu::tsc();
        if now <= last {
            return Err((now, last));
        }
        last = now;
    }
    Ok(())
}

fn tsc_written() -> Verdict {
    let before = cpu::tsc();
    same(wrmsr(0x10, 1 << 40), NOTHING)?;
    let now = cpu::tsc();
    let adjusted = rdmsr(0x3b);
    wrmsr(0x3b, 0);
    if now >> 40 != 1 || now & 0xff_ffff_ffff > 100_000_000 {
        return Err((now, 1 << 40));
    }
    // What was added stands in IA32_TSC_ADJUST.
    let added = adjusted.map_err(|raised| (raised, NOTHING))?;
    let expected = (1u64 << 40).wrapping_sub(before);
    if added.abs_diff(expected) < 100_000_000 { Ok(()) } else { Err((added, expected)) }
}

fn tsc_adjusted() -> Verdict {
    let before = cpu::tsc();
    same(wrmsr(0x3b, 1 << 41), NOTHING)?;
    let now = cpu::tsc();
    wrmsr(0x3b, 0);
    let added = now.wrapping_sub(before);
    if added >> 41 == 1 { Ok(()) } else { Err((added, 1 << 41)) }
}

/// Writes CR0 and, where that was allowed, the former value again.
fn cr0(change: impl Fn(u64) -> u64) -> u64 {
    let before: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr0", out(reg) before) };
    raises!(["mov cr0, {new}", "mov cr0, {old}"] new = in(reg) change(before), old = in(reg) before,)
}

fn cr0_reserved() -> Verdict {
    let (before, after): (u64, u64);
    // SAFETY: a reserved bit of the low half is ignored, and the register is as it was then.
    unsafe {
        asm!("mov {b}, cr0", "mov {a}, {b}", "bts {a}, 10", "mov cr0, {a}", "mov {a}, cr0", b = out(reg) before, a = out(reg) after);
    }
    same(after, before)
}

/// CD is read as it was written, by SMSW too, and CLTS leaves it.
fn cache_disable() -> Verdict {
    let (before, written, read, whole, word, cleared, after): (u64, u64, u64, u64, u64, u64, u64);
    // SAFETY: only the cache is off meanwhile, and TS set, and the register is as it was then.
    unsafe {
        asm!(
            "mov {b}, cr0", "mov {w}, {b}", "bts {w}, 30", "bts {w}, 3", "mov cr0, {w}",
            "mov {r}, cr0", "smsw {s:e}", "mov {h}, -1", "smsw {h:x}", "clts", "mov {c}, cr0", "mov cr0, {b}", "mov {a}, cr0",
            b = out(reg) before, w = out(reg) written, r = out(reg) read, s = out(reg) whole, h = out(reg) word,
            c = out(reg) cleared, a = out(reg) after,
        );
    }
    same(read, written)?;
    same(whole, written & 0xffff_ffff)?;
    same(word, u64::MAX << 16 | written & 0xffff)?;
    same(cleared, written & !8)?;
    same(after, before)
}

/// MCE is read as it was written, set or clear.
fn machine_check_enable() -> Verdict {
    let before: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) before) };
    for value in [before ^ 1 << 6, before] {
        let read: u64;
        // SAFETY: nobody makes a machine check.
        unsafe { asm!("mov cr4, {v}", "mov {r}, cr4", v = in(reg) value, r = out(reg) read) };
        same(read, value)?;
    }
    Ok(())
}

fn cr4(change: impl Fn(u64) -> u64) -> u64 {
    let before: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) before) };
    raises!(["mov cr4, {new}", "mov cr4, {old}"] new = in(reg) change(before), old = in(reg) before,)
}

/// XSETBV of register 0, with CR4.OSXSAVE set meanwhile.
fn xsetbv(value: u64) -> u64 {
    let before: u64;
    // SAFETY: the processor has XSAVE, as every one that Lamina runs on.
    unsafe { asm!("mov {b}, cr4", "mov {n}, {b}", "bts {n}, 18", "mov cr4, {n}", b = out(reg) before, n = out(reg) _) };
    let raised = raises!(["xsetbv"] in("ecx") 0, in("eax") value, in("edx") 0,);
    // SAFETY: the former value.
    unsafe { asm!("mov cr4, {}", in(reg) before) };
    raised
}

fn osxsave() -> Verdict {
    let before: u64;
    // SAFETY: as in `xsetbv`.
    unsafe { asm!("mov {b}, cr4", "mov {n}, {b}", "bts {n}, 18", "mov cr4, {n}", b = out(reg) before, n = out(reg) _) };
    let on = cpu::cpuid(1, 0)[2] >> 27 & 1;
    // SAFETY: without the bit.
    unsafe { asm!("mov cr4, {}", in(reg) before & !(1 << 18)) };
    let off = cpu::cpuid(1, 0)[2] >> 27 & 1;
    // SAFETY: the former value.
    unsafe { asm!("mov cr4, {}", in(reg) before) };
    same(u64::from(on << 1 | off), 2)
}

fn cr8() -> Verdict {
    let value: u64;
    // SAFETY: sets the task priority, and takes it back.
    unsafe {
        asm!("mov cr8, {five}", "mov {v}, cr8", "mov cr8, {zero}", five = in(reg) 5u64, zero = in(reg) 0u64, v = out(reg) value)
    };
    same(value, 5)?;
    same(raises!(["mov cr8, {v}"] v = in(reg) 0x10u64,), GP)
}

fn lmsw() -> Verdict {
    let (set, cleared, left): (u64, u64, u64);
    // SAFETY: only TS changes, and it is clear in the end.
    unsafe {
        asm!(
            "mov {a}, cr0", "or {a}, 8", "lmsw {a:x}", "mov {a}, cr0",
            "clts", "mov {b}, cr0",
            "xor {c:e}, {c:e}", "lmsw {c:x}", "mov {c}, cr0",
            "mov cr0, {b}",
            a = out(reg) set, b = out(reg) cleared, c = out(reg) left,
        );
    }
    // LMSW cannot clear PE.
    same(set >> 3 & 1 | (cleared >> 3 & 1) << 1 | (left & 1) << 2, 0b101)
}

fn debug_registers() -> Verdict {
    let (dr0, dr6, dr7): (u64, u64, u64);
    // SAFETY: breakpoints stay disabled.
    unsafe {
        asm!(
            "mov dr0, {v}", "mov {a}, dr0", "mov dr6, {z}", "mov {b}, dr6", "mov dr7, {z}", "mov {c}, dr7",
            v = in(reg) 0x1234_5678_9abc_u64, z = in(reg) 0u64, a = out(reg) dr0, b = out(reg) dr6, c = out(reg) dr7,
        );
    }
    same(dr0, 0x1234_5678_9abc)?;
    same(dr6 & 0xffff, 0x0ff0)?;
    same(dr7, 0x400)
}

fn cpuid_is_stable() -> Verdict {
    let sum =
        || (0..0x16).flat_map(|leaf| cpu::cpuid(leaf, 0)).fold(0u64, |sum, part| sum.rotate_left(5) ^ u64::from(part));
    same(sum(), sum())
}
