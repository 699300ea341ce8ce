//! Bit tests, scans and counts, and the instructions of BMI1, BMI2 and ADX.

use iced_x86::{Mnemonic, OpKind};
use lamina_arch::cr::Rflags;
use lamina_arch::exit::Width;
use lamina_arch::regs::Gpr;

use super::operand::{Operand, sign_extend};
use super::{Context, Outcome, Processor, alu};

/// The low bits of `value`, put where `mask` has bits.
fn deposit(value: u64, mask: u64) -> u64 {
    let places = (0..64).filter(|place| mask >> place & 1 != 0);
    places.zip(0..64).fold(0, |result, (place, bit)| result | (value >> bit & 1) << place)
}

/// The bits of `value` where `mask` has some, put together.
fn extract(value: u64, mask: u64) -> u64 {
    let places = (0..64).filter(|place| mask >> place & 1 != 0);
    places.zip(0..64).fold(0, |result, (place, bit)| result | (value >> place & 1) << bit)
}

impl<P: Processor> Context<'_, P> {
    /// BT, BTS, BTR, BTC. A bit offset in a register reaches beyond a memory operand, in both directions, by whole
    /// operands (SDM vol. 2, "BT—Bit Test"; vol. 1, "Bit Strings").
    pub(super) fn bit_test(&mut self) -> Outcome {
        let mnemonic = self.instruction.mnemonic();
        let stores = mnemonic != Mnemonic::Bt;
        let width = self.width(0)?;
        let source = self.operand(1, width, false)?;
        let offset = self.get(source, width);
        let target = if self.instruction.op_kind(0) == OpKind::Memory && matches!(source, Operand::Register(_)) {
            let operands = sign_extend(offset, width).cast_signed() >> width.bits().trailing_zeros();
            let bytes = operands.wrapping_mul(i64::from(width.bits() / 8));
            Operand::Memory(self.memory(bytes, width.bytes(), stores)?)
        } else {
            self.operand(0, width, stores)?
        };
        let bit = 1u64 << (offset % u64::from(width.bits()));
        let value = self.get(target, width);
        if stores {
            let result = match mnemonic {
                Mnemonic::Bts => value | bit,
                Mnemonic::Btr => value & !bit,
                _ => value ^ bit,
            };
            self.set(target, width, result);
        }
        let mut flags = self.flags();
        flags.set(Rflags::CF, value & bit != 0);
        self.set_flags(flags);
        Ok(self.advance())
    }

    /// TZCNT and LZCNT: of 0, the operand's width, and CF.
    pub(super) fn zero_count(&mut self) -> Outcome {
        let width = self.width(0)?;
        let source = self.operand(1, width, false)?;
        let value = self.get(source, width);
        let count = match self.instruction.mnemonic() {
            Mnemonic::Tzcnt => value.trailing_zeros().min(width.bits()),
            _ => value.leading_zeros() - (64 - width.bits()),
        };
        let target = self.operand(0, width, true)?;
        self.set(target, width, count.into());
        let mut flags = self.flags();
        flags.set(Rflags::CF, value == 0);
        flags.set(Rflags::ZF, count == 0);
        self.set_flags(flags);
        Ok(self.advance())
    }

    /// BLSI, BLSMSK and BLSR.
    pub(super) fn lowest_bit(&mut self) -> Outcome {
        let width = self.width(0)?;
        let source = self.operand(1, width, false)?;
        let value = self.get(source, width);
        let (result, carry) = match self.instruction.mnemonic() {
            Mnemonic::Blsi => (value & value.wrapping_neg(), value != 0),
            Mnemonic::Blsmsk => (value ^ value.wrapping_sub(1), value == 0),
            _ => (value & value.wrapping_sub(1), value == 0),
        };
        let target = self.operand(0, width, true)?;
        self.set(target, width, result);
        let (_, mut flags) = alu::logic(result, width, self.flags());
        flags.set(Rflags::CF, carry);
        self.set_flags(flags);
        Ok(self.advance())
    }

    /// ANDN, BEXTR, BZHI, PDEP, PEXT, and the shifts and rotates that leave the flags alone.
    pub(super) fn three_operands(&mut self) -> Outcome {
        let mnemonic = self.instruction.mnemonic();
        let width = self.width(0)?;
        let (first, second) = (self.operand(1, width, false)?, self.operand(2, width, false)?);
        let (left, right) = (self.get(first, width), self.get(second, width));
        let bits = width.bits();
        let count = u32::try_from(right & u64::from(bits - 1)).unwrap_or(0);
        let low = |value: u64, bits: u64| if bits >= 64 { value } else { value & ((1 << bits) - 1) };
        let (result, carry) = match mnemonic {
            Mnemonic::Andn => (!left & right, Some(false)),
            Mnemonic::Bextr => {
                let shifted = u32::try_from(right & 0xff).ok().and_then(|by| left.checked_shr(by)).unwrap_or(0);
                (low(shifted, right >> 8 & 0xff), Some(false))
            }
            Mnemonic::Bzhi => (low(left, right & 0xff), Some(right & 0xff >= bits.into())),
            Mnemonic::Pdep => (deposit(left, right), None),
            Mnemonic::Pext => (extract(left, right), None),
            Mnemonic::Rorx => (left >> count | left.checked_shl(bits - count).unwrap_or(0), None),
            Mnemonic::Sarx => ((sign_extend(left, width).cast_signed() >> count).cast_unsigned(), None),
            Mnemonic::Shrx => (left >> count, None),
            _ => (left << count, None),
        };
        let target = self.operand(0, width, true)?;
        self.set(target, width, result & width.mask());
        if let Some(carry) = carry {
            let (_, mut flags) = alu::logic(result, width, self.flags());
            flags.set(Rflags::CF, carry);
            self.set_flags(flags);
        }
        Ok(self.advance())
    }

    /// MULX: RDX times the operand, without flags.
    pub(super) fn mulx(&mut self) -> Outcome {
        let width = self.width(0)?;
        let source = self.operand(2, width, false)?;
        let product = u128::from(self.low(Gpr::Rdx, width)) * u128::from(self.get(source, width));
        let (high, low) = (self.operand(0, width, true)?, self.operand(1, width, true)?);
        // Where both are the same register it gets the upper half.
        self.set(low, width, u64::try_from(product & u128::from(width.mask())).unwrap_or(0));
        self.set(high, width, u64::try_from(product >> width.bits()).unwrap_or(0));
        Ok(self.advance())
    }

    /// ADCX, with the carry in CF, and ADOX, with the carry in OF.
    pub(super) fn add_with_one_flag(&mut self) -> Outcome {
        let flag = if self.instruction.mnemonic() == Mnemonic::Adcx { Rflags::CF } else { Rflags::OF };
        let width = self.width(0)?;
        let (target, source) = (self.operand(0, width, true)?, self.operand(1, width, false)?);
        let (left, right) = (self.get(target, width), self.get(source, width));
        let mut flags = self.flags();
        let (sum, after) = alu::add(left, right, flags.contains(flag), width, flags);
        self.set(target, width, sum);
        flags.set(flag, after.contains(Rflags::CF));
        self.set_flags(flags);
        Ok(self.advance())
    }

    /// CRC32, of CRC-32C's polynomial.
    pub(super) fn crc32(&mut self) -> Outcome {
        /// Reflected: the lowest bit is the highest power.
        const POLYNOMIAL: u64 = 0x82f6_3b78;
        let width = self.width(1)?;
        let source = self.operand(1, width, false)?;
        let value = self.get(source, width);
        let target = self.operand(0, Width::B4, true)?;
        let mut remainder = self.get(target, Width::B4);
        for bit in 0..width.bits() {
            let odd = (remainder ^ value >> bit) & 1 != 0;
            remainder = remainder >> 1 ^ if odd { POLYNOMIAL } else { 0 };
        }
        self.set(target, Width::B8, remainder);
        Ok(self.advance())
    }

    /// BSF and BSR. Of 0, the target keeps its value, as processors do it.
    pub(super) fn bit_scan(&mut self) -> Outcome {
        let width = self.width(0)?;
        let source = self.operand(1, width, false)?;
        let value = self.get(source, width);
        let found = match self.instruction.mnemonic() {
            Mnemonic::Bsf => value.trailing_zeros(),
            _ => 63 - value.leading_zeros().min(63),
        };
        let mut flags = self.flags();
        flags.set(Rflags::ZF, value == 0);
        if value != 0 {
            let target = self.operand(0, width, true)?;
            self.set(target, width, found.into());
        }
        self.set_flags(flags);
        Ok(self.advance())
    }

    /// POPCNT.
    pub(super) fn popcnt(&mut self) -> Outcome {
        let width = self.width(0)?;
        let source = self.operand(1, width, false)?;
        let value = self.get(source, width);
        let target = self.operand(0, width, true)?;
        self.set(target, width, value.count_ones().into());
        let mut flags = self.flags() - alu::ARITHMETIC;
        flags.set(Rflags::ZF, value == 0);
        self.set_flags(flags);
        Ok(self.advance())
    }

    /// SETcc and CMOVcc; anything else is not emulated.
    pub(super) fn conditional(&mut self) -> Outcome {
        use iced_x86::ConditionCode as C;
        let flags = self.flags();
        let (carry, zero) = (flags.contains(Rflags::CF), flags.contains(Rflags::ZF));
        let (sign, parity) = (flags.contains(Rflags::SF), flags.contains(Rflags::PF));
        let (overflow, less) = (flags.contains(Rflags::OF), sign != flags.contains(Rflags::OF));
        let holds = match self.instruction.condition_code() {
            C::None => return Err(self.unsupported()),
            C::o => overflow,
            C::no => !overflow,
            C::b => carry,
            C::ae => !carry,
            C::e => zero,
            C::ne => !zero,
            C::be => carry || zero,
            C::a => !(carry || zero),
            C::s => sign,
            C::ns => !sign,
            C::p => parity,
            C::np => !parity,
            C::l => less,
            C::ge => !less,
            C::le => zero || less,
            C::g => !(zero || less),
        };
        let width = self.width(0)?;
        // Jumps and loops have conditions as well, and so has CMPccXADD, with three operands.
        let set = match self.instruction.op_count() {
            1 if width == Width::B1 => true,
            2 => false,
            _ => return Err(self.unsupported()),
        };
        if set {
            let target = self.operand(0, width, true)?;
            self.set(target, width, holds.into());
            return Ok(self.advance());
        }
        let source = self.operand(1, width, false)?;
        // CMOVcc reads its source and, with 32 bits, clears the target's upper half in any case.
        let moved = self.get(source, width);
        let target = self.operand(0, width, true)?;
        let kept = self.get(target, width);
        self.set(target, width, if holds { moved } else { kept });
        Ok(self.advance())
    }
}
