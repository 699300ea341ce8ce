//! Shifts and rotates with their flags, as functions of values (SDM vol. 2, "SAL/SAR/SHL/SHR—Shift", "RCL/RCR/ROL/ROR—
//! Rotate", "SHLD", "SHRD"). Counts are masked already and not 0. OF is computed for every count by the rule that holds
//! for a count of 1; for others the manual leaves it undefined.

use lamina_arch::cr::Rflags;
use lamina_arch::exit::Width;

use super::alu::{Computed, sign_bit, with_result};
use super::operand::sign_extend;

fn shifted(result: u64, carry: bool, overflow: bool, width: Width, before: Rflags) -> Computed {
    let result = result & width.mask();
    let mut flags = with_result(before, result, width);
    flags.set(Rflags::CF, carry);
    flags.set(Rflags::OF, overflow);
    flags.remove(Rflags::AF);
    (result, flags)
}

/// Rotates change CF and OF only.
fn rotated(result: u64, carry: bool, overflow: bool, mut flags: Rflags) -> Computed {
    flags.set(Rflags::CF, carry);
    flags.set(Rflags::OF, overflow);
    (result, flags)
}

/// Whether the two most significant bits differ.
fn top_bits_differ(value: u64, width: Width) -> bool {
    (value ^ value << 1) & sign_bit(width) != 0
}

/// SHL by `count`.
pub fn shl(value: u64, count: u32, width: Width, before: Rflags) -> Computed {
    let wide = u128::from(value & width.mask()) << count;
    let carry = wide >> width.bits() & 1 != 0;
    let result = low(wide);
    shifted(result, carry, (result & sign_bit(width) != 0) != carry, width, before)
}

/// SHR by `count`.
pub fn shr(value: u64, count: u32, width: Width, before: Rflags) -> Computed {
    let value = value & width.mask();
    let carry = value >> (count - 1) & 1 != 0;
    let result = value.checked_shr(count).unwrap_or(0);
    shifted(result, carry, top_bits_differ(result, width), width, before)
}

/// SAR by `count`.
pub fn sar(value: u64, count: u32, width: Width, before: Rflags) -> Computed {
    let value = sign_extend(value, width).cast_signed();
    let carry = value >> (count - 1) & 1 != 0;
    shifted((value >> count.min(63)).cast_unsigned(), carry, false, width, before)
}

/// ROL by `count`.
pub fn rol(value: u64, count: u32, width: Width, before: Rflags) -> Computed {
    let result = rotate_left(value & width.mask(), count % width.bits(), width);
    let carry = result & 1 != 0;
    rotated(result, carry, (result & sign_bit(width) != 0) != carry, before)
}

/// ROR by `count`.
pub fn ror(value: u64, count: u32, width: Width, before: Rflags) -> Computed {
    let count = count % width.bits();
    let result = rotate_left(value & width.mask(), (width.bits() - count) % width.bits(), width);
    rotated(result, result & sign_bit(width) != 0, top_bits_differ(result, width), before)
}

fn rotate_left(value: u64, count: u32, width: Width) -> u64 {
    let twice = u128::from(value) << width.bits() | u128::from(value);
    low(twice >> (width.bits() - count)) & width.mask()
}

/// RCL by `count`: a rotation through CF, which is one bit above the value.
pub fn rcl(value: u64, count: u32, width: Width, before: Rflags) -> Computed {
    let count = count % (width.bits() + 1);
    if count == 0 {
        return (value, before);
    }
    let (result, carry) = through_carry(value, count, width, before);
    rotated(result, carry, (result & sign_bit(width) != 0) != carry, before)
}

/// RCR by `count`.
pub fn rcr(value: u64, count: u32, width: Width, before: Rflags) -> Computed {
    let count = count % (width.bits() + 1);
    if count == 0 {
        return (value, before);
    }
    let (result, carry) = through_carry(value, width.bits() + 1 - count, width, before);
    rotated(result, carry, top_bits_differ(result, width), before)
}

/// Rotates CF and `value` left by `count`, from 1 to the width.
fn through_carry(value: u64, count: u32, width: Width, before: Rflags) -> (u64, bool) {
    let bits = width.bits() + 1;
    let carry = u128::from(before.contains(Rflags::CF));
    let whole = carry << width.bits() | u128::from(value & width.mask());
    let turned = whole << count | whole >> (bits - count);
    (low(turned) & width.mask(), turned >> width.bits() & 1 != 0)
}

/// SHLD: what leaves at the top is filled from `filler`'s top. With 16 bits and a count above 16, which the manual
/// leaves undefined, the value itself follows the filler.
pub fn shld(value: u64, filler: u64, count: u32, width: Width, before: Rflags) -> Computed {
    let (bits, value) = (width.bits(), value & width.mask());
    let filler = filler & width.mask();
    let (carry, result) = if count > bits {
        let (carry, result) =
            (filler >> (2 * bits - count) & 1, filler << (count - bits) | value >> (2 * bits - count));
        (carry, result)
    } else {
        let both = u128::from(value) << bits | u128::from(filler);
        (low(both >> (2 * bits - count)) & 1, low(both >> (bits - count)))
    };
    let overflow = (result ^ value) & sign_bit(width) != 0;
    shifted(result, carry != 0, overflow, width, before)
}

/// SHRD: what leaves at the bottom is filled from `filler`'s bottom.
pub fn shrd(value: u64, filler: u64, count: u32, width: Width, before: Rflags) -> Computed {
    let (bits, value) = (width.bits(), value & width.mask());
    let filler = filler & width.mask();
    let (carry, result) = if count > bits {
        (filler >> (count - bits - 1) & 1, filler >> (count - bits) | value << (2 * bits - count))
    } else {
        let both = u128::from(filler) << bits | u128::from(value);
        (low(both >> (count - 1)) & 1, low(both >> count))
    };
    let overflow = (result ^ value) & sign_bit(width) != 0;
    shifted(result, carry != 0, overflow, width, before)
}

/// The low 64 bits.
#[allow(clippy::cast_possible_truncation)] // That is what it is for.
const fn low(value: u128) -> u64 {
    value as u64
}
