//! Whether what a bundle says of a VM can be.

use alloc::string::String;
use core::fmt;

use lamina_arch::addr::PAGE_4K;

use super::{Blob, Boot, FW_CFG_NAME_MAX, MEMORY_MAX, NAME_MAX, RESERVED_NAME, VmConfig, WEIGHT_MAX};
use crate::cpu_model::{MODELS, Model};
use crate::layout::HIGH_MEMORY;
use crate::trace::RECORDS_MAX;

/// What is wrong with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// It is [`RESERVED_NAME`].
    Reserved,
    /// It is longer than [`NAME_MAX`].
    TooLong,
    /// It does not match `[a-z][a-z0-9-]*`.
    Characters,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Reserved => write!(f, "reserved: this is the hypervisor's own prefix on the console"),
            NameError::TooLong => write!(f, "longer than {NAME_MAX} characters"),
            NameError::Characters => write!(f, "must match [a-z][a-z0-9-]{{0,30}}"),
        }
    }
}

impl core::error::Error for NameError {}

/// What is wrong with the configuration of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Its name.
    Name {
        /// The name, which may hold anything.
        name: String,
        /// What is wrong with it.
        error: NameError,
    },
    /// An earlier VM has the same name.
    DuplicateName(String),
    /// An image is not in the bundle.
    Blob {
        /// The key that names it.
        key: &'static str,
        /// Where it would be.
        blob: Blob,
        /// Length of the bundle. Unit: bytes.
        bundle: u64,
    },
    /// `memory` is 0, not a multiple of 4096, or more than [`MEMORY_MAX`]. Unit: bytes.
    Memory(u64),
    /// `memory` is less than a VM with firmware needs. Unit: bytes.
    MemoryForFirmware(u64),
    /// A VM with firmware has something that only a loaded kernel can be given.
    NotWithFirmware {
        /// The key that gives it.
        key: &'static str,
    },
    /// A file for firmware has no name, or too long a one; or there is no firmware.
    FirmwareFile(String),
    /// `vcpus` is not 1.
    Vcpus(u32),
    /// `weight` is 0 or more than [`WEIGHT_MAX`].
    Weight(u32),
    /// `cpu` is no CPU model that there is.
    Cpu(String),
    /// `trace` is more than [`RECORDS_MAX`].
    Trace(u32),
    /// A command line holds a zero byte.
    CommandLine {
        /// The key that holds it.
        key: &'static str,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Name { name, error } => write!(f, "name = {name:?}: {error}"),
            ConfigError::DuplicateName(name) => write!(f, "name = {name:?}: another machine has this name"),
            ConfigError::Blob { key, blob: Blob { offset, length }, bundle } => {
                write!(f, "{key}: {length} bytes at {offset} are not in the bundle of {bundle} bytes")
            }
            ConfigError::Memory(memory) => {
                write!(f, "memory = {memory}: must be a multiple of {PAGE_4K}, more than 0 and at most {MEMORY_MAX}")
            }
            ConfigError::MemoryForFirmware(memory) => {
                write!(f, "memory = {memory}: a VM with firmware needs {} at least", HIGH_MEMORY.0)
            }
            ConfigError::NotWithFirmware { key } => {
                write!(f, "{key}: a VM with firmware takes none: its firmware finds what it boots by itself")
            }
            ConfigError::FirmwareFile(name) => {
                write!(f, "fw_cfg: {name:?}: a name has 1 to {FW_CFG_NAME_MAX} bytes, and there must be firmware")
            }
            ConfigError::Vcpus(vcpus) => write!(f, "vcpus = {vcpus}: must be 1"),
            ConfigError::Weight(weight) => write!(f, "weight = {weight}: must be 1 to {WEIGHT_MAX}"),
            ConfigError::Cpu(cpu) => {
                write!(f, "cpu = {cpu:?}: must be one of")?;
                MODELS.iter().try_for_each(|model| write!(f, " {:?}", model.name))
            }
            ConfigError::Trace(trace) => write!(f, "trace = {trace}: must be at most {RECORDS_MAX}"),
            ConfigError::CommandLine { key } => write!(f, "{key}: a command line holds a zero byte"),
        }
    }
}

impl core::error::Error for ConfigError {}

/// Checks the name of a VM.
///
/// # Errors
/// [`NameError`].
pub fn validate_name(name: &str) -> Result<(), NameError> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name == RESERVED_NAME {
        Err(NameError::Reserved)
    } else if name.len() > NAME_MAX {
        Err(NameError::TooLong)
    } else if !name.starts_with(|first: char| first.is_ascii_lowercase()) || !name.bytes().all(inner) {
        Err(NameError::Characters)
    } else {
        Ok(())
    }
}

/// Checks what the bundle of `bundle` bytes says of a VM; `earlier` are the names of those before it. Whether the images
/// are good ones, and fit, the loaders tell.
///
/// # Errors
/// [`ConfigError`]: the first thing that is wrong.
pub fn validate<'a>(vm: &VmConfig, earlier: impl IntoIterator<Item = &'a str>, bundle: u64) -> Result<(), ConfigError> {
    validate_name(&vm.name).map_err(|error| ConfigError::Name { name: vm.name.clone(), error })?;
    if earlier.into_iter().any(|name| name == vm.name) {
        return Err(ConfigError::DuplicateName(vm.name.clone()));
    }
    let boot = [vm.boot.part()];
    let initrd = vm.initrd.map(|blob| ("initrd", blob));
    let modules = vm.modules.iter().map(|module| ("modules", module.blob));
    let cdrom = vm.cdrom.map(|blob| ("cdrom", blob));
    let vga = vm.vga.and_then(|vga| vga.bios).map(|blob| ("vga", blob));
    for (key, blob) in boot.into_iter().chain(initrd).chain(modules).chain(cdrom).chain(vga) {
        if blob.offset.checked_add(blob.length).is_none_or(|end| end > bundle) {
            return Err(ConfigError::Blob { key, blob, bundle });
        }
    }
    if vm.memory == 0 || vm.memory > MEMORY_MAX || !vm.memory.is_multiple_of(PAGE_4K) {
        return Err(ConfigError::Memory(vm.memory));
    }
    let has_firmware = matches!(vm.boot, Boot::Firmware(_));
    let good_name = |name: &str| has_firmware && (1..=FW_CFG_NAME_MAX).contains(&name.len());
    if let Some((name, _)) = vm.fw_cfg.iter().find(|(name, _)| !good_name(name)) {
        return Err(ConfigError::FirmwareFile(name.clone()));
    }
    if has_firmware {
        if vm.memory < HIGH_MEMORY.0 {
            return Err(ConfigError::MemoryForFirmware(vm.memory));
        }
        let given =
            [("initrd", vm.initrd.is_some()), ("modules", !vm.modules.is_empty()), ("cmdline", !vm.cmdline.is_empty())];
        if let Some((key, _)) = given.into_iter().find(|(_, given)| *given) {
            return Err(ConfigError::NotWithFirmware { key });
        }
    }
    if vm.vcpus != 1 {
        return Err(ConfigError::Vcpus(vm.vcpus));
    }
    if vm.weight == 0 || vm.weight > WEIGHT_MAX {
        return Err(ConfigError::Weight(vm.weight));
    }
    if Model::by_name(&vm.cpu).is_none() {
        return Err(ConfigError::Cpu(vm.cpu.clone()));
    }
    if vm.trace > RECORDS_MAX {
        return Err(ConfigError::Trace(vm.trace));
    }
    if vm.cmdline.contains('\0') {
        return Err(ConfigError::CommandLine { key: "cmdline" });
    }
    if vm.modules.iter().any(|module| module.cmdline.contains('\0')) {
        return Err(ConfigError::CommandLine { key: "modules" });
    }
    Ok(())
}
