//! XCHG, XADD, CMPXCHG and its wide forms.
//!
//! LOCK, or the lock that XCHG implies, needs nothing here: the devices of a VM have one user at a time. Where memory
//! that several virtual processors share is written, the caller's access must be atomic.

use iced_x86::Mnemonic;
use lamina_arch::cr::Rflags;
use lamina_arch::event::GuestFault;
use lamina_arch::exit::Width;
use lamina_arch::regs::Gpr;

use super::operand::Operand;
use super::{Context, Outcome, Processor, alu};

impl<P: Processor> Context<'_, P> {
    /// XCHG.
    pub(super) fn xchg(&mut self) -> Outcome {
        let width = self.width(0)?;
        let (first, second) = (self.operand(0, width, true)?, self.operand(1, width, true)?);
        let (left, right) = (self.get(first, width), self.get(second, width));
        self.set(first, width, right);
        self.set(second, width, left);
        Ok(self.advance())
    }

    /// XADD.
    pub(super) fn xadd(&mut self) -> Outcome {
        let width = self.width(0)?;
        let (target, source) = (self.operand(0, width, true)?, self.operand(1, width, true)?);
        let (left, right) = (self.get(target, width), self.get(source, width));
        let (sum, flags) = alu::add(left, right, false, width, self.flags());
        self.set(source, width, left);
        self.set(target, width, sum);
        self.set_flags(flags);
        Ok(self.advance())
    }

    /// CMPXCHG. Memory gets a write whatever the comparison says, a register does not.
    pub(super) fn cmpxchg(&mut self) -> Outcome {
        let width = self.width(0)?;
        let (target, source) = (self.operand(0, width, true)?, self.operand(1, width, false)?);
        let (found, new) = (self.get(target, width), self.get(source, width));
        let expected = self.low(Gpr::Rax, width);
        let (_, flags) = alu::sub(expected, found, false, width, self.flags());
        if found == expected {
            self.set(target, width, new);
        } else {
            if let Operand::Memory(place) = target {
                self.store(place, width, found);
            }
            self.set_low(Gpr::Rax, width, found);
        }
        self.set_flags(flags);
        Ok(self.advance())
    }

    /// CMPXCHG8B and CMPXCHG16B.
    pub(super) fn cmpxchg_pair(&mut self) -> Outcome {
        let half = if self.instruction.mnemonic() == Mnemonic::Cmpxchg16b { Width::B8 } else { Width::B4 };
        let length = 2 * half.bytes();
        let segment = self.data_segment();
        let offset = self.effective_address(0);
        if half == Width::B8 && !self.linear(segment, offset, length, true)?.is_aligned(16) {
            return Err(GuestFault::GP0.into());
        }
        let place = self.place(segment, offset, length, true)?;
        let mut data = [0; 16];
        let data = &mut data[..length];
        self.load_bytes(place, data);
        let mut halves = [0; 2];
        for (value, bytes) in halves.iter_mut().zip(data.chunks_exact(half.bytes())) {
            *value = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        }
        let equal = halves == [self.low(Gpr::Rax, half), self.low(Gpr::Rdx, half)];
        if equal {
            let new = [self.low(Gpr::Rbx, half), self.low(Gpr::Rcx, half)];
            for (value, bytes) in new.iter().zip(data.chunks_exact_mut(half.bytes())) {
                bytes.copy_from_slice(&value.to_le_bytes()[..half.bytes()]);
            }
        }
        self.store_bytes(place, data);
        if !equal {
            self.set_low(Gpr::Rax, half, halves[0]);
            self.set_low(Gpr::Rdx, half, halves[1]);
        }
        let mut flags = self.flags();
        flags.set(Rflags::ZF, equal);
        self.set_flags(flags);
        Ok(self.advance())
    }
}
