//! Rust targets and toolchains, through rustup. Machines with `RUSTUP_AUTO_INSTALL=0` add nothing by themselves.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::CannotInstall;
use crate::paths::{self, find_program};
use crate::report::{self, Progress};

/// What a `rust-toolchain.toml` asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// Like `1.95.0` or `nightly-2026-09-01`.
    pub channel: String,
    /// Like `rust-src`.
    pub components: Vec<String>,
    /// Like `x86_64-unknown-none`.
    pub targets: Vec<String>,
}

impl Toolchain {
    /// Reads the `rust-toolchain.toml` in a directory.
    ///
    /// # Errors
    /// It cannot be read, or names no channel.
    pub fn of(directory: &Path) -> Result<Self> {
        let path = directory.join("rust-toolchain.toml");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("cannot understand {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let file: toml::Table = toml::from_str(text)?;
        let table = file.get("toolchain").and_then(toml::Value::as_table).context("no [toolchain]")?;
        let list = |key: &str| {
            let values = table.get(key).and_then(toml::Value::as_array).map(Vec::as_slice).unwrap_or_default();
            values.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect()
        };
        let channel = table.get("channel").and_then(toml::Value::as_str).context("no channel")?.to_owned();
        Ok(Self { channel, components: list("components"), targets: list("targets") })
    }

    /// Where rustup keeps it, if it is there with everything it should have.
    fn is_complete(&self) -> bool {
        let Some(sysroot) = self.sysroot() else { return false };
        let library = sysroot.join("lib/rustlib");
        let installed = std::fs::read_to_string(library.join("components")).unwrap_or_default();
        // Lines are like `rust-std-x86_64-unknown-none`, `rust-src`, `clippy-preview-x86_64-unknown-linux-gnu`.
        let has = |component: &String| installed.lines().any(|line| line.starts_with(component.as_str()));
        self.components.iter().all(has) && self.targets.iter().all(|target| library.join(target).is_dir())
    }

    fn sysroot(&self) -> Option<PathBuf> {
        let mut command = Command::new("rustc");
        without_toolchain(&mut command).env("RUSTUP_TOOLCHAIN", &self.channel).env("RUSTUP_AUTO_INSTALL", "0");
        let output = command.args(["--print", "sysroot"]).output().ok()?;
        let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        (output.status.success() && path.is_dir()).then_some(path)
    }

    /// Installs what is missing of it.
    ///
    /// # Errors
    /// There is no rustup, or it fails.
    pub fn ensure(&self, why: &str) -> Result<()> {
        if self.is_complete() {
            return Ok(());
        }
        let what =
            format!("Rust {} with {}", self.channel, [&self.components[..], &self.targets[..]].concat().join(", "));
        if find_program("rustup").is_none() {
            return Err(CannotInstall(format!("{why}: this needs {what}; there is no rustup here to get it")).into());
        }
        report::say(format_args!("installing {what}: {why}"));
        let mut command = Command::new("rustup");
        without_toolchain(&mut command).args(["toolchain", "install", &self.channel, "--profile", "minimal"]);
        for component in &self.components {
            command.args(["--component", component]);
        }
        for target in &self.targets {
            command.args(["--target", target]);
        }
        report::run("rustup toolchain install", Progress::Unknown, command)
    }
}

/// Cargo tells its children which toolchain to use; a build in another workspace must not hear of it.
pub fn without_toolchain(command: &mut Command) -> &mut Command {
    let own = ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC", "RUSTC_WRAPPER", "RUSTFLAGS"];
    for variable in own.into_iter().chain(["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS"]) {
        command.env_remove(variable);
    }
    command
}

/// The workspace's own toolchain, complete with the target of kernel and guests.
///
/// # Errors
/// Something is missing that cannot be installed.
pub fn ensure_workspace() -> Result<()> {
    for_building()?.ensure("building the hypervisor and its guests")
}

/// The same with one more target.
///
/// # Errors
/// Something is missing that cannot be installed.
pub fn ensure_target(target: &str, why: &str) -> Result<()> {
    let mut toolchain = for_building()?;
    toolchain.targets.push(target.to_owned());
    toolchain.ensure(why)
}

/// The workspace's toolchain, without what one can build and boot without.
fn for_building() -> Result<Toolchain> {
    let mut toolchain = Toolchain::of(paths::workspace())?;
    toolchain.components.retain(|component| component != "rustfmt" && component != "clippy");
    Ok(toolchain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toolchain_files_are_understood() {
        let text = "[toolchain]\nchannel = \"nightly-2026-09-01\"\ncomponents = [\"rust-src\"]\nprofile = \"minimal\"";
        let expected = Toolchain {
            channel: "nightly-2026-09-01".to_owned(),
            components: vec!["rust-src".to_owned()],
            targets: Vec::new(),
        };
        assert_eq!(Toolchain::parse(text).unwrap(), expected);
        assert!(Toolchain::parse("[toolchain]").is_err());
    }

    #[test]
    fn the_files_of_this_checkout_are_understood() {
        for directory in [paths::workspace().to_owned(), paths::workspace().join("boot")] {
            let toolchain = Toolchain::of(&directory).unwrap();
            assert!(toolchain.targets.iter().any(|target| target == "x86_64-unknown-none"), "{toolchain:?}");
        }
    }

    #[test]
    fn a_toolchain_that_is_not_there_is_not_complete() {
        let toolchain = Toolchain { channel: "nightly-1999-01-01".to_owned(), components: vec![], targets: vec![] };
        assert!(!toolchain.is_complete());
    }
}
