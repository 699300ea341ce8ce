//! The three guests of the demo together: Debian's kernel boots to a shell beside two others, and answers what is typed.
//! Then the console takes over again.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "demo", needs: Needs::Machine, limit: 900, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot_file("guest/demo.toml")?;
    machine.expect(r"^\[debian\] .*Linux version ")?;
    machine.expect(r"^\[debian\] .*Run /init as init process")?;
    // Its boot takes seconds, in which the others went on.
    machine.check(between(&machine.lines("")?), || "the others did not run while Linux booted".to_owned())?;
    machine.expect(r"^\[debian\] .*busybox shell")?;
    machine.expect(r"^\[debian\] \S+ # ")?;

    machine.type_line("attach debian");
    machine.expect(r"^\[lamina\] attached to debian")?;
    machine.type_line("uname -a");
    machine.expect(r"^\[debian\] Linux .* x86_64 GNU/Linux")?;
    machine.type_line("echo sum $((6 * 7))");
    machine.expect(r"^\[debian\] sum 42$")?;
    machine.type_line("grep -c ^processor /proc/cpuinfo");
    machine.expect(r"^\[debian\] 1$")?;
    machine.type_line("cat /proc/interrupts");
    machine.expect(r"^\[debian\] .*ttyS0$")?;
    machine.type_bytes(b"\x01d");
    machine.expect(r"^\[lamina\] detached from debian$")?;

    machine.type_line("vms");
    machine.expect_all(&[
        r"^\[lamina\] debian +(running|waiting) ",
        r"^\[lamina\] ticker +(running|waiting) ",
        r"^\[lamina\] greeter +(running|waiting) ",
    ])?;
    machine.type_line("stop ticker");
    machine.expect(r"^\[lamina\] ticker stopped: .*console.* \(status 0\)$")?;
    machine.expect(r"^\[greeter\] greeting ")?;
    machine.type_line("quit");
    machine.ends(0)
}

/// Whether both other guests have spoken between Linux' first line and its last.
fn between(lines: &[String]) -> bool {
    let of = |name: &str, line: &String| line.starts_with(name);
    let first = lines.iter().position(|line| of("[debian] ", line));
    let last = lines.iter().rposition(|line| of("[debian] ", line));
    let (Some(first), Some(last)) = (first, last) else { return false };
    ["[ticker] ", "[greeter] "].iter().all(|name| lines[first..last].iter().any(|line| of(name, line)))
}
