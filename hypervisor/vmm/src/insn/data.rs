//! Moves of data.

use iced_x86::{Mnemonic, OpKind};
use lamina_arch::event::GuestFault;
use lamina_arch::exit::Width;
use lamina_arch::regs::Gpr;
use lamina_arch::segment::SegmentName;

use super::address::segment_name;
use super::operand::{Operand, sign_extend};
use super::{Context, Done, Outcome, Processor, length};

impl<P: Processor> Context<'_, P> {
    /// MOV, MOVNTI.
    pub(super) fn mov(&mut self) -> Outcome {
        let instruction = self.instruction;
        for n in 0..2 {
            if instruction.op_kind(n) == OpKind::Register && instruction.op_register(n).is_segment_register() {
                return self.mov_segment(n);
            }
        }
        let width = self.width(0)?;
        let target = self.operand(0, width, true)?;
        let source = self.operand(1, width, false)?;
        let value = self.get(source, width);
        self.set(target, width, value);
        Ok(self.advance())
    }

    /// MOV from or to the segment register that is operand `n`.
    fn mov_segment(&mut self, n: u32) -> Outcome {
        let Some(name) = segment_name(self.instruction.op_register(n)) else { return Err(self.unsupported()) };
        if n == 1 {
            let width = self.width(0)?;
            let target = self.operand(0, width, true)?;
            let selector = self.processor.segment(name).selector;
            self.set(target, width, selector.into());
            return Ok(self.advance());
        }
        if name == SegmentName::Cs {
            return Err(self.unsupported());
        }
        let source = self.operand(1, Width::B2, false)?;
        let selector = self.selector(source);
        self.load_segment(name, selector)?;
        Ok(self.advance_behind_load_of(name))
    }

    /// MOVZX.
    pub(super) fn movzx(&mut self) -> Outcome {
        let (to, from) = (self.width(0)?, self.width(1)?);
        let source = self.operand(1, from, false)?;
        let value = self.get(source, from);
        let target = self.operand(0, to, true)?;
        self.set(target, to, value);
        Ok(self.advance())
    }

    /// MOVSX, MOVSXD.
    pub(super) fn movsx(&mut self) -> Outcome {
        let (to, from) = (self.width(0)?, self.width(1)?);
        let source = self.operand(1, from, false)?;
        let value = sign_extend(self.get(source, from), from);
        let target = self.operand(0, to, true)?;
        self.set(target, to, value);
        Ok(self.advance())
    }

    /// MOVBE.
    pub(super) fn movbe(&mut self) -> Outcome {
        let width = self.width(0)?;
        let target = self.operand(0, width, true)?;
        let source = self.operand(1, width, false)?;
        let value = self.get(source, width).swap_bytes() >> (64 - width.bits());
        self.set(target, width, value);
        Ok(self.advance())
    }

    /// XLAT.
    pub(super) fn xlat(&mut self) -> Outcome {
        let place = self.memory(0, 1, false)?;
        let value = self.load(place, Width::B1);
        self.set_low(Gpr::Rax, Width::B1, value);
        Ok(self.advance())
    }

    /// CLFLUSH, CLFLUSHOPT, CLWB: an access like a read, which no device sees.
    pub(super) fn cache_line(&mut self) -> Outcome {
        self.memory(0, 1, false)?;
        Ok(self.advance())
    }

    /// The selector in an operand of 16 bits.
    pub(super) fn selector(&mut self, operand: Operand) -> u16 {
        u16::try_from(self.get(operand, Width::B2) & 0xffff).unwrap_or(0)
    }

    /// The instruction has loaded `name`: behind MOV and POP to SS comes a shadow.
    pub(super) fn advance_behind_load_of(&self, name: SegmentName) -> Done {
        if name == SegmentName::Ss { Done::AdvanceIntoShadow(length(self.instruction)) } else { self.advance() }
    }

    /// Reads the far pointer that is the memory operand: selector, and offset of `width`.
    pub(super) fn load_pointer(&mut self, width: Width) -> Result<(u16, u64), GuestFault> {
        let place = self.memory(0, width.bytes() + 2, false)?;
        let mut data = [0; 10];
        let data = &mut data[..width.bytes() + 2];
        self.load_bytes(place, data);
        let (offset, selector) = data.split_at(width.bytes());
        let value = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        Ok((u16::try_from(value(selector)).unwrap_or(0), value(offset)))
    }

    /// LDS, LES, LSS, LFS, LGS. None of them begins a shadow.
    pub(super) fn load_far_pointer(&mut self) -> Outcome {
        let target = self.instruction.op0_register();
        let Some(width) = Width::from_bytes(target.size()) else { return Err(self.unsupported()) };
        let name = match self.instruction.mnemonic() {
            Mnemonic::Lds => SegmentName::Ds,
            Mnemonic::Les => SegmentName::Es,
            Mnemonic::Lss => SegmentName::Ss,
            Mnemonic::Lfs => SegmentName::Fs,
            _ => SegmentName::Gs,
        };
        let (selector, offset) = self.load_pointer(width)?;
        self.load_segment(name, selector)?;
        self.set_register(target, offset);
        Ok(self.advance())
    }
}
