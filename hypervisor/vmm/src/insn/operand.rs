//! Registers and operands.

use iced_x86::{OpKind, Register};
use lamina_arch::cr::Rflags;
use lamina_arch::exit::Width;
use lamina_arch::regs::{Gpr, SysReg};

use super::address::Place;
use super::{Context, Processor, Refused};

/// An operand whose place is known and may be used.
#[derive(Clone, Copy, Debug)]
pub enum Operand {
    /// A general-purpose register or a part of one.
    Register(Register),
    /// Memory.
    Memory(Place),
    /// A constant, sign-extended.
    Immediate(u64),
}

/// `value`, which has `width`, sign-extended.
pub fn sign_extend(value: u64, width: Width) -> u64 {
    let unused = 64 - width.bits();
    (value << unused).cast_signed().wrapping_shr(unused).cast_unsigned()
}

/// The register that holds `register`, and how far up in it.
fn holder(register: Register) -> (Gpr, u32) {
    match register {
        Register::AH => (Gpr::Rax, 8),
        Register::CH => (Gpr::Rcx, 8),
        Register::DH => (Gpr::Rdx, 8),
        Register::BH => (Gpr::Rbx, 8),
        _ => (Gpr::from_encoding(u8::try_from(register.full_register().number()).unwrap_or(0)), 0),
    }
}

impl<P: Processor> Context<'_, P> {
    /// The value of a general-purpose register or a part of one, zero-extended.
    pub(super) fn register(&mut self, register: Register) -> u64 {
        let (gpr, shift) = holder(register);
        let value = self.processor.gpr(gpr) >> shift;
        Width::from_bytes(register.size()).map_or(value, |width| value & width.mask())
    }

    /// Writes a general-purpose register as the processor does: 32 bits clear the upper half, 8 and 16 keep the rest.
    pub(super) fn set_register(&mut self, register: Register, value: u64) {
        let (gpr, shift) = holder(register);
        let value = match register.size() {
            8 => value,
            // A planted bug, found by `planted_bugs`.
            4 if cfg!(feature = "plant-width") => self.processor.gpr(gpr) & !0xffff_ffff | value & 0xffff_ffff,
            4 => value & 0xffff_ffff,
            size => {
                let mask = if size == 2 { 0xffff } else { 0xff };
                self.processor.gpr(gpr) & !(mask << shift) | (value & mask) << shift
            }
        };
        self.processor.set_gpr(gpr, value);
    }

    /// The part of `gpr` that has `width`.
    pub(super) fn low(&mut self, gpr: Gpr, width: Width) -> u64 {
        self.processor.gpr(gpr) & width.mask()
    }

    /// Writes the part of `gpr` that has `width`, as an instruction of that width does.
    pub(super) fn set_low(&mut self, gpr: Gpr, width: Width, value: u64) {
        let value = match width {
            Width::B1 | Width::B2 => self.processor.gpr(gpr) & !width.mask() | value & width.mask(),
            Width::B4 | Width::B8 => value & width.mask(),
        };
        self.processor.set_gpr(gpr, value);
    }

    pub(super) fn flags(&mut self) -> Rflags {
        Rflags::from_bits_retain(self.processor.read(SysReg::Rflags))
    }

    pub(super) fn set_flags(&mut self, flags: Rflags) {
        self.processor.write(SysReg::Rflags, flags.bits());
    }

    /// Width of operand `n`.
    pub(super) fn width(&self, n: u32) -> Result<Width, Refused> {
        let bytes = match self.instruction.op_kind(n) {
            OpKind::Memory => self.instruction.memory_size().size(),
            _ => self.instruction.op_register(n).size(),
        };
        Width::from_bytes(bytes).ok_or(self.unsupported())
    }

    /// Operand `n`, of `width`, to be read or (`write`) written too.
    ///
    /// # Errors
    /// The fault that the guest gets; an operand that is none of [`Operand`].
    pub(super) fn operand(&mut self, n: u32, width: Width, write: bool) -> Result<Operand, Refused> {
        match self.instruction.op_kind(n) {
            OpKind::Memory => Ok(Operand::Memory(self.memory(0, width.bytes(), write)?)),
            OpKind::Register => {
                let register = self.instruction.op_register(n);
                if register.is_gpr() { Ok(Operand::Register(register)) } else { Err(self.unsupported()) }
            }
            _ => self.instruction.try_immediate(n).map(Operand::Immediate).map_err(|_| self.unsupported()),
        }
    }

    /// The value of an operand, zero-extended.
    pub(super) fn get(&mut self, operand: Operand, width: Width) -> u64 {
        match operand {
            Operand::Register(register) => self.register(register),
            Operand::Memory(place) => self.load(place, width),
            Operand::Immediate(value) => value & width.mask(),
        }
    }

    pub(super) fn set(&mut self, operand: Operand, width: Width, value: u64) {
        match operand {
            Operand::Register(register) => self.set_register(register, value),
            Operand::Memory(place) => self.store(place, width, value),
            Operand::Immediate(_) => {}
        }
    }
}
