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

/// How many ports one page of the [`PortMap`] holds.
const PAGE: usize = 256;

/// The bus of the 65536 ports, with the answer to "who is there" at hand: two look-ups in tables.
#[derive(Clone, Debug)]
pub struct PortMap<D> {
    ranges: Bus<u16, D>,
    /// Which of `pages` the ports with this high byte are in; 0 is the page where nothing answers.
    index: [u8; PAGE],
    pages: Vec<[Option<(D, u16)>; PAGE]>,
}

impl<D: Copy> PortMap<D> {
    /// A map where nothing answers.
    pub fn new() -> Self {
        PortMap { ranges: Bus::new(), index: [0; PAGE], pages: alloc::vec![[None; PAGE]] }
    }

    /// Gives `length` ports from `first` to `device`.
    ///
    /// # Errors
    /// [`Overlap`] where one of them is taken already, or is beyond the last port; the map is then unchanged.
    pub fn claim(&mut self, first: u16, length: u16, device: D) -> Result<(), Overlap> {
        let last = first.checked_add(length.checked_sub(1).ok_or(Overlap)?).ok_or(Overlap)?;
        self.ranges.claim(first, u64::from(length), device)?;
        for port in first..=last {
            let [low, high] = port.to_le_bytes();
            let page = &mut self.index[usize::from(high)];
            if *page == 0 {
                // There are no more than 255 others: the page of nothing, and one for each high byte but this.
                *page = u8::try_from(self.pages.len()).map_err(|_| Overlap)?;
                self.pages.push([None; PAGE]);
            }
            if let Some(page) = self.pages.get_mut(usize::from(*page)) {
                page[usize::from(low)] = Some((device, port - first));
            }
        }
        Ok(())
    }

    /// The device at `port`, with the offset of the port in the device's range.
    #[inline]
    pub fn find(&self, port: u16) -> Option<(D, u16)> {
        let [low, high] = port.to_le_bytes();
        self.pages.get(usize::from(self.index[usize::from(high)]))?[usize::from(low)]
    }
}

impl<D: Copy> Default for PortMap<D> {
    fn default() -> Self {
        Self::new()
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
    fn the_port_map_answers_as_the_bus() {
        let (mut bus, mut map) = (Bus::new(), PortMap::new());
        for (first, length, device) in [(0x3f8u16, 8u16, 'u'), (0x40, 4, 'p'), (0xfff0, 16, 'z'), (0x1fe, 4, 'x')] {
            bus.claim(first, length.into(), device).unwrap();
            map.claim(first, length, device).unwrap();
        }
        for port in 0..=u16::MAX {
            let expected = bus.find(port).map(|(device, offset)| (device, u16::try_from(offset).unwrap()));
            assert_eq!(map.find(port), expected, "{port:#x}");
        }
        assert_eq!(map.claim(0x43, 1, 'q'), Err(Overlap));
        assert_eq!(map.claim(0xffff, 2, 'q'), Err(Overlap));
        assert_eq!(map.claim(0x70, 0, 'q'), Err(Overlap));
        assert_eq!(map.find(0x43), Some(('p', 3)));
    }

    #[test]
    fn every_page_of_ports_can_be_claimed() {
        let mut map = PortMap::new();
        for high in 0..=0xfe {
            map.claim(high << 8, 1, high).unwrap();
        }
        assert_eq!(map.find(0xfe00), Some((0xfe, 0)));
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
