//! The log: the `log` facade's end, writing to the serial port or into a queue that the console drains.
//!
//! Until [`queue_lines`], a record is written at once, polled, as one or more lines `[lamina] TEXT`. After it, lines
//! wait in a bounded queue for [`take_line`], because only the console knows where a guest's line ends. Never uses
//! colours: the console adds them where a person looks on.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};
use lamina_vmm::config::LogLevel;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::Mutex;

use crate::{serial, watchdog};

/// What every line of the hypervisor's own starts with.
pub const PREFIX: &str = "[lamina] ";
/// Most lines that wait for the console. What comes when it is full is counted and said later.
const QUEUE_LINES: usize = 1024;

struct Queue {
    lines: VecDeque<String>,
    dropped: u64,
}

/// `None` until the console drains it. Shared by all processors.
static QUEUE: Mutex<Option<Queue>> = Mutex::new(None);

/// The queue holds lines: what the run loop asks at each turn, without the lock.
static WAITING: AtomicBool = AtomicBool::new(false);

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let label = label(record.level());
        let mut queue = QUEUE.lock();
        let Some(queue) = queue.as_mut() else {
            // A port that does not take it is nothing to be told about.
            let _ = writeln!(Polled, "{label}{}", record.args());
            return;
        };
        for line in format!("{label}{}", record.args()).lines() {
            if queue.lines.len() < QUEUE_LINES {
                queue.lines.push_back(line.to_string());
            } else {
                queue.dropped += 1;
            }
        }
        WAITING.store(true, Ordering::Relaxed);
    }

    fn flush(&self) {}
}

const fn label(level: Level) -> &'static str {
    match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info => "",
        Level::Debug => "debug: ",
        Level::Trace => "trace: ",
    }
}

/// Text for the serial port, polled: each line gets [`PREFIX`] and ends in CR LF.
pub struct Polled;

impl Write for Polled {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive('\n') {
            if !serial::mid_line() {
                serial::write_polled(PREFIX.as_bytes());
            }
            match piece.strip_suffix('\n') {
                Some(line) => {
                    serial::write_polled(line.as_bytes());
                    serial::write_polled(b"\r\n");
                }
                None => serial::write_polled(piece.as_bytes()),
            }
        }
        Ok(())
    }
}

/// Installs the log, at level Info. A second call changes nothing.
pub fn init() {
    // The only error is that a logger is installed already, and it can only be this one.
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Sets the level from the bundle.
pub fn set_level(level: LogLevel) {
    log::set_max_level(match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    });
}

/// From here on, lines wait for [`take_line`]. To be called when the console starts to drain them; needs the heap.
pub fn queue_lines() {
    let mut queue = QUEUE.lock();
    if queue.is_none() {
        *queue = Some(Queue { lines: VecDeque::new(), dropped: 0 });
    }
}

/// Back to writing at once, after all lines that still wait: for the last words, when no console drains any more.
pub fn write_at_once() {
    while let Some(line) = take_line() {
        let _ = writeln!(Polled, "{line}");
    }
    *QUEUE.lock() = None;
}

/// The oldest line that waits: its text, without [`PREFIX`] and without a line's end.
pub fn take_line() -> Option<String> {
    let mut queue = QUEUE.lock();
    let queue = queue.as_mut()?;
    let line = queue.lines.pop_front();
    if line.is_none() && queue.dropped > 0 {
        let dropped = core::mem::take(&mut queue.dropped);
        return Some(format!("warning: {dropped} log lines were dropped, the queue was full"));
    }
    WAITING.store(line.is_some(), Ordering::Relaxed);
    line
}

/// Whether [`take_line`] would give one; now and then when it would not.
pub fn has_lines() -> bool {
    WAITING.load(Ordering::Relaxed)
}

/// Writes the lines that still wait, leaving them in the queue: allocates and frees nothing, for the report of a bug.
pub fn write_waiting() {
    if let Some(queue) = QUEUE.lock().as_ref() {
        for line in &queue.lines {
            // The port may take its time.
            watchdog::progress_if_up();
            let _ = writeln!(Polled, "{line}");
        }
    }
}

/// Puts a line into the queue, whatever the level: for the report of a bug that is contained. Written at once where no
/// console drains the queue yet.
pub fn queue_line(line: fmt::Arguments<'_>) {
    let line = format!("{line}");
    let mut queue = QUEUE.lock();
    match queue.as_mut() {
        Some(queue) => queue.lines.push_back(line),
        None => {
            let _ = writeln!(Polled, "{line}");
        }
    }
    WAITING.store(true, Ordering::Relaxed);
}

/// Whether somebody holds the queue's lock.
pub fn is_locked() -> bool {
    QUEUE.is_locked()
}

/// Opens the queue's lock whoever holds it, for the report of a bug.
///
/// # Safety
/// As for [`serial::break_lock`].
pub unsafe fn break_lock() {
    // SAFETY: the caller guarantees that no holder goes on.
    unsafe { QUEUE.force_unlock() };
}
