//! Entries of AMD's nested page tables: those of ordinary long-mode page tables, walked for a user (APM vol. 2, "Nested
//! Table Walk" and "Page-Translation-Table Entry Fields").

use lamina_arch::addr::Hpa;

use super::{Access, Entry, EntryFormat, Level};
use crate::frames::FrameSize;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
/// Every access of a guest's counts as one of a user's.
const USER: u64 = 1 << 2;
/// Set from the start, so that the processor never writes the tables by itself.
const ACCESSED: u64 = 1 << 5;
/// The same for the entries that map pages.
const DIRTY: u64 = 1 << 6;
/// The entry maps a page instead of naming a table.
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51:12: all that any processor's physical addresses can have.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What the processor's nested page tables can do. Memory is write-back: PWT, PCD and PAT are 0, which selects the first
/// type of the host's PAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Npt {
    /// The largest page: 1 GiB where the processor's own tables have it, else 2 MiB.
    pub largest: FrameSize,
}

impl EntryFormat for Npt {
    fn largest(&self) -> FrameSize {
        self.largest
    }

    fn can_express(&self, access: Access) -> bool {
        access.read
    }

    fn table(&self, table: Hpa) -> u64 {
        table.0 & ADDRESS | PRESENT | WRITE | USER | ACCESSED
    }

    fn leaf(&self, frame: Hpa, size: FrameSize, access: Access) -> u64 {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        frame.0 & ADDRESS
            | PRESENT
            | USER
            | ACCESSED
            | DIRTY
            | bit(size != FrameSize::Size4K, LARGE)
            | bit(access.write, WRITE)
            | bit(!access.execute, NO_EXECUTE)
    }

    fn decode(&self, entry: u64, level: Level) -> Entry {
        if entry & PRESENT == 0 {
            return Entry::NotPresent;
        }
        let address = Hpa(entry & ADDRESS);
        match level.page() {
            Some(size) if size == FrameSize::Size4K || entry & LARGE != 0 => Entry::Leaf {
                frame: address.align_down(size.bytes()),
                access: Access { read: true, write: entry & WRITE != 0, execute: entry & NO_EXECUTE == 0 },
            },
            _ => Entry::Table(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NPT: Npt = Npt { largest: FrameSize::Size1G };

    #[test]
    fn entries_are_those_of_the_manual() {
        assert_eq!(NPT.table(Hpa(0x1234_5000)), 0x1234_5027);
        assert_eq!(NPT.leaf(Hpa(0x5000), FrameSize::Size4K, Access::RWX), 0x5067);
        assert_eq!(NPT.leaf(Hpa(0x20_0000), FrameSize::Size2M, Access::RX), 0x20_00e5);
        assert_eq!(NPT.leaf(Hpa(0x4000_0000), FrameSize::Size1G, Access::R), 0x8000_0000_4000_00e5);
    }

    #[test]
    fn decoding_turns_entries_back() {
        for (level, size) in [(1, FrameSize::Size4K), (2, FrameSize::Size2M), (3, FrameSize::Size1G)] {
            for access in [Access::R, Access::RW, Access::RX, Access::RWX] {
                let entry = NPT.leaf(Hpa(0x8000_0000), size, access);
                let level = Level::new(level).unwrap();
                assert_eq!(NPT.decode(entry, level), Entry::Leaf { frame: Hpa(0x8000_0000), access });
            }
        }
        for level in 2..=4 {
            let entry = NPT.table(Hpa(0xf_ffff_ffff_f000));
            assert_eq!(NPT.decode(entry, Level::new(level).unwrap()), Entry::Table(Hpa(0xf_ffff_ffff_f000)));
        }
        assert_eq!(NPT.decode(0xfff8 << 8, Level::TOP), Entry::NotPresent);
    }

    #[test]
    fn what_is_present_can_be_read() {
        for (write, execute) in [(false, false), (false, true), (true, false), (true, true)] {
            assert!(NPT.can_express(Access { read: true, write, execute }));
            assert!(!NPT.can_express(Access { read: false, write, execute }));
        }
    }
}
