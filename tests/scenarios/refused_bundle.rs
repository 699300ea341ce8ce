//! A boot image whose bundle is none: Lamina says so in a line, and ends the machine with a failure.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "refused_bundle", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let bundle = stage.pack("[[vm]]\nname = \"a\"\nkernel = \"guest:hello\"\nmemory = \"16M\"\n")?;
    // The description claims to be longer than the bundle is.
    let mut long = bundle.clone();
    long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    refused(stage, &long, r"its description of \d+ bytes is cut off")?;
    // The last pages of the kernel were not read.
    let mut short = bundle;
    let half = short.len() / 2;
    short[half..].fill(0);
    refused(stage, &short, "it is damaged: its checksum is 0x[0-9a-f]{8}, not 0x[0-9a-f]{8}")
}

fn refused(stage: &Stage, bundle: &[u8], why: &str) -> Result<()> {
    let mut machine = stage.boot_bundle(bundle)?;
    machine.expect(&format!(r"^\[lamina\] .*the bundle cannot be read: {why}"))?;
    machine.ends(1)
}
