//! cargo-deny, built once and kept in the cache.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::{lock, rust};
use crate::paths::{self, find_program};
use crate::report::{self, Progress};

/// The version that is built; another one in `PATH` is taken as it is.
const VERSION: &str = "0.20.2";
/// How many lines cargo prints for a build of it, as far as the progress bar cares.
const BUILD_LINES: u64 = 420;

/// The program; it is built when it is neither in `PATH` nor in the cache.
///
/// # Errors
/// It does not build.
pub fn program() -> Result<PathBuf> {
    if let Some(program) = find_program("cargo-deny") {
        return Ok(program);
    }
    let cache = paths::cache()?;
    let root = cache.join(format!("cargo-deny-{VERSION}"));
    let program = root.join("bin/cargo-deny");
    if program.is_file() {
        return Ok(program);
    }
    let _lock = lock(&cache, "cargo-deny")?;
    if program.is_file() {
        return Ok(program);
    }
    report::say(
        "building cargo-deny, which checks licences and sources of dependencies: needed once, takes 1 to 3 minutes",
    );
    let mut command = Command::new("cargo");
    rust::without_toolchain(&mut command)
        .args(["install", "cargo-deny", "--locked", "--no-default-features", "--version", VERSION])
        .args(["--no-track", "--profile", "dev", "--root"])
        .arg(&root)
        .current_dir(paths::workspace());
    report::run("building cargo-deny", Progress::Lines(BUILD_LINES), command)?;
    Ok(program)
}
