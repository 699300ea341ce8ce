//! PUSH, POP, and near CALL, JMP and RET.

use iced_x86::OpKind;
use lamina_arch::event::GuestFault;
use lamina_arch::exit::Width;
use lamina_arch::regs::{Gpr, SysReg};
use lamina_arch::segment::SegmentName;

use super::address::{Place, is_canonical};
use super::operand::Operand;
use super::{Context, Done, Outcome, Processor, Refused};

impl<P: Processor> Context<'_, P> {
    /// Width of the stack pointer: the B flag of SS outside of 64-bit mode.
    fn stack_width(&mut self) -> Width {
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

    /// Where a value of `width` is pushed, and the width of the stack pointer.
    fn push_place(&mut self, width: Width) -> Result<(Place, Width), GuestFault> {
        let stack = self.stack_width();
        let top = self.low(Gpr::Rsp, stack).wrapping_sub(width.bytes() as u64) & stack.mask();
        Ok((self.place(SegmentName::Ss, top, width.bytes(), true)?, stack))
    }

    fn push_value(&mut self, (place, stack): (Place, Width), width: Width, value: u64) {
        self.store(place, width, value);
        self.move_stack(stack, (width.bytes() as u64).wrapping_neg());
    }

    /// Adds `bytes` to the stack pointer.
    fn move_stack(&mut self, stack: Width, bytes: u64) {
        let top = self.low(Gpr::Rsp, stack).wrapping_add(bytes);
        self.set_low(Gpr::Rsp, stack, top);
    }

    /// PUSH of a general-purpose register, memory or a constant.
    pub(super) fn push(&mut self) -> Outcome {
        let width = self.pushed_width()?;
        let source = self.operand(0, width, false)?;
        let place = self.push_place(width)?;
        let value = self.get(source, width);
        self.push_value(place, width, value);
        Ok(self.advance())
    }

    /// POP to a general-purpose register or memory.
    pub(super) fn pop(&mut self) -> Outcome {
        let width = self.pushed_width()?;
        if self.instruction.op_kind(0) == OpKind::Register && !self.instruction.op0_register().is_gpr() {
            return Err(self.unsupported());
        }
        let stack = self.stack_width();
        let top = self.low(Gpr::Rsp, stack);
        let from = self.place(SegmentName::Ss, top, width.bytes(), false)?;
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

    /// Near JMP.
    pub(super) fn jmp(&mut self) -> Outcome {
        let target = self.near_target()?;
        self.check_target(target)?;
        self.jump(target)
    }

    /// Near CALL.
    pub(super) fn call(&mut self) -> Outcome {
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
