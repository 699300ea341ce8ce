//! The screen: what goes to the serial port, drawn into the framebuffer that the loader set up, where a person looks on.
//!
//! Owns the framebuffer. Text runs from top to bottom and starts again at the top, with one blank row ahead of it: a
//! framebuffer is slow to write and slower to read, so nothing is ever scrolled. The console's own escape sequences are
//! left out. Never waits; draws nothing before [`init`] and nothing while [`show`] says that nobody looks.

use core::slice;

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use spin::Mutex;

/// Height of a row of text. Unit: pixels.
const ROW: usize = RasterHeight::Size16.val();
/// Width of a character. Unit: pixels.
const COLUMN: usize = get_raster_width(FontWeight::Regular, RasterHeight::Size16);
/// A column at which a tabulator stops, and every multiple of it.
const TABULATOR: usize = 8;
/// What is drawn for a character that the font does not have.
const UNKNOWN: char = '?';

/// How a framebuffer is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Unit: pixels.
    pub width: usize,
    /// Unit: pixels.
    pub height: usize,
    /// From one row of pixels to the next. Unit: pixels.
    pub stride: usize,
    /// Unit: bytes, from 1 to 4.
    pub pixel: usize,
}

impl Layout {
    /// Bytes in all, or `None` where the layout makes no sense.
    pub fn bytes(&self) -> Option<usize> {
        let sane = (1..=4).contains(&self.pixel) && self.width <= self.stride;
        sane.then(|| self.stride.checked_mul(self.height)?.checked_mul(self.pixel)).flatten()
    }
}

/// Where in an escape sequence the text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    /// In none.
    No,
    /// Behind ESC.
    Begun,
    /// Behind ESC [.
    Parameters,
}

/// A text screen over the bytes of a framebuffer.
struct Screen<'a> {
    pixels: &'a mut [u8],
    layout: Layout,
    row: usize,
    column: usize,
    escape: Escape,
    shown: bool,
}

impl<'a> Screen<'a> {
    /// `None` where not even one character fits, or the layout does not fit the bytes.
    fn new(pixels: &'a mut [u8], layout: Layout) -> Option<Self> {
        let fits = layout.width >= COLUMN && layout.height >= 2 * ROW && layout.bytes()? <= pixels.len();
        fits.then_some(Screen { pixels, layout, row: 0, column: 0, escape: Escape::No, shown: true })
    }

    const fn rows(&self) -> usize {
        self.layout.height / ROW
    }

    const fn columns(&self) -> usize {
        self.layout.width / COLUMN
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.byte(byte);
        }
    }

    fn byte(&mut self, byte: u8) {
        match (self.escape, byte) {
            (Escape::No, 0x1b) => self.escape = Escape::Begun,
            (Escape::Begun, b'[') => self.escape = Escape::Parameters,
            (Escape::Begun, _) => self.escape = Escape::No,
            // A letter, or one of a few signs, ends the sequence (ECMA-48, "Control sequences").
            (Escape::Parameters, 0x40..=0x7e) => self.escape = Escape::No,
            (Escape::Parameters, _) => {}
            (Escape::No, b'\n') => self.next_row(),
            (Escape::No, b'\r') => self.column = 0,
            (Escape::No, 0x08) => self.column = self.column.saturating_sub(1),
            (Escape::No, b'\t') => self.column = (self.column / TABULATOR + 1) * TABULATOR,
            // One character for each character of UTF-8, at its first byte; other control characters show nothing.
            (Escape::No, 0x80..=0xbf | 0..=0x1f | 0x7f) => {}
            (Escape::No, byte) => self.character(char::from(byte)),
        }
    }

    fn next_row(&mut self) {
        self.column = 0;
        self.row = (self.row + 1) % self.rows();
        self.clear(self.row);
        // The blank row below tells new text from old.
        self.clear((self.row + 1) % self.rows());
    }

    fn clear(&mut self, row: usize) {
        let line = self.layout.stride * self.layout.pixel;
        if let Some(pixels) = self.pixels.get_mut(row * ROW * line..(row + 1) * ROW * line) {
            pixels.fill(0);
        }
    }

    fn character(&mut self, character: char) {
        if self.column >= self.columns() {
            self.next_row();
        }
        let found = get_raster(character, FontWeight::Regular, RasterHeight::Size16)
            .or_else(|| get_raster(UNKNOWN, FontWeight::Regular, RasterHeight::Size16));
        let Some(found) = found else { return };
        let Layout { stride, pixel, .. } = self.layout;
        for (y, line) in found.rows().enumerate() {
            let start = ((self.row * ROW + y) * stride + self.column * COLUMN) * pixel;
            let Some(target) = self.pixels.get_mut(start..start + line.len() * pixel) else { return };
            // Grey is the same in every order of colours.
            for (pixel, &grey) in target.chunks_exact_mut(pixel).zip(line) {
                pixel.fill(grey);
            }
        }
        self.column += 1;
    }
}

/// `None` without a framebuffer. Shared by all processors.
static SCREEN: Mutex<Option<Screen<'static>>> = Mutex::new(None);

/// Takes the framebuffer at `pixels`: from here on, text is drawn there. A second call moves the text to where the
/// framebuffer is then. Returns whether there is a screen.
///
/// # Safety
/// `layout.bytes()` bytes are mapped there, writable, until the next call, and nothing else uses them.
pub unsafe fn init(pixels: *mut u8, layout: Layout) -> bool {
    let Some(bytes) = layout.bytes() else { return false };
    // SAFETY: the caller's promise.
    let pixels = unsafe { slice::from_raw_parts_mut(pixels, bytes) };
    let mut screen = SCREEN.lock();
    let state = screen.as_ref().map(|old| (old.row, old.column, old.escape, old.shown));
    *screen = Screen::new(pixels, layout);
    let Some(new) = screen.as_mut() else { return false };
    match state {
        Some((row, column, escape, shown)) => {
            (new.row, new.column, new.escape, new.shown) = (row, column, escape, shown)
        }
        None => new.pixels.fill(0),
    }
    true
}

/// Whether text is drawn: it costs time that nobody should pay for a screen that nobody sees.
pub fn show(shown: bool) {
    if let Some(screen) = SCREEN.lock().as_mut() {
        screen.shown = shown;
    }
}

/// Draws `bytes`, where there is a screen.
pub fn write(bytes: &[u8]) {
    if let Some(screen) = SCREEN.lock().as_mut()
        && screen.shown
    {
        screen.write(bytes);
    }
}

/// Whether somebody holds the screen's lock.
pub fn is_locked() -> bool {
    SCREEN.is_locked()
}

/// Opens the screen's lock whoever holds it, for the report of a bug.
///
/// # Safety
/// As for [`crate::serial::break_lock`].
pub unsafe fn break_lock() {
    // SAFETY: the caller guarantees that no holder goes on. What it left half drawn is valid.
    unsafe { SCREEN.force_unlock() };
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    const PIXEL: usize = 4;
    const COLUMNS: usize = 10;
    const ROWS: usize = 4;
    /// Some pixels beyond the last column, and some between two rows.
    const LAYOUT: Layout =
        Layout { width: COLUMNS * COLUMN + 3, height: ROWS * ROW + 5, stride: COLUMNS * COLUMN + 16, pixel: PIXEL };

    fn drawn(text: &[u8]) -> Vec<u8> {
        let mut pixels = vec![0; LAYOUT.bytes().unwrap()];
        Screen::new(&mut pixels, LAYOUT).unwrap().write(text);
        pixels
    }

    /// Whether anything is drawn at each place.
    fn places(pixels: &[u8]) -> Vec<Vec<bool>> {
        let at = |row: usize, column: usize| {
            let line = |y: usize| ((row * ROW + y) * LAYOUT.stride + column * COLUMN) * PIXEL;
            (0..ROW).any(|y| pixels[line(y)..line(y) + COLUMN * PIXEL].iter().any(|&byte| byte != 0))
        };
        (0..ROWS).map(|row| (0..COLUMNS).map(|column| at(row, column)).collect()).collect()
    }

    fn picture(text: &[u8]) -> Vec<alloc::string::String> {
        let line = |row: &Vec<bool>| row.iter().map(|&is| if is { 'x' } else { '.' }).collect();
        places(&drawn(text)).iter().map(line).collect()
    }

    #[test]
    fn text_goes_from_left_to_right_and_on_in_the_next_row() {
        assert_eq!(picture(b"ab c\r\nd"), ["xx.x......", "x.........", "..........", ".........."]);
        assert_eq!(picture(b"abcdefghijkl"), ["xxxxxxxxxx", "xx........", "..........", ".........."]);
        assert_eq!(picture(b"a\tb"), ["x.......x.", "..........", "..........", ".........."]);
        assert_eq!(picture(b"a\tb\tc"), ["x.......x.", "x.........", "..........", ".........."]);
    }

    #[test]
    fn it_starts_again_at_the_top_with_a_blank_row_ahead() {
        assert_eq!(picture(b"1\n2\n3\n4\n5"), ["x.........", "..........", "x.........", "x........."]);
    }

    #[test]
    fn colours_and_moves_of_the_console_show_nothing() {
        assert_eq!(drawn(b"\x1b[1;32mab\x1b[0m\x1b[K"), drawn(b"ab"));
        assert_eq!(drawn("\x1b7a\u{e4}".as_bytes()), drawn(b"a?"));
        assert_eq!(drawn(b"abc\x08d"), drawn(b"abd"));
        assert_eq!(drawn(&[0, 7, 0x7f]), drawn(b""));
    }

    #[test]
    fn what_is_drawn_is_grey_and_stays_in_its_place() {
        let pixels = drawn(b"W");
        assert!(pixels.chunks_exact(PIXEL).all(|p| p.iter().all(|&byte| byte == p[0])));
        assert!(places(&pixels).iter().flatten().filter(|&&is| is).count() == 1);
    }

    #[test]
    fn a_framebuffer_that_makes_no_sense_is_none() {
        let mut pixels = vec![0; LAYOUT.bytes().unwrap()];
        for bad in [
            Layout { pixel: 0, ..LAYOUT },
            Layout { pixel: 5, ..LAYOUT },
            Layout { stride: LAYOUT.width - 1, ..LAYOUT },
            Layout { height: LAYOUT.height + 1, ..LAYOUT },
            Layout { height: ROW, ..LAYOUT },
            Layout { width: COLUMN - 1, ..LAYOUT },
            Layout { stride: usize::MAX, ..LAYOUT },
        ] {
            assert!(Screen::new(&mut pixels, bad).is_none(), "{bad:?}");
        }
    }
}
