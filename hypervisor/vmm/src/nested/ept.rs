//! Entries of Intel's extended page tables (SDM vol. 3, "The Extended Page Table Mechanism", tables "Format of an EPT
//! … Entry").

use lamina_arch::addr::Hpa;

use super::{Access, Entry, EntryFormat, Level};
use crate::frames::FrameSize;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
/// Memory type of a leaf, bits 5:3: write-back.
const WRITE_BACK: u64 = 6 << 3;
/// The entry maps a page instead of naming a table.
const LARGE: u64 = 1 << 7;
/// Bits 51:12: all that any processor's physical addresses can have.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What the processor's extended page tables can do (SDM vol. 3, "VPID and EPT Capabilities", IA32_VMX_EPT_VPID_CAP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ept {
    /// Bit 0: translations may allow to execute and nothing else.
    pub execute_only: bool,
    /// The largest page: 2 MiB with bit 16, 1 GiB with bits 16 and 17, else 4 KiB.
    pub largest: FrameSize,
}

impl EntryFormat for Ept {
    fn largest(&self) -> FrameSize {
        self.largest
    }

    /// To write without reading is a misconfiguration (SDM vol. 3, "EPT Misconfigurations"), and so is to execute
    /// without reading where the processor cannot do that.
    fn can_express(&self, access: Access) -> bool {
        match access {
            Access { read: true, .. } => true,
            Access { read: false, write: false, execute: true } => self.execute_only,
            _ => false,
        }
    }

    fn table(&self, table: Hpa) -> u64 {
        table.0 & ADDRESS | READ | WRITE | EXECUTE
    }

    fn leaf(&self, frame: Hpa, size: FrameSize, access: Access) -> u64 {
        let large = if size == FrameSize::Size4K { 0 } else { LARGE };
        let bit = |allowed: bool, bit: u64| if allowed { bit } else { 0 };
        frame.0 & ADDRESS
            | WRITE_BACK
            | large
            | bit(access.read, READ)
            | bit(access.write, WRITE)
            | bit(access.execute, EXECUTE)
    }

    fn decode(&self, entry: u64, level: Level) -> Entry {
        if entry & (READ | WRITE | EXECUTE) == 0 {
            return Entry::NotPresent;
        }
        let address = Hpa(entry & ADDRESS);
        match level.page() {
            Some(size) if size == FrameSize::Size4K || entry & LARGE != 0 => Entry::Leaf {
                frame: address.align_down(size.bytes()),
                access: Access { read: entry & READ != 0, write: entry & WRITE != 0, execute: entry & EXECUTE != 0 },
            },
            _ => Entry::Table(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPT: Ept = Ept { execute_only: false, largest: FrameSize::Size1G };

    #[test]
    fn entries_are_those_of_the_manual() {
        assert_eq!(EPT.table(Hpa(0x1234_5000)), 0x1234_5007);
        assert_eq!(EPT.leaf(Hpa(0x5000), FrameSize::Size4K, Access::RWX), 0x5037);
        assert_eq!(EPT.leaf(Hpa(0x20_0000), FrameSize::Size2M, Access::RX), 0x20_00b5);
        assert_eq!(EPT.leaf(Hpa(0x4000_0000), FrameSize::Size1G, Access::R), 0x4000_00b1);
    }

    #[test]
    fn decoding_turns_entries_back() {
        for (level, size) in [(1, FrameSize::Size4K), (2, FrameSize::Size2M), (3, FrameSize::Size1G)] {
            for access in [Access::R, Access::RW, Access::RX, Access::RWX] {
                let entry = EPT.leaf(Hpa(0x8000_0000), size, access);
                let level = Level::new(level).unwrap();
                assert_eq!(EPT.decode(entry, level), Entry::Leaf { frame: Hpa(0x8000_0000), access });
            }
        }
        for level in 2..=4 {
            let entry = EPT.table(Hpa(0xf_ffff_ffff_f000));
            assert_eq!(EPT.decode(entry, Level::new(level).unwrap()), Entry::Table(Hpa(0xf_ffff_ffff_f000)));
        }
        assert_eq!(EPT.decode(0xfff8, Level::TOP), Entry::NotPresent);
    }

    #[test]
    fn misconfigurations_cannot_be_asked_for() {
        let access = |read, write, execute| Access { read, write, execute };
        assert!(!EPT.can_express(access(false, true, false)));
        assert!(!EPT.can_express(access(false, true, true)));
        assert!(!EPT.can_express(access(false, false, false)));
        assert!(!EPT.can_express(access(false, false, true)));
        let with_execute_only = Ept { execute_only: true, ..EPT };
        assert!(with_execute_only.can_express(access(false, false, true)));
        assert!(!with_execute_only.can_express(access(false, true, true)));
    }
}
