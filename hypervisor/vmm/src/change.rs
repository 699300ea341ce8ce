//! Whether state that all VMs share is whole.
//!
//! Owns a mark that such state has while it is being changed. Work for a VM may be abandoned at a bug of ours
//! ([`Host::survive`]), and what it had borrowed is then as it left it: a VM's own state is thrown away, and shared state
//! may be used again only where no change of it was left in the middle. Who abandons the work asks for the marks.
//!
//! [`Host::survive`]: crate::host::Host::survive

use core::hint::black_box;

/// The mark. Changes may lie within each other.
#[derive(Clone, Debug, Default)]
pub struct Change {
    open: u32,
}

impl Change {
    /// A change begins.
    #[inline(always)]
    pub fn begin(&mut self) {
        self.open += 1;
        // In memory before anything else is: the compiler may keep a value back that nobody else can know of, and this
        // makes the state that the mark is in known to somebody.
        let _ = black_box(self);
    }

    /// A change of `shared`, whose mark `change` finds, is over: all of it is in memory before the mark says so.
    #[inline(always)]
    pub fn end<T>(shared: &mut T, change: impl FnOnce(&mut T) -> &mut Change) {
        let mark = change(black_box(&mut *shared));
        mark.open = mark.open.saturating_sub(1);
        let _ = black_box(shared);
    }

    /// Whether a change has begun and is not over.
    pub fn is_open(&self) -> bool {
        self.open != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Shared {
        value: u32,
        change: Change,
    }

    #[test]
    fn a_change_is_open_until_the_outermost_has_ended() {
        let mut shared = Shared::default();
        assert!(!shared.change.is_open());
        shared.change.begin();
        shared.change.begin();
        shared.value = 1;
        Change::end(&mut shared, |shared| &mut shared.change);
        assert!(shared.change.is_open());
        Change::end(&mut shared, |shared| &mut shared.change);
        assert!(!shared.change.is_open());
    }
}
