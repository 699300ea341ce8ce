//! `hog`, which never gives the processor back, beside `ticker` and `greeter`: both keep their times.
//!
//! The machine's own time is what counts, never the wall's: `greeter` reads Lamina's clock, `ticker` counts interrupts.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario =
    Scenario { name: "hog_beside_ticker", needs: Needs::Machine, limit: 600, long: false, run };

/// Greetings come each second, and there are so many.
const GREETINGS: u64 = 10;
/// A greeting may be this late. Unit: milliseconds. Three VMs, so two time slices at most and some.
const LATE: u64 = 100;
/// Ticks of a second, of which a few may fall on the wrong side of a greeting.
const TICKS: u64 = 100;

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "hog"
        kernel = "guest:hog"
        memory = "16M"
        [[vm]]
        name = "ticker"
        kernel = "guest:ticker"
        memory = "16M"
        [[vm]]
        name = "greeter"
        kernel = "guest:greeter"
        cmdline = "count=11 every=1000"
        memory = "16M"
        "#,
    )?;
    machine.expect_all(&[r"^\[hog\] I keep", r"^\[ticker\] ticking", r"^\[greeter\] greeting 1 "])?;
    for greeting in 2..=GREETINGS + 1 {
        let pattern = format!(r"^\[greeter\] greeting {greeting} to Lamina, (\d+) ms");
        let milliseconds = machine.expect_number(&pattern)?;
        let due = 1000 * (greeting - 1);
        machine.check((due..=due + LATE).contains(&milliseconds), || format!("greeting {greeting} is not in time"))?;
    }
    // `ticker` prints each 100 ticks: the last line before this greeting says how far it has come in ten seconds.
    let lines = machine.lines(r"^\[ticker\] \d+ ticks$")?;
    let last = lines.last().and_then(|line| line.split(' ').nth(1)?.parse::<u64>().ok()).unwrap_or(0);
    let expected = TICKS * GREETINGS;
    machine.check(last.abs_diff(expected) <= TICKS, || format!("{last} ticks in the time of {expected}"))?;

    // And the hog had nearly all the rest.
    machine.type_line("vms");
    let hog = machine.expect_number(r"^\[lamina\] hog +running +16 MiB +\d+ MiB +(\d+)\.")?;
    machine.check(hog + 1 >= GREETINGS * 9 / 10, || format!("the hog ran for {hog} s only"))?;
    machine.type_line("quit");
    machine.ends(0)
}
