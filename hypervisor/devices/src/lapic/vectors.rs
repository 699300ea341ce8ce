//! One bit for each of the 256 interrupt vectors, as IRR, ISR and TMR hold them.

use super::registers::Registers;

/// A set of vectors: eight registers of 32 bits each, from number `FIRST` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vectors<const FIRST: u32> {
    /// Bit n: register n may have a bit set. Where it has not, nothing need be read.
    occupied: u8,
    /// The vector of the highest priority, so that it need not be looked for; 0 where there is none, as no interrupt has
    /// that vector. Of no use while others set bits.
    top: u8,
    /// Others set bits too, and tell nobody: every register may have one.
    shared: bool,
}

impl<const FIRST: u32> Vectors<FIRST> {
    /// The set in registers that are 0.
    pub(super) const fn new() -> Self {
        Vectors { occupied: 0, top: 0, shared: false }
    }

    /// Others set bits from now on, or no longer.
    pub(super) fn share(&mut self, registers: &Registers, shared: bool) {
        self.shared = shared;
        self.occupied = u8::MAX;
        self.top = self.find(registers);
    }

    /// The register that has the bit of `vector`.
    #[inline(always)]
    const fn register(vector: u8) -> u32 {
        FIRST + (vector >> 5) as u32
    }

    #[inline]
    pub(super) fn contains(self, registers: &Registers, vector: u8) -> bool {
        registers.read(Self::register(vector)) & 1 << (vector & 31) != 0
    }

    #[inline(always)]
    pub(super) fn insert(&mut self, registers: &Registers, vector: u8) {
        let number = Self::register(vector);
        registers.write(number, registers.read(number) | 1 << (vector & 31));
        self.occupied |= 1 << (vector >> 5);
        self.top = self.top.max(vector);
    }

    #[inline(always)]
    pub(super) fn remove(&mut self, registers: &Registers, vector: u8) {
        let (number, bit) = (Self::register(vector), 1 << (vector & 31));
        let old = registers.read(number);
        if old & bit == 0 {
            return;
        }
        registers.write(number, old & !bit);
        if old == bit && !self.shared {
            self.occupied &= !(1 << (vector >> 5));
        }
        if vector == self.top {
            self.top = self.find(registers);
        }
    }

    /// The vector of the highest priority.
    #[inline(always)]
    pub(super) fn highest(self, registers: &Registers) -> Option<u8> {
        let top = if self.shared { self.find(registers) } else { self.top };
        (top != 0).then_some(top)
    }

    /// The vector of the highest priority, as the registers have it; 0 where there is none.
    #[inline]
    fn find(self, registers: &Registers) -> u8 {
        let mut occupied = self.occupied;
        while let Some(n) = occupied.checked_ilog2() {
            if let Some(bit) = registers.read(FIRST + n).checked_ilog2() {
                return ((n << 5 | bit) & 0xff) as u8;
            }
            occupied &= !(1 << n);
        }
        0
    }
}
