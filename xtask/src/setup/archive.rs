//! Debian's archive for one architecture, through apt.
//!
//! Packages of this host's own architecture come by the system's lists. For another one there is a private
//! configuration in the cache: the system's Debian sources, with lists of its own. It needs no root, and the system's
//! configuration, lists and installed packages are neither read as another architecture's nor changed.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::apt;
use crate::report::{self, Progress};

/// Where packages of one architecture come from.
#[derive(Debug)]
pub struct Archive {
    /// Options that make apt use the private configuration; none for the system's.
    options: Vec<String>,
}

impl Archive {
    /// The archive for an architecture, by Debian's name. Private lists go to `cache`.
    ///
    /// # Errors
    /// The system names no source of Debian's, or the cache cannot be written.
    pub fn for_architecture(architecture: &str, cache: &Path) -> Result<Self> {
        if host_architecture().as_deref() == Some(architecture) {
            return Ok(Self { options: Vec::new() });
        }
        let root = cache.join(format!("apt-{architecture}"));
        for directory in ["lists/partial", "cache/archives/partial"] {
            let directory = root.join(directory);
            std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let sources = sources()?;
        std::fs::write(root.join("sources.list"), sources)?;
        // Nothing is installed there.
        std::fs::write(root.join("status"), "")?;
        let root = root.display();
        let options = [
            format!("Dir::Etc::sourcelist={root}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State={root}"),
            format!("Dir::State::lists={root}/lists"),
            format!("Dir::State::status={root}/status"),
            format!("Dir::Cache={root}/cache"),
            format!("APT::Architecture={architecture}"),
            format!("APT::Architectures={architecture}"),
            "Acquire::Languages=none".to_owned(),
        ];
        Ok(Self { options: options.into() })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.options.iter().flat_map(|option| ["-o", option]));
        if rustix::process::geteuid().is_root() {
            // Its unprivileged user has no access to our directories, and warns about that.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command
    }

    /// Whether the lists name this package.
    pub fn knows(&self, package: &str) -> bool {
        let output = self.command("apt-cache").args(["show", "--no-all-versions", package]).output();
        output.is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
    }

    /// Fetches the lists.
    ///
    /// # Errors
    /// apt fails; lists may be there nevertheless, for it also fails when only some cannot be had.
    pub fn update(&self) -> Result<()> {
        if self.options.is_empty() {
            return apt::update();
        }
        let mut command = self.command("apt-get");
        command.args(["update", "-o", "APT::Status-Fd=1"]);
        report::run("apt-get update", Progress::Apt, command)
    }

    /// Puts the newest version of a package into a directory.
    ///
    /// # Errors
    /// apt fails.
    pub fn download(&self, package: &str, directory: &Path) -> Result<()> {
        let mut command = self.command("apt-get");
        command.args(["download", "-o", "APT::Status-Fd=1", package]).current_dir(directory);
        report::run("apt-get download", Progress::Apt, command)
    }
}

/// This host's architecture, by Debian's name; none where there is no Debian.
pub fn host_architecture() -> Option<String> {
    let output = Command::new("dpkg").arg("--print-architecture").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Debian's own keys, where its package puts them.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The lines of a `sources.list` with the Debian sources that the system uses.
fn sources() -> Result<String> {
    let format = "$(SITE) $(RELEASE) $(COMPONENT)";
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", format, "Origin: Debian", "Created-By: Packages"])
        .output()
        .context("cannot start apt-get")?;
    let targets = String::from_utf8_lossy(&output.stdout);
    let keys = Path::new(KEYS).is_file().then_some(KEYS);
    let lines = source_lines(&targets, keys);
    ensure!(!lines.is_empty(), "apt's lists name no source of Debian's, so there is none for another architecture");
    Ok(lines)
}

fn source_lines(targets: &str, keys: Option<&str>) -> String {
    let options = keys.map(|keys| format!("[signed-by={keys}] ")).unwrap_or_default();
    let mut lines: Vec<_> = targets.lines().map(|target| format!("deb {options}{target}\n")).collect();
    lines.sort();
    lines.dedup();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_is_named_once() {
        // The same component stands there once for each of the system's architectures.
        let targets = "SITE suite main\nSITE suite-updates main\nSITE suite main\n";
        assert_eq!(source_lines(targets, None), "deb SITE suite main\ndeb SITE suite-updates main\n");
        assert!(source_lines(targets, Some("/k")).starts_with("deb [signed-by=/k] SITE suite main\n"));
        assert_eq!(source_lines("", None), "");
    }
}
