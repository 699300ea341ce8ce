//! Packs a configuration and the images it names into the one ramdisk that the hypervisor gets.
//!
//! Owns the checks that need the images' bytes. The format is [`lamina_vmm::config`]'s.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use lamina_vmm::config::{
    self as packed, Blob, Bundle, MediumError, ModuleConfig, VmConfig, check_cdrom, check_firmware, check_vga_bios,
    encode,
};
use lamina_vmm::layout::HIGH_MEMORY;
use lamina_vmm::load::{self, LoadArgs, LoadError, Part};

use crate::config::{Boot, Config, ConfigError, Source, Vm, size};

/// The images of a configuration, read into memory.
#[derive(Debug, Default)]
pub struct Images {
    bytes: HashMap<Source, Vec<u8>>,
}

impl Images {
    /// Reads every image that the configuration names; `locate` says which file a source is.
    ///
    /// # Errors
    /// `locate` fails, or a file cannot be read.
    pub fn read(config: &Config, mut locate: impl FnMut(&Source) -> Result<PathBuf>) -> Result<Self> {
        let mut images = Self::default();
        for source in sources(config) {
            if !images.bytes.contains_key(source) {
                let path = locate(source)?;
                let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                images.bytes.insert(source.clone(), bytes);
            }
        }
        Ok(images)
    }

    /// The bytes of a source; empty for one that the configuration does not name.
    pub fn get(&self, source: &Source) -> &[u8] {
        self.bytes.get(source).map_or(&[], Vec::as_slice)
    }

    /// Checks every image, and that all of a VM fit into its memory, with the loader that the hypervisor uses.
    ///
    /// # Errors
    /// An image is of no known format, lies about its sizes, or does not fit.
    pub fn check(&self, config: &Config) -> Result<(), ConfigError> {
        for vm in &config.vms {
            self.check_media(config, vm)?;
            let Boot::Kernel(kernel) = &vm.boot else { continue };
            let modules: Vec<_> = vm
                .modules
                .iter()
                .map(|module| load::Module { bytes: self.get(&module.source), cmdline: &module.cmdline })
                .collect();
            let initrd = vm.initrd.as_ref().map(|initrd| self.get(initrd));
            let text_screen = vm.vga.is_some();
            let args = LoadArgs { initrd, modules: &modules, cmdline: &vm.cmdline, text_screen, ..LoadArgs::default() };
            if let Err(error) = load::check(self.get(kernel), vm.memory, &args) {
                return Err(refusal(config, vm, kernel, error));
            }
        }
        Ok(())
    }

    /// Checks firmware, VGA BIOS and CD of a VM.
    fn check_media(&self, config: &Config, vm: &Vm) -> Result<(), ConfigError> {
        for (key, source) in vm.sources() {
            let check: fn(&[u8]) -> Result<(), MediumError> = match key {
                "firmware" => check_firmware,
                "vga" => check_vga_bios,
                "cdrom" => check_cdrom,
                _ => continue,
            };
            check(self.get(source)).map_err(|error| config.refuse(&vm.name, key, source, error.to_string()))?;
        }
        if let Boot::Firmware(_) = vm.boot
            && vm.memory < HIGH_MEMORY.0
        {
            let reason = format!("a VM with firmware needs {} at least", size::format(HIGH_MEMORY.0));
            return Err(config.refuse(&vm.name, "memory", format!("\"{}\"", size::format(vm.memory)), reason));
        }
        Ok(())
    }
}

/// Says which key of the VM is to blame for what the loader found.
fn refusal(config: &Config, vm: &Vm, kernel: &Source, error: LoadError) -> ConfigError {
    let part = match error {
        LoadError::OutsideMemory { part, .. }
        | LoadError::Overlap { part, .. }
        | LoadError::NoRoom { part, .. }
        | LoadError::NotForThisFormat { part, .. } => part,
        LoadError::CommandLineTooLong { .. } | LoadError::ZeroInCommandLine => Part::CommandLine,
        _ => Part::Kernel,
    };
    let memory = matches!(error, LoadError::OutsideMemory { .. } | LoadError::NoRoom { .. });
    let (key, value) = match (part, &vm.initrd, vm.modules.first()) {
        (Part::Initrd, Some(initrd), _) => ("initrd", initrd.to_string()),
        (Part::Module, _, Some(module)) => ("modules: path", module.source.to_string()),
        (Part::CommandLine, ..) => ("cmdline", format!("{:?}", vm.cmdline)),
        _ => ("kernel", kernel.to_string()),
    };
    let given = if memory { format!(" (memory = \"{}\")", size::format(vm.memory)) } else { String::new() };
    config.refuse(&vm.name, key, value, format!("{error}{given}"))
}

fn sources(config: &Config) -> impl Iterator<Item = &Source> {
    config.vms.iter().flat_map(|vm| vm.sources().map(|(_, source)| source))
}

/// Who will be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audience {
    /// A person at a terminal on the serial port.
    pub terminal: bool,
    /// Somebody, or a test, in front of the screen.
    pub screen: bool,
}

/// Packs the bundle. Images that several VMs name are in it once.
///
/// # Errors
/// The description cannot be encoded.
pub fn pack(config: &Config, images: &Images, audience: Audience) -> Result<Vec<u8>> {
    let mut unique: Vec<&Source> = Vec::new();
    for source in sources(config) {
        if !unique.contains(&source) {
            unique.push(source);
        }
    }
    let bytes: Vec<_> = unique.iter().map(|source| images.get(source)).collect();
    let bundle = encode(&bytes, |blobs| describe(config, &unique, blobs, audience));
    bundle.context("cannot pack the virtual machines")
}

/// The description of a configuration whose images are at `blobs`, in the order of `sources`.
fn describe(config: &Config, sources: &[&Source], blobs: &[Blob], audience: Audience) -> Bundle {
    let placed: HashMap<_, _> = sources.iter().copied().zip(blobs.iter().copied()).collect();
    // Every source of the configuration is among them.
    let blob = |source: &Source| placed.get(source).copied().unwrap_or(Blob { offset: 0, length: 0 });
    let vms = config
        .vms
        .iter()
        .map(|vm| VmConfig {
            name: vm.name.clone(),
            boot: match &vm.boot {
                Boot::Kernel(source) => packed::Boot::Kernel(blob(source)),
                Boot::Firmware(source) => packed::Boot::Firmware(blob(source)),
            },
            initrd: vm.initrd.as_ref().map(blob),
            modules: vm
                .modules
                .iter()
                .map(|module| ModuleConfig { blob: blob(&module.source), cmdline: module.cmdline.clone() })
                .collect(),
            cmdline: vm.cmdline.clone(),
            memory: vm.memory,
            backing: vm.backing,
            vcpus: vm.vcpus,
            weight: vm.weight,
            cpu: vm.cpu.clone(),
            apic: vm.apic.unwrap_or_default(),
            cdrom: vm.cdrom.as_ref().map(blob),
            vga: vm.vga.as_ref().map(|vga| packed::Vga { bios: vga.bios.as_ref().map(blob) }),
            hpet: vm.hpet,
            fw_cfg: vm.fw_cfg.clone(),
            trace: vm.trace,
        })
        .collect();
    let (interactive, screen) = (audience.terminal, audience.screen);
    Bundle { interactive, screen, log: config.log, mitigations: config.mitigations, vms }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use lamina_vmm::config::{blob_bytes, parse};

    use super::*;

    fn elf(length: usize) -> Vec<u8> {
        let mut image = b"\x7fELF".to_vec();
        image.resize(length, 0xee);
        image
    }

    fn config(directory: &Path, text: &str) -> (Config, Images) {
        let config = Config::parse(text, "some.toml", directory).unwrap();
        let images = Images::read(&config, |source| match source {
            Source::File(path) => Ok(path.clone()),
            other => anyhow::bail!("no file: {other}"),
        });
        (config, images.unwrap())
    }

    #[test]
    fn what_is_packed_unpacks() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("kernel"), elf(5000)).unwrap();
        std::fs::write(directory.path().join("initrd"), b"ramdisk").unwrap();
        std::fs::write(directory.path().join("module"), vec![7; 4096]).unwrap();
        let (config, images) = config(
            directory.path(),
            r#"
            lamina = { log = "warn" }
            [[vm]]
            name = "a"
            kernel = "kernel"
            initrd = "initrd"
            cmdline = "x y"
            memory = "8M"
            weight = 3
            [[vm]]
            name = "b"
            kernel = "kernel"
            modules = [{ path = "module", cmdline = "m" }]
            "#,
        );
        let packed = pack(&config, &images, Audience { terminal: true, screen: false }).unwrap();
        let bundle = parse(&packed).unwrap();
        assert!(bundle.interactive);
        assert_eq!(bundle.log, lamina_vmm::config::LogLevel::Warn);
        let [a, b] = bundle.vms.as_slice() else { panic!("{bundle:?}") };
        let bytes = |blob| blob_bytes(&packed, blob).unwrap();
        let packed::Boot::Kernel(kernel) = a.boot else { panic!("{a:?}") };
        assert_eq!(bytes(kernel), elf(5000));
        assert_eq!(bytes(a.initrd.unwrap()), b"ramdisk");
        assert_eq!((a.cmdline.as_str(), a.memory, a.weight), ("x y", 8 << 20, 3));
        assert_eq!(a.boot, b.boot, "one image is packed once");
        assert_eq!(bytes(b.modules[0].blob), [7; 4096]);
        assert_eq!(b.modules[0].cmdline, "m");
    }

    #[test]
    fn firmware_and_media_that_are_none() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
        let mut iso = vec![0; 0x9000];
        iso[0x8001..0x8006].copy_from_slice(b"CD001");
        write("rom", &[0; 0x2000]);
        write("odd", &[0; 0x2001]);
        write("large", &vec![0; (16 << 20) + 4096]);
        write("empty", b"");
        write("iso", &iso);
        write("blank", &[0; 0x9000]);
        write("vga", &[0x55, 0xaa, 1, 0]);
        let check = |keys: &str| {
            let (config, images) = config(directory.path(), &format!("[[vm]]\nname = \"a\"\n{keys}"));
            images.check(&config).map_err(|error| error.to_string())
        };
        assert_eq!(check("firmware = \"rom\"\ncdrom = \"iso\""), Ok(()));
        for (keys, parts) in [
            ("firmware = \"odd\"", ["firmware = ", "8193 bytes"]),
            ("firmware = \"large\"", ["firmware = ", "16 MiB at most"]),
            ("firmware = \"empty\"", ["firmware = ", "empty"]),
            ("firmware = \"rom\"\nmemory = \"512K\"", ["memory = \"512K\"", "1M at least"]),
            ("firmware = \"rom\"\ncdrom = \"odd\"", ["cdrom = ", "8193 bytes"]),
            ("firmware = \"rom\"\ncdrom = \"blank\"", ["cdrom = ", "no ISO 9660 volume"]),
            ("firmware = \"rom\"\ncdrom = \"empty\"", ["cdrom = ", "empty"]),
            ("firmware = \"rom\"\nvga = \"vga\"", ["vga = ", "no VGA BIOS"]),
        ] {
            let message = check(keys).unwrap_err();
            assert!(message.starts_with("some.toml: [[vm]] \"a\": "), "{message}");
            for part in parts {
                assert!(message.contains(part), "{part:?} is not in: {message}");
            }
        }
    }

    #[test]
    fn everything_of_a_firmware_vm_is_packed() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["rom", "vga", "iso"] {
            std::fs::write(directory.path().join(name), name).unwrap();
        }
        let keys = "firmware = \"rom\"\nvga = \"vga\"\ncdrom = \"iso\"\nhpet = true";
        let (config, images) = config(directory.path(), &format!("[[vm]]\nname = \"a\"\n{keys}"));
        let packed = pack(&config, &images, Audience { terminal: false, screen: false }).unwrap();
        let bundle = parse(&packed).unwrap();
        let vm = &bundle.vms[0];
        let bytes = |blob| blob_bytes(&packed, blob).unwrap();
        assert_eq!((vm.boot.part().0, bytes(vm.boot.part().1)), ("firmware", &b"rom"[..]));
        assert_eq!((bytes(vm.cdrom.unwrap()), bytes(vm.vga.unwrap().bios.unwrap())), (&b"iso"[..], &b"vga"[..]));
        assert!(vm.hpet);
    }

    /// The smallest 64-bit ELF file that loads: one segment of `memory` bytes at 1 MiB, of which none are in the file.
    fn loadable(memory: u64) -> Vec<u8> {
        let mut image = b"\x7fELF\x02\x01\x01".to_vec();
        image.resize(16, 0);
        let address = 1_u64 << 20;
        for half in [2_u16, 62] {
            image.extend(half.to_le_bytes());
        }
        image.extend(1_u32.to_le_bytes());
        // Entry, program headers, section headers.
        for word in [address, 64, 0] {
            image.extend(word.to_le_bytes());
        }
        image.extend(0_u32.to_le_bytes());
        // Sizes of the ELF header and of a program header, number of program headers; no section headers.
        for half in [64_u16, 56, 1, 0, 0, 0] {
            image.extend(half.to_le_bytes());
        }
        for half in [1_u32, 5] {
            image.extend(half.to_le_bytes());
        }
        // Offset, virtual and physical address, size in the file and in memory, alignment.
        for word in [0, address, address, 64 + 56, memory, 4096] {
            image.extend(word.to_le_bytes());
        }
        image
    }

    #[test]
    fn images_that_are_none_or_do_not_fit() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("kernel"), loadable(8 << 20)).unwrap();
        std::fs::write(directory.path().join("liar"), &loadable(8 << 20)[..100]).unwrap();
        std::fs::write(directory.path().join("text"), "hello").unwrap();
        std::fs::write(directory.path().join("empty"), "").unwrap();
        let check = |keys: &str| {
            let (config, images) = config(directory.path(), &format!("[[vm]]\nname = \"a\"\n{keys}"));
            images.check(&config).map_err(|error| error.to_string())
        };
        assert_eq!(check("kernel = \"kernel\"\nmemory = \"16M\""), Ok(()));
        for (keys, parts) in [
            ("kernel = \"text\"", ["kernel = ", "neither"]),
            ("kernel = \"empty\"", ["kernel = ", "neither"]),
            ("kernel = \"liar\"", ["kernel = ", "cut off"]),
            ("kernel = \"kernel\"\nmemory = \"4M\"", ["kernel = ", "memory = \"4M\""]),
            ("kernel = \"kernel\"\ninitrd = \"text\"", ["initrd = ", "takes none"]),
            ("kernel = \"kernel\"\nmodules = [{ path = \"text\" }]", ["modules: path = ", "takes none"]),
        ] {
            let message = check(keys).unwrap_err();
            assert!(message.starts_with("some.toml: [[vm]] \"a\": "), "{message}");
            for part in parts {
                assert!(message.contains(part), "{part:?} is not in: {message}");
            }
        }
    }
}
