//! The local APIC as an x2APIC, switched off, and moved.
//!
//! The order counts: some machines never switch a local APIC on again that was off. So all that needs the second mode
//! is done at one go, and what switches off comes last of all tests.

use guest_rt::cpu;

use crate::apic::{self, enable};
use crate::machine::{self, GP, NOTHING, VECTOR, breathe, count, forget, last, rdmsr, read32, wrmsr};
use crate::{Test, Verdict, same};

const APIC_BASE: u32 = 0x1b;
const DISABLED: u64 = 0xfee0_0100;
const ENABLED: u64 = 0xfee0_0900;
const X2: u64 = 1 << 10;

pub const TESTS: &[Test] = &[
    ("x2apic extension without enable", || same(wrmsr(APIC_BASE, DISABLED | X2), GP)),
    ("x2apic registers before it is on", before),
    ("x2apic back to xapic", || in_x2(|| same(wrmsr(APIC_BASE, ENABLED), GP))),
    ("x2apic to invalid", || in_x2(|| same(wrmsr(APIC_BASE, DISABLED | X2), GP))),
    ("x2apic registers are not in memory", || in_x2(|| same(read32(0xfee0_0030).into(), 0xffff_ffff))),
    ("x2apic every register is read or refused", || in_x2(reads)),
    ("x2apic every register is written or refused", || in_x2(writes)),
    ("x2apic reserved bits", || in_x2(reserved)),
    ("x2apic identifier and logical identifier", || in_x2(identifiers)),
    ("x2apic self ipi", || in_x2(|| sent(|| wrmsr(0x83f, VECTOR.into()), 1))),
    ("x2apic command in one write", || in_x2(|| sent(|| command(identifier(), 0), 1))),
    ("x2apic broadcast", || in_x2(|| sent(|| command(0xffff_ffff, 0), 1))),
    ("x2apic shorthand for all", || in_x2(|| sent(|| command(0, 2 << 18), 1))),
    ("x2apic to an identifier that nobody has", || in_x2(|| sent(|| command(0x1_0000, 0), 0))),
    ("x2apic priority is cr8", || in_x2(priority)),
    ("x2apic timer", || in_x2(timer)),
    ("apic disabled out of x2apic", leave),
    ("apic disabled is told by cpuid", disabled),
    ("apic disabled is not in memory", disabled_memory),
    ("apic disabled to x2apic", || mode(&[DISABLED], ENABLED | X2, GP)),
    ("apic disabled and moved", moved),
];

fn before() -> Verdict {
    for register in [0x802, 0x808, 0x830, 0x839] {
        same(rdmsr(register).err().unwrap_or(NOTHING), GP)?;
        same(wrmsr(register, 0), GP)?;
    }
    Ok(())
}

/// Does `test` with the second mode on, and leaves it on.
fn in_x2(test: impl FnOnce() -> Verdict) -> Verdict {
    if !cpu::has(1, 0, 2, 21) {
        return Ok(());
    }
    same(wrmsr(APIC_BASE, ENABLED | X2), NOTHING)?;
    wrmsr(0x80f, 0x13f);
    wrmsr(0x808, 0);
    test()
}

/// Registers by what may be done: both, read only, written only.
const BOTH: [u64; 12] = [0x08, 0x0f, 0x28, 0x30, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x3e];
const READ: [u64; 5] = [0x02, 0x03, 0x0a, 0x0d, 0x39];
const WRITTEN: [u64; 2] = [0x0b, 0x3f];

fn is_read(register: u64) -> bool {
    BOTH.contains(&register) || READ.contains(&register) || (0x10..0x28).contains(&register)
}

fn reads() -> Verdict {
    for register in (0..0x100).filter(|&register| register != 0x2f) {
        let found = rdmsr(0x800 + (register & 0xff) as u32).err().unwrap_or(NOTHING);
        same(register << 40 | found >> 32, register << 40 | if is_read(register) { NOTHING } else { GP } >> 32)?;
    }
    Ok(())
}

fn writes() -> Verdict {
    for register in (0..0x100).filter(|&register| register != 0x2f) {
        let value = match register {
            0x0f => 0x13f,
            0x30 => 3 << 18 | u64::from(VECTOR),
            0x32..=0x37 => 1 << 16,
            0x3f => VECTOR.into(),
            _ => 0,
        };
        let found = wrmsr(0x800 + (register & 0xff) as u32, value);
        let allowed = BOTH.contains(&register) || WRITTEN.contains(&register);
        same(register << 40 | found >> 32, register << 40 | if allowed { NOTHING } else { GP } >> 32)?;
    }
    breathe();
    Ok(())
}

fn reserved() -> Verdict {
    for (register, value) in [
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 1 << 13),
        (0x80f, 1 << 32),
        (0x828, 1),
        (0x830, 1 << 20 | u64::from(VECTOR)),
        (0x832, 1 << 19),
        (0x835, 1 << 17),
        (0x838, 1 << 32),
        (0x83e, 1 << 4),
        (0x83f, 0x100),
    ] {
        same(u64::from(register) << 40 | wrmsr(register, value) >> 32, u64::from(register) << 40 | GP >> 32)?;
    }
    Ok(())
}

fn identifier() -> u64 {
    rdmsr(0x802).unwrap_or(u64::MAX)
}

fn identifiers() -> Verdict {
    same(identifier(), cpu::cpuid(0xb, 0)[3].into())?;
    let id = identifier();
    same(rdmsr(0x80d).unwrap_or(0), (id >> 4) << 16 | 1 << (id & 15))
}

fn command(destination: u64, more: u64) -> u64 {
    wrmsr(0x830, destination << 32 | more | 1 << 14 | u64::from(VECTOR))
}

fn sent(send: impl Fn() -> u64, expected: u64) -> Verdict {
    same(send(), NOTHING)?;
    forget();
    breathe();
    same(count() << 8 | if count() > 0 { last().vector } else { VECTOR.into() }, expected << 8 | u64::from(VECTOR))
}

fn priority() -> Verdict {
    same(wrmsr(0x808, 0x50), NOTHING)?;
    let cr8: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, cr8", out(reg) cr8) };
    wrmsr(0x808, 0);
    same(cr8, 5)
}

fn timer() -> Verdict {
    wrmsr(0x83e, 0b1011);
    wrmsr(0x832, VECTOR.into());
    forget();
    wrmsr(0x838, 1000);
    let taken = apic::wait_for(1);
    let left = rdmsr(0x839).unwrap_or(1);
    wrmsr(0x832, 1 << 16);
    same(taken << 32 | left, 1 << 32)
}

/// Switches off, and on again in the first mode.
fn leave() -> Verdict {
    same(wrmsr(APIC_BASE, DISABLED), NOTHING)?;
    let refused = wrmsr(APIC_BASE, DISABLED | X2);
    let back = wrmsr(APIC_BASE, ENABLED);
    enable();
    same(refused, GP)?;
    same(back, NOTHING)?;
    machine::outb(0x21, 0xff);
    same(u64::from(apic::read(0x30) & 0xff >= 0x10), 1)
}

fn disabled() -> Verdict {
    same(wrmsr(APIC_BASE, DISABLED), NOTHING)?;
    let shown = cpu::has(1, 0, 3, 9);
    wrmsr(APIC_BASE, ENABLED);
    enable();
    same(u64::from(shown) << 1 | u64::from(cpu::has(1, 0, 3, 9)), 1)
}

fn disabled_memory() -> Verdict {
    let version = apic::read(0x30);
    wrmsr(APIC_BASE, DISABLED);
    apic::write(0x80, 0xff);
    let (off, cr8): (u32, u64);
    off = apic::read(0x30);
    // SAFETY: reads a register, which is there without a local APIC, too.
    unsafe { core::arch::asm!("mov {}, cr8", out(reg) cr8) };
    wrmsr(APIC_BASE, ENABLED);
    let on = apic::read(0x30);
    enable();
    same(u64::from(off) << 8 | cr8, 0xffff_ffff << 8)?;
    same(on.into(), version.into())
}

/// Sets IA32_APIC_BASE to each of `through`, then to `last`, and goes back to the first mode.
fn mode(through: &[u64], last: u64, expected: u64) -> Verdict {
    for &value in through {
        same(wrmsr(APIC_BASE, value), NOTHING)?;
    }
    let raised = wrmsr(APIC_BASE, last);
    wrmsr(APIC_BASE, DISABLED);
    wrmsr(APIC_BASE, ENABLED);
    enable();
    same(raised, expected)
}

fn moved() -> Verdict {
    const ELSEWHERE: u64 = 0xfed4_0000;
    let version = apic::read(0x30);
    wrmsr(APIC_BASE, DISABLED);
    let raised = wrmsr(APIC_BASE, ELSEWHERE | 0x900);
    let (there, here) = (read32(ELSEWHERE + 0x30), apic::read(0x30));
    let width = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
    let (high, low) = (wrmsr(APIC_BASE, ENABLED | 1 << width), wrmsr(APIC_BASE, ENABLED | 1));
    wrmsr(APIC_BASE, ENABLED);
    enable();
    same(raised, NOTHING)?;
    same(u64::from(there) << 32 | u64::from(here), u64::from(version) << 32 | 0xffff_ffff)?;
    same(high, GP)?;
    same(low, GP)
}
