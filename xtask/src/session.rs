//! From a configuration to a running machine: what `run` and the boot scenarios share.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use std::time::Duration;
//! let request = xtask::session::Request::file("guest/demo.toml").timeout(Duration::from_secs(300));
//! let mut machine = request.prepare()?.start()?;
//! let line = machine.wait_for(&regex::Regex::new(r"^\[ticker\] ")?)?;
//! machine.send("quit\n");
//! let verdict = machine.wait_exit()?;
//! # Ok(()) }
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::backend::{self, Backend, Choice, Name};
use crate::bundle::Audience;
use crate::config::{Config, ConfigError, size};
use crate::image::{self, Firmware};
use crate::machine::{Machine, Sink};
use crate::setup::{debian, rust};
use crate::{artifacts, bundle, paths};
use lamina_vmm::config::Apic;
use lamina_vmm::memory::Backing;

/// What the hypervisor needs besides the memory of its VMs and the bundle. Unit: bytes.
const OWN_MEMORY: u64 = 128 << 20;
/// The smallest machine. Unit: bytes.
const LEAST_MEMORY: u64 = 512 << 20;
/// The most that VMs whose memory is backed on first touch add to a machine whose memory nobody named: they share it.
/// Unit: bytes.
const LAZY_MEMORY: u64 = 1 << 30;
/// Machines come in multiples of this. Unit: bytes.
const MEMORY_STEP: u64 = 16 << 20;

/// The configuration that is taken when none is named.
pub fn default_config() -> PathBuf {
    paths::workspace().join("guest/demo.toml")
}

/// What to boot, and on what.
#[derive(Clone, Debug)]
pub struct Request {
    config: Input,
    on: Option<Name>,
    cpus: u32,
    memory: Option<u64>,
    timeout: Option<Duration>,
    interactive: bool,
    feature: Option<&'static str>,
    instrumented: bool,
    firmware: Firmware,
    screen: bool,
    processor_options: Option<String>,
    serial_irq: Option<u8>,
    machine_options: Option<String>,
    model: Option<&'static str>,
}

#[derive(Clone, Debug)]
enum Input {
    File(PathBuf),
    Text { text: String, base: PathBuf },
}

impl Request {
    fn new(config: Input) -> Self {
        Self {
            config,
            on: None,
            cpus: 1,
            memory: None,
            timeout: None,
            interactive: false,
            firmware: Firmware::Bios,
            screen: false,
            processor_options: None,
            serial_irq: None,
            machine_options: None,
            model: None,
            feature: None,
            instrumented: false,
        }
    }

    /// Boots the machines of a file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::new(Input::File(path.into()))
    }

    /// Boots the machines of a text; relative paths in it start at `base`.
    pub fn text(text: impl Into<String>, base: impl Into<PathBuf>) -> Self {
        Self::new(Input::Text { text: text.into(), base: base.into() })
    }

    /// On this backend; else on the first that works.
    #[must_use]
    pub fn on(mut self, on: Option<Name>) -> Self {
        self.on = on;
        self
    }

    /// With this many processors; else with one.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// With this much memory; else with enough. Unit: bytes.
    #[must_use]
    pub fn memory(mut self, memory: Option<u64>) -> Self {
        self.memory = memory;
        self
    }

    /// For this long at most, counted from the emulator's start.
    #[must_use]
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// A person sits at the console.
    #[must_use]
    pub fn interactive(mut self, interactive: bool) -> Self {
        self.interactive = interactive;
        self
    }

    /// With the hypervisor built with this feature of its crate: for tests of what a sound one never does.
    #[must_use]
    pub fn built_with(mut self, feature: Option<&'static str>) -> Self {
        self.feature = feature;
        self
    }

    /// With somebody looking on from outside: on the Bochs that can, with a hypervisor that says who owns which memory.
    /// [`Machine::opinion`] has what was seen.
    #[must_use]
    pub fn instrumented(mut self, instrumented: bool) -> Self {
        self.instrumented = instrumented;
        self
    }

    /// With this firmware; else with a PC's BIOS.
    #[must_use]
    pub fn firmware(mut self, firmware: Firmware) -> Self {
        self.firmware = firmware;
        self
    }

    /// With text on the machine's screen, of which [`Machine::picture`] takes pictures, and which stays when the
    /// hypervisor has ended. QEMU alone can.
    #[must_use]
    pub fn screen(mut self, screen: bool) -> Self {
        self.screen = screen;
        self
    }

    /// With features of the processor taken away, as QEMU's option has it behind the model: `,-svm`.
    #[must_use]
    pub fn processor_options(mut self, options: Option<&str>) -> Self {
        self.processor_options = options.map(str::to_owned);
        self
    }

    /// With the serial port on another ISA interrupt than the PC's 4. QEMU alone can.
    #[must_use]
    pub fn serial_irq(mut self, irq: u8) -> Self {
        self.serial_irq = Some(irq);
        self
    }

    /// With devices of the machine taken away, as QEMU's option has it behind the machine's type: `,hpet=off`.
    #[must_use]
    pub fn machine_options(mut self, options: &str) -> Self {
        self.machine_options = Some(options.to_owned());
        self
    }

    /// With a processor of this model, as Bochs calls it; else the usual one.
    #[must_use]
    pub fn model(mut self, model: &'static str) -> Self {
        self.model = Some(model);
        self
    }

    /// Checks the configuration, sets up what is missing, builds, and makes the disk image.
    ///
    /// # Errors
    /// The configuration is refused ([`ConfigError`]), or any of that fails.
    pub fn prepare(&self) -> Result<Prepared> {
        let mut config = match &self.config {
            Input::File(path) => Config::load(path)?,
            Input::Text { text, base } => Config::parse(text, "configuration", base)?,
        };
        // What can be refused is refused before anything slow is done.
        check_memory(&config, self.memory.unwrap_or(u64::MAX), "the machine's, given by --memory")?;
        check_memory(&config, available_memory().unwrap_or(u64::MAX), "what this host has available")?;
        let choice = match self.instrumented {
            true => backend::looking_on(self.on)?,
            false => backend::choose(self.on, &backend::Host::USUAL)?,
        };
        if choice.backend.delivers_masked_interrupts() {
            for vm in &mut config.vms {
                vm.apic.get_or_insert(Apic::Emulated);
            }
        }
        let images = images(&config)?;
        let announce = self.instrumented.then_some("announce");
        let features: Vec<_> = self.feature.into_iter().chain(announce).collect();
        let kernel = match features.as_slice() {
            [] => artifacts::hypervisor()?,
            features => artifacts::hypervisor_with(&features.join(","))?,
        };
        let bundle = bundle::pack(&config, &images, Audience { terminal: self.interactive, screen: self.screen })?;

        let memory = self.memory.unwrap_or_else(|| enough_memory(&config, bundle.len() as u64));
        let directory = run_directory(&std::env::temp_dir())?;
        let ramdisk = directory.path().join("bundle");
        std::fs::write(&ramdisk, bundle)?;
        let image = directory.path().join("disk");
        image::build(&kernel, &ramdisk, self.firmware, &image)?;
        // It is in the image now, and may be large.
        std::fs::remove_file(&ramdisk)?;
        let machine = backend::Machine {
            image,
            cpus: self.cpus,
            memory,
            interactive: self.interactive,
            directory: directory.path().to_owned(),
            uefi: (self.firmware == Firmware::Uefi).then(ovmf).transpose()?,
            processor_options: self.processor_options.clone(),
            serial_irq: self.serial_irq,
            machine_options: self.machine_options.clone(),
            model: self.model,
            monitor: self.screen.then(|| directory.path().join(MONITOR)),
            ..backend::Machine::default()
        };
        Ok(Prepared { choice, machine, directory, timeout: self.timeout, sink: None })
    }
}

/// A machine that can be started.
pub struct Prepared {
    /// What it will run on, and why.
    pub choice: Choice,
    machine: backend::Machine,
    directory: TempDir,
    timeout: Option<Duration>,
    sink: Option<Sink>,
}

impl Prepared {
    /// Sends the machine's output there too.
    #[must_use]
    pub fn sink(mut self, sink: Sink) -> Self {
        self.sink = Some(sink);
        self
    }

    /// What it will run on.
    pub fn backend(&self) -> &Backend {
        &self.choice.backend
    }

    /// The machine's memory. Unit: bytes.
    pub fn memory(&self) -> u64 {
        self.machine.memory
    }

    /// Starts it.
    ///
    /// # Errors
    /// The emulator cannot be started.
    pub fn start(self) -> Result<Machine> {
        Machine::start(&self.choice.backend, self.machine, self.directory, self.timeout, self.sink)
    }
}

/// QEMU's monitor, in the directory of a run.
pub(crate) const MONITOR: &str = "monitor";

/// UEFI's firmware for virtual machines: Debian's package of it, which need not be installed.
fn ovmf() -> Result<PathBuf> {
    let file = "usr/share/ovmf/OVMF.fd";
    let installed = Path::new("/").join(file);
    if installed.is_file() {
        return Ok(installed);
    }
    Ok(debian::fetch("ovmf", "the UEFI firmware to boot on")?.join(file))
}

/// How the directories of runs are named, before the number of the process that made them.
const RUN_PREFIX: &str = "lamina-run-";

/// A directory for one run. Those of processes that were killed, and so could not remove theirs, go here and now: each
/// holds a disk image.
fn run_directory(parent: &Path) -> Result<TempDir> {
    let entries = std::fs::read_dir(parent).with_context(|| format!("cannot read {}", parent.display()))?;
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let process =
            name.to_str().and_then(|name| name.strip_prefix(RUN_PREFIX)).and_then(|name| name.split_once('-'));
        if process.is_some_and(|(id, _)| id.parse::<u32>().is_ok() && !Path::new("/proc").join(id).exists()) {
            // Somebody else's stay, and one more image in the way is no reason to fail.
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
    let prefix = format!("{RUN_PREFIX}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).context("no temporary directory")
}

/// Reads every image of a configuration, builds or fetches them before as needed, and checks them.
///
/// # Errors
/// An image is refused ([`ConfigError`]), or cannot be had.
pub fn images(config: &Config) -> Result<bundle::Images> {
    rust::ensure_workspace()?;
    let images = bundle::Images::read(config, artifacts::locate)?;
    images.check(config)?;
    Ok(images)
}

/// Refuses the first VM with which the memory of all that have it from the start, and the hypervisor's own, is more than there is.
fn check_memory(config: &Config, there_is: u64, whose: &str) -> Result<(), ConfigError> {
    let mut sum = OWN_MEMORY;
    for vm in config.vms.iter().filter(|vm| vm.backing == Backing::Eager) {
        sum = sum.saturating_add(vm.memory);
        if sum > there_is {
            let reason = format!(
                "does not fit: the VMs up to this one and the hypervisor's {} need {}, and {whose} is {}",
                size::format(OWN_MEMORY),
                size::format(sum),
                size::format(there_is >> 20 << 20),
            );
            return Err(config.refuse(&vm.name, "memory", format!("\"{}\"", size::format(vm.memory)), reason));
        }
    }
    Ok(())
}

/// The loader holds the bundle beside what the VMs get of it.
fn enough_memory(config: &Config, bundle: u64) -> u64 {
    let needed = config.memory(Backing::Eager).saturating_add(config.memory(Backing::Lazy).min(LAZY_MEMORY));
    let needed = needed.saturating_add(bundle).saturating_add(OWN_MEMORY);
    needed.max(LEAST_MEMORY).checked_next_multiple_of(MEMORY_STEP).unwrap_or(u64::MAX)
}

/// `MemAvailable` of the host. Unit: bytes.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(memory: &[&str]) -> Config {
        let vms = memory.iter().enumerate().map(|(index, memory)| {
            format!("[[vm]]\nname = \"vm{index}\"\nkernel = \"Cargo.toml\"\nmemory = \"{memory}\"\n")
        });
        Config::parse(&vms.collect::<String>(), "some.toml", Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn the_machine_is_large_enough() {
        assert_eq!(enough_memory(&config(&["16M"]), 0), 512 << 20);
        assert_eq!(enough_memory(&config(&["1G", "1G"]), 1), (2 << 30) + (128 << 20) + (16 << 20));
        let mut lazy = config(&["512M", "512M", "64G"]);
        lazy.vms[2].backing = Backing::Lazy;
        assert_eq!(enough_memory(&lazy, 0), (2 << 30) + (128 << 20));
        lazy.vms[1].backing = Backing::Lazy;
        lazy.vms[2].memory = 16 << 20;
        assert_eq!(enough_memory(&lazy, 0), (1 << 30) + (16 << 20) + (128 << 20));
        assert_eq!(check_memory(&lazy, 640 << 20, "it"), Ok(()));
    }

    #[test]
    fn memory_that_cannot_fit_is_refused() {
        let config = config(&["256M", "256M"]);
        assert_eq!(check_memory(&config, 640 << 20, "it"), Ok(()));
        let message = check_memory(&config, 512 << 20, "the machine's").unwrap_err().to_string();
        assert!(message.starts_with("some.toml: [[vm]] \"vm1\": memory = \"256M\": does not fit"), "{message}");
        assert!(message.contains("640M") && message.ends_with("the machine's is 512M"), "{message}");
    }

    #[test]
    fn what_killed_runs_left_behind_goes() {
        let parent = tempfile::tempdir().unwrap();
        let alive = format!("{RUN_PREFIX}{}-a", std::process::id());
        // No process has this number: it is more than Linux gives out.
        let dead = format!("{RUN_PREFIX}4194305-a");
        let names = [alive.as_str(), dead.as_str(), "lamina-run-x-a", "other"];
        for name in names {
            std::fs::create_dir(parent.path().join(name)).unwrap();
        }
        let own = run_directory(parent.path()).unwrap();
        assert!(own.path().is_dir());
        assert_eq!(names.map(|name| parent.path().join(name).is_dir()), [true, false, true, true]);
    }

    #[test]
    fn this_host_has_memory() {
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
