//! Defences against speculation: guests do not notice them, the log says what is done and why, and where the processor
//! enumerates what it needs, switching between VMs does just that.

use anyhow::Result;
use lamina_tests::{Backend, Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "mitigations", needs: Needs::Machine, limit: 300, long: false, run };

/// Of Bochs' models with VMX the one that has the MSRs: IBRS and IBPB, IBRS_ALL, RDCL_NO, SKIP_L1DFL_VMENTRY, and neither
/// MDS_NO, IF_PSCHANGE_MC_NO nor PBRSB_NO.
const MODEL: &str = "sapphire_rapids";

/// Two that hold patterns in all registers, in turns.
const PAIR: &str = r#"
    [[vm]]
    name = "left"
    kernel = "guest:fpu"
    cmdline = "seed=1 rounds=5"
    memory = "16M"
    [[vm]]
    name = "right"
    kernel = "guest:fpu"
    cmdline = "seed=2 rounds=5"
    memory = "16M"
"#;

/// Two that switch between each other, and count what that costs.
const SWITCH: &str = r#"
    [[vm]]
    name = "bench"
    kernel = "guest:bench"
    cmdline = "role=switch count=events"
    memory = "16M"
    [[vm]]
    name = "partner"
    kernel = "guest:bench"
    cmdline = "role=partner"
    memory = "16M"
"#;

fn run(stage: &Stage) -> Result<()> {
    // Neither Bochs' usual models nor QEMU's emulation enumerate anything.
    for (wanted, told) in [
        ("off", "no defences"),
        ("auto", "the processor's enumeration asks for no defence"),
        ("full", r"all returns stuffed after exits \(not asked for\), VERW before entries \(not asked for\)"),
    ] {
        let mut machine = stage.boot(&format!("[lamina]\nmitigations = {wanted:?}\n{PAIR}"))?;
        machine.expect(&format!(r#"^\[lamina\] speculation: mitigations = "{wanted}": {told}"#))?;
        machine.expect_all(&[r"^\[left\] 5 rounds undisturbed$", r"^\[right\] 5 rounds undisturbed$"])?;
        machine.ends(0)?;
    }
    if stage.backend()? == Backend::Bochs {
        enumerated(stage)
    } else {
        stage.skipped(MODEL, "only Bochs has a processor that enumerates what it needs");
        Ok(())
    }
}

fn enumerated(stage: &Stage) -> Result<()> {
    let auto = r"IBPB between VMs \(IBRS and IBPB\), IA32_SPEC_CTRL set for good \(IBRS_ALL\), one return stuffed after exits \(IBRS_ALL without PBRSB_NO\), VERW before entries \(MD_CLEAR without MDS_NO\), nested pages of 4 KiB only \(no IF_PSCHANGE_MC_NO\)$";
    let full = r"IBPB between VMs \(IBRS and IBPB\), IBPB after exits \(not asked for\), IA32_SPEC_CTRL set for good \(IBRS_ALL\), all returns stuffed after exits \(not asked for\), VERW .*, L1D flush before entries \(not asked for\)";
    let mut writes = Vec::new();
    for (wanted, told) in [("off", "no defences"), ("auto", auto), ("full", full)] {
        let config = format!("[lamina]\nmitigations = {wanted:?}\n{SWITCH}");
        let mut machine = stage.built_with("count").boot_on_model(MODEL, &config)?;
        machine.expect(&format!(r#"^\[lamina\] speculation: mitigations = "{wanted}": {told}"#))?;
        writes.push(machine.expect_number(r"^\[bench\] C switch/there-and-back \d+ \d+ \d+ (\d+) \d+$")?);
        machine.expect(r"^\[bench\] R end$")?;
    }
    // There and back are two switches with a barrier each, and two exits at least, with a barrier behind the exit and a flush
    // before the entry.
    let [off, auto, full] = writes[..] else { anyhow::bail!("{} figures", writes.len()) };
    let (switches, exits) = (auto - off, full - auto);
    anyhow::ensure!(switches == 2 && exits >= 4 && exits % 2 == 0, "WRMSRs of a way there and back: {writes:?}");
    Ok(())
}
