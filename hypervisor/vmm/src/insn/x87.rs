//! Moves between memory and the x87 stack: loads and stores of each format, the control and the status word (SDM vol. 2,
//! the instructions; vol. 1, "x87 FPU Instruction Set").
//!
//! Arithmetic with an operand in memory is not here, nor are the instructions that move the whole state (FNSAVE, FNSTENV,
//! FXSAVE and their kin): no device has registers for either.

mod convert;
mod state;

use iced_x86::{MemorySize, Mnemonic};
use lamina_arch::cr::Cr0;
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::regs::{ExtendedRegister, SysReg};

use super::{Context, Outcome, Processor, Refused};
use convert::{Converted, DOUBLE, Extended, Rounding, SINGLE};
use state::exception::{INVALID, OVERFLOW, UNDERFLOW};

pub use state::State;

/// Most bytes of an operand.
const OPERAND: usize = 10;

/// Bytes of an operand as a value, zero-extended.
fn low(data: [u8; OPERAND]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = data;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// A value as the bytes of an operand.
fn operand(value: u64) -> [u8; OPERAND] {
    let mut data = [0; OPERAND];
    data[..8].copy_from_slice(&value.to_le_bytes());
    data
}

impl<P: Processor> Context<'_, P> {
    /// The x87 state.
    pub(super) fn x87_state(&mut self) -> State {
        let mut bytes = [0; ExtendedRegister::X87.size()];
        self.processor.extended(ExtendedRegister::X87, &mut bytes);
        State::new(bytes)
    }

    pub(super) fn set_x87_state(&mut self, state: &State) {
        self.processor.set_extended(ExtendedRegister::X87, state.bytes());
    }

    /// A move between the x87 and memory.
    pub(super) fn x87(&mut self) -> Outcome {
        use Mnemonic as M;
        let mnemonic = self.instruction.mnemonic();
        let length = match self.instruction.memory_size() {
            MemorySize::Unknown => return Err(self.unsupported()),
            size => size.size(),
        };
        let store = !matches!(mnemonic, M::Fld | M::Fild | M::Fbld | M::Fldcw);
        if self.processor.read(SysReg::Cr0) & (Cr0::EM | Cr0::TS).bits() != 0 {
            return Err(GuestFault { vector: vector::NM, error: None, cr2: None }.into());
        }
        let mut state = self.x87_state();
        if state.waits() && !matches!(mnemonic, M::Fnstcw | M::Fnstsw) {
            return Err(GuestFault { vector: vector::MF, error: None, cr2: None }.into());
        }
        let offset = self.effective_address(0);
        let place = self.memory(0, length, store)?;
        let mut data = [0; OPERAND];
        let Some(part) = data.get_mut(..length) else { return Err(self.unsupported()) };
        if store {
            let stored = match mnemonic {
                M::Fnstcw => Some(operand(state.control().into())),
                M::Fnstsw => Some(operand(state.status().into())),
                _ => self.x87_store(&mut state, offset)?,
            };
            if let Some(stored) = stored {
                self.store_bytes(place, &stored[..length]);
            }
        } else {
            self.load_bytes(place, part);
            if mnemonic == M::Fldcw {
                state.set_control(u16::from_le_bytes([data[0], data[1]]));
            } else {
                self.x87_load(&mut state, data, offset)?;
            }
        }
        self.set_x87_state(&state);
        Ok(self.advance())
    }

    /// Loads `data` on the stack. Where an exception is not masked, nothing is.
    fn x87_load(&mut self, state: &mut State, data: [u8; OPERAND], offset: u64) -> Result<(), Refused> {
        let bits = low(data);
        let signed = |value: i64| Extended::from_integer(value < 0, value.unsigned_abs());
        let whole = |value| Converted { value, exceptions: 0, unmasked_only: 0, rounded_up: false };
        let loaded = match self.instruction.memory_size() {
            MemorySize::Float32 => Extended::widen(bits, SINGLE),
            MemorySize::Float64 => Extended::widen(bits, DOUBLE),
            MemorySize::Float80 => whole(Extended::from_bytes(data)),
            MemorySize::Bcd => whole(convert::from_decimal(data)),
            MemorySize::Int16 => whole(signed(i64::from((bits & 0xffff) as u16 as i16))),
            MemorySize::Int32 => whole(signed(i64::from((bits & 0xffff_ffff) as u32 as i32))),
            MemorySize::Int64 => whole(signed(bits.cast_signed())),
            _ => return Err(self.unsupported()),
        };
        state.note(self.instruction.ip(), offset);
        if !state.is_empty(7) {
            if state.stack_fault(true) {
                state.push(Extended::INDEFINITE);
            }
            return Ok(());
        }
        state.set_rounded_up(false);
        if state.raise(loaded.exceptions) {
            state.push(loaded.value);
        }
        Ok(())
    }

    /// What is stored of ST0, with the stack popped where the instruction does so. `None` where an exception is not
    /// masked: then neither happens.
    fn x87_store(&mut self, state: &mut State, offset: u64) -> Result<Option<[u8; OPERAND]>, Refused> {
        use Mnemonic as M;
        let mnemonic = self.instruction.mnemonic();
        let rounding = if mnemonic == M::Fisttp { Rounding::Zero } else { Rounding::of(state.control()) };
        let pops = matches!(mnemonic, M::Fstp | M::Fistp | M::Fisttp | M::Fbstp);
        let empty = state.is_empty(0);
        let value = if empty { Extended::INDEFINITE } else { state.get() };
        let integer = |bits: u32| {
            let largest = (1u64 << (bits - 1)) - 1;
            let converted = value.to_integer(largest, 1, rounding);
            let signed = |(negative, value): (bool, u64)| if negative { value.wrapping_neg() } else { value };
            with(converted, operand(converted.value.map_or(1 << (bits - 1), signed)))
        };
        let real = |format| {
            let converted = value.narrow(format, rounding);
            with(converted, operand(converted.value))
        };
        let stored = match self.instruction.memory_size() {
            MemorySize::Float32 => real(SINGLE),
            MemorySize::Float64 => real(DOUBLE),
            MemorySize::Float80 => {
                Converted { value: value.to_bytes(), exceptions: 0, unmasked_only: 0, rounded_up: false }
            }
            MemorySize::Bcd => {
                let converted = value.to_integer(convert::LARGEST_DECIMAL, 0, rounding);
                with(converted, convert::to_decimal(converted.value))
            }
            MemorySize::Int16 => integer(16),
            MemorySize::Int32 => integer(32),
            MemorySize::Int64 => integer(64),
            _ => return Err(self.unsupported()),
        };
        state.note(self.instruction.ip(), offset);
        let done = if empty {
            state.stack_fault(false)
        } else {
            let tiny = stored.unmasked_only & !state.control();
            let prevents = (INVALID | OVERFLOW | UNDERFLOW) & !state.control() & (stored.exceptions | tiny);
            // What was not stored was not rounded.
            let exceptions = if prevents != 0 { prevents } else { stored.exceptions };
            state.set_rounded_up(prevents == 0 && stored.rounded_up);
            state.raise(exceptions);
            prevents == 0
        };
        if !done {
            return Ok(None);
        }
        if pops {
            state.pop();
        }
        Ok(Some(stored.value))
    }
}

/// `converted` with another value.
fn with<T, U>(converted: Converted<T>, value: U) -> Converted<U> {
    let Converted { exceptions, unmasked_only, rounded_up, .. } = converted;
    Converted { value, exceptions, unmasked_only, rounded_up }
}
