//! A boot image whose bundle is none: Lamina says so in a line, and ends the machine with a failure.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "refused_bundle", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut bundle = stage.pack("[[vm]]\nname = \"a\"\nkernel = \"guest:hello\"\nmemory = \"16M\"\n")?;
    // The description claims to be longer than the bundle is.
    bundle[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut machine = stage.boot_bundle(&bundle)?;
    machine.expect(r"^\[lamina\] .*the bundle cannot be read: its description of \d+ bytes is cut off")?;
    machine.ends(1)
}
