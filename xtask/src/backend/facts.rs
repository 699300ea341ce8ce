//! What the host says of its virtualization, and what follows for KVM. Whether that is true, only a trial shows.
//!
//! Owns the reasons against a backend and what the user can do about each.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Where Linux tells of its modules.
const MODULES: &str = "/sys/module";

/// The processor's virtualization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Intel's VT-x.
    Vmx,
    /// AMD's AMD-V.
    Svm,
}

impl Extension {
    /// The name as the probe says it.
    pub const fn name(self) -> &'static str {
        match self {
            Extension::Vmx => "VMX",
            Extension::Svm => "SVM",
        }
    }

    /// The module of Linux' KVM for it.
    pub const fn module(self) -> &'static str {
        match self {
            Extension::Vmx => "kvm_intel",
            Extension::Svm => "kvm_amd",
        }
    }
}

impl fmt::Display for Extension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What opening `/dev/kvm` gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// It opens, which proves nothing.
    Opens,
    /// There is none, or a node with no module behind it.
    #[default]
    Missing,
    /// This user may not.
    Denied,
    /// Nobody may, root included: it is not passed on to this container.
    Withheld,
    /// Something else, in the system's words.
    Fails(String),
}

/// What the host says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The extension that `/proc/cpuinfo` shows.
    pub extension: Option<Extension>,
    /// The host is a virtual machine itself.
    pub inside: bool,
    /// The parameter `nested` of KVM's module for the extension; `None` where it cannot be seen.
    pub nested: Option<String>,
    /// `/dev/kvm`.
    pub device: Device,
    /// What of the host a remembered trial depends on, in any form: its kernel, its modules, its processor.
    pub identity: String,
}

/// Why a backend cannot be used. Its display is part of one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The processor shows neither VMX nor SVM.
    NoExtension {
        /// To a host that is a virtual machine itself.
        inside: bool,
    },
    /// KVM's module is not there.
    NoModule(Extension),
    /// KVM's module does not let guests have it.
    NestingOff(Extension),
    /// There is no `/dev/kvm`, though its module is there.
    NoDevice,
    /// This user may not open `/dev/kvm`.
    Denied,
    /// Nobody may open `/dev/kvm` in this container.
    Withheld,
    /// `/dev/kvm` does not open, in the system's words.
    DeviceFails(String),
    /// The emulator is not there, but would be if it might be installed or built now.
    NotYet {
        /// What is not there.
        what: String,
        /// What a command does that may: follows its name.
        how: &'static str,
    },
    /// The emulator cannot be had, and why.
    Absent(String),
    /// A trial failed: what was said.
    Trial(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NoExtension { inside: false } => write!(f, "this processor offers neither VMX nor SVM"),
            Reason::NoExtension { inside: true } => {
                write!(f, "this host is a virtual machine to which neither VMX nor SVM is passed on")
            }
            Reason::NoModule(extension) => write!(f, "the module {} is not loaded", extension.module()),
            Reason::NestingOff(extension) => {
                write!(f, "nested virtualization is switched off (parameter `nested` of {})", extension.module())
            }
            Reason::NoDevice => write!(f, "there is no /dev/kvm"),
            Reason::Denied => write!(f, "this user may not open /dev/kvm"),
            Reason::Withheld => write!(f, "nobody may open /dev/kvm here, root included"),
            Reason::DeviceFails(words) => write!(f, "/dev/kvm does not open: {words}"),
            Reason::NotYet { what: words, .. } | Reason::Absent(words) | Reason::Trial(words) => f.write_str(words),
        }
    }
}

impl Reason {
    /// What the user can do about it; `None` where nothing is known.
    pub fn advice(&self) -> Option<String> {
        Some(match self {
            Reason::NoExtension { inside: false } => {
                "switch virtualization on in the firmware's set-up (Intel: \"Virtualization Technology\" or \"VT-x\"; AMD: \
                 \"SVM Mode\"), if this processor has it"
                    .to_owned()
            }
            Reason::NoExtension { inside: true } => {
                "have nested virtualization switched on for this virtual machine by whoever runs it".to_owned()
            }
            // Linux 6.1, for one, shows the SVM that the firmware switched off (VM_CR.SVMDIS); later ones do not.
            Reason::NoModule(extension) => format!(
                "load it: sudo modprobe {} nested=1; where that is refused, switch virtualization on in the firmware's set-up",
                extension.module()
            ),
            Reason::NestingOff(extension) => {
                let module = extension.module();
                format!(
                    "switch it on while no virtual machine runs: sudo modprobe -r {module} && sudo modprobe {module} \
                     nested=1; for good: echo options {module} nested=1 | sudo tee /etc/modprobe.d/{module}.conf"
                )
            }
            Reason::NoDevice => "in a container: have /dev/kvm passed on to it".to_owned(),
            Reason::Denied => "join the group kvm and log in again: sudo usermod -aG kvm $USER".to_owned(),
            Reason::Withheld => {
                "have /dev/kvm passed on to this container (docker and podman: --device /dev/kvm)".to_owned()
            }
            Reason::DeviceFails(_) | Reason::NotYet { .. } | Reason::Absent(_) | Reason::Trial(_) => return None,
        })
    }
}

/// Whether a trial of KVM is worthwhile.
///
/// # Errors
/// Why it is not.
pub fn judge(facts: &Facts) -> Result<Extension, Reason> {
    let extension = facts.extension.ok_or(Reason::NoExtension { inside: facts.inside })?;
    match (&facts.device, facts.nested.as_deref().map(str::trim)) {
        (Device::Denied, _) => Err(Reason::Denied),
        (Device::Withheld, _) => Err(Reason::Withheld),
        (Device::Fails(words), _) => Err(Reason::DeviceFails(words.clone())),
        (Device::Missing, None) => Err(Reason::NoModule(extension)),
        (Device::Missing, Some(_)) => Err(Reason::NoDevice),
        // A container may not show the modules' parameters.
        (Device::Opens, None | Some("Y" | "1")) => Ok(extension),
        (Device::Opens, Some(_)) => Err(Reason::NestingOff(extension)),
    }
}

impl Facts {
    /// Those of this host.
    pub fn of_this_host() -> Facts {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let mut facts = Facts { device: open_device(), ..Facts::of_cpuinfo(&cpuinfo) };
        let nested = |extension: Extension| format!("{MODULES}/{}/parameters/nested", extension.module());
        facts.nested = facts.extension.and_then(|extension| fs::read_to_string(nested(extension)).ok());
        facts.identity = format!(
            "{}{}{}{}{:?}",
            read("/proc/sys/kernel/osrelease"),
            read("/proc/sys/kernel/version"),
            modules(Path::new(MODULES)),
            processor(&cpuinfo),
            facts.device
        );
        facts
    }

    fn of_cpuinfo(cpuinfo: &str) -> Facts {
        let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags")).flat_map(str::split_whitespace);
        let mut facts = Facts::default();
        for flag in &mut flags {
            match flag {
                "vmx" => facts.extension = Some(Extension::Vmx),
                "svm" => facts.extension = Some(Extension::Svm),
                "hypervisor" => facts.inside = true,
                _ => {}
            }
        }
        facts
    }
}

/// KVM's modules in a directory like `/sys/module`: a line for each with what tells its build, and one for each of its
/// parameters that this user may read, all by name.
fn modules(directory: &Path) -> String {
    let mut text = String::new();
    let is_kvm = |module: &PathBuf| module.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"kvm"));
    for module in sorted(directory).into_iter().filter(is_kvm) {
        // A kernel that has it built in tells no build of it.
        for file in std::iter::once(module.join("srcversion")).chain(sorted(&module.join("parameters"))) {
            if let Ok(value) = fs::read_to_string(&file) {
                text.push_str(&format!("{} {}\n", file.display(), value.trim()));
            }
        }
    }
    text
}

/// What is in a directory, by name; nothing where it cannot be read.
fn sorted(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// What of `/proc/cpuinfo` lasts, of the first processor.
fn processor(cpuinfo: &str) -> String {
    let lasting = ["model name", "microcode", "flags", "vmx flags"];
    let lines = cpuinfo.lines().take_while(|line| !line.is_empty());
    let lines = lines.filter(|line| lasting.iter().any(|name| line.starts_with(name)));
    lines.map(|line| format!("{line}\n")).collect()
}

fn open_device() -> Device {
    let opened = fs::File::options().read(true).write(true).open("/dev/kvm");
    device(opened.map(drop), rustix::process::geteuid().is_root())
}

/// What the attempt of a user, who may be root, says of the device.
fn device(opened: io::Result<()>, root: bool) -> Device {
    let Err(error) = opened else { return Device::Opens };
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => Device::Missing,
        // A group is no remedy where more than the node's owner and mode forbids it (EPERM), nor for root, whom those do not
        // bind.
        Some(Errno::PERM) => Device::Withheld,
        Some(Errno::ACCESS) if root => Device::Withheld,
        Some(Errno::ACCESS) => Device::Denied,
        _ => Device::Fails(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host as recorded: its cpuinfo, the parameter `nested`, its device.
    fn host(cpuinfo: &str, nested: Option<&str>, device: Device) -> Facts {
        Facts { nested: nested.map(str::to_owned), device, ..Facts::of_cpuinfo(cpuinfo) }
    }

    const INTEL: &str = "processor : 0\nflags\t\t: fpu vmx sse\n";
    const AMD: &str = "flags\t\t: fpu svm npt\n";

    #[test]
    fn hosts_are_judged_by_what_they_say() {
        for yes in ["Y\n", "1\n"] {
            assert_eq!(judge(&host(INTEL, Some(yes), Device::Opens)), Ok(Extension::Vmx));
            assert_eq!(judge(&host(AMD, Some(yes), Device::Opens)), Ok(Extension::Svm));
        }
        assert_eq!(judge(&host(INTEL, None, Device::Opens)), Ok(Extension::Vmx), "a container");
        for (facts, reason) in [
            (host(INTEL, Some("N\n"), Device::Opens), Reason::NestingOff(Extension::Vmx)),
            (host(AMD, Some("0\n"), Device::Opens), Reason::NestingOff(Extension::Svm)),
            (host(INTEL, None, Device::Missing), Reason::NoModule(Extension::Vmx)),
            (host(AMD, Some("1"), Device::Missing), Reason::NoDevice),
            (host(INTEL, Some("Y"), Device::Denied), Reason::Denied),
            (host(INTEL, None, Device::Withheld), Reason::Withheld),
            (host(AMD, Some("1"), Device::Fails("busy".into())), Reason::DeviceFails("busy".into())),
            // One kind of machine has a KVM without hardware virtualization: it opens.
            (host("flags : fpu hypervisor\n", None, Device::Opens), Reason::NoExtension { inside: true }),
            (host("flags : fpu\nvmx flags : x\n", Some("Y"), Device::Opens), Reason::NoExtension { inside: false }),
            (host("", None, Device::Missing), Reason::NoExtension { inside: false }),
        ] {
            assert_eq!(judge(&facts), Err(reason), "{facts:?}");
        }
    }

    #[test]
    fn what_opening_the_device_gives_is_told_apart() {
        let opened = |errno: Errno, root| device(Err(errno.into()), root);
        assert_eq!(device(Ok(()), false), Device::Opens);
        for root in [false, true] {
            // A node that is there although no module has registered its device says ENODEV or ENXIO.
            for errno in [Errno::NOENT, Errno::NODEV, Errno::NXIO] {
                assert_eq!(opened(errno, root), Device::Missing, "{errno:?}");
            }
            assert!(matches!(opened(Errno::BUSY, root), Device::Fails(words) if words.contains("busy")));
        }
        // A container's device cgroup says EPERM, the node's mode EACCES.
        assert_eq!(opened(Errno::PERM, true), Device::Withheld);
        assert_eq!(opened(Errno::PERM, false), Device::Withheld);
        assert_eq!(opened(Errno::ACCESS, true), Device::Withheld);
        assert_eq!(opened(Errno::ACCESS, false), Device::Denied);
    }

    #[test]
    fn every_parameter_of_kvms_modules_counts() {
        let directory = tempfile::tempdir().unwrap();
        let put = |path: &str, value: &str| {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        };
        let told = || modules(directory.path()).replace(&format!("{}/", directory.path().display()), "");
        assert_eq!(told(), "");
        put("kvm_intel/parameters/nested", "Y\n");
        put("kvm_intel/parameters/ept", "Y\n");
        put("kvm_intel/srcversion", "ABC\n");
        put("kvm/parameters/tdp_mmu", "Y\n");
        put("ext4/parameters/x", "1\n");
        // As a parameter that cannot be read is.
        fs::create_dir(directory.path().join("kvm/parameters/directory")).unwrap();
        let lines = "kvm/parameters/tdp_mmu Y\n\
                     kvm_intel/srcversion ABC\n\
                     kvm_intel/parameters/ept Y\n\
                     kvm_intel/parameters/nested Y\n";
        assert_eq!(told(), lines);
        put("kvm_intel/parameters/ept", "N\n");
        assert_eq!(told(), lines.replace("ept Y", "ept N"));
    }

    #[test]
    fn what_changes_by_itself_is_no_other_processor() {
        let cpuinfo = "model name\t: x\nmicrocode\t: 0x1\ncpu MHz\t\t: 800\nflags\t\t: vmx\nvmx flags\t: ept\n\n";
        let told = processor(&format!("{cpuinfo}model name\t: x\n"));
        assert_eq!(told, processor(&cpuinfo.replace("800", "4000")));
        for (before, after) in [(": x", ": y"), ("0x1", "0x2"), (": vmx", ": svm"), (": ept", ": vpid")] {
            assert_ne!(told, processor(&cpuinfo.replace(before, after)), "{after}");
        }
    }

    #[test]
    fn amd_v_that_the_firmware_switched_off_is_told_of_module_and_firmware() {
        // Linux 6.1 with VM_CR.SVMDIS set: cpuinfo shows SVM, and kvm_amd is not loaded, as it refuses to.
        let reason = judge(&host(AMD, None, Device::Missing)).unwrap_err();
        assert_eq!(reason.to_string(), "the module kvm_amd is not loaded");
        let advice = reason.advice().unwrap();
        assert!(advice.contains("modprobe kvm_amd nested=1; where that is refused, "), "{advice}");
        assert!(advice.ends_with("switch virtualization on in the firmware's set-up"), "{advice}");
    }

    #[test]
    fn every_reason_of_the_hosts_has_its_line_and_its_advice() {
        for (reason, words, advice) in [
            (Reason::NoExtension { inside: false }, "neither VMX nor SVM", "firmware's set-up"),
            (Reason::NoExtension { inside: true }, "is a virtual machine", "nested virtualization"),
            (Reason::NoModule(Extension::Svm), "kvm_amd is not loaded", "modprobe kvm_amd"),
            (Reason::NestingOff(Extension::Vmx), "switched off", "kvm_intel nested=1"),
            (Reason::NoDevice, "no /dev/kvm", "container"),
            (Reason::Denied, "this user may not open", "group kvm"),
            (Reason::Withheld, "root included", "passed on to this container"),
        ] {
            let line = reason.to_string();
            assert!(line.contains(words) && !line.contains('\n'), "{line}");
            assert!(reason.advice().unwrap().contains(advice), "{reason:?}");
        }
        assert_eq!(Reason::Trial("x".into()).to_string(), "x");
    }
}
