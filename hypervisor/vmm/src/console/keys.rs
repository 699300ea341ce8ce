//! Keys as a person or a script names them: characters stand for themselves, and names in angle brackets for the keys
//! that have no character.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::chipset::Key;

/// Names of keys, and what they are.
const NAMED: [(&str, Key); 18] = [
    ("enter", Key::Char('\n')),
    ("esc", Key::Char('\x1b')),
    ("tab", Key::Char('\t')),
    ("space", Key::Char(' ')),
    ("backspace", Key::Char('\x08')),
    ("lt", Key::Char('<')),
    ("gt", Key::Char('>')),
    ("up", Key::Up),
    ("down", Key::Down),
    ("left", Key::Left),
    ("right", Key::Right),
    ("home", Key::Home),
    ("end", Key::End),
    ("pageup", Key::PageUp),
    ("pagedown", Key::PageDown),
    ("insert", Key::Insert),
    ("delete", Key::Delete),
    ("del", Key::Delete),
];
/// Function keys that a keyboard has.
const FUNCTIONS: core::ops::RangeInclusive<u8> = 1..=12;

/// The keys of `text`.
///
/// # Errors
/// A sentence that names what is no key.
pub(super) fn parse(text: &str) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        keys.push(match character {
            '<' => {
                let Some((name, behind)) = rest.as_str().split_once('>') else {
                    return Err(String::from("'<' without '>': a key's name is meant; <lt> is the character"));
                };
                rest = behind.chars();
                named(name).ok_or_else(|| format!("no key is called <{name}>; there are {}", names()))?
            }
            ' '..='~' => Key::Char(character),
            other => return Err(format!("no key types {other:?}")),
        });
    }
    Ok(keys)
}

fn named(name: &str) -> Option<Key> {
    let name = name.to_ascii_lowercase();
    if let Some(letter) = name.strip_prefix("ctrl-") {
        return match letter.as_bytes() {
            [letter @ b'a'..=b'z'] => Some(Key::Char(char::from(letter & 0x1f))),
            _ => None,
        };
    }
    let function = name.strip_prefix('f').and_then(|number| number.parse().ok()).filter(|n| FUNCTIONS.contains(n));
    function.map(Key::Function).or_else(|| NAMED.iter().find(|(known, _)| *known == name).map(|&(_, key)| key))
}

fn names() -> String {
    let mut names: String = NAMED.iter().map(|(name, _)| format!("<{name}> ")).collect();
    names.push_str("<f1> to <f12> <ctrl-a> to <ctrl-z>");
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_and_names() {
        let chars = |text: &str| text.chars().map(Key::Char).collect::<Vec<_>>();
        assert_eq!(parse("a B~"), Ok(chars("a B~")));
        assert_eq!(parse("2<ENTER>x>"), Ok(chars("2\nx>")));
        assert_eq!(parse("<lt>b<gt><ctrl-c>"), Ok(chars("<b>\x03")));
        assert_eq!(
            parse("<esc><F12><f1><down>"),
            Ok(vec![Key::Char('\x1b'), Key::Function(12), Key::Function(1), Key::Down])
        );
    }

    #[test]
    fn what_is_no_key_is_named() {
        for (text, word) in
            [("<f13>", "<f13>"), ("<f0>", "<f0>"), ("<>", "<>"), ("<ctrl-1>", "<ctrl-1>"), ("a\u{e9}", "no key types")]
        {
            let problem = parse(text).unwrap_err();
            assert!(problem.contains(word), "{problem}");
        }
        assert!(parse("<enter").unwrap_err().contains("without"));
    }
}
