//! Installs system packages through apt: as root directly, else through sudo.

use std::process::Command;

use anyhow::Result;

use super::CannotInstall;
use crate::paths::find_program;
use crate::report::{self, Progress};

/// Installs packages; `why` is said in the same line.
///
/// # Errors
/// There is no apt, or no way to become root: the error says what to install. Or apt fails.
pub fn install(packages: &[&str], why: &str) -> Result<()> {
    let list = packages.join(" ");
    if find_program("apt-get").is_none() {
        let message =
            format!("{why}: this needs what Debian calls `{list}`; there is no apt here, so install it first");
        return Err(CannotInstall(message).into());
    }
    report::say(format_args!("installing {list}: {why}"));
    if !knows(packages) {
        update()?;
    }
    let mut arguments = vec!["install", "-y", "--no-install-recommends", "-o", "APT::Status-Fd=1"];
    arguments.extend(packages);
    let install = || report::run("apt-get install", Progress::Apt, as_root(&arguments, &list)?);
    // Lists that are too old name versions that are no longer served.
    install().or_else(|_| {
        update()?;
        install()
    })
}

/// Fetches the lists of packages.
///
/// # Errors
/// There is no way to become root, or apt fails.
pub fn update() -> Result<()> {
    report::say("updating apt's lists: a package is not in them, or no longer as they say");
    report::run("apt-get update", Progress::Apt, as_root(&["update", "-o", "APT::Status-Fd=1"], "")?)
}

/// Whether apt's lists name all these packages.
pub fn knows(packages: &[&str]) -> bool {
    let output = Command::new("apt-cache").args(["show", "--no-all-versions"]).args(packages).output();
    // It succeeds when it knows any of them.
    output.is_ok_and(|output| {
        let text = String::from_utf8_lossy(&output.stdout);
        packages.iter().all(|package| text.lines().any(|line| line.strip_prefix("Package: ") == Some(package)))
    })
}

fn as_root(arguments: &[&str], packages: &str) -> Result<Command> {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("apt-get")
    } else {
        let install =
            if packages.is_empty() { "apt-get update".to_owned() } else { format!("apt-get install {packages}") };
        if find_program("sudo").is_none() {
            return Err(CannotInstall(format!("neither root nor sudo here; run as root: {install}")).into());
        }
        // It asks for the password before the progress bar is there; without a terminal it must not ask.
        let mut ask = Command::new("sudo");
        if !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
            ask.arg("-n");
        }
        if !ask.arg("-v").status().is_ok_and(|status| status.success()) {
            return Err(CannotInstall(format!("sudo does not let us; run as root: {install}")).into());
        }
        let mut command = Command::new("sudo");
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        command
    };
    command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
    Ok(command)
}
