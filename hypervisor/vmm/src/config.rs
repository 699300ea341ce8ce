//! The bundle: what the host packs for the hypervisor, as one ramdisk.
//!
//! Layout: [`MAGIC`] (8 bytes), length of the description (u32, little-endian), zero (u32), the description
//! ([`Bundle`], postcard), then the blobs, each starting at a multiple of 4096 bytes from the bundle's start. The host
//! validates before it packs; the hypervisor validates again and trusts nothing.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// First bytes of a bundle; the last two are the format's version.
pub const MAGIC: [u8; 8] = *b"LAMINA\x00\x01";
/// Alignment of blobs. Unit: bytes.
pub const BLOB_ALIGN: u64 = 4096;
/// Longest name of a VM. Unit: bytes.
pub const NAME_MAX: usize = 31;
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
    /// Level of the hypervisor's own log.
    pub log: LogLevel,
    /// The virtual machines, in the order of the file.
    pub vms: Vec<VmConfig>,
}

/// One virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Matches `[a-z][a-z0-9-]{0,30}`, is not [`RESERVED_NAME`].
    pub name: String,
    /// The image: bzImage, Multiboot ELF or plain ELF64.
    pub kernel: Blob,
    /// The initial ramdisk of a bzImage.
    pub initrd: Option<Blob>,
    /// Multiboot modules with their command lines.
    pub modules: Vec<ModuleConfig>,
    /// The command line.
    pub cmdline: String,
    /// Guest memory. Unit: bytes; a multiple of 4096.
    pub memory: u64,
    /// Virtual processors; 1 for now.
    pub vcpus: u32,
    /// Share of the processor, relative to the others.
    pub weight: u32,
    /// CPU model; `host` for now.
    pub cpu: String,
}

/// One Multiboot module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleConfig {
    /// The module's bytes.
    pub blob: Blob,
    /// Its command line.
    pub cmdline: String,
}

/// Length of what stands before the description. Unit: bytes.
const HEADER: usize = 16;

/// Why bytes are no bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleError {
    /// The first bytes are not [`MAGIC`].
    Magic,
    /// The description is longer than the bytes. Unit: bytes.
    Truncated {
        /// How many there must be.
        needed: u64,
        /// How many there are.
        have: u64,
    },
    /// The description is malformed.
    Malformed,
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BundleError::Magic => write!(f, "it does not start with the bundle's magic number and version"),
            BundleError::Truncated { needed, have } => write!(f, "it has {have} bytes and must have {needed}"),
            BundleError::Malformed => write!(f, "its description is malformed"),
        }
    }
}

/// Reads the description at the start of a bundle. Each VM of it is still to be validated.
///
/// # Errors
/// [`BundleError`].
pub fn parse(image: &[u8]) -> Result<Bundle, BundleError> {
    let have = image.len() as u64;
    let header = image.get(..HEADER).ok_or(BundleError::Truncated { needed: HEADER as u64, have })?;
    if header[..8] != MAGIC {
        return Err(BundleError::Magic);
    }
    let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    let needed = HEADER as u64 + length as u64;
    let description = image.get(HEADER..HEADER + length).ok_or(BundleError::Truncated { needed, have })?;
    postcard::from_bytes(description).map_err(|_| BundleError::Malformed)
}
