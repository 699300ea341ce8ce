//! Disk images: made by the image builder in `boot/` from the hypervisor and a bundle.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::bundle::Audience;
use crate::config::Config;
use crate::session;
use crate::setup::boot;
use crate::{artifacts, paths, report};

/// What reads the image first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// The PC's old BIOS.
    Bios,
    /// UEFI.
    Uefi,
}

impl Firmware {
    /// The name that the image builder takes.
    fn name(self) -> &'static str {
        match self {
            Firmware::Bios => "bios",
            Firmware::Uefi => "uefi",
        }
    }
}

/// Makes a disk image, in whole cylinders.
///
/// # Errors
/// The image builder cannot be had, or fails.
pub fn build(kernel: &Path, ramdisk: &Path, firmware: Firmware, image: &Path) -> Result<()> {
    let builder = boot::builder()?;
    let mut command = Command::new(builder);
    command.arg(kernel).arg(ramdisk).arg(firmware.name()).arg(image);
    let output = command.output().context("cannot start the image builder")?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the image builder failed: {}", words.trim());
    Ok(())
}

/// `cargo xtask image`
#[derive(Args, Debug)]
pub struct Arguments {
    /// The machines to put into the images
    #[arg(long, value_name = "FILE", default_value_os_t = session::default_config())]
    pub config: PathBuf,
}

/// Makes the images for a real machine and says how to use them.
///
/// # Errors
/// The configuration is refused, or something does not build.
pub fn command(arguments: &Arguments) -> Result<()> {
    let config = Config::load(&arguments.config)?;
    let images = session::images(&config)?;
    let kernel = artifacts::hypervisor()?;
    let directory = paths::workspace().join("target/image");
    std::fs::create_dir_all(&directory)?;
    let ramdisk = tempfile::NamedTempFile::new()?;
    // Someone sits at a real machine's console.
    std::fs::write(ramdisk.path(), crate::bundle::pack(&config, &images, Audience { terminal: true, screen: true })?)?;
    let mut made = Vec::new();
    for firmware in [Firmware::Bios, Firmware::Uefi] {
        let image = directory.join(format!("lamina-{}.img", firmware.name()));
        build(&kernel, ramdisk.path(), firmware, &image)?;
        made.push(image);
    }
    let [bios, uefi] = made.as_slice() else { return Ok(()) };
    report::say(format_args!("for a machine with BIOS: {}", bios.display()));
    report::say(format_args!("for a machine with UEFI: {}", uefi.display()));
    report::say("write one to a USB stick, which loses what is on it; find its name with `lsblk`, then for example:");
    report::say(format_args!("  sudo dd if={} of=/dev/sdX bs=4M oflag=direct status=progress && sync", uefi.display()));
    report::say("the console is the first serial port (115200 baud, 8N1); switch Secure Boot off");
    Ok(())
}
