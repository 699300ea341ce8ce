//! Addition, subtraction and logic with their flags, as functions of values (SDM vol. 1, "EFLAGS Register"; vol. 2, the
//! instructions' "Flags Affected"). Where the manual leaves a flag undefined it is cleared.

use lamina_arch::cr::Rflags;
use lamina_arch::exit::Width;

/// The flags that arithmetic sets.
pub const ARITHMETIC: Rflags =
    Rflags::CF.union(Rflags::PF).union(Rflags::AF).union(Rflags::ZF).union(Rflags::SF).union(Rflags::OF);

/// A result and the flags after it.
pub type Computed = (u64, Rflags);

/// The most significant bit of a value of `width`.
pub const fn sign_bit(width: Width) -> u64 {
    1 << (width.bits() - 1)
}

/// `flags` with ZF, SF and PF as `result` says.
pub fn with_result(mut flags: Rflags, result: u64, width: Width) -> Rflags {
    flags.set(Rflags::ZF, result & width.mask() == 0);
    flags.set(Rflags::SF, result & sign_bit(width) != 0);
    flags.set(Rflags::PF, (result & 0xff).count_ones().is_multiple_of(2));
    flags
}

fn computed(result: u64, width: Width, before: Rflags, carry: bool, overflow: bool, auxiliary: bool) -> Computed {
    let mut flags = with_result(before, result, width);
    flags.set(Rflags::CF, carry);
    flags.set(Rflags::OF, overflow);
    flags.set(Rflags::AF, auxiliary);
    (result, flags)
}

/// `left + right + carry`.
pub fn add(left: u64, right: u64, carry: bool, width: Width, before: Rflags) -> Computed {
    let (left, right) = (left & width.mask(), right & width.mask());
    let sum = u128::from(left) + u128::from(right) + u128::from(carry);
    let result = left.wrapping_add(right).wrapping_add(u64::from(carry)) & width.mask();
    let overflow = (left ^ result) & (right ^ result) & sign_bit(width) != 0;
    let auxiliary = (left ^ right ^ result) & 0x10 != 0;
    computed(result, width, before, sum > u128::from(width.mask()), overflow, auxiliary)
}

/// `left - right - borrow`.
pub fn sub(left: u64, right: u64, borrow: bool, width: Width, before: Rflags) -> Computed {
    let (left, right) = (left & width.mask(), right & width.mask());
    let carry = u128::from(left) < u128::from(right) + u128::from(borrow);
    let result = left.wrapping_sub(right).wrapping_sub(u64::from(borrow)) & width.mask();
    let overflow = (left ^ right) & (left ^ result) & sign_bit(width) != 0;
    let auxiliary = (left ^ right ^ result) & 0x10 != 0;
    computed(result, width, before, carry, overflow, auxiliary)
}

/// The flags of a logic instruction's result: no carry, no overflow.
pub fn logic(result: u64, width: Width, before: Rflags) -> Computed {
    computed(result & width.mask(), width, before, false, false, false)
}

/// `value + 1`; CF stays.
pub fn inc(value: u64, width: Width, before: Rflags) -> Computed {
    let (result, flags) = add(value, 1, false, width, before);
    (result, keep_carry(flags, before))
}

/// `value - 1`; CF stays.
pub fn dec(value: u64, width: Width, before: Rflags) -> Computed {
    let (result, flags) = sub(value, 1, false, width, before);
    (result, keep_carry(flags, before))
}

fn keep_carry(mut flags: Rflags, before: Rflags) -> Rflags {
    flags.set(Rflags::CF, before.contains(Rflags::CF));
    flags
}
