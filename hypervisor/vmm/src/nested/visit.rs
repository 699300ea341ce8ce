//! Looking at all of the nested tables, without changing any.

use lamina_arch::addr::{Gpa, Hpa};

use super::{Access, ENTRIES, Entry, EntryFormat, Level, NestedTables};
use crate::frames::FrameSize;
use crate::host::HostMemory;

/// What a visit comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visited {
    /// A table.
    Table(Hpa),
    /// A page.
    Page {
        /// First guest-physical address.
        gpa: Gpa,
        /// Where it is in the machine.
        hpa: Hpa,
        /// Its size.
        size: FrameSize,
        /// What the guest may do with it.
        access: Access,
    },
}

impl<F: EntryFormat> NestedTables<F> {
    /// Shows `visitor` every table and every page, each table before what is in it.
    pub fn visit(&self, host: &impl HostMemory, visitor: &mut impl FnMut(Visited)) {
        self.visit_table(host, self.root, Level::TOP, 0, visitor);
    }

    fn visit_table(
        &self,
        host: &impl HostMemory,
        table: Hpa,
        level: Level,
        base: u64,
        visitor: &mut impl FnMut(Visited),
    ) {
        visitor(Visited::Table(table));
        for index in 0..ENTRIES {
            let gpa = base + index * level.span();
            match self.format.decode(host.read_u64(table + index * 8), level) {
                Entry::NotPresent => {}
                Entry::Leaf { frame, access } => {
                    if let Some(size) = level.page() {
                        visitor(Visited::Page { gpa: Gpa(gpa), hpa: frame, size, access });
                    }
                }
                Entry::Table(child) => {
                    if let Some(below) = level.below() {
                        self.visit_table(host, child, below, gpa, visitor);
                    }
                }
            }
        }
    }
}
