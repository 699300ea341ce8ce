//! Builds the hypervisor and the guest programs, and finds every image that a configuration names.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::config::Source;
use crate::setup::archive::host_architecture;
use crate::setup::debian::{self, Package};
use crate::setup::rust;
use crate::{initramfs, paths, report, rescue};

/// What kernel and guests are built for.
pub const TARGET: &str = "x86_64-unknown-none";
/// What programs for a Linux without libraries are built for.
const LINUX_TARGET: &str = "x86_64-unknown-linux-musl";

/// Builds the hypervisor.
///
/// # Errors
/// It does not build; the compiler's words went to standard error.
pub fn hypervisor() -> Result<PathBuf> {
    build("lamina", "lamina")
}

/// Builds the hypervisor with a feature of its crate, apart from the ordinary one.
///
/// # Errors
/// It does not build; the compiler's words went to standard error.
pub fn hypervisor_with(feature: &str) -> Result<PathBuf> {
    let apart = paths::workspace().join("target").join(feature);
    build_with("lamina", "lamina", TARGET, |command| {
        command.args(["--features", feature, "--target-dir"]).arg(apart);
    })
}

/// A program without its symbols, in a file that goes with the value.
///
/// # Errors
/// `strip` is not there, or fails.
pub fn stripped(program: &Path) -> Result<tempfile::TempPath> {
    let strip = paths::find_program("strip").context("there is no `strip` (Debian's package binutils)")?;
    let file = tempfile::NamedTempFile::new().context("no temporary file")?.into_temp_path();
    let status = Command::new(strip).arg("--strip-all").arg("-o").args([&*file, program]).status()?;
    ensure!(status.success(), "`strip` fails on {}", program.display());
    Ok(file)
}

/// The file of a source: builds it, fetches it or makes it as needed.
///
/// # Errors
/// That fails.
pub fn locate(source: &Source) -> Result<PathBuf> {
    match source {
        Source::File(path) => Ok(path.clone()),
        Source::Guest(name) => build(&format!("guest-{name}"), name),
        Source::Debian { package, file } => debian::image(package, file.as_deref()),
        Source::Busybox(architecture) => busybox(architecture),
        Source::Rescue { menu, files } => {
            let files = files.iter().map(|(path, source)| Ok((path.as_str(), locate(source)?)));
            rescue::image(menu, &files.collect::<Result<Vec<_>>>()?)
        }
    }
}

/// Builds one bare-metal package and returns its program.
///
/// # Errors
/// It does not build; the compiler's words went to standard error.
pub fn build(package: &str, program: &str) -> Result<PathBuf> {
    build_with(package, program, TARGET, |_| {})
}

/// Builds a static program for Linux; `why` is said where its target is missing.
///
/// # Errors
/// The target is missing and cannot be installed, or the program does not build.
pub fn build_for_linux(package: &str, program: &str, why: &str) -> Result<PathBuf> {
    rust::ensure_target(LINUX_TARGET, why)?;
    build_with(package, program, LINUX_TARGET, |_| {})
}

fn build_with(package: &str, program: &str, target: &str, arguments: impl FnOnce(&mut Command)) -> Result<PathBuf> {
    // The build that started this program handed down where cargo is.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--release", "--target", target, "--package", package])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(paths::workspace())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    arguments(&mut command);
    let _activity = report::activity(&format!("building {package}"));
    let output = command.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "{package} does not build");
    let messages = String::from_utf8_lossy(&output.stdout);
    executable(&messages, program).with_context(|| format!("{package} has no program `{program}`"))
}

/// The program in what cargo said while building, one JSON object per line.
fn executable(messages: &str, program: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message.pointer("/target/name").and_then(Value::as_str) == Some(program))
        .find_map(|message| message.get("executable").and_then(Value::as_str).map(PathBuf::from))
}

/// The built-in initramfs, made anew each time: that takes milliseconds, and so it is never stale.
fn busybox(architecture: &'static str) -> Result<PathBuf> {
    let installed = PathBuf::from("/usr/share/doc/busybox-static");
    let program = if installed.is_dir() && host_architecture().as_deref() == Some(architecture) {
        PathBuf::from("/bin/busybox")
    } else {
        let package = Package { name: "busybox-static".to_owned(), architecture };
        let root = debian::fetch_package(&package, "the shell of the built-in initramfs")?;
        ["bin/busybox", "usr/bin/busybox"]
            .map(|path| root.join(path))
            .into_iter()
            .find(|path| path.is_file())
            .context("Debian's package busybox-static holds no busybox")?
    };
    let archive = initramfs::busybox(&program)?;
    let cache = paths::cache()?;
    let path = cache.join(format!("busybox-{architecture}.cpio"));
    let partial = tempfile::NamedTempFile::new_in(&cache)?;
    std::fs::write(partial.path(), archive)?;
    partial.persist(&path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_says_where_the_program_is() {
        let messages = "\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"spin\"},\"executable\":null}\n\
            not json\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"lamina\"},\"executable\":\"/t/release/lamina\"}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages, "lamina"), Some(PathBuf::from("/t/release/lamina")));
        assert_eq!(executable(messages, "spin"), None);
        assert_eq!(executable("", "lamina"), None);
    }
}
