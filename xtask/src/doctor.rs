//! `cargo xtask doctor`: what this host offers to boot on, and what the user can do for something faster.
//!
//! Tries everything anew. Installs and builds no emulator; to try one that is there it needs the probe's image, and gets what
//! that takes (the Rust target, the image builder and its compiler, Bochs' firmware) where it is not there.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;

use crate::backend::facts::{Device, Facts, Reason};
use crate::backend::{Found, Host, Name, Probe};

/// Every backend, in the order in which they are told.
const ALL: [Name; 4] = [Name::Kvm, Name::Bochs, Name::Tcg, Name::BochsSvm];

/// Looks, tries, and tells.
///
/// # Errors
/// Standard output is closed.
pub fn command() -> Result<ExitCode> {
    let facts = Facts::of_this_host();
    let host = Host { install: false, fresh: true };
    let results: Vec<_> = ALL.iter().map(|&name| (name, host.find(name))).collect();
    let mut out = std::io::stdout().lock();
    for line in report(&facts, &results) {
        writeln!(out, "{line}")?;
    }
    let works = results.iter().any(|(_, result)| result.is_ok());
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The report, a line each.
fn report(facts: &Facts, results: &[(Name, Result<Found, Reason>)]) -> Vec<String> {
    let mut lines = vec![format!("processor: {}", processor(facts)), format!("/dev/kvm: {}", device(facts))];
    for (name, result) in results {
        match result {
            Ok(Found { backend, extension }) => {
                lines.push(format!("{name}: works, with {extension} ({})", backend.program().display()));
            }
            Err(reason) => {
                lines.push(format!("{name}: {reason}"));
                lines.extend(advice(*name, reason).map(|advice| format!("    to change that: {advice}")));
            }
        }
    }
    lines.push(chosen(results));
    lines
}

/// What `cargo xtask run` takes by itself: of the emulators that are there, and, as it gets one that is missing, what that
/// changes. Scripts rely on how the line begins.
fn chosen(results: &[(Name, Result<Found, Reason>)]) -> String {
    let (mut works, mut first) = (None, None);
    for name in Name::TRIED {
        match results.iter().find(|(other, _)| *other == name).map(|(_, result)| result) {
            Some(Ok(_)) => {
                works = Some(name);
                break;
            }
            Some(Err(Reason::NotYet { how, .. })) if first.is_none() => first = Some((name, how)),
            _ => {}
        }
    }
    match (works, first) {
        (Some(name), Some((other, how))) => {
            format!("chosen: {name} as things are; `cargo xtask run` {how} first and takes {other} if that works")
        }
        (Some(Name::Kvm), None) => "chosen: kvm, the fastest there is".to_owned(),
        (Some(name), None) => format!("chosen: {name}; kvm would be faster by far"),
        (None, Some((other, how))) => {
            format!("chosen: nothing works yet; `cargo xtask run` {how} first and takes {other} if that works")
        }
        (None, None) => "chosen: nothing that `cargo xtask run` takes by itself works here".to_owned(),
    }
}

fn processor(facts: &Facts) -> String {
    let inside = if facts.inside { ", and it is that of a virtual machine" } else { "" };
    match facts.extension {
        Some(extension) => format!("it shows {extension}{inside}"),
        None => format!("it shows neither VMX (VT-x) nor SVM (AMD-V){inside}"),
    }
}

fn device(facts: &Facts) -> String {
    match &facts.device {
        Device::Opens => "it opens, which alone proves nothing".to_owned(),
        Device::Missing => "there is none, or nothing behind it".to_owned(),
        Device::Denied => "this user may not open it".to_owned(),
        Device::Withheld => "nobody may open it, root included".to_owned(),
        Device::Fails(words) => format!("it does not open: {words}"),
    }
}

/// What the user can do.
fn advice(name: Name, reason: &Reason) -> Option<String> {
    reason.advice().or_else(|| match reason {
        Reason::NotYet { how, .. } => Some(format!("`cargo xtask run --on {name}` {how}, where it can")),
        Reason::Trial(_) if name == Name::Kvm => Some(
            "update this host's Linux and QEMU, or look for nesting in the settings of what this host runs on"
                .to_owned(),
        ),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::backend::facts::Extension;
    use crate::backend::qemu::{Accelerator, Qemu};

    fn works(accelerator: Accelerator) -> Result<Found, Reason> {
        let backend = Backend::Qemu(Qemu { program: "/usr/bin/qemu".into(), accelerator });
        Ok(Found { backend, extension: Extension::Svm })
    }

    fn not_yet(what: &str, how: &'static str) -> Result<Found, Reason> {
        Err(Reason::NotYet { what: what.to_owned(), how })
    }

    #[test]
    fn a_host_without_virtualization_is_told_why_and_what_is_chosen() {
        let facts = Facts { inside: true, device: Device::Opens, ..Facts::default() };
        let results = [
            (Name::Kvm, Err(Reason::NoExtension { inside: true })),
            (Name::Bochs, not_yet("Bochs is not built yet", "builds Bochs")),
            (Name::Tcg, works(Accelerator::Tcg)),
        ];
        let text = report(&facts, &results).join("\n");
        for part in [
            "processor: it shows neither VMX (VT-x) nor SVM (AMD-V), and it is that of a virtual machine",
            "/dev/kvm: it opens, which alone proves nothing",
            "kvm: this host is a virtual machine to which neither VMX nor SVM is passed on\n    to change that: have nested",
            "bochs: Bochs is not built yet\n    to change that: `cargo xtask run --on bochs` builds Bochs, where it can",
            "tcg: works, with SVM (/usr/bin/qemu)",
            "\nchosen: tcg as things are; `cargo xtask run` builds Bochs first and takes bochs if that works",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }

    #[test]
    fn what_run_takes_is_chosen_and_what_it_gets_before_that_is_told() {
        let none = || Err(Reason::NoExtension { inside: false });
        let built = || {
            let bochs = crate::backend::bochs::tests::any(Extension::Vmx);
            Ok(Found { backend: Backend::Bochs(bochs), extension: Extension::Vmx })
        };
        let no_qemu = || not_yet("QEMU is not installed", "installs QEMU");
        let no_bochs = || not_yet("Bochs is not built yet", "builds Bochs");
        // With `LAMINA_BOCHS` naming what is not there, `run` builds nothing.
        let wrong = || Err(Reason::Absent("LAMINA_BOCHS=/x: no such file".into()));
        for (kvm, bochs, tcg, line) in [
            (works(Accelerator::Kvm), no_bochs(), works(Accelerator::Tcg), "kvm, the fastest there is"),
            (none(), built(), works(Accelerator::Tcg), "bochs; kvm would be faster by far"),
            (none(), built(), no_qemu(), "bochs; kvm would be faster by far"),
            (none(), wrong(), works(Accelerator::Tcg), "tcg; kvm would be faster by far"),
            (
                no_qemu(),
                built(),
                no_qemu(),
                "bochs as things are; `cargo xtask run` installs QEMU first and takes kvm if that works",
            ),
            (
                none(),
                no_bochs(),
                no_qemu(),
                "nothing works yet; `cargo xtask run` builds Bochs first and takes bochs if that works",
            ),
            (
                no_qemu(),
                no_bochs(),
                no_qemu(),
                "nothing works yet; `cargo xtask run` installs QEMU first and takes kvm if that works",
            ),
            (none(), wrong(), wrong(), "nothing that `cargo xtask run` takes by itself works here"),
        ] {
            let results = [(Name::Kvm, kvm), (Name::Bochs, bochs), (Name::Tcg, tcg)];
            assert_eq!(chosen(&results), format!("chosen: {line}"), "{results:?}");
        }
    }

    #[test]
    fn the_best_host_has_nothing_to_change() {
        let facts = Facts { extension: Some(Extension::Svm), device: Device::Opens, ..Facts::default() };
        let text = report(&facts, &[(Name::Kvm, works(Accelerator::Kvm))]).join("\n");
        assert!(
            text.contains("processor: it shows SVM") && text.ends_with("chosen: kvm, the fastest there is"),
            "{text}"
        );
        assert!(!text.contains("to change that"), "{text}");
    }

    #[test]
    fn a_trial_that_fails_says_what_it_said() {
        let results = [(Name::Kvm, Err(Reason::Trial("failed to set MSR 0x10a".into())))];
        let text = report(&Facts::default(), &results).join("\n");
        assert!(text.contains("kvm: failed to set MSR 0x10a\n    to change that: update"), "{text}");
        assert!(text.contains("chosen: nothing that"), "{text}");
    }
}
