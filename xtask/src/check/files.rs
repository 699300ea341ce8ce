//! What every committed file must keep to.

use anyhow::Result;
use regex::Regex;

use super::Finding;
use super::scan::{self, File};
use crate::paths;

/// A source is read in one sitting. Unit: lines.
const LONGEST: usize = 600;
/// The hosts that committed files may name; where something is fetched from, the system says when it is needed. The last
/// ones are of tests.
const HOSTS: &[&str] =
    &["github.com", "www.apache.org", "www.w3.org", "rustup.rs", "doc.rust-lang.org", "a", "host", "other", "x"];

pub fn length() -> Result<Finding> {
    let mut problems = Vec::new();
    for file in scan::files()?.iter().filter(|file| file.path.ends_with(".rs")) {
        let lines = file.text.lines().count();
        if lines > LONGEST {
            problems.push(format!("{}: {lines} lines; {LONGEST} at most", file.path));
        }
    }
    Ok(Finding::of(&problems))
}

pub fn neutral() -> Result<Finding> {
    let mut own = vec![paths::workspace().display().to_string()];
    own.extend(std::env::home_dir().map(|home| home.join(".").display().to_string().trim_end_matches('.').to_owned()));
    let files = scan::files()?;
    Ok(Finding::of(&[addresses(&files)?, places(&files, &own)?].concat()))
}

/// Addresses of hosts that are not known.
fn addresses(files: &[File]) -> Result<Vec<String>> {
    let address = Regex::new(r"\b(?:https?|ftp|sparse\+https?)://([A-Za-z0-9.-]+)")?;
    let found = |line: &str| {
        let mut hosts = address.captures_iter(line).filter_map(|groups| Some(groups.get(1)?.as_str().to_owned()));
        hosts.find(|host| !HOSTS.contains(&host.trim_end_matches('.')))
    };
    Ok(each_line(files, |line| found(line).map(|host| format!("no address at {host}"))))
}

/// Paths of this machine, or of anybody's home.
fn places(files: &[File], own: &[String]) -> Result<Vec<String>> {
    let home = Regex::new(r"(?:/home|/Users)/[a-z][a-z0-9._-]*/")?;
    // Where everything belongs to root, its home says nothing of a machine.
    let own: Vec<_> = own.iter().filter(|path| path.len() > 1 && path.as_str() != "/root/").collect();
    Ok(each_line(files, |line| {
        let here = own.iter().find(|path| line.contains(path.as_str())).map(|path| path.as_str());
        let path = here.or_else(|| home.find(line).map(|found| found.as_str()))?;
        Some(format!("no path of a machine: {path}"))
    }))
}

fn each_line(files: &[File], problem: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let lines = files.iter().flat_map(|file| file.text.lines().enumerate().map(move |line| (file, line)));
    let told = |(file, (number, line)): (&File, (usize, &str))| {
        Some(format!("{}:{}: {}", file.path, number + 1, problem(line)?))
    };
    lines.filter_map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> [File; 1] {
        [File { path: "f".to_owned(), text: text.to_owned() }]
    }

    #[test]
    fn unknown_addresses_are_found() {
        let text = concat!("see https://github.com/x\nfrom http:/", "/registry.invalid/index\n");
        assert_eq!(addresses(&file(text)).unwrap(), ["f:2: no address at registry.invalid"]);
    }

    #[test]
    fn paths_of_machines_are_found() {
        let own = ["/srv/checkout".to_owned(), "/root/".to_owned()];
        let text = concat!("cd /root/x\n/srv/checkout/y\n/ho", "me/somebody/z\n/home and /Users\n");
        assert_eq!(
            places(&file(text), &own).unwrap(),
            ["f:2: no path of a machine: /srv/checkout", concat!("f:3: no path of a machine: /ho", "me/somebody/")]
        );
    }
}
