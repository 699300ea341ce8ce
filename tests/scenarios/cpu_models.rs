//! Each named CPU model: what it does not show does not work, instruction by instruction, as far as the processor can take
//! it away.

use anyhow::Result;
use lamina_tests::{Backend, Firmware, Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "cpu_models", needs: Needs::Machine, limit: 600, long: false, run };

const MODELS: [&str; 4] = ["baseline", "haswell", "skylake", "skylake-server"];

/// What a machine cannot take away from a guest: backend, the checker's name of it, and why.
const KNOWN: &[(Backend, &str, &str)] = &[
    (Backend::Bochs, "absent-instruction-CLAC", "no processor can take CLAC away"),
    (Backend::Tcg, "absent-instruction-CLAC", "no processor can take CLAC away"),
    (Backend::BochsSvm, "absent-instruction-CLAC", "no processor can take CLAC away"),
    (Backend::Tcg, "absent-instruction-RDRAND", "SVM cannot intercept RDRAND"),
    (Backend::BochsSvm, "absent-instruction-RDRAND", "SVM cannot intercept RDRAND"),
    (Backend::Tcg, "absent-instruction-RDSEED", "SVM cannot intercept RDSEED"),
    (Backend::BochsSvm, "absent-instruction-RDSEED", "SVM cannot intercept RDSEED"),
    (Backend::Tcg, "absent-instruction-RDPID", "SVM cannot intercept RDPID"),
    (Backend::Tcg, "absent-instruction-TPAUSE", "QEMU's emulation executes TPAUSE as MFENCE on every processor"),
    (Backend::BochsSvm, "absent-instruction-XSAVES", "SVM cannot intercept XSAVES; IA32_XSS is 0"),
];

fn run(stage: &Stage) -> Result<()> {
    let backend = stage.backend()?;
    let known: Vec<_> = KNOWN.iter().filter(|(on, ..)| *on == backend).collect();
    let names: Vec<_> = known.iter().map(|(_, name, _)| *name).collect();
    let vm = |model: &&str| {
        format!(
            "[[vm]]\nname = \"{model}\"\nkernel = \"guest:checker\"\ncpu = \"{model}\"\nmemory = \"32M\"\n\
             cmdline = \"only=absent-instruction- except={}\"\n",
            names.join(",")
        )
    };
    let mut machine = stage.boot(&MODELS.iter().map(vm).collect::<String>())?;
    machine.expect_all(
        &MODELS.map(|model| format!(r"^\[{model}\] \d+ checks, 0 failed$")).each_ref().map(String::as_str),
    )?;
    // What is taken away, and not merely absent from the machine.
    let taken = match backend {
        Backend::Bochs => [("baseline", "INVPCID"), ("baseline", "RDRAND"), ("haswell", "RDSEED")].as_slice(),
        _ => &[],
    };
    for (model, instruction) in taken {
        let line = format!(r"^\[{model}\] ok absent-instruction-{instruction}$");
        machine
            .check(machine.lines(&line)?.len() == 1, || format!("{model} does not say that {instruction} is absent"))?;
    }
    machine.ends(0)?;
    if backend == Backend::Tcg {
        // This one has protection keys: they are shown, and the bit in CR4 is the guest's.
        let vm =
            "[[vm]]\nname = \"host\"\nkernel = \"guest:checker\"\nmemory = \"32M\"\ncmdline = \"only=absent-cr4-\"\n";
        let mut machine = stage.boot_with_screen(vm, Firmware::Bios, Some(",+pku"))?;
        machine.expect(r"^\[host\] \d+ checks, 0 failed$")?;
        machine.never("absent-cr4-PKE")?;
        machine.ends(0)?;
    }
    for (_, name, reason) in known {
        if !machine.lines(&format!("skipped {name}:"))?.is_empty() {
            stage.skipped(name, reason);
        }
    }
    Ok(())
}
