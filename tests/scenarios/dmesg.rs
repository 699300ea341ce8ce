//! What Linux complains of in a VM it complains of on the bare machine, too: the cloud kernel, with all of its messages.
//!
//! Owns the comparison, which the scenarios of Debian's other kernels make as well.

use anyhow::Result;
use lamina_tests::{Needs, Running, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "dmesg", needs: Needs::Machine, limit: 1800, long: true, run };

/// What a kernel says of things that are not as it knows them, whatever the level that it says it at.
const WORDS: &str = "warning|bug|unable|unstable|fail|error|invalid|lost|nobody cared|mismatch|inconsistent|spurious|\
                     broken|conflict|not supported|disabl|timed out|timeout";

/// Lines that only a VM prints, each with the reason why that is right. A number in a line is `#`.
const EXPECTED: [(&str, &str); 2] = [
    ("intel_pstate: CPU model not supported", "a guest has no say in the processor's frequency: CPUID shows no APERF"),
    (
        "PnPBIOS: Disabled by ACPI PNP",
        "ACPI lists the devices; on the bare machine the same is switched off for want of a BIOS",
    ),
];

fn run(stage: &Stage) -> Result<()> {
    complains_of_nothing_else(stage, "debian:linux-image-cloud-amd64", "x86_64")
}

/// A kernel as it comes from its publisher boots to a shell, in a VM as on the bare machine: it says what it is, keeps
/// time by the TSC, complains of nothing in the VM that it does not complain of on the bare machine, starts again when it
/// is told to reboot, and powers off.
pub fn complains_of_nothing_else(stage: &Stage, kernel: &str, machine_name: &str) -> Result<()> {
    let config = format!(
        r#"
        [[vm]]
        name = "debian"
        kernel = "{kernel}"
        initrd = "builtin:busybox"
        cmdline = "console=ttyS0"
        memory = "512M"
        "#
    );
    let mut bare = stage.boot_linux_natively(&config)?;
    bare.expect("Run /init as init process")?;
    bare.expect(r"^\S+ # ")?;
    let known = complaints(&mut bare, "^")?;

    let mut machine = stage.boot(&config)?;
    machine.expect(r"^\[debian\] .*Run /init as init process")?;
    machine.expect(r"^\[debian\] \S+ # ")?;
    machine.type_line("attach debian");
    machine.type_line("uname -m");
    machine.expect(&format!(r"^\[debian\] {machine_name}$"))?;
    machine.type_line("cat /sys/devices/system/clocksource/clocksource0/current_clocksource");
    machine.expect(r"^\[debian\] tsc$")?;
    let found = complaints(&mut machine, r"^\[debian\] ")?;
    let new = found.iter().filter(|line| !known.contains(line) && EXPECTED.iter().all(|(text, _)| line != text));
    let new: Vec<_> = new.collect();
    machine
        .check(new.is_empty(), || format!("complaints in the VM only: {new:#?}\non the bare machine: {known:#?}"))?;

    machine.type_line("cat /proc/bus/pci/devices; echo no $((40 + 2)) more");
    machine.expect(r"^\[debian\] 0000\t80861237\t")?;
    machine.expect(r"^\[debian\] 0008\t80867000\t")?;
    machine.expect(r"^\[debian\] no 42 more$")?;
    machine.type_line("reboot");
    machine.expect(r"^\[lamina\] debian reset$")?;
    machine.expect(r"^\[debian\] \S+ # ")?;
    machine.type_line("attach debian");
    machine.type_line("poweroff");
    machine.expect(r"^\[lamina\] debian stopped: powered off \(status 0\)$")?;
    machine.ends(0)
}

/// What the kernel has said at the level of a warning and above, or with one of the words, without its numbers.
fn complaints(machine: &mut Running, prefix: &str) -> Result<Vec<String>> {
    machine.type_line(&format!("dmesg -r | grep -iE '^<[0-4]>|{WORDS}'; echo all $((40 + 2)) told"));
    machine.expect(&format!("{prefix}all 42 told$"))?;
    let lines = machine.lines(&format!("{prefix}<[0-9]+>"))?;
    let text = |line: &String| Some(without_numbers(line.split_once('<')?.1.split_once("] ")?.1));
    Ok(lines.iter().filter_map(text).collect())
}

/// The line with `#` in place of each number: addresses and times differ from machine to machine.
fn without_numbers(line: &str) -> String {
    let mut text = String::new();
    for word in line.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let digits = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let number = digits.starts_with(|c: char| c.is_ascii_digit());
        text.push_str(if number { "#" } else { digits });
        text.push_str(&word[digits.len()..]);
    }
    text
}
