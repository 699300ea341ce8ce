//! The pair of 8259A interrupt controllers (Intel 8259A, "Programmable Interrupt Controller"), with the edge/level
//! control registers of the PCI chipsets (Intel 82371SB, "ELCR1, ELCR2").
//!
//! Owns both chips' registers and the cascade; the second's output is input 2 of the first. Knows nothing of who
//! drives the inputs or where the output goes.
//!
//! One deliberate difference: an edge stays latched until it is acknowledged even if the input falls before, as a
//! virtual processor may take an interrupt much later than a real one. The initialization command word's
//! level-triggered mode bit (LTIM) has no effect, as with every chipset that has the ELCRs.

use lamina_vmm::fault::{self, Site};

/// Input of the first chip that the second's output drives.
const CASCADE: u8 = 2;
/// Inputs of each chip that may be level-triggered: not the timer, keyboard, cascade, RTC and coprocessor.
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

/// What a write to the data port is taken as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chip {
    /// Levels of the inputs.
    lines: u8,
    /// Edges that wait.
    latched: u8,
    /// Inputs that are level-triggered.
    level: u8,
    imr: u8,
    isr: u8,
    /// Vector of input 0.
    base: u8,
    /// The input of the highest priority.
    highest: u8,
    expect: Expect,
    icw4_follows: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

impl Chip {
    const fn new(base: u8, level: u8) -> Chip {
        Chip {
            lines: 0,
            latched: 0,
            level,
            imr: 0xff,
            isr: 0,
            base,
            highest: 0,
            expect: Expect::Mask,
            icw4_follows: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            read_isr: false,
            poll: false,
        }
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1u8 << (input & 7);
        if high {
            if self.lines & bit == 0 {
                self.latched |= bit;
            }
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// The interrupt request register.
    const fn irr(&self) -> u8 {
        (self.latched & !self.level) | (self.lines & self.level)
    }

    /// How far `bits`' most important input is from the most important of all; 8 where there is none.
    const fn rank(&self, bits: u8) -> u32 {
        bits.rotate_right(self.highest as u32 & 7).trailing_zeros()
    }

    /// The input of `rank`.
    const fn input(&self, rank: u32) -> u8 {
        (self.highest.wrapping_add((rank & 7) as u8)) & 7
    }

    /// The input whose interrupt the chip asks to be taken now.
    fn request(&self) -> Option<u8> {
        let requested = self.rank(self.irr() & !self.imr);
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.special_fully_nested && in_service & (1 << CASCADE) != 0 {
            // The slave's next, more important interrupt must get through, but nothing below the slave.
            if requested > self.rank(1 << CASCADE) {
                return None;
            }
            in_service &= !(1 << CASCADE);
        }
        (requested < self.rank(in_service)).then(|| self.input(requested))
    }

    /// The first INTA cycle for `input`.
    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << (input & 7);
        self.latched &= !bit;
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.highest = (input + 1) & 7;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.write_icw1(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    fn write_icw1(&mut self, value: u8) {
        // An input must rise again to be requested after this.
        *self = Chip {
            lines: self.lines,
            imr: 0,
            expect: Expect::Icw2,
            icw4_follows: value & 1 != 0,
            single: value & 2 != 0,
            ..Chip::new(self.base, self.level)
        };
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
    }

    fn write_ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            command @ (0b001 | 0b101) => {
                // In special mask mode a masked input's bit is not touched by the non-specific command.
                let candidates = if self.special_mask { self.isr & !self.imr } else { self.isr };
                let rank = self.rank(candidates);
                if rank < 8 {
                    let input = self.input(rank);
                    self.isr &= !(1 << input);
                    if command == 0b101 {
                        self.highest = (input + 1) & 7;
                    }
                }
            }
            0b011 => self.isr &= !(1 << level),
            0b111 => {
                self.isr &= !(1 << level);
                self.highest = (level + 1) & 7;
            }
            0b110 => self.highest = (level + 1) & 7,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expect = match self.expect {
            Expect::Mask => {
                self.imr = value;
                Expect::Mask
            }
            Expect::Icw2 => {
                self.base = value & 0xf8;
                match (self.single, self.icw4_follows) {
                    (false, _) => Expect::Icw3,
                    (true, true) => Expect::Icw4,
                    (true, false) => Expect::Mask,
                }
            }
            // The cascade's wiring is fixed on a PC.
            Expect::Icw3 if self.icw4_follows => Expect::Icw4,
            Expect::Icw3 => Expect::Mask,
            Expect::Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                Expect::Mask
            }
        };
    }
}

/// One of the two chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The first: interrupts 0 to 7, ports 0x20 and 0x21.
    Master,
    /// The second: interrupts 8 to 15, ports 0xa0 and 0xa1.
    Slave,
}

/// Both chips.
#[derive(Clone, Debug, PartialEq)]
pub struct Pic {
    master: Chip,
    slave: Chip,
}

impl Pic {
    /// The pair as firmware leaves it, but with everything masked: vectors 0x08 and 0x70. The inputs in `level` (bit
    /// per interrupt) are level-triggered.
    pub const fn new(level: u16) -> Pic {
        let [low, high] = level.to_le_bytes();
        Pic { master: Chip::new(0x08, low & ELCR_MASK[0]), slave: Chip::new(0x70, high & ELCR_MASK[1]) }
    }

    /// Sets the level of interrupt line `irq` (0 to 15; 2 is the cascade's and ignored).
    pub fn set_line(&mut self, irq: u8, high: bool) {
        match irq {
            CASCADE => {}
            0..=7 => self.master.set_line(irq, high),
            8..=15 => self.slave.set_line(irq - 8, high),
            _ => {}
        }
        self.cascade();
    }

    /// The level of the INTR output.
    #[inline]
    pub fn intr(&self) -> bool {
        // Asked at each turn, and mostly nobody requests anything.
        self.master.irr() & !self.master.imr != 0 && self.master.request().is_some()
    }

    /// The processor's interrupt-acknowledge cycles: the vector. Where no request is left it is the spurious one, that
    /// of input 7, and nothing comes into service.
    pub fn acknowledge(&mut self) -> u8 {
        let (master, slave) = self.acknowledge_chips();
        match (master, slave) {
            (Some(CASCADE), Some(input)) => self.slave.base | input,
            (Some(CASCADE), None) => self.slave.base | 7,
            (Some(input), _) => self.master.base | input,
            (None, _) => self.master.base | 7,
        }
    }

    /// Reads the command port (0x20, 0xa0) or the data port (0x21, 0xa1).
    pub fn read(&mut self, which: Which, data_port: bool) -> u8 {
        fault::point(Site::PicRead);
        if self.chip(which).poll {
            return self.poll(which);
        }
        let chip = self.chip(which);
        match (data_port, chip.read_isr) {
            (true, _) => chip.imr,
            (false, true) => chip.isr,
            (false, false) => chip.irr(),
        }
    }

    /// The interrupt mask, as a read of the data port gives it; `None` where a poll command stands before it.
    #[inline]
    pub const fn mask(&self, which: Which) -> Option<u8> {
        let chip = match which {
            Which::Master => &self.master,
            Which::Slave => &self.slave,
        };
        if chip.poll { None } else { Some(chip.imr) }
    }

    /// Writes the command port (0x20, 0xa0) or the data port (0x21, 0xa1).
    pub fn write(&mut self, which: Which, data_port: bool, value: u8) {
        fault::point(Site::PicWrite);
        let chip = self.chip(which);
        if data_port {
            chip.write_data(value);
        } else {
            chip.write_command(value);
        }
        self.cascade();
    }

    /// Reads an edge/level control register (0x4d0, 0x4d1): a 1 is level.
    pub const fn read_elcr(&self, which: Which) -> u8 {
        match which {
            Which::Master => self.master.level & ELCR_MASK[0],
            Which::Slave => self.slave.level,
        }
    }

    /// Writes an edge/level control register (0x4d0, 0x4d1).
    pub fn write_elcr(&mut self, which: Which, value: u8) {
        match which {
            Which::Master => self.master.level = value & ELCR_MASK[0],
            Which::Slave => self.slave.level = value & ELCR_MASK[1],
        }
        self.cascade();
    }

    fn chip(&mut self, which: Which) -> &mut Chip {
        match which {
            Which::Master => &mut self.master,
            Which::Slave => &mut self.slave,
        }
    }

    /// Input 2 follows the slave's output in either direction: the slave takes its request back when it is gone, and
    /// one that waits behind another needs no new edge.
    fn cascade(&mut self) {
        let bit = 1 << CASCADE;
        if self.slave.request().is_some() {
            self.master.lines |= bit;
            self.master.latched |= bit;
        } else {
            self.master.lines &= !bit;
            self.master.latched &= !bit;
        }
    }

    fn acknowledge_chips(&mut self) -> (Option<u8>, Option<u8>) {
        let master = self.master.request();
        let mut slave = None;
        if let Some(input) = master {
            self.master.acknowledge(input);
            if input == CASCADE {
                slave = self.slave.request();
                if let Some(input) = slave {
                    self.slave.acknowledge(input);
                }
            }
        }
        self.cascade();
        (master, slave)
    }

    /// A read after the poll command: acknowledges, and gives bit 7 and the input, or 0.
    fn poll(&mut self, which: Which) -> u8 {
        let chip = self.chip(which);
        chip.poll = false;
        let request = chip.request();
        if let Some(input) = request {
            chip.acknowledge(input);
        }
        self.cascade();
        request.map_or(0, |input| 0x80 | input)
    }
}

#[cfg(test)]
#[path = "pic_tests.rs"]
mod tests;
