//! Turns a kernel and a ramdisk into bootable disk images, one for BIOS and one for UEFI.
//!
//! Usage: `lamina-boot KERNEL RAMDISK (bios|uefi) IMAGE`. Owns the format of the disk image (through the `bootloader`
//! crate) and its padding; never looks into the ramdisk. `cargo xtask` builds and calls it.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bootloader::{BootConfig, DiskImageBuilder};

/// One cylinder of the geometry that Bochs is given: 16 heads of 63 sectors of 512 bytes. Unit: bytes.
const CYLINDER: u64 = 16 * 63 * 512;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [kernel, ramdisk, firmware, image] = arguments.as_slice() else {
        bail!("usage: lamina-boot KERNEL RAMDISK (bios|uefi) IMAGE");
    };
    let mut builder = DiskImageBuilder::new(PathBuf::from(kernel));
    builder.set_ramdisk(PathBuf::from(ramdisk));
    // The serial port is the hypervisor's, whose lines have a form that the loader's have not; the screen shows both.
    let mut config = BootConfig::default();
    config.serial_logging = false;
    builder.set_boot_config(&config);
    let image = Path::new(image);
    match firmware.to_str() {
        Some("bios") => builder.create_bios_image(image)?,
        Some("uefi") => builder.create_uefi_image(image)?,
        _ => bail!("firmware is neither `bios` nor `uefi`: {}", firmware.display()),
    }
    pad_to_cylinders(image).with_context(|| format!("cannot pad {}", image.display()))
}

/// Bochs takes a flat image only in whole cylinders; a real disk does not mind.
fn pad_to_cylinders(image: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).open(image)?;
    let length = file.metadata()?.len();
    file.set_len(length.next_multiple_of(CYLINDER))?;
    Ok(())
}
