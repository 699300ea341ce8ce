//! Which scan codes a key has (IBM PS/2 Hardware Interface Technical Reference, "Keyboards": scan code set 2, US
//! layout; "Keyboard and Auxiliary Device Controller": translation to set 1).

use lamina_vmm::chipset::Key;

/// Set 2: prefix of keys that the first AT keyboard did not have.
pub const EXTENDED: u8 = 0xe0;
const SHIFT: u8 = 0x12;
const CONTROL: u8 = 0x14;
/// Set 2, of the letters from a on.
const LETTERS: [u8; 26] = [
    0x1c, 0x32, 0x21, 0x23, 0x24, 0x2b, 0x34, 0x33, 0x43, 0x3b, 0x42, 0x4b, 0x3a, 0x31, 0x44, 0x4d, 0x15, 0x2d, 0x1b,
    0x2c, 0x3c, 0x2a, 0x1d, 0x22, 0x35, 0x1a,
];
/// Set 2: character, the same with Shift, code.
const SIGNS: [(char, char, u8); 21] = [
    ('0', ')', 0x45),
    ('1', '!', 0x16),
    ('2', '@', 0x1e),
    ('3', '#', 0x26),
    ('4', '$', 0x25),
    ('5', '%', 0x2e),
    ('6', '^', 0x36),
    ('7', '&', 0x3d),
    ('8', '*', 0x3e),
    ('9', '(', 0x46),
    ('-', '_', 0x4e),
    ('=', '+', 0x55),
    ('[', '{', 0x54),
    (']', '}', 0x5b),
    ('\\', '|', 0x5d),
    (';', ':', 0x4c),
    ('\'', '"', 0x52),
    ('`', '~', 0x0e),
    (',', '<', 0x41),
    ('.', '>', 0x49),
    ('/', '?', 0x4a),
];
/// Set 2: F1 to F12.
const FUNCTIONS: [u8; 12] = [0x05, 0x06, 0x04, 0x0c, 0x03, 0x0b, 0x83, 0x0a, 0x01, 0x09, 0x78, 0x07];

/// Set 1, by the code of set 2.
const SET_1: [u8; 128] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59, // 0x00
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b, // 0x10
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d, // 0x20
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f, // 0x30
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61, // 0x40
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76, // 0x50
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f, // 0x60
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54, // 0x70
];

/// A key with what must be held down with it, in set 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stroke {
    pub code: u8,
    pub extended: bool,
    pub modifier: Option<u8>,
}

/// The stroke that is `key`; `None` where the keyboard has no such key.
pub fn stroke(key: Key) -> Option<Stroke> {
    let extended = |code| Some(Stroke { code, extended: true, modifier: None });
    match key {
        Key::Char(character) => character_stroke(character),
        Key::Up => extended(0x75),
        Key::Down => extended(0x72),
        Key::Left => extended(0x6b),
        Key::Right => extended(0x74),
        Key::Home => extended(0x6c),
        Key::End => extended(0x69),
        Key::PageUp => extended(0x7d),
        Key::PageDown => extended(0x7a),
        Key::Insert => extended(0x70),
        Key::Delete => extended(0x71),
        Key::Function(n) => plain(*FUNCTIONS.get(usize::from(n.checked_sub(1)?))?),
    }
}

/// What the controller makes of `code` of set 2, unless it is a prefix. Answers of the keyboard stay as they are.
pub fn set_1(code: u8) -> u8 {
    match code {
        // F7 and Alt-SysRq are the two beyond the table.
        0x83 => 0x41,
        0x84 => 0x54,
        _ => SET_1.get(usize::from(code)).copied().unwrap_or(code),
    }
}

fn plain(code: u8) -> Option<Stroke> {
    Some(Stroke { code, extended: false, modifier: None })
}

fn letter(byte: u8) -> Option<u8> {
    LETTERS.get(usize::from(byte.checked_sub(b'a')?)).copied()
}

fn character_stroke(character: char) -> Option<Stroke> {
    let with = |modifier, code| Some(Stroke { code, extended: false, modifier: Some(modifier) });
    match character {
        '\n' | '\r' => plain(0x5a),
        '\t' => plain(0x0d),
        '\x08' | '\x7f' => plain(0x66),
        '\x1b' => plain(0x76),
        ' ' => plain(0x29),
        '\x01'..='\x1a' => with(CONTROL, letter(u8::try_from(character).ok()? | 0x60)?),
        'a'..='z' => plain(letter(u8::try_from(character).ok()?)?),
        'A'..='Z' => with(SHIFT, letter(u8::try_from(character).ok()? | 0x20)?),
        _ => SIGNS.iter().find_map(|&(normal, shifted, code)| match character {
            c if c == normal => plain(code),
            c if c == shifted => with(SHIFT, code),
            _ => None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn every_character_of_ascii_that_a_keyboard_types_has_its_own_stroke() {
        let strokes: BTreeSet<_> = (0x20u8..0x7f)
            .map(|byte| stroke(Key::Char(char::from(byte))).map(|s| (s.code, s.modifier)).unwrap())
            .collect();
        assert_eq!(strokes.len(), 0x7f - 0x20);
        assert_eq!(stroke(Key::Char('é')), None);
        assert_eq!(stroke(Key::Char('\0')), None);
        assert_eq!(stroke(Key::Function(0)), None);
        assert_eq!(stroke(Key::Function(13)), None);
    }

    #[test]
    fn the_translation_gives_the_codes_of_the_first_pc_to_its_keys() {
        // On the PC's keyboard the top row's codes count up from 2, the second's from 0x10 and so on.
        let row = |keys: &str, first: u8| {
            for (code, key) in (first..).zip(keys.chars()) {
                assert_eq!(set_1(stroke(Key::Char(key)).unwrap().code), code, "{key}");
            }
        };
        row("1234567890-=\x08\t", 0x02);
        row("qwertyuiop[]\n", 0x10);
        row("asdfghjkl;'`", 0x1e);
        row("\\zxcvbnm,./", 0x2b);
        for (n, code) in (1..=10).zip(0x3b..) {
            assert_eq!(set_1(stroke(Key::Function(n)).unwrap().code), code, "F{n}");
        }
    }

    #[test]
    fn no_two_codes_are_translated_to_one() {
        let translated: BTreeSet<u8> = (1..0x80).map(set_1).collect();
        assert_eq!(translated.len(), 0x7f);
        assert!([0xfa, 0xaa, 0xee, 0xfe, 0xe0, 0xab].iter().all(|&answer| set_1(answer) == answer));
    }
}
