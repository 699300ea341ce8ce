//! The machine's I/O APICs (Intel 82093AA data sheet): which interrupt line goes to which vector.
//!
//! Owns their redirection tables. Every line is masked but those that [`route_isa`] was asked for.

use alloc::vec::Vec;
use core::fmt;

use crate::madt::Madt;
use crate::paging::map_registers;

const SELECT: usize = 0x00;
const WINDOW: usize = 0x10;
const VERSION: u32 = 1;
const REDIRECTION: u32 = 0x10;
const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const ACTIVE_LOW: u32 = 1 << 13;
const NMI: u32 = 4 << 8;

/// What a line's interrupt becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// An interrupt of this vector.
    Vector(u8),
    /// A non-maskable interrupt.
    Nmi,
}

/// One I/O APIC.
#[derive(Debug)]
struct IoApic {
    base: *mut u8,
    first_line: u32,
    lines: u32,
}

/// All of them, in the hands of bring-up alone.
#[derive(Debug)]
pub struct IoApics(Vec<IoApic>);

impl IoApic {
    fn read(&mut self, index: u32) -> u32 {
        // SAFETY: `init` mapped the registers there for good; select and window are aligned 32-bit registers of it, and
        // `&mut` keeps the pair together.
        unsafe {
            self.base.add(SELECT).cast::<u32>().write_volatile(index);
            self.base.add(WINDOW).cast::<u32>().read_volatile()
        }
    }

    fn write(&mut self, index: u32, value: u32) {
        // SAFETY: as above. What is written routes interrupts to vectors that are all handled.
        unsafe {
            self.base.add(SELECT).cast::<u32>().write_volatile(index);
            self.base.add(WINDOW).cast::<u32>().write_volatile(value);
        }
    }
}

/// Finds the I/O APICs that the firmware told of and masks every line. After the page tables are ours.
pub fn init(madt: &Madt) -> IoApics {
    let mut all = Vec::new();
    for io in &madt.io_apics {
        let mut apic = IoApic { base: map_registers(io.address), first_line: io.first_line, lines: 0 };
        apic.lines = (apic.read(VERSION) >> 16 & 0xff) + 1;
        for line in 0..apic.lines {
            apic.write(REDIRECTION + 2 * line, MASKED);
        }
        all.push(apic);
    }
    IoApics(all)
}

/// Why an interrupt cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unroutable {
    /// The firmware told of no I/O APIC that has this line.
    NoLine(u32),
    /// A redirection entry has 8 bits for the ID of the processor's local APIC, and this one has more.
    ApicId(u32),
}

impl fmt::Display for Unroutable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unroutable::NoLine(line) => write!(f, "no I/O APIC has line {line}"),
            Unroutable::ApicId(id) => write!(f, "no I/O APIC reaches the local APIC {id:#x}, whose ID is above 255"),
        }
    }
}

/// Sends the ISA interrupt `irq`, as what `delivery` says, to the processor whose local APIC is `lapic_id`. Returns the line
/// it is on.
///
/// # Errors
/// No I/O APIC has that line, or the ID does not fit into a redirection entry: the line stays masked.
pub fn route_isa(
    apics: &mut IoApics,
    madt: &Madt,
    irq: u8,
    delivery: Delivery,
    lapic_id: u32,
) -> Result<u32, Unroutable> {
    let source = madt.isa(irq);
    let destination = u8::try_from(lapic_id).map_err(|_| Unroutable::ApicId(lapic_id))?;
    let holds = |apic: &&mut IoApic| source.line.checked_sub(apic.first_line).is_some_and(|line| line < apic.lines);
    let apic = apics.0.iter_mut().find(holds).ok_or(Unroutable::NoLine(source.line))?;
    let index = REDIRECTION + 2 * (source.line - apic.first_line);
    let level = if source.level { LEVEL } else { 0 };
    let polarity = if source.active_low { ACTIVE_LOW } else { 0 };
    // The destination first: the low half unmasks.
    apic.write(index + 1, u32::from(destination) << 24);
    apic.write(
        index,
        polarity
            | match delivery {
                Delivery::Vector(vector) => u32::from(vector) | level,
                // Always by its edge.
                Delivery::Nmi => NMI,
            },
    );
    Ok(source.line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    /// What was last written to an I/O APIC with 24 lines, by [`route_isa`].
    fn routed(irq: u8, lapic_id: u32) -> (Result<u32, Unroutable>, [u32; 2]) {
        let mut registers = [0u32; 8];
        let base = registers.as_mut_ptr().cast::<u8>();
        let mut apics = IoApics(alloc::vec![IoApic { base, first_line: 0, lines: 24 }]);
        let result = route_isa(&mut apics, &Madt::default(), irq, Delivery::Vector(0x41), lapic_id);
        (result, [registers[SELECT / 4], registers[WINDOW / 4]])
    }

    #[test]
    fn a_line_that_is_there_is_unmasked_for_a_processor_that_can_be_named() {
        assert_eq!(routed(4, 255), (Ok(4), [0x18, 0x41]));
    }

    #[test]
    fn what_cannot_be_routed_is_told_and_nothing_is_written() {
        assert_eq!(routed(4, 256), (Err(Unroutable::ApicId(256)), [0; 2]));
        assert_eq!(routed(24, 0), (Err(Unroutable::NoLine(24)), [0; 2]));
        let words = [Unroutable::ApicId(256), Unroutable::NoLine(24)].map(|why| format!("{why}"));
        assert!(words[0].contains("0x100") && words[1].contains("line 24"), "{words:?}");
    }
}
