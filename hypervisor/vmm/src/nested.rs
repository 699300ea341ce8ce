//! Nested page tables: what a guest-physical address means in the machine.
//!
//! Owns the four levels of tables of one VM, built in frames that a [`TableFrames`] lends, through [`HostMemory`].
//! Generic over the vendor's format of entries. Never touches the memory that is mapped, and never invalidates cached
//! translations itself: what must be invalidated comes back as a [`Flush`].
//!
//! The tables may be in use by a processor during every update. So a table is filled before it is linked, each visible
//! change is one 64-bit write, and a table that was unlinked is neither changed nor given back until the invalidation
//! was acknowledged: a walk at any instant finds the old mapping, the new one, or none.

use alloc::vec::Vec;
use core::fmt;

use lamina_arch::addr::{Gpa, Hpa, PAGE_4K};

use crate::frames::{FramePool, FrameSize};
use crate::host::HostMemory;

pub mod ept;
pub mod npt;
mod update;
mod visit;

pub use visit::Visited;

/// Entries of a table.
const ENTRIES: u64 = 512;
/// First guest-physical address that four levels do not reach. Unit: bytes.
pub const GPA_END: u64 = 1 << 48;
/// First host-physical address that no entry can hold. Unit: bytes.
pub const HPA_END: u64 = 1 << 52;

/// What a guest may do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Read data.
    pub read: bool,
    /// Write data.
    pub write: bool,
    /// Fetch instructions.
    pub execute: bool,
}

impl Access {
    /// Read only.
    pub const R: Access = Access { read: true, write: false, execute: false };
    /// Read and write.
    pub const RW: Access = Access { read: true, write: true, execute: false };
    /// Read and execute.
    pub const RX: Access = Access { read: true, write: false, execute: true };
    /// Everything.
    pub const RWX: Access = Access { read: true, write: true, execute: true };
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |allowed, letter| if allowed { letter } else { '-' };
        write!(f, "{}{}{}", letter(self.read, 'r'), letter(self.write, 'w'), letter(self.execute, 'x'))
    }
}

/// A level of the tables: 4 is the top, the entries of level 1 map small pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(u8);

impl Level {
    /// The top level.
    pub const TOP: Level = Level(4);

    /// The level with `number`, 1 to 4.
    pub const fn new(number: u8) -> Option<Level> {
        if 1 <= number && number <= 4 { Some(Level(number)) } else { None }
    }

    /// The size of the page that an entry of this level can map; `None` at the top, where entries only name tables.
    pub const fn page(self) -> Option<FrameSize> {
        match self.0 {
            1 => Some(FrameSize::Size4K),
            2 => Some(FrameSize::Size2M),
            3 => Some(FrameSize::Size1G),
            _ => None,
        }
    }

    /// What one entry of this level spans. Unit: bytes.
    const fn span(self) -> u64 {
        PAGE_4K << (9 * (self.0 as u32 - 1))
    }

    const fn below(self) -> Option<Level> {
        Level::new(self.0 - 1)
    }

    /// Address of the entry for `gpa` in the table of this level at `table`.
    const fn entry_at(self, table: Hpa, gpa: u64) -> Hpa {
        Hpa(table.0 + gpa / self.span() % ENTRIES * 8)
    }
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing is mapped.
    NotPresent,
    /// The table of the level below.
    Table(Hpa),
    /// A page.
    Leaf {
        /// Where it is in the machine.
        frame: Hpa,
        /// What the guest may do with it.
        access: Access,
    },
}

/// A vendor's format of entries. A value of 0 is never present, in any format.
pub trait EntryFormat: Copy {
    /// The largest page that an entry can map.
    fn largest(&self) -> FrameSize;

    /// Whether an entry can allow just this.
    fn can_express(&self, access: Access) -> bool;

    /// An entry that names a table of the level below, and restricts nothing.
    fn table(&self, table: Hpa) -> u64;

    /// An entry that maps a page of write-back memory.
    fn leaf(&self, frame: Hpa, size: FrameSize, access: Access) -> u64;

    /// What an entry in a table of `level` says.
    fn decode(&self, entry: u64, level: Level) -> Entry;
}

/// Where tables come from.
pub trait TableFrames {
    /// Lends a 4 KiB frame; what it holds is undefined. `None` where there is none.
    fn allocate_table(&mut self) -> Option<Hpa>;

    /// Takes a frame back that [`TableFrames::allocate_table`] lent.
    fn free_table(&mut self, table: Hpa);
}

impl TableFrames for FramePool {
    fn allocate_table(&mut self) -> Option<Hpa> {
        self.allocate(FrameSize::Size4K)
    }

    fn free_table(&mut self, table: Hpa) {
        if let Err(error) = self.free(table, FrameSize::Size4K) {
            // A bug of ours. To lose the frame harms nobody; to stop all VMs for it would.
            log::error!("nested tables: {error}");
            debug_assert!(false, "{error}");
        }
    }
}

/// A mapping cannot be made. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// An address or the length is not a multiple of 4 KiB.
    Unaligned {
        /// Start of the range.
        gpa: Gpa,
        /// Unit: bytes.
        length: u64,
    },
    /// The range ends beyond [`GPA_END`], or its frames beyond [`HPA_END`].
    Beyond {
        /// Start of the range.
        gpa: Gpa,
        /// Unit: bytes.
        length: u64,
    },
    /// The format has no entry that allows just this.
    Access(Access),
    /// No frames are left for the tables.
    OutOfTableFrames,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapError::Unaligned { gpa, length } => write!(f, "{length:#x} bytes at {gpa:#x} are not whole pages"),
            MapError::Beyond { gpa, length } => write!(f, "{length:#x} bytes at {gpa:#x} are beyond what tables reach"),
            MapError::Access(access) => write!(f, "the processor's tables cannot allow just {access:?}"),
            MapError::OutOfTableFrames => write!(f, "no frames are left for nested tables"),
        }
    }
}

/// What an update asks for: every processor that may have cached translations of these tables must forget them.
///
/// The holder invalidates, and only then calls [`Flush::acknowledge`]. A token that is dropped instead loses the
/// frames of the unlinked tables for good, which is safe. Frames that the update unmapped may go to somebody else only
/// after the acknowledgement, too.
#[must_use = "stale translations must be invalidated, then acknowledged"]
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flush {
    stale: bool,
    unlinked: Vec<Hpa>,
}

impl Flush {
    /// Whether anything must be invalidated: false where entries only became present, which no processor caches as
    /// absent (SDM vol. 3, "Information That May Be Cached").
    pub fn is_needed(&self) -> bool {
        self.stale
    }

    /// One token for this update and `other`.
    pub fn and(mut self, other: Flush) -> Flush {
        self.stale |= other.stale;
        self.unlinked.extend(other.unlinked);
        self
    }

    /// The invalidation is done on every processor: gives the frames of unlinked tables back.
    pub fn acknowledge(self, frames: &mut impl TableFrames) {
        for table in self.unlinked {
            frames.free_table(table);
        }
    }
}

/// What a guest-physical address means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Where the byte is in the machine.
    pub hpa: Hpa,
    /// Size of the page that maps it.
    pub size: FrameSize,
    /// What the guest may do.
    pub access: Access,
}

/// The nested page tables of one VM.
#[derive(Debug)]
pub struct NestedTables<F> {
    format: F,
    root: Hpa,
}

impl<F: EntryFormat> NestedTables<F> {
    /// Tables that map nothing.
    ///
    /// # Errors
    /// [`MapError::OutOfTableFrames`].
    pub fn new(format: F, host: &mut impl HostMemory, frames: &mut impl TableFrames) -> Result<Self, MapError> {
        let root = frames.allocate_table().ok_or(MapError::OutOfTableFrames)?;
        host.zero(root, PAGE_4K);
        Ok(NestedTables { format, root })
    }

    /// Address of the top table.
    pub fn root(&self) -> Hpa {
        self.root
    }

    /// What `gpa` means; `None` where nothing is mapped.
    pub fn walk(&self, host: &impl HostMemory, gpa: Gpa) -> Option<Translation> {
        if gpa.0 >= GPA_END {
            return None;
        }
        let mut level = Level::TOP;
        let mut table = self.root;
        loop {
            match self.format.decode(host.read_u64(level.entry_at(table, gpa.0)), level) {
                Entry::NotPresent => return None,
                Entry::Leaf { frame, access } => {
                    let size = level.page()?;
                    return Some(Translation { hpa: frame + gpa.offset_in(size.bytes()), size, access });
                }
                Entry::Table(next) => {
                    table = next;
                    level = level.below()?;
                }
            }
        }
    }

    /// Maps the 4 KiB page at `gpa` (aligned) where no entry is, the tables to it are there, and the format can express
    /// `access`: one walk, one write, and nothing to invalidate. False where it is not so; nothing has changed then.
    pub fn map_absent(&mut self, host: &mut impl HostMemory, gpa: Gpa, hpa: Hpa, access: Access) -> bool {
        if hpa.0 >= HPA_END || !self.format.can_express(access) {
            return false;
        }
        let Some((at, Entry::NotPresent)) = self.small_entry(host, gpa) else { return false };
        host.write_u64(at, self.format.leaf(hpa, FrameSize::Size4K, access));
        true
    }

    /// Unmaps the 4 KiB page at `gpa` (aligned) and leaves the tables to it where they are, for
    /// [`NestedTables::map_absent`]. False where no page of that size is mapped; nothing has changed then. Cached
    /// translations are to be invalidated.
    pub fn unmap_small(&mut self, host: &mut impl HostMemory, gpa: Gpa) -> bool {
        let Some((at, Entry::Leaf { .. })) = self.small_entry(host, gpa) else { return false };
        host.write_u64(at, 0);
        true
    }

    /// The entry for the 4 KiB page at `gpa`: where it is, and what it says. `None` where a table is missing on the way.
    fn small_entry(&self, host: &impl HostMemory, gpa: Gpa) -> Option<(Hpa, Entry)> {
        if gpa.0 >= GPA_END {
            return None;
        }
        let (mut level, mut table) = (Level::TOP, self.root);
        while let Some(below) = level.below() {
            match self.format.decode(host.read_u64(level.entry_at(table, gpa.0)), level) {
                Entry::Table(next) => (level, table) = (below, next),
                Entry::NotPresent | Entry::Leaf { .. } => return None,
            }
        }
        let at = level.entry_at(table, gpa.0);
        Some((at, self.format.decode(host.read_u64(at), level)))
    }

    /// Takes all tables down. The frames come back when the token is acknowledged: when no processor uses the root.
    pub fn destroy(self, host: &impl HostMemory) -> Flush {
        let mut flush = Flush { stale: true, unlinked: Vec::new() };
        self.collect(host, self.root, Level::TOP, &mut flush.unlinked);
        flush
    }

    /// Adds `table` and every table under it to `tables`.
    fn collect(&self, host: &impl HostMemory, table: Hpa, level: Level, tables: &mut Vec<Hpa>) {
        tables.push(table);
        let Some(below) = level.below() else { return };
        for index in 0..ENTRIES {
            if let Entry::Table(child) = self.format.decode(host.read_u64(table + index * 8), level) {
                self.collect(host, child, below, tables);
            }
        }
    }
}

#[cfg(test)]
mod tests;
