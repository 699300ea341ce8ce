//! The bare machine, without Lamina: what everything is compared with. `guest/bench/native` loads what is to run there, or
//! a loader of the image's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::artifacts;
use crate::backend::{self, Backend};
use crate::image::{self, Firmware};
use crate::machine::Machine;

/// A disk has whole cylinders: heads, sectors, bytes of each.
const CYLINDER: u64 = 16 * 63 * 512;

/// Boots `kernel` (a bzImage, or a Multiboot image) on a machine with `memory` MiB.
///
/// # Errors
/// Something cannot be built or started.
pub fn start(
    backend: &Backend,
    kernel: &Path,
    initrd: &[u8],
    cmdline: &str,
    memory: u64,
    limit: Duration,
) -> Result<Machine> {
    let loader = artifacts::build("bench-native", "bench-native")?;
    let directory = tempfile::Builder::new().prefix("lamina-").tempdir().context("no temporary directory")?;
    let (ramdisk, disk) = (directory.path().join("ramdisk"), directory.path().join("disk"));
    std::fs::write(&ramdisk, pack(&[&std::fs::read(kernel)?, initrd, cmdline.as_bytes()]))?;
    image::build(&loader, &ramdisk, Firmware::Bios, &disk)?;
    run(backend, directory, disk, memory, limit)
}

/// Boots a copy of `image`, which begins with a boot sector, on a machine with `memory` MiB.
///
/// # Errors
/// It cannot be copied or started.
pub fn start_image(backend: &Backend, image: &Path, memory: u64, limit: Duration) -> Result<Machine> {
    let directory = tempfile::Builder::new().prefix("lamina-").tempdir().context("no temporary directory")?;
    let disk = directory.path().join("disk");
    std::fs::copy(image, &disk).with_context(|| format!("cannot copy {}", image.display()))?;
    let file = std::fs::OpenOptions::new().write(true).open(&disk)?;
    file.set_len(file.metadata()?.len().next_multiple_of(CYLINDER))?;
    run(backend, directory, disk, memory, limit)
}

fn run(backend: &Backend, directory: TempDir, image: PathBuf, memory: u64, limit: Duration) -> Result<Machine> {
    let machine = backend::Machine {
        image,
        memory: memory << 20,
        directory: directory.path().to_owned(),
        // Nobody marks its lines here: any of them does.
        first_words: "",
        ..backend::Machine::default()
    };
    Machine::start(backend, machine, directory, Some(limit), None)
}

/// What the loader takes: the lengths, then the contents.
fn pack(parts: &[&[u8]; 3]) -> Vec<u8> {
    let lengths = parts.iter().flat_map(|part| (part.len() as u64).to_le_bytes());
    lengths.chain(parts.iter().flat_map(|part| part.iter().copied())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ramdisk_is_lengths_and_contents() {
        let packed = pack(&[b"ab", b"", b"c"]);
        assert_eq!(packed.len(), 24 + 3);
        assert_eq!((packed[0], packed[8], packed[16]), (2, 0, 1));
        assert_eq!(&packed[24..], b"abc");
    }
}
