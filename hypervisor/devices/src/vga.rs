//! A VGA display adapter on the ISA bus (IBM Video Subsystem Technical Reference, "VGA Function"), without extensions.
//!
//! Owns the registers, 256 KiB of display memory in four planes, and what of it is a screen of text. Draws nothing: in
//! graphics modes its memory and registers work, and there is no screen to be had. It starts as a VGA BIOS leaves it,
//! in mode 3, so that a guest whose loader has no firmware finds a text screen.
//!
//! Every access to the window at 0xa0000 leaves the guest. That is slow, and text is little: a screen is 4000 bytes. To
//! make it fast, whoever maps guest memory may put ordinary memory under the window and give it to
//! [`Vga::write_memory`] before asking for the screen, as long as [`Vga::window_is_text`]; then the processor's view
//! and the planes' are the same bytes in another order.

mod memory;
mod text;

use crate::clock::Clock;
use alloc::string::String;
use alloc::vec::Vec;
use lamina_arch::time::{Frequency, Tsc};
use memory::Memory;

/// Lines that the beam draws in a second: 31.469 kHz. This clock counts eighths of a line.
const LINE_EIGHTHS_HZ: u64 = 8 * 31_469;
/// Lines of a frame, and those of them that are drawn and before the vertical retrace; mode 3's.
const LINES: u64 = 449;
const LINES_DRAWN: u64 = 400;
const RETRACE_LINES: core::ops::Range<u64> = 412..414;
/// Eighths of a line that are drawn.
const EIGHTHS_DRAWN: u64 = 6;

const INPUT_BLANK: u8 = 1 << 0;
const INPUT_RETRACE: u8 = 1 << 3;
/// Miscellaneous output: the CRT controller is at 0x3d4, not at 0x3b4.
const MISC_COLOUR: u8 = 1 << 0;
const MISC_MEMORY: u8 = 1 << 1;
/// Attribute index: the palette is the display's, not the processor's.
const PALETTE_SHOWN: u8 = 1 << 5;
const CRTC_PROTECT: u8 = 1 << 7;

/// Registers as the BIOS sets them in mode 3.
const SEQUENCER: [u8; 5] = [0x03, 0x00, 0x03, 0x00, 0x02];
const GRAPHICS: [u8; 9] = [0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x0e, 0x00, 0xff];
const CRTC: [u8; 25] = [
    0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0x00, 0x00, 0x00, 0x00, 0x9c, 0x8e, 0x8f,
    0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
];
const ATTRIBUTE: [u8; 21] = [
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x14, 0x07, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x0c, 0x00, 0x0f,
    0x08, 0x00,
];

/// Which registers an index and a data port reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DacMode {
    Read,
    Write,
}

/// The palette and its index registers.
#[derive(Clone, Debug, PartialEq)]
struct Dac {
    colours: Vec<[u8; 3]>,
    mode: DacMode,
    index: u8,
    component: usize,
    mask: u8,
}

impl Dac {
    fn data(&mut self) -> Option<&mut u8> {
        let colour = self.colours.get_mut(usize::from(self.index))?;
        let component = self.component;
        self.component += 1;
        if self.component == 3 {
            self.component = 0;
            self.index = self.index.wrapping_add(1);
        }
        colour.get_mut(component)
    }
}

/// The adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Vga {
    clock: Clock,
    misc: u8,
    feature: u8,
    sequencer_index: u8,
    sequencer: [u8; 5],
    graphics_index: u8,
    graphics: [u8; 9],
    crtc_index: u8,
    crtc: [u8; 25],
    attribute_index: u8,
    attribute: [u8; 21],
    /// The next write to 0x3c0 is data.
    attribute_data: bool,
    dac: Dac,
    memory: Memory,
}

impl Vga {
    /// The adapter in mode 3, its screen empty.
    pub fn new(tsc: Frequency, now: Tsc) -> Vga {
        let mut memory = Memory::new();
        memory.blank();
        Vga {
            clock: Clock::new(tsc, Frequency::from_hz(LINE_EIGHTHS_HZ), now),
            misc: 0x67,
            feature: 0,
            sequencer_index: 0,
            sequencer: SEQUENCER,
            graphics_index: 0,
            graphics: GRAPHICS,
            crtc_index: 0,
            crtc: CRTC,
            attribute_index: PALETTE_SHOWN,
            attribute: ATTRIBUTE,
            attribute_data: false,
            dac: Dac { colours: text::palette(), mode: DacMode::Write, index: 0, component: 0, mask: 0xff },
            memory,
        }
    }

    /// Reads a port of 0x3b4 to 0x3da; `None` where none answers there now.
    pub fn read(&mut self, now: Tsc, port: u16) -> Option<u8> {
        Some(match port {
            0x3b4 | 0x3b5 | 0x3ba if self.misc & MISC_COLOUR != 0 => return None,
            0x3d4 | 0x3d5 | 0x3da if self.misc & MISC_COLOUR == 0 => return None,
            0x3b4 | 0x3d4 => self.crtc_index,
            0x3b5 | 0x3d5 => register(&self.crtc, self.crtc_index),
            0x3ba | 0x3da => {
                self.attribute_data = false;
                self.input_status(now)
            }
            0x3c0 => self.attribute_index,
            0x3c1 => register(&self.attribute, self.attribute_index & 0x1f),
            // Input status 0: the switches say a colour display.
            0x3c2 => 0x10,
            0x3c3 => 1,
            0x3c4 => self.sequencer_index,
            0x3c5 => register(&self.sequencer, self.sequencer_index),
            0x3c6 => self.dac.mask,
            0x3c7 => {
                if self.dac.mode == DacMode::Read {
                    3
                } else {
                    0
                }
            }
            0x3c8 => self.dac.index,
            0x3c9 => self.dac.data().map_or(0, |value| *value),
            0x3ca => self.feature,
            0x3cc => self.misc,
            0x3ce => self.graphics_index,
            0x3cf => register(&self.graphics, self.graphics_index),
            _ => return None,
        })
    }

    /// Writes a port of 0x3b4 to 0x3da. False where none answers there now.
    pub fn write(&mut self, port: u16, value: u8) -> bool {
        match port {
            0x3b4 | 0x3b5 | 0x3ba if self.misc & MISC_COLOUR != 0 => return false,
            0x3d4 | 0x3d5 | 0x3da if self.misc & MISC_COLOUR == 0 => return false,
            0x3b4 | 0x3d4 => self.crtc_index = value & 0x3f,
            0x3b5 | 0x3d5 => self.write_crtc(value),
            0x3ba | 0x3da => self.feature = value & 0x03,
            0x3c0 => self.write_attribute(value),
            0x3c2 => self.misc = value,
            0x3c4 => self.sequencer_index = value & 0x07,
            0x3c5 => set(&mut self.sequencer, self.sequencer_index, value, &[0x03, 0x3d, 0x0f, 0x3f, 0x0e]),
            0x3c6 => self.dac.mask = value,
            0x3c7 | 0x3c8 => {
                self.dac.index = value;
                self.dac.component = 0;
                self.dac.mode = if port == 0x3c7 { DacMode::Read } else { DacMode::Write };
            }
            0x3c9 => {
                if let Some(place) = self.dac.data() {
                    *place = value & 0x3f;
                }
            }
            0x3ce => self.graphics_index = value & 0x0f,
            0x3cf => {
                let masks = [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff];
                set(&mut self.graphics, self.graphics_index, value, &masks);
            }
            0x3c3 => {}
            _ => return false,
        }
        true
    }

    /// Reads the byte `offset` into the window at 0xa0000 (128 KiB); `None` where no memory answers there now.
    pub fn read_memory(&mut self, offset: u64) -> Option<u8> {
        let offset = self.in_window(offset)?;
        Some(self.memory.read(offset, &self.sequencer, &self.graphics))
    }

    /// Writes the byte `offset` into the window at 0xa0000 (128 KiB). False where no memory answers there now.
    pub fn write_memory(&mut self, offset: u64, value: u8) -> bool {
        let Some(offset) = self.in_window(offset) else { return false };
        self.memory.write(offset, value, &self.sequencer, &self.graphics);
        true
    }

    /// Whether the window at 0xb8000 is, byte by byte, characters and attributes.
    pub fn window_is_text(&self) -> bool {
        let [_, _, mask, _, mode] = self.sequencer;
        let [_, enable, _, function, _, write, miscellaneous, _, bits] = self.graphics;
        // Odd/even addressing both ways, planes 0 and 1, nothing done to what is written, 0xb8000.
        self.misc & MISC_MEMORY != 0
            && mask & 3 == 3
            && mode & 0x0c == 0
            && enable == 0
            && function == 0
            && write & 0x1b == 0x10
            && miscellaneous & 0x0d == 0x0c
            && bits == 0xff
    }

    /// The lines of the screen without trailing blanks; `None` in a graphics mode.
    pub fn screen(&self) -> Option<Vec<String>> {
        const GRAPHICS_MODE: u8 = 1 << 0;
        if self.graphics[6] & GRAPHICS_MODE != 0 {
            return None;
        }
        Some(text::lines(&self.crtc, &self.memory))
    }

    /// Where `offset` in the window is in the part that the adapter answers to.
    fn in_window(&self, offset: u64) -> Option<u32> {
        let (first, length) = match self.graphics[6] >> 2 & 3 {
            0 => (0, 0x2_0000),
            1 => (0, 0x1_0000),
            2 => (0x1_0000, 0x8000),
            _ => (0x1_8000, 0x8000),
        };
        if self.misc & MISC_MEMORY == 0 {
            return None;
        }
        let at = offset.checked_sub(first)?;
        if at < length { u32::try_from(at).ok() } else { None }
    }

    fn input_status(&self, now: Tsc) -> u8 {
        let eighths = self.clock.ticks(now);
        let line = eighths / 8 % LINES;
        if RETRACE_LINES.contains(&line) {
            INPUT_RETRACE | INPUT_BLANK
        } else if line >= LINES_DRAWN || eighths % 8 >= EIGHTHS_DRAWN {
            INPUT_BLANK
        } else {
            0
        }
    }

    fn write_crtc(&mut self, value: u8) {
        let index = usize::from(self.crtc_index);
        let protected = self.crtc[0x11] & CRTC_PROTECT != 0;
        match self.crtc.get_mut(index) {
            // Only the line compare register's bit 8 is not protected.
            Some(place) if protected && index == 7 => *place = *place & !0x10 | value & 0x10,
            Some(_) if protected && index < 7 => {}
            Some(place) => *place = value,
            None => {}
        }
    }

    fn write_attribute(&mut self, value: u8) {
        if !self.attribute_data {
            self.attribute_index = value & 0x3f;
        } else if self.attribute_index & PALETTE_SHOWN == 0 || self.attribute_index & 0x1f >= 0x10 {
            let index = self.attribute_index & 0x1f;
            let mask = match index {
                0x00..=0x0f | 0x12 => 0x3f,
                0x10 => 0xef,
                0x13 | 0x14 => 0x0f,
                _ => 0xff,
            };
            if let Some(place) = self.attribute.get_mut(usize::from(index)) {
                *place = value & mask;
            }
        }
        self.attribute_data = !self.attribute_data;
    }
}

fn register(registers: &[u8], index: u8) -> u8 {
    registers.get(usize::from(index)).copied().unwrap_or(0)
}

fn set(registers: &mut [u8], index: u8, value: u8, masks: &[u8]) {
    let index = usize::from(index);
    if let (Some(place), Some(mask)) = (registers.get_mut(index), masks.get(index)) {
        *place = value & mask;
    }
}

#[cfg(test)]
#[path = "vga_tests.rs"]
mod tests;
