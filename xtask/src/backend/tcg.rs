//! QEMU's own emulation: a whole PC in software, SVM included.
//!
//! Owns its part of QEMU's command line.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Machine, kvm};
use crate::paths::find_program;
use crate::setup::apt;

/// The processor model: one of AMD's that kernels know, as far as the emulation goes.
const CPU_MODEL: &str = "EPYC";
/// Without a person, the machine's time is the instructions it has executed, 8 ns each, and a processor that halts
/// skips time: what a machine does then does not depend on what else the host has to do.
const COUNTED: &str = "shift=3,sleep=off";

/// A QEMU that emulates.
#[derive(Clone, Debug)]
pub struct Tcg {
    /// The program.
    pub program: PathBuf,
}

/// Whether nothing must be installed.
pub fn is_installed() -> bool {
    find_program(kvm::PROGRAM).is_some()
}

/// Finds QEMU, and installs it if need be.
///
/// # Errors
/// It cannot be had.
pub fn find() -> Result<Tcg> {
    if !is_installed() {
        apt::install(&["qemu-system-x86"], "the machine to boot on is emulated by QEMU")?;
    }
    let program = find_program(kvm::PROGRAM).with_context(|| format!("no {}", kvm::PROGRAM))?;
    Ok(Tcg { program })
}

impl Tcg {
    /// The command that runs a machine.
    pub fn command(&self, machine: &Machine) -> Command {
        let mut command = kvm::base(&self.program, "tcg", CPU_MODEL);
        kvm::add_machine(&mut command, machine);
        if !machine.interactive {
            command.args(["-icount", COUNTED]);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_has_the_machine() {
        let mut machine = Machine {
            image: "/a".into(),
            cpus: 1,
            memory: 512 << 20,
            serial: 99,
            interactive: false,
            directory: "/d".into(),
        };
        let line = |machine: &Machine| {
            let command = Tcg { program: "qemu".into() }.command(machine);
            command.get_args().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join(" ")
        };
        for part in ["-accel tcg -cpu EPYC", "-m 512M", "file=/a", "port=99", "isa-debug-exit", "-icount shift=3"] {
            assert!(line(&machine).contains(part), "{part} is not in: {}", line(&machine));
        }
        machine.interactive = true;
        assert!(!line(&machine).contains("icount"), "a person's time is the wall's");
    }
}
