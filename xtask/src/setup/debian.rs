//! Debian packages, unpacked into the cache without being installed: guest kernels, firmware, busybox.
//!
//! Needs apt for the address and the check of signatures, but no root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::archive::Archive;
use super::{CannotInstall, lock};
use crate::paths::{self, find_program};
use crate::report;

/// The architectures, by Debian's names, that a guest's program can be of; the first is meant where none is named.
pub const ARCHITECTURES: [&str; 2] = ["amd64", "i386"];

/// A Debian package.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// One of [`ARCHITECTURES`].
    pub architecture: &'static str,
}

impl Package {
    /// A package of amd64.
    pub fn amd64(name: &str) -> Self {
        Self { name: name.to_owned(), architecture: ARCHITECTURES[0] }
    }
}

impl std::fmt::Display for Package {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        if self.architecture == ARCHITECTURES[0] { Ok(()) } else { write!(f, ":{}", self.architecture) }
    }
}

/// The directory that holds the files of a package for amd64, or for all architectures, under their paths in the
/// package.
///
/// # Errors
/// It is not in the cache and cannot be fetched.
pub fn fetch(package: &str, why: &str) -> Result<PathBuf> {
    fetch_package(&Package::amd64(package), why)
}

/// What of a package is unpacked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All but a kernel's modules, which are many and which no guest needs.
    Files,
    /// A kernel, and those of its modules that make KVM.
    Kvm,
}

impl Part {
    /// What tar is told.
    fn members(self) -> &'static [&'static str] {
        match self {
            Part::Files => &["--exclude=./lib/modules", "--exclude=./usr/lib/modules"],
            Part::Kvm => &["--wildcards", "./boot/vmlinuz-*", "*/kernel/arch/x86/kvm/*", "*/kernel/virt/*"],
        }
    }
}

/// The directory that holds the files of a package, under their paths in the package.
///
/// # Errors
/// It is not in the cache and cannot be fetched.
pub fn fetch_package(package: &Package, why: &str) -> Result<PathBuf> {
    fetch_part(package, Part::Files, why)
}

fn fetch_part(package: &Package, part: Part, why: &str) -> Result<PathBuf> {
    let cache = paths::cache()?;
    let parent = cache.join("debian");
    // No name of a package holds a `_`.
    let mut name = package.name.clone();
    if package.architecture != ARCHITECTURES[0] {
        name += &format!("_{}", package.architecture);
    }
    if part == Part::Kvm {
        name += "_kvm";
    }
    let directory = parent.join(name);
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
    let archive = Archive::for_architecture(package.architecture, &cache)?;
    if !archive.knows(&package.name) {
        // Some lists may be had where others are not; which are needed, the package's presence tells.
        let updated = archive.update();
        if !archive.knows(&package.name) {
            updated?;
        }
    }
    fs::create_dir_all(&parent)?;
    let work = tempfile::Builder::new().prefix(".fetch").tempdir_in(&parent)?;
    archive.download(&package.name, work.path()).or_else(|error| {
        // Lists that are too old name versions that are no longer served.
        archive.update().and_then(|()| archive.download(&package.name, work.path())).map_err(|_| error)
    })?;
    unpack(work.path(), part, &directory).with_context(|| format!("cannot unpack Debian's package {package}"))?;
    Ok(directory)
}

/// Where a file of a package is, or its Linux kernel where no file is named. A package that holds no kernel but
/// depends on a particular one stands for that.
///
/// # Errors
/// The package cannot be fetched, or there is no such file in it.
pub fn image(package: &Package, file: Option<&str>) -> Result<PathBuf> {
    match file {
        Some(file) => {
            let directory = fetch_package(package, "a guest's image")?;
            find(&directory, file).with_context(|| format!("Debian's package {package}"))
        }
        None => kernel(package),
    }
}

/// The one file below `directory` whose path ends with `name`. Links to the same file are one with it; what they name
/// outside of the package is not ours.
fn find(directory: &Path, name: &str) -> Result<PathBuf> {
    let root = directory.canonicalize()?;
    let mut found = Vec::new();
    let mut all = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(next) = directories.pop() {
        for entry in fs::read_dir(&next)?.filter_map(Result::ok) {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(path);
            } else if path.ends_with(name)
                && let Ok(file) = path.canonicalize()
                && file.is_file()
                && file.starts_with(&root)
            {
                found.push(file);
            } else if let Ok(path) = path.strip_prefix(directory) {
                all.push(path.display().to_string());
            }
        }
    }
    found.sort();
    found.dedup();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => {
            all.retain(|path| path != DEPENDS && !path.contains("/share/doc/"));
            all.sort();
            all.truncate(20);
            bail!("holds no file {name}; it holds {}", all.join(", "))
        }
        several => bail!("holds {} files {name}; name more of the path", several.len()),
    }
}

/// A Linux kernel and the modules of its KVM, in the order in which they are loaded.
pub struct KvmKernel {
    /// The kernel.
    pub kernel: PathBuf,
    /// The modules.
    pub modules: Vec<PathBuf>,
}

/// The kernel of a package as [`image`] finds it, with KVM's modules for this `vendor` (`intel` or `amd`).
///
/// # Errors
/// The package cannot be fetched, or KVM is not in it.
pub fn kvm_kernel(package: &Package, vendor: &str) -> Result<KvmKernel> {
    let (package, _) = resolve_kernel(package)?;
    let directory = fetch_part(&package, Part::Kvm, "KVM, to measure beside")?;
    let module = |name: &str| find(&directory, name).with_context(|| format!("Debian's package {package}"));
    let vendor = format!("kvm-{vendor}.ko");
    let modules = ["irqbypass.ko", "kvm.ko", &vendor].map(module).into_iter().collect::<Result<_>>()?;
    Ok(KvmKernel { kernel: newest_kernel(&directory).context("a package without its kernel")?, modules })
}

fn kernel(package: &Package) -> Result<PathBuf> {
    Ok(resolve_kernel(package)?.1)
}

/// The package that holds the kernel `package` stands for, and the kernel.
fn resolve_kernel(package: &Package) -> Result<(Package, PathBuf)> {
    let mut package = package.clone();
    // A package for all versions names one for a version, which holds the kernel.
    for _ in 0..3 {
        let directory = fetch_package(&package, "a guest's kernel")?;
        if let Some(kernel) = newest_kernel(&directory) {
            return Ok((package, kernel));
        }
        let depends = fs::read_to_string(directory.join(DEPENDS)).unwrap_or_default();
        match kernel_dependency(&depends) {
            Some(next) => package.name = next.to_owned(),
            None => bail!(
                "Debian's package {package} holds no /boot/vmlinuz-* and depends on no linux-image-*; \
                 a file in it is named \"debian:{package}/FILE\""
            ),
        }
    }
    bail!("Debian's package {package} names no kernel")
}

fn newest_kernel(directory: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(directory.join("boot")).ok()?;
    entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| is_kernel(path)).max()
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

/// Unpacks the one package in `work` and moves the result into place in one step: it is there completely or not.
fn unpack(work: &Path, part: Part, directory: &Path) -> Result<()> {
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
        .args(["-x", "--no-same-owner", "-C"])
        .arg(&root)
        .args(part.members())
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
    fn a_file_is_found_by_the_end_of_its_path() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["boot/a.bin", "boot/b.bin", "usr/lib/x/b.bin"] {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, directory.path().join(at)).unwrap();
        link("../boot/a.bin", "usr/a.bin");
        link("/etc/passwd", "usr/outside");
        let root = directory.path().canonicalize().unwrap();
        let find = |name| find(directory.path(), name).map_err(|error| error.to_string());
        assert_eq!(find("a.bin"), Ok(root.join("boot/a.bin")));
        assert_eq!(find("x/b.bin"), Ok(root.join("usr/lib/x/b.bin")));
        assert!(find("outside").unwrap_err().contains("no file outside"));
        assert!(find("b.bin").unwrap_err().contains("2 files"));
        // Whole names only, and no directories.
        for name in ["bin", ".bin", "boot"] {
            assert!(find(name).unwrap_err().contains("boot/a.bin, boot/b.bin, usr/a.bin, usr/lib/x/b.bin"), "{name}");
        }
    }

    #[test]
    fn a_meta_package_names_its_kernel() {
        let field = "linux-image-6.1.0-50-cloud-amd64 (= 6.1.192-2)\n";
        assert_eq!(kernel_dependency(field), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(kernel_dependency("kmod, linux-base (>= 4.3~), linux-image-x | y"), Some("linux-image-x"));
        assert_eq!(kernel_dependency("libc6, kmod"), None);
        assert_eq!(kernel_dependency(""), None);
    }
}
