//! The table as a page of the guide.

use std::fmt::Write;
use std::path::PathBuf;

use xtask::paths;

use super::expected::Expected;
use super::otherwise::{NOT_RUN, OTHERWISE};
use super::table::CHAPTERS;

const INTRODUCTION: &str = "\
# What a hostile guest may try

<!-- Made from tests/src/hostile/table.rs by `cargo run -p lamina-tests`. -->

`guest/hostile` is a guest program that tries what a guest must not get away with. Each case runs beside a *witness*, a VM
that reads its memory again and again and counts its time: its memory must stay what it was, and it must get at least 95 %
of its share of the processor, half. Lamina must neither panic nor stall. `cargo xtask test hostile` runs all cases, each
a test by its name; `cargo xtask test hostile::emulate-ins` some.

What must happen is one of these:

- an exception: the guest gets what a processor gives;
- *completes*: the instructions have no fault to offer, and the guest goes on behind them;
- *behaves*: the case looks at several things (registers, memory, flags, each item of a sweep), and all are as the
  architecture says; where something is not, the test says what;
- *stops*: that VM alone ends, and the console says why;
- *starts again*: a reset, from the pristine image;
- *runs on*: it never gives the processor back, and is stopped from the console after the witness has been asked.

";

const ELSEWHERE: &str = "
## Where it is otherwise

The tables say what the architecture says. Where a backend's processor does something else by itself, the case must do that
there; Lamina is asked for nothing less for it: it must neither panic nor stall, and the witness must not be harmed.

| case | on | what must happen there | because |
|---|---|---|---|
";

/// Where the page is.
pub fn path() -> PathBuf {
    paths::workspace().join("docs/guide/hostile.md")
}

/// The page.
pub fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    let count: usize = CHAPTERS.iter().map(|chapter| chapter.cases.len()).sum();
    // Writing to a string cannot fail.
    let _ = writeln!(page, "There are {count} cases.");
    for chapter in CHAPTERS {
        let _ = write!(page, "\n## {}\n\n{}\n\n| case | what must happen |\n|---|---|\n", chapter.title, chapter.about);
        for case in chapter.cases {
            let _ = writeln!(page, "| `{}` | {} |", case.name, must(case.expected));
        }
    }
    page.push_str(ELSEWHERE);
    for other in OTHERWISE {
        let on: Vec<_> = other.on.iter().map(|name| format!("`{name}`")).collect();
        for (case, expected) in other.cases {
            let _ = writeln!(page, "| `{case}` | {} | {} | {} |", on.join(", "), must(*expected), other.why);
        }
    }
    for not in NOT_RUN {
        let on: Vec<_> = not.on.iter().map(|name| format!("`{name}`")).collect();
        for case in not.cases {
            let _ = writeln!(page, "| `{case}` | {} | it is not run | {} |", on.join(", "), not.why);
        }
    }
    page
}

fn must(expected: Expected) -> String {
    match expected {
        Expected::Sees(seen) => seen.replace("(0x0)", "(0)"),
        Expected::Stops(reason) => format!("stops: {}", plain(reason)),
        Expected::Resets => "starts again".to_owned(),
        Expected::Loops => "starts again, and stops: reset 8 times in a row".to_owned(),
        Expected::RunsOn => "runs on".to_owned(),
    }
}

/// A pattern as words.
fn plain(pattern: &str) -> String {
    // A group is one of several words; what is escaped is meant as it stands.
    let alternatives =
        pattern.replace(r"\(", "\u{1}").replace(r"\)", "\u{2}").replace(['(', ')'], "").replace('|', " or ");
    alternatives.replace('\u{1}', "(").replace('\u{2}', ")").replace(".*", "…").replace(['^', '$'], "")
}
