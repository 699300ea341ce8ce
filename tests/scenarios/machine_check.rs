//! A machine check of the machine's: it ends the machine, and the report says which bank has which error.

use anyhow::Result;
use lamina_tests::{Firmware, Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "machine_check", needs: Needs::Tcg, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    // It greets once and sleeps: QEMU's emulation gives a guest that runs the machine's machine checks, intercepted or not.
    let mut machine = stage.boot_with_screen(
        r#"
        [[vm]]
        name = "sleeper"
        kernel = "guest:greeter"
        memory = "16M"
        cmdline = "every=1000000000"
        "#,
        Firmware::Bios,
        None,
    )?;
    machine.expect(r"^\[sleeper\] ")?;
    machine.type_line("vms");
    machine.expect(r"^\[lamina\] +sleeper +")?;
    // Processor 0, bank 2: an uncorrected error that is enabled, with an address.
    let _monitor = machine.tell_emulator("mce 0 2 0xb400000000000175 0x5 0x123456789000 0")?;
    machine.expect(r"^\[lamina\] exception 18 \(#MC, machine check\), ")?;
    machine.expect(r"^\[lamina\] bank 2: status 0xb400000000000175, address 0x123456789000$")?;
    machine.expect(r"^\[lamina\] exit 101$")?;
    machine.never(r"^\[lamina\] bank [^2]")
}
