//! Extended state: x87, SSE, AVX (SDM vol. 1, "Managing State Using the XSAVE Feature Set").
//!
//! Programs are compiled without any use of it, so what is put there by hand stays there.

use core::arch::asm;

use crate::cpu;

/// XCR0: x87, SSE, AVX.
const X87: u32 = 1;
const SSE: u32 = 1 << 1;
const AVX: u32 = 1 << 2;

const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;

/// Extended state, switched on.
#[derive(Clone, Copy, Debug)]
pub struct Extended {
    avx: bool,
}

/// A register that did not hold what was put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbed {
    /// XMM or YMM register by number: what was put there and what was found, in 64-bit parts from the lowest.
    Vector(usize, [u64; 4], [u64; 4]),
    /// x87 register by its place on the stack.
    X87(usize, i64, i64),
    /// MXCSR.
    Mxcsr(u32, u32),
    /// The x87 control word.
    ControlWord(u16, u16),
}

/// What goes in and what comes out.
#[repr(C, align(32))]
#[derive(Clone, Default)]
struct Registers {
    vector: [[u64; 4]; 16],
    x87: [i64; 8],
    mxcsr: u32,
    control_word: u16,
}

/// Loads all 16 vector registers from RDI on.
macro_rules! load_vectors {
    ($move:literal, $register:literal) => {
        load_vectors!($move, $register, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($move:literal, $register:literal, $($number:literal)+) => {
        concat!($($move, " ", $register, $number, ", [rdi + 32 * ", $number, "]\n"),+)
    };
}

/// Stores all 16 vector registers from RSI on.
macro_rules! store_vectors {
    ($move:literal, $register:literal) => {
        store_vectors!($move, $register, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($move:literal, $register:literal, $($number:literal)+) => {
        concat!($($move, " [rsi + 32 * ", $number, "], ", $register, $number, "\n"),+)
    };
}

macro_rules! hold {
    ($move:literal, $register:literal, $input:expr, $output:expr, $spins:expr) => {
        asm!(
            "ldmxcsr [rdi + 576]",
            "fninit",
            "fldcw [rdi + 580]",
            "fild qword ptr [rdi + 512]",
            "fild qword ptr [rdi + 520]",
            "fild qword ptr [rdi + 528]",
            "fild qword ptr [rdi + 536]",
            "fild qword ptr [rdi + 544]",
            "fild qword ptr [rdi + 552]",
            "fild qword ptr [rdi + 560]",
            "fild qword ptr [rdi + 568]",
            load_vectors!($move, $register),
            "2:",
            "dec {spins}",
            "jnz 2b",
            store_vectors!($move, $register),
            "fistp qword ptr [rsi + 568]",
            "fistp qword ptr [rsi + 560]",
            "fistp qword ptr [rsi + 552]",
            "fistp qword ptr [rsi + 544]",
            "fistp qword ptr [rsi + 536]",
            "fistp qword ptr [rsi + 528]",
            "fistp qword ptr [rsi + 520]",
            "fistp qword ptr [rsi + 512]",
            "fnstcw [rsi + 580]",
            "stmxcsr [rsi + 576]",
            spins = inout(reg) $spins => _,
            in("rdi") $input,
            in("rsi") $output,
            options(nostack),
        )
    };
}

const _: () = assert!(core::mem::offset_of!(Registers, x87) == 512);
const _: () = assert!(core::mem::offset_of!(Registers, mxcsr) == 576);
const _: () = assert!(core::mem::offset_of!(Registers, control_word) == 580);

impl Extended {
    /// Switches on what the processor reports, of x87, SSE and AVX.
    pub fn enable() -> Extended {
        let xsave = cpu::has(1, 0, 2, 26);
        let avx = xsave && cpu::has(1, 0, 2, 28) && cpu::cpuid(0xd, 0)[0] & 0b111 == 0b111;
        let more = CR4_OSFXSR | CR4_OSXMMEXCPT | if xsave { CR4_OSXSAVE } else { 0 };
        // SAFETY: every processor in 64-bit mode has SSE, and OSXSAVE is set where it is reported; CR0.EM and CR0.TS
        // would make the instructions fault, and are cleared.
        unsafe {
            asm!("mov {t}, cr0", "and {t}, ~0xc", "or {t}, 2", "mov cr0, {t}", t = out(reg) _, options(nostack));
            asm!("mov {t}, cr4", "or {t}, {more}", "mov cr4, {t}", t = out(reg) _, more = in(reg) more,
                options(nostack));
        }
        if xsave {
            let state = X87 | SSE | if avx { AVX } else { 0 };
            // SAFETY: the bits are reported by leaf 0xD.
            unsafe { asm!("xsetbv", in("ecx") 0, in("eax") state, in("edx") 0, options(nostack)) };
        }
        Extended { avx }
    }

    /// Whether the upper halves of the YMM registers are in use.
    pub fn has_avx(self) -> bool {
        self.avx
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
            if self.avx {
                hold!("vmovups", "ymm", input, output, spins);
            } else {
                hold!("movups", "xmm", input, output, spins);
            }
        }
        self.compare(&put, &got)
    }

    fn compare(self, put: &Registers, got: &Registers) -> Result<(), Disturbed> {
        for (number, (put, got)) in put.vector.iter().zip(&got.vector).enumerate() {
            let parts = if self.avx { 4 } else { 2 };
            if put[..parts] != got[..parts] {
                return Err(Disturbed::Vector(number, *put, *got));
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
    registers.x87.fill_with(|| next().cast_signed());
    // All exceptions masked, the rounding mode from the seed.
    registers.mxcsr = 0x1f80 | ((next() & 3) as u32) << 13;
    registers.control_word = 0x037f | ((next() & 3) as u16) << 10;
    registers
}
