//! The host's MADT (ACPI specification, "Multiple APIC Description Table (MADT)"): its processors and I/O APICs.
//!
//! Owns what the entries mean and nothing of the result's use. Firmware can be wrong: every length is checked, and what
//! makes no sense is left out.

use alloc::vec::Vec;
use lamina_arch::addr::Hpa;

use crate::acpi::{HEADER, u32_at};

/// Where the I/O APIC is on every PC that does not say otherwise.
const USUAL_IO_APIC: Hpa = Hpa(0xfec0_0000);

/// One I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApicEntry {
    /// Its registers.
    pub address: Hpa,
    /// Its first line's number among all I/O APICs' lines.
    pub first_line: u32,
}

/// An ISA interrupt's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsaSource {
    /// The ISA interrupt.
    pub irq: u8,
    /// Its line.
    pub line: u32,
    /// Level-triggered instead of edge-triggered.
    pub level: bool,
    /// Active low instead of high.
    pub active_low: bool,
}

/// What the MADT says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Madt {
    /// Processors that can be used.
    pub processors: u32,
    /// I/O APICs; at least one.
    pub io_apics: Vec<IoApicEntry>,
    /// ISA interrupts that are not where one would think.
    pub overrides: Vec<IsaSource>,
}

impl Madt {
    /// Where the ISA interrupt `irq` is: on the line of its number, edge-triggered and active high, unless an override
    /// says otherwise.
    pub fn isa(&self, irq: u8) -> IsaSource {
        let usual = IsaSource { irq, line: u32::from(irq), level: false, active_low: false };
        self.overrides.iter().find(|o| o.irq == irq).copied().unwrap_or(usual)
    }

    /// What `table` says. Where there is none, or it names no I/O APIC: a PC as they usually are.
    pub(crate) fn of(table: Option<&[u8]>) -> Madt {
        let mut madt = table.map(Madt::parse).unwrap_or_default();
        if madt.io_apics.is_empty() {
            madt.io_apics.push(IoApicEntry { address: USUAL_IO_APIC, first_line: 0 });
        }
        madt.processors = madt.processors.max(1);
        madt
    }

    /// Reads the entries of a MADT, header included.
    fn parse(table: &[u8]) -> Madt {
        let mut madt = Madt::default();
        let mut rest = table.get(HEADER + 8..).unwrap_or(&[]);
        while let [kind, length, ..] = *rest {
            let length = usize::from(length);
            if length < 2 || length > rest.len() {
                break;
            }
            let (entry, after) = rest.split_at(length);
            rest = after;
            match kind {
                // Processor local APIC, and local x2APIC: flag 0 is "enabled".
                0 => madt.processors += u32_at(entry, 4).unwrap_or(0) & 1,
                9 => madt.processors += u32_at(entry, 8).unwrap_or(0) & 1,
                1 => {
                    if let (Some(address), Some(first_line)) = (u32_at(entry, 4), u32_at(entry, 8)) {
                        madt.io_apics.push(IoApicEntry { address: Hpa(u64::from(address)), first_line });
                    }
                }
                2 => {
                    if let (Some(&irq), Some(line), Some(&flags)) = (entry.get(3), u32_at(entry, 4), entry.get(8)) {
                        // Polarity in bits 0 and 1, trigger in 2 and 3; 0 is the ISA bus's own, 3 the other kind.
                        let (active_low, level) = (flags & 3 == 3, flags >> 2 & 3 == 3);
                        madt.overrides.push(IsaSource { irq, line, level, active_low });
                    }
                }
                _ => {}
            }
        }
        madt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[u8]) -> Vec<u8> {
        let mut table = [0; HEADER + 8].to_vec();
        table.extend_from_slice(entries);
        table
    }

    #[test]
    fn reads_processors_io_apics_and_overrides() {
        let mut entries = Vec::new();
        entries.extend([0, 8, 0, 0, 1, 0, 0, 0]);
        entries.extend([0, 8, 1, 1, 0, 0, 0, 0]);
        entries.extend([1, 12, 2, 0, 0, 0x10, 0xc0, 0xfe, 24, 0, 0, 0]);
        entries.extend([2, 10, 0, 9, 20, 0, 0, 0, 0x0f, 0]);
        let madt = Madt::parse(&table(&entries));
        assert_eq!(madt.processors, 1);
        assert_eq!(madt.io_apics, [IoApicEntry { address: Hpa(0xfec0_1000), first_line: 24 }]);
        assert_eq!(madt.isa(9), IsaSource { irq: 9, line: 20, level: true, active_low: true });
        assert_eq!(madt.isa(4), IsaSource { irq: 4, line: 4, level: false, active_low: false });
    }

    #[test]
    fn entries_that_lie_about_their_length_end_the_walk() {
        let good = [0, 8, 0, 0, 1, 0, 0, 0];
        for bad in [&[1, 0][..], &[1, 1, 0], &[2, 200, 0, 0], &[1], &[2, 2], &[1, 4, 0, 0]] {
            let entries = [&good[..], bad].concat();
            let madt = Madt::parse(&table(&entries));
            assert_eq!((madt.processors, madt.io_apics.len(), madt.overrides.len()), (1, 0, 0), "{bad:?}");
        }
        assert_eq!(Madt::parse(&[]), Madt::default());
    }

    #[test]
    fn without_a_table_it_is_a_usual_pc() {
        let usual = [IoApicEntry { address: USUAL_IO_APIC, first_line: 0 }];
        for empty in [None, Some(&table(&[])[..])] {
            let madt = Madt::of(empty);
            assert_eq!((madt.processors, &madt.io_apics[..]), (1, &usual[..]));
        }
    }
}
