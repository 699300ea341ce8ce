//! What a VM starts with: its images out of the bundle, its memory with them in it, and the devices that it has beyond
//! those of every VM.
//!
//! Owns nothing that lives longer than that. A VM that is reset goes through all of it again, so that whatever the
//! guest did to its memory, a copy of firmware included, is undone.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::APIC_ID;
use crate::acpi::{self, Parts};
use crate::chipset::{Extras, FirmwareFile};
use crate::config::{Blob, Boot, VmConfig, blob_bytes, check_cdrom, check_firmware, check_vga_bios};
use crate::frames::{FramePool, STOCK_LOW, fill_stock};
use crate::host::HostMemory;
use crate::layout::{COM1_PORT, SMBIOS};
use crate::load::{self, ImageKind, InitialState, LoadArgs, Module, Rsdp};
use crate::memory::{Backing, GuestMemory};
use crate::smbios;

/// The images of a VM, found and checked as far as that is possible without loading them.
pub(super) struct Images<'a> {
    boot: Start<'a>,
    cdrom: Option<&'static [u8]>,
    vga_bios: Option<&'static [u8]>,
}

enum Start<'a> {
    Kernel { kernel: &'a [u8], initrd: Option<&'a [u8]>, modules: Vec<Module<'a>> },
    Firmware { rom: &'a [u8] },
}

/// The bytes of `blob` in the bundle.
fn part<'i>(image: &'i [u8], key: &str, blob: Blob) -> Result<&'i [u8], String> {
    blob_bytes(image, blob).ok_or_else(|| format!("{key}: not inside the bundle"))
}

/// What is wrong with what a key names.
fn wrong(key: &str) -> impl FnOnce(crate::config::MediumError) -> String {
    move |error| format!("{key}: {error}")
}

impl<'a> Images<'a> {
    /// Finds the images that `config` names in the bundle `image`.
    ///
    /// # Errors
    /// A sentence that says which is not there, or not what it should be.
    pub(super) fn find(config: &'a VmConfig, image: &'static [u8]) -> Result<Images<'a>, String> {
        let boot = match config.boot {
            Boot::Kernel(kernel) => {
                let module = |m: &'a crate::config::ModuleConfig| {
                    Ok(Module { bytes: part(image, "modules", m.blob)?, cmdline: &m.cmdline })
                };
                Start::Kernel {
                    kernel: part(image, "kernel", kernel)?,
                    initrd: config.initrd.map(|blob| part(image, "initrd", blob)).transpose()?,
                    modules: config.modules.iter().map(module).collect::<Result<_, String>>()?,
                }
            }
            Boot::Firmware(rom) => {
                let rom = part(image, "firmware", rom)?;
                check_firmware(rom).map_err(wrong("firmware"))?;
                Start::Firmware { rom }
            }
        };
        let cdrom = config.cdrom.map(|blob| part(image, "cdrom", blob)).transpose()?;
        cdrom.map_or(Ok(()), check_cdrom).map_err(wrong("cdrom"))?;
        let vga_bios = config.vga.and_then(|vga| vga.bios).map(|blob| part(image, "vga", blob)).transpose()?;
        vga_bios.map_or(Ok(()), check_vga_bios).map_err(wrong("vga"))?;
        Ok(Images { boot, cdrom, vga_bios })
    }

    /// Whether what starts may rely on all addresses of a PC: firmware, which finds out by itself where memory ends, and
    /// Multiboot images, which run on machines of all kinds and may try the same.
    pub(super) fn expect_a_pc(&self) -> bool {
        match &self.boot {
            Start::Firmware { .. } => true,
            Start::Kernel { kernel, .. } => {
                matches!(load::identify(kernel), Ok(ImageKind::Multiboot | ImageKind::Multiboot2))
            }
        }
    }

    /// Takes the VM's memory; firmware is in it then.
    ///
    /// # Errors
    /// A sentence that says why there is none.
    pub(super) fn allocate(
        &self,
        config: &VmConfig,
        pool: &mut FramePool,
        host: &mut impl HostMemory,
    ) -> Result<GuestMemory, String> {
        let (size, backing) = (config.memory, config.backing);
        if backing == Backing::Lazy && !fill_stock(host, pool, self.frames_to_load()) {
            return Err(format!("{} KiB of memory are free, less than the image fills", pool.free_bytes() >> 10));
        }
        match self.boot {
            Start::Kernel { .. } => GuestMemory::allocate(size, backing, pool, host),
            Start::Firmware { rom } => GuestMemory::allocate_with_firmware(size, backing, rom, pool, host),
        }
        .map_err(|error| error.to_string())
    }

    /// How many frames are filled at most before the VM runs: those of the images, of the guest's tables, and of the
    /// directories.
    fn frames_to_load(&self) -> usize {
        const PAGE: usize = 4096;
        let frames = |bytes: &[u8]| bytes.len() / PAGE + 2;
        let images = match &self.boot {
            Start::Kernel { kernel, initrd, modules } => {
                let modules = modules.iter().map(|module| module.bytes);
                initrd.iter().copied().chain(modules).chain([*kernel]).map(frames).fold(0, usize::saturating_add)
            }
            Start::Firmware { rom } => frames(rom),
        };
        images.saturating_add(images / 512).saturating_add(STOCK_LOW)
    }

    /// Writes firmware tables and the kernel into the VM's memory, and says where the processor starts; `None` for
    /// firmware, which is in memory already and starts where a processor comes out of reset.
    ///
    /// # Errors
    /// A sentence that says what of the kernel is wrong, or does not fit.
    pub(super) fn load(
        &self,
        config: &VmConfig,
        memory: &mut GuestMemory,
        host: &mut impl HostMemory,
    ) -> Result<Option<InitialState>, String> {
        let Start::Kernel { kernel, initrd, modules } = &self.boot else { return Ok(None) };
        let tables = acpi::build(&parts(config));
        tables.write(memory, host).map_err(|error| error.to_string())?;
        memory.write(host, SMBIOS, &smbios::build()).map_err(|error| error.to_string())?;
        let rsdp = Some(Rsdp { at: tables.rsdp, bytes: tables.rsdp_bytes() });
        let text_screen = config.vga.is_some();
        let args = LoadArgs { cmdline: &config.cmdline, initrd: *initrd, modules, rsdp, text_screen };
        load::load(kernel, &args, memory, host).map(Some).map_err(|error| error.to_string())
    }

    /// The devices that the VM has beyond those of every VM.
    pub(super) fn extras(&self, config: &VmConfig) -> Extras {
        let firmware = match self.boot {
            Start::Kernel { .. } => None,
            Start::Firmware { .. } => Some(self.firmware_files(config)),
        };
        Extras {
            debug_port: firmware.is_some() && log::log_enabled!(log::Level::Debug),
            firmware,
            vga: config.vga.is_some(),
            hpet: config.hpet,
            cdrom: self.cdrom,
        }
    }

    /// What firmware is told: to use the serial port as a console, about its tables, and where the screen's BIOS is.
    fn firmware_files(&self, config: &VmConfig) -> Vec<FirmwareFile> {
        let given = config.fw_cfg.iter().map(|(name, bytes)| FirmwareFile::new(name, bytes.clone()));
        let mut files: Vec<_> = given.chain(acpi::firmware_files(&parts(config))).collect();
        files.push(FirmwareFile::number("etc/show-boot-menu", 1));
        files.push(FirmwareFile::number("etc/sercon-port", u64::from(COM1_PORT)));
        files.extend(self.vga_bios.map(|rom| FirmwareFile::new("vgaroms/vgabios.bin", rom)));
        files
    }
}

/// What the firmware tables tell of.
fn parts(config: &VmConfig) -> Parts<'static> {
    let firmware = matches!(config.boot, Boot::Firmware(_));
    Parts {
        apic_ids: &[APIC_ID],
        keyboard: firmware || config.vga.is_some(),
        vga: config.vga.is_some(),
        hpet: config.hpet,
    }
}
