//! Values of the x87 and what they are in memory (SDM vol. 1, "Real Numbers and Floating-Point Formats", "Rounding",
//! "x87 FPU Floating-Point Exception Handling"). Functions of values alone.

use super::state::exception::{DENORMAL, INVALID, OVERFLOW, PRECISION, UNDERFLOW};

/// A double extended-precision value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extended {
    negative: bool,
    /// Biased by [`BIAS`].
    exponent: u16,
    /// With its integer bit.
    significand: u64,
}

const BIAS: i32 = 16383;
const SPECIAL: u16 = 0x7fff;
const INTEGER_BIT: u64 = 1 << 63;
/// What makes a NaN quiet.
const QUIET: u64 = 1 << 62;

/// A format of memory: single or double precision.
#[derive(Clone, Copy)]
pub struct Format {
    exponent_bits: u32,
    fraction_bits: u32,
}

/// Single precision.
pub const SINGLE: Format = Format { exponent_bits: 8, fraction_bits: 23 };
/// Double precision.
pub const DOUBLE: Format = Format { exponent_bits: 11, fraction_bits: 52 };

impl Format {
    const fn bias(self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    const fn special(self) -> u64 {
        (1 << self.exponent_bits) - 1
    }
}

/// How results are rounded: the RC field of the control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, and to the even of two.
    Nearest,
    /// Towards minus infinity.
    Down,
    /// Towards infinity.
    Up,
    /// Towards 0.
    Zero,
}

impl Rounding {
    /// As `control` says.
    pub const fn of(control: u16) -> Rounding {
        match control >> 10 & 3 {
            0 => Rounding::Nearest,
            1 => Rounding::Down,
            2 => Rounding::Up,
            _ => Rounding::Zero,
        }
    }

    /// Whether what is cut off, of a value with this sign, is rounded away from 0.
    const fn away(self, negative: bool) -> bool {
        match self {
            Rounding::Up => !negative,
            Rounding::Down => negative,
            Rounding::Nearest | Rounding::Zero => false,
        }
    }
}

/// What a conversion made, and what came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Converted<T> {
    /// The result where everything that came up is masked.
    pub value: T,
    /// Exceptions that came up, in the status word's bits.
    pub exceptions: u16,
    /// Exceptions that come up only where they are not masked: an exact result that is tiny.
    pub unmasked_only: u16,
    /// The result was rounded away from 0.
    pub rounded_up: bool,
}

const fn exact<T: Copy>(value: T, exceptions: u16) -> Converted<T> {
    Converted { value, exceptions, unmasked_only: 0, rounded_up: false }
}

/// `value` without its low `bits`, whether there was anything in them, and whether it was rounded away from 0.
fn cut(value: u64, bits: u32, negative: bool, rounding: Rounding) -> (u64, bool, bool) {
    // What is cut off beyond this is less than a half.
    let bits = bits.min(66);
    if bits == 0 {
        return (value, false, false);
    }
    let kept = value.checked_shr(bits).unwrap_or(0);
    let lost = u128::from(value) & ((1 << bits) - 1);
    let up = match rounding {
        Rounding::Nearest => {
            let half = 1u128 << (bits - 1);
            lost > half || lost == half && kept & 1 != 0
        }
        _ => lost != 0 && rounding.away(negative),
    };
    (kept.wrapping_add(u64::from(up)), lost != 0, up)
}

impl Extended {
    /// The quiet NaN that masked invalid operations give.
    pub const INDEFINITE: Extended = Extended { negative: true, exponent: SPECIAL, significand: INTEGER_BIT | QUIET };

    /// From the ten bytes of memory or of a register.
    pub fn from_bytes(bytes: [u8; 10]) -> Extended {
        let [a, b, c, d, e, f, g, h, low, high] = bytes;
        let top = u16::from_le_bytes([low, high]);
        let significand = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        Extended { negative: top & 0x8000 != 0, exponent: top & SPECIAL, significand }
    }

    /// The ten bytes.
    pub fn to_bytes(self) -> [u8; 10] {
        let mut bytes = [0; 10];
        let (significand, top) = bytes.split_at_mut(8);
        significand.copy_from_slice(&self.significand.to_le_bytes());
        top.copy_from_slice(&(self.exponent | u16::from(self.negative) << 15).to_le_bytes());
        bytes
    }

    /// A magnitude with a sign; 0 may have one too.
    pub fn from_integer(negative: bool, magnitude: u64) -> Extended {
        if magnitude == 0 {
            return Extended { negative, exponent: 0, significand: 0 };
        }
        let shift = magnitude.leading_zeros();
        let exponent = u16::try_from(BIAS + 63).unwrap_or(0) - u16::try_from(shift).unwrap_or(0);
        Extended { negative, exponent, significand: magnitude << shift }
    }

    /// A single- or double-precision value. Exact; a signalling NaN becomes quiet.
    pub fn widen(bits: u64, format: Format) -> Converted<Extended> {
        let negative = bits >> (format.exponent_bits + format.fraction_bits) & 1 != 0;
        let exponent = bits >> format.fraction_bits & format.special();
        let fraction = (bits & ((1 << format.fraction_bits) - 1)) << (63 - format.fraction_bits);
        if exponent == format.special() {
            let quiet = if fraction != 0 { QUIET } else { 0 };
            let value = Extended { negative, exponent: SPECIAL, significand: INTEGER_BIT | quiet | fraction };
            return exact(value, if fraction != 0 && fraction & QUIET == 0 { INVALID } else { 0 });
        }
        if exponent == 0 && fraction == 0 {
            return exact(Extended { negative, exponent: 0, significand: 0 }, 0);
        }
        let (unbiased, significand, exceptions) = if exponent == 0 {
            let shift = fraction.leading_zeros();
            (1 - format.bias() - shift.cast_signed(), fraction << shift, DENORMAL)
        } else {
            (i32::try_from(exponent).unwrap_or(0) - format.bias(), INTEGER_BIT | fraction, 0)
        };
        let exponent = u16::try_from(unbiased + BIAS).unwrap_or(0);
        exact(Extended { negative, exponent, significand }, exceptions)
    }

    /// A pattern that no result has: the integer bit is missing.
    const fn is_unsupported(self) -> bool {
        self.exponent != 0 && self.significand & INTEGER_BIT == 0
    }

    /// As single or double precision.
    pub fn narrow(self, format: Format, rounding: Rounding) -> Converted<u64> {
        let sign = |negative| u64::from(negative) << (format.exponent_bits + format.fraction_bits);
        let infinity = format.special() << format.fraction_bits;
        if self.is_unsupported() {
            let quiet = 1 << (format.fraction_bits - 1);
            return exact(sign(true) | infinity | quiet, INVALID);
        }
        let negative = self.negative;
        let sign = sign(negative);
        if self.exponent == SPECIAL {
            let fraction = self.significand & !INTEGER_BIT;
            let quiet = if fraction != 0 { QUIET } else { 0 };
            let value = sign | infinity | (fraction | quiet) >> (63 - format.fraction_bits);
            return exact(value, if fraction != 0 && fraction & QUIET == 0 { INVALID } else { 0 });
        }
        if self.significand == 0 {
            return exact(sign, 0);
        }
        // Normalized, as if there were no smallest exponent.
        let shift = self.significand.leading_zeros();
        let significand = self.significand << shift;
        let exponent = i32::from(self.exponent.max(1)) - BIAS - shift.cast_signed();
        let drop = 63 - format.fraction_bits;
        let (rounded, inexact, up) = cut(significand, drop, negative, rounding);
        let carried = rounded >> (format.fraction_bits + 1) != 0;
        let precision = if inexact { PRECISION } else { 0 };
        let after = exponent + i32::from(carried);
        if after > format.bias() {
            let exceeds = rounding == Rounding::Nearest || rounding.away(negative);
            let value = sign | if exceeds { infinity } else { infinity - 1 };
            let exceptions = OVERFLOW | PRECISION;
            return Converted { value, exceptions, unmasked_only: 0, rounded_up: exceeds };
        }
        let smallest = 1 - format.bias();
        if after < smallest {
            let below = drop + (smallest - exponent).unsigned_abs();
            let (value, inexact, up) = cut(significand, below, negative, rounding);
            let exceptions = if inexact { UNDERFLOW | PRECISION } else { 0 };
            return Converted { value: sign | value, exceptions, unmasked_only: UNDERFLOW, rounded_up: up };
        }
        // Of what has carried out of the integer bit, no fraction is left.
        let fraction = rounded & ((1 << format.fraction_bits) - 1);
        let biased = u64::try_from(after + format.bias()).unwrap_or(0);
        let value = sign | biased << format.fraction_bits | fraction;
        Converted { value, exceptions: precision, unmasked_only: 0, rounded_up: up }
    }

    /// As an integer: its sign and its magnitude, which is at most `largest` for positive ones, or `largest` and
    /// `excess` for negative ones. The value is `None` where there is none.
    pub fn to_integer(self, largest: u64, excess: u64, rounding: Rounding) -> Converted<Option<(bool, u64)>> {
        let exponent = i32::from(self.exponent) - BIAS;
        if self.is_unsupported() || exponent > 63 {
            return exact(None, INVALID);
        }
        let drop = (63 - exponent).unsigned_abs();
        let (magnitude, inexact, up) = cut(self.significand, drop, self.negative, rounding);
        if magnitude > largest + if self.negative { excess } else { 0 } {
            return exact(None, INVALID);
        }
        let exceptions = if inexact { PRECISION } else { 0 };
        Converted { value: Some((self.negative, magnitude)), exceptions, unmasked_only: 0, rounded_up: up }
    }
}

/// Decimal digits of a packed value, and the largest number that they hold.
const DIGITS: usize = 18;
/// The largest packed decimal integer.
pub const LARGEST_DECIMAL: u64 = 999_999_999_999_999_999;

/// A packed decimal integer. What is no digit, the manual leaves open.
pub fn from_decimal(bytes: [u8; 10]) -> Extended {
    let digits = bytes.iter().take(DIGITS / 2).rev().flat_map(|byte| [byte >> 4, byte & 0xf]);
    let magnitude = digits.fold(0u64, |value, digit| value.wrapping_mul(10).wrapping_add(digit.into()));
    Extended::from_integer(bytes[9] & 0x80 != 0, magnitude)
}

/// A packed decimal integer, or what stands for none.
pub fn to_decimal(value: Option<(bool, u64)>) -> [u8; 10] {
    let Some((negative, mut magnitude)) = value else { return [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff] };
    let mut bytes = [0; 10];
    for byte in bytes.iter_mut().take(DIGITS / 2) {
        let pair = u8::try_from(magnitude % 100).unwrap_or(0);
        let (tens, ones) = (pair / 10, pair % 10);
        *byte = tens << 4 | ones;
        magnitude /= 100;
    }
    bytes[9] = u8::from(negative) << 7;
    bytes
}
