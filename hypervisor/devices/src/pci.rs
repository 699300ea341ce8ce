//! PCI configuration space by mechanism 1 (PCI Local Bus Specification, "Configuration Mechanism #1"), with the two
//! functions of every PC of the i440FX kind: host bridge (Intel 82441FX) and ISA bridge (Intel 82371SB).
//!
//! Owns the address register and the configuration registers of both. No function here decodes memory or ports yet;
//! everywhere else on the bus reads give all ones, writes go nowhere.

/// Registers of one function. Unit: bytes.
const SIZE: usize = 256;
/// Address register: the data port reaches configuration space.
const ENABLE: u32 = 1 << 31;
/// Address register: bits that exist (enable, bus, device, function, doubleword).
const ADDRESS_MASK: u32 = ENABLE | 0x00ff_fffc;

/// One function's registers, and which of their bits a guest can change.
#[derive(Clone, Debug, PartialEq)]
struct Function {
    registers: [u8; SIZE],
    writable: [u8; SIZE],
}

impl Function {
    const fn new(vendor: u16, device: u16, class: u32, revision: u8) -> Function {
        let mut registers = [0; SIZE];
        [registers[0], registers[1]] = vendor.to_le_bytes();
        [registers[2], registers[3]] = device.to_le_bytes();
        // Status: medium DEVSEL timing.
        registers[7] = 0x02;
        registers[8] = revision;
        let [interface, subclass, base, _] = class.to_le_bytes();
        registers[9] = interface;
        registers[10] = subclass;
        registers[11] = base;
        Function { registers, writable: [0; SIZE] }
    }

    const fn allow(mut self, first: usize, last: usize, mask: u8) -> Function {
        let mut at = first;
        while at <= last && at < SIZE {
            self.writable[at] = mask;
            at += 1;
        }
        self
    }

    const fn preset(mut self, first: usize, last: usize, value: u8) -> Function {
        let mut at = first;
        while at <= last && at < SIZE {
            self.registers[at] = value;
            at += 1;
        }
        self
    }
}

/// Configuration space and its address register.
#[derive(Clone, Debug, PartialEq)]
pub struct Pci {
    address: u32,
    host_bridge: Function,
    isa_bridge: Function,
}

impl Pci {
    /// As after power-on.
    pub const fn new() -> Pci {
        Pci {
            address: 0,
            // Command: memory and bus master are on and stay so; the programmable attribute map (0x59 to 0x5f) is kept
            // for firmware, without effect.
            host_bridge: Function::new(0x8086, 0x1237, 0x06_0000, 2)
                .preset(0x04, 0x04, 0x06)
                .allow(0x05, 0x05, 0x01)
                .allow(0x0d, 0x0d, 0xf8)
                .allow(0x59, 0x5f, 0x77)
                .allow(0x72, 0x72, 0x7f),
            // Command: all three accesses are on. Interrupt routes (0x60 to 0x63) start disconnected.
            isa_bridge: Function::new(0x8086, 0x7000, 0x06_0100, 0)
                .preset(0x04, 0x04, 0x07)
                .preset(0x4c, 0x4c, 0x4d)
                .preset(0x4e, 0x4e, 0x03)
                .preset(0x60, 0x63, 0x80)
                .allow(0x4c, 0x4c, 0xff)
                .allow(0x4e, 0x4f, 0xff)
                .allow(0x60, 0x63, 0x8f)
                .allow(0x69, 0x69, 0xfe)
                .allow(0x82, 0x82, 0x0f),
        }
    }

    /// Reads the address register (a doubleword at 0xcf8; any other access there is no business of PCI's).
    pub const fn read_address(&self) -> u32 {
        self.address
    }

    /// Writes the address register.
    pub const fn write_address(&mut self, value: u32) {
        self.address = value & ADDRESS_MASK;
    }

    /// Reads through the data port, `offset` bytes from 0xcfc. What lies beyond 0xcff reads as ones.
    pub fn read_data(&self, offset: u8, data: &mut [u8]) {
        let (function, base) = (self.selected(), self.register());
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = match function {
                Some(function) if at < 4 => function.registers[(base + at) % SIZE],
                _ => 0xff,
            };
        }
    }

    /// Writes through the data port, `offset` bytes from 0xcfc.
    pub fn write_data(&mut self, offset: u8, data: &[u8]) {
        let base = self.register();
        let Some(function) = self.selected_mut() else { return };
        for (at, &byte) in (usize::from(offset)..4).zip(data) {
            let at = (base + at) % SIZE;
            let mask = function.writable[at];
            function.registers[at] = function.registers[at] & !mask | byte & mask;
        }
    }

    const fn register(&self) -> usize {
        (self.address & 0xfc) as usize
    }

    /// Bus, device and function of the address register, as it packs them; `None` while it is not enabled.
    const fn target(&self) -> Option<u32> {
        if self.address & ENABLE != 0 { Some(self.address >> 8 & 0xffff) } else { None }
    }

    fn selected(&self) -> Option<&Function> {
        match self.target()? {
            0 => Some(&self.host_bridge),
            0x0008 => Some(&self.isa_bridge),
            _ => None,
        }
    }

    fn selected_mut(&mut self) -> Option<&mut Function> {
        match self.target()? {
            0 => Some(&mut self.host_bridge),
            0x0008 => Some(&mut self.isa_bridge),
            _ => None,
        }
    }
}

impl Default for Pci {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read<const N: usize>(pci: &mut Pci, address: u32, offset: u8) -> [u8; N] {
        pci.write_address(address);
        let mut data = [0; N];
        pci.read_data(offset, &mut data);
        data
    }

    #[test]
    fn the_address_register_reads_back_without_its_reserved_bits() {
        let mut pci = Pci::new();
        pci.write_address(0xffff_ffff);
        assert_eq!(pci.read_address(), 0x80ff_fffc);
    }

    #[test]
    fn both_bridges_answer_at_every_width_and_nothing_else_does() {
        let mut pci = Pci::new();
        assert_eq!(u32::from_le_bytes(read(&mut pci, 0x8000_0000, 0)), 0x1237_8086);
        assert_eq!(u16::from_le_bytes(read(&mut pci, 0x8000_0000, 2)), 0x1237);
        assert_eq!(read(&mut pci, 0x8000_0000, 3), [0x12]);
        assert_eq!(u16::from_le_bytes(read(&mut pci, 0x8000_0000, 1)), 0x3780);
        assert_eq!(u32::from_le_bytes(read(&mut pci, 0x8000_0008, 0)), 0x0600_0002);
        assert_eq!(u32::from_le_bytes(read(&mut pci, 0x8000_0800, 0)), 0x7000_8086);
        assert_eq!(u16::from_le_bytes(read(&mut pci, 0x8000_0808, 2)), 0x0601);
        assert_eq!(read(&mut pci, 0x8000_080c, 2), [0], "header type: one function, no bridge");
        for nobody in [0x8000_1000, 0x8000_0100, 0x8000_0900, 0x8001_0000, 0x0000_0000] {
            assert_eq!(read(&mut pci, nobody, 0), [0xff; 4], "{nobody:#x}");
        }
        assert_eq!(read(&mut pci, 0x8000_0000, 3), [0x12, 0xff], "beyond the data port");
    }

    #[test]
    fn only_writable_bits_change() {
        let mut pci = Pci::new();
        pci.write_address(0x8000_0000);
        pci.write_data(0, &[0; 4]);
        assert_eq!(u32::from_le_bytes(read(&mut pci, 0x8000_0000, 0)), 0x1237_8086);
        pci.write_address(0x8000_0058);
        pci.write_data(1, &[0xff]);
        assert_eq!(read(&mut pci, 0x8000_0058, 0), [0x00, 0x77, 0x00, 0x00]);
        pci.write_address(0x8000_0010);
        pci.write_data(0, &[0xff; 4]);
        assert_eq!(read(&mut pci, 0x8000_0010, 0), [0; 4], "no base address register claims a size");
    }

    proptest! {
        #[test]
        fn no_access_panics(accesses in prop::collection::vec((any::<u32>(), any::<u8>(), any::<u32>(), 1usize..=4,
                                                               any::<bool>()), 0..50)) {
            let mut pci = Pci::new();
            for (address, offset, value, width, write) in accesses {
                pci.write_address(address);
                let mut data = value.to_le_bytes();
                if write {
                    pci.write_data(offset, &data[..width]);
                } else {
                    pci.read_data(offset, &mut data[..width]);
                }
            }
        }
    }
}
