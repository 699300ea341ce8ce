//! One bit for each of the 256 interrupt vectors, as IRR, ISR and TMR hold them.

/// A set of vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vectors([u64; 4]);

impl Vectors {
    pub(super) const NONE: Vectors = Vectors([0; 4]);

    pub(super) const fn contains(&self, vector: u8) -> bool {
        self.0[(vector >> 6) as usize] & (1 << (vector & 63)) != 0
    }

    pub(super) const fn set(&mut self, vector: u8, present: bool) {
        let word = &mut self.0[(vector >> 6) as usize];
        let bit = 1 << (vector & 63);
        *word = if present { *word | bit } else { *word & !bit };
    }

    /// The vector of the highest priority.
    pub(super) fn highest(&self) -> Option<u8> {
        (0..4u8).rev().find_map(|n| {
            let word = self.0[usize::from(n)];
            let bit = word.checked_ilog2()?;
            Some(n << 6 | u8::try_from(bit).ok()?)
        })
    }

    /// 32 of the bits, as register `n` (0 to 7) shows them.
    pub(super) const fn register(&self, n: u32) -> u32 {
        let word = self.0[(n >> 1 & 3) as usize];
        if n & 1 == 0 { (word & 0xffff_ffff) as u32 } else { (word >> 32) as u32 }
    }
}
