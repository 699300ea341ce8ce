//! ACPI's fixed hardware: PM1a event and control blocks and the power management timer (ACPI Specification, "ACPI
//! Hardware Specification", "Fixed Hardware Features").
//!
//! Owns those registers and the level of the system control interrupt. The tables that tell a guest where they are
//! belong to whoever loads it; they must say that the timer has 32 bits (FADT flag TMR_VAL_EXT).

use crate::clock::Clock;
use bitflags::bitflags;
use lamina_arch::time::{Frequency, Tsc};
use lamina_vmm::chipset::Signal;
use lamina_vmm::fault::{self, Site};
use lamina_vmm::layout::S5_SLP_TYP;

/// Rate of the timer. Unit: Hz.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// Length of the whole block: event (4 bytes), control (2), 2 unused, timer (4). Unit: bytes.
pub const BLOCK_SIZE: u8 = 12;

bitflags! {
    /// PM1 status and enable registers. Only the timer's event ever happens; the enable bits of the others are kept as
    /// written all the same, because a guest that reads one back cleared takes the event for broken.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Pm1: u16 {
        /// The timer's bit 31 changed.
        const TIMER = 1 << 0;
        const GLOBAL = 1 << 5;
        const POWER_BUTTON = 1 << 8;
        const SLEEP_BUTTON = 1 << 9;
        const RTC = 1 << 10;
    }
}

/// Control: the chipset is in ACPI mode; always, as there is no other.
const SCI_EN: u16 = 1 << 0;
/// Control: writable and without effect (bus master reload, sleep type).
const CONTROL_KEPT: u16 = 1 << 1 | 7 << 10;
const SLP_EN: u16 = 1 << 13;

/// The registers.
#[derive(Clone, Debug, PartialEq)]
pub struct AcpiPm {
    clock: Clock,
    status: Pm1,
    enable: Pm1,
    control: u16,
    /// How often the timer's bit 31 had changed when the status was brought up to date.
    changes: u64,
}

impl AcpiPm {
    /// As after power-on at `now`, in ACPI mode.
    pub const fn new(tsc: Frequency, now: Tsc) -> AcpiPm {
        AcpiPm {
            clock: Clock::new(tsc, Frequency::from_hz(PM_TIMER_HZ), now),
            status: Pm1::empty(),
            enable: Pm1::empty(),
            control: SCI_EN,
            changes: 0,
        }
    }

    /// Reads from `offset` in the block, in one access: the timer never tears.
    pub fn read(&mut self, now: Tsc, offset: u8, data: &mut [u8]) {
        fault::point(Site::PmRead);
        self.advance(now);
        let mut block = [0xff; BLOCK_SIZE as usize];
        block[0..2].copy_from_slice(&self.status.bits().to_le_bytes());
        block[2..4].copy_from_slice(&self.enable.bits().to_le_bytes());
        block[4..6].copy_from_slice(&self.control.to_le_bytes());
        block[8..12].copy_from_slice(&self.timer(now).to_le_bytes());
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = block.get(usize::from(offset) + n).copied().unwrap_or(0xff);
        }
    }

    /// Writes from `offset` in the block.
    pub fn write(&mut self, now: Tsc, offset: u8, data: &[u8]) -> Signal {
        fault::point(Site::PmWrite);
        self.advance(now);
        let mut signal = Signal::None;
        for (at, &byte) in (usize::from(offset)..).zip(data) {
            match at {
                0 => self.status -= Pm1::from_bits_truncate(u16::from(byte)),
                1 => self.status -= Pm1::from_bits_truncate(u16::from(byte) << 8),
                2 => self.enable = Pm1::from_bits_truncate(self.enable.bits() & 0xff00 | u16::from(byte)),
                3 => self.enable = Pm1::from_bits_truncate(self.enable.bits() & 0x00ff | u16::from(byte) << 8),
                4 => self.control = self.control & 0xff00 | u16::from(byte) & CONTROL_KEPT | SCI_EN,
                5 => {
                    let high = u16::from(byte) << 8;
                    self.control = self.control & 0x00ff | high & CONTROL_KEPT;
                    if high & SLP_EN != 0 && high >> 10 & 7 == u16::from(S5_SLP_TYP) {
                        signal = Signal::PowerOff;
                    }
                }
                _ => {}
            }
        }
        signal
    }

    /// The level of the system control interrupt (active high).
    pub fn sci(&self) -> bool {
        self.status.intersects(self.enable)
    }

    /// Sets the timer's status where its top bit has changed by `now`.
    pub fn advance(&mut self, now: Tsc) {
        let changes = self.clock.ticks(now) >> 31;
        if changes != self.changes {
            self.changes = changes;
            self.status |= Pm1::TIMER;
        }
    }

    /// When the timer would raise the interrupt.
    pub fn next_deadline(&self) -> Option<Tsc> {
        if !self.enable.contains(Pm1::TIMER) || self.status.contains(Pm1::TIMER) {
            return None;
        }
        self.clock.when((self.changes + 1).checked_mul(1 << 31)?)
    }

    /// The timer's 32 bits.
    fn timer(&self, now: Tsc) -> u32 {
        (self.clock.ticks(now) & 0xffff_ffff) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TSC: Frequency = Frequency::from_hz(3_579_545_000);

    fn pm() -> AcpiPm {
        AcpiPm::new(TSC, Tsc(5000))
    }

    fn read<const N: usize>(pm: &mut AcpiPm, now: u64, offset: u8) -> [u8; N] {
        let mut data = [0; N];
        pm.read(Tsc(now), offset, &mut data);
        data
    }

    #[test]
    fn the_timer_counts_3_579545_mhz_from_power_on_and_wraps_at_32_bits() {
        let mut pm = pm();
        assert_eq!(u32::from_le_bytes(read(&mut pm, 5000, 8)), 0);
        assert_eq!(u32::from_le_bytes(read(&mut pm, 5999, 8)), 0);
        assert_eq!(u32::from_le_bytes(read(&mut pm, 6000, 8)), 1);
        assert_eq!(u32::from_le_bytes(read(&mut pm, 5000 + 1000 * 0x1_2345_6789, 8)), 0x2345_6789);
        assert_eq!(read::<1>(&mut pm, 5000 + 1000 * 0x1_2345_6789, 9), [0x67]);
    }

    #[test]
    fn a_change_of_the_timers_top_bit_is_an_interrupt_until_it_is_cleared() {
        let mut pm = pm();
        assert_eq!(pm.next_deadline(), None);
        assert_eq!(pm.write(Tsc(5000), 2, &[1, 0]), Signal::None);
        let deadline = pm.next_deadline().unwrap();
        assert_eq!(deadline, Tsc(5000 + 1000 * (1 << 31)));
        pm.advance(deadline - 1);
        assert!(!pm.sci());
        pm.advance(deadline);
        assert!(pm.sci());
        assert_eq!(pm.next_deadline(), None);
        assert_eq!(read::<2>(&mut pm, deadline.0, 0), [1, 0]);
        assert_eq!(pm.write(deadline, 0, &[1, 0]), Signal::None);
        assert!(!pm.sci());
        assert_eq!(pm.next_deadline(), Some(Tsc(5000 + 1000 * (2 << 31))));
    }

    #[test]
    fn every_fixed_event_can_be_enabled_and_none_but_the_timers_happens() {
        let mut pm = pm();
        assert_eq!(pm.write(Tsc(5000), 2, &[0xff, 0xff]), Signal::None);
        assert_eq!(u16::from_le_bytes(read(&mut pm, 5000, 2)), 0x0721);
        assert!(!pm.sci());
        assert_eq!(pm.write(Tsc(5000), 3, &[0x04]), Signal::None);
        assert_eq!(u16::from_le_bytes(read(&mut pm, 5000, 2)), 0x0421);
    }

    #[test]
    fn sci_en_reads_set_whatever_is_written() {
        let mut pm = pm();
        assert_eq!(read::<2>(&mut pm, 5000, 4), [1, 0]);
        assert_eq!(pm.write(Tsc(5000), 4, &[0, 0]), Signal::None);
        assert_eq!(read::<2>(&mut pm, 5000, 4), [1, 0]);
    }

    #[test]
    fn only_slp_en_with_the_type_of_s5_powers_off() {
        let control = |typ: u16, enable: bool| (1 | typ << 10 | u16::from(enable) << 13).to_le_bytes();
        let s5 = u16::from(S5_SLP_TYP);
        assert_eq!(pm().write(Tsc(5000), 4, &control(s5, false)), Signal::None);
        assert_eq!(pm().write(Tsc(5000), 4, &control(s5 ^ 1, true)), Signal::None);
        assert_eq!(pm().write(Tsc(5000), 4, &control(s5, true)), Signal::PowerOff);
        assert_eq!(pm().write(Tsc(5000), 5, &control(s5, true)[1..]), Signal::PowerOff);
        // SLP_EN reads as 0, the type is kept.
        let mut pm = pm();
        assert_eq!(pm.write(Tsc(5000), 4, &control(1, true)), Signal::None);
        assert_eq!(read::<2>(&mut pm, 5000, 4), control(1, false));
    }

    proptest! {
        #[test]
        fn no_access_panics(accesses in prop::collection::vec((any::<u64>(), any::<u8>(), any::<u32>(), 1usize..=4,
                                                               any::<bool>()), 0..50)) {
            let mut pm = pm();
            for (now, offset, value, width, write) in accesses {
                let mut data = value.to_le_bytes();
                if write {
                    let _ = pm.write(Tsc(now), offset, &data[..width]);
                } else {
                    pm.read(Tsc(now), offset, &mut data[..width]);
                }
                if let Some(deadline) = pm.next_deadline() {
                    pm.advance(deadline);
                }
            }
        }
    }
}
