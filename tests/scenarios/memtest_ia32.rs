//! memtest86+ for 32-bit processors tests all memory of a VM for a minute of the VM's time and finds no error; its
//! screen says so.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "memtest_ia32", needs: Needs::Machine, limit: 1800, long: true, run };

fn run(stage: &Stage) -> Result<()> {
    super::memtest_x64::tests_for_a_minute(stage, "memtest86+ia32.bin")
}
