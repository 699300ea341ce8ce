//! Processors that cannot run Lamina: one line on the serial port and on the screen says why, and the status is a
//! failure.

use anyhow::Result;
use lamina_tests::{Firmware, Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "refused_processor", needs: Needs::Tcg, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let neither = r"^\[lamina\] error: this processor has neither VT-x .* nor AMD-V .*$";
    let no_paging = r"^\[lamina\] error: this processor's AMD-V lacks nested paging$";
    for (options, reason) in [(",-svm", neither), (",-npt", no_paging)] {
        let mut machine = stage.boot_with_screen(
            r#"
            [[vm]]
            name = "first"
            kernel = "guest:hello"
            memory = "16M"
            "#,
            Firmware::Bios,
            Some(options),
        )?;
        machine.expect(reason)?;
        machine.expect(r"^\[lamina\] exit 1$")?;
        machine.never(r"^\[first\]")?;
        // The screen's line may be shorter than this one.
        machine.expect_on_screen(r"^\[lamina\] error: this processor")?;
        machine.expect_on_screen(r"^\[lamina\] exit 1$")?;
    }
    Ok(())
}
