//! CDs that GRUB boots from, made by its own `grub-mkrescue`.
//!
//! Owns what is on such a CD besides GRUB: a menu and files. Made anew each time: that takes a second or two, and so
//! one is never stale.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::{self, find_program};
use crate::report::{self, Progress};
use crate::setup::{apt, fingerprint};

/// What GRUB needs to start from a BIOS.
const MODULES: &str = "/usr/lib/grub/i386-pc";
/// The programs that make a CD, and Debian's packages that hold them.
const PROGRAMS: [(&str, &str); 3] = [("grub-mkrescue", "grub-common"), ("xorriso", "xorriso"), ("mformat", "mtools")];

/// The image of a CD with `menu` as GRUB's configuration and `files`, each under its path.
///
/// # Errors
/// A program for it cannot be installed, or fails.
pub fn image(menu: &str, files: &[(&str, PathBuf)]) -> Result<PathBuf> {
    ensure_programs()?;
    let cache = paths::cache()?;
    let work = tempfile::Builder::new().prefix("lamina-cd-").tempdir()?;
    let tree = work.path().join("tree");
    let put = |path: &str| -> Result<PathBuf> {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&tree))?;
        Ok(path)
    };
    for (path, from) in files {
        fs::copy(from, put(path)?).with_context(|| format!("cannot copy {} to a CD", from.display()))?;
    }
    fs::write(put("boot/grub/grub.cfg")?, menu)?;

    let mut command = Command::new("grub-mkrescue");
    command.arg(format!("--directory={MODULES}"));
    // Only text is shown, and only English is read.
    command.args(["--fonts=", "--locales=", "--themes="]);
    let image = work.path().join("image");
    command.arg("--output").arg(&image).arg(&tree);
    report::run("grub-mkrescue", Progress::Unknown, command)?;

    let names: Vec<_> = files.iter().map(|(path, _)| path.as_bytes()).chain([menu.as_bytes()]).collect();
    let path = cache.join(format!("rescue-{}.iso", fingerprint(&names)));
    // Into place in one step: two runs may make the same one.
    let partial = tempfile::NamedTempFile::new_in(&cache)?;
    fs::copy(&image, partial.path())?;
    partial.persist(&path)?;
    Ok(path)
}

fn ensure_programs() -> Result<()> {
    let mut missing: Vec<_> =
        PROGRAMS.iter().filter(|(program, _)| find_program(program).is_none()).map(|(_, package)| *package).collect();
    if !Path::new(MODULES).is_dir() {
        missing.push("grub-pc-bin");
    }
    if missing.is_empty() { Ok(()) } else { apt::install(&missing, "a CD that GRUB boots from") }
}
