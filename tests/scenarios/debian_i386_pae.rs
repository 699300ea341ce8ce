//! Debian's kernel of 32 bits: the 32-bit boot protocol, paging with PAE, and programs of 32 bits.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario =
    Scenario { name: "debian_i386_pae", needs: Needs::Machine, limit: 1800, long: true, run };

fn run(stage: &Stage) -> Result<()> {
    super::dmesg::complains_of_nothing_else(stage, "debian:linux-image-686-pae:i386", "i686")
}
