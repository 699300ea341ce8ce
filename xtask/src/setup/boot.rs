//! The image builder `boot/`: built once, with a compiler of its own, and kept in the cache.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{fingerprint, lock, rust};
use crate::paths;
use crate::report::{self, Progress};

/// How many lines cargo prints for a build of it, as far as the progress bar cares.
const BUILD_LINES: u64 = 130;

/// The program that turns a kernel and a ramdisk into a disk image.
///
/// # Errors
/// Its toolchain is missing and cannot be installed, or it does not build.
pub fn builder() -> Result<PathBuf> {
    let source = paths::workspace().join("boot");
    let read = |name: &str| fs::read(source.join(name)).with_context(|| format!("cannot read boot/{name}"));
    let parts = [read("Cargo.toml")?, read("Cargo.lock")?, read("rust-toolchain.toml")?, read("src/main.rs")?];
    let key = fingerprint(&[&parts[0], &parts[1], &parts[2], &parts[3]]);

    let cache = paths::cache()?;
    let directory = cache.join("boot");
    let program = directory.join(format!("lamina-boot-{key}"));
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(&directory)?;
    let _lock = lock(&cache, "boot")?;
    if program.is_file() {
        return Ok(program);
    }
    rust::Toolchain::of(&source)?.ensure("the boot loader's stages need a nightly compiler")?;
    report::say("building the boot loader and the image builder: needed once, takes 2 to 3 minutes");
    let mut command = Command::new("cargo");
    rust::without_toolchain(&mut command)
        .args(["build", "--release", "--locked"])
        // By argument: its build script runs cargo again, which would wait for ever for the lock on a directory that it
        // inherits in a variable.
        .arg("--target-dir")
        .arg(directory.join("target"))
        .current_dir(&source)
        // The compiler would make a call to `wcslen` of a loop in the UEFI stage, and there is no such function.
        .env("CARGO_TARGET_X86_64_UNKNOWN_UEFI_RUSTFLAGS", "-Cllvm-args=-disable-loop-idiom-wcslen");
    report::run("building boot/", Progress::Lines(BUILD_LINES), command)?;
    let built = directory.join("target/release/lamina-boot");
    ensure!(built.is_file(), "cargo built no {}", built.display());
    // In place in one step, under a name that says from what it was built.
    let partial = directory.join(format!(".lamina-boot-{}", std::process::id()));
    fs::copy(&built, &partial)?;
    fs::rename(&partial, &program)?;
    Ok(program)
}
