//! Debian packages, unpacked into the cache without being installed: guest kernels, firmware, busybox.
//!
//! Needs apt for the address and the check of signatures, but no root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{CannotInstall, apt, lock};
use crate::paths::{self, find_program};
use crate::report::{self, Progress};

/// The directory that holds the files of a package, under their paths in the package.
///
/// # Errors
/// It is not in the cache and cannot be fetched.
pub fn fetch(package: &str, why: &str) -> Result<PathBuf> {
    let cache = paths::cache()?;
    let directory = cache.join("debian").join(package);
    if directory.is_dir() {
        return Ok(directory);
    }
    if find_program("apt-get").is_none() {
        let message = format!(
            "{why}: this needs files of Debian's package `{package}`; there is no apt here, so unpack it to {}",
            directory.display()
        );
        return Err(CannotInstall(message).into());
    }
    let _lock = lock(&cache, "debian")?;
    if directory.is_dir() {
        return Ok(directory);
    }
    report::say(format_args!("fetching {package}: {why}"));
    if !apt::knows(&[package]) {
        apt::update()?;
    }
    let parent = cache.join("debian");
    fs::create_dir_all(&parent)?;
    let work = tempfile::Builder::new().prefix(".fetch").tempdir_in(&parent)?;
    download(package, work.path()).or_else(|_| {
        apt::update()?;
        download(package, work.path())
    })?;
    unpack(work.path(), &directory).with_context(|| format!("cannot unpack Debian's package {package}"))?;
    Ok(directory)
}

/// Where the Linux kernel of a package is. A package that holds none but depends on a particular kernel stands for it.
///
/// # Errors
/// The package cannot be fetched, or there is no kernel in it.
pub fn kernel(package: &str) -> Result<PathBuf> {
    let mut package = package.to_owned();
    // A package for all versions names one for a version, which holds the kernel.
    for _ in 0..3 {
        let directory = fetch(&package, "a guest's kernel")?;
        let mut kernels: Vec<_> = match fs::read_dir(directory.join("boot")) {
            Ok(entries) => {
                entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| is_kernel(path)).collect()
            }
            Err(_) => Vec::new(),
        };
        kernels.sort();
        if let Some(kernel) = kernels.pop() {
            return Ok(kernel);
        }
        let depends = fs::read_to_string(directory.join(DEPENDS)).unwrap_or_default();
        match kernel_dependency(&depends) {
            Some(next) => package = next.to_owned(),
            None => bail!("Debian's package {package} holds no /boot/vmlinuz-* and depends on no linux-image-*"),
        }
    }
    bail!("Debian's package {package} names no kernel")
}

/// The file, beside a package's own, that keeps what it depends on.
const DEPENDS: &str = ".depends";

fn is_kernel(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("vmlinuz-"))
}

/// The first `linux-image-…` in a `Depends` field.
fn kernel_dependency(depends: &str) -> Option<&str> {
    depends
        .split([',', '|'])
        .filter_map(|part| part.split_whitespace().next())
        .find(|name| name.starts_with("linux-image-"))
}

fn download(package: &str, directory: &Path) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["download", "-o", "APT::Status-Fd=1", package]).current_dir(directory);
    if rustix::process::geteuid().is_root() {
        // Its unprivileged user has no access to our directory, and warns about that.
        command.args(["-o", "APT::Sandbox::User=root"]);
    }
    report::run("apt-get download", Progress::Apt, command)
}

/// Unpacks the one package in `work` and moves the result into place in one step: it is there completely or not.
fn unpack(work: &Path, directory: &Path) -> Result<()> {
    let mut packages = fs::read_dir(work)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let package = packages.next().context("nothing was downloaded")?;
    let root = work.join("root");
    fs::create_dir(&root)?;

    let mut reader =
        Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&package).stdout(std::process::Stdio::piped()).spawn()?;
    let archive = reader.stdout.take().context("dpkg-deb has no output")?;
    let unpacked = Command::new("tar")
        .args(["-x", "--no-same-owner", "--exclude=./lib/modules", "--exclude=./usr/lib/modules", "-C"])
        .arg(&root)
        .stdin(archive)
        .status()?;
    ensure!(reader.wait()?.success() && unpacked.success(), "tar or dpkg-deb failed");

    let depends = Command::new("dpkg-deb").arg("--field").arg(&package).arg("Depends").output()?;
    fs::write(root.join(DEPENDS), depends.stdout)?;
    fs::rename(&root, directory)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meta_package_names_its_kernel() {
        let field = "linux-image-6.1.0-50-cloud-amd64 (= 6.1.192-2)\n";
        assert_eq!(kernel_dependency(field), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(kernel_dependency("kmod, linux-base (>= 4.3~), linux-image-x | y"), Some("linux-image-x"));
        assert_eq!(kernel_dependency("libc6, kmod"), None);
        assert_eq!(kernel_dependency(""), None);
    }
}
