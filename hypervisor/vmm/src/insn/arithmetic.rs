//! Arithmetic, logic and shifts with one or two operands.

use iced_x86::Mnemonic;
use lamina_arch::cr::Rflags;
use lamina_arch::exit::Width;

use super::operand::Operand;
use super::{Context, Outcome, Processor, alu, shift};

impl<P: Processor> Context<'_, P> {
    /// ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST.
    pub(super) fn two_operands(&mut self) -> Outcome {
        let mnemonic = self.instruction.mnemonic();
        let stores = !matches!(mnemonic, Mnemonic::Cmp | Mnemonic::Test);
        let width = self.width(0)?;
        let target = self.operand(0, width, stores)?;
        let source = self.operand(1, width, false)?;
        let (left, right) = (self.get(target, width), self.get(source, width));
        let before = self.flags();
        let carry = before.contains(Rflags::CF);
        let (result, flags) = match mnemonic {
            Mnemonic::Add => alu::add(left, right, false, width, before),
            Mnemonic::Adc => alu::add(left, right, carry, width, before),
            Mnemonic::Sbb => alu::sub(left, right, carry, width, before),
            Mnemonic::Or => alu::logic(left | right, width, before),
            Mnemonic::Xor => alu::logic(left ^ right, width, before),
            Mnemonic::And | Mnemonic::Test => alu::logic(left & right, width, before),
            _ => alu::sub(left, right, false, width, before),
        };
        if stores {
            self.set(target, width, result);
        }
        self.set_flags(flags);
        Ok(self.advance())
    }

    /// INC, DEC, NEG, NOT.
    pub(super) fn one_operand(&mut self) -> Outcome {
        let width = self.width(0)?;
        let target = self.operand(0, width, true)?;
        let value = self.get(target, width);
        let before = self.flags();
        let (result, flags) = match self.instruction.mnemonic() {
            Mnemonic::Inc => alu::inc(value, width, before),
            Mnemonic::Dec => alu::dec(value, width, before),
            Mnemonic::Neg => alu::sub(0, value, false, width, before),
            _ => (!value, before),
        };
        self.set(target, width, result);
        if flags != before {
            self.set_flags(flags);
        }
        Ok(self.advance())
    }

    /// SHL, SHR, SAR, ROL, ROR, RCL, RCR.
    pub(super) fn shift(&mut self) -> Outcome {
        let width = self.width(0)?;
        let target = self.operand(0, width, true)?;
        let count = self.shift_count(1, width)?;
        let value = self.get(target, width);
        let before = self.flags();
        let operation = match self.instruction.mnemonic() {
            Mnemonic::Shr => shift::shr,
            Mnemonic::Sar => shift::sar,
            Mnemonic::Rol => shift::rol,
            Mnemonic::Ror => shift::ror,
            Mnemonic::Rcl => shift::rcl,
            Mnemonic::Rcr => shift::rcr,
            _ => shift::shl,
        };
        let (result, flags) = if count == 0 { (value, before) } else { operation(value, count, width, before) };
        self.finish_shift(target, width, count, result, flags);
        Ok(self.advance())
    }

    /// SHLD, SHRD.
    pub(super) fn double_shift(&mut self) -> Outcome {
        let width = self.width(0)?;
        let target = self.operand(0, width, true)?;
        let source = self.operand(1, width, false)?;
        let count = self.shift_count(2, width)?;
        let (value, filler) = (self.get(target, width), self.get(source, width));
        let before = self.flags();
        let left = self.instruction.mnemonic() == Mnemonic::Shld;
        let (result, flags) = match count {
            0 => (value, before),
            _ if left => shift::shld(value, filler, count, width, before),
            _ => shift::shrd(value, filler, count, width, before),
        };
        self.finish_shift(target, width, count, result, flags);
        Ok(self.advance())
    }

    /// A count of 0 writes no memory, but clears the upper half of a 32-bit register's holder.
    fn finish_shift(&mut self, target: Operand, width: Width, count: u32, result: u64, flags: Rflags) {
        if count != 0 || matches!(target, Operand::Register(_)) {
            self.set(target, width, result);
        }
        self.set_flags(flags);
    }

    /// The count in operand `n`: 5 bits of it, 6 for 64-bit operands.
    fn shift_count(&mut self, n: u32, width: Width) -> Result<u32, super::Refused> {
        let operand = self.operand(n, Width::B1, false)?;
        let mask = if width == Width::B8 { 0x3f } else { 0x1f };
        let count = self.get(operand, Width::B1) & mask;
        Ok(u32::try_from(count).unwrap_or(0))
    }
}
