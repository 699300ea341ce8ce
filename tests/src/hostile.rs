//! The hostile suite: guest programs that try what they must not get away with, each beside a witness.
//!
//! Owns how cases become tests and machines. What must happen stands in `table`, and nowhere else: the guest program
//! only says what it saw. One machine runs many cases, so the first test that needs a machine boots it, and the others
//! read what it left.

mod docs;
mod expected;
mod otherwise;
mod run;
mod table;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use libtest_mimic::{Arguments, Failed, Trial};
use xtask::backend::Name;

use crate::Stage;

pub use docs::{page, path};
use expected::{Case, Expected};
use otherwise::not_run;
use run::Results;
use table::CHAPTERS;

/// In front of every name.
const PREFIX: &str = "hostile::";
/// Stands for the witness of a machine among its cases.
const WITNESS: &str = "witness";
/// Cases of one machine, whose guests come back, by the chapters that they are in.
const TOGETHER: [&[&str]; 3] = [
    &["entry", "registers", "msrs", "extended"],
    &["emulator", "paging", "calls", "instructions"],
    &["apic", "devices"],
];

/// What one machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Batch {
    /// Cases that come back, one after the other in one VM: those of `TOGETHER` at this index.
    Together(usize),
    /// Cases that end their VM, each in one of its own.
    Ends,
    /// Cases that keep the processor, each in a VM of its own.
    Holds,
}

const BATCHES: [Batch; 5] = [Batch::Together(2), Batch::Holds, Batch::Together(0), Batch::Ends, Batch::Together(1)];

impl Batch {
    fn name(self) -> String {
        match self {
            Batch::Together(at) => format!("together-{}", at + 1),
            Batch::Ends => "ends".to_owned(),
            Batch::Holds => "holds".to_owned(),
        }
    }

    /// Whether the chapter is in it whose cases use the local APIC for a device that is nothing but registers.
    fn emulates(self) -> bool {
        matches!(self, Batch::Together(at) if TOGETHER[at].contains(&"emulator"))
    }

    /// Its cases, in order.
    fn cases(self) -> Vec<&'static Case> {
        let all = CHAPTERS.iter().flat_map(|chapter| chapter.cases.iter().map(move |case| (chapter.id, case)));
        let belongs = |chapter: &str, case: &Case| match self {
            Batch::Together(at) => matches!(case.expected, Expected::Sees(_)) && TOGETHER[at].contains(&chapter),
            Batch::Ends => matches!(case.expected, Expected::Stops(_) | Expected::Resets | Expected::Loops),
            Batch::Holds => case.expected == Expected::RunsOn,
        };
        all.filter(|(chapter, case)| belongs(chapter, case)).map(|(_, case)| case).collect()
    }
}

/// Runs the suite as an ordinary test program would its tests. Does not return.
pub fn main() -> ! {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let backends = if arguments.list { Ok(vec![None]) } else { crate::backends() };
    let backends = backends.unwrap_or_else(|error| {
        eprintln!("hostile: {error:#}");
        std::process::exit(2);
    });
    let mut trials = vec![documented()];
    // The suite takes minutes: where several backends would do, the first does.
    let (first, others) = backends.split_at(backends.len().min(1));
    for &backend in first {
        let machines = BATCHES.map(|batch| trials_of(batch, backend, &arguments));
        // One of each machine in turn, so that machines run side by side where tests do.
        let longest = machines.iter().map(Vec::len).max().unwrap_or(0);
        let mut machines = machines.map(Vec::into_iter);
        for _ in 0..longest {
            trials.extend(machines.iter_mut().filter_map(Iterator::next));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    for &on in first.iter().flatten() {
        let all = BATCHES.into_iter().flat_map(Batch::cases).map(|case| case.name);
        for name in all.filter(|name| selected(&full_name(name), &arguments)) {
            if let Some(why) = not_run(name, on) {
                println!("skipped: [{on}] {}: {why}", full_name(name));
            }
        }
    }
    for other in others.iter().flatten().filter(|_| arguments.filter.as_ref().is_none_or(|f| f.contains("hostile"))) {
        println!("skipped: [{other}] hostile: takes minutes; `--on {other}` runs it there");
    }
    conclusion.exit()
}

/// The cases of a chapter whose guests come back and that do not do so as they must on `stage`, with what they said.
///
/// # Errors
/// There is no such chapter.
pub fn failing(stage: &Stage, chapter: &str) -> anyhow::Result<Vec<(&'static str, String)>> {
    let chapter = CHAPTERS.iter().find(|found| found.id == chapter).context("there is no such chapter")?;
    let cases: Vec<_> = chapter.cases.iter().filter(|case| matches!(case.expected, Expected::Sees(_))).collect();
    let batch = TOGETHER.iter().position(|chapters| chapters.contains(&chapter.id)).context("none comes back there")?;
    let results = run::run_on(stage, Batch::Together(batch), &cases);
    Ok(results.into_iter().filter_map(|(name, result)| Some((name, result.err()?))).collect())
}

/// The tests of one machine.
fn trials_of(batch: Batch, backend: Option<Name>, arguments: &Arguments) -> Vec<Trial> {
    let kind = backend.map_or_else(|| crate::BOOT.to_owned(), |backend| backend.to_string());
    let wanted = |name: &str| selected(name, arguments);
    let runs = |name: &str| backend.is_none_or(|on| not_run(name, on).is_none());
    let cases: Vec<_> =
        batch.cases().into_iter().filter(|case| wanted(&full_name(case.name)) && runs(case.name)).collect();
    let witness = full_name(&format!("{WITNESS}-of-{}", batch.name()));
    let mut names: Vec<_> = cases.iter().map(|case| (full_name(case.name), case.name)).collect();
    names.push((witness, WITNESS));
    let results: Arc<OnceLock<Results>> = Arc::default();
    let cases = Arc::new(cases);
    let trials = names.into_iter().map(|(full, name)| {
        let (results, cases) = (Arc::clone(&results), Arc::clone(&cases));
        let test = move || {
            let results = results.get_or_init(|| run::run(batch, backend, &cases));
            match results.get(name) {
                Some(Ok(())) => Ok(()),
                Some(Err(words)) => Err(Failed::from(words.clone())),
                None => Err(Failed::from("it was not reached")),
            }
        };
        Trial::test(full, test).with_kind(kind.clone())
    });
    trials.collect()
}

fn full_name(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// Whether the filters of the command line select a test of this name, as libtest does it.
fn selected(name: &str, arguments: &Arguments) -> bool {
    let is = |filter: &str| if arguments.exact { name == filter } else { name.contains(filter) };
    arguments.filter.as_deref().is_none_or(is) && !arguments.skip.iter().any(|skip| is(skip))
}

/// The page in the guide says what the table says.
fn documented() -> Trial {
    let test = || {
        let known = by_name();
        if let Some(name) = otherwise::names().find(|name| !known.contains_key(name)) {
            return Err(Failed::from(format!("there is no case {name} that could go otherwise")));
        }
        let found = std::fs::read_to_string(path()).unwrap_or_default();
        if found == page() {
            Ok(())
        } else {
            Err(Failed::from("docs/guide/hostile.md is not what the table makes of it: `cargo run -p lamina-tests`"))
        }
    };
    Trial::test(full_name("table-is-in-the-guide"), test).with_kind(crate::HOST)
}

/// The names of all cases, with what is expected.
fn by_name() -> HashMap<&'static str, &'static Case> {
    CHAPTERS.iter().flat_map(|chapter| chapter.cases).map(|case| (case.name, case)).collect()
}
