//! Multiplication and division. SF, ZF, AF and PF, which the manual leaves undefined, follow the low half of a product,
//! and stay after a division.

use lamina_arch::cr::Rflags;
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::exit::Width;
use lamina_arch::regs::Gpr;

use super::alu::with_result;
use super::operand::sign_extend;
use super::{Context, Outcome, Processor, Refused};

const DIVIDE_ERROR: Refused = Refused::Fault(GuestFault { vector: vector::DE, error: None, cr2: None });

/// A value of `width`, with its sign.
fn signed(value: u64, width: Width) -> i128 {
    i128::from(sign_extend(value, width).cast_signed())
}

/// The low 64 bits of the part of `value` that begins at bit `shift`.
#[allow(clippy::cast_possible_truncation)] // That is what it is for.
const fn part(value: u128, shift: u32) -> u64 {
    (value >> shift) as u64
}

impl<P: Processor> Context<'_, P> {
    /// AH and AL, or (R|E)DX and (R|E)AX, as one value.
    fn wide(&mut self, width: Width) -> u128 {
        let low = self.low(Gpr::Rax, if width == Width::B1 { Width::B2 } else { width });
        let high = if width == Width::B1 { 0 } else { self.low(Gpr::Rdx, width) };
        u128::from(high) << width.bits() | u128::from(low)
    }

    /// Sets AH and AL, or (R|E)DX and (R|E)AX.
    fn set_wide(&mut self, width: Width, high: u64, low: u64) {
        if width == Width::B1 {
            self.set_low(Gpr::Rax, Width::B2, (high & 0xff) << 8 | low & 0xff);
        } else {
            self.set_low(Gpr::Rax, width, low);
            self.set_low(Gpr::Rdx, width, high);
        }
    }

    /// CF and OF say that the product does not fit into the low half.
    fn set_product_flags(&mut self, low: u64, width: Width, lost: bool) {
        let mut flags = with_result(self.flags(), low, width);
        flags.set(Rflags::CF, lost);
        flags.set(Rflags::OF, lost);
        flags.remove(Rflags::AF);
        self.set_flags(flags);
    }

    /// MUL.
    pub(super) fn mul(&mut self) -> Outcome {
        let width = self.width(0)?;
        let factor = self.operand(0, width, false)?;
        let product = u128::from(self.low(Gpr::Rax, width)) * u128::from(self.get(factor, width));
        let (low, high) = (part(product, 0), part(product, width.bits()));
        self.set_wide(width, high, low);
        self.set_product_flags(low, width, high & width.mask() != 0);
        Ok(self.advance())
    }

    /// IMUL with one, two and three operands.
    pub(super) fn imul(&mut self) -> Outcome {
        let width = self.width(0)?;
        let operands = self.instruction.op_count();
        let (left, right) = match operands {
            1 => (None, self.operand(0, width, false)?),
            2 => (Some(self.operand(0, width, false)?), self.operand(1, width, false)?),
            _ => (Some(self.operand(1, width, false)?), self.operand(2, width, false)?),
        };
        let left = match left {
            Some(operand) => self.get(operand, width),
            None => self.low(Gpr::Rax, width),
        };
        let product = signed(left, width) * signed(self.get(right, width), width);
        let bits = product.cast_unsigned();
        let (low, high) = (part(bits, 0), part(bits, width.bits()));
        if operands == 1 {
            self.set_wide(width, high, low);
        } else {
            let target = self.operand(0, width, true)?;
            self.set(target, width, low);
        }
        self.set_product_flags(low, width, signed(low, width) != product);
        Ok(self.advance())
    }

    /// DIV and IDIV.
    pub(super) fn div(&mut self) -> Outcome {
        let width = self.width(0)?;
        let divisor = self.operand(0, width, false)?;
        let divisor = self.get(divisor, width);
        let dividend = self.wide(width);
        let (quotient, remainder) = if self.instruction.mnemonic() == iced_x86::Mnemonic::Div {
            let divisor = u128::from(divisor);
            let quotient = dividend.checked_div(divisor).ok_or(DIVIDE_ERROR)?;
            if quotient > u128::from(width.mask()) {
                return Err(DIVIDE_ERROR);
            }
            (part(quotient, 0), part(dividend - quotient * divisor, 0))
        } else {
            let unused = 128 - 2 * width.bits();
            let dividend = (dividend << unused).cast_signed() >> unused;
            let divisor = signed(divisor, width);
            let quotient = dividend.checked_div(divisor).ok_or(DIVIDE_ERROR)?;
            let low = part(quotient.cast_unsigned(), 0);
            if signed(low & width.mask(), width) != quotient {
                return Err(DIVIDE_ERROR);
            }
            (low, part((dividend - quotient * divisor).cast_unsigned(), 0))
        };
        self.set_wide(width, remainder, quotient);
        Ok(self.advance())
    }
}
