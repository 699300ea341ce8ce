//! One bit for each of the 256 interrupt vectors, as IRR, ISR and TMR hold them.

use super::registers::Registers;

/// A set of vectors: eight registers of 32 bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vectors {
    /// Number of the first register.
    first: u32,
    /// Bit n: register n may have a bit set. Where it has not, nothing need be read.
    occupied: u8,
}

impl Vectors {
    /// The set in eight registers from number `first`, which are 0.
    pub(super) const fn new(first: u32) -> Vectors {
        Vectors { first, occupied: 0 }
    }

    const fn register(self, vector: u8) -> u32 {
        self.first + (vector >> 5) as u32
    }

    pub(super) fn contains(self, registers: &Registers, vector: u8) -> bool {
        registers.read(self.register(vector)) & 1 << (vector & 31) != 0
    }

    pub(super) fn set(&mut self, registers: &Registers, vector: u8, present: bool) {
        let (number, bit) = (self.register(vector), 1 << (vector & 31));
        let old = registers.read(number);
        let new = if present { old | bit } else { old & !bit };
        registers.write(number, new);
        let occupied = 1 << (vector >> 5);
        self.occupied = if new == 0 { self.occupied & !occupied } else { self.occupied | occupied };
    }

    /// The vector of the highest priority.
    pub(super) fn highest(self, registers: &Registers) -> Option<u8> {
        let n = u8::try_from(self.occupied.checked_ilog2()?).ok()?;
        let bit = registers.read(self.first + u32::from(n)).checked_ilog2()?;
        Some(n << 5 | u8::try_from(bit).ok()?)
    }
}
