//! The MSRs that a guest tried and did not get.
//!
//! Owns their numbers and how often each was tried, of so many as there is room for: a guest that tries all of them fills
//! no memory.

use alloc::vec::Vec;

/// MSRs that are told apart.
const ROWS_MAX: usize = 64;

/// One MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number.
    pub index: u32,
    /// RDMSRs that gave #GP.
    pub reads: u64,
    /// WRMSRs that gave #GP: of an MSR that is not there, or of a value that it does not take.
    pub writes: u64,
}

/// What was refused so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    rows: Vec<Row>,
    others: u64,
}

impl Refused {
    /// RDMSR, or WRMSR where `write`, of MSR `index` was refused. Whether it is to be told: the first time of this MSR.
    pub fn note(&mut self, index: u32, write: bool) -> bool {
        let known = self.rows.iter().any(|row| row.index == index);
        if !known && self.rows.len() < ROWS_MAX {
            self.rows.push(Row { index, reads: 0, writes: 0 });
        }
        let Some(row) = self.rows.iter_mut().find(|row| row.index == index) else {
            self.others = self.others.saturating_add(1);
            return false;
        };
        let count = if write { &mut row.writes } else { &mut row.reads };
        *count = count.saturating_add(1);
        !known
    }

    /// Each MSR that was tried, in the order of their first time.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Accesses to MSRs beyond those.
    pub const fn others(&self) -> u64 {
        self.others
    }

    /// All accesses that were refused.
    pub fn count(&self) -> u64 {
        self.rows.iter().fold(self.others, |sum, row| sum.saturating_add(row.reads).saturating_add(row.writes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_msr_is_told_once_and_counted_always() {
        let mut refused = Refused::default();
        assert!(refused.note(0x3a, false) && !refused.note(0x3a, true) && !refused.note(0x3a, false));
        assert!(refused.note(0x480, true));
        let rows = [Row { index: 0x3a, reads: 2, writes: 1 }, Row { index: 0x480, reads: 0, writes: 1 }];
        assert_eq!((refused.rows(), refused.count()), (&rows[..], 4));
    }

    #[test]
    fn a_guest_that_tries_all_of_them_fills_no_memory() {
        let mut refused = Refused::default();
        let told = (0..100_000).filter(|index| refused.note(*index, false)).count();
        assert_eq!((told, refused.rows().len(), refused.others()), (64, 64, 99_936));
        assert_eq!(refused.count(), 100_000);
        assert!(!refused.note(5, true) && refused.rows()[5].writes == 1);
    }
}
