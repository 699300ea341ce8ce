//! Extended state: x87, SSE, AVX, AVX-512 (SDM vol. 1, "Managing State Using the XSAVE Feature Set").
//!
//! Programs are compiled without any use of it, so what is put there by hand stays there.

use core::arch::asm;
use core::mem::offset_of;

use crate::cpu;

/// XCR0: x87, SSE, AVX, and the three states of AVX-512.
const X87: u32 = 1;
const SSE: u32 = 1 << 1;
const AVX: u32 = 1 << 2;
const AVX512: u32 = 0b111 << 5;

const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;

/// Extended state, switched on.
#[derive(Clone, Copy, Debug)]
pub struct Extended {
    width: Width,
}

/// The widest vector registers in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 16 registers of 128 bits.
    Xmm,
    /// 16 registers of 256 bits.
    Ymm,
    /// 32 registers of 512 bits, and 8 mask registers of 64.
    Zmm,
}

impl Width {
    /// How many vector registers there are, and of how many 64-bit parts each.
    const fn shape(self) -> (usize, usize) {
        match self {
            Width::Xmm => (16, 2),
            Width::Ymm => (16, 4),
            Width::Zmm => (32, 8),
        }
    }
}

/// A register that did not hold what was put there: its number, what was put there and what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbed {
    /// A vector register; the second number is that of its 64-bit part, from the lowest.
    Vector(usize, usize, u64, u64),
    /// A mask register.
    Mask(usize, u64, u64),
    /// An x87 register by its place on the stack.
    X87(usize, i64, i64),
    /// MXCSR.
    Mxcsr(u32, u32),
    /// The x87 control word.
    ControlWord(u16, u16),
}

/// What goes in and what comes out.
#[repr(C, align(64))]
#[derive(Clone, Default)]
struct Registers {
    vector: [[u64; 8]; 32],
    mask: [u64; 8],
    x87: [i64; 8],
    mxcsr: u32,
    control_word: u16,
}

const _: () = assert!(offset_of!(Registers, mask) == 2048);
const _: () = assert!(offset_of!(Registers, x87) == 2112);
const _: () = assert!(offset_of!(Registers, mxcsr) == 2176);
const _: () = assert!(offset_of!(Registers, control_word) == 2180);

/// Moves registers from RDI on (`load`) or to RSI on (`store`): so many bytes apart, from an offset.
macro_rules! load {
    ($move:literal $register:literal, $offset:literal + $apart:literal * $($number:literal)+) => {
        concat!($($move, " ", $register, $number, ", [rdi + ", $offset, " + ", $apart, " * ", $number, "]\n"),+)
    };
}

/// See `load`.
macro_rules! store {
    ($move:literal $register:literal, $offset:literal + $apart:literal * $($number:literal)+) => {
        concat!($($move, " [rsi + ", $offset, " + ", $apart, " * ", $number, "], ", $register, $number, "\n"),+)
    };
}

/// Fills the registers, spins, and stores them. x87 values are integers of 64 bits, which go in and out unchanged.
macro_rules! hold {
    ($input:expr, $output:expr, $spins:expr, [$($load:expr),+], [$($store:expr),+]) => {
        asm!(
            "ldmxcsr [rdi + 2176]",
            "fninit",
            "fldcw [rdi + 2180]",
            "fild qword ptr [rdi + 2112]",
            "fild qword ptr [rdi + 2120]",
            "fild qword ptr [rdi + 2128]",
            "fild qword ptr [rdi + 2136]",
            "fild qword ptr [rdi + 2144]",
            "fild qword ptr [rdi + 2152]",
            "fild qword ptr [rdi + 2160]",
            "fild qword ptr [rdi + 2168]",
            $($load,)+
            "2:",
            "dec {spins}",
            "jnz 2b",
            $($store,)+
            "fistp qword ptr [rsi + 2168]",
            "fistp qword ptr [rsi + 2160]",
            "fistp qword ptr [rsi + 2152]",
            "fistp qword ptr [rsi + 2144]",
            "fistp qword ptr [rsi + 2136]",
            "fistp qword ptr [rsi + 2128]",
            "fistp qword ptr [rsi + 2120]",
            "fistp qword ptr [rsi + 2112]",
            "fnstcw [rsi + 2180]",
            "stmxcsr [rsi + 2176]",
            spins = inout(reg) $spins => _,
            in("rdi") $input,
            in("rsi") $output,
            options(nostack),
        )
    };
}

impl Extended {
    /// Switches on what the processor reports, of x87, SSE, AVX and AVX-512 (with its byte and word instructions).
    pub fn enable() -> Extended {
        let xsave = cpu::has(1, 0, 2, 26);
        let states = if xsave { cpu::cpuid(0xd, 0)[0] } else { 0 };
        let avx = cpu::has(1, 0, 2, 28) && states & (SSE | AVX) == SSE | AVX;
        let avx512 = avx && cpu::has(7, 0, 1, 16) && cpu::has(7, 0, 1, 30) && states & AVX512 == AVX512;
        let more = CR4_OSFXSR | CR4_OSXMMEXCPT | if xsave { CR4_OSXSAVE } else { 0 };
        // SAFETY: every processor in 64-bit mode has SSE, and OSXSAVE is set where it is reported; CR0.EM and CR0.TS
        // would make the instructions fault, and are cleared.
        unsafe {
            asm!("mov {t}, cr0", "and {t}, ~0xc", "or {t}, 2", "mov cr0, {t}", t = out(reg) _, options(nostack));
            asm!("mov {t}, cr4", "or {t}, {more}", "mov cr4, {t}", t = out(reg) _, more = in(reg) more,
                options(nostack));
        }
        if xsave {
            let state = X87 | SSE | if avx { AVX } else { 0 } | if avx512 { AVX512 } else { 0 };
            // SAFETY: the bits are reported by leaf 0xD.
            unsafe { asm!("xsetbv", in("ecx") 0, in("eax") state, in("edx") 0, options(nostack)) };
        }
        let width = match (avx, avx512) {
            (_, true) => Width::Zmm,
            (true, false) => Width::Ymm,
            (false, false) => Width::Xmm,
        };
        Extended { width }
    }

    /// The widest vector registers in use.
    pub fn width(self) -> Width {
        self.width
    }

    /// Puts values made from `seed` into all registers, spins `spins` times, and looks whether they are still there.
    ///
    /// # Errors
    /// The first register that changed.
    pub fn hold(self, seed: u64, spins: u64) -> Result<(), Disturbed> {
        let put = pattern(seed);
        let mut got = Registers::default();
        let (input, output, spins) = (&raw const put, &raw mut got, spins.max(1));
        // SAFETY: reads `put` and writes `got`, at the offsets asserted above; the compiler uses none of the other
        // registers, and the features are on.
        unsafe {
            match self.width {
                Width::Xmm => hold!(
                    input,
                    output,
                    spins,
                    [load!("movups" "xmm", 0 + 64 * 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)],
                    [store!("movups" "xmm", 0 + 64 * 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)]
                ),
                Width::Ymm => hold!(
                    input,
                    output,
                    spins,
                    [load!("vmovups" "ymm", 0 + 64 * 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)],
                    [store!("vmovups" "ymm", 0 + 64 * 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)]
                ),
                Width::Zmm => hold!(
                    input,
                    output,
                    spins,
                    [
                        load!("vmovups" "zmm", 0 + 64 * 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15),
                        load!("vmovups" "zmm", 0 + 64 * 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31),
                        load!("kmovq" "k", 2048 + 8 * 0 1 2 3 4 5 6 7)
                    ],
                    [
                        store!("vmovups" "zmm", 0 + 64 * 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15),
                        store!("vmovups" "zmm", 0 + 64 * 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31),
                        store!("kmovq" "k", 2048 + 8 * 0 1 2 3 4 5 6 7)
                    ]
                ),
            }
        }
        self.compare(&put, &got)
    }

    fn compare(self, put: &Registers, got: &Registers) -> Result<(), Disturbed> {
        let (count, parts) = self.width.shape();
        for (number, (put, got)) in put.vector.iter().zip(&got.vector).take(count).enumerate() {
            if let Some(part) = (0..parts).find(|&part| put[part] != got[part]) {
                return Err(Disturbed::Vector(number, part, put[part], got[part]));
            }
        }
        let masks = if self.width == Width::Zmm { put.mask.len() } else { 0 };
        for (number, (put, got)) in put.mask.iter().zip(&got.mask).take(masks).enumerate() {
            if put != got {
                return Err(Disturbed::Mask(number, *put, *got));
            }
        }
        for (number, (put, got)) in put.x87.iter().zip(&got.x87).enumerate() {
            if put != got {
                return Err(Disturbed::X87(number, *put, *got));
            }
        }
        if put.mxcsr != got.mxcsr {
            return Err(Disturbed::Mxcsr(put.mxcsr, got.mxcsr));
        }
        if put.control_word != got.control_word {
            return Err(Disturbed::ControlWord(put.control_word, got.control_word));
        }
        Ok(())
    }
}

/// Values that differ between registers, rounds and programs.
fn pattern(seed: u64) -> Registers {
    // SplitMix64's steps: every bit of the seed reaches every bit of the value.
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    };
    let mut registers = Registers::default();
    registers.vector.as_flattened_mut().fill_with(&mut next);
    registers.mask.fill_with(&mut next);
    registers.x87.fill_with(|| next().cast_signed());
    // All exceptions masked, the rounding mode from the seed.
    registers.mxcsr = 0x1f80 | ((next() & 3) as u32) << 13;
    registers.control_word = 0x037f | ((next() & 3) as u16) << 10;
    registers
}
