//! What Lamina can be booted on, and how that is chosen.
//!
//! Owns the order of choice and each backend's command line. Gets an emulator where it may, and boots nothing but trials.

pub mod bochs;
pub mod facts;
pub mod qemu;
mod trial;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;
use thiserror::Error;

use crate::paths::find_program;
use crate::setup::apt;
use facts::{Extension, Facts, Reason};
use qemu::{Accelerator, Qemu};

/// A kind of machine to boot on, as `--on` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// QEMU with nested KVM: the processor's own VMX or SVM
    Kvm,
    /// Bochs: VMX in software
    Bochs,
    /// QEMU's own emulation: SVM in software
    Tcg,
    /// Bochs with one of AMD's processors: SVM in software, with what QEMU's lacks
    BochsSvm,
}

impl Name {
    /// The order in which they are tried where none is named: what is fast first.
    pub const TRIED: [Name; 3] = [Name::Kvm, Name::Bochs, Name::Tcg];
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

/// Why a backend that was asked for is not taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// This host does not offer it.
    #[error("--on {name}: {reason}")]
    Unusable {
        /// What was asked for.
        name: Name,
        /// Why not.
        reason: String,
    },
}

/// A backend that works here.
#[derive(Clone, Debug)]
pub enum Backend {
    /// QEMU.
    Qemu(Qemu),
    /// Bochs.
    Bochs(bochs::Bochs),
}

/// How the hypervisor's lines start.
const FIRST_WORDS: &str = "[lamina] ";

/// The machine to boot.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The disk image.
    pub image: PathBuf,
    /// Number of processors.
    pub cpus: u32,
    /// Unit: bytes, in whole MiB.
    pub memory: u64,
    /// The TCP port on this host to which the emulator connects the machine's first serial port.
    pub serial: u16,
    /// The ISA interrupt of that port; `None` for the PC's. QEMU alone has another.
    pub serial_irq: Option<u8>,
    /// A person sits at the console: the machine's time follows the time on the wall.
    pub interactive: bool,
    /// Where the emulator may keep files of this run.
    pub directory: PathBuf,
    /// The image of UEFI's firmware to start with; `None` for a PC's BIOS. QEMU alone has it.
    pub uefi: Option<PathBuf>,
    /// What follows the processor's model in QEMU's option, with a comma in front, to take features away.
    pub processor_options: Option<String>,
    /// What follows the machine's type in QEMU's option, with a comma in front, to take devices away.
    pub machine_options: Option<String>,
    /// The processor's model in Bochs; `None` for the usual one.
    pub model: Option<&'static str>,
    /// Where QEMU's monitor listens, if anywhere: a socket's path.
    pub monitor: Option<PathBuf>,
    /// What begins the first line of whoever listens to the serial port.
    pub first_words: &'static str,
}

impl Default for Machine {
    /// One processor, and nothing else of what must be said.
    fn default() -> Machine {
        Machine {
            image: PathBuf::new(),
            cpus: 1,
            memory: 0,
            serial: 0,
            serial_irq: None,
            interactive: false,
            directory: PathBuf::new(),
            uefi: None,
            processor_options: None,
            machine_options: None,
            model: None,
            monitor: None,
            first_words: FIRST_WORDS,
        }
    }
}

impl Backend {
    /// What it is.
    pub fn name(&self) -> Name {
        match self {
            Backend::Qemu(qemu) => match qemu.accelerator {
                Accelerator::Kvm => Name::Kvm,
                Accelerator::Tcg => Name::Tcg,
            },
            Backend::Bochs(bochs) => match bochs.extension {
                Extension::Vmx => Name::Bochs,
                Extension::Svm => Name::BochsSvm,
            },
        }
    }

    /// The emulator's program.
    pub fn program(&self) -> &Path {
        match self {
            Backend::Qemu(qemu) => &qemu.program,
            Backend::Bochs(bochs) => &bochs.program,
        }
    }

    /// The machine's processor can deliver a virtual interrupt while RFLAGS.IF is 0, so that APIC virtualization is not
    /// to be had there unless somebody asks for it: every Bochs but the one that [`setup::bochs`](crate::setup::bochs)
    /// builds.
    pub fn delivers_masked_interrupts(&self) -> bool {
        matches!(self, Backend::Bochs(bochs) if !bochs.changed)
    }

    /// The command that runs a machine.
    ///
    /// # Errors
    /// A file of the emulator's cannot be written, or it cannot run such a machine.
    pub fn command(&self, machine: &Machine) -> Result<Command> {
        match self {
            Backend::Qemu(qemu) => Ok(qemu.command(machine)),
            Backend::Bochs(bochs) => bochs.command(machine),
        }
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}", self.name(), self.program().display())
    }
}

/// The file in a run's directory that takes the emulator's log.
pub fn log(directory: &Path) -> PathBuf {
    directory.join("emulator.log")
}

/// The file in a run's directory that takes the words of who looks on.
pub fn opinion(directory: &Path) -> PathBuf {
    directory.join("opinion")
}

/// Bochs with a module that looks on, if `on` does not ask for another backend.
///
/// # Errors
/// It does ([`Refusal`]), or such a Bochs cannot be had.
pub fn looking_on(on: Option<Name>) -> Result<Choice> {
    if let Some(name) = on.filter(|name| *name != Name::Bochs) {
        let reason = "nobody looks on there; only bochs has a module that does".to_owned();
        return Err(Refusal::Unusable { name, reason }.into());
    }
    let backend = Backend::Bochs(bochs::find_looking_on()?);
    Ok(Choice { backend, why: "VMX; the one that has somebody looking on".to_owned() })
}

/// A backend that was found to work, and what the machine there has.
#[derive(Clone, Debug)]
pub struct Found {
    /// The backend.
    pub backend: Backend,
    /// The extension that a trial found.
    pub extension: Extension,
}

/// How this host's backends are found: replaced in tests by what other hosts would say.
pub trait Probe {
    /// Finds out whether `name` works here.
    ///
    /// # Errors
    /// Why it does not.
    fn find(&self, name: Name) -> Result<Found, Reason>;
}

/// A backend and the reason to take it.
#[derive(Debug)]
pub struct Choice {
    /// What to boot on.
    pub backend: Backend,
    /// Part of a sentence.
    pub why: String,
}

/// The backend that was asked for, or else the first of [`Name::TRIED`] that works.
///
/// # Errors
/// The one asked for does not work ([`Refusal`]), or none does.
pub fn choose(on: Option<Name>, probe: &impl Probe) -> Result<Choice> {
    let Some(name) = on else { return first(probe) };
    match probe.find(name) {
        Ok(Found { backend, extension }) => Ok(Choice { backend, why: format!("{extension}; asked for by --on") }),
        Err(reason) => Err(Refusal::Unusable { name, reason: reason.to_string() }.into()),
    }
}

fn first(probe: &impl Probe) -> Result<Choice> {
    let mut against = Vec::new();
    for name in Name::TRIED {
        match probe.find(name) {
            Ok(Found { backend, extension }) => {
                let why = std::iter::once(extension.to_string()).chain(against).collect::<Vec<_>>().join("; ");
                return Ok(Choice { backend, why });
            }
            Err(reason) => against.push(format!("no {name}: {reason}")),
        }
    }
    anyhow::bail!("nothing here can run Lamina; {}", against.join("; "))
}

/// This host.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Install or build an emulator that is missing.
    pub install: bool,
    /// Try again what is remembered.
    pub fresh: bool,
}

impl Host {
    /// As every command but `doctor` wants it.
    pub const USUAL: Host = Host { install: true, fresh: false };

    fn emulator(self, name: Name) -> Result<Backend, Reason> {
        match name {
            Name::Kvm => self.qemu(Accelerator::Kvm),
            Name::Tcg => self.qemu(Accelerator::Tcg),
            Name::Bochs => self.bochs(Extension::Vmx),
            Name::BochsSvm => self.bochs(Extension::Svm),
        }
    }

    fn qemu(self, accelerator: Accelerator) -> Result<Backend, Reason> {
        let find = || find_program(qemu::PROGRAM);
        let program = match find() {
            Some(program) => program,
            None if !self.install => {
                let what = format!("QEMU is not installed (Debian's package {})", qemu::PACKAGE);
                return Err(Reason::NotYet { what, how: "installs QEMU" });
            }
            None => {
                let why = match accelerator {
                    Accelerator::Kvm => "this host may have nested virtualization",
                    Accelerator::Tcg => "the machine to boot on is emulated by QEMU",
                };
                let absent = |words: String| Reason::Absent(format!("QEMU is not installed: {words}"));
                apt::install(&[qemu::PACKAGE], why).map_err(|error| absent(format!("{error:#}")))?;
                find().ok_or_else(|| absent(format!("no {}", qemu::PROGRAM)))?
            }
        };
        Ok(Backend::Qemu(Qemu { program, accelerator }))
    }

    fn bochs(self, extension: Extension) -> Result<Backend, Reason> {
        let absent = |error: anyhow::Error| Reason::Absent(format!("{error:#}"));
        let found = if self.install { bochs::find().map_err(absent) } else { bochs::find_installed() };
        found.map(|bochs| Backend::Bochs(bochs::Bochs { extension, ..bochs }))
    }
}

impl Probe for Host {
    fn find(&self, name: Name) -> Result<Found, Reason> {
        let trial = |backend: &Backend, identity: &str| trial::outcome(backend, identity, self.fresh);
        find(name, &Facts::of_this_host(), |name| self.emulator(name), trial)
    }
}

/// Finds out whether `name` works on a host that says `facts`: `emulator` gets what it needs, and `trial` boots the probe
/// there, told what of the host a remembered result depends on.
fn find(
    name: Name,
    facts: &Facts,
    emulator: impl FnOnce(Name) -> Result<Backend, Reason>,
    trial: impl FnOnce(&Backend, &str) -> trial::Outcome,
) -> Result<Found, Reason> {
    let identity = match name {
        Name::Kvm => {
            // Before an emulator is installed that would be of no use.
            facts::judge(facts)?;
            facts.identity.as_str()
        }
        // An emulation depends on nothing of the host's but its own program.
        Name::Tcg | Name::Bochs | Name::BochsSvm => "",
    };
    let backend = emulator(name)?;
    let extension = trial(&backend, identity).map_err(Reason::Trial)?;
    Ok(Found { backend, extension })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host as recorded: what it says of itself, how a trial on KVM ended, and which emulators are there.
    struct Recorded {
        facts: Facts,
        trial: Result<Extension, &'static str>,
        qemu: bool,
        bochs: bool,
    }

    impl Recorded {
        fn emulator(&self, name: Name) -> Result<Backend, Reason> {
            let absent = |there: bool, what: &str| {
                if there { Ok(()) } else { Err(Reason::Absent(format!("{what} is not installed"))) }
            };
            let qemu = |accelerator| Backend::Qemu(Qemu { program: "qemu".into(), accelerator });
            let bochs = |extension| Backend::Bochs(bochs::tests::any(extension));
            match name {
                Name::Kvm => absent(self.qemu, "QEMU").map(|()| qemu(Accelerator::Kvm)),
                Name::Tcg => absent(self.qemu, "QEMU").map(|()| qemu(Accelerator::Tcg)),
                Name::Bochs => absent(self.bochs, "Bochs").map(|()| bochs(Extension::Vmx)),
                Name::BochsSvm => absent(self.bochs, "Bochs").map(|()| bochs(Extension::Svm)),
            }
        }

        fn trial(&self, backend: &Backend, identity: &str) -> trial::Outcome {
            let depends = if backend.name() == Name::Kvm { self.facts.identity.as_str() } else { "" };
            assert_eq!(identity, depends, "{backend}");
            match backend.name() {
                Name::Kvm => self.trial.map_err(str::to_owned),
                Name::Bochs => Ok(Extension::Vmx),
                Name::Tcg | Name::BochsSvm => Ok(Extension::Svm),
            }
        }
    }

    impl Probe for Recorded {
        fn find(&self, name: Name) -> Result<Found, Reason> {
            let trial = |backend: &Backend, identity: &str| self.trial(backend, identity);
            find(name, &self.facts, |name| self.emulator(name), trial)
        }
    }

    fn nested(extension: Extension) -> Facts {
        let nested = Some("Y\n".to_owned());
        let identity = "Linux 6.1".to_owned();
        Facts { extension: Some(extension), nested, device: facts::Device::Opens, identity, ..Facts::default() }
    }

    fn intel() -> Recorded {
        Recorded { facts: nested(Extension::Vmx), trial: Ok(Extension::Vmx), qemu: true, bochs: true }
    }

    fn chosen(host: &Recorded) -> (Name, String) {
        let choice = choose(None, host).unwrap();
        (choice.backend.name(), choice.why)
    }

    #[test]
    fn nested_kvm_of_either_vendor_comes_first() {
        assert_eq!(chosen(&intel()), (Name::Kvm, "VMX".to_owned()));
        let amd = Recorded { facts: nested(Extension::Svm), trial: Ok(Extension::Svm), ..intel() };
        assert_eq!(chosen(&amd), (Name::Kvm, "SVM".to_owned()));
    }

    #[test]
    fn whatever_is_wrong_with_kvm_the_next_takes_over_with_its_line() {
        let off = Facts { nested: Some("N".into()), ..nested(Extension::Vmx) };
        let denied = Facts { device: facts::Device::Denied, ..nested(Extension::Svm) };
        // It opens, and there is no hardware behind it.
        let hollow = Facts { device: facts::Device::Opens, ..Facts::default() };
        for (host, words) in [
            (Recorded { facts: off, ..intel() }, "no kvm: nested virtualization is switched off"),
            (Recorded { facts: denied, ..intel() }, "no kvm: this user may not open /dev/kvm"),
            (Recorded { facts: hollow, ..intel() }, "no kvm: this processor offers neither"),
            (Recorded { facts: Facts::default(), ..intel() }, "no kvm: this processor offers neither"),
            (Recorded { trial: Err("failed to set MSR 0x10a"), ..intel() }, "no kvm: failed to set MSR 0x10a"),
            (Recorded { qemu: false, ..intel() }, "no kvm: QEMU is not installed"),
        ] {
            let (name, why) = chosen(&host);
            assert_eq!(name, Name::Bochs, "{why}");
            assert!(why.starts_with("VMX; ") && why.contains(words), "{why}");
        }
    }

    #[test]
    fn without_bochs_it_is_qemus_emulation_and_without_both_an_error_with_every_reason() {
        let host = Recorded { facts: Facts::default(), bochs: false, ..intel() };
        let (name, why) = chosen(&host);
        assert_eq!(name, Name::Tcg);
        assert!(why.starts_with("SVM; no kvm: ") && why.ends_with("no bochs: Bochs is not installed"), "{why}");
        let error = choose(None, &Recorded { qemu: false, ..host }).unwrap_err().to_string();
        for part in ["no kvm: ", "no bochs: ", "no tcg: QEMU is not installed"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn nothing_is_installed_or_tried_for_a_kvm_that_is_switched_off() {
        let off = Facts { nested: Some("N".into()), ..nested(Extension::Vmx) };
        let found = find(Name::Kvm, &off, |_| panic!("an emulator is asked for"), |_, _| panic!("a trial"));
        assert_eq!(found.unwrap_err(), Reason::NestingOff(Extension::Vmx));
        let absent = |_| Err(Reason::Absent("no QEMU".into()));
        let found = find(Name::Kvm, &nested(Extension::Vmx), absent, |_, _| panic!("a trial"));
        assert_eq!(found.unwrap_err(), Reason::Absent("no QEMU".into()));
    }

    #[test]
    fn nobody_looks_on_elsewhere() {
        for name in [Name::Kvm, Name::Tcg, Name::BochsSvm] {
            let error = looking_on(Some(name)).unwrap_err();
            let refusal: &Refusal = error.downcast_ref().unwrap();
            assert!(refusal.to_string().starts_with(&format!("--on {name}: nobody looks on there")), "{refusal}");
        }
    }

    #[test]
    fn what_is_asked_for_is_taken_or_refused() {
        for name in [Name::Kvm, Name::Bochs, Name::Tcg, Name::BochsSvm] {
            let choice = choose(Some(name), &intel()).unwrap();
            assert_eq!(choice.backend.name(), name);
            assert!(choice.why.ends_with("asked for by --on"));
        }
        let host = Recorded { facts: Facts::default(), qemu: false, bochs: false, ..intel() };
        for (name, words) in [(Name::Kvm, "neither VMX nor SVM"), (Name::Tcg, "QEMU"), (Name::BochsSvm, "Bochs")] {
            let error = choose(Some(name), &host).unwrap_err();
            let refusal: &Refusal = error.downcast_ref().unwrap();
            assert!(refusal.to_string().starts_with(&format!("--on {name}: ")), "{refusal}");
            assert!(refusal.to_string().contains(words), "{refusal}");
        }
    }
}
