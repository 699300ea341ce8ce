//! Bochs: a whole PC in software, VMX or SVM included.
//!
//! Owns Bochs' configuration file. Two kinds of Bochs are known: the one that [`setup::bochs`] builds, and the one that
//! Debian packages.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::facts::{Extension, Reason};
use super::{Machine, log, opinion};
use crate::paths::find_program;
use crate::report;
use crate::setup::{self, apt, bochs::Firmware};

/// Names the Bochs to use: `built`, `packaged` or a path.
const VARIABLE: &str = "LAMINA_BOCHS";
/// The processor model with VMX: of those the only one that gets a stock Linux up in every version.
const VMX_MODEL: &str = "corei7_skylake_x";
/// The processor model with SVM.
const SVM_MODEL: &str = "ryzen";
/// Instructions per second of the machine's own time, where that has nothing to do with the time on the wall; its TSC
/// runs at this rate.
const IPS: u32 = 100_000_000;
/// The same for a person, for whom Bochs waits when it is ahead of the wall's time: what the built one achieves, or it
/// would wait where it could work.
const IPS_INTERACTIVE: u32 = 200_000_000;
/// The packages of the packaged one.
const PACKAGES: [&str; 4] = ["bochs", "bochsbios", "vgabios", "bochs-sdl"];
/// Tells the module that looks on where to write what it saw.
const OPINION_VARIABLE: &str = "LAMINA_OPINION";
/// The packaged program.
const PACKAGED: &str = "/usr/bin/bochs";
/// Bochs keeps at most this much of a machine's memory in its own; more goes to a file. Unit: MiB.
const HOST_MEMORY_MAX: u64 = 2048;

/// A Bochs that can be run.
#[derive(Clone, Debug)]
pub struct Bochs {
    /// The program.
    pub program: PathBuf,
    /// It has the debugger inside, and waits for its commands.
    pub debugger: bool,
    /// It is the one that is built here, with the changes of [`setup::bochs`].
    pub changed: bool,
    /// It is built here with a module that looks on, and says in the run's directory what it saw ([`opinion`]).
    pub looks_on: bool,
    /// The PC's firmware.
    pub firmware: Firmware,
    /// What its processor shall have.
    pub extension: Extension,
}

/// Finds the Bochs to use: as `LAMINA_BOCHS` says, else the built one, which is built if need be, else the packaged.
///
/// # Errors
/// What the variable names is not there, or nothing can be had.
pub fn find() -> Result<Bochs> {
    match std::env::var(VARIABLE).as_deref() {
        Ok("packaged") => packaged(),
        Ok("built") => bochs(setup::bochs::build()?),
        Err(_) | Ok("") => match setup::bochs::build() {
            Ok(program) => bochs(program),
            Err(error) => {
                report::say(format_args!("taking Debian's packaged Bochs, which is slower: {error:#}"));
                packaged()
            }
        },
        Ok(path) => {
            ensure!(Path::new(path).is_file(), "{VARIABLE}={path}: no such file; `built`, `packaged` or a path");
            bochs(std::path::absolute(path)?)
        }
    }
}

/// Finds the Bochs that looks on, which is built if need be.
///
/// # Errors
/// `LAMINA_BOCHS` names another, which cannot; or it cannot be had.
pub fn find_looking_on() -> Result<Bochs> {
    if let Some(reason) = cannot_look_on() {
        bail!("{reason}");
    }
    let program = setup::bochs::build_looking_on().context("no Bochs that looks on can be had")?;
    Ok(Bochs { changed: true, looks_on: true, ..bochs(program)? })
}

/// Why no Bochs may be taken that looks on, where `LAMINA_BOCHS` names another.
pub fn cannot_look_on() -> Option<String> {
    let other = std::env::var(VARIABLE).ok().filter(|name| !matches!(name.as_str(), "" | "built"))?;
    Some(format!("{VARIABLE}={other}: only the Bochs that is built from source, with a module of Lamina's, looks on"))
}

/// Finds a Bochs that is there already.
///
/// # Errors
/// There is none: [`Reason::NotYet`] where [`find`] would get one, else [`Reason::Absent`].
pub fn find_installed() -> Result<Bochs, Reason> {
    let absent = |error: anyhow::Error| Reason::Absent(format!("{error:#}"));
    match std::env::var(VARIABLE).as_deref() {
        Ok("packaged") if is_packaged() => packaged().map_err(absent),
        Ok("packaged") => {
            let what = format!("Bochs is not installed (Debian's packages {})", PACKAGES.join(" "));
            Err(Reason::NotYet { what, how: "installs Bochs" })
        }
        Err(_) | Ok("" | "built") => match setup::bochs::built().map_err(absent)? {
            Some(program) => bochs(program).map_err(absent),
            None => Err(Reason::NotYet { what: "Bochs is not built yet".to_owned(), how: "builds Bochs" }),
        },
        Ok(_) => find().map_err(absent),
    }
}

fn is_packaged() -> bool {
    Path::new("/usr/share/bochs/BIOS-bochs-latest").is_file()
        && Path::new("/usr/share/vgabios/vgabios.bin").is_file()
        && Path::new(PACKAGED).is_file()
        && sdl_plugin().is_some()
}

fn packaged() -> Result<Bochs> {
    if !is_packaged() {
        apt::install(&PACKAGES, "the machine to boot on is emulated by Bochs")?;
    }
    bochs(PACKAGED.into())
}

/// The packaged one loads its display from here.
fn sdl_plugin() -> Option<PathBuf> {
    let names = ["libbx_sdl2_gui.so", "libbx_sdl2.so"];
    let directory = Path::new("/usr/lib/x86_64-linux-gnu/bochs/plugins");
    names.iter().map(|name| directory.join(name)).find(|path| path.is_file())
}

fn bochs(program: PathBuf) -> Result<Bochs> {
    // Its help goes to standard error, between other words.
    let output = Command::new(&program).arg("--help").output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    let help = [output.stdout, output.stderr].concat();
    let help = String::from_utf8_lossy(&help);
    if !help.contains("Bochs") {
        bail!("{} is no Bochs", program.display());
    }
    let debugger = help.contains("-rc filename");
    let changed = setup::bochs::built()?.is_some_and(|built| built == program);
    Ok(Bochs {
        debugger,
        changed,
        looks_on: false,
        firmware: setup::bochs::firmware()?,
        extension: Extension::Vmx,
        program,
    })
}

impl Bochs {
    /// The command that runs a machine.
    ///
    /// # Errors
    /// Bochs' configuration cannot be written; the machine has what only QEMU offers.
    pub fn command(&self, machine: &Machine) -> Result<Command> {
        ensure!(machine.uefi.is_none(), "Bochs starts with a PC's BIOS, not with UEFI");
        ensure!(machine.processor_options.is_none(), "Bochs' processor models have no options");
        ensure!(machine.machine_options.is_none(), "Bochs' machine has no options");
        ensure!(machine.monitor.is_none(), "Bochs has no monitor");
        ensure!(machine.serial_irq.is_none(), "Bochs' first serial port has the PC's interrupt");
        let configuration = machine.directory.join("bochsrc");
        fs::write(&configuration, self.configuration(machine)?)?;
        let mut command = match find_program("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.arg("-q").arg("-f").arg(&configuration).current_dir(&machine.directory);
        // Where it would look for what the configuration names by its full path; it warns when it is not told.
        command.env("BXSHARE", &machine.directory);
        if self.looks_on {
            command.env(OPINION_VARIABLE, opinion(&machine.directory));
        }
        if self.debugger {
            let commands = machine.directory.join("debugger");
            fs::write(&commands, "c\n")?;
            command.arg("-rc").arg(commands);
            // The packaged one has no display that needs no screen, but SDL has.
            command.env("SDL_VIDEODRIVER", "dummy").env("SDL_AUDIODRIVER", "dummy");
        }
        Ok(command)
    }

    fn configuration(&self, machine: &Machine) -> Result<String> {
        let length = fs::metadata(&machine.image).map_or(0, |metadata| metadata.len());
        let cylinders = length / (16 * 63 * 512);
        let megabytes = machine.memory >> 20;
        let display = if self.debugger { "sdl2" } else { "nogui" };
        // Without a person, the machine's time is the instructions it has executed: the same run is the same run.
        let (clock, ips) = match (machine.interactive, self.debugger) {
            (false, _) => ("none", IPS),
            (true, false) => ("slowdown", IPS_INTERACTIVE),
            (true, true) => ("slowdown", IPS),
        };
        let Machine { cpus, serial, image, .. } = machine;
        let Firmware { bios, vga } = &self.firmware;
        let mut text = String::new();
        for (key, path) in [("romimage: file", bios), ("vgaromimage: file", vga), ("log", &log(&machine.directory))] {
            writeln!(text, "{key}={}", quoted(path)?)?;
        }
        text = text.replace("log=", "log: ");
        writeln!(text, "display_library: {display}")?;
        let model = match self.extension {
            Extension::Vmx => VMX_MODEL,
            Extension::Svm => SVM_MODEL,
        };
        let model = machine.model.unwrap_or(model);
        writeln!(text, "cpu: model={model}, count={cpus}, ips={ips}, reset_on_triple_fault=0")?;
        writeln!(text, "memory: guest={megabytes}, host={}", megabytes.min(HOST_MEMORY_MAX))?;
        writeln!(text, "clock: sync={clock}, time0=utc")?;
        writeln!(
            text,
            "ata0-master: type=disk, mode=flat, path={}, cylinders={cylinders}, heads=16, spt=63",
            quoted(image)?
        )?;
        // An absent channel costs the BIOS a time-out.
        writeln!(text, "ata1: enabled=0")?;
        writeln!(text, "boot: disk")?;
        writeln!(text, "com1: enabled=1, mode=socket-client, dev=127.0.0.1:{serial}")?;
        // Every access to a device that a guest thinks is there ends in an "error" of the processor's.
        writeln!(text, "panic: action=fatal\nerror: action=report, cpu0=ignore")?;
        writeln!(text, "info: action=ignore\ndebug: action=ignore")?;
        Ok(text)
    }
}

/// A path as Bochs' configuration takes it, where a comma separates and a quotation mark cannot be written.
fn quoted(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) if !text.contains(['"', ',', '\n', '$']) => Ok(format!("\"{text}\"")),
        _ => bail!("Bochs cannot be told of a path like {}", path.display()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A Bochs that is not there.
    pub fn any(extension: Extension) -> Bochs {
        let firmware = Firmware { bios: "/bios".into(), vga: "/vga".into() };
        Bochs { program: "/bochs".into(), debugger: false, changed: true, looks_on: false, firmware, extension }
    }

    fn machine(directory: &Path) -> Machine {
        let image = directory.join("image");
        fs::write(&image, vec![0; 3 * 16 * 63 * 512]).unwrap();
        let directory = directory.to_owned();
        Machine { image, cpus: 2, memory: 3 << 30, serial: 1234, directory, ..Machine::default() }
    }

    #[test]
    fn the_configuration_says_what_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let mut machine = machine(directory.path());
        let text = any(Extension::Vmx).configuration(&machine).unwrap();
        for line in [
            "romimage: file=\"/bios\"",
            "vgaromimage: file=\"/vga\"",
            "display_library: nogui",
            "cpu: model=corei7_skylake_x, count=2, ips=100000000, reset_on_triple_fault=0",
            "memory: guest=3072, host=2048",
            "clock: sync=none, time0=utc",
            "com1: enabled=1, mode=socket-client, dev=127.0.0.1:1234",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        assert!(text.contains("cylinders=3, heads=16, spt=63"));
        assert!(text.contains(&format!("log: \"{}/emulator.log\"", directory.path().display())), "{text}");
        let text = any(Extension::Svm).configuration(&machine).unwrap();
        assert!(text.contains("cpu: model=ryzen,"), "{text}");
        machine.uefi = Some("/ovmf".into());
        assert!(any(Extension::Vmx).command(&machine).unwrap_err().to_string().contains("UEFI"));
        machine.interactive = true;
        let text = any(Extension::Vmx).configuration(&machine).unwrap();
        assert!(text.contains("clock: sync=slowdown") && text.contains("ips=200000000"), "{text}");
    }

    #[test]
    fn paths_that_cannot_be_written_are_refused() {
        assert!(quoted(Path::new("/a b")).is_ok());
        for path in ["/a,b", "/a\"b", "/a\nb", "/$HOME"] {
            assert!(quoted(Path::new(path)).is_err(), "{path}");
        }
    }
}
