//! What is written to guest memory on the guest's behalf, where somebody records it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use lamina_arch::addr::Gpa;

use super::GuestMemory;
use crate::trace::{Store, Written};

impl GuestMemory {
    /// From now on what is written is noted.
    pub fn record_writes(&mut self) {
        self.written = Some(Box::default());
    }

    /// Takes what was noted since the last time.
    pub fn take_written(&mut self) -> Vec<Store> {
        self.written.as_mut().map(|written| written.take()).unwrap_or_default()
    }

    /// Notes a write, if it is one to memory and somebody wants to know.
    pub(super) fn note(&mut self, gpa: Gpa, data: &[u8]) {
        if self.written.is_some()
            && self.is_memory(gpa, data.len() as u64)
            && let Some(written) = &mut self.written
        {
            written.note(gpa, data);
        }
    }
}

/// Absent where nobody records: one word, and one test for each write.
pub(super) type Writes = Option<Box<Written>>;
