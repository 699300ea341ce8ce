//! From the serial port's bytes to lines.

/// Everything the machine has printed so far, as lines without CR and without the console's own escape sequences.
#[derive(Debug, Default)]
pub struct Transcript {
    lines: Vec<String>,
    /// The bytes after the last line feed.
    rest: Vec<u8>,
}

impl Transcript {
    /// Takes bytes in; they may end anywhere.
    pub fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.end_line();
            } else {
                self.rest.push(*byte);
            }
        }
    }

    /// What is there of a last line that has no end becomes a line.
    pub fn finish(&mut self) {
        if !self.rest.is_empty() {
            self.end_line();
        }
    }

    fn end_line(&mut self) {
        self.lines.push(clean(&self.rest));
        self.rest.clear();
    }

    /// The lines that have come to their end.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// What is there of the line that has not come to its end, if anything.
    pub fn partial(&self) -> Option<String> {
        (!self.rest.is_empty()).then(|| clean(&self.rest))
    }
}

/// A line as people see it: no CR, and no escape sequences before or right behind its prefix, where the console puts
/// colours and redraws its prompt. What a guest printed stays.
fn clean(line: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(line).chars().filter(|c| *c != '\r').collect();
    let mut text = skip_escapes(&text);
    // The prompt stood there, and was erased for what follows.
    while !text.starts_with('[')
        && let Some((_, rest)) = text.split_once(ERASE_LINE)
    {
        text = skip_escapes(rest);
    }
    let prefix = text.find(']').filter(|_| text.starts_with('['));
    match prefix {
        Some(end) => {
            let (prefix, rest) = text.split_at(end + 1);
            format!("{prefix}{}", skip_escapes(rest))
        }
        None => text.to_owned(),
    }
}

/// Erase in line (ECMA-48, EL): all of it.
const ERASE_LINE: &str = "\x1b[2K";

/// Skips control sequences (ECMA-48, "Control sequences": CSI, parameters, a final byte) at the start.
fn skip_escapes(mut text: &str) -> &str {
    while let Some(sequence) = text.strip_prefix("\x1b[") {
        let Some(end) = sequence.find(|c: char| ('\x40'..='\x7e').contains(&c)) else { break };
        text = &sequence[end + 1..];
    }
    text
}

/// The status of a line that says how the machine ended.
pub fn exit_status(line: &str) -> Option<u32> {
    line.strip_prefix("[lamina] exit ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_where_they_end() {
        let mut transcript = Transcript::default();
        transcript.push(b"[lamina] on");
        assert!(transcript.lines().is_empty());
        assert_eq!(transcript.partial().as_deref(), Some("[lamina] on"));
        transcript.push(b"e\r\n[a] two\n\n[b] $ ");
        assert_eq!(transcript.lines(), ["[lamina] one", "[a] two", ""]);
        assert_eq!(transcript.partial().as_deref(), Some("[b] $ "));
        transcript.finish();
        assert_eq!(transcript.lines().last().unwrap(), "[b] $ ");
        assert_eq!(transcript.partial(), None);
        transcript.finish();
        assert_eq!(transcript.lines().len(), 4);
    }

    #[test]
    fn the_consoles_own_escapes_go_and_the_guests_stay() {
        assert_eq!(clean(b"\x1b[2K\x1b[36m[debian]\x1b[0m ok\r"), "[debian] ok");
        assert_eq!(clean(b"lamina> \r\x1b[2K\x1b[0;36m[debian]\x1b[0m ok\r"), "[debian] ok");
        assert_eq!(clean(b"[debian] a\x1b[2K[b] c"), "[debian] a\x1b[2K[b] c");
        assert_eq!(clean(b"[debian] \x1b[32mok\x1b[0m"), "[debian] \x1b[32mok\x1b[0m");
        assert_eq!(clean(b"\x1b["), "\x1b[");
        assert_eq!(clean(b"[never closed"), "[never closed");
        assert_eq!(clean(b"\xff"), "\u{fffd}");
    }

    #[test]
    fn the_verdict_is_a_line_of_its_own() {
        assert_eq!(exit_status("[lamina] exit 0"), Some(0));
        assert_eq!(exit_status("[lamina] exit 17"), Some(17));
        for line in
            ["[lamina] exit", "[lamina] exit -1", "[a] [lamina] exit 0", "[lamina] exit 0 of 1", " [lamina] exit 0"]
        {
            assert_eq!(exit_status(line), None, "{line}");
        }
    }
}
