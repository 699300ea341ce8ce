//! The configuration: one TOML file that describes the machines.
//!
//! Owns its syntax and every check that needs no image to be built or fetched; [`crate::bundle`] checks the images
//! themselves. Each refusal names the file, the key and the value.

mod error;
mod read;
pub mod size;

use std::path::{Path, PathBuf};

use lamina_vmm::config::{Apic, LogLevel, Mitigations};
use lamina_vmm::memory::Backing;

use crate::setup::debian::Package;

pub use error::ConfigError;

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file's name as the user gave it, for messages.
    pub file: String,
    /// Level of the hypervisor's own log.
    pub log: LogLevel,
    /// Defences against speculation.
    pub mitigations: Mitigations,
    /// The virtual machines, in the order of the file; at least one.
    pub vms: Vec<Vm>,
}

/// One virtual machine.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Matches `[a-z][a-z0-9-]{0,30}`.
    pub name: String,
    /// What it starts with.
    pub boot: Boot,
    /// The initial ramdisk.
    pub initrd: Option<Source>,
    /// Multiboot modules with their command lines.
    pub modules: Vec<Module>,
    /// The command line.
    pub cmdline: String,
    /// Unit: bytes; a multiple of 4096.
    pub memory: u64,
    /// When the memory is backed.
    pub backing: Backing,
    /// Virtual processors.
    pub vcpus: u32,
    /// Share of the processor.
    pub weight: u32,
    /// CPU model.
    pub cpu: String,
    /// Who keeps its local APIC; where nobody said, the machine decides that it boots on.
    pub apic: Option<Apic>,
    /// The image in its CD-ROM drive.
    pub cdrom: Option<Source>,
    /// Its VGA display adapter.
    pub vga: Option<Vga>,
    /// It has a high precision event timer.
    pub hpet: bool,
    /// Files for firmware, by name.
    pub fw_cfg: Vec<(String, Vec<u8>)>,
    /// How many records to make of what the guest sees of its exits.
    pub trace: u32,
}

/// What a VM starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// `kernel`: an image that is loaded into its memory.
    Kernel(Source),
    /// `firmware`: a ROM that it starts in.
    Firmware(Source),
}

impl Boot {
    /// The key that names it, and where its bytes come from.
    pub const fn part(&self) -> (&'static str, &Source) {
        match self {
            Boot::Kernel(source) => ("kernel", source),
            Boot::Firmware(source) => ("firmware", source),
        }
    }
}

/// A VGA display adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vga {
    /// Its BIOS, for firmware.
    pub bios: Option<Source>,
}

impl Vm {
    /// Everything that this VM names, with the key that names it.
    pub fn sources(&self) -> impl Iterator<Item = (&'static str, &Source)> {
        let modules = self.modules.iter().map(|module| ("modules: path", &module.source));
        let vga = self.vga.as_ref().and_then(|vga| vga.bios.as_ref()).map(|bios| ("vga", bios));
        [self.boot.part()]
            .into_iter()
            .chain(self.initrd.as_ref().map(|initrd| ("initrd", initrd)))
            .chain(modules)
            .chain(self.cdrom.as_ref().map(|image| ("cdrom", image)))
            .chain(vga)
    }
}

/// One Multiboot module.
#[derive(Clone, Debug)]
pub struct Module {
    /// The module's file.
    pub source: Source,
    /// Its command line.
    pub cmdline: String,
}

/// Where bytes come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A file, its path made absolute; it exists.
    File(PathBuf),
    /// `debian:PACKAGE[:ARCHITECTURE][/FILE]`: a file of a Debian package, its kernel where none is named.
    Debian {
        /// The package.
        package: Package,
        /// The end of the file's path in it.
        file: Option<String>,
    },
    /// `guest:NAME`: a program of `guest/`; it exists.
    Guest(String),
    /// `builtin:busybox[:ARCHITECTURE]`: the built-in initramfs, with programs of this architecture.
    Busybox(&'static str),
    /// A CD that GRUB boots from, made by `grub-mkrescue`.
    Rescue {
        /// GRUB's configuration.
        menu: String,
        /// What else is on it, each under its path.
        files: Vec<(String, Source)>,
    },
}

const DEFAULT_MEMORY: u64 = 128 << 20;
const DEFAULT_WEIGHT: u32 = 100;

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is refused.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { file: file.clone(), reason: error.to_string() })?;
        let base = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, &file, base)
    }

    /// Reads and checks a text; `file` names it in messages, relative paths in it start at `base`.
    ///
    /// # Errors
    /// Something in it is refused.
    pub fn parse(text: &str, file: &str, base: &Path) -> Result<Self, ConfigError> {
        read::config(text, file, base)
    }

    /// The memory of all VMs whose memory is backed so. Unit: bytes.
    pub fn memory(&self, backing: Backing) -> u64 {
        self.vms.iter().filter(|vm| vm.backing == backing).fold(0, |sum, vm| sum.saturating_add(vm.memory))
    }

    /// The refusal of a key of one VM.
    pub fn refuse(&self, vm: &str, key: &str, value: impl std::fmt::Display, reason: impl Into<String>) -> ConfigError {
        ConfigError::Refused {
            file: self.file.clone(),
            key: format!("[[vm]] {vm:?}: {key}"),
            value: value.to_string(),
            reason: reason.into(),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::File(path) => write!(f, "\"{}\"", path.display()),
            Source::Debian { package, file: None } => write!(f, "\"debian:{package}\""),
            Source::Debian { package, file: Some(file) } => write!(f, "\"debian:{package}/{file}\""),
            Source::Guest(name) => write!(f, "\"guest:{name}\""),
            Source::Rescue { files, .. } => write!(f, "a CD with GRUB and {} files", files.len()),
            Source::Busybox(architecture) => write!(f, "\"builtin:busybox:{architecture}\""),
        }
    }
}

#[cfg(test)]
mod harness;
#[cfg(test)]
mod tests;
