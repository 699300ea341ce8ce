//! The bundle: what the host packs for the hypervisor, as one ramdisk.
//!
//! Layout: [`MAGIC`] (8 bytes), length of the description (u32, little-endian), CRC-32 of all that follows (u32), the
//! description ([`Bundle`], postcard), then the blobs, each starting at a multiple of 4096 bytes from the bundle's start.
//! The host validates before it packs; the hypervisor validates again and trusts nothing.

use alloc::string::String;
use alloc::vec::Vec;
pub use lamina_arch::speculation::Mitigations;
use serde::{Deserialize, Serialize};

use crate::memory::Backing;

mod media;
mod pack;
mod validate;

pub use media::{MediumError, check_cdrom, check_firmware, check_vga_bios};
pub use pack::{BundleError, blob_bytes, check, encode, parse, seal};
pub use validate::{ConfigError, NameError, validate, validate_name};

/// First bytes of a bundle; the last two are the format's version.
pub const MAGIC: [u8; 8] = *b"LAMINA\x00\x07";
/// Alignment of blobs. Unit: bytes.
pub const BLOB_ALIGN: u64 = 4096;
/// Longest name of a VM. Unit: bytes.
pub const NAME_MAX: usize = 31;
/// Most guest memory. Unit: bytes. No machine has so much; a larger number is a mistake.
pub const MEMORY_MAX: u64 = 1 << 40;
/// Largest weight; the smallest is 1.
pub const WEIGHT_MAX: u32 = 10_000;
/// The CPU model that there is.
pub const CPU_HOST: &str = "host";
/// Longest name of a file for firmware. Unit: bytes.
pub const FW_CFG_NAME_MAX: usize = 55;
/// The name that no VM may have: the hypervisor's own prefix on the console.
pub const RESERVED_NAME: &str = "lamina";

/// A run of bytes in the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// From the bundle's start. Unit: bytes.
    pub offset: u64,
    /// Unit: bytes.
    pub length: u64,
}

/// How verbose the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// Errors only.
    Error,
    /// And warnings.
    Warn,
    /// And what a user wants to know.
    Info,
    /// And what a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

/// The description of what to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// A person sits at the console: prompt, echo, colours; the machine goes on when all VMs have ended.
    pub interactive: bool,
    /// Somebody may look at the machine's screen: what goes to the serial port is drawn there too.
    pub screen: bool,
    /// Level of the hypervisor's own log.
    pub log: LogLevel,
    /// Defences against speculation.
    pub mitigations: Mitigations,
    /// The virtual machines, in the order of the file.
    pub vms: Vec<VmConfig>,
}

/// One virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Matches `[a-z][a-z0-9-]{0,30}`, is not [`RESERVED_NAME`].
    pub name: String,
    /// What it starts with.
    pub boot: Boot,
    /// The initial ramdisk of a bzImage.
    pub initrd: Option<Blob>,
    /// Multiboot modules with their command lines.
    pub modules: Vec<ModuleConfig>,
    /// The command line.
    pub cmdline: String,
    /// Guest memory. Unit: bytes; a multiple of 4096, at most [`MEMORY_MAX`].
    pub memory: u64,
    /// When the memory is backed.
    pub backing: Backing,
    /// Virtual processors; 1 for now.
    pub vcpus: u32,
    /// Share of the processor, relative to the others; 1 to [`WEIGHT_MAX`].
    pub weight: u32,
    /// CPU model; [`CPU_HOST`] for now.
    pub cpu: String,
    /// Who keeps its local APIC.
    pub apic: Apic,
    /// The image in its CD-ROM drive.
    pub cdrom: Option<Blob>,
    /// Its VGA display adapter.
    pub vga: Option<Vga>,
    /// It has a high precision event timer.
    pub hpet: bool,
    /// Files that its firmware asks for, by name (at most [`FW_CFG_NAME_MAX`] bytes). They go before Lamina's own.
    pub fw_cfg: Vec<(String, Vec<u8>)>,
    /// How many records to make of what the guest sees of its exits (`crate::trace`); 0 to
    /// [`crate::trace::RECORDS_MAX`].
    pub trace: u32,
}

/// What a VM starts with: one of the two, never both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Boot {
    /// An image that is loaded into its memory: bzImage, Multiboot or plain ELF64.
    Kernel(Blob),
    /// A ROM that its processor starts in, at the reset vector.
    Firmware(Blob),
}

impl Boot {
    /// The key of the configuration that names it, and its bytes.
    pub const fn part(self) -> (&'static str, Blob) {
        match self {
            Boot::Kernel(blob) => ("kernel", blob),
            Boot::Firmware(blob) => ("firmware", blob),
        }
    }
}

/// Who keeps the registers of a VM's local APIC and delivers its interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Apic {
    /// The processor, where it can, and nobody records what the guest sees.
    #[default]
    Virtualized,
    /// The hypervisor.
    Emulated,
}

/// A VGA display adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vga {
    /// Its BIOS, which firmware starts; nobody else has a use for it.
    pub bios: Option<Blob>,
}

/// One Multiboot module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleConfig {
    /// The module's bytes.
    pub blob: Blob,
    /// Its command line.
    pub cmdline: String,
}

#[cfg(test)]
mod tests;
