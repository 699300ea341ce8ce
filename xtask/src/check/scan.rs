//! The files of the repository, and Rust sources without their comments and literals.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::paths;

/// A file of the repository.
#[derive(Clone, Debug)]
pub struct File {
    /// From the repository's root.
    pub path: String,
    /// Its text; empty for one that is no text.
    pub text: String,
}

/// All files that are committed, or would be.
///
/// # Errors
/// Git cannot be asked.
pub fn files() -> Result<Vec<File>> {
    let root = paths::workspace();
    let mut command = Command::new("git");
    command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let output = command.output().context("cannot start git")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout)?;
    let read = |name: &str| {
        // One that was deleted and is still listed has nothing to be checked.
        let text = std::fs::read_to_string(PathBuf::from(root).join(name)).ok()?;
        Some(File { path: name.to_owned(), text })
    };
    Ok(names.split('\0').filter(|name| !name.is_empty()).filter_map(read).collect())
}

/// The source with every comment and the inside of every literal as blanks; lines stay where they are.
pub fn code_only(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(next) = rest.chars().next() {
        let skipped = comment(rest).or_else(|| literal(rest, out.chars().next_back()));
        match skipped {
            Some(length) => {
                let (hidden, tail) = rest.split_at(length);
                out.extend(hidden.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
                rest = tail;
            }
            None => {
                out.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    out
}

/// The length of the comment that starts here.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    text.strip_prefix("/*")?;
    let (mut depth, mut at) = (1, 2);
    while depth > 0 {
        let rest = text.get(at..)?;
        let (open, close) = (rest.find("/*").unwrap_or(usize::MAX), rest.find("*/"));
        // One that is never closed goes to the end.
        let Some(close) = close else { return Some(text.len()) };
        depth = if open < close { depth + 1 } else { depth - 1 };
        at += open.min(close) + 2;
    }
    Some(at)
}

/// The length of the string or character literal that starts here, behind the character `before`.
fn literal(text: &str, before: Option<char>) -> Option<usize> {
    if text.starts_with('"') {
        return Some(quoted(text, '"'));
    }
    if let Some(raw) = text.strip_prefix('r').filter(|_| !before.is_some_and(|c| c.is_alphanumeric() || c == '_')) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let inside = raw[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
        return Some(1 + hashes + 1 + length);
    }
    // A lifetime has no closing quote behind one character.
    let mut inside = text.strip_prefix('\'')?.chars();
    match inside.next()? {
        '\\' => Some(quoted(text, '\'')),
        c if inside.next() == Some('\'') => Some(2 + c.len_utf8()),
        _ => None,
    }
}

/// The length of a literal between these quotes, in which a backslash escapes.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_go_and_code_stays() {
        for (source, left) in [
            ("a // b\nc", "a c"),
            ("a /* b /* c */ d */ e", "a e"),
            (r#"a "b \" c" d"#, "a d"),
            ("a r#\"b \" c\"# d", "a d"),
            (r"a 'b' '\'' d", "a d"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            ("for r in rr\"x\"", "for r in rr"),
            ("a \"open", "a"),
            ("a /* open", "a"),
            ("b'x' + b\"y\"", "b + b"),
        ] {
            let code = code_only(source);
            assert_eq!(code.split_whitespace().collect::<Vec<_>>().join(" "), left, "{source}");
            assert_eq!((code.len(), code.lines().count()), (source.len(), source.lines().count()), "{source}");
        }
    }

    #[test]
    fn the_repository_has_files() {
        let files = files().unwrap();
        assert!(files.iter().any(|file| file.path == "Cargo.toml" && file.text.contains("[workspace]")));
    }
}
