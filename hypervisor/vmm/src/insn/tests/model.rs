//! Arithmetic one bit at a time, as one would build it of gates: independent of the emulator's.

use std::vec::Vec;

/// Bits of a value, the least significant first.
pub type Bits = Vec<bool>;

pub fn bits(value: u64, width: usize) -> Bits {
    (0..width).map(|i| value >> i & 1 != 0).collect()
}

pub fn value(bits: &[bool]) -> u64 {
    bits.iter().rev().fold(0, |value, &bit| value << 1 | u64::from(bit))
}

/// The flags of a result; `None` where the manual leaves one undefined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub carry: Option<bool>,
    pub overflow: Option<bool>,
    pub auxiliary: Option<bool>,
    pub zero: Option<bool>,
    pub sign: Option<bool>,
    pub parity: Option<bool>,
}

impl Flags {
    fn of(mut self, result: &[bool]) -> Flags {
        self.zero = Some(!result.contains(&true));
        self.sign = result.last().copied();
        self.parity = Some(result.iter().take(8).filter(|&&bit| bit).count() % 2 == 0);
        self
    }
}

/// A row of full adders: sum and all carries, the one out of bit n at n.
fn ripple(left: &[bool], right: &[bool], mut carry: bool) -> (Bits, Bits) {
    left.iter()
        .zip(right)
        .map(|(&a, &b)| {
            let sum = a ^ b ^ carry;
            carry = a && b || carry && (a ^ b);
            (sum, carry)
        })
        .unzip()
}

fn overflow(carries: &[bool]) -> Option<bool> {
    let n = carries.len();
    Some(carries[n - 1] != carries[n - 2])
}

pub fn add(left: u64, right: u64, carry: bool, width: usize) -> (u64, Flags) {
    let (sum, carries) = ripple(&bits(left, width), &bits(right, width), carry);
    let flags = Flags {
        carry: carries.last().copied(),
        overflow: overflow(&carries),
        auxiliary: Some(carries[3]),
        ..Flags::default()
    };
    (value(&sum), flags.of(&sum))
}

/// A subtracter is an adder of the complement, and a borrow is a carry that is missing.
pub fn sub(left: u64, right: u64, borrow: bool, width: usize) -> (u64, Flags) {
    let (sum, carries) = ripple(&bits(left, width), &bits(!right, width), !borrow);
    let flags = Flags {
        carry: carries.last().map(|carry| !carry),
        overflow: overflow(&carries),
        auxiliary: Some(!carries[3]),
        ..Flags::default()
    };
    (value(&sum), flags.of(&sum))
}

pub fn logic(left: u64, right: u64, gate: fn(bool, bool) -> bool, width: usize) -> (u64, Flags) {
    let result: Bits = bits(left, width).into_iter().zip(bits(right, width)).map(|(a, b)| gate(a, b)).collect();
    let flags = Flags { carry: Some(false), overflow: Some(false), ..Flags::default() };
    (value(&result), flags.of(&result))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    Shl,
    Shr,
    Sar,
    Rol,
    Ror,
    Rcl,
    Rcr,
}

/// Shifts by one, `count` times.
pub fn shift(kind: Shift, start: u64, count: u32, carry: bool, width: usize) -> (u64, Flags) {
    let count = count & if width == 64 { 0x3f } else { 0x1f };
    let mut row = bits(start, width);
    let mut out = carry;
    for _ in 0..count {
        let (low, high) = (row[0], row[width - 1]);
        let left = matches!(kind, Shift::Shl | Shift::Rol | Shift::Rcl);
        let fill = match kind {
            Shift::Shl | Shift::Shr => false,
            Shift::Sar | Shift::Rol => high,
            Shift::Ror => low,
            Shift::Rcl | Shift::Rcr => out,
        };
        if left {
            out = high;
            row.pop();
            row.insert(0, fill);
        } else {
            out = low;
            row.remove(0);
            row.push(fill);
        }
    }
    let mut flags = Flags::default();
    if count == 0 {
        return (value(&row), flags);
    }
    let rotate = matches!(kind, Shift::Rol | Shift::Ror | Shift::Rcl | Shift::Rcr);
    if !rotate {
        flags = flags.of(&row);
    }
    // What was shifted out of a value more often than it has bits is undefined, but for SAR.
    if rotate || count as usize <= width || kind == Shift::Sar {
        flags.carry = Some(out);
    }
    if count == 1 {
        // The sign has changed.
        flags.overflow = Some(row[width - 1] != bits(start, width)[width - 1]);
    }
    (value(&row), flags)
}

/// SHLD (`left`) and SHRD with a count up to the width.
pub fn double_shift(left: bool, start: u64, filler: u64, count: u32, width: usize) -> (u64, Flags) {
    let (mut row, mut source) = (bits(start, width), bits(filler, width));
    let mut out = false;
    for _ in 0..count {
        if left {
            out = row.pop().unwrap_or(false);
            row.insert(0, source.pop().unwrap_or(false));
        } else {
            out = row.remove(0);
            row.push(source.remove(0));
        }
    }
    let mut flags = Flags::default();
    if count != 0 {
        flags = flags.of(&row);
        flags.carry = Some(out);
        if count == 1 {
            flags.overflow = Some(row[width - 1] != bits(start, width)[width - 1]);
        }
    }
    (value(&row), flags)
}

/// The product of two unsigned values, low and high half: shifted and added.
pub fn mul(left: u64, right: u64, width: usize) -> (u64, u64) {
    let mut product = std::vec![false; 2 * width];
    let mut shifted = bits(left, width);
    shifted.resize(2 * width, false);
    for bit in bits(right, width) {
        if bit {
            product = ripple(&product, &shifted, false).0;
        }
        shifted.pop();
        shifted.insert(0, false);
    }
    (value(&product[..width]), value(&product[width..]))
}

/// Negates twice `width` bits where `wanted`.
fn negated(low: u64, high: u64, wanted: bool, width: usize) -> (u64, u64) {
    let mut row = bits(low, width);
    row.extend(bits(high, width));
    if wanted {
        let flipped: Bits = row.iter().map(|bit| !bit).collect();
        row = ripple(&flipped, &std::vec![false; 2 * width], true).0;
    }
    (value(&row[..width]), value(&row[width..]))
}

fn is_negative(value: u64, width: usize) -> bool {
    value >> (width - 1) & 1 != 0
}

fn magnitude(value: u64, width: usize) -> u64 {
    if is_negative(value, width) { sub(0, value, false, width).0 } else { value }
}

/// The product of two signed values, low and high half.
pub fn imul(left: u64, right: u64, width: usize) -> (u64, u64) {
    let (low, high) = mul(magnitude(left, width), magnitude(right, width), width);
    negated(low, high, is_negative(left, width) != is_negative(right, width), width)
}

/// Quotient and remainder of unsigned values by long division; `None` for a divide error.
pub fn div(low: u64, high: u64, divisor: u64, width: usize) -> Option<(u64, u64)> {
    if divisor == 0 {
        return None;
    }
    let mut dividend = bits(low, width);
    dividend.extend(bits(high, width));
    let mut divisor = bits(divisor, width);
    divisor.push(false);
    let complement: Bits = divisor.iter().map(|bit| !bit).collect();
    let mut rest = std::vec![false; width + 1];
    let mut quotient = Bits::new();
    for &bit in dividend.iter().rev() {
        rest.pop();
        rest.insert(0, bit);
        let (less, carries) = ripple(&rest, &complement, true);
        let fits = carries[width];
        if fits {
            rest = less;
        }
        quotient.insert(0, fits);
    }
    (!quotient[width..].contains(&true)).then(|| (value(&quotient[..width]), value(&rest[..width])))
}

/// Quotient and remainder of signed values.
pub fn idiv(low: u64, high: u64, divisor: u64, width: usize) -> Option<(u64, u64)> {
    let (negative, opposite) = (is_negative(high, width), is_negative(divisor, width));
    let (low, high) = negated(low, high, negative, width);
    let (quotient, rest) = div(low, high, magnitude(divisor, width), width)?;
    let (quotient, _) = negated(quotient, 0, negative != opposite, width);
    let (rest, _) = negated(rest, 0, negative, width);
    // The quotient's sign must be what it should be.
    let fits = quotient == 0 || is_negative(quotient, width) == (negative != opposite);
    fits.then_some((quotient, rest))
}
