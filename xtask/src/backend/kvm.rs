//! QEMU with KVM: Lamina runs on the processor's own VMX, nested in the host's.
//!
//! Owns QEMU's command line, and the trial that shows whether this host can do it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use super::{Machine, log};
use crate::paths::{self, find_program};
use crate::setup::apt;

/// QEMU's program for this architecture.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";
/// How long the result of a trial is believed. Unit: seconds.
const BELIEVED: u64 = 600;
/// A trial takes a fraction of a second; one that hangs has failed.
const TRIAL_LIMIT: Duration = Duration::from_secs(15);

/// A QEMU whose KVM works, nested.
#[derive(Clone, Debug)]
pub struct Kvm {
    /// The program.
    pub program: PathBuf,
}

impl Kvm {
    /// The command that runs a machine.
    pub fn command(&self, machine: &Machine) -> Command {
        let mut command = base(&self.program, "kvm", "host");
        add_machine(&mut command, machine);
        command
    }
}

/// What there is of a machine on any of QEMU's accelerators.
pub(super) fn add_machine(command: &mut Command, machine: &Machine) {
    let Machine { image, cpus, memory, serial, directory, .. } = machine;
    command
        .args(["-m", &format!("{}M", memory >> 20)])
        .args(["-smp", &cpus.to_string()])
        .args(["-drive", &format!("format=raw,if=ide,file={}", comma_doubled(image))])
        .args(["-vga", "std"])
        .args(["-chardev", &format!("socket,id=com1,host=127.0.0.1,port={serial}")])
        .args(["-serial", "chardev:com1"])
        .arg("-D")
        .arg(log(directory))
        .current_dir(directory);
}

/// What a run and the trial share.
pub(super) fn base(program: &Path, accelerator: &str, processor: &str) -> Command {
    let mut command = match find_program("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-machine", "pc", "-accel", accelerator, "-cpu", processor])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    command
}

/// In QEMU's options, a comma in a value is written twice.
fn comma_doubled(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Finds out whether Lamina can run on this host's KVM, in the end by trying.
///
/// # Errors
/// Why it cannot, for one line.
pub fn probe() -> Result<Kvm, String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").map_err(|error| format!("/proc/cpuinfo: {error}"))?;
    let nested = fs::read_to_string("/sys/module/kvm_intel/parameters/nested");
    judge_host(&cpuinfo, nested.ok().as_deref())?;
    let open = fs::File::options().read(true).write(true).open("/dev/kvm");
    open.map_err(|error| format!("/dev/kvm: {error}"))?;
    if find_program(PROGRAM).is_none() {
        let packages = ["qemu-system-x86"];
        apt::install(&packages, "this host may have nested virtualization").map_err(|error| format!("{error:#}"))?;
    }
    let program = find_program(PROGRAM).ok_or_else(|| format!("no {PROGRAM}"))?;
    remembered(|| try_it(&program))?;
    Ok(Kvm { program })
}

/// What the host says of itself; whether that is true, only a trial shows.
fn judge_host(cpuinfo: &str, nested: Option<&str>) -> Result<(), String> {
    let has = |flag: &str| {
        cpuinfo.lines().filter(|line| line.starts_with("flags")).any(|line| line.split_whitespace().any(|f| f == flag))
    };
    if has("svm") {
        return Err("this processor has SVM, and Lamina's SVM backend is not there yet".to_owned());
    }
    if !has("vmx") {
        return Err("this processor offers no VMX".to_owned());
    }
    match nested.map(str::trim) {
        Some("Y" | "1") => Ok(()),
        Some(_) => Err("nested virtualization is switched off (parameter `nested` of kvm_intel)".to_owned()),
        None => Err("the module kvm_intel is not loaded".to_owned()),
    }
}

/// A boot sector that looks for VMX (CPUID leaf 1, ECX bit 5) and ends QEMU with what it finds.
const TRIAL: &[u8] = &[
    0x66, 0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
    0x0f, 0xa2, // cpuid
    0x66, 0xc1, 0xe9, 0x05, // shr ecx, 5
    0x88, 0xc8, // mov al, cl
    0x24, 0x01, // and al, 1
    0x04, 0x10, // add al, 0x10
    0xe6, 0xf4, // out 0xf4, al
    0xf4, // hlt
];
/// QEMU's status for the value V at port 0xf4 is 2 V + 1.
const TRIAL_HAS_VMX: i32 = 0x11 * 2 + 1;
const TRIAL_HAS_NONE: i32 = 0x10 * 2 + 1;

fn try_it(program: &Path) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("the trial could not be made: {error}");
    let directory = tempfile::tempdir().map_err(|error| failed(&error))?;
    let image = directory.path().join("trial");
    let mut sector = TRIAL.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    fs::write(&image, sector).map_err(|error| failed(&error))?;
    let words = directory.path().join("words");
    let output = fs::File::create(&words).map_err(|error| failed(&error))?;
    let mut child = base(program, "kvm", "host")
        .args(["-m", "16M", "-drive", &format!("format=raw,if=ide,file={}", comma_doubled(&image))])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        .spawn()
        .map_err(|error| failed(&error))?;
    let started = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if started.elapsed() < TRIAL_LIMIT => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                drop(child.kill());
                drop(child.wait());
                return Err("a trial guest did not come to its end".to_owned());
            }
            Err(error) => return Err(failed(&error)),
        }
    };
    match status.code() {
        Some(TRIAL_HAS_VMX) => Ok(()),
        Some(TRIAL_HAS_NONE) => Err("a trial guest was not given VMX".to_owned()),
        _ => {
            let words = fs::read_to_string(&words).unwrap_or_default();
            let line = words.lines().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            Err(format!("QEMU with KVM failed ({status}): {line}"))
        }
    }
}

/// Believes the result of a trial for a while, within one boot of the host.
fn remembered(trial: impl Fn() -> Result<(), String>) -> Result<(), String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let Ok(cache) = paths::cache() else { return trial() };
    let path = cache.join("kvm-trial");
    let fresh = fs::metadata(&path)
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age.as_secs() < BELIEVED));
    if fresh && let Some(result) = fs::read_to_string(&path).ok().and_then(|text| read_result(&text, boot.trim())) {
        return result;
    }
    let result = trial();
    let words = result.as_ref().err().map_or("", String::as_str);
    // Not being able to remember costs the next run a trial, no more.
    drop(fs::write(&path, format!("{}\n{words}", boot.trim())));
    result
}

/// The first line is the host's boot, what follows the reason against; none means that it works.
fn read_result(text: &str, boot: &str) -> Option<Result<(), String>> {
    let (of, reason) = text.split_once('\n')?;
    if of != boot || boot.is_empty() {
        return None;
    }
    Some(if reason.is_empty() { Ok(()) } else { Err(reason.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_judged_by_what_they_say() {
        let intel = "processor : 0\nflags : fpu vmx sse\n";
        assert_eq!(judge_host(intel, Some("Y\n")), Ok(()));
        assert_eq!(judge_host(intel, Some("1\n")), Ok(()));
        assert!(judge_host(intel, Some("N\n")).unwrap_err().contains("switched off"));
        assert!(judge_host(intel, None).unwrap_err().contains("not loaded"));
        assert!(judge_host("flags : fpu svm\n", Some("1")).unwrap_err().contains("SVM"));
        assert!(judge_host("flags : fpu\nvmx flags : x\n", Some("Y")).unwrap_err().contains("no VMX"));
        assert!(judge_host("", None).is_err());
    }

    #[test]
    fn a_result_is_believed_within_one_boot() {
        assert_eq!(read_result("boot-1\n", "boot-1"), Some(Ok(())));
        assert_eq!(read_result("boot-1\nwhy not", "boot-1"), Some(Err("why not".to_owned())));
        assert_eq!(read_result("boot-1\n", "boot-2"), None);
        assert_eq!(read_result("\n", ""), None);
        assert_eq!(read_result("", "boot-1"), None);
    }

    #[test]
    fn the_command_line_has_the_machine() {
        let machine = Machine {
            image: "/a,b".into(),
            cpus: 3,
            memory: 512 << 20,
            serial: 99,
            interactive: false,
            directory: "/d".into(),
        };
        let command = Kvm { program: "qemu".into() }.command(&machine);
        let line = command.get_args().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join(" ");
        for part in ["-accel kvm -cpu host", "-m 512M", "-smp 3", "file=/a,,b", "port=99", "isa-debug-exit"] {
            assert!(line.contains(part), "{part} is not in: {line}");
        }
    }
}
