//! PCs whose 8254 does not count: the time-stamp counter is measured against another clock, the log names it, and a guest's
//! timers keep time. Where there is no clock at all, one line says what was tried.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "reference_clocks", needs: Needs::Tcg, limit: 300, long: false, run };

const TICKER: &str = r#"
    [[vm]]
    name = "ticker"
    kernel = "guest:ticker"
    cmdline = "count=1"
    memory = "16M"
    "#;

const NOTHING: &str =
    "the 8254 does not count, the HPET is not there, the ACPI PM timer is not there, CPUID's leaf 0x15 is not there";

fn run(stage: &Stage) -> Result<()> {
    let hpet = r"^\[lamina\] the TSC's rate was measured against the HPET: the 8254 does not count$";
    let pm_timer = r"^\[lamina\] the TSC's rate was measured against the ACPI PM timer: the 8254 does not count, the HPET is not there$";
    for (options, source) in [(",pit=off", hpet), (",pit=off,hpet=off", pm_timer)] {
        let mut machine = stage.boot_on_machine(options, TICKER)?;
        machine.expect(source)?;
        // The emulated counter's rate is known: an instruction is 8 ns, a tick 1 ns.
        machine.expect(r"^\[lamina\] processor: TSC (999\.9|1000\.0)\d\d MHz, ")?;
        machine.expect(r"^\[lamina\] warning: no watchdog: the 8254 does not count$")?;
        machine.expect(r"^\[ticker\] 100 ticks$")?;
        machine.expect(r"^\[lamina\] ticker stopped: .+ \(status 0\)$")?;
        machine.ends(0)?;
    }
    let mut machine = stage.boot_on_machine(",pit=off,hpet=off,acpi=off", TICKER)?;
    machine.expect(&format!(r"^\[lamina\] error: the time-stamp counter's rate could not be measured: {NOTHING}$"))?;
    machine.expect(r"^\[lamina\] exit 1$")?;
    machine.never(r"^\[ticker\]")
}
