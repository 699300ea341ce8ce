//! An AT keyboard of the US layout (IBM PS/2 Hardware Interface Technical Reference, "Keyboards"), as the keyboard
//! controller sees it.
//!
//! Owns what the keyboard has to send: answers to commands, and scan codes of keys that the console types, one key at a
//! time: when the next is pressed is the caller's to say. Every answer is there at once. Lights, repeat rate and key types are taken and have no effect; there are scan code sets 2 and 1.

mod keys;

use alloc::collections::VecDeque;
use keys::Stroke;
use lamina_vmm::chipset::Key;

const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;
/// The self-test has passed.
const TEST_PASSED: u8 = 0xaa;
const ECHO: u8 = 0xee;
/// What an MF II keyboard calls itself.
const ID: [u8; 2] = [0xab, 0x83];
/// Set 2: the next code is that of a key which is released.
const RELEASED: u8 = 0xf0;
/// Keys that wait to be pressed: a line of the console has fewer.
const KEYS_MAX: usize = 512;
const ANSWERS_MAX: usize = 16;

/// A command that waits for its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    None,
    ScanCodeSet,
    /// Lights, repeat rate, types of keys.
    Ignored,
}

/// The keyboard.
#[derive(Clone, Debug, PartialEq)]
pub struct Keyboard {
    answers: VecDeque<u8>,
    /// Keys that are not pressed yet.
    waiting: VecDeque<Stroke>,
    /// Scan codes, of set 2, of the key that is.
    codes: VecDeque<u8>,
    scanning: bool,
    set: u8,
    parameter: Parameter,
    /// The last byte sent.
    last: u8,
}

impl Keyboard {
    /// As after its self-test, scanning.
    pub const fn new() -> Keyboard {
        Keyboard {
            answers: VecDeque::new(),
            waiting: VecDeque::new(),
            codes: VecDeque::new(),
            scanning: true,
            set: 2,
            parameter: Parameter::None,
            last: 0,
        }
    }

    /// Puts `key` behind those that are to be pressed. False where there is no such key, no room, or nobody who wants to
    /// know.
    pub fn type_key(&mut self, key: Key) -> bool {
        let Some(stroke) = keys::stroke(key) else { return false };
        if !self.scanning || self.waiting.len() >= KEYS_MAX {
            return false;
        }
        self.waiting.push_back(stroke);
        true
    }

    /// Whether a key waits, and all codes of the one before it were sent.
    pub fn is_ready(&self) -> bool {
        self.codes.is_empty() && !self.waiting.is_empty()
    }

    /// Presses and releases the next key, where there is one.
    pub fn press(&mut self) {
        let Some(stroke) = self.waiting.pop_front() else { return };
        let modifier = stroke.modifier;
        self.codes.extend(modifier);
        let prefix = stroke.extended.then_some(keys::EXTENDED);
        self.codes.extend(prefix);
        self.codes.push_back(stroke.code);
        self.codes.extend(prefix);
        self.codes.extend([RELEASED, stroke.code]);
        self.codes.extend(modifier.map(|_| RELEASED));
        self.codes.extend(modifier);
    }

    /// A byte from the controller.
    pub fn receive(&mut self, value: u8) {
        match core::mem::replace(&mut self.parameter, Parameter::None) {
            Parameter::ScanCodeSet if value == 0 => self.answer(&[ACKNOWLEDGE, self.set]),
            Parameter::ScanCodeSet if value == 1 || value == 2 => {
                self.set = value;
                self.answer(&[ACKNOWLEDGE]);
            }
            Parameter::Ignored if value < 0x80 => self.answer(&[ACKNOWLEDGE]),
            Parameter::ScanCodeSet if value < 0x80 => self.answer(&[RESEND]),
            // A command where a parameter was due is a command.
            _ => self.command(value),
        }
    }

    /// The next byte to send. With `translate`, codes become those of set 1, as by the controller of a PC.
    pub fn send(&mut self, translate: bool) -> Option<u8> {
        let byte = match self.answers.pop_front() {
            Some(answer) if translate => keys::set_1(answer),
            Some(answer) => answer,
            None => self.code(translate)?,
        };
        self.last = byte;
        Some(byte)
    }

    fn code(&mut self, translate: bool) -> Option<u8> {
        let code = self.codes.pop_front()?;
        if !translate && self.set == 2 {
            return Some(code);
        }
        if code == RELEASED {
            return Some(keys::set_1(self.codes.pop_front()?) | 0x80);
        }
        Some(keys::set_1(code))
    }

    fn command(&mut self, value: u8) {
        match value {
            0xed | 0xf3 | 0xfb..=0xfd => {
                self.parameter = Parameter::Ignored;
                self.answer(&[ACKNOWLEDGE]);
            }
            ECHO => self.answer(&[ECHO]),
            0xf0 => {
                self.parameter = Parameter::ScanCodeSet;
                self.answer(&[ACKNOWLEDGE]);
            }
            0xf2 => self.answer(&[ACKNOWLEDGE, ID[0], ID[1]]),
            0xf4..=0xf6 => {
                self.waiting.clear();
                self.codes.clear();
                if value == 0xf6 {
                    self.set = 2;
                } else {
                    self.scanning = value == 0xf4;
                }
                self.answer(&[ACKNOWLEDGE]);
            }
            0xf7..=0xfa => self.answer(&[ACKNOWLEDGE]),
            RESEND => self.answer(&[self.last]),
            0xff => {
                *self = Keyboard::new();
                self.answer(&[ACKNOWLEDGE, TEST_PASSED]);
            }
            _ => self.answer(&[RESEND]),
        }
    }

    fn answer(&mut self, bytes: &[u8]) {
        // Who asks this much without listening loses answers, as with a real one.
        if self.answers.len() + bytes.len() <= ANSWERS_MAX {
            self.answers.extend(bytes);
        }
    }
}

impl Default for Keyboard {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn drain(keyboard: &mut Keyboard, translate: bool) -> Vec<u8> {
        let mut sent = Vec::new();
        loop {
            sent.extend(core::iter::from_fn(|| keyboard.send(translate)));
            if !keyboard.is_ready() {
                return sent;
            }
            keyboard.press();
        }
    }

    fn say(keyboard: &mut Keyboard, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|&byte| keyboard.receive(byte));
        drain(keyboard, false)
    }

    #[test]
    fn commands_are_answered_as_the_manual_says() {
        let mut keyboard = Keyboard::new();
        assert_eq!(drain(&mut keyboard, false), []);
        assert_eq!(say(&mut keyboard, &[0xff]), [0xfa, 0xaa]);
        assert_eq!(say(&mut keyboard, &[0xed, 0x02]), [0xfa, 0xfa]);
        assert_eq!(say(&mut keyboard, &[0xee]), [0xee]);
        assert_eq!(say(&mut keyboard, &[0xfe]), [0xee], "the last byte once more");
        assert_eq!(say(&mut keyboard, &[0xf2]), [0xfa, 0xab, 0x83]);
        assert_eq!(say(&mut keyboard, &[0xf3, 0x20]), [0xfa, 0xfa]);
        assert_eq!(say(&mut keyboard, &[0xf5, 0xf4, 0xf6]), [0xfa, 0xfa, 0xfa]);
        assert_eq!(say(&mut keyboard, &[0x00]), [0xfe], "no command");
        assert_eq!(say(&mut keyboard, &[0xed, 0xf4]), [0xfa, 0xfa], "a command in place of a parameter");
    }

    #[test]
    fn scan_code_sets_2_and_1_can_be_had_and_3_not() {
        let mut keyboard = Keyboard::new();
        assert_eq!(say(&mut keyboard, &[0xf0, 0]), [0xfa, 0xfa, 2]);
        assert_eq!(say(&mut keyboard, &[0xf0, 3]), [0xfa, 0xfe]);
        assert_eq!(say(&mut keyboard, &[0xf0, 1]), [0xfa, 0xfa]);
        assert!(keyboard.type_key(Key::Char('a')));
        assert_eq!(drain(&mut keyboard, false), [0x1e, 0x9e]);
        assert_eq!(say(&mut keyboard, &[0xf6, 0xf0, 0]), [0xfa, 0xfa, 0xfa, 2], "the default");
    }

    #[test]
    fn keys_are_made_and_broken_in_set_2_and_translated_to_set_1() {
        let cases: [(Key, &[u8], &[u8]); 6] = [
            (Key::Char('a'), &[0x1c, 0xf0, 0x1c], &[0x1e, 0x9e]),
            (Key::Char('A'), &[0x12, 0x1c, 0xf0, 0x1c, 0xf0, 0x12], &[0x2a, 0x1e, 0x9e, 0xaa]),
            (Key::Char('\x03'), &[0x14, 0x21, 0xf0, 0x21, 0xf0, 0x14], &[0x1d, 0x2e, 0xae, 0x9d]),
            (Key::Char('\n'), &[0x5a, 0xf0, 0x5a], &[0x1c, 0x9c]),
            (Key::Up, &[0xe0, 0x75, 0xe0, 0xf0, 0x75], &[0xe0, 0x48, 0xe0, 0xc8]),
            (Key::Function(12), &[0x07, 0xf0, 0x07], &[0x58, 0xd8]),
        ];
        for (key, set_2, set_1) in cases {
            let mut keyboard = Keyboard::new();
            assert!(keyboard.type_key(key));
            assert_eq!(drain(&mut keyboard, false), set_2, "{key:?}");
            assert!(keyboard.type_key(key));
            assert_eq!(drain(&mut keyboard, true), set_1, "{key:?}");
        }
    }

    #[test]
    fn answers_go_before_codes_and_a_disabled_keyboard_has_none() {
        let mut keyboard = Keyboard::new();
        assert!(keyboard.type_key(Key::Char('a')));
        assert_eq!(say(&mut keyboard, &[0xee]), [0xee, 0x1c, 0xf0, 0x1c]);
        assert_eq!(say(&mut keyboard, &[0xf5]), [0xfa]);
        assert!(!keyboard.type_key(Key::Char('a')));
    }

    #[test]
    fn the_buffer_fills_up() {
        let mut keyboard = Keyboard::new();
        assert!((0..KEYS_MAX).all(|_| keyboard.type_key(Key::Char('A'))) && !keyboard.type_key(Key::Char('A')));
        assert_eq!(drain(&mut keyboard, true).len(), 4 * KEYS_MAX);
        assert!(keyboard.type_key(Key::Char('A')));
    }

    #[test]
    fn a_key_is_pressed_when_the_one_before_it_was_sent() {
        let mut keyboard = Keyboard::new();
        assert!(!keyboard.is_ready() && keyboard.type_key(Key::Char('a')) && keyboard.type_key(Key::Char('b')));
        assert_eq!(keyboard.send(true), None);
        keyboard.press();
        assert_eq!((keyboard.is_ready(), keyboard.send(true), keyboard.send(true)), (false, Some(0x1e), Some(0x9e)));
        assert_eq!((keyboard.is_ready(), keyboard.send(true)), (true, None));
        keyboard.press();
        assert_eq!(keyboard.send(true), Some(0x30));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_every_queue_ends(bytes in prop::collection::vec(any::<(u8, char, bool)>(), 0..200)) {
            let mut keyboard = Keyboard::new();
            for (byte, key, translate) in bytes {
                keyboard.receive(byte);
                keyboard.type_key(Key::Char(key));
                keyboard.press();
                keyboard.send(translate);
            }
            prop_assert!(drain(&mut keyboard, true).len() <= 8 * KEYS_MAX + ANSWERS_MAX);
        }
    }
}
