//! The machine's I/O APICs (Intel 82093AA data sheet): which interrupt line goes to which vector.
//!
//! Owns their redirection tables. Every line is masked but those that [`route_isa`] was asked for.

use alloc::vec::Vec;

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

/// Sends the ISA interrupt `irq`, as what `delivery` says, to the processor whose local APIC is `lapic_id`. Returns the line it is
/// on, or `None` where no I/O APIC has that line or the ID does not fit into a redirection entry.
pub fn route_isa(apics: &mut IoApics, madt: &Madt, irq: u8, delivery: Delivery, lapic_id: u32) -> Option<u32> {
    let source = madt.isa(irq);
    let destination = u8::try_from(lapic_id).ok()?;
    let holds = |apic: &&mut IoApic| source.line.checked_sub(apic.first_line).is_some_and(|line| line < apic.lines);
    let apic = apics.0.iter_mut().find(holds)?;
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
    Some(source.line)
}
