//! Memory that is backed on first touch: which of its pages are backed, and by what.
//!
//! Owns a directory of two levels: a word for each 2 MiB of the VM's memory, made with the VM; and for each 2 MiB that
//! the guest has touched, a frame with a word for each 4 KiB. All that grows with what a guest does comes out of the
//! stock of cleared frames, never from the heap: no guest can use that up. Never maps anything: the nested tables are
//! another's.

use alloc::vec::Vec;
use core::mem;

use lamina_arch::addr::{Gpa, Hpa, PAGE_2M, PAGE_4K};

use crate::frames::{FramePool, FrameSize};
use crate::host::HostMemory;
use crate::layout::{ABOVE_4G, PCI_HOLE};
use crate::nested::Access;
use crate::ownership::Announcement;

/// Words in a directory frame, and pages in a chunk.
const PAGES: u64 = 512;
/// A chunk of which at least so many pages are backed one by one was worth a large frame.
const DENSE: u16 = 384;

/// 2 MiB of the VM's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    /// Nobody has touched it.
    Untouched,
    /// A frame of 2 MiB backs all of it.
    Large(Hpa),
    /// The directory frame, and how many of its words name a frame.
    Small { directory: Hpa, backed: u16 },
}

/// The directory.
#[derive(Debug)]
pub(super) struct Lazy {
    chunks: Vec<Chunk>,
    /// Memory that is backed. Unit: bytes.
    backed: u64,
    /// A page was to be backed and there was no frame.
    starved: bool,
    /// The VM, where somebody is told of what is its.
    owner: u16,
}

/// Where the page of `gpa` stands in the directory: its chunk, and the number of the page in it. `None` between the two
/// parts of memory.
fn place(gpa: Gpa) -> Option<(usize, u64)> {
    let offset = match gpa.0 {
        low if low < PCI_HOLE.0 => low,
        high if high >= ABOVE_4G.0 => high - ABOVE_4G.0 + PCI_HOLE.0,
        _ => return None,
    };
    Some((usize::try_from(offset / PAGE_2M).ok()?, offset / PAGE_4K % PAGES))
}

/// The first guest-physical address of `chunk`.
fn address(chunk: usize) -> Gpa {
    let offset = chunk as u64 * PAGE_2M;
    if offset < PCI_HOLE.0 { Gpa(offset) } else { ABOVE_4G + (offset - PCI_HOLE.0) }
}

/// The pages that `directory` names, with the number of each.
fn pages(host: &impl HostMemory, directory: Hpa) -> impl Iterator<Item = (u64, Hpa)> {
    // All of it in one copy: most words are zero, and each access by itself is checked.
    let mut bytes = [0; 4096];
    host.read(directory, &mut bytes);
    (0..PAGES).filter_map(move |page| {
        let at = usize::try_from(page).ok()? * 8;
        let word = u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?);
        (word != 0).then_some((page, Hpa(word)))
    })
}

impl Lazy {
    /// The directory of a VM with `size` bytes of memory, none of which is backed. `None` where the heap has no room.
    pub(super) fn new(size: u64) -> Option<Lazy> {
        let count = usize::try_from(size.div_ceil(PAGE_2M)).ok()?;
        let mut chunks = Vec::new();
        chunks.try_reserve_exact(count).ok()?;
        chunks.resize(count, Chunk::Untouched);
        Some(Lazy { chunks, backed: 0, starved: false, owner: 0 })
    }

    /// Says whose memory it is.
    pub(super) fn set_owner(&mut self, owner: u16) {
        self.owner = owner;
    }

    /// Memory that is backed. Unit: bytes.
    pub(super) fn backed(&self) -> u64 {
        self.backed
    }

    /// Whether a page was to be backed and there was no frame.
    pub(super) fn is_starved(&self) -> bool {
        self.starved
    }

    /// The frame behind the page of `gpa`, if it is backed.
    pub(super) fn find(&self, host: &impl HostMemory, gpa: Gpa) -> Option<Hpa> {
        let (chunk, page) = place(gpa)?;
        match *self.chunks.get(chunk)? {
            Chunk::Untouched => None,
            Chunk::Large(frame) => Some(frame + page * PAGE_4K),
            Chunk::Small { directory, .. } => match host.read_u64(directory + page * 8) {
                0 => None,
                frame => Some(Hpa(frame)),
            },
        }
    }

    /// The same, and backs the page with a cleared frame where it is not. `None` where the stock is empty; the VM is
    /// starved from then on.
    pub(super) fn back(&mut self, host: &mut impl HostMemory, gpa: Gpa) -> Option<Hpa> {
        let found = self.find_or_back(host, gpa);
        self.starved |= found.is_none();
        found
    }

    #[inline]
    fn find_or_back(&mut self, host: &mut impl HostMemory, gpa: Gpa) -> Option<Hpa> {
        let (chunk, page) = place(gpa)?;
        let chunk = self.chunks.get_mut(chunk)?;
        if *chunk == Chunk::Untouched {
            *chunk = Chunk::Small { directory: host.stock().take()?, backed: 0 };
        }
        let (directory, backed) = match chunk {
            Chunk::Small { directory, backed } => (*directory, backed),
            Chunk::Large(frame) => return Some(*frame + page * PAGE_4K),
            Chunk::Untouched => return None,
        };
        let entry = directory + page * 8;
        match host.read_u64(entry) {
            0 => {}
            frame => return Some(Hpa(frame)),
        }
        let frame = host.stock().take()?;
        host.write_u64(entry, frame.0);
        announce(host, self.owner, frame, FrameSize::Size4K);
        *backed += 1;
        self.backed += PAGE_4K;
        Some(frame)
    }

    /// Whether the chunk of `gpa` is backed page by page.
    #[inline]
    pub(super) fn is_small(&self, gpa: Gpa) -> bool {
        place(gpa).is_some_and(|(chunk, _)| matches!(self.chunks.get(chunk), Some(Chunk::Small { .. })))
    }

    /// The frame of 2 MiB that backs the chunk of `gpa`, if one does.
    pub(super) fn large(&self, gpa: Gpa) -> Option<Hpa> {
        match *self.chunks.get(place(gpa)?.0)? {
            Chunk::Large(frame) => Some(frame),
            Chunk::Untouched | Chunk::Small { .. } => None,
        }
    }

    /// Whether a frame of 2 MiB pays for the untouched chunk of `gpa`: the one below is in use nearly everywhere, so
    /// this one will be, too, and one exit does for 512.
    pub(super) fn wants_large(&self, gpa: Gpa) -> bool {
        let Some((chunk, _)) = place(gpa) else { return false };
        let below = chunk.checked_sub(1).and_then(|below| self.chunks.get(below));
        // What is cut by the end of memory, or by a hole, is not backed as a whole.
        let whole = address(chunk) + PAGE_2M;
        self.chunks.get(chunk) == Some(&Chunk::Untouched)
            && place(Gpa(whole.0 - 1)).is_some_and(|(last, _)| last == chunk)
            && match below {
                Some(Chunk::Large(_)) => true,
                Some(Chunk::Small { backed, .. }) => *backed >= DENSE,
                Some(Chunk::Untouched) | None => false,
            }
    }

    /// Backs the untouched chunk of `gpa` with the cleared frame of 2 MiB at `frame`.
    pub(super) fn back_large(&mut self, host: &impl HostMemory, gpa: Gpa, frame: Hpa) {
        announce(host, self.owner, frame, FrameSize::Size2M);
        let Some((chunk, _)) = place(gpa) else { return };
        if let Some(chunk) = self.chunks.get_mut(chunk) {
            debug_assert_eq!(*chunk, Chunk::Untouched);
            *chunk = Chunk::Large(frame);
            self.backed += PAGE_2M;
        }
    }

    /// What backs memory, in order: guest address, frame and its size.
    pub(super) fn frames<'a, M: HostMemory>(&'a self, host: &'a M) -> impl Iterator<Item = (Gpa, Hpa, FrameSize)> + 'a {
        self.chunks.iter().enumerate().flat_map(move |(index, chunk)| {
            let start = address(index);
            let (large, directory) = match *chunk {
                Chunk::Untouched => (None, None),
                Chunk::Large(frame) => (Some((start, frame, FrameSize::Size2M)), None),
                Chunk::Small { directory, .. } => (None, Some(directory)),
            };
            let small = directory
                .into_iter()
                .flat_map(move |directory| pages(host, directory))
                .map(move |(page, frame)| (start + page * PAGE_4K, frame, FrameSize::Size4K));
            large.into_iter().chain(small)
        })
    }

    /// The frames of the directory itself.
    pub(super) fn directories(&self) -> impl Iterator<Item = Hpa> {
        self.chunks.iter().filter_map(|chunk| match *chunk {
            Chunk::Small { directory, .. } => Some(directory),
            Chunk::Untouched | Chunk::Large(_) => None,
        })
    }

    /// Gives all frames back to `pool`.
    pub(super) fn release(mut self, host: &impl HostMemory, pool: &mut FramePool) {
        for chunk in mem::take(&mut self.chunks) {
            match chunk {
                Chunk::Untouched => {}
                Chunk::Large(frame) => give_back(pool, frame, FrameSize::Size2M),
                Chunk::Small { directory, .. } => {
                    pages(host, directory).for_each(|(_, frame)| give_back(pool, frame, FrameSize::Size4K));
                    give_back(pool, directory, FrameSize::Size4K);
                }
            }
        }
    }
}

/// Says that a frame is the VM's, once it has a number.
#[inline(always)]
fn announce<M: HostMemory>(host: &M, owner: u16, at: Hpa, size: FrameSize) {
    if M::ANNOUNCES && owner != 0 {
        host.announce(Announcement::Owned { vm: owner, at, length: size.bytes(), access: Access::RWX });
    }
}

/// Gives a frame back to `pool`.
pub(super) fn give_back(pool: &mut FramePool, frame: Hpa, size: FrameSize) {
    if let Err(error) = pool.free(frame, size) {
        // A bug of ours. To lose the frame harms nobody; to stop all VMs for it would.
        log::error!("guest memory: {error}");
        debug_assert!(false, "{error}");
    }
}
