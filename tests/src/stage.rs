//! Where a scenario boots its machines.

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use xtask::backend::{self, Host, Name, bochs};
use xtask::bench::native;
use xtask::config::{Boot, Config, Vm};
use xtask::image::{self, Firmware};
use xtask::machine::Machine;
use xtask::session::{self, Request};
use xtask::{artifacts, bundle, paths, rescue};

use crate::Running;
use crate::command::{self, Outcome};

/// Memory of a machine that boots a bundle made by hand. Unit: bytes.
const MEMORY: u64 = 512 << 20;

/// Where a scenario boots its machines: the backend, and the time they have.
#[derive(Debug)]
pub struct Stage {
    backend: Option<Name>,
    limit: Duration,
    feature: Option<&'static str>,
    instrumented: bool,
    skipped: RefCell<Vec<(String, String)>>,
}

impl Stage {
    pub(crate) fn new(backend: Option<Name>, limit: Duration) -> Self {
        Self { backend, limit, feature: None, instrumented: false, skipped: RefCell::default() }
    }

    /// The same stage, with the hypervisor built with a feature of its crate.
    #[must_use]
    pub fn built_with(&self, feature: &'static str) -> Self {
        Self { feature: Some(feature), instrumented: self.instrumented, ..Self::new(self.backend, self.limit) }
    }

    /// The same stage, with somebody looking on from outside; [`Running::opinion`] has what was seen. `None` where that
    /// cannot be, because another Bochs was asked for: the summary says so.
    #[must_use]
    pub fn looked_at(&self) -> Option<Self> {
        if let Some(reason) = bochs::cannot_look_on() {
            self.skipped("all", &reason);
            return None;
        }
        Some(Self { instrumented: true, ..Self::new(self.backend, self.limit) })
    }

    /// A part of the scenario was left out on this backend: the summary says so, with the reason.
    pub fn skipped(&self, part: &str, reason: &str) {
        self.skipped.borrow_mut().push((part.to_owned(), reason.to_owned()));
    }

    pub(crate) fn take_skipped(&self) -> Vec<(String, String)> {
        self.skipped.take()
    }

    /// Boots the machines of a configuration, a text in TOML. Relative paths in it start at the workspace's root.
    ///
    /// # Errors
    /// The configuration is refused, or something cannot be built or started.
    pub fn boot(&self, config: &str) -> Result<Running> {
        self.start(&Request::text(config, paths::workspace()))
    }

    /// The same, on a machine with so much memory. Unit: bytes.
    ///
    /// # Errors
    /// As [`Stage::boot`].
    pub fn boot_in(&self, memory: u64, config: &str) -> Result<Running> {
        self.start(&Request::text(config, paths::workspace()).memory(Some(memory)))
    }

    /// Boots the machines of a file, its path relative to the workspace's root.
    ///
    /// # Errors
    /// As [`Stage::boot`].
    pub fn boot_file(&self, path: &str) -> Result<Running> {
        self.start(&Request::file(paths::workspace().join(path)))
    }

    /// Boots the machines of a configuration with this firmware and a screen to look at, and with features of the
    /// processor taken away (`,-svm`).
    ///
    /// # Errors
    /// As [`Stage::boot`].
    pub fn boot_with_screen(&self, config: &str, firmware: Firmware, processor: Option<&str>) -> Result<Running> {
        let request = Request::text(config, paths::workspace()).firmware(firmware).screen(true);
        self.start(&request.processor_options(processor))
    }

    /// Boots the machines of a configuration on a machine whose serial port has this ISA interrupt, and not the PC's 4.
    ///
    /// # Errors
    /// As [`Stage::boot`].
    pub fn boot_with_serial_irq(&self, irq: u8, config: &str) -> Result<Running> {
        self.start(&Request::text(config, paths::workspace()).serial_irq(irq))
    }

    /// Boots the machines of a configuration on a machine with devices taken away (`,hpet=off`).
    ///
    /// # Errors
    /// As [`Stage::boot`].
    pub fn boot_on_machine(&self, options: &str, config: &str) -> Result<Running> {
        self.start(&Request::text(config, paths::workspace()).machine_options(options))
    }

    /// Boots the machines of a configuration on a machine with a processor of this model, as Bochs calls it.
    ///
    /// # Errors
    /// As [`Stage::boot`].
    pub fn boot_on_model(&self, model: &'static str, config: &str) -> Result<Running> {
        self.start(&Request::text(config, paths::workspace()).model(model))
    }

    fn start(&self, request: &Request) -> Result<Running> {
        let request = request.clone().on(Some(self.backend()?)).timeout(self.limit);
        let request = request.built_with(self.feature).instrumented(self.instrumented);
        let prepared = request.prepare()?;
        Ok(Running::new(prepared.start()?))
    }

    /// Boots the guest program `name`, a Multiboot image, on the bare machine: its lines have no prefix, and the machine
    /// ends without a last word.
    ///
    /// # Errors
    /// Something cannot be built or started.
    pub fn boot_natively(&self, name: &str) -> Result<Running> {
        self.boot_natively_with(name, "")
    }

    /// The same, with this command line.
    ///
    /// # Errors
    /// As [`Stage::boot_natively`].
    pub fn boot_natively_with(&self, name: &str, cmdline: &str) -> Result<Running> {
        let image = artifacts::build(&format!("guest-{name}"), name)?;
        self.native(&image, &[], cmdline)
    }

    /// Boots the Linux of a configuration's only VM on the bare machine, by GRUB from a disk: the same kernel, initrd and
    /// command line. Its lines have no prefix, and the machine ends without a last word.
    ///
    /// # Errors
    /// The configuration is not of that kind, or something cannot be made or started.
    pub fn boot_linux_natively(&self, config: &str) -> Result<Running> {
        let config = Config::parse(config, "configuration", paths::workspace())?;
        let [Vm { boot: Boot::Kernel(kernel), initrd: Some(initrd), cmdline, memory, .. }] = config.vms.as_slice()
        else {
            bail!("natively boots one machine with a kernel and an initrd");
        };
        let menu = format!("linux /boot/linux {cmdline}\ninitrd /boot/initrd\nboot\n");
        let files = [("boot/linux", artifacts::locate(kernel)?), ("boot/initrd", artifacts::locate(initrd)?)];
        let choice = backend::choose(Some(self.backend()?), &Host::USUAL)?;
        let image = rescue::image(&menu, &files)?;
        Ok(Running::new(native::start_image(&choice.backend, &image, memory >> 20, self.limit)?))
    }

    fn native(&self, kernel: &Path, initrd: &[u8], cmdline: &str) -> Result<Running> {
        let choice = backend::choose(Some(self.backend()?), &Host::USUAL)?;
        let megabytes = MEMORY >> 20;
        Ok(Running::new(native::start(&choice.backend, kernel, initrd, cmdline, megabytes, self.limit)?))
    }

    /// Boots these bytes as the bundle, as they are: the way around every check of the host's.
    ///
    /// # Errors
    /// Something cannot be built or started.
    pub fn boot_bundle(&self, bundle: &[u8]) -> Result<Running> {
        let choice = backend::choose(Some(self.backend()?), &Host::USUAL)?;
        let kernel = artifacts::hypervisor()?;
        let directory = tempfile::Builder::new().prefix("lamina-").tempdir().context("no temporary directory")?;
        let (ramdisk, disk) = (directory.path().join("bundle"), directory.path().join("disk"));
        std::fs::write(&ramdisk, bundle)?;
        image::build(&kernel, &ramdisk, Firmware::Bios, &disk)?;
        let machine = backend::Machine {
            image: disk,
            memory: MEMORY,
            directory: directory.path().to_owned(),
            ..backend::Machine::default()
        };
        let machine = Machine::start(&choice.backend, machine, directory, Some(self.limit), None)?;
        Ok(Running::new(machine))
    }

    /// The bundle of a configuration that is good.
    ///
    /// # Errors
    /// It is refused, or something cannot be built.
    pub fn pack(&self, config: &str) -> Result<Vec<u8>> {
        let config = Config::parse(config, "configuration", paths::workspace())?;
        bundle::pack(&config, &session::images(&config)?, bundle::Audience::default())
    }

    /// Runs `cargo xtask` with these arguments, in `directory`, without input.
    ///
    /// # Errors
    /// It cannot be started, or does not come to its end in time.
    pub fn xtask(&self, arguments: &[&str], directory: &Path) -> Result<Outcome> {
        command::xtask(arguments, directory, self.limit)
    }

    /// What machines are booted on.
    ///
    /// # Errors
    /// The scenario said that it needs only the host.
    pub fn backend(&self) -> Result<Name> {
        self.backend.context("a scenario that needs only the host boots nothing")
    }
}
