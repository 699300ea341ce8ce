//! Bugs of ours: a build that panics on demand, in each device, in the emulator and in the handlers of exits, ends the VM
//! that it was at work for, with the place as the reason. A witness beside them all is not harmed, the audit agrees, and
//! the machine's status tells.

use std::fmt::Write;

use anyhow::Result;
use lamina_tests::{Backend, Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "contained", needs: Needs::Machine, limit: 600, long: false, run };

/// The places, as `lamina_vmm::fault` names them: all but those that hang, and a read of the serial port,
/// which these guests never make.
const SITES: [&str; 38] = [
    "pic-read",
    "pic-write",
    "pit-read",
    "pit-write",
    "rtc-read",
    "rtc-write",
    "uart-write",
    "uart-output",
    "keyboard-read",
    "pm-read",
    "pm-write",
    "pci-read",
    "pci-write",
    "lapic-read",
    "lapic-write",
    "ioapic-read",
    "ioapic-write",
    "hpet-read",
    "hpet-write",
    "timer",
    "acknowledge",
    "fetch",
    "execute",
    "load",
    "store",
    "walk",
    "cpuid",
    "rdmsr",
    "wrmsr",
    "port-in",
    "port-out",
    "nested",
    "touch",
    "hypercall",
    "control",
    "xsetbv",
    "inject",
    "look",
];
const WITNESS: &str = r"^\[witness\] window \d+: ran \d+ of \d+ kiloticks, \d+ passes, memory as it was$";

fn run(stage: &Stage) -> Result<()> {
    let emulated = matches!(stage.backend()?, Backend::Tcg);
    if emulated {
        stage.skipped("xsetbv", "QEMU's emulation of SVM lets XSETBV through, intercepted or not");
    }
    let sites: Vec<&str> = SITES.into_iter().filter(|site| !emulated || *site != "xsetbv").collect();
    contained(stage, &sites)
}

fn contained(stage: &Stage, sites: &[&str]) -> Result<()> {
    let mut config = String::from("[[vm]]\nname = \"witness\"\nkernel = \"guest:witness\"\nmemory = \"16M\"\n");
    for site in sites {
        // A guest that does everything, until it comes to the place; but it prints past the serial port.
        let kernel = if *site == "uart-output" { "ticker" } else { "hostile" };
        write!(
            config,
            "[[vm]]\nname = \"{site}\"\nkernel = \"guest:{kernel}\"\nmemory = \"16M\"\nbacking = \"lazy\"\nhpet = true\n\
             cmdline = \"seed=1 steps=100000000 fault={site}\"\n"
        )?;
    }
    let mut machine = stage.built_with("fault").boot_in(1 << 30, &config)?;
    let reasons: Vec<String> = sites
        .iter()
        .map(|site| {
            format!(
                r"^\[lamina\] {site} stopped: a bug of the hypervisor's: panicked at hypervisor/\S+: the fault {site} was asked for \(status \d+\)$"
            )
        })
        .collect();
    machine.expect_all(&reasons.iter().map(String::as_str).collect::<Vec<_>>())?;
    machine.expect(WITNESS)?;
    machine.never(r"^\[witness\] MEMORY")?;
    machine.type_line("audit");
    machine.expect(r"^\[lamina\] audit: looked at \d+ frames and \d+ nested pages: 0 violations$")?;
    machine.never("kept out of use")?;
    machine.expect(WITNESS)?;
    machine.type_line("quit");
    machine.ends(101)
}
