//! The watchdog: a build that hangs on demand, in a device and in the emulator. The VM that the hypervisor was at work for
//! ends, with what it had exited for; a witness beside it goes on.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "watchdog", needs: Needs::Machine, limit: 300, long: false, run };

const WITNESS: &str = r"^\[witness\] window \d+: ran \d+ of \d+ kiloticks, \d+ passes, memory as it was$";

fn run(stage: &Stage) -> Result<()> {
    let victim = |site| {
        format!(
            "[[vm]]\nname = \"{site}\"\nkernel = \"guest:hostile\"\nmemory = \"16M\"\n\
             cmdline = \"seed=1 steps=100000000 fault={site}\"\n"
        )
    };
    let witness = "[[vm]]\nname = \"witness\"\nkernel = \"guest:witness\"\nmemory = \"16M\"\n";
    let config = [witness, &victim("hang-device"), &victim("hang-emulator")].concat();
    let mut machine = stage.built_with("fault").boot(&config)?;
    let device = r"^\[lamina\] hang-device stopped: a bug of the hypervisor's: stuck for 4 s, last exit port access at rip 0x[0-9a-f]+ \(status \d+\)$";
    let emulator = r"^\[lamina\] hang-emulator stopped: a bug of the hypervisor's: stuck for 4 s, last exit device or unmapped memory at rip 0x[0-9a-f]+ \(status \d+\)$";
    machine.expect_all(&[device, emulator])?;
    let told = machine.lines(r"^\[lamina\] watchdog: stuck for 4 s, last exit .* in work for VM [23]$")?;
    machine.check(told.len() == 2, || format!("two reports are wanted: {told:?}"))?;
    machine.expect(WITNESS)?;
    machine.never(r"^\[witness\] MEMORY")?;
    machine.type_line("audit");
    machine.expect(r"^\[lamina\] audit: looked at \d+ frames and \d+ nested pages: 0 violations$")?;
    machine.type_line("quit");
    machine.ends(101)
}
