//! What of the machine a VM's memory is: for whoever checks it.

use lamina_arch::addr::{Gpa, Hpa, PAGE_4K};

use super::lazy::Lazy;
use super::{Extent, GuestMemory, Region};
use crate::frames::FrameSize;
use crate::host::HostMemory;
use crate::nested::Access;
use crate::ownership::Announcement;

impl GuestMemory {
    /// Memory that is backed. Unit: bytes.
    pub fn backed(&self) -> u64 {
        self.lazy.as_ref().map_or(self.size, Lazy::backed)
    }

    /// The memory is VM `owner`'s: announced, and so is what will back more of it.
    pub fn announce<M: HostMemory>(&mut self, host: &M, owner: u16) {
        if !M::ANNOUNCES {
            return;
        }
        self.owner = owner;
        for (gpa, at, size) in self.owned(host) {
            if gpa.is_some() {
                host.announce(Announcement::Owned { vm: owner, at, length: size.bytes(), access: Access::RWX });
            }
        }
        for &(Extent { hpa, length, .. }, access) in &self.roms {
            host.announce(Announcement::Owned { vm: owner, at: hpa, length, access });
        }
        if let Some(lazy) = &mut self.lazy {
            lazy.set_owner(owner);
        }
    }

    /// The page at `at` is this VM's too, and the guest may do `access` there.
    pub(crate) fn announce_page<M: HostMemory>(&self, host: &M, at: Hpa, access: Access) {
        if M::ANNOUNCES {
            host.announce(Announcement::Owned { vm: self.owner, at, length: PAGE_4K, access });
        }
    }

    /// It is the owner's no longer, and nor is anything else.
    pub(super) fn renounce<M: HostMemory>(&self, host: &M) {
        if M::ANNOUNCES && self.owner != 0 {
            host.announce(Announcement::Ended { vm: self.owner });
        }
    }

    /// What may be mapped as one page at `gpa` (aligned to `size`): the frame and the most that the guest may do there.
    /// `None` where no such page may be.
    pub fn mapping(&self, host: &impl HostMemory, gpa: Gpa, size: FrameSize) -> Option<(Hpa, Access)> {
        let page = Region { start: gpa, length: size.bytes() };
        let inside = |extent: &Extent| {
            let whole = Region { start: extent.gpa, length: extent.length };
            whole.holds(page.start, page.length).then(|| extent.hpa + (gpa - extent.gpa))
        };
        if let Some(rom) = self.roms.iter().find_map(|(extent, access)| Some((inside(extent)?, *access))) {
            return Some(rom);
        }
        if !self.is_memory(gpa, page.length) {
            return None;
        }
        let frame = match (&self.lazy, size) {
            (None, _) => self.extents.iter().find_map(inside),
            (Some(lazy), FrameSize::Size4K) => lazy.find(host, gpa),
            (Some(lazy), FrameSize::Size2M) => lazy.large(gpa),
            (Some(_), FrameSize::Size1G) => None,
        };
        frame.map(|frame| (frame, Access::RWX))
    }

    /// Every frame of the machine that is this VM's memory or keeps its directory, with what may be mapped there; the
    /// directory's frames may be mapped nowhere.
    pub fn owned<'a, M: HostMemory>(&'a self, host: &'a M) -> impl Iterator<Item = (Option<Gpa>, Hpa, FrameSize)> + 'a {
        let lazy = self.lazy.iter().flat_map(move |lazy| lazy.frames(host));
        let mapped = self.frames.iter().copied().chain(lazy).map(|(gpa, hpa, size)| (Some(gpa), hpa, size));
        let directories = self.lazy.iter().flat_map(Lazy::directories);
        mapped.chain(directories.map(|hpa| (None, hpa, FrameSize::Size4K)))
    }
}
