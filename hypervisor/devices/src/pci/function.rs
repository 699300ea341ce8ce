//! The configuration registers of one PCI function (PCI Local Bus Specification, "Configuration Space Organization").

/// Registers of one function. Unit: bytes.
pub const SIZE: usize = 256;

/// One function's registers, and which of their bits a guest can change.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    registers: [u8; SIZE],
    writable: [u8; SIZE],
}

impl Function {
    /// A function of which nothing can be written. `class` is base class, subclass and interface (24 bits).
    pub fn new(vendor: u16, device: u16, class: u32, revision: u8) -> Function {
        let [interface, subclass, base, _] = class.to_le_bytes();
        Function { registers: [0; SIZE], writable: [0; SIZE] }
            .preset(0x00, &vendor.to_le_bytes())
            .preset(0x02, &device.to_le_bytes())
            // Status: medium DEVSEL timing.
            .preset(0x06, &[0x00, 0x02])
            .preset(0x08, &[revision, interface, subclass, base])
    }

    /// The bits of `mask` in the registers `first` to `last` can be written.
    pub fn allow(mut self, first: usize, last: usize, mask: u8) -> Function {
        for place in self.writable.iter_mut().take(last + 1).skip(first) {
            *place = mask;
        }
        self
    }

    /// What the registers from `first` on hold at first.
    pub fn preset(mut self, first: usize, values: &[u8]) -> Function {
        for (place, &value) in self.registers.iter_mut().skip(first).zip(values) {
            *place = value;
        }
        self
    }

    /// Reads a register; `at` wraps.
    pub fn read(&self, at: usize) -> u8 {
        self.registers[at % SIZE]
    }

    /// Writes a register's writable bits; `at` wraps.
    pub fn write(&mut self, at: usize, value: u8) {
        let at = at % SIZE;
        let mask = self.writable[at];
        self.registers[at] = self.registers[at] & !mask | value & mask;
    }
}
