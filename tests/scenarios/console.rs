//! The console's commands, as a script types them: each answers, wrong ones too, and `quit` ends everything with
//! success.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "console", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "one"
        kernel = "guest:ticker"
        memory = "16M"
        [[vm]]
        name = "two"
        kernel = "guest:ticker"
        memory = "16M"
        "#,
    )?;
    machine.expect_all(&[r"^\[one\] 100 ticks$", r"^\[two\] 100 ticks$"])?;

    // There is nothing to say of a serial port as every PC has it.
    machine.never(r"serial port is polled")?;

    machine.type_line("help");
    machine.expect_all(&[
        r"^\[lamina\] help ",
        r"^\[lamina\] vms ",
        r"^\[lamina\] stop NAME ",
        r"^\[lamina\] quit ",
    ])?;
    machine.type_line("vms");
    machine.expect_all(&[r"^\[lamina\] one +(running|waiting) +16 MiB ", r"^\[lamina\] two +(running|waiting) "])?;

    machine.type_line("reboot one");
    machine.expect(r"^\[lamina\] unknown command 'reboot'")?;
    machine.type_line("stop");
    machine.expect(r"^\[lamina\] usage: stop NAME$")?;
    machine.type_line("stop three");
    machine.expect(r"^\[lamina\] three is no virtual machine")?;

    machine.type_line("stop one");
    machine.expect(r"^\[lamina\] one stopped: .*console.* \(status 0\)$")?;
    machine.type_line("stop one");
    machine.expect(r"^\[lamina\] one has stopped$")?;
    machine.type_line("attach one");
    machine.expect(r"^\[lamina\] one has stopped$")?;
    machine.type_line("vms");
    machine.expect(r"^\[lamina\] one +stopped ")?;

    machine.type_line("attach two");
    machine.expect(r"^\[lamina\] attached to two")?;
    // It reads nothing; what is typed must not be taken for a command.
    machine.type_line("stop two");
    machine.type_bytes(b"\x01d");
    machine.expect(r"^\[lamina\] detached from two$")?;
    machine.expect(r"^\[two\] \d+ ticks$")?;
    machine.never(r"^\[lamina\] two stopped")?;

    machine.type_line("quit");
    machine.ends(0)
}
