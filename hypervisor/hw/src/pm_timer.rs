//! The ACPI PM timer as a clock of known rate (ACPI specification, "Power Management Timer").
//!
//! Owns its port, of which it only reads, and what the FADT says of it.

use x86_64::instructions::port::Port;

use crate::acpi::{port, u32_at};
use crate::reference::{Counter, Rate};

/// Offsets in the FADT (ACPI specification, "Fixed ACPI Description Table (FADT)"). Unit: bytes.
mod fadt {
    pub const PM_TMR_BLK: usize = 76;
    pub const PM_TMR_LEN: usize = 91;
    pub const FLAGS: usize = 112;
    pub const X_PM_TMR_BLK: usize = 208;
}

/// FADT flag TMR_VAL_EXT: the timer has 32 bits, else 24.
const TMR_VAL_EXT: u32 = 1 << 8;
/// FADT flag HW_REDUCED_ACPI: there is no such timer, whatever the other fields say.
const HW_REDUCED_ACPI: u32 = 1 << 20;
/// What PM_TMR_LEN is where there is a timer. Unit: bytes.
const LENGTH: u8 = 4;

/// The timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    port: u16,
    mask: u32,
}

impl PmTimer {
    /// The timer that a FADT tells of, header included. Its 64-bit address comes first; one that is no I/O port is passed
    /// over.
    pub(crate) fn of_fadt(table: &[u8]) -> Option<PmTimer> {
        let flags = u32_at(table, fadt::FLAGS)?;
        if flags & HW_REDUCED_ACPI != 0 || *table.get(fadt::PM_TMR_LEN)? != LENGTH {
            return None;
        }
        let narrow = || u16::try_from(u32_at(table, fadt::PM_TMR_BLK)?).ok().filter(|&port| port != 0);
        let port = port(table, fadt::X_PM_TMR_BLK).or_else(narrow)?;
        Some(PmTimer { port, mask: if flags & TMR_VAL_EXT != 0 { u32::MAX } else { 0xff_ffff } })
    }
}

impl Counter for PmTimer {
    fn rate(&self) -> Rate {
        // 3.579545 MHz: 14.318181… MHz / 4.
        Rate { steps: 39_375_000, seconds: 11 }
    }

    fn mask(&self) -> u32 {
        self.mask
    }

    fn read(&mut self) -> u32 {
        // SAFETY: reading an I/O port reaches no memory; firmware says that the timer is there, of which a read changes
        // nothing.
        unsafe { Port::<u32>::new(self.port).read() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    struct Fadt(Vec<u8>);

    impl Fadt {
        /// As ACPI 2.0 has it, with a timer of 24 bits at the narrow port 0x608.
        fn new() -> Fadt {
            Fadt(vec![0; 244]).with(fadt::PM_TMR_BLK, &[8, 6, 0, 0]).with(fadt::PM_TMR_LEN, &[4])
        }

        fn with(mut self, at: usize, bytes: &[u8]) -> Fadt {
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
            self
        }

        fn wide(self, space: u8, address: u64) -> Fadt {
            self.with(fadt::X_PM_TMR_BLK, &[space, 32, 0, 3]).with(fadt::X_PM_TMR_BLK + 4, &address.to_le_bytes())
        }

        fn timer(&self) -> Option<PmTimer> {
            PmTimer::of_fadt(&self.0)
        }
    }

    const NARROW: Option<PmTimer> = Some(PmTimer { port: 0x608, mask: 0xff_ffff });

    #[test]
    fn the_wide_port_comes_before_the_narrow_one() {
        assert_eq!(Fadt::new().timer(), NARROW);
        assert_eq!(Fadt::new().wide(1, 0x1808).timer(), Some(PmTimer { port: 0x1808, mask: 0xff_ffff }));
        // In memory, nowhere, and no port at all.
        for (space, address) in [(0, 0x1808), (1, 0), (1, 0x1_0000), (0x7f, 0x1808)] {
            assert_eq!(Fadt::new().wide(space, address).timer(), NARROW, "{space} {address:#x}");
        }
    }

    #[test]
    fn its_bits_are_24_or_32() {
        let timer = Fadt::new().with(fadt::FLAGS, &(1u32 << 8).to_le_bytes()).timer();
        assert_eq!(timer, Some(PmTimer { port: 0x608, mask: u32::MAX }));
        assert_eq!(Fadt::new().with(fadt::FLAGS, &(!(1u32 << 8 | 1 << 20)).to_le_bytes()).timer(), NARROW);
    }

    #[test]
    fn where_the_table_has_none_there_is_none() {
        assert_eq!(Fadt::new().with(fadt::PM_TMR_LEN, &[0]).timer(), None);
        assert_eq!(Fadt::new().with(fadt::PM_TMR_BLK, &[0; 4]).timer(), None);
        assert_eq!(Fadt::new().with(fadt::PM_TMR_BLK, &[8, 6, 1, 0]).timer(), None, "no port");
        assert_eq!(Fadt::new().with(fadt::FLAGS, &(1u32 << 20).to_le_bytes()).timer(), None, "HW_REDUCED_ACPI");
    }

    #[test]
    fn a_table_that_is_cut_off_is_read_as_far_as_it_goes() {
        for length in 0..=244 {
            let mut table = Fadt::new().wide(1, 0x1808).0;
            table.truncate(length);
            let port = match length {
                0..116 => None,
                116..220 => Some(0x608),
                _ => Some(0x1808),
            };
            assert_eq!(PmTimer::of_fadt(&table).map(|timer| timer.port), port, "{length} bytes");
        }
    }
}
