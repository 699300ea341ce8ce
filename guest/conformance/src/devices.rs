//! Instructions whose operand is a device, and the clocks of a PC.

use core::arch::asm;

use guest_rt::{cpu, pit, port};

use crate::machine::{outb, read32, write32};
use crate::{Test, Verdict, same};

/// The task priority register: 8 bits that are kept.
const TPR: u64 = 0xfee0_0080;
const IO: u64 = 0xfec0_0000;
/// Where nothing is: reads give ones, writes go nowhere.
pub const HOLE: u64 = 0xff00_0000;

pub const TESTS: &[Test] = &[
    ("device: mov, add, xor, not, neg", arithmetic),
    ("device: xchg, xadd, cmpxchg", exchanges),
    ("device: bts, btr, bt with a register", bits),
    ("device: movzx, movsx", extensions),
    ("device: push and pop", stack),
    ("device: movs, stos, lods, cmps, scas", strings),
    ("device: movd and movss", narrow_vectors),
    ("device: mmx", mmx),
    ("hole: reads are ones", || same(read32(HOLE).into(), 0xffff_ffff)),
    ("hole: vectors of 16 bytes", wide_vectors),
    ("hole: call and jmp through memory", || same(u64::from(read32(HOLE + 8)), 0xffff_ffff)),
    ("ports: widths and strings", ports),
    ("clock: 8254 read-back", pit_read_back),
    ("clock: 8254 against the tsc", pit_against_tsc),
    ("clock: rtc goes on and has a century", rtc),
    ("clock: speaker's counter", speaker),
];

fn tpr() -> u64 {
    read32(TPR).into()
}

fn arithmetic() -> Verdict {
    write32(TPR, 0x20);
    // SAFETY: a register that keeps eight bits.
    unsafe {
        asm!("add dword ptr [{0}], 0x11", "xor dword ptr [{0}], 0x0f", "sub dword ptr [{0}], 1", in(reg) TPR);
    }
    same(tpr(), 0x3d)?;
    // SAFETY: as above.
    unsafe { asm!("not dword ptr [{0}]", "neg dword ptr [{0}]", in(reg) TPR) };
    let changed = tpr();
    write32(TPR, 0);
    same(changed, 0x3e)
}

fn exchanges() -> Verdict {
    let (mut a, mut b, c): (u64, u64, u64);
    a = 0x55;
    b = 5;
    write32(TPR, 0x22);
    // SAFETY: a register that keeps eight bits.
    unsafe {
        asm!(
            "xchg [{t}], {a:e}", "lock xadd [{t}], {b:e}",
            "mov eax, 0x5a", "lock cmpxchg [{t}], {n:e}", "setz al", "movzx eax, al",
            t = in(reg) TPR, a = inout(reg) a, b = inout(reg) b, n = in(reg) 0x77u64, out("rax") c,
        );
    }
    let left = tpr();
    write32(TPR, 0);
    same(a << 24 | b << 16 | c << 8 | left, 0x2255_0177)
}

fn bits() -> Verdict {
    write32(TPR, 0);
    let (first, second): (u64, u64);
    // SAFETY: a register that keeps eight bits; the bit offsets stay in it.
    unsafe {
        asm!(
            "lock bts dword ptr [{t}], 4", "setc {a:l}", "bts dword ptr [{t}], {n:e}", "btr dword ptr [{t}], 4", "setc {b:l}",
            t = in(reg) TPR, n = in(reg) 6, a = inout(reg) 0u64 => first, b = inout(reg) 0u64 => second,
        );
    }
    let left = tpr();
    write32(TPR, 0);
    same(left << 8 | (first & 1) << 4 | second & 1, 0x4001)
}

fn extensions() -> Verdict {
    write32(TPR, 0xf0);
    let (zero, sign): (u64, u64);
    // SAFETY: reads a register.
    unsafe {
        asm!("movzx {a}, word ptr [{t}]", "movsx {b:e}, byte ptr [{t}]", t = in(reg) TPR, a = out(reg) zero, b = out(reg) sign)
    };
    write32(TPR, 0);
    same(sign << 16 | zero, 0xffff_fff0_0000 | 0xf0)
}

fn stack() -> Verdict {
    let value: u64;
    // SAFETY: what is pushed is popped.
    unsafe { asm!("push qword ptr [{t}]", "pop {v}", t = in(reg) HOLE, v = out(reg) value) };
    same(value, u64::MAX)
}

fn strings() -> Verdict {
    write32(IO, 1);
    let mut words = [0u32; 4];
    // The I/O APIC's window holds its version: read it four times into memory.
    // SAFETY: the array is as long as is written.
    unsafe {
        asm!(
            "2: mov rsi, {w}", "movsd", "loop 2b",
            w = in(reg) IO + 0x10, inout("rcx") 4u64 => _, inout("rdi") words.as_mut_ptr() => _, out("rsi") _,
        );
    }
    let version = read32(IO + 0x10);
    same(u64::from(words.iter().all(|&word| word == version)), 1)?;
    let (equal, found): (u64, u64);
    // SAFETY: STOS writes the same register four times; the others read.
    unsafe {
        asm!(
            "mov rdi, {t}", "mov eax, 0x33", "stosd",
            "mov rsi, {t}", "lodsd", "mov {f:e}, eax",
            "mov rdi, {t}", "mov eax, 0x33", "scasd", "setz {e:l}",
            t = in(reg) TPR, e = inout(reg) 0u64 => equal, f = out(reg) found,
            out("rax") _, out("rsi") _, out("rdi") _,
        );
    }
    write32(TPR, 0);
    same(found << 8 | equal & 1, 0x3301)
}

/// Lets SSE and MMX instructions be executed.
fn with_vectors<T>(act: impl FnOnce() -> T) -> T {
    let (cr0, cr4): (u64, u64);
    // SAFETY: nothing of the program uses these registers.
    unsafe {
        asm!(
            "mov {a}, cr0", "mov {b}, cr4",
            "mov {n}, {a}", "and {n}, 0xfffffffffffffff3", "or {n}, 2", "mov cr0, {n}",
            "mov {n}, {b}", "or {n}, 0x600", "mov cr4, {n}", "fninit",
            a = out(reg) cr0, b = out(reg) cr4, n = out(reg) _,
        );
    }
    let result = act();
    // SAFETY: the former values.
    unsafe { asm!("mov cr0, {}", "mov cr4, {}", in(reg) cr0, in(reg) cr4) };
    result
}

fn narrow_vectors() -> Verdict {
    let (loaded, high): (u64, u64) = with_vectors(|| {
        let (loaded, high): (u64, u64);
        // SAFETY: the registers are nobody's.
        unsafe {
            asm!(
                "mov {a:e}, 0x44", "movd xmm1, {a:e}", "movss [{t}], xmm1",
                "pcmpeqd xmm2, xmm2", "movd xmm2, [{t}]", "movq {a}, xmm2", "psrldq xmm2, 8", "movq {b}, xmm2",
                t = in(reg) TPR, a = out(reg) loaded, b = out(reg) high,
            );
        }
        (loaded, high)
    });
    write32(TPR, 0);
    same(loaded | high << 32, 0x44)
}

fn mmx() -> Verdict {
    let value = with_vectors(|| {
        let value: u64;
        // SAFETY: the registers are nobody's.
        unsafe {
            asm!(
                "mov {a:e}, 0x66", "movd mm3, {a:e}", "movd [{t}], mm3", "pcmpeqd mm4, mm4", "movd mm4, [{t}]",
                "movq {a}, mm4", "emms",
                t = in(reg) TPR, a = out(reg) value,
            );
        }
        value
    });
    write32(TPR, 0);
    same(value, 0x66)
}

fn wide_vectors() -> Verdict {
    let sum = with_vectors(|| {
        let sum: u64;
        // SAFETY: writes to the hole go nowhere.
        unsafe {
            asm!(
                "pxor xmm1, xmm1", "movups [{h}], xmm1", "movaps [{h}], xmm1", "movdqu xmm1, [{h}]",
                "pxor xmm2, xmm2", "movdqa xmm2, [{h} + 16]", "pand xmm1, xmm2", "movntdq [{h}], xmm1",
                "movq {s}, xmm1", "psrldq xmm1, 8", "movq {n}, xmm1", "and {s}, {n}",
                h = in(reg) HOLE, s = out(reg) sum, n = out(reg) _,
            );
        }
        sum
    });
    same(sum, u64::MAX)
}

fn ports() -> Verdict {
    // A port that nobody has reads as ones, in every width.
    let wide = u64::from(port::read_u32(0xed0)) & u64::from(port::read_u16(0xed0)) & u64::from(port::read_u8(0xed0));
    same(wide, 0xff)?;
    let mut bytes = [0u8; 4];
    // SAFETY: four bytes from the CMOS index's neighbour, which reads do not change.
    unsafe { asm!("rep insb", inout("rcx") 4u64 => _, inout("rdi") bytes.as_mut_ptr() => _, in("dx") 0x61u16) };
    same(u64::from(bytes[0] & 0xf), u64::from(bytes[3] & 0xf))
}

fn pit_read_back() -> Verdict {
    // Counter 2, gate on: mode 0, 0x8000.
    outb(0x61, port::read_u8(0x61) & !2 | 1);
    outb(0x43, 0xb0);
    outb(0x42, 0);
    outb(0x42, 0x80);
    // Status and count of counter 2.
    outb(0x43, 0xc8);
    let status = port::read_u8(0x42);
    let count = u64::from(port::read_u8(0x42)) | u64::from(port::read_u8(0x42)) << 8;
    same(u64::from(status & 0x3f), 0x30)?;
    same(u64::from(count <= 0x8000 && count > 0x7000), 1)
}

fn pit_against_tsc() -> Verdict {
    // Two measurements of the same clock agree within two per cent.
    let (first, second) = (guest_rt::pit::measure_tsc(10), guest_rt::pit::measure_tsc(10));
    same(u64::from(first.abs_diff(second) <= first / 50 && first > 0), 1)
}

fn cmos(index: u8) -> u8 {
    outb(0x70, index);
    port::read_u8(0x71)
}

fn rtc() -> Verdict {
    // A second and a half, whatever the TSC counts.
    let until = cpu::tsc() + pit::measure_tsc(10) / 2 * 3;
    let first = cmos(0);
    while cmos(0) == first && cpu::tsc() < until {}
    same(u64::from(cmos(0) != first), 1)?;
    same(u64::from(matches!(cmos(0x32), 0x19 | 0x20 | 0x21)), 1)?;
    // Valid memory and time.
    same(u64::from(cmos(0x0d) >> 7), 1)
}

fn speaker() -> Verdict {
    // Mode 3 on counter 2: port 0x61 bit 5 follows its output.
    outb(0x61, port::read_u8(0x61) & !2 | 1);
    outb(0x43, 0xb6);
    outb(0x42, 100);
    outb(0x42, 0);
    let (mut high, mut low) = (false, false);
    for _ in 0..10_000 {
        let output = port::read_u8(0x61) >> 5 & 1 != 0;
        high |= output;
        low |= !output;
    }
    same(u64::from(high && low), 1)
}
