//! Changing nested tables under the eyes of a processor: map and unmap.

use alloc::vec::Vec;

use lamina_arch::addr::{Gpa, Hpa, PAGE_4K};

use super::{Access, ENTRIES, Entry, EntryFormat, Flush, GPA_END, HPA_END, Level, MapError, NestedTables, TableFrames};
use crate::frames::FrameSize;
use crate::host::HostMemory;

/// What a range shall mean from now on.
#[derive(Clone, Copy)]
enum Target {
    Nothing,
    /// `first` is mapped to `hpa`, the rest follows in step.
    Memory {
        first: u64,
        hpa: Hpa,
        access: Access,
    },
}

impl Target {
    /// The entry that makes all of the `level.span()` bytes from `gpa` mean the target, if one entry can.
    fn entry(self, format: &impl EntryFormat, level: Level, gpa: u64) -> Option<u64> {
        match self {
            Target::Nothing => Some(0),
            Target::Memory { first, hpa, access } => {
                let size = level.page().filter(|&size| size <= format.largest())?;
                let frame = hpa + (gpa - first);
                frame.is_aligned(size.bytes()).then(|| format.leaf(frame, size, access))
            }
        }
    }
}

/// A table that is being changed: at `at`, its first entry for the guest-physical address `base`.
#[derive(Clone, Copy)]
struct Table {
    at: Hpa,
    level: Level,
    base: u64,
    /// A processor can reach it.
    linked: bool,
}

/// The part of a range that one entry spans.
struct Piece {
    /// First address that the entry spans.
    base: u64,
    /// First and end address of the part.
    start: u64,
    end: u64,
    /// Address of the entry.
    at: Hpa,
    /// The part is all that the entry spans.
    whole: bool,
}

impl Table {
    /// The entries that hold a part of `start..end`.
    fn pieces(self, start: u64, end: u64) -> impl Iterator<Item = Piece> {
        let span = self.level.span();
        let first = (start.max(self.base) - self.base) / span;
        (first..ENTRIES).map(move |index| self.base + index * span).take_while(move |&base| base < end).map(
            move |base| {
                let (start, end) = (start.max(base), end.min(base + span));
                let whole = end - start == span;
                Piece { base, start, end, at: self.level.entry_at(self.at, base), whole }
            },
        )
    }
}

/// One update on its way.
struct Update<'a, M> {
    host: &'a mut M,
    target: Target,
    /// Frames for the tables that it needs, all of them taken beforehand.
    spare: Vec<Hpa>,
    flush: Flush,
}

impl<F: EntryFormat> NestedTables<F> {
    /// Maps `length` bytes from `gpa` to the memory from `hpa`, with the largest pages that alignment and format
    /// allow. What was mapped there before is replaced; large pages that are only partly replaced are split.
    ///
    /// # Errors
    /// [`MapError`]; nothing has changed then.
    pub fn map<M: HostMemory>(
        &mut self,
        host: &mut M,
        frames: &mut impl TableFrames,
        gpa: Gpa,
        hpa: Hpa,
        length: u64,
        access: Access,
    ) -> Result<Flush, MapError> {
        if !self.format.can_express(access) {
            return Err(MapError::Access(access));
        }
        if !hpa.is_aligned(PAGE_4K) {
            return Err(MapError::Unaligned { gpa, length });
        }
        if hpa.checked_add(length).is_none_or(|end| end.0 > HPA_END) {
            return Err(MapError::Beyond { gpa, length });
        }
        self.update(host, frames, gpa, length, Target::Memory { first: gpa.0, hpa, access })
    }

    /// Unmaps `length` bytes from `gpa`, whatever is mapped there or not. Splitting a large page takes frames for
    /// tables.
    ///
    /// # Errors
    /// [`MapError`]; nothing has changed then.
    pub fn unmap<M: HostMemory>(
        &mut self,
        host: &mut M,
        frames: &mut impl TableFrames,
        gpa: Gpa,
        length: u64,
    ) -> Result<Flush, MapError> {
        self.update(host, frames, gpa, length, Target::Nothing)
    }

    fn update<M: HostMemory>(
        &mut self,
        host: &mut M,
        frames: &mut impl TableFrames,
        gpa: Gpa,
        length: u64,
        target: Target,
    ) -> Result<Flush, MapError> {
        if !gpa.is_aligned(PAGE_4K) || !length.is_multiple_of(PAGE_4K) {
            return Err(MapError::Unaligned { gpa, length });
        }
        let end = gpa.0.checked_add(length).filter(|&end| end <= GPA_END);
        let end = end.ok_or(MapError::Beyond { gpa, length })?;
        if length == 0 {
            return Ok(Flush::default());
        }

        let top = Table { at: self.root, level: Level::TOP, base: 0, linked: true };
        let mut update = Update { host, target, spare: Vec::new(), flush: Flush::default() };
        for _ in 0..self.tables_needed(&update, Some(top.at), top, gpa.0, end) {
            match frames.allocate_table() {
                Some(table) => update.spare.push(table),
                None => {
                    update.spare.into_iter().for_each(|table| frames.free_table(table));
                    return Err(MapError::OutOfTableFrames);
                }
            }
        }
        self.apply(&mut update, top, gpa.0, end);
        update.spare.into_iter().for_each(|table| frames.free_table(table));
        Ok(update.flush)
    }

    /// How many new tables `apply` will take. `at` is `None` for a table that does not exist yet; what such a table
    /// will hold does not matter, because an entry of it that is not replaced as a whole needs a table of its own
    /// anyway, unless nothing is mapped there and nothing shall be.
    fn tables_needed<M: HostMemory>(
        &self,
        update: &Update<'_, M>,
        at: Option<Hpa>,
        table: Table,
        start: u64,
        end: u64,
    ) -> usize {
        let mut needed = 0;
        for piece in table.pieces(start, end) {
            if piece.whole && update.target.entry(&self.format, table.level, piece.base).is_some() {
                continue;
            }
            let Some(below) = table.level.below() else { continue };
            let entry = at.map(|_| self.format.decode(update.host.read_u64(piece.at), table.level));
            let child = match entry {
                Some(Entry::NotPresent) if matches!(update.target, Target::Nothing) => continue,
                Some(Entry::Table(child)) => Some(child),
                _ => {
                    needed += 1;
                    None
                }
            };
            let next = Table { at: child.unwrap_or(Hpa(0)), level: below, base: piece.base, linked: true };
            needed += self.tables_needed(update, child, next, piece.start, piece.end);
        }
        needed
    }

    fn apply<M: HostMemory>(&self, update: &mut Update<'_, M>, table: Table, start: u64, end: u64) {
        for piece in table.pieces(start, end) {
            let old = update.host.read_u64(piece.at);
            let decoded = self.format.decode(old, table.level);
            if piece.whole
                && let Some(new) = update.target.entry(&self.format, table.level, piece.base)
            {
                self.replace(update, table, piece.at, decoded, old, new);
                continue;
            }
            let Some(below) = table.level.below() else { continue };
            let next = |at, linked| Table { at, level: below, base: piece.base, linked };
            match decoded {
                Entry::NotPresent if matches!(update.target, Target::Nothing) => {}
                Entry::Table(child) => {
                    self.apply(update, next(child, table.linked), piece.start, piece.end);
                    self.prune(update, piece.at, child);
                }
                Entry::NotPresent | Entry::Leaf { .. } => {
                    // `tables_needed` counted this one.
                    let Some(child) = update.spare.pop() else { continue };
                    update.host.zero(child, PAGE_4K);
                    if let Entry::Leaf { frame, access } = decoded {
                        self.split(update.host, child, below, frame, access);
                    }
                    self.apply(update, next(child, false), piece.start, piece.end);
                    self.replace(update, table, piece.at, decoded, old, self.format.table(child));
                }
            }
        }
    }

    /// Writes one entry, and notes what that asks for.
    fn replace<M: HostMemory>(
        &self,
        update: &mut Update<'_, M>,
        table: Table,
        at: Hpa,
        decoded: Entry,
        old: u64,
        new: u64,
    ) {
        if old == new {
            return;
        }
        update.host.write_u64(at, new);
        update.flush.stale |= table.linked && decoded != Entry::NotPresent;
        if let Entry::Table(child) = decoded
            && let Some(below) = table.level.below()
        {
            self.collect(update.host, child, below, &mut update.flush.unlinked);
        }
    }

    /// Fills `child`, a table of `level`, so that it means what a leaf of the level above meant.
    fn split<M: HostMemory>(&self, host: &mut M, child: Hpa, level: Level, frame: Hpa, access: Access) {
        let size = level.page().unwrap_or(FrameSize::Size4K);
        for index in 0..ENTRIES {
            let leaf = self.format.leaf(frame + index * size.bytes(), size, access);
            host.write_u64(child + index * 8, leaf);
        }
    }

    /// Unlinks `child` from the entry at `at` where it maps nothing any more.
    fn prune<M: HostMemory>(&self, update: &mut Update<'_, M>, at: Hpa, child: Hpa) {
        if matches!(update.target, Target::Nothing)
            && (0..ENTRIES).all(|index| update.host.read_u64(child + index * 8) == 0)
        {
            update.host.write_u64(at, 0);
            update.flush.stale = true;
            update.flush.unlinked.push(child);
        }
    }
}
