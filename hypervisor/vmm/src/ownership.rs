//! Who owns which memory of the machine, said aloud: for a judge outside of it, who sees what each guest really accesses.
//!
//! Owns what is said. Where nobody listens ([`HostMemory::ANNOUNCES`]), nothing of it is left in the code. The other side is
//! `xtask/instrument`, a part of an emulator; `docs/adr/0011-a-second-opinion-from-outside.md` has how it judges.
//!
//! [`HostMemory::ANNOUNCES`]: crate::host::HostMemory::ANNOUNCES

use lamina_arch::addr::Hpa;

use crate::nested::Access;

/// What is announced. A VM has its number, from 1; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// The VM runs with these nested tables.
    Root {
        /// Which VM.
        vm: u16,
        /// The top table.
        root: Hpa,
    },
    /// Memory of the machine is the VM's from now on; or, where it was before, with other rights.
    Owned {
        /// Which VM.
        vm: u16,
        /// Aligned to 4 KiB.
        at: Hpa,
        /// A multiple of 4 KiB. Unit: bytes.
        length: u64,
        /// The most that the guest may do with it.
        access: Access,
    },
    /// The VM has ended: its memory and its tables are nobody's.
    Ended {
        /// Which VM.
        vm: u16,
    },
}

/// The port that takes announcements: an OUT of 32 bits of a word that says which, with the rest in RCX, RSI and RDI.
pub const PORT: u16 = 0x4c61;

impl Announcement {
    /// EAX, RCX, RSI and RDI of the announcement.
    pub const fn registers(self) -> (u32, u64, u64, u64) {
        const FIRST: u32 = (PORT as u32) << 16;
        match self {
            Announcement::Root { vm, root } => (FIRST | 1, vm as u64, root.0, 0),
            Announcement::Owned { vm, at, length, access } => {
                let rights = access.read as u64 | (access.write as u64) << 1 | (access.execute as u64) << 2;
                (FIRST | 2, vm as u64 | rights << 16, at.0, length)
            }
            Announcement::Ended { vm } => (FIRST | 3, vm as u64, 0, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_what_the_listener_reads() {
        let root = Announcement::Root { vm: 3, root: Hpa(0x12_3000) };
        assert_eq!(root.registers(), (0x4c61_0001, 3, 0x12_3000, 0));
        let owned = Announcement::Owned { vm: 0x102, at: Hpa(0x20_0000), length: 0x20_0000, access: Access::RX };
        assert_eq!(owned.registers(), (0x4c61_0002, 0x5_0102, 0x20_0000, 0x20_0000));
        assert_eq!(Announcement::Ended { vm: 3 }.registers(), (0x4c61_0003, 3, 0, 0));
    }
}
