//! One bit for each of the 256 interrupt vectors, as IRR, ISR and TMR hold them.

use super::registers::Registers;

/// A set of vectors: eight registers of 32 bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vectors {
    /// Number of the first register.
    first: u32,
    /// Bit n: register n may have a bit set. Where it has not, nothing need be read.
    occupied: u8,
    /// Others set bits too, and tell nobody: every register may have one.
    shared: bool,
}

impl Vectors {
    /// The set in eight registers from number `first`, which are 0.
    pub(super) const fn new(first: u32) -> Vectors {
        Vectors { first, occupied: 0, shared: false }
    }

    /// Others set bits from now on, or no longer.
    pub(super) fn share(&mut self, shared: bool) {
        self.shared = shared;
        self.occupied = u8::MAX;
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
        if new != 0 {
            self.occupied |= occupied;
        } else if !self.shared {
            self.occupied &= !occupied;
        }
    }

    /// The vector of the highest priority.
    pub(super) fn highest(self, registers: &Registers) -> Option<u8> {
        let mut occupied = self.occupied;
        while let Some(n) = occupied.checked_ilog2() {
            if let Some(bit) = registers.read(self.first + n).checked_ilog2() {
                return u8::try_from(n << 5 | bit).ok();
            }
            occupied &= !(1 << n);
        }
        None
    }
}
