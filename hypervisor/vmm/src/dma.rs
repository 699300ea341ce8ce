//! Transfers between devices and guest memory.
//!
//! A device is a state machine and never touches memory. One that wants to says so ([`Signal::Dma`]), and then tells
//! what it wants, one piece at a time; here is who carries it out. Owns nothing: a transfer that is not finished yet is
//! remembered by the device, so that it can be left and taken up again.
//!
//! [`Signal::Dma`]: crate::chipset::Signal::Dma

use lamina_arch::addr::Gpa;

use crate::chipset::Chipset;
use crate::host::HostMemory;
use crate::memory::GuestMemory;

/// Most bytes of one piece.
pub const TRANSFER_MAX: usize = 2048;
/// Most pieces that [`serve`] moves, so that nobody else waits for long (128 KiB).
const PIECES: usize = 64;

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaDirection {
    /// From guest memory to the device.
    FromMemory,
    /// From the device to guest memory.
    ToMemory,
}

/// One piece of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaRequest {
    /// Which way.
    pub direction: DmaDirection,
    /// The address in guest memory.
    pub gpa: Gpa,
    /// Unit: bytes; at most [`TRANSFER_MAX`].
    pub length: usize,
}

/// Whether anything is left.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// No device wants anything any more.
    All,
    /// There is more to do, before the guest runs again.
    Part,
}

/// Moves what the devices of `chipset` want to move, up to a limit.
pub fn serve<C: Chipset>(chipset: &mut C, memory: &mut GuestMemory, host: &mut impl HostMemory) -> Served {
    let mut buffer = [0; TRANSFER_MAX];
    for _ in 0..PIECES {
        let Some(request) = chipset.dma_request(&mut buffer) else { return Served::All };
        let data = &mut buffer[..request.length.min(TRANSFER_MAX)];
        let moved = match request.direction {
            DmaDirection::FromMemory => memory.read(host, request.gpa, data),
            DmaDirection::ToMemory => memory.write(host, request.gpa, data),
        };
        chipset.dma_complete(moved.is_ok().then_some(&*data));
    }
    Served::Part
}
