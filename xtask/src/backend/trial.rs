//! Trials: a backend is taken to work when the probe, a small kernel, was booted on it and turned virtualization on.
//!
//! Owns what is remembered of them, in the cache: what the probe itself said until the emulator, the probe, or what the host
//! says of itself, changes; any other failure for a day, as it may pass.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::facts::Extension;
use super::{Backend, Machine};
use crate::image::{self, Firmware};
use crate::machine::{self, Stop, Verdict};
use crate::setup::{fingerprint, rust};
use crate::{artifacts, paths, report};

/// A trial takes seconds; one that hangs has failed. Far more than it takes, so that a slow host fails nothing.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a failure is remembered that may pass.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The probe's machine. Unit: bytes.
const MEMORY: u64 = 128 << 20;
/// The probe's line where all is well, before the extension's name.
const USABLE: &str = "[lamina] usable: ";
/// The probe's line where it is not, before the reason.
const REFUSED: &str = "[lamina] error: ";

/// The sources that decide what the probe says, from the workspace's root. What else goes into it can at most keep it from
/// coming to a word, which is not remembered for good; so a change there costs nobody a trial.
macro_rules! deciding {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../../", $path)))),*]
    };
}
const DECIDING: &[(&str, &[u8])] = deciding![
    "hypervisor/probe/Cargo.toml",
    "hypervisor/probe/src/main.rs",
    "hypervisor/hw/src/vmx/enable.rs",
    "hypervisor/hw/src/svm/enable.rs",
    "hypervisor/arch/src/vmx/capabilities.rs",
    "hypervisor/arch/src/vmx/controls.rs",
    "hypervisor/arch/src/svm/features.rs",
];
/// What every line of the probe's starts with.
const PREFIX: &str = "[lamina] ";
/// How the first line of a bug's report goes on.
const BUGS: [&str; 3] = ["panicked at ", "panicked: ", "exception "];

/// How a trial ended: the extension that the machine has, or why Lamina cannot run there.
pub type Outcome = Result<Extension, String>;

/// How a trial ended, and so how long that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// The probe turned this on: holds until host, emulator or probe change.
    Usable(Extension),
    /// The probe said why it cannot: holds as long.
    Refused(String),
    /// The probe came to neither, and what was said instead. Holds for a [`DAY`]: another hypervisor may have had the
    /// processor's extension, memory may have been short, the emulator may have been killed.
    Failed(String),
}

impl End {
    /// For whoever chooses; `when` goes with what is remembered for a day only.
    fn outcome(self, when: Option<&str>) -> Outcome {
        match (self, when) {
            (End::Usable(extension), _) => Ok(extension),
            (End::Failed(words), Some(when)) => Err(format!("{words} ({when}; `cargo xtask doctor` tries anew)")),
            (End::Refused(words) | End::Failed(words), _) => Err(words),
        }
    }
}

/// Boots the probe on `backend`, unless a result for the same host, emulator and probe is remembered and `fresh` is false.
pub fn outcome(backend: &Backend, identity: &str, fresh: bool) -> Outcome {
    let name = backend.name();
    let key = key(identity, &program_identity(backend.program()), DECIDING);
    let file = paths::cache().ok().map(|cache| cache.join(format!("probe-{name}")));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    recall(file.as_deref(), &key, now, fresh, || {
        let once = if fresh { "" } else { ": needed once, until it, the probe or this host changes" };
        report::say(format_args!("trying {backend}{once}"));
        boot(backend)
    })
}

/// What `file` remembers, and else, or where it is to be `fresh`, what `boot` finds out; the file remembers that.
fn recall(
    file: Option<&Path>,
    key: &str,
    now: Duration,
    fresh: bool,
    boot: impl FnOnce() -> anyhow::Result<End>,
) -> Outcome {
    let known = || read(&fs::read_to_string(file?).ok()?, key, now);
    if !fresh && let Some(known) = known() {
        return known;
    }
    match boot() {
        Ok(end) => {
            if let Some(file) = file {
                // Not being able to remember costs the next run a trial, no more.
                drop(fs::write(file, write(&end, key, now)));
            }
            end.outcome((!fresh).then_some("remembered for a day"))
        }
        // There was no trial, so there is nothing to remember.
        Err(error) => Err(format!("{error:#}")),
    }
}

/// What a remembered result belongs to.
fn key(identity: &str, program: &str, probe: &[(&str, &[u8])]) -> String {
    let probe = probe.iter().flat_map(|(path, source)| [path.as_bytes(), source]);
    fingerprint(&[identity.as_bytes(), program.as_bytes()].into_iter().chain(probe).collect::<Vec<_>>())
}

/// Tells one build of a program from the next without starting it.
fn program_identity(program: &Path) -> String {
    let metadata = fs::metadata(program).ok();
    let changed = metadata.as_ref().and_then(|metadata| metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    format!("{} {:?} {:?}", program.display(), metadata.map(|metadata| metadata.len()), changed)
}

/// # Errors
/// It could not be tried: the probe does not build, or the emulator does not start.
fn boot(backend: &Backend) -> anyhow::Result<End> {
    rust::ensure_workspace()?;
    let kernel = artifacts::build("lamina-probe", "lamina-probe")?;
    let directory = tempfile::Builder::new().prefix("lamina-").tempdir()?;
    let (ramdisk, disk): (PathBuf, PathBuf) = (directory.path().join("ramdisk"), directory.path().join("disk"));
    fs::write(&ramdisk, [0])?;
    image::build(&kernel, &ramdisk, Firmware::Bios, &disk)?;
    let machine = Machine { image: disk, memory: MEMORY, directory: directory.path().to_owned(), ..Machine::default() };
    let mut machine = machine::Machine::start(backend, machine, directory, Some(LIMIT), None)?;
    let end = machine.wait_exit();
    Ok(judge(machine.transcript().lines(), end, &machine.emulators_words()))
}

/// What the probe's lines mean, and where it did not come to a word, the emulator's.
fn judge(lines: &[String], end: Result<Verdict, Stop>, emulator: &str) -> End {
    let after = |prefix: &str| lines.iter().find_map(|line| line.strip_prefix(prefix));
    if let Some(reason) = after(REFUSED) {
        return End::Refused(reason.to_owned());
    }
    if let Some(extension) = after(USABLE).and_then(extension)
        && end == Ok(Verdict::Exit(0))
    {
        return End::Usable(extension);
    }
    let mut ours = lines.iter().filter_map(|line| line.strip_prefix(PREFIX));
    let bug = ours.find(|line| BUGS.iter().any(|bug| line.starts_with(bug)));
    End::Failed(match (bug, end) {
        (Some(bug), _) => format!("a trial failed: {bug}"),
        (None, Err(Stop::Timeout)) => format!("a trial did not come to its end in {} s", LIMIT.as_secs()),
        (None, _) => {
            let last = emulator.lines().last().map_or("it said nothing", |line| line.trim_start_matches("emulator: "));
            format!("a trial failed: {last}")
        }
    })
}

fn extension(name: &str) -> Option<Extension> {
    [Extension::Vmx, Extension::Svm].into_iter().find(|extension| extension.name() == name)
}

/// The first line is the key, the second how it ended; a failure that may pass has the second since 1970 in which it was
/// seen.
fn write(end: &End, key: &str, now: Duration) -> String {
    let first = |words: &str| words.lines().next().unwrap_or_default().to_owned();
    match end {
        End::Usable(extension) => format!("{key}\nusable: {extension}\n"),
        End::Refused(words) => format!("{key}\nrefused: {}\n", first(words)),
        End::Failed(words) => format!("{key}\nfailed {}: {}\n", now.as_secs(), first(words)),
    }
}

/// What is remembered; `None` where that is of something else, too old, or not understood.
fn read(text: &str, key: &str, now: Duration) -> Option<Outcome> {
    let mut lines = text.lines();
    if lines.next()? != key {
        return None;
    }
    let line = lines.next()?;
    if let Some(name) = line.strip_prefix("usable: ") {
        return Some(End::Usable(extension(name)?).outcome(None));
    }
    if let Some(words) = line.strip_prefix("refused: ") {
        return Some(End::Refused(words.to_owned()).outcome(None));
    }
    let (seen, words) = line.strip_prefix("failed ")?.split_once(": ")?;
    // What lies in the future tells of a clock that was changed, and nothing of how old it is.
    let age = now.checked_sub(Duration::from_secs(seen.parse().ok()?)).filter(|age| *age < DAY)?;
    Some(End::Failed(words.to_owned()).outcome(Some(&ago(age))))
}

fn ago(age: Duration) -> String {
    match age.as_secs() / 60 {
        minutes @ 0..60 => format!("{minutes} min ago"),
        minutes => format!("{} h ago", minutes / 60),
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
        assert_eq!(judge(&lines("[lamina] usable: VMX\n[lamina] exit 0"), good, ""), End::Usable(Extension::Vmx));
        assert_eq!(judge(&lines("[lamina] usable: SVM\n[lamina] exit 0"), good, ""), End::Usable(Extension::Svm));
        let refused = lines("[lamina] error: this processor has neither VT-x nor AMD-V\n[lamina] exit 1");
        let reason = "this processor has neither VT-x nor AMD-V".to_owned();
        assert_eq!(judge(&refused, Ok(Verdict::Exit(1)), "emulator: x\n"), End::Refused(reason));
        // A bug of the probe's, as `lamina_hw::report` tells of it.
        let busy = "emulator: a warning\nemulator: failed to initialize kvm: Device or resource busy\n";
        for bug in [
            "panicked at hypervisor/hw/src/control.rs:34:5: the processor has no execute-disable bit",
            "panicked: no place",
            "exception 13 (#GP, general protection), error code 0x0, processor 0, VM 0",
        ] {
            let said = lines(&format!("[lamina] words\n[lamina] {bug}\n[lamina] backtrace:\n[lamina] exit 101"));
            let failed = End::Failed(format!("a trial failed: {bug}"));
            assert_eq!(judge(&said, Ok(Verdict::Exit(101)), busy), failed);
            assert_eq!(judge(&said[..2], Err(Stop::Timeout), ""), failed);
        }
        // It died in the middle, never started, or hangs.
        let last = End::Failed("a trial failed: failed to initialize kvm: Device or resource busy".to_owned());
        assert_eq!(judge(&lines("[lamina] usable: VMX"), Ok(Verdict::Missing), busy), last);
        assert_eq!(judge(&[], Ok(Verdict::Missing), busy), last);
        assert_eq!(judge(&[], Ok(Verdict::Missing), ""), End::Failed("a trial failed: it said nothing".to_owned()));
        let hangs = End::Failed("a trial did not come to its end in 120 s".to_owned());
        assert_eq!(judge(&[], Err(Stop::Timeout), busy), hangs);
    }

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    #[test]
    fn what_the_probe_said_is_remembered_for_one_key_and_for_good() {
        for (end, outcome) in [
            (End::Usable(Extension::Svm), Ok(Extension::Svm)),
            (End::Usable(Extension::Vmx), Ok(Extension::Vmx)),
            (End::Refused("no EPT\nand more".to_owned()), Err("no EPT".to_owned())),
        ] {
            let text = write(&end, "key-1", NOW);
            assert_eq!(read(&text, "key-1", NOW + 1000 * DAY), Some(outcome));
            assert_eq!(read(&text, "key-2", NOW), None);
        }
    }

    #[test]
    fn what_may_pass_is_remembered_for_a_day_and_says_how_to_try_anew() {
        let end = End::Failed("a trial failed: busy\nand more".to_owned());
        let text = write(&end, "key-1", NOW);
        for (age, when) in [(30, "0 min ago"), (59 * 60, "59 min ago"), (60 * 60, "1 h ago"), (86399, "23 h ago")] {
            let words = format!("a trial failed: busy ({when}; `cargo xtask doctor` tries anew)");
            assert_eq!(read(&text, "key-1", NOW + Duration::from_secs(age)), Some(Err(words)));
        }
        assert_eq!(read(&text, "key-2", NOW), None);
        assert_eq!(read(&text, "key-1", NOW + DAY), None, "a day later");
        assert_eq!(read(&text, "key-1", NOW - Duration::from_secs(1)), None, "before it was seen");
    }

    #[test]
    fn a_trial_is_made_where_nothing_is_remembered_or_it_is_to_be_fresh() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("probe");
        let failed = || Ok(End::Failed("busy".to_owned()));
        let ask = |now, fresh, boot: &dyn Fn() -> anyhow::Result<End>| recall(Some(&file), "key", now, fresh, boot);
        let no_trial = || -> anyhow::Result<End> { panic!("a trial") };

        let error = ask(NOW, false, &|| anyhow::bail!("does not build")).unwrap_err();
        assert!(error == "does not build" && !file.exists(), "{error}");
        let error = ask(NOW, false, &failed).unwrap_err();
        assert_eq!(error, "busy (remembered for a day; `cargo xtask doctor` tries anew)");
        let error = ask(NOW, false, &no_trial).unwrap_err();
        assert_eq!(error, "busy (0 min ago; `cargo xtask doctor` tries anew)");
        assert_eq!(ask(NOW, true, &failed).unwrap_err(), "busy");
        assert_eq!(ask(NOW + DAY, false, &|| Ok(End::Usable(Extension::Vmx))), Ok(Extension::Vmx));
        assert_eq!(ask(NOW + 1000 * DAY, false, &no_trial), Ok(Extension::Vmx));
        // What is no text at all.
        fs::write(&file, [0xff]).unwrap();
        assert_eq!(ask(NOW, false, &failed).unwrap_err().split(' ').next(), Some("busy"));
    }

    #[test]
    fn what_is_not_understood_is_not_remembered() {
        for rest in ["", "\n", "\nusable: TDX\n", "\nmaybe\n", "\nfailed: x\n", "\nfailed soon: x\n", "\nfailed 1\n"] {
            assert_eq!(read(&format!("key-1{rest}"), "key-1", NOW), None, "{rest:?}");
        }
        assert_eq!(read("", "key-1", NOW), None);
        // As an earlier version wrote every failure, whoever's words it was.
        assert_eq!(read("key-1\nnot: a trial failed: busy\n", "key-1", NOW), None);
    }

    #[test]
    fn another_host_emulator_or_probe_is_another_key() {
        let known = key("host", "program", DECIDING);
        assert_eq!(key("host", "program", DECIDING), known);
        assert_ne!(key("host'", "program", DECIDING), known);
        assert_ne!(key("host", "program'", DECIDING), known);
        for changed in 0..DECIDING.len() {
            let mut probe = DECIDING.to_vec();
            probe[changed].1 = b"another";
            assert_ne!(key("host", "program", &probe), known, "{}", probe[changed].0);
        }
    }

    #[test]
    fn the_whole_of_the_probe_counts() {
        for entry in fs::read_dir(paths::workspace().join("hypervisor/probe/src")).unwrap() {
            let path = format!("hypervisor/probe/src/{}", entry.unwrap().file_name().display());
            assert!(DECIDING.iter().any(|(known, _)| *known == path), "{path} does not count");
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
