//! What a text mode shows, as text.

use super::memory::Memory;
use alloc::string::String;
use alloc::vec::Vec;

/// The most that a text mode of a VGA shows.
const COLUMNS_MAX: u32 = 132;
const ROWS_MAX: u32 = 60;

/// The PC's character set (code page 437), with the graphics of its control codes.
const CHARACTERS: &str = concat!(
    " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼",
    " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~⌂",
    "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐",
    "└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■ ",
);

/// The lines of the screen, without trailing blanks.
pub fn lines(crtc: &[u8; 25], memory: &Memory) -> Vec<String> {
    let characters: Vec<char> = CHARACTERS.chars().collect();
    let overflow = u32::from(crtc[0x07]);
    let last_line = u32::from(crtc[0x12]) | overflow << 7 & 0x100 | overflow << 3 & 0x200;
    let line_height = u32::from(crtc[0x09] & 0x1f) + 1;
    let columns = (u32::from(crtc[0x01]) + 1).min(COLUMNS_MAX);
    let rows = ((last_line + 1) / line_height).min(ROWS_MAX);
    let start = u32::from(u16::from_be_bytes([crtc[0x0c], crtc[0x0d]]));
    // The offset register counts words of two characters.
    let pitch = 2 * u32::from(crtc[0x13]);
    let character = |at: u32| {
        // Characters are at the even positions of plane 0, their attributes likewise in plane 1.
        let code = memory.at(0, 2 * (at & 0x7fff));
        characters.get(usize::from(code)).copied().unwrap_or(' ')
    };
    (0..rows)
        .map(|row| {
            let mut line: String = (0..columns).map(|column| character(start + row * pitch + column)).collect();
            line.truncate(line.trim_end().len());
            line
        })
        .collect()
}

/// The palette of the text modes: 64 colours, two bits each of red, green and blue, where the low bit of an index's
/// bits adds a third and the high one two; the rest is black. Unit: 6 bits.
pub fn palette() -> Vec<[u8; 3]> {
    (0..=255u8)
        .map(|index| {
            let part = |high: u8, low: u8| 42 * (index >> high & 1) + 21 * (index >> low & 1);
            if index < 64 { [part(2, 5), part(1, 4), part(0, 3)] } else { [0; 3] }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_character_set_has_256_characters_and_ascii_in_its_place() {
        let characters: Vec<char> = CHARACTERS.chars().collect();
        assert_eq!(characters.len(), 256);
        assert!((0x20u8..0x7f).all(|code| characters[usize::from(code)] == char::from(code)));
        let known =
            [(0x01, '☺'), (0x10, '►'), (0x80, 'Ç'), (0xb0, '░'), (0xb3, '│'), (0xc4, '─'), (0xdb, '█'), (0xe1, 'ß')];
        assert!(known.iter().all(|&(code, character)| characters[code] == character));
        assert_eq!((characters[0xcd], characters[0xba], characters[0xfe]), ('═', '║', '■'));
    }

    #[test]
    fn grey_is_the_seventh_colour_and_white_the_last() {
        let palette = palette();
        assert_eq!((palette[0x07], palette[0x3f], palette[0x38]), ([42; 3], [63; 3], [21; 3]));
        assert_eq!((palette[0x01], palette[0x04], palette[0x14]), ([0, 0, 42], [42, 0, 0], [42, 21, 0]));
    }
}
