//! Guest program: checks what a guest may rely on, and that what CPUID does not report does not work. One line for each
//! check, `ok NAME` or `FAILED NAME: …`; the status is the number of failures. `only=TEXT` runs the checks whose names
//! hold TEXT. `except=NAME,NAME` names those that the machine below is known to fail: they say `skipped NAME: …` and
//! count neither way.
#![no_std]
#![no_main]

mod absent;
mod calls;
mod machine;
mod registers;

use core::fmt;
use guest_rt::trap::Fault;
use guest_rt::{Boot, println};

guest_rt::entry!(main);

/// Vector of #UD.
const UD: u8 = 6;
/// Vector of #GP.
const GP: u8 = 13;
/// #GP(0).
const GP0: Fault = Fault { vector: GP, error: 0 };

/// Counts what fails.
struct Report {
    only: Option<&'static str>,
    except: &'static str,
    run: u32,
    failed: u32,
}

impl Report {
    /// Whether a check of this name is wanted.
    fn wants(&self, name: &str) -> bool {
        self.only.is_none_or(|only| name.contains(only))
    }

    /// One check: `holds`, or else `found` says what was there instead.
    fn check(&mut self, name: &str, holds: bool, found: impl fmt::Debug) {
        self.check_item(name, format_args!(""), holds, found);
    }

    /// One check of several of the same name, told apart by `item`.
    fn check_item(&mut self, name: &str, item: fmt::Arguments, holds: bool, found: impl fmt::Debug) {
        if !self.wants(name) {
            return;
        }
        if self.except.split(',').any(|known| is_named(known, name, item)) {
            println!("skipped {name}{item}: {found:x?}");
            return;
        }
        self.run += 1;
        if holds {
            println!("ok {name}{item}");
        } else {
            self.failed += 1;
            println!("FAILED {name}{item}: {found:x?}");
        }
    }

    /// One check: `result` is #GP(0).
    fn refuses<T: fmt::Debug>(&mut self, name: &str, result: Result<T, Fault>) {
        self.check(name, matches!(result, Err(fault) if fault == GP0), result);
    }

    /// One check: `result` is #UD.
    fn unknown<T: fmt::Debug>(&mut self, name: &str, result: Result<T, Fault>) {
        self.check(name, matches!(result, Err(Fault { vector: UD, .. })), result);
    }
}

/// Whether `known` is `name` with `item` behind it.
fn is_named(known: &str, name: &str, item: fmt::Arguments) -> bool {
    /// Takes written text from the front of what is left, or holds `None` once something else was written.
    struct Left<'a>(Option<&'a str>);
    impl fmt::Write for Left<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 = self.0.and_then(|left| left.strip_prefix(text));
            Ok(())
        }
    }
    let mut left = Left(known.strip_prefix(name));
    fmt::Write::write_fmt(&mut left, item).is_ok() && left.0 == Some("")
}

fn main(boot: &Boot) -> u32 {
    let except = boot.word("except").unwrap_or_default();
    let mut report = Report { only: boot.word("only"), except, run: 0, failed: 0 };
    machine::check(&mut report, boot);
    registers::check(&mut report);
    absent::check(&mut report);
    calls::check(&mut report);
    println!("{} checks, {} failed", report.run, report.failed);
    if report.run == 0 { 255 } else { report.failed }
}
