//! Linux beside `hog`: its boot costs it the same processor time as alone, and it gets its half.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario =
    Scenario { name: "debian_beside_hog", needs: Needs::Machine, limit: 1800, long: true, run };

const HOG: &str = r#"
    [[vm]]
    name = "hog"
    kernel = "guest:hog"
    memory = "16M"
"#;

fn run(stage: &Stage) -> Result<()> {
    let config = [super::debian_reboot::DEBIAN, HOG].concat();
    let mut machine = stage.boot(&config)?;
    // While it boots it has always something to do, nearly.
    machine.expect(r"^\[debian\] .*busybox shell")?;
    machine.type_line("vms");
    let debian = machine.expect_number(r"^\[lamina\] debian +\w+ +256 MiB +\d+ MiB +(\d+)\.")?;
    let hog = machine.expect_number(r"^\[lamina\] hog +\w+ +16 MiB +\d+ MiB +(\d+)\.")?;
    machine.check(debian * 100 >= (debian + hog) * 40, || format!("Linux ran for {debian} s, the hog for {hog} s"))?;
    machine.type_line("quit");
    machine.ends(0)
}
