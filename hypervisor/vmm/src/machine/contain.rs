//! A bug of ours that came up while the hypervisor was at work for one VM: that VM ends, the others go on.
//!
//! Owns what becomes of a VM whose work was abandoned ([`Host::survive`]). Nothing of it is run, read or dropped any more:
//! any part may have been left in the middle of a change, so what it had on the heap is leaked, and its frames are told
//! from those of others by counting, not by asking it. What all VMs share has to be whole (see [`crate::change`]); where
//! it is not, that is the end of the machine. `docs/adr/0007-containing-our-own-bugs.md` has why this is sound.

use alloc::format;
use alloc::vec::Vec;

use lamina_arch::addr::Hpa;

use super::{Machine, State, number};
use crate::chipset::Chipset;
use crate::fault;
use crate::frames::{Census, FrameSize, empty_stock};
use crate::host::{Bug, Host};
use crate::ownership::Announcement;
use crate::stop::StopReason;

/// All of `machine` is in memory, and nothing is believed of what is there: what outlives a VM, before anything is done for
/// it alone.
#[inline(always)]
pub(super) fn known<H: Host, C>(machine: &mut Machine<H, C>) -> &mut Machine<H, C> {
    core::hint::black_box(machine)
}

/// What is done from here on is done for VM `vm` alone. Before: [`known`].
#[inline(always)]
pub(super) fn begin(host: &mut impl Host, vm: usize) {
    fault::working_for(Some(vm));
    host.begin_work(vm);
}

/// What is done from here on is everybody's.
#[inline(always)]
pub(super) fn end(host: &mut impl Host) {
    host.end_work();
    fault::working_for(None);
}

impl<H: Host, C: Chipset> Machine<H, C> {
    /// Ends the VM for which work was abandoned.
    ///
    /// # Panics
    /// Where what all VMs share was left in the middle of a change: a bug of ours that cannot be contained.
    pub(super) fn contain(&mut self) {
        fault::working_for(None);
        let Some(Bug { vm: index, what }) = self.host.take_bug() else { panic!("work was abandoned for no bug") };
        let broken = self.pool.is_broken() || self.console.is_broken() || self.host.stock().is_broken();
        assert!(!broken, "what all virtual machines share was left in the middle of a change");
        self.bugs += 1;
        if self.loaded.is_none_or(|loaded| loaded == index) {
            self.loaded = None;
            self.host.forget_vcpu();
        }
        // Nothing of its memory stays within reach.
        self.host.release();
        self.scheduler.block(index);
        let slot = &mut self.slots[index];
        let status = match core::mem::replace(&mut slot.state, State::Ended { intended: false, exits: 0 }) {
            State::Alive(vm) => {
                self.alive -= 1;
                let status = vm.status;
                core::mem::forget(vm);
                status
            }
            // It was being made, or taken down.
            State::Ended { .. } => 0,
        };
        self.host.announce(Announcement::Ended { vm: number(index) });
        self.reclaim(index);
        // The report, before what came of it.
        while let Some(line) = self.host.take_log_line() {
            self.console.log_line(&line);
        }
        self.ended(index, status, &StopReason::Bug(what));
        if !self.any_lazy() {
            empty_stock(&mut self.host, &mut self.pool);
        }
    }

    /// Gives the frames that nobody who lives has back to the pool: those of VM `index`. Whoever gets one clears it first.
    /// Where the living do not agree about what they have, these are nobody's any more.
    ///
    /// The processor may hold translations to them still: they are tagged with an identifier that no guest runs under
    /// again before its translations were forgotten, as making a virtual processor and giving it tables do.
    fn reclaim(&mut self, index: usize) {
        let stock: Vec<Hpa> = self.host.stock().frames().to_vec();
        let mut agreed = true;
        let lost = Census::new(&self.pool).and_then(|mut census| {
            self.each_claim(&stock, &mut |_, at, size| agreed &= census.claim(at, size).is_ok());
            census.all_lost()
        });
        let Some(mut lost) = lost else {
            let line = format!(
                "{}: what it had is kept out of use, for want of room to count it",
                self.slots[index].config.name
            );
            self.console.log_line(&line);
            return;
        };
        if agreed {
            while let Some(at) = lost.take(&self.pool) {
                // Taken, as the census just said.
                let freed = self.pool.free(at, FrameSize::Size4K);
                debug_assert_eq!(freed, Ok(()));
            }
        } else {
            let line = format!("{}: {} frames are kept out of use", self.slots[index].config.name, lost.count());
            self.withheld.add(lost);
            self.console.log_line(&line);
        }
    }
}
