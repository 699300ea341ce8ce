//! Instructions that exited on a memory-mapped register and are finished in software.
//!
//! Decoding is `iced-x86`'s; executing is ours. What is here: MOV, MOVZX, MOVSX, MOVSXD, XCHG, the two-operand
//! arithmetic and logic instructions, TEST, and STOS, with one memory operand. Anything else is refused by name, never
//! guessed. Owns no state.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use lamina_arch::cr::Rflags;
use lamina_arch::exit::Width;
use lamina_arch::regs::{Gpr, SysReg};

use crate::vcpu::Vcpu;

/// Longest instruction. Unit: bytes.
pub const MAX_LENGTH: usize = 15;

/// Why an instruction was not executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The bytes are no instruction, or not all of it was there.
    Undecodable,
    /// This instruction, or this form of it, is not emulated.
    Unsupported,
}

/// What is left to do after an instruction was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Go past it: its length. Unit: bytes.
    Advance(u8),
    /// A repeated string instruction with iterations left: enter the guest at the same place.
    Again,
}

/// The device side of the one memory operand.
pub trait Operand {
    /// Reads a value, zero-extended.
    fn read(&mut self, width: Width) -> u64;
    /// Writes the low bits of `value`.
    fn write(&mut self, value: u64, width: Width);
}

/// Decodes the instruction at the start of `bytes`, of a guest in a code segment of `bits` (16, 32 or 64) at `rip`.
///
/// # Errors
/// [`Refused::Undecodable`].
pub fn decode(bytes: &[u8], bits: u32, rip: u64) -> Result<Instruction, Refused> {
    let bits = if matches!(bits, 16 | 32) { bits } else { 64 };
    let mut decoder = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.code() == Code::INVALID { Err(Refused::Undecodable) } else { Ok(instruction) }
}

/// Executes `instruction`, whose one memory operand is `operand`.
///
/// # Errors
/// [`Refused::Unsupported`], with nothing changed.
pub fn execute<V: Vcpu>(vcpu: &mut V, instruction: &Instruction, operand: &mut dyn Operand) -> Result<Done, Refused> {
    let done = Done::Advance(length(instruction));
    match instruction.mnemonic() {
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            return store_string(vcpu, instruction, operand);
        }
        _ if instruction.op_count() != 2 => return Err(Refused::Unsupported),
        _ => {}
    }
    let width = Width::from_bytes(instruction.memory_size().size()).ok_or(Refused::Unsupported)?;
    let to_memory = instruction.op0_kind() == OpKind::Memory;
    // A form of the same instruction between registers touches no memory.
    if !to_memory && instruction.op1_kind() != OpKind::Memory {
        return Err(Refused::Unsupported);
    }
    let other = if to_memory { 1 } else { 0 };
    let register = (instruction.op_kind(other) == OpKind::Register).then(|| instruction.op_register(other));
    if register.is_some_and(|r| !r.is_gpr()) {
        return Err(Refused::Unsupported);
    }
    let value = match register {
        Some(r) => get(vcpu, r),
        None => instruction.try_immediate(other).map_err(|_| Refused::Unsupported)?,
    };
    match instruction.mnemonic() {
        Mnemonic::Mov if to_memory => operand.write(value, width),
        Mnemonic::Mov | Mnemonic::Movzx => {
            let r = register.ok_or(Refused::Unsupported)?;
            let loaded = operand.read(width);
            set(vcpu, r, loaded);
        }
        Mnemonic::Movsx | Mnemonic::Movsxd => {
            let r = register.ok_or(Refused::Unsupported)?;
            let loaded = sign_extend(operand.read(width), width);
            set(vcpu, r, loaded);
        }
        Mnemonic::Xchg => {
            let r = register.ok_or(Refused::Unsupported)?;
            let loaded = operand.read(width);
            operand.write(value, width);
            set(vcpu, r, loaded);
        }
        mnemonic => {
            let operation = Operation::of(mnemonic).ok_or(Refused::Unsupported)?;
            let memory = operand.read(width);
            let (left, right) = if to_memory { (memory, value) } else { (value, memory) };
            let flags = Rflags::from_bits_retain(vcpu.read(SysReg::Rflags));
            let (result, flags) = operation.apply(left, right, width, flags);
            if operation.stores() {
                match register {
                    Some(r) if !to_memory => set(vcpu, r, result),
                    _ => operand.write(result, width),
                }
            }
            vcpu.write(SysReg::Rflags, flags.bits());
        }
    }
    Ok(done)
}

/// STOS, one iteration.
fn store_string<V: Vcpu>(vcpu: &mut V, instruction: &Instruction, operand: &mut dyn Operand) -> Result<Done, Refused> {
    let done = Done::Advance(length(instruction));
    let width = Width::from_bytes(instruction.memory_size().size()).ok_or(Refused::Unsupported)?;
    let (index, counter) = match instruction.op0_kind() {
        OpKind::MemoryESDI => (Register::DI, Register::CX),
        OpKind::MemoryESEDI => (Register::EDI, Register::ECX),
        _ => (Register::RDI, Register::RCX),
    };
    let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let count = get(vcpu, counter);
    if repeated && count == 0 {
        return Ok(done);
    }
    let value = vcpu.gprs().get(Gpr::Rax);
    operand.write(value, width);
    let backwards = vcpu.read(SysReg::Rflags) & Rflags::DF.bits() != 0;
    let bytes = width.bytes() as u64;
    let step = if backwards { bytes.wrapping_neg() } else { bytes };
    let next = get(vcpu, index).wrapping_add(step);
    set(vcpu, index, next);
    if !repeated {
        return Ok(done);
    }
    set(vcpu, counter, count - 1);
    Ok(if count == 1 { done } else { Done::Again })
}

/// The arithmetic and logic instructions of two operands.
#[derive(Clone, Copy, PartialEq)]
enum Operation {
    Add,
    Adc,
    Sub,
    Sbb,
    Cmp,
    And,
    Or,
    Xor,
    Test,
}

impl Operation {
    const fn of(mnemonic: Mnemonic) -> Option<Operation> {
        Some(match mnemonic {
            Mnemonic::Add => Operation::Add,
            Mnemonic::Adc => Operation::Adc,
            Mnemonic::Sub => Operation::Sub,
            Mnemonic::Sbb => Operation::Sbb,
            Mnemonic::Cmp => Operation::Cmp,
            Mnemonic::And => Operation::And,
            Mnemonic::Or => Operation::Or,
            Mnemonic::Xor => Operation::Xor,
            Mnemonic::Test => Operation::Test,
            _ => return None,
        })
    }

    const fn stores(self) -> bool {
        !matches!(self, Operation::Cmp | Operation::Test)
    }

    /// Result and flags of `left op right`, both of `width`.
    fn apply(self, left: u64, right: u64, width: Width, flags: Rflags) -> (u64, Rflags) {
        let mask = width.mask();
        let (left, right) = (left & mask, right & mask);
        let sign = 1u64 << (width.bits() - 1);
        let carry_in = u64::from(flags.contains(Rflags::CF));
        let (result, carry, overflow) = match self {
            Operation::And | Operation::Test => (left & right, false, false),
            Operation::Or => (left | right, false, false),
            Operation::Xor => (left ^ right, false, false),
            Operation::Add | Operation::Adc => {
                let carry_in = if self == Operation::Adc { carry_in } else { 0 };
                let sum = u128::from(left) + u128::from(right) + u128::from(carry_in);
                let result = left.wrapping_add(right).wrapping_add(carry_in) & mask;
                (result, sum > u128::from(mask), (left ^ result) & (right ^ result) & sign != 0)
            }
            Operation::Sub | Operation::Sbb | Operation::Cmp => {
                let carry_in = if self == Operation::Sbb { carry_in } else { 0 };
                let borrow = u128::from(left) < u128::from(right) + u128::from(carry_in);
                let result = left.wrapping_sub(right).wrapping_sub(carry_in) & mask;
                (result, borrow, (left ^ right) & (left ^ result) & sign != 0)
            }
        };
        let logic = matches!(self, Operation::And | Operation::Or | Operation::Xor | Operation::Test);
        let mut flags = flags - (Rflags::CF | Rflags::PF | Rflags::AF | Rflags::ZF | Rflags::SF | Rflags::OF);
        flags.set(Rflags::CF, carry);
        flags.set(Rflags::OF, overflow);
        flags.set(Rflags::ZF, result == 0);
        flags.set(Rflags::SF, result & sign != 0);
        flags.set(Rflags::PF, (result & 0xff).count_ones() % 2 == 0);
        flags.set(Rflags::AF, !logic && (left ^ right ^ result) & 0x10 != 0);
        (result, flags)
    }
}

/// The length of an instruction. Unit: bytes, at most [`MAX_LENGTH`].
fn length(instruction: &Instruction) -> u8 {
    u8::try_from(instruction.len()).unwrap_or(0)
}

fn sign_extend(value: u64, width: Width) -> u64 {
    let unused = 64 - width.bits();
    ((value << unused).cast_signed() >> unused).cast_unsigned()
}

/// Whether `register` is AH, CH, DH or BH, and the register whose bits 15:8 it is.
fn high_byte(register: Register) -> Option<Gpr> {
    match register {
        Register::AH => Some(Gpr::Rax),
        Register::CH => Some(Gpr::Rcx),
        Register::DH => Some(Gpr::Rdx),
        Register::BH => Some(Gpr::Rbx),
        _ => None,
    }
}

fn full_get<V: Vcpu>(vcpu: &mut V, gpr: Gpr) -> u64 {
    if gpr == Gpr::Rsp { vcpu.read(SysReg::Rsp) } else { vcpu.gprs().get(gpr) }
}

fn number(register: Register) -> Gpr {
    Gpr::from_encoding(u8::try_from(register.full_register().number()).unwrap_or(0))
}

/// The value of a general-purpose register operand, zero-extended.
pub fn get<V: Vcpu>(vcpu: &mut V, register: Register) -> u64 {
    if let Some(gpr) = high_byte(register) {
        return full_get(vcpu, gpr) >> 8 & 0xff;
    }
    let value = full_get(vcpu, number(register));
    match register.size() {
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

/// Writes a general-purpose register operand as the processor does: 32 bits clear the upper half, 8 and 16 keep the
/// rest.
pub fn set<V: Vcpu>(vcpu: &mut V, register: Register, value: u64) {
    let (gpr, merged) = if let Some(gpr) = high_byte(register) {
        (gpr, full_get(vcpu, gpr) & !0xff00 | (value & 0xff) << 8)
    } else {
        let gpr = number(register);
        let merged = match register.size() {
            1 => full_get(vcpu, gpr) & !0xff | value & 0xff,
            2 => full_get(vcpu, gpr) & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
        (gpr, merged)
    };
    if gpr == Gpr::Rsp { vcpu.write(SysReg::Rsp, merged) } else { vcpu.gprs().set(gpr, merged) }
}

#[cfg(test)]
mod tests;
