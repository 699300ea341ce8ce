//! Trials: a backend is taken to work when the probe, a small kernel, was booted on it and turned virtualization on.
//!
//! Owns what is remembered of them: in the cache, until the emulator, or what the host says of itself, changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use super::facts::Extension;
use super::{Backend, Machine};
use crate::image::{self, Firmware};
use crate::machine::{self, Stop, Verdict};
use crate::setup::{fingerprint, rust};
use crate::{artifacts, paths, report};

/// A trial takes seconds; one that hangs has failed. Far more than it takes, so that a slow host fails nothing.
const LIMIT: Duration = Duration::from_secs(120);
/// The probe's machine. Unit: bytes.
const MEMORY: u64 = 128 << 20;
/// The probe's line where all is well, before the extension's name.
const USABLE: &str = "[lamina] usable: ";
/// The probe's line where it is not, before the reason.
const REFUSED: &str = "[lamina] error: ";

/// How a trial ended: the extension that the machine has, or why Lamina cannot run there.
pub type Outcome = Result<Extension, String>;

/// Boots the probe on `backend`, unless a result for the same host and emulator is remembered and `fresh` is false.
pub fn outcome(backend: &Backend, identity: &str, fresh: bool) -> Outcome {
    let name = backend.name();
    let program = backend.program();
    let key =
        fingerprint(&[identity.as_bytes(), program_identity(program).as_bytes(), env!("CARGO_PKG_VERSION").as_bytes()]);
    let file = paths::cache().ok().map(|cache| cache.join(format!("probe-{name}")));
    if !fresh && let Some(known) = file.as_ref().and_then(|file| read(&fs::read_to_string(file).ok()?, &key)) {
        return known;
    }
    let once = if fresh { "" } else { ": needed once, until it or this host changes" };
    report::say(format_args!("trying {backend}{once}"));
    match boot(backend) {
        Ok(outcome) => {
            if let Some(file) = file {
                // Not being able to remember costs the next run a trial, no more.
                drop(fs::write(file, write(&outcome, &key)));
            }
            outcome
        }
        // Nothing that is worth remembering.
        Err(error) => Err(format!("{error:#}")),
    }
}

/// Tells one build of a program from the next without starting it.
fn program_identity(program: &Path) -> String {
    let metadata = fs::metadata(program).ok();
    let changed = metadata.as_ref().and_then(|metadata| metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    format!("{} {:?} {:?}", program.display(), metadata.map(|metadata| metadata.len()), changed)
}

fn boot(backend: &Backend) -> anyhow::Result<Outcome> {
    rust::ensure_workspace()?;
    let kernel = artifacts::build("lamina-probe", "lamina-probe")?;
    let directory = tempfile::Builder::new().prefix("lamina-").tempdir()?;
    let (ramdisk, disk): (PathBuf, PathBuf) = (directory.path().join("ramdisk"), directory.path().join("disk"));
    fs::write(&ramdisk, [0])?;
    image::build(&kernel, &ramdisk, Firmware::Bios, &disk)?;
    let machine = Machine { image: disk, memory: MEMORY, directory: directory.path().to_owned(), ..Machine::default() };
    let mut machine = machine::Machine::start(backend, machine, directory, Some(LIMIT), None)?;
    let end = machine.wait_exit();
    match judge(machine.transcript().lines(), end) {
        Some(outcome) => Ok(outcome),
        None if end == Err(Stop::Timeout) => anyhow::bail!("a trial did not come to its end in {} s", LIMIT.as_secs()),
        None => {
            let words = machine.emulators_words();
            let last = words.lines().last().map_or("it said nothing", |line| line.trim_start_matches("emulator: "));
            Ok(Err(format!("a trial failed: {last}")))
        }
    }
}

/// What the probe's lines mean; `None` where it did not come to a word.
fn judge(lines: &[String], end: Result<Verdict, Stop>) -> Option<Outcome> {
    let after = |prefix: &str| lines.iter().find_map(|line| line.strip_prefix(prefix));
    if let Some(reason) = after(REFUSED) {
        return Some(Err(reason.to_owned()));
    }
    let extension = extension(after(USABLE)?)?;
    (end == Ok(Verdict::Exit(0))).then_some(Ok(extension))
}

fn extension(name: &str) -> Option<Extension> {
    [Extension::Vmx, Extension::Svm].into_iter().find(|extension| extension.name() == name)
}

/// The first line is the key, the second how it ended.
fn write(outcome: &Outcome, key: &str) -> String {
    match outcome {
        Ok(extension) => format!("{key}\nusable: {extension}\n"),
        Err(reason) => format!("{key}\nnot: {}\n", reason.lines().next().unwrap_or_default()),
    }
}

fn read(text: &str, key: &str) -> Option<Outcome> {
    let mut lines = text.lines();
    if lines.next()? != key {
        return None;
    }
    let line = lines.next()?;
    match line.strip_prefix("usable: ") {
        Some(name) => extension(name).map(Ok),
        None => line.strip_prefix("not: ").map(|reason| Err(reason.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_probes_words_decide() {
        let good = Ok(Verdict::Exit(0));
        assert_eq!(judge(&lines("[lamina] usable: VMX\n[lamina] exit 0"), good), Some(Ok(Extension::Vmx)));
        assert_eq!(judge(&lines("[lamina] usable: SVM\n[lamina] exit 0"), good), Some(Ok(Extension::Svm)));
        let refused = lines("[lamina] error: this processor has neither VT-x nor AMD-V\n[lamina] exit 1");
        let reason = Err("this processor has neither VT-x nor AMD-V".to_owned());
        assert_eq!(judge(&refused, Ok(Verdict::Exit(1))), Some(reason));
        // It died in the middle, or never started.
        assert_eq!(judge(&lines("[lamina] usable: VMX"), Ok(Verdict::Missing)), None);
        assert_eq!(judge(&[], Ok(Verdict::Missing)), None);
        assert_eq!(judge(&[], Err(Stop::Timeout)), None);
    }

    #[test]
    fn what_is_remembered_holds_for_one_key() {
        for outcome in [Ok(Extension::Svm), Ok(Extension::Vmx), Err("QEMU: no".to_owned())] {
            let text = write(&outcome, "key-1");
            assert_eq!(read(&text, "key-1"), Some(outcome));
            assert_eq!(read(&text, "key-2"), None);
        }
        for text in ["", "key-1", "key-1\n", "key-1\nusable: TDX\n", "key-1\nmaybe\n"] {
            assert_eq!(read(text, "key-1"), None, "{text:?}");
        }
    }

    #[test]
    fn another_build_of_a_program_is_another_program() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let before = program_identity(file.path());
        fs::write(file.path(), "longer").unwrap();
        assert_ne!(before, program_identity(file.path()));
    }
}
