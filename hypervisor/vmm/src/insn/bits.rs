//! Bit tests, bit scans, bit counts.

use iced_x86::{Mnemonic, OpKind};
use lamina_arch::cr::Rflags;
use lamina_arch::exit::Width;

use super::operand::{Operand, sign_extend};
use super::{Context, Outcome, Processor, alu};

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
