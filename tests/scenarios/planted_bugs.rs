//! Three bugs, each planted in a build of its own, and the suites that must find it: an index into a device's registers
//! that nobody checks, a wrong width in the instruction emulator, frames that are handed out uncleared. Long, because
//! each is a hypervisor of its own to build.

use anyhow::{Result, ensure};
use lamina_tests::{Needs, Scenario, Stage, cargo_test, hostile};
use xtask::fuzz;

/// By the tests that run on the host.
pub const ON_HOST: Scenario =
    Scenario { name: "planted_bugs_on_host", needs: Needs::Host, limit: 900, long: true, run: on_host };
/// By what boots.
pub const ON_MACHINE: Scenario =
    Scenario { name: "planted_bugs_on_machine", needs: Needs::Machine, limit: 900, long: true, run: on_machine };

/// Crate, its feature, the tests, and those of them that must find the bug.
const FOUND_BY: [(&str, &str, &[&str], &[&str]); 3] = [
    ("lamina-devices", "plant-bounds", &["--test", "harness"], &["rtc_accesses"]),
    ("lamina-vmm", "plant-width", &["--lib", "insn::"], &["insn::tests::forms::", "insn::tests::arithmetic::"]),
    ("lamina-vmm", "plant-dirty", &["--lib", "machine::tests::lazy::"], &["a_touch_backs_a_page_of_zeros"]),
];

fn on_host(_: &Stage) -> Result<()> {
    for (package, feature, tests, finders) in FOUND_BY {
        let outcome = cargo_test(&[&["--package", package, "--features", feature, "--no-fail-fast"], tests].concat())?;
        ensure!(outcome.errors.contains("Running"), "{feature} does not build: {}", outcome.errors);
        ensure!(outcome.status == Some(101), "nothing has found {feature}");
        for finder in finders {
            let found = outcome.output.lines().any(|line| line.contains(finder) && line.ends_with(" FAILED"));
            ensure!(found, "{finder} has not found {feature}:\n{}", outcome.output);
        }
    }
    Ok(())
}

fn on_machine(stage: &Stage) -> Result<()> {
    // The random guest writes an index that is none.
    let Err(error) = fuzz::run_built_with(Some("plant-bounds"), 1, fuzz::STEPS, Some(stage.backend()?)) else {
        anyhow::bail!("the fuzzing guest has not found the missing check of bounds");
    };
    let words = format!("{error:#}");
    ensure!(words.contains("hypervisor/devices/src/rtc.rs") && words.contains("index out of bounds"), "{words}");

    let found = hostile::failing(&stage.built_with("plant-width"), "emulator")?;
    ensure!(!found.is_empty(), "the emulator's hostile cases have not found the wrong width");
    ensure!(found.iter().all(|(name, _)| name.starts_with("emulate-")), "found elsewhere: {found:?}");

    let mut machine = stage.built_with("plant-dirty").boot(
        r#"
        [[vm]]
        name = "writer"
        kernel = "guest:toucher"
        cmdline = "touch=8"
        memory = "32M"

        [[vm]]
        name = "waiter"
        kernel = "guest:greeter"
        memory = "16M"
        backing = "lazy"
        "#,
    )?;
    machine.expect(r"^\[lamina\] writer stopped: powered off \(status 0\)$")?;
    machine.type_line("audit");
    machine.expect(r"^\[lamina\] audit: the stock: frame 0x[0-9a-f]+ is not clear$")?;
    machine.type_line("quit");
    machine.ends(1)
}
