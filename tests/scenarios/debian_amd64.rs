//! Debian's full kernel for PCs, with all that the one for clouds leaves out.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "debian_amd64", needs: Needs::Machine, limit: 1800, long: true, run };

fn run(stage: &Stage) -> Result<()> {
    super::dmesg::complains_of_nothing_else(stage, "debian:linux-image-amd64", "x86_64")
}
