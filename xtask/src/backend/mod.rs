//! What Lamina is booted on, and how it is chosen.
//!
//! Owns the choice; each backend owns the command line of its emulator.

pub mod bochs;
pub mod kvm;
pub mod tcg;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;
use thiserror::Error;

/// The names that `--on` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// QEMU with KVM: the processor's own VMX, nested
    Kvm,
    /// Bochs: VMX in software
    Bochs,
    /// QEMU's own emulation: SVM in software
    Tcg,
    /// Bochs: SVM in software (not there yet)
    BochsSvm,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Name::Kvm => "kvm",
            Name::Bochs => "bochs",
            Name::Tcg => "tcg",
            Name::BochsSvm => "bochs-svm",
        })
    }
}

/// A backend that cannot be had, and why.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// The hypervisor cannot run there yet: a usage error.
    #[error("--on {0}: not there yet")]
    NotYet(Name),
    /// This host does not offer it.
    #[error("--on {name}: {reason}")]
    Unusable {
        /// What was asked for.
        name: Name,
        /// Why not.
        reason: String,
    },
}

/// A backend that works on this host.
#[derive(Clone, Debug)]
pub enum Backend {
    /// QEMU with KVM.
    Kvm(kvm::Kvm),
    /// Bochs.
    Bochs(bochs::Bochs),
    /// QEMU without KVM.
    Tcg(tcg::Tcg),
}

/// The machine to boot.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The disk image.
    pub image: PathBuf,
    /// Processors of the machine.
    pub cpus: u32,
    /// Memory of the machine. Unit: bytes; a multiple of 1 MiB.
    pub memory: u64,
    /// Where xtask waits for the machine's serial port to connect: a port of the loopback address.
    pub serial: u16,
    /// A person is at the console: time should pass as on the wall.
    pub interactive: bool,
    /// A directory for this run alone.
    pub directory: PathBuf,
}

impl Backend {
    /// The name that `--on` takes for it.
    pub fn name(&self) -> Name {
        match self {
            Backend::Kvm(_) => Name::Kvm,
            Backend::Bochs(_) => Name::Bochs,
            Backend::Tcg(_) => Name::Tcg,
        }
    }

    /// The command that runs a machine; it writes what its emulator has to say to [`log`].
    ///
    /// # Errors
    /// A file that the emulator needs cannot be written.
    pub fn command(&self, machine: &Machine) -> Result<Command> {
        match self {
            Backend::Kvm(kvm) => Ok(kvm.command(machine)),
            Backend::Bochs(bochs) => bochs.command(machine),
            Backend::Tcg(tcg) => Ok(tcg.command(machine)),
        }
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Backend::Kvm(kvm) => write!(f, "kvm, {}", kvm.program.display()),
            Backend::Bochs(bochs) => write!(f, "bochs, {}", bochs.program.display()),
            Backend::Tcg(tcg) => write!(f, "tcg, {}", tcg.program.display()),
        }
    }
}

/// Where an emulator writes what it has to say, in the directory of its run.
pub fn log(directory: &Path) -> PathBuf {
    directory.join("emulator.log")
}

/// Finds out what this host offers; in tests, says so.
pub trait Probe {
    /// KVM, or why it cannot be used.
    ///
    /// # Errors
    /// Why not.
    fn kvm(&self) -> Result<Backend, String>;

    /// Bochs; what is missing of it is installed or built.
    ///
    /// # Errors
    /// That fails.
    fn bochs(&self) -> Result<Backend>;

    /// QEMU's emulation; it is installed if it is missing.
    ///
    /// # Errors
    /// That fails.
    fn tcg(&self) -> Result<Backend>;
}

/// A backend and the reason to take it.
#[derive(Clone, Debug)]
pub struct Choice {
    /// What to boot on.
    pub backend: Backend,
    /// Why, to be said in one line.
    pub why: String,
}

/// Chooses: what the user asked for, else the first of KVM and Bochs that works.
///
/// # Errors
/// What was asked for is refused, or nothing works.
pub fn choose(on: Option<Name>, probe: &impl Probe) -> Result<Choice> {
    let asked = |backend| Choice { backend, why: "asked for by --on".to_owned() };
    match on {
        Some(name @ Name::BochsSvm) => Err(Refusal::NotYet(name).into()),
        Some(Name::Tcg) => probe.tcg().map(asked),
        Some(name @ Name::Kvm) => probe.kvm().map(asked).map_err(|reason| Refusal::Unusable { name, reason }.into()),
        Some(Name::Bochs) => probe.bochs().map(asked),
        None => match probe.kvm() {
            Ok(backend) => Ok(Choice { backend, why: "nested virtualization works on this host".to_owned() }),
            Err(reason) => Ok(Choice { backend: probe.bochs()?, why: format!("no kvm: {reason}") }),
        },
    }
}

/// The host that this program runs on.
#[derive(Clone, Copy, Debug)]
pub struct Host;

impl Probe for Host {
    fn kvm(&self) -> Result<Backend, String> {
        kvm::probe().map(Backend::Kvm)
    }

    fn bochs(&self) -> Result<Backend> {
        bochs::find().map(Backend::Bochs)
    }

    fn tcg(&self) -> Result<Backend> {
        tcg::find().map(Backend::Tcg)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    struct Fake {
        kvm: Result<(), &'static str>,
        bochs: bool,
        asked_for_bochs: Cell<bool>,
    }

    fn host(kvm: Result<(), &'static str>, bochs: bool) -> Fake {
        Fake { kvm, bochs, asked_for_bochs: Cell::new(false) }
    }

    impl Probe for Fake {
        fn kvm(&self) -> Result<Backend, String> {
            let program = PathBuf::from("qemu");
            self.kvm.map(|()| Backend::Kvm(kvm::Kvm { program })).map_err(str::to_owned)
        }

        fn bochs(&self) -> Result<Backend> {
            self.asked_for_bochs.set(true);
            anyhow::ensure!(self.bochs, "no bochs either");
            Ok(Backend::Bochs(bochs::tests::any()))
        }

        fn tcg(&self) -> Result<Backend> {
            Ok(Backend::Tcg(tcg::Tcg { program: PathBuf::from("qemu") }))
        }
    }

    #[test]
    fn kvm_comes_first_and_then_nothing_is_set_up_for_bochs() {
        let host = host(Ok(()), true);
        let choice = choose(None, &host).unwrap();
        assert_eq!(choice.backend.name(), Name::Kvm);
        assert!(!host.asked_for_bochs.get());
    }

    #[test]
    fn without_kvm_it_is_bochs_and_the_reason_is_told() {
        let choice = choose(None, &host(Err("no /dev/kvm"), true)).unwrap();
        assert_eq!(choice.backend.name(), Name::Bochs);
        assert_eq!(choice.why, "no kvm: no /dev/kvm");
        assert!(choose(None, &host(Err("no /dev/kvm"), false)).unwrap_err().to_string().contains("no bochs either"));
    }

    #[test]
    fn what_is_asked_for_is_not_replaced() {
        assert_eq!(choose(Some(Name::Bochs), &host(Ok(()), true)).unwrap().backend.name(), Name::Bochs);
        let error = choose(Some(Name::Kvm), &host(Err("no /dev/kvm"), true)).unwrap_err();
        assert_eq!(error.to_string(), "--on kvm: no /dev/kvm");
    }

    #[test]
    fn svm_in_software_is_qemus_and_only_when_asked_for() {
        let name = Name::BochsSvm;
        let error = choose(Some(name), &host(Ok(()), true)).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&Refusal::NotYet(name)));
        assert_eq!(error.to_string(), "--on bochs-svm: not there yet");
        let choice = choose(Some(Name::Tcg), &host(Ok(()), true)).unwrap();
        assert_eq!(choice.backend.name(), Name::Tcg);
    }
}
