//! The machine's HPET (IA-PC HPET specification, revision 1.0a, "Register Overview"): a clock of known rate, and the
//! 8254's interrupt given back.
//!
//! Owns its registers. Uses the main counter and none of the comparators.

use lamina_arch::addr::Hpa;

use crate::acpi::memory_address;
use crate::reference::{Counter, Rate};
use crate::{control, paging};

/// Offset of the registers' generic address in the ACPI table "HPET". Unit: bytes.
const TABLE_ADDRESS: usize = 40;
/// Offsets of registers, of which each half can be accessed by itself. Unit: bytes.
mod register {
    /// Upper half of the general capabilities: COUNTER_CLK_PERIOD, the counter's period in femtoseconds.
    pub const PERIOD: usize = 0x04;
    pub const CONFIGURATION: usize = 0x10;
    pub const MAIN_COUNTER: usize = 0xf0;
}
/// The registers, of which those that are used end at 0xf8, are aligned to this. Unit: bytes.
const BLOCK: u64 = 1024;
/// ENABLE_CNF: the main counter counts.
const ENABLE: u32 = 1 << 0;
/// LEG_RT_CNF: comparators 0 and 1 have the interrupts of the 8254 and of the real-time clock.
const LEGACY_REPLACEMENT: u32 = 1 << 1;
/// What the period can be: the specification's 100 ns at most, and at least what the 32 bits that are read take seconds
/// to count through at. Unit: fs.
const PERIODS: core::ops::RangeInclusive<u32> = 1_000_000..=100_000_000;
const FEMTOSECONDS_PER_SECOND: u64 = 1_000_000_000_000_000;

/// Where the ACPI table "HPET" (header included) says that the registers are.
pub(crate) fn address(table: &[u8]) -> Option<Hpa> {
    memory_address(table, TABLE_ADDRESS)
}

/// An HPET.
#[derive(Debug)]
pub struct Hpet {
    registers: *mut u8,
    /// Unit: fs.
    period: u32,
}

impl Hpet {
    /// The HPET at `address`; `None` where no HPET can be or none answers. Once, after the page tables are ours.
    pub fn find(address: Hpa) -> Option<Hpet> {
        let capacity = control::cpuid().get_processor_capacity_feature_info();
        let bits = capacity.map_or(36, |capacity| capacity.physical_address_bits()).min(52);
        if address.0 >> bits != 0 || !address.is_aligned(BLOCK) {
            return None;
        }
        // SAFETY: just mapped for good, a page that has the whole block.
        unsafe { Hpet::at(paging::map_registers(address)) }
    }

    /// The HPET with these registers.
    ///
    /// # Safety
    /// They are mapped for good, and nobody else uses them; or nothing answers there.
    unsafe fn at(registers: *mut u8) -> Option<Hpet> {
        let mut hpet = Hpet { registers, period: 0 };
        hpet.period = hpet.read(register::PERIOD);
        // Where nothing answers, all bits are ones.
        PERIODS.contains(&hpet.period).then_some(hpet)
    }

    fn read(&self, register: usize) -> u32 {
        // SAFETY: `at` got the promise that the registers are there; the offset is an aligned one in the block.
        unsafe { self.registers.add(register).cast::<u32>().read_volatile() }
    }

    fn write(&mut self, register: usize, value: u32) {
        // SAFETY: as in `read`; what is written starts and stops the counter and touches no memory.
        unsafe { self.registers.add(register).cast::<u32>().write_volatile(value) }
    }

    /// Gives the 8254 and the real-time clock their interrupts back, where firmware left them to the HPET; whether it had.
    pub fn end_legacy_replacement(&mut self) -> bool {
        let configuration = self.read(register::CONFIGURATION);
        let replaces = configuration & LEGACY_REPLACEMENT != 0;
        if replaces {
            self.write(register::CONFIGURATION, configuration & !LEGACY_REPLACEMENT);
        }
        replaces
    }

    /// Has the main counter count, for as long as what is returned lives.
    pub fn start(&mut self) -> Counting<'_> {
        let configuration = self.read(register::CONFIGURATION);
        if configuration & ENABLE == 0 {
            self.write(register::CONFIGURATION, configuration | ENABLE);
        }
        Counting { hpet: self, configuration }
    }
}

/// The main counter, counting. Afterwards the configuration is what it was.
#[derive(Debug)]
pub struct Counting<'h> {
    hpet: &'h mut Hpet,
    configuration: u32,
}

impl Counter for Counting<'_> {
    fn rate(&self) -> Rate {
        Rate { steps: FEMTOSECONDS_PER_SECOND, seconds: u64::from(self.hpet.period) }
    }

    fn mask(&self) -> u32 {
        // The lower half, which an HPET of 32 bits has too.
        u32::MAX
    }

    fn read(&mut self) -> u32 {
        self.hpet.read(register::MAIN_COUNTER)
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        if self.configuration & ENABLE == 0 {
            self.hpet.write(register::CONFIGURATION, self.configuration);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Registers that are memory.
    #[repr(align(8))]
    struct Block([u32; 256]);

    impl Block {
        fn new(period: u32, configuration: u32) -> Block {
            let mut block = Block([0; 256]);
            block.0[register::PERIOD / 4] = period;
            block.0[register::CONFIGURATION / 4] = configuration;
            block
        }

        fn hpet(&mut self) -> Option<Hpet> {
            // SAFETY: the block outlives what is made of it in these tests, which read it through the same pointer.
            unsafe { Hpet::at(self.0.as_mut_ptr().cast()) }
        }
    }

    #[test]
    fn the_counter_is_started_for_the_measurement_only() {
        // Whatever else is in the register stays.
        for before in [0xf0, 0xf1] {
            let mut hpet = Block::new(69_841_279, before);
            let mut hpet = hpet.hpet().unwrap();
            let mut counting = hpet.start();
            assert_eq!(counting.hpet.read(register::CONFIGURATION), 0xf1);
            counting.hpet.write(register::MAIN_COUNTER, 77);
            assert_eq!(counting.read(), 77);
            assert_eq!(counting.rate(), Rate { steps: FEMTOSECONDS_PER_SECOND, seconds: 69_841_279 });
            drop(counting);
            assert_eq!(hpet.read(register::CONFIGURATION), before);
        }
    }

    #[test]
    fn the_8254_gets_its_interrupt_back() {
        for (before, after, replaced) in [(0xf3, 0xf1, true), (0xf1, 0xf1, false), (2, 0, true)] {
            let mut hpet = Block::new(10_000_000, before);
            let mut hpet = hpet.hpet().unwrap();
            assert_eq!(hpet.end_legacy_replacement(), replaced);
            assert_eq!(hpet.read(register::CONFIGURATION), after);
        }
    }

    #[test]
    fn what_has_an_impossible_period_is_no_hpet() {
        for (period, there) in [
            (0, false),
            (999_999, false),
            (1_000_000, true),
            (100_000_000, true),
            (100_000_001, false),
            (u32::MAX, false),
        ] {
            assert_eq!(Block::new(period, 0).hpet().is_some(), there, "{period}");
        }
    }
}
