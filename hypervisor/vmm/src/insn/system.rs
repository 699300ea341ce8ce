//! The registers of protection and its checks, with an operand in memory (SDM vol. 2, the instructions; vol. 3, "Checking
//! Access Rights (LAR Instruction)", "System Instructions").

use iced_x86::{Code, Mnemonic, OpKind};
use lamina_arch::cr::Cr4;
use lamina_arch::cr::Rflags;
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::exit::Width;
use lamina_arch::regs::SysReg;
use lamina_arch::segment::{AccessRights, Segment, SegmentName};

use super::address::is_canonical;
use super::descriptor::{self, Descriptor};
use super::operand::sign_extend;
use super::segment::selector_fault;
use super::{Context, Outcome, Processor, Refused};

/// What LSL shows of system segments: TSSs and LDTs. LAR shows gates of calls and tasks beside.
const WITH_LIMIT: [u32; 5] = [1, 2, 3, 9, 11];
const WITH_RIGHTS: [u32; 8] = [1, 2, 3, 4, 5, 9, 11, 12];
/// In IA-32e mode there are no 16-bit ones, and no gates of tasks.
const ONLY_LEGACY: [u32; 4] = [1, 3, 4, 5];

impl<P: Processor> Context<'_, P> {
    fn needs_privilege(&mut self) -> Result<(), GuestFault> {
        let user = self.flags().contains(Rflags::VM) || self.is_protected() && self.cpl() != 0;
        if user { Err(GuestFault::GP0) } else { Ok(()) }
    }

    /// What only protected mode knows is undefined elsewhere.
    fn needs_protection(&mut self) -> Result<(), GuestFault> {
        if self.is_protected() { Ok(()) } else { Err(GuestFault::UD) }
    }

    /// What user-mode instruction prevention keeps from users.
    fn needs_no_umip(&mut self) -> Result<(), GuestFault> {
        let prevented = self.processor.read(SysReg::Cr4) & Cr4::UMIP.bits() != 0;
        if prevented { self.needs_privilege() } else { Ok(()) }
    }

    /// SLDT, STR and SMSW to memory, and SMSW to a register, of whose width it stores CR0.
    pub(super) fn store_word(&mut self) -> Outcome {
        let mnemonic = self.instruction.mnemonic();
        if mnemonic != Mnemonic::Smsw {
            self.needs_protection()?;
        }
        self.needs_no_umip()?;
        if mnemonic == Mnemonic::Smsw && self.instruction.op0_kind() == OpKind::Register {
            let cr0 = self.processor.read(SysReg::Cr0);
            self.set_register(self.instruction.op0_register(), cr0);
            return Ok(self.advance());
        }
        let OpKind::Memory = self.instruction.op0_kind() else { return Err(self.unsupported()) };
        let target = self.operand(0, Width::B2, true)?;
        let value = match mnemonic {
            Mnemonic::Sldt => self.processor.segment(SegmentName::Ldtr).selector.into(),
            Mnemonic::Str => self.processor.segment(SegmentName::Tr).selector.into(),
            _ => self.processor.read(SysReg::Cr0),
        };
        self.set(target, Width::B2, value);
        Ok(self.advance())
    }

    /// LMSW from memory: MP, EM and TS, and PE, which it sets and never clears.
    pub(super) fn lmsw(&mut self) -> Outcome {
        self.needs_privilege()?;
        let source = self.operand(0, Width::B2, false)?;
        let value = self.get(source, Width::B2);
        let cr0 = self.processor.read(SysReg::Cr0);
        self.processor.write(SysReg::Cr0, cr0 & !0xe | value & 0xf);
        Ok(self.advance())
    }

    /// Width of the base address in a table register's image, and of what is taken of it.
    fn base_width(&self) -> (Width, u64) {
        match self.instruction.code() {
            Code::Lgdt_m1664 | Code::Lidt_m1664 | Code::Sgdt_m1664 | Code::Sidt_m1664 => (Width::B8, u64::MAX),
            Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 => (Width::B4, 0xff_ffff),
            _ => (Width::B4, 0xffff_ffff),
        }
    }

    /// SGDT and SIDT: limit, then base.
    pub(super) fn store_table(&mut self) -> Outcome {
        self.needs_no_umip()?;
        let (width, _) = self.base_width();
        let (base, limit) = match self.instruction.mnemonic() {
            Mnemonic::Sgdt => (SysReg::GdtBase, SysReg::GdtLimit),
            _ => (SysReg::IdtBase, SysReg::IdtLimit),
        };
        let place = self.memory(0, 2 + width.bytes(), true)?;
        let mut data = [0; 10];
        let (low, high) = data.split_at_mut(2);
        low.copy_from_slice(&self.processor.read(limit).to_le_bytes()[..2]);
        high.copy_from_slice(&self.processor.read(base).to_le_bytes());
        self.store_bytes(place, &data[..2 + width.bytes()]);
        Ok(self.advance())
    }

    /// LGDT and LIDT.
    pub(super) fn load_table(&mut self) -> Outcome {
        self.needs_privilege()?;
        let (width, mask) = self.base_width();
        let (base, limit) = match self.instruction.mnemonic() {
            Mnemonic::Lgdt => (SysReg::GdtBase, SysReg::GdtLimit),
            _ => (SysReg::IdtBase, SysReg::IdtLimit),
        };
        let place = self.memory(0, 2 + width.bytes(), false)?;
        let mut data = [0; 10];
        self.load_bytes(place, &mut data[..2 + width.bytes()]);
        let [a, b, c, d, e, f, g, h, i, j] = data;
        let address = u64::from_le_bytes([c, d, e, f, g, h, i, j]) & mask;
        if self.is_64() && !is_canonical(self.processor, address) {
            return Err(GuestFault::GP0.into());
        }
        self.processor.write(base, address);
        self.processor.write(limit, u16::from_le_bytes([a, b]).into());
        Ok(self.advance())
    }

    /// LLDT and LTR.
    pub(super) fn load_system(&mut self) -> Outcome {
        self.needs_protection()?;
        self.needs_privilege()?;
        let source = self.operand(0, Width::B2, false)?;
        let selector = self.selector(source);
        let task = self.instruction.mnemonic() == Mnemonic::Ltr;
        let name = if task { SegmentName::Tr } else { SegmentName::Ldtr };
        if selector & !3 == 0 {
            if task {
                return Err(GuestFault::GP0.into());
            }
            let nothing = Segment { selector, rights: AccessRights::UNUSABLE, ..Segment::default() };
            self.processor.set_segment(name, nothing);
            return Ok(self.advance());
        }
        let denied = selector_fault(vector::GP, selector);
        let long = self.is_ia32e();
        let size = if long { 16 } else { 8 };
        let found = if selector & 4 == 0 { descriptor::find(self.processor, selector, size)? } else { None };
        let found = found.ok_or(denied)?;
        let good = match found.system() {
            Some(2) => !task,
            Some(1) => task && !long,
            Some(9) => task,
            _ => false,
        };
        if !good {
            return Err(denied.into());
        }
        if !found.is_present() {
            return Err(selector_fault(vector::NP, selector).into());
        }
        let mut segment = found.segment(selector);
        if long {
            let above = descriptor::read(self.processor, found.at.wrapping_add(8))?;
            segment.base |= above << 32;
            // The type of the upper half is 0.
            if above >> 40 & 0x1f != 0 || !is_canonical(self.processor, segment.base) {
                return Err(denied.into());
            }
        }
        if task {
            found.mark_busy(self.processor)?;
            segment.rights.0 |= 2;
        }
        self.processor.set_segment(name, segment);
        Ok(self.advance())
    }

    /// The descriptor that a selector in a register or in memory chooses, where the program may see it.
    fn visible(&mut self, selector: u16, shown: &[u32]) -> Result<Option<Descriptor>, GuestFault> {
        if selector & !3 == 0 {
            return Ok(None);
        }
        let Some(found) = descriptor::find(self.processor, selector, 8)? else { return Ok(None) };
        let rights = found.rights();
        let long = self.is_ia32e();
        let exists = found.system().is_none_or(|kind| shown.contains(&kind) && !(long && ONLY_LEGACY.contains(&kind)));
        let conforming = rights.bit(4) && rights.bit(3) && rights.bit(2);
        let level = u8::try_from(selector & 3).unwrap_or(3).max(self.cpl());
        Ok((exists && (conforming || rights.dpl() >= level)).then_some(found))
    }

    fn set_zero_flag(&mut self, set: bool) {
        let mut flags = self.flags();
        flags.set(Rflags::ZF, set);
        self.set_flags(flags);
    }

    /// VERR and VERW.
    pub(super) fn verify(&mut self) -> Outcome {
        self.needs_protection()?;
        let source = self.operand(0, Width::B2, false)?;
        let selector = self.selector(source);
        let write = self.instruction.mnemonic() == Mnemonic::Verw;
        let good = self.visible(selector, &[])?.is_some_and(|found| {
            let rights = found.rights();
            let (code, usable) = (rights.bit(3), rights.bit(1));
            if write { !code && usable } else { !code || usable }
        });
        self.set_zero_flag(good);
        Ok(self.advance())
    }

    /// LAR and LSL.
    pub(super) fn load_rights_or_limit(&mut self) -> Outcome {
        self.needs_protection()?;
        let width = self.width(0)?;
        let source = self.operand(1, Width::B2, false)?;
        let selector = self.selector(source);
        let limit = self.instruction.mnemonic() == Mnemonic::Lsl;
        let found = self.visible(selector, if limit { &WITH_LIMIT } else { &WITH_RIGHTS })?;
        if let Some(found) = found {
            let value = if limit { found.limit().into() } else { found.value >> 32 & 0x00ff_ff00 };
            let target = self.operand(0, width, true)?;
            self.set(target, width, value & width.mask());
        }
        self.set_zero_flag(found.is_some());
        Ok(self.advance())
    }

    /// ARPL: the privilege of a selector in memory is made no better than that of one in a register.
    pub(super) fn arpl(&mut self) -> Outcome {
        self.needs_protection()?;
        let (target, source) = (self.operand(0, Width::B2, true)?, self.operand(1, Width::B2, false)?);
        let (value, least) = (self.get(target, Width::B2), self.get(source, Width::B2) & 3);
        let raises = value & 3 < least;
        if raises {
            self.set(target, Width::B2, value & !3 | least);
        }
        self.set_zero_flag(raises);
        Ok(self.advance())
    }

    /// BOUND.
    pub(super) fn bound(&mut self) -> Outcome {
        let width = Width::from_bytes(self.instruction.op0_register().size()).ok_or(self.unsupported())?;
        let index = self.register(self.instruction.op0_register());
        let place = self.memory(0, 2 * width.bytes(), false)?;
        let mut data = [0; 8];
        self.load_bytes(place, &mut data[..2 * width.bytes()]);
        let both = u64::from_le_bytes(data);
        let signed = |value| sign_extend(value, width).cast_signed();
        let (lower, upper) = (signed(both & width.mask()), signed(both >> width.bits() & width.mask()));
        if signed(index) < lower || signed(index) > upper {
            return Err(Refused::Fault(GuestFault { vector: vector::BR, error: None, cr2: None }));
        }
        Ok(self.advance())
    }
}
