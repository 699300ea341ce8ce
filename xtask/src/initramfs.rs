//! The built-in initramfs: a static busybox and an `/init` that gives a shell on the kernel's console.
//!
//! Owns the archive's format ("newc", Linux' `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::path::Path;

use anyhow::{Context, Result};

/// Runs as process 1. The shell gets the console as its controlling terminal, so that Ctrl-C works in it; it runs in the
/// background, because a trap waits for what runs in front. `poweroff`, `reboot` and `halt` tell process 1 by these
/// signals, as they would tell busybox' own init. Only in the guest is it certain that busybox runs, and can be asked for
/// its commands: it may be of another architecture.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin HOME=/root TERM=vt100
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo "This is $(uname -sr) with a busybox shell; exit powers off."
cd /root
end() {
    trap '' TERM
    kill -TERM -1
    sync
    "$1" -f
}
trap 'end poweroff' USR2
trap 'end reboot' TERM
trap 'end halt' USR1
setsid cttyhack sh <>/dev/console >&0 2>&1 &
wait $!
end poweroff
"#;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const TERMINAL: u32 = 0o020_600;

/// Builds the archive around a busybox, whatever its architecture.
///
/// # Errors
/// The program cannot be read.
pub fn busybox(program: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "proc", "sys", "root", "tmp"] {
        archive.entry(directory, DIRECTORY, (0, 0), b"");
    }
    // The kernel opens it for process 1, before anything can mount devtmpfs.
    archive.entry("dev/console", TERMINAL, (5, 1), b"");
    archive.entry("bin/busybox", PROGRAM, (0, 0), &bytes);
    archive.entry("init", PROGRAM, (0, 0), INIT.as_bytes());
    Ok(archive.finish())
}

/// Builds an archive in which there is nothing but an `/init`.
pub fn single(init: &[u8]) -> Vec<u8> {
    with_init(init).finish()
}

/// Builds an archive for the program that measures KVM: `/init`, the image `/bench`, and in `/modules` what is to be
/// loaded, numbered in its order.
pub fn measuring(init: &[u8], image: &[u8], modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = with_init(init);
    // KVM's device: a character device, as a terminal is (Linux, Documentation/admin-guide/devices.txt).
    archive.entry("dev/kvm", TERMINAL, (10, 232), b"");
    archive.entry("bench", PROGRAM, (0, 0), image);
    archive.entry("modules", DIRECTORY, (0, 0), b"");
    for (index, (name, bytes)) in modules.iter().enumerate() {
        archive.entry(&format!("modules/{index}-{name}"), PROGRAM, (0, 0), bytes);
    }
    archive.finish()
}

fn with_init(init: &[u8]) -> Archive {
    let mut archive = Archive::default();
    archive.entry("dev", DIRECTORY, (0, 0), b"");
    archive.entry("dev/console", TERMINAL, (5, 1), b"");
    archive.entry("init", PROGRAM, (0, 0), init);
    archive
}

/// An archive being written. Owners, times and inode numbers are fixed, so that the same content gives the same bytes.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let links = 1;
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back as (name, mode, content).
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * index..][..8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            let content = bytes[start..start + size].to_vec();
            bytes = &bytes[(start + size).next_multiple_of(4)..];
            if name == "TRAILER!!!" {
                assert!(bytes.is_empty());
                return entries;
            }
            entries.push((name, mode, content));
        }
    }

    #[test]
    fn entries_read_back_whatever_their_padding() {
        let mut archive = Archive::default();
        for length in 0..9 {
            archive.entry(&"n".repeat(length + 1), PROGRAM, (0, 0), &vec![1; length]);
        }
        let entries = read(&archive.finish());
        assert_eq!(entries.len(), 9);
        for (length, (name, mode, content)) in entries.iter().enumerate() {
            assert_eq!((name.len(), *mode, content.len()), (length + 1, PROGRAM, length));
        }
    }

    #[test]
    fn what_measures_finds_the_image_the_device_and_its_modules_in_their_order() {
        let modules = [("b.ko".to_owned(), vec![1]), ("a.ko".to_owned(), vec![2])];
        let entries = read(&measuring(b"program", b"image", &modules));
        let names: Vec<_> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        let expected =
            ["dev", "dev/console", "init", "dev/kvm", "bench", "modules", "modules/0-b.ko", "modules/1-a.ko"];
        assert_eq!(names, expected);
        assert_eq!((entries[3].1, &entries[7].2[..]), (TERMINAL, &[2][..]));
    }

    #[test]
    fn the_archive_holds_init_and_the_program_it_calls() {
        let directory = tempfile::tempdir().unwrap();
        let fake = directory.path().join("busybox");
        std::fs::write(&fake, "a program of another architecture").unwrap();
        let entries = read(&busybox(&fake).unwrap());
        let find = |wanted: &str| entries.iter().find(|(name, ..)| name == wanted).unwrap();
        let (_, mode, content) = find("bin/busybox");
        assert_eq!((*mode, content.as_slice()), (PROGRAM, &b"a program of another architecture"[..]));
        assert_eq!((find("init").1, find("init").2.as_slice()), (PROGRAM, INIT.as_bytes()));
        assert_eq!(find("dev/console").1, TERMINAL);
        assert_eq!(find("proc").1, DIRECTORY);
    }
}
