//! Which crate may depend on which: arrows point one way.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Finding;
use crate::paths;

/// Directories of crates, and the directories of the crates they may depend on. Dependencies of tests are free.
const ALLOWED: &[(&str, &[&str])] = &[
    ("hypervisor/arch", &[]),
    ("hypervisor/vmm", &["hypervisor/arch"]),
    ("hypervisor/devices", &["hypervisor/arch", "hypervisor/vmm"]),
    ("hypervisor/hw", &["hypervisor/arch", "hypervisor/vmm"]),
    ("hypervisor/kernel", &["hypervisor/arch", "hypervisor/vmm", "hypervisor/devices", "hypervisor/hw"]),
    ("hypervisor/probe", &["hypervisor/arch", "hypervisor/hw"]),
    ("guest/rt", &["hypervisor/arch"]),
    ("guest/*", &["guest/rt", "hypervisor/arch"]),
    ("guest/bench/*", &["guest/rt", "hypervisor/arch"]),
    ("xtask", &["hypervisor/arch", "hypervisor/vmm"]),
    ("tests", &["hypervisor/arch", "hypervisor/vmm", "xtask"]),
];

/// A program for Linux among the guests.
const LINUX_PROGRAM: &str = "guest/bench/kvm";

/// A crate of this workspace.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its directory, from the workspace's root.
    pub directory: String,
    /// The directories of the crates of this workspace that it depends on, those of its tests left out.
    dependencies: Vec<String>,
}

impl Package {
    /// Whether it is a program for the bare machine, or a part of one that the host cannot test.
    pub fn is_bare(&self) -> bool {
        self.directory.starts_with("guest/") && self.directory != LINUX_PROGRAM
            || matches!(&*self.directory, "hypervisor/hw" | "hypervisor/kernel" | "hypervisor/probe")
    }
}

/// The crates of this workspace.
///
/// # Errors
/// Cargo fails.
pub fn packages() -> Result<Vec<Package>> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(paths::workspace());
    let output = command.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    read(&serde_json::from_slice(&output.stdout)?, paths::workspace()).context("cargo metadata is not as expected")
}

fn read(metadata: &Value, root: &Path) -> Option<Vec<Package>> {
    let relative = |path: &Path| Some(path.strip_prefix(root).ok()?.to_str()?.to_owned());
    let package = |package: &Value| {
        let manifest = Path::new(package.get("manifest_path")?.as_str()?);
        let dependencies = package.get("dependencies")?.as_array()?.iter();
        let dependencies = dependencies
            .filter(|dependency| dependency.get("kind").and_then(Value::as_str) != Some("dev"))
            .filter_map(|dependency| relative(Path::new(dependency.get("path")?.as_str()?)));
        Some(Package {
            name: package.get("name")?.as_str()?.to_owned(),
            directory: relative(manifest.parent()?)?,
            dependencies: dependencies.collect(),
        })
    };
    metadata.get("packages")?.as_array()?.iter().map(package).collect()
}

pub fn check() -> Result<Finding> {
    Ok(Finding::of(&problems(&packages()?)))
}

fn problems(packages: &[Package]) -> Vec<String> {
    let mut problems = Vec::new();
    for package in packages {
        let rule = ALLOWED.iter().find(|(directory, _)| covers(directory, &package.directory));
        let Some((_, allowed)) = rule else {
            problems.push(format!("{}: no rule says what it may depend on", package.directory));
            continue;
        };
        for dependency in &package.dependencies {
            if !allowed.contains(&dependency.as_str()) {
                problems.push(format!("{} must not depend on {dependency}", package.directory));
            }
        }
    }
    problems
}

/// Whether the rule's directory, perhaps `…/*`, is this one.
fn covers(rule: &str, directory: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(prefix) => directory.strip_prefix(prefix).is_some_and(|rest| !rest.contains('/')),
        None => rule == directory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(directory: &str, dependencies: &[&str]) -> Package {
        let dependencies = dependencies.iter().map(|&dependency| dependency.to_owned()).collect();
        Package { name: "any".to_owned(), directory: directory.to_owned(), dependencies }
    }

    #[test]
    fn arrows_that_point_back_are_found() {
        let good = [package("hypervisor/devices", &["hypervisor/vmm"]), package("guest/new", &["guest/rt"])];
        assert!(problems(&good).is_empty());
        let bad = [
            package("hypervisor/vmm", &["hypervisor/arch", "hypervisor/devices"]),
            package("hypervisor/arch", &["hypervisor/vmm"]),
            package("guest/new", &["hypervisor/hw"]),
            package("tools/new", &[]),
        ];
        assert_eq!(
            problems(&bad),
            [
                "hypervisor/vmm must not depend on hypervisor/devices",
                "hypervisor/arch must not depend on hypervisor/vmm",
                "guest/new must not depend on hypervisor/hw",
                "tools/new: no rule says what it may depend on",
            ]
        );
    }

    #[test]
    fn cargos_words_are_understood() {
        let metadata = serde_json::json!({"packages": [{
            "name": "a",
            "manifest_path": "/root/hypervisor/vmm/Cargo.toml",
            "dependencies": [
                {"name": "b", "kind": null, "path": "/root/hypervisor/arch"},
                {"name": "c", "kind": "dev", "path": "/root/hypervisor/devices"},
                {"name": "d", "kind": null},
            ],
        }]});
        let packages = read(&metadata, Path::new("/root")).unwrap();
        let expected = Package { name: "a".to_owned(), ..package("hypervisor/vmm", &["hypervisor/arch"]) };
        assert_eq!(packages, [expected]);
        assert_eq!(read(&serde_json::json!({}), Path::new("/root")), None);
    }
}
