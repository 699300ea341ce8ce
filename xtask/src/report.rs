//! What xtask itself says: single lines on standard error, and progress for what takes long.

use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Says one line. A closed standard error is no reason to fail.
pub fn say(line: impl Display) {
    drop(writeln!(std::io::stderr(), "xtask: {line}"));
}

/// How far a command has come, judged by its output.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    /// Unknown: show that it lives.
    Unknown,
    /// It prints about this many lines in all.
    Lines(u64),
    /// It prints apt's status lines, which hold a percentage.
    Apt,
}

/// Lines of output that are kept for the case that the command fails.
const KEPT_LINES: usize = 60;

/// Runs a command that may take long, with its output behind a progress bar.
///
/// # Errors
/// It cannot be started, or fails: then the error holds the end of its output.
pub fn run(what: &str, progress: Progress, mut command: Command) -> Result<()> {
    let started = Instant::now();
    let bar = bar(what, progress);
    let (reader, writer) = std::io::pipe()?;
    let name = command.get_program().display().to_string();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    // The command holds the writing ends: with them open, reading would never end.
    drop(command);

    let mut kept = VecDeque::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        match progress {
            Progress::Unknown => {}
            Progress::Lines(_) => bar.inc(1),
            Progress::Apt => {
                if let Some(percent) = apt_percent(&line) {
                    bar.set_position(percent);
                    continue;
                }
            }
        }
        if !line.is_empty() {
            bar.set_message(line.chars().take(60).collect::<String>());
            kept.push_back(line);
            if kept.len() > KEPT_LINES {
                kept.pop_front();
            }
        }
    }
    let status = child.wait()?;
    bar.finish_and_clear();
    if !status.success() {
        let output = kept.make_contiguous().join("\n");
        bail!("{what}: {name} failed ({status})\n{output}");
    }
    if started.elapsed() > Duration::from_secs(5) {
        say(format_args!("{what}: done in {} s", started.elapsed().as_secs()));
    }
    Ok(())
}

/// Shows that something is going on until it is dropped.
#[derive(Debug)]
pub struct Activity {
    bar: ProgressBar,
}

/// Starts showing an activity whose command speaks for itself.
pub fn activity(what: &str) -> Activity {
    Activity { bar: bar(what, Progress::Unknown) }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn bar(what: &str, progress: Progress) -> ProgressBar {
    let (bar, template) = match progress {
        Progress::Unknown => (ProgressBar::new_spinner(), "{spinner} {prefix} [{elapsed}] {wide_msg:.dim}"),
        Progress::Lines(lines) => (ProgressBar::new(lines), "{spinner} {prefix} {bar:24} [{elapsed}] {wide_msg:.dim}"),
        Progress::Apt => (ProgressBar::new(100), "{spinner} {prefix} {bar:24} {pos}% [{elapsed}] {wide_msg:.dim}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// The percentage of a line like `dlstatus:1:45.3:Retrieving file 1 of 1`.
fn apt_percent(line: &str) -> Option<u64> {
    let mut fields = line.split(':');
    if !matches!(fields.next(), Some("dlstatus" | "pmstatus")) {
        return None;
    }
    fields.nth(1)?.split('.').next()?.parse().ok().filter(|percent| *percent <= 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_status_lines_hold_a_percentage() {
        assert_eq!(apt_percent("dlstatus:1:45.3456:Retrieving file 1 of 1 (2s remaining)"), Some(45));
        assert_eq!(apt_percent("pmstatus:bochs:80.0000:Installed bochs (amd64)"), Some(80));
        assert_eq!(apt_percent("Get:1 something 45.3 kB"), None);
        assert_eq!(apt_percent("dlstatus:1"), None);
    }

    #[test]
    fn a_failing_command_shows_the_end_of_its_output() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; echo second >&2; exit 3"]);
        let error = run("trying", Progress::Unknown, command).unwrap_err().to_string();
        assert!(error.contains("first\nsecond"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
    }
}
