//! Far transfers of control: JMP, CALL and RET between segments, and IRET (SDM vol. 2, the instructions; vol. 3,
//! "Privilege Level Checking When Transferring Program Control Between Code Segments").
//!
//! Gates, switches of tasks and IRET to virtual-8086 mode are refused by name: what is on a device is a pointer or a stack
//! at most.

use iced_x86::{Code, OpKind};
use lamina_arch::cr::{Cr4, Efer, Rflags};
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::exit::Width;
use lamina_arch::regs::{Gpr, SysReg};
use lamina_arch::segment::{AccessRights, Segment, SegmentName};

use super::address::is_canonical;
use super::descriptor;
use super::segment::{Found, accessed, selector_fault};
use super::{Context, Done, Outcome, Processor, Refused};

/// Nested task.
const NT: u64 = 1 << 14;
/// Where RFLAGS has the I/O privilege level.
const IOPL: u32 = 12;
/// VIF, VIP.
const VIRTUAL: u64 = 3 << 19;
/// The flags that IRET may change and POPF does not.
pub const NOT_BY_POPF: u64 = Rflags::RF.bits() | VIRTUAL;

/// RPL of a selector.
fn requested(selector: u16) -> u8 {
    u8::try_from(selector & 3).unwrap_or(3)
}

impl<P: Processor> Context<'_, P> {
    pub(super) fn is_ia32e(&mut self) -> bool {
        self.processor.read(SysReg::Efer) & Efer::LMA.bits() != 0
    }

    pub(super) fn io_privilege(&mut self) -> u8 {
        u8::try_from(self.flags().bits() >> IOPL & 3).unwrap_or(0)
    }

    /// The code segment that a jump or call (else a return) to `selector` goes to.
    ///
    /// # Errors
    /// #GP, #NP or #PF; what is no code segment but a gate.
    fn code_segment(&mut self, selector: u16, returns: bool) -> Result<Found, Refused> {
        if !self.is_protected() {
            return Ok((self.unprotected_segment(SegmentName::Cs, selector), None));
        }
        if selector & !3 == 0 {
            return Err(GuestFault::GP0.into());
        }
        let denied = Refused::Fault(selector_fault(vector::GP, selector));
        let found = descriptor::find(self.processor, selector, 8)?.ok_or(denied)?;
        let rights = found.rights();
        match found.system() {
            // TSSs and gates of calls and tasks.
            Some(1 | 3 | 4 | 5 | 9 | 11 | 12) if !returns => return Err(self.unsupported()),
            Some(_) => return Err(denied),
            None => {}
        }
        let cpl = self.cpl();
        let (conforming, dpl, rpl) = (rights.bit(2), rights.dpl(), requested(selector));
        let level = if returns { rpl } else { cpl };
        let allowed = if conforming { dpl <= level } else { dpl == level && (returns || rpl <= cpl) };
        let both = self.is_ia32e() && rights.is_long() && rights.is_default32();
        if !rights.bit(3) || !allowed || returns && rpl < cpl || both {
            return Err(denied);
        }
        if !found.is_present() {
            return Err(selector_fault(vector::NP, selector).into());
        }
        let segment = found.segment(selector & !3 | u16::from(level));
        Ok((accessed(segment), Some(found)))
    }

    /// Whether `offset` is in the code segment `code`; whether that holds 64-bit code.
    fn check_far_target(&mut self, code: &Segment, offset: u64) -> Result<bool, GuestFault> {
        let long = self.is_ia32e() && code.rights.is_long();
        let good = if long { is_canonical(self.processor, offset) } else { offset <= u64::from(code.limit) };
        if good { Ok(long) } else { Err(GuestFault::GP0) }
    }

    /// The selector and the offset that a far jump or call goes to, and its width.
    fn far_pointer(&mut self) -> Result<(u16, u64, Width), Refused> {
        let instruction = self.instruction;
        match instruction.op_kind(0) {
            OpKind::FarBranch16 => {
                Ok((instruction.far_branch_selector(), instruction.far_branch16().into(), Width::B2))
            }
            OpKind::FarBranch32 => {
                Ok((instruction.far_branch_selector(), instruction.far_branch32().into(), Width::B4))
            }
            OpKind::Memory => {
                let width = Width::from_bytes(instruction.memory_size().size().saturating_sub(2));
                let width = width.ok_or(self.unsupported())?;
                let (selector, offset) = self.load_pointer(width)?;
                Ok((selector, offset, width))
            }
            _ => Err(self.unsupported()),
        }
    }

    /// Far JMP.
    pub(super) fn far_jmp(&mut self) -> Outcome {
        let (selector, offset, _) = self.far_pointer()?;
        let code = self.code_segment(selector, false)?;
        self.check_far_target(&code.0, offset)?;
        self.use_segment(SegmentName::Cs, code)?;
        self.processor.write(SysReg::Rip, offset);
        Ok(Done::Jumped)
    }

    /// Far CALL.
    pub(super) fn far_call(&mut self) -> Outcome {
        let (selector, offset, width) = self.far_pointer()?;
        let code = self.code_segment(selector, false)?;
        let bytes = width.bytes() as u64;
        let (segment_at, stack) = self.place_below(bytes, width)?;
        let (offset_at, _) = self.place_below(2 * bytes, width)?;
        self.check_far_target(&code.0, offset)?;
        let from = self.processor.segment(SegmentName::Cs).selector;
        self.use_segment(SegmentName::Cs, code)?;
        self.store(segment_at, width, from.into());
        self.store(offset_at, width, self.instruction.next_ip());
        self.move_stack(stack, (2 * bytes).wrapping_neg());
        self.processor.write(SysReg::Rip, offset);
        Ok(Done::Jumped)
    }

    /// The value of `width` that is `n` values above the top of the stack, behind `skipped` bytes.
    fn above(&mut self, n: u64, skipped: u64, width: Width) -> Result<u64, GuestFault> {
        let stack = self.stack_width();
        let offset = n * width.bytes() as u64 + skipped;
        let at = self.low(Gpr::Rsp, stack).wrapping_add(offset) & stack.mask();
        let place = self.place(SegmentName::Ss, at, width.bytes(), false)?;
        Ok(self.load(place, width))
    }

    fn selector_above(&mut self, n: u64, skipped: u64, width: Width) -> Result<u16, GuestFault> {
        Ok(u16::try_from(self.above(n, skipped, width)? & 0xffff).unwrap_or(0))
    }

    /// Far RET.
    pub(super) fn far_ret(&mut self) -> Outcome {
        let width = match self.instruction.code() {
            Code::Retfw | Code::Retfw_imm16 => Width::B2,
            Code::Retfd | Code::Retfd_imm16 => Width::B4,
            _ => Width::B8,
        };
        let released = if self.instruction.op_count() == 0 { 0 } else { u64::from(self.instruction.immediate16()) };
        let offset = self.above(0, 0, width)?;
        let selector = self.selector_above(1, 0, width)?;
        let code = self.code_segment(selector, true)?;
        let long = self.check_far_target(&code.0, offset)?;
        let outer = self.is_protected() && requested(selector) > self.cpl();
        if outer {
            let pointer = self.above(2, released, width)?;
            let stack = self.selector_above(3, released, width)?;
            self.return_to_outer(code, long, stack, pointer, released)?;
        } else {
            let stack = self.stack_width();
            self.use_segment(SegmentName::Cs, code)?;
            self.move_stack(stack, 2 * width.bytes() as u64 + released);
        }
        self.processor.write(SysReg::Rip, offset);
        Ok(Done::Jumped)
    }

    /// Takes the code segment and the stack of a return to them, and takes data segments away that are too good for what is
    /// returned to.
    fn return_to_outer(
        &mut self,
        code: Found,
        long: bool,
        stack: u16,
        pointer: u64,
        released: u64,
    ) -> Result<(), GuestFault> {
        let level = requested(code.0.selector);
        let stack = self.stack_segment(stack, level, long)?;
        let width = match (long, stack.0.rights.is_default32()) {
            (true, _) => Width::B8,
            (false, true) => Width::B4,
            (false, false) => Width::B2,
        };
        if let Some(descriptor) = code.1 {
            descriptor.mark_accessed(self.processor)?;
        }
        self.use_segment(SegmentName::Ss, stack)?;
        self.processor.set_segment(SegmentName::Cs, code.0);
        self.set_low(Gpr::Rsp, width, pointer.wrapping_add(released));
        for name in [SegmentName::Es, SegmentName::Ds, SegmentName::Fs, SegmentName::Gs] {
            let held = self.processor.segment(name);
            let conforming = held.rights.bit(3) && held.rights.bit(2);
            if !held.rights.is_unusable() && !conforming && held.rights.dpl() < level {
                let nothing = Segment { rights: AccessRights::UNUSABLE, ..Segment::default() };
                self.processor.set_segment(name, nothing);
            }
        }
        Ok(())
    }

    /// IRET, but to another task and to virtual-8086 mode.
    pub(super) fn iret(&mut self) -> Outcome {
        let width = match self.instruction.code() {
            Code::Iretw => Width::B2,
            Code::Iretd => Width::B4,
            _ => Width::B8,
        };
        let before = self.flags();
        let protected = self.is_protected();
        if before.contains(Rflags::VM) && self.io_privilege() < 3 {
            return Err(self.virtual_interrupts());
        }
        if protected && before.bits() & NT != 0 {
            return Err(if self.is_ia32e() { GuestFault::GP0.into() } else { self.unsupported() });
        }
        let offset = self.above(0, 0, width)?;
        let selector = self.selector_above(1, 0, width)?;
        let flags = self.above(2, 0, width)?;
        let cpl = if protected { self.cpl() } else { 0 };
        let wide = protected && width != Width::B2 && !self.is_ia32e();
        if wide && cpl == 0 && flags & Rflags::VM.bits() != 0 {
            return Err(self.unsupported());
        }
        let changeable = self.changeable_flags(width);
        let code = self.code_segment(selector, true)?;
        let long = self.check_far_target(&code.0, offset)?;
        if self.is_64() || protected && requested(selector) > cpl {
            let pointer = self.above(3, 0, width)?;
            let stack = self.selector_above(4, 0, width)?;
            self.return_to_outer(code, long, stack, pointer, 0)?;
        } else {
            let stack = self.stack_width();
            self.use_segment(SegmentName::Cs, code)?;
            self.move_stack(stack, 3 * width.bytes() as u64);
        }
        self.processor.write(SysReg::Rip, offset);
        self.set_flags(Rflags::from_bits_retain(before.bits() & !changeable | flags & changeable));
        self.processor.unblock_nmi();
        Ok(Done::Jumped)
    }

    /// The flags that IRET may change, and POPF too but for [`NOT_BY_POPF`].
    pub(super) fn changeable_flags(&mut self, width: Width) -> u64 {
        const INTERRUPTS: u64 = Rflags::IF.bits();
        /// CF, PF, AF, ZF, SF, TF, DF, OF, NT.
        const ALWAYS: u64 = 0x4dd5;
        /// RF, AC, ID.
        const WIDE: u64 = Rflags::RF.bits() | Rflags::AC.bits() | 1 << 21;
        let cpl = if self.is_protected() {
            self.cpl()
        } else if self.flags().contains(Rflags::VM) {
            3
        } else {
            0
        };
        let mut flags = ALWAYS;
        if width != Width::B2 {
            flags |= WIDE;
            if cpl == 0 {
                flags |= VIRTUAL;
            }
        }
        if cpl <= self.io_privilege() {
            flags |= INTERRUPTS;
        }
        if cpl == 0 {
            flags |= 3 << IOPL;
        }
        flags
    }

    /// In virtual-8086 mode without the privilege for the interrupt flag: #GP, or what CR4.VME makes of it.
    pub(super) fn virtual_interrupts(&mut self) -> Refused {
        let extended = self.processor.read(SysReg::Cr4) & Cr4::VME.bits() != 0;
        if extended { self.unsupported() } else { GuestFault::GP0.into() }
    }
}
