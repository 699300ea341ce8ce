//! A serial port whose interrupt never comes, because it has another than a PC's: a warning says so, and all else is as
//! ever. Guests' output flows on long after every ring is full, and what is typed is answered.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "polled_serial", needs: Needs::Tcg, limit: 300, long: false, run };

/// COM2's.
const OTHER_IRQ: u8 = 3;
/// So many lines are more bytes than the transmit ring, the console's share and the guest's own port keep.
const LINES: u64 = 1000;

fn run(stage: &Stage) -> Result<()> {
    let config = format!(
        r#"
        [[vm]]
        name = "greeter"
        kernel = "guest:greeter"
        cmdline = "count={LINES} every=1"
        memory = "16M"
        [[vm]]
        name = "sleeper"
        kernel = "guest:greeter"
        cmdline = "every=1000000000"
        memory = "16M"
        "#
    );
    let mut machine = stage.boot_with_serial_irq(OTHER_IRQ, &config)?;
    machine.expect(r"^\[lamina\] warning: the serial port is polled: it gives no interrupt on line 4$")?;
    machine.expect(&format!(r"^\[greeter\] greeting {LINES} to Lamina, \d+ ms after my start$"))?;
    machine.expect(r"^\[lamina\] greeter stopped: exited \(status 0\)$")?;
    let told = machine.lines(r"^\[greeter\] greeting \d+ to Lamina")?;
    machine.check(told.len() as u64 == LINES, || format!("{} greetings of {LINES}", told.len()))?;

    // From here on nobody runs, and the processor still wakes for who types.
    machine.type_line("vms");
    machine.expect_all(&[r"^\[lamina\] greeter +stopped ", r"^\[lamina\] sleeper +waiting "])?;
    machine.type_line("audit");
    machine.expect(r"^\[lamina\] audit: looked at .*: 0 violations$")?;
    machine.type_line("quit");
    machine.ends(0)
}
