//! Display memory: four planes of 64 KiB, and how the processor's accesses reach them (IBM Video Subsystem Technical
//! Reference, "Display Memory", "Graphics Controller").

use alloc::vec;
use alloc::vec::Vec;

/// Positions of each plane.
const POSITIONS: usize = 0x1_0000;
/// Sequencer memory mode: the low two address bits are the plane.
const CHAIN_4: u8 = 1 << 3;
/// Sequencer memory mode: the low address bit is not the plane.
const SEQUENTIAL: u8 = 1 << 2;
/// Graphics mode: reads take the plane from the low address bit.
const READ_ODD_EVEN: u8 = 1 << 4;
/// Graphics mode: reads compare colours.
const READ_COMPARE: u8 = 1 << 3;

/// The planes and the latches between them and the processor.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// One position of all four planes each.
    positions: Vec<[u8; 4]>,
    latches: [u8; 4],
}

impl Memory {
    pub fn new() -> Memory {
        Memory { positions: vec![[0; 4]; POSITIONS], latches: [0; 4] }
    }

    /// Fills a text screen with grey blanks.
    pub fn blank(&mut self) {
        for [character, attribute, ..] in self.positions.iter_mut().step_by(2) {
            (*character, *attribute) = (b' ', 0x07);
        }
    }

    /// The byte at `position` of `plane`; both wrap.
    pub fn at(&self, plane: usize, position: u32) -> u8 {
        self.positions[position as usize % POSITIONS][plane & 3]
    }

    /// The processor reads `offset` from the window's start.
    pub fn read(&mut self, offset: u32, sequencer: &[u8; 5], graphics: &[u8; 9]) -> u8 {
        let [_, _, compare, _, map, mode, _, care, _] = *graphics;
        let (plane, position) = if sequencer[4] & CHAIN_4 != 0 {
            (offset & 3, offset & !3)
        } else if mode & READ_ODD_EVEN != 0 {
            (u32::from(map) & 2 | offset & 1, offset & !1)
        } else {
            (u32::from(map) & 3, offset)
        };
        self.latches = self.positions[position as usize % POSITIONS];
        if mode & READ_COMPARE == 0 {
            return self.latches[plane as usize & 3];
        }
        // A pixel's bit is set where the planes that matter have the colour that is looked for.
        let mut equal = 0xff;
        for (n, latch) in self.latches.into_iter().enumerate() {
            if care >> n & 1 != 0 {
                equal &= !(latch ^ spread(compare, n));
            }
        }
        equal
    }

    /// The processor writes `value` at `offset` from the window's start.
    pub fn write(&mut self, offset: u32, value: u8, sequencer: &[u8; 5], graphics: &[u8; 9]) {
        let [set_reset, enable, _, rotate, _, mode, _, _, bit_mask] = *graphics;
        let (chained, position) = if sequencer[4] & CHAIN_4 != 0 {
            (1 << (offset & 3), offset & !3)
        } else if sequencer[4] & SEQUENTIAL == 0 {
            (0b0101 << (offset & 1), offset & !1)
        } else {
            (0b1111, offset)
        };
        let planes = sequencer[2] & chained;
        let rotated = value.rotate_right(u32::from(rotate & 7));
        let place = &mut self.positions[position as usize % POSITIONS];
        for (n, byte) in place.iter_mut().enumerate() {
            if planes >> n & 1 == 0 {
                continue;
            }
            let latch = self.latches[n];
            let (source, mask) = match mode & 3 {
                // As they are.
                1 => (latch, 0xff),
                // A colour for all pixels of the byte.
                2 => (combine(rotate, spread(value, n), latch), bit_mask),
                3 => (combine(rotate, spread(set_reset, n), latch), bit_mask & rotated),
                _ if enable >> n & 1 != 0 => (combine(rotate, spread(set_reset, n), latch), bit_mask),
                _ => (combine(rotate, rotated, latch), bit_mask),
            };
            *byte = source & mask | latch & !mask;
        }
    }
}

/// Bit `n` of `bits`, eight times.
const fn spread(bits: u8, n: usize) -> u8 {
    if bits >> (n & 3) & 1 != 0 { 0xff } else { 0 }
}

/// The logical operation of the data rotate register.
const fn combine(rotate: u8, value: u8, latch: u8) -> u8 {
    match rotate >> 3 & 3 {
        0 => value,
        1 => value & latch,
        2 => value | latch,
        _ => value ^ latch,
    }
}
