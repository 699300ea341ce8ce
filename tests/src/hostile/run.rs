//! Machines of the hostile suite.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use regex::Regex;
use xtask::backend::Name;

use super::expected::{Case, Expected};
use super::otherwise::expected;
use super::{Batch, WITNESS, by_name};
use crate::{Running, Stage};

/// What is known of each case of a machine, and of its witness.
pub type Results = HashMap<&'static str, std::result::Result<(), String>>;

/// The time that a machine has. It ends what hangs; where an emulator counts instructions, a guest's second takes ten.
const LIMIT: Duration = Duration::from_secs(3600);
/// Least share of the processor, of 1000: 95 % of a half. One hostile VM at a time has something to do.
const SHARE: u64 = 475;
/// Windows of the witness' that a case is observed for, each 200 ms.
const fn windows(on: Name) -> u32 {
    match on {
        // Each takes seconds, and is exact: time is counted in instructions there.
        Name::Tcg => 2,
        _ => 5,
    }
}
/// Ends input to a VM. Where the VM has ended before, the console takes it for a line, and that must not be the beginning
/// of the next.
const DETACH: &[u8] = b"\x01d\n";

const WITNESS_VM: &str = "[[vm]]\nname = \"witness\"\nkernel = \"guest:witness\"\nmemory = \"16M\"\n";

/// Runs the cases of a machine.
pub fn run(batch: Batch, backend: Option<Name>, cases: &[&'static Case]) -> Results {
    run_on(&Stage::new(backend, LIMIT), batch, cases)
}

/// Runs the cases of a machine on `stage`.
pub fn run_on(stage: &Stage, batch: Batch, cases: &[&'static Case]) -> Results {
    let mut results = Results::new();
    let done = match batch {
        Batch::Together(_) => together(stage, batch, cases, &mut results),
        Batch::Ends | Batch::Holds => each_alone(stage, cases, &mut results),
    };
    if let Err(error) = done {
        // The first without a result is the one that it went wrong with.
        let words = short(&format!("{error:#}"));
        let first = cases.iter().map(|case| case.name).find(|name| !results.contains_key(name)).unwrap_or(WITNESS);
        results.insert(first, Err(words));
    }
    results
}

fn vm(name: &str, memory: &str, cmdline: &str) -> String {
    format!("[[vm]]\nname = \"{name}\"\nkernel = \"guest:hostile\"\nmemory = \"{memory}\"\ncmdline = \"{cmdline}\"\n")
}

/// Cases that come back, in one VM. Where one does not, a new machine goes on behind it.
fn together(stage: &Stage, batch: Batch, cases: &[&'static Case], results: &mut Results) -> Result<()> {
    let on = stage.backend()?;
    // Else the processor would finish them, where it can.
    let apic = if batch.emulates() { "apic = \"emulated\"\n" } else { "" };
    let mut left = cases;
    while !left.is_empty() {
        let names: Vec<_> = left.iter().map(|case| case.name).collect();
        let config = vm("hostile", "16M", &format!("cases={}", names.join(","))) + apic + WITNESS_VM;
        let mut machine = stage.boot(&config)?;
        let mut reached = left.len();
        for (at, case) in left.iter().enumerate() {
            let pattern = format!(
                r"^\[hostile\] case {}: (?P<seen>.*)$|^\[lamina\] hostile (?P<end>stopped: .* \(status \d+\)|reset)$",
                case.name
            );
            let line = machine.expect(&pattern).with_context(|| case.name.to_owned())?;
            let groups = Regex::new(&pattern)?;
            let found = groups.captures(&line).ok_or_else(|| anyhow!("no match in {line}"))?;
            match found.name("seen") {
                Some(seen) => drop(results.insert(case.name, compare(expected(case, on), seen.as_str()))),
                None => {
                    results.insert(case.name, as_it_must_end(expected(case, on), &line));
                    reached = at + 1;
                    break;
                }
            }
        }
        let whole = reached == left.len();
        left = &left[reached..];
        if whole {
            machine.expect(r"^\[lamina\] hostile stopped: powered off \(status 0\)$")?;
        }
        let harmed = witness(&mut machine, None);
        machine.type_line("quit");
        let quit = machine.ends(0);
        let harmed = harmed.map(drop).and(quit).map_err(|error| short(&format!("{error:#}")));
        if !matches!(results.get(WITNESS), Some(Err(_))) {
            results.insert(WITNESS, harmed);
        }
    }
    Ok(())
}

/// A case whose guest comes back elsewhere has ended its VM.
fn as_it_must_end(expected: Expected, line: &str) -> std::result::Result<(), String> {
    match expected {
        Expected::Stops(reason) if Regex::new(&format!(" stopped: {reason}")).is_ok_and(|is| is.is_match(line)) => {
            Ok(())
        }
        _ => Err(format!("the VM ended: {line}")),
    }
}

fn compare(expected: Expected, seen: &str) -> std::result::Result<(), String> {
    match expected {
        Expected::Sees(wanted) if wanted.split(" or ").any(|wanted| wanted == seen) || seen.starts_with("lacks ") => {
            Ok(())
        }
        Expected::Sees(wanted) => Err(format!("the guest saw `{seen}`, not `{wanted}`")),
        _ => Err(format!("it came back: `{seen}`")),
    }
}

/// Cases that do not come back, each in a VM that waits until it is told to begin.
fn each_alone(stage: &Stage, cases: &[&'static Case], results: &mut Results) -> Result<()> {
    let on = stage.backend()?;
    let mut config = WITNESS_VM.to_owned() + &vm("list", "4M", "list");
    for case in cases {
        let wait = if case.expected == Expected::Loops { "" } else { "wait " };
        config += &vm(case.name, "4M", &format!("{wait}cases={}", case.name));
    }
    let mut machine = stage.boot(&config)?;
    // They come first: nobody tells them to begin.
    let loops = cases.iter().filter(|case| case.expected == Expected::Loops);
    let mut patterns: Vec<_> =
        loops.clone().map(|case| format!(r"^\[lamina\] {} stopped: reset \d+ times in a row ", case.name)).collect();
    patterns.push(r"^\[lamina\] list stopped: ".to_owned());
    machine.expect_all(&patterns.iter().map(String::as_str).collect::<Vec<_>>())?;
    loops.for_each(|case| drop(results.insert(case.name, Ok(()))));
    listed(&machine)?;
    for case in cases.iter().filter(|case| case.expected != Expected::Loops) {
        let name = case.name;
        machine.type_line(&format!("attach {name}"));
        machine.type_line("go");
        machine.type_bytes(DETACH);
        let result = match expected(case, on) {
            Expected::RunsOn => keeps(&mut machine, name, windows(on)),
            Expected::Resets => ended(&mut machine, name, "reset"),
            Expected::Stops(reason) => ended(&mut machine, name, &format!("stopped: {reason}")),
            Expected::Sees(_) | Expected::Loops => Err(anyhow!("it does not belong here")),
        };
        if result.is_err() {
            // It may be at work still, and is not to disturb those that follow.
            machine.type_line(&format!("stop {name}"));
            machine.expect(&format!(r"^\[lamina\] {name} (stopped|has stopped)"))?;
        }
        results.insert(name, result.map_err(|error| short(&format!("{error:#}"))));
    }
    let harmed = witness(&mut machine, None).map(drop);
    machine.type_line("quit");
    results.insert(WITNESS, harmed.and(machine.ends(0)).map_err(|error| short(&format!("{error:#}"))));
    Ok(())
}

/// The VM ends, and so. The line is read to its end: one that an emulator stands still in is matched in part.
fn ended(machine: &mut Running, name: &str, how: &str) -> Result<()> {
    let any = format!(r"^\[lamina\] {name} (stopped: .* \(status \d+\)|reset)$|^\[{name}\] case {name}: .*$");
    let line = machine.expect(&any)?;
    let wanted = Regex::new(&format!(r"^\[lamina\] {name} {how}"))?;
    if wanted.is_match(&line) { Ok(()) } else { bail!("it must have been `{how}`: {line}") }
}

/// The VM keeps the processor, the witness gets its share, and the console can stop it.
fn keeps(machine: &mut Running, name: &str, windows: u32) -> Result<()> {
    machine.expect(&format!(r"^\[{name}\] case {name} begins$|^\[lamina\] {name} stopped"))?;
    let before = witness(machine, None)?;
    for _ in 1..windows {
        witness(machine, None)?;
    }
    witness(machine, Some(before))?;
    machine.never(&format!(r"^\[{name}\] case {name}: "))?;
    machine.never(&format!(r"^\[lamina\] {name} (stopped|reset)"))?;
    machine.type_line(&format!("stop {name}"));
    machine.expect(&format!(r"^\[lamina\] {name} stopped: stopped from the console "))?;
    Ok(())
}

/// The next line of the witness: what it ran, and of how much. Since `before`, or its start, it must have got its share.
fn witness(machine: &mut Running, before: Option<(u64, u64)>) -> Result<(u64, u64)> {
    let pattern = r"^\[witness\] window \d+: ran (\d+) of (\d+) kiloticks, \d+ passes, memory as it was$";
    let line = machine.expect(&format!(r"{pattern}|^\[witness\] MEMORY|^\[lamina\] witness "))?;
    let groups = Regex::new(pattern)?;
    let Some(found) = groups.captures(&line) else { bail!("the witness was harmed: {line}") };
    let number = |at: usize| found.get(at).map_or(Ok(0), |digits| digits.as_str().parse::<u64>());
    let now = (number(1)?, number(2)?);
    let (ran, of) = before.map_or(now, |before| (now.0 - before.0, now.1 - before.1));
    if ran * 1000 < of * SHARE {
        bail!("the witness ran for {ran} of {of} kiloticks, less than 95 % of a half");
    }
    Ok(now)
}

/// The guest program has the cases of the table, and no others.
fn listed(machine: &Running) -> Result<()> {
    let mut found: Vec<_> = machine.lines(r"^\[list\] [a-z0-9-]+$")?;
    found.retain(|line| line != "[list] done");
    let known = by_name();
    for line in &found {
        let name = line.trim_start_matches("[list] ");
        known.get(name).ok_or_else(|| anyhow!("the guest program has a case that is not in the table: {name}"))?;
    }
    if found.len() != known.len() {
        bail!("the guest program has {} cases, the table {}", found.len(), known.len());
    }
    Ok(())
}

/// The beginning and the end of what is too long to be read.
fn short(words: &str) -> String {
    const HEAD: usize = 10;
    const TAIL: usize = 40;
    let lines: Vec<_> = words.lines().collect();
    if lines.len() <= HEAD + TAIL {
        return words.to_owned();
    }
    let tail = &lines[lines.len() - TAIL..];
    [&lines[..HEAD], &["…"], tail].concat().join("\n")
}
