//! The bus: which device answers at an address.
//!
//! Ports and memory-mapped registers share this one type. It owns only the ranges; the devices themselves belong to
//! the chipset. An access that no range holds is open bus: reads give all ones, writes go nowhere.

use alloc::vec::Vec;

/// An address on a bus.
pub trait Address: Copy + Ord {
    /// The address as a number. Unit: bytes.
    fn number(self) -> u64;
}

impl Address for u16 {
    fn number(self) -> u64 {
        u64::from(self)
    }
}

impl Address for lamina_arch::addr::Gpa {
    fn number(self) -> u64 {
        self.0
    }
}

/// One range of a bus.
#[derive(Clone, Copy, Debug)]
struct Range<A, D> {
    first: A,
    length: u64,
    device: D,
}

/// Ranges of addresses, each with the name `D` of its device.
#[derive(Clone, Debug)]
pub struct Bus<A, D> {
    ranges: Vec<Range<A, D>>,
}

/// Two ranges of one bus overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap;

impl<A: Address, D: Copy> Bus<A, D> {
    /// A bus where nothing answers.
    pub const fn new() -> Self {
        Bus { ranges: Vec::new() }
    }

    /// Gives `length` addresses from `first` to `device`.
    ///
    /// # Errors
    /// [`Overlap`] where one of them is taken already; the bus is then unchanged.
    pub fn claim(&mut self, first: A, length: u64, device: D) -> Result<(), Overlap> {
        let start = first.number();
        let overlaps = |r: &Range<A, D>| start < r.first.number() + r.length && r.first.number() < start + length;
        if self.ranges.iter().any(overlaps) {
            return Err(Overlap);
        }
        let at = self.ranges.partition_point(|r| r.first < first);
        self.ranges.insert(at, Range { first, length, device });
        Ok(())
    }

    /// The device at `address`, with the offset of the address in the device's range (unit: bytes).
    pub fn find(&self, address: A) -> Option<(D, u64)> {
        let after = self.ranges.partition_point(|r| r.first <= address);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        let offset = address.number() - range.first.number();
        (offset < range.length).then_some((range.device, offset))
    }
}

impl<A: Address, D: Copy> Default for Bus<A, D> {
    fn default() -> Self {
        Self::new()
    }
}

/// What a read gives where no device answers: all ones.
pub fn open_bus(data: &mut [u8]) {
    data.fill(0xff);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_first_and_last_address_and_nothing_beside() {
        let mut bus = Bus::new();
        bus.claim(0x3f8u16, 8, 'u').unwrap();
        bus.claim(0x40, 4, 'p').unwrap();
        bus.claim(0xffff, 1, 'z').unwrap();
        assert_eq!(bus.find(0x3f8), Some(('u', 0)));
        assert_eq!(bus.find(0x3ff), Some(('u', 7)));
        assert_eq!(bus.find(0x400), None);
        assert_eq!(bus.find(0x3f), None);
        assert_eq!(bus.find(0x43), Some(('p', 3)));
        assert_eq!(bus.find(0xffff), Some(('z', 0)));
        assert_eq!(bus.find(0), None);
    }

    #[test]
    fn refuses_overlap() {
        let mut bus = Bus::new();
        bus.claim(0x60u16, 1, 1).unwrap();
        bus.claim(0x64, 1, 1).unwrap();
        assert_eq!(bus.claim(0x60, 5, 2), Err(Overlap));
        assert_eq!(bus.claim(0x64, 1, 2), Err(Overlap));
        assert_eq!(bus.claim(0x61, 3, 2), Ok(()));
    }
}
