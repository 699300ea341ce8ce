//! The MOV by which the guest reaches a device: where it is and what it says.
//!
//! Owns what the last one was found by, so that the same one is found with a few comparisons. Nothing is believed that
//! may have changed: a translation follows from the registers and the entries of the guest's tables, which are all read
//! and compared each time, and an instruction from its bytes, which are too. That of the tables which is not as it was
//! is walked anew.

use lamina_arch::addr::{Gla, Gpa, Hpa, PAGE_4K};

use super::linear::GuestTables;
use super::mov::{self, LONGEST, Mov};
use crate::host::HostMemory;
use crate::memory::GuestMemory;
use crate::walk::{Access, Paging, Tables};

/// Levels of the guest's tables in 64-bit mode, at most.
const LEVELS: usize = 5;

/// A page of code, by what its translation follows from.
#[derive(Clone, Copy, Debug)]
struct Page {
    linear: Gla,
    paging: Paging,
    cpl: u8,
    /// The entries of the tables that it went through, where they are in the machine, and what they held.
    entries: [(Hpa, u64); LEVELS],
    depth: usize,
    frame: Hpa,
}

impl Page {
    /// Whether the page of `rip` is this one, still.
    #[inline(always)]
    fn is_of(&self, host: &impl HostMemory, rip: Gla, paging: &Paging, cpl: u8) -> bool {
        self.linear == rip.align_down(PAGE_4K)
            && self.paging == *paging
            && self.cpl == cpl
            && self.entries.iter().take(self.depth).all(|&(at, held)| host.read_u64(at) == held)
    }
}

/// The last one.
#[derive(Clone, Copy, Debug, Default)]
pub struct LastMov {
    page: Option<Page>,
    bytes: [u8; LONGEST],
    mov: Option<Mov>,
}

impl LastMov {
    /// The MOV at `rip`; `None` where it is none that [`mov::decode`] knows, lies on a page's border, or cannot be fetched.
    #[inline(always)]
    pub fn find<M: HostMemory>(
        &mut self,
        memory: &mut GuestMemory,
        host: &mut M,
        rip: Gla,
        paging: &Paging,
        cpl: u8,
    ) -> Option<Mov> {
        let offset = rip.offset_in(PAGE_4K);
        if offset > PAGE_4K - LONGEST as u64 {
            return None;
        }
        let frame = match &self.page {
            Some(page) if page.is_of(host, rip, paging, cpl) => page.frame,
            _ => {
                self.page = walk(memory, host, rip, paging, cpl);
                self.page?.frame
            }
        };
        let mut bytes = [0; LONGEST];
        host.read(frame + offset, &mut bytes);
        if bytes != self.bytes {
            (self.bytes, self.mov) = (bytes, mov::decode(&bytes));
        }
        self.mov
    }
}

/// Translates the page of `rip` as the processor does for a fetch.
#[cold]
fn walk<M: HostMemory>(memory: &mut GuestMemory, host: &mut M, rip: Gla, paging: &Paging, cpl: u8) -> Option<Page> {
    let linear = rip.align_down(PAGE_4K);
    let tables = GuestTables { memory, host };
    let mut noted = Noted { tables, entries: [(Hpa(0), 0); LEVELS], depth: 0 };
    let at = paging.translate(linear, Access::fetch(cpl), &mut noted).ok()?;
    let Noted { tables, entries, depth } = noted;
    let frame = tables.memory.locate(tables.host, at)?;
    Some(Page { linear, paging: *paging, cpl, entries, depth, frame })
}

/// The guest's tables, and which entries were read.
struct Noted<'a, M> {
    tables: GuestTables<'a, M>,
    entries: [(Hpa, u64); LEVELS],
    depth: usize,
}

impl<M: HostMemory> Tables for Noted<'_, M> {
    fn entry(&mut self, at: Gpa, width: usize) -> Option<u64> {
        let value = self.tables.entry(at, width)?;
        let place = self.tables.memory.locate(self.tables.host, at)?;
        *self.entries.get_mut(self.depth)? = (place, value);
        self.depth += 1;
        Some(value)
    }

    // What was read is not what stands there then, so the next look will be a walk.
    fn mark(&mut self, at: Gpa, flags: u8) {
        self.tables.mark(at, flags);
    }
}
