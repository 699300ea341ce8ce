//! PUSH and POP in all their forms, ENTER and LEAVE, and near CALL, JMP and RET.

use iced_x86::{Code, Mnemonic, OpKind};
use lamina_arch::cr::Rflags;
use lamina_arch::event::GuestFault;
use lamina_arch::exit::Width;
use lamina_arch::regs::{Gpr, SysReg};
use lamina_arch::segment::SegmentName;

use super::address::{Place, is_canonical, segment_name};
use super::far::NOT_BY_POPF;
use super::operand::Operand;
use super::{Context, Done, Outcome, Processor, Refused};

/// The general-purpose registers in the order of PUSHA.
const REGISTERS: [Gpr; 8] = [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx, Gpr::Rsp, Gpr::Rbp, Gpr::Rsi, Gpr::Rdi];

impl<P: Processor> Context<'_, P> {
    /// Width of the stack pointer: the B flag of SS outside of 64-bit mode.
    pub(super) fn stack_width(&mut self) -> Width {
        if self.is_64() {
            Width::B8
        } else if self.processor.segment(SegmentName::Ss).rights.is_default32() {
            Width::B4
        } else {
            Width::B2
        }
    }

    /// Width of what the instruction pushes or pops.
    fn pushed_width(&self) -> Result<Width, Refused> {
        let bytes = self.instruction.stack_pointer_increment().unsigned_abs();
        usize::try_from(bytes).ok().and_then(Width::from_bytes).ok_or(self.unsupported())
    }

    /// The place for a value of `width` that is `bytes` below the top of the stack, and the width of the stack pointer.
    pub(super) fn place_below(&mut self, bytes: u64, width: Width) -> Result<(Place, Width), GuestFault> {
        let stack = self.stack_width();
        let at = self.low(Gpr::Rsp, stack).wrapping_sub(bytes) & stack.mask();
        Ok((self.place(SegmentName::Ss, at, width.bytes(), true)?, stack))
    }

    /// Where a value of `width` is pushed, and the width of the stack pointer.
    fn push_place(&mut self, width: Width) -> Result<(Place, Width), GuestFault> {
        self.place_below(width.bytes() as u64, width)
    }

    fn push_value(&mut self, (place, stack): (Place, Width), width: Width, value: u64) {
        self.store(place, width, value);
        self.move_stack(stack, (width.bytes() as u64).wrapping_neg());
    }

    /// Adds `bytes` to the stack pointer.
    pub(super) fn move_stack(&mut self, stack: Width, bytes: u64) {
        let top = self.low(Gpr::Rsp, stack).wrapping_add(bytes);
        self.set_low(Gpr::Rsp, stack, top);
    }

    /// PUSH of a register, memory or a constant.
    pub(super) fn push(&mut self) -> Outcome {
        let width = self.pushed_width()?;
        if let Some(name) = segment_name(self.instruction.op0_register()) {
            let place = self.push_place(width)?;
            let selector = self.processor.segment(name).selector;
            self.push_value(place, width, selector.into());
            return Ok(self.advance());
        }
        let source = self.operand(0, width, false)?;
        let place = self.push_place(width)?;
        let value = self.get(source, width);
        self.push_value(place, width, value);
        Ok(self.advance())
    }

    /// POP to a register or memory.
    pub(super) fn pop(&mut self) -> Outcome {
        let width = self.pushed_width()?;
        let stack = self.stack_width();
        let top = self.low(Gpr::Rsp, stack);
        let from = self.place(SegmentName::Ss, top, width.bytes(), false)?;
        if let Some(name) = segment_name(self.instruction.op0_register()) {
            let selector = u16::try_from(self.load(from, width) & 0xffff).unwrap_or(0);
            self.load_segment(name, selector)?;
            self.move_stack(stack, width.bytes() as u64);
            return Ok(self.advance_behind_load_of(name));
        }
        // An address relative to the stack pointer is computed with its new value.
        let before = self.processor.gpr(Gpr::Rsp);
        self.move_stack(stack, width.bytes() as u64);
        match self.operand(0, width, true) {
            Ok(target) => {
                let value = self.load(from, width);
                self.set(target, width, value);
                Ok(self.advance())
            }
            Err(refused) => {
                self.processor.set_gpr(Gpr::Rsp, before);
                Err(refused)
            }
        }
    }

    /// PUSHF.
    pub(super) fn pushf(&mut self) -> Outcome {
        let width = self.pushed_width()?;
        let flags = self.flags();
        self.check_flags_privilege(flags)?;
        let place = self.push_place(width)?;
        self.push_value(place, width, (flags - Rflags::VM - Rflags::RF).bits());
        Ok(self.advance())
    }

    /// POPF.
    pub(super) fn popf(&mut self) -> Outcome {
        let width = self.pushed_width()?;
        let flags = self.flags();
        self.check_flags_privilege(flags)?;
        let stack = self.stack_width();
        let top = self.low(Gpr::Rsp, stack);
        let from = self.place(SegmentName::Ss, top, width.bytes(), false)?;
        let value = self.load(from, width);
        let changeable = self.changeable_flags(width) & !NOT_BY_POPF;
        self.move_stack(stack, width.bytes() as u64);
        self.set_flags(Rflags::from_bits_retain(flags.bits() & !changeable | value & changeable));
        Ok(self.advance())
    }

    /// The flags are not virtual-8086 mode's to see or to change without the privilege for it.
    fn check_flags_privilege(&mut self, flags: Rflags) -> Result<(), Refused> {
        let denied = flags.contains(Rflags::VM) && self.io_privilege() < 3;
        if denied { Err(self.virtual_interrupts()) } else { Ok(()) }
    }

    /// PUSHA.
    pub(super) fn pusha(&mut self) -> Outcome {
        let width = if self.instruction.mnemonic() == Mnemonic::Pusha { Width::B2 } else { Width::B4 };
        let bytes = width.bytes() as u64;
        let mut places = [None; REGISTERS.len()];
        let mut below = 0;
        for place in &mut places {
            below += bytes;
            *place = Some(self.place_below(below, width)?);
        }
        for (register, (place, _)) in REGISTERS.into_iter().zip(places.into_iter().flatten()) {
            let value = self.low(register, width);
            self.store(place, width, value);
        }
        let stack = self.stack_width();
        self.move_stack(stack, below.wrapping_neg());
        Ok(self.advance())
    }

    /// POPA: what was pushed of the stack pointer is not loaded.
    pub(super) fn popa(&mut self) -> Outcome {
        let width = if self.instruction.mnemonic() == Mnemonic::Popa { Width::B2 } else { Width::B4 };
        let stack = self.stack_width();
        let mut at = self.low(Gpr::Rsp, stack);
        let mut places = [None; REGISTERS.len()];
        for place in &mut places {
            *place = Some(self.place(SegmentName::Ss, at, width.bytes(), false)?);
            at = at.wrapping_add(width.bytes() as u64) & stack.mask();
        }
        for (register, place) in REGISTERS.into_iter().rev().zip(places.into_iter().flatten()) {
            let value = self.load(place, width);
            if register != Gpr::Rsp {
                self.set_low(register, width, value);
            }
        }
        self.set_low(Gpr::Rsp, stack, at);
        Ok(self.advance())
    }

    /// LEAVE.
    pub(super) fn leave(&mut self) -> Outcome {
        let width = match self.instruction.code() {
            Code::Leavew => Width::B2,
            Code::Leaved => Width::B4,
            _ => Width::B8,
        };
        let stack = self.stack_width();
        let frame = self.low(Gpr::Rbp, stack);
        let from = self.place(SegmentName::Ss, frame, width.bytes(), false)?;
        let value = self.load(from, width);
        self.set_low(Gpr::Rsp, stack, frame.wrapping_add(width.bytes() as u64) & stack.mask());
        self.set_low(Gpr::Rbp, width, value);
        Ok(self.advance())
    }

    /// ENTER without nesting.
    pub(super) fn enter(&mut self) -> Outcome {
        let width = match self.instruction.code() {
            Code::Enterw_imm16_imm8 => Width::B2,
            Code::Enterd_imm16_imm8 => Width::B4,
            _ => Width::B8,
        };
        if self.instruction.immediate8_2nd() & 0x1f != 0 {
            return Err(self.unsupported());
        }
        let (place, stack) = self.push_place(width)?;
        let value = self.low(Gpr::Rbp, width);
        self.store(place, width, value);
        self.move_stack(stack, (width.bytes() as u64).wrapping_neg());
        let frame = self.low(Gpr::Rsp, stack);
        self.set_low(Gpr::Rbp, width, frame);
        let size = self.instruction.immediate16();
        self.move_stack(stack, u64::from(size).wrapping_neg());
        Ok(self.advance())
    }

    /// Where a near branch goes.
    fn near_target(&mut self) -> Result<u64, Refused> {
        let instruction = self.instruction;
        let kind = instruction.op_kind(0);
        if matches!(kind, OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64) {
            return Ok(instruction.near_branch_target());
        }
        if !instruction.is_call_near_indirect() && !instruction.is_jmp_near_indirect() {
            return Err(self.unsupported());
        }
        let width = self.width(0)?;
        let target = self.operand(0, width, false)?;
        Ok(self.get(target, width))
    }

    fn check_target(&mut self, target: u64) -> Result<(), GuestFault> {
        let good = if self.is_64() {
            is_canonical(self.processor, target)
        } else {
            target <= u64::from(self.processor.segment(SegmentName::Cs).limit)
        };
        if good { Ok(()) } else { Err(GuestFault::GP0) }
    }

    fn jump(&mut self, target: u64) -> Outcome {
        self.processor.write(SysReg::Rip, target);
        Ok(Done::Jumped)
    }

    /// JMP.
    pub(super) fn jmp(&mut self) -> Outcome {
        if self.instruction.is_jmp_far() || self.instruction.is_jmp_far_indirect() {
            return self.far_jmp();
        }
        let target = self.near_target()?;
        self.check_target(target)?;
        self.jump(target)
    }

    /// CALL.
    pub(super) fn call(&mut self) -> Outcome {
        if self.instruction.is_call_far() || self.instruction.is_call_far_indirect() {
            return self.far_call();
        }
        let target = self.near_target()?;
        let width = self.pushed_width()?;
        self.check_target(target)?;
        let place = self.push_place(width)?;
        self.push_value(place, width, self.instruction.next_ip());
        self.jump(target)
    }

    /// Near RET.
    pub(super) fn ret(&mut self) -> Outcome {
        let width = match self.instruction.code() {
            iced_x86::Code::Retnw | iced_x86::Code::Retnw_imm16 => Width::B2,
            iced_x86::Code::Retnd | iced_x86::Code::Retnd_imm16 => Width::B4,
            iced_x86::Code::Retnq | iced_x86::Code::Retnq_imm16 => Width::B8,
            _ => return Err(self.unsupported()),
        };
        let stack = self.stack_width();
        let top = self.low(Gpr::Rsp, stack);
        let from = Operand::Memory(self.place(SegmentName::Ss, top, width.bytes(), false)?);
        let target = self.get(from, width);
        self.check_target(target)?;
        let released = match self.instruction.op_count() {
            0 => 0,
            _ => u64::from(self.instruction.immediate16()),
        };
        self.move_stack(stack, (width.bytes() as u64).wrapping_add(released));
        self.jump(target)
    }
}
