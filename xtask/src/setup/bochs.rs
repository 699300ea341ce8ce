//! Bochs 3.0, built from the source package of Debian's next suite and kept in the cache.
//!
//! Debian 12 packages 2.7, with a debugger inside; the build here runs the same guests about three times faster. A second
//! build has a module of ours inside that looks on (`xtask/instrument`); it is made where that is asked for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{CannotInstall, apt, debian, fingerprint, lock};
use crate::paths::{self, find_program};
use crate::report::{self, Progress};

/// The suite whose source package is taken.
const SUITE: &str = "trixie";
/// The package's upstream version.
const VERSION: &str = "3.0";
/// The directory in the cache: the version, and the number of this program's own changes to it ([`CHANGES`]).
const DIRECTORY: &str = "bochs-3.0-changes7";
/// What is changed in the source before it is built.
const CHANGES: &[Change] = &[
    Change {
        // An interrupt of the machine's that arrives while a virtual one waits delivered that one to the guest although
        // RFLAGS.IF was 0, because this asked whether it waits, not whether it may be delivered.
        file: "cpu/event.cc",
        from: "if (is_pending(BX_EVENT_PENDING_VMX_VIRTUAL_INTR)) {",
        to: "if (is_unmasked_event_pending(BX_EVENT_PENDING_VMX_VIRTUAL_INTR)) {",
    },
    Change {
        // The trap behind a guest's single step that ended in an exit was raised in the hypervisor, or in the next guest.
        file: "cpu/svm.cc",
        from: "  mask_event(BX_EVENT_SVM_VIRQ_PENDING);\n\n  BX_CPU_THIS_PTR in_svm_guest = false;\n",
        to: "  mask_event(BX_EVENT_SVM_VIRQ_PENDING);\n  BX_CPU_THIS_PTR debug_trap = 0;\n\n  BX_CPU_THIS_PTR in_svm_guest = false;\n",
    },
    Change {
        // Where #DB is intercepted, nothing said which trap it was: DR6 is to be written before (APM vol. 2, 15.12.2).
        file: "cpu/svm.cc",
        from: "  BX_CPU_THIS_PTR debug_trap = 0; // clear debug_trap field\n",
        to: "  if (vector == BX_DB_EXCEPTION)\n    BX_CPU_THIS_PTR dr6.val32 = (BX_CPU_THIS_PTR dr6.val32 & 0xffff6ff0) | (BX_CPU_THIS_PTR debug_trap & 0x0000e00f);\n  BX_CPU_THIS_PTR debug_trap = 0; // clear debug_trap field\n",
    },
    Change {
        // What is masked was decided before the guest was known to be one: a guest that began with RFLAGS.IF clear kept the
        // machine's interrupts out, and in one that began with it set a virtual interrupt never came.
        file: "cpu/svm.cc",
        from: "  BX_CPU_THIS_PTR in_svm_guest = true;\n  BX_CPU_THIS_PTR svm_gif = true;\n",
        to: "  BX_CPU_THIS_PTR in_svm_guest = true;\n  BX_CPU_THIS_PTR svm_gif = true;\n  handleInterruptMaskChange();\n",
    },
    Change {
        // The other half of it: with the host's IF set, the machine's interrupts come in whatever the guest's is.
        file: "cpu/flag_ctrl_pro.cc",
        from: "       mask_event(BX_EVENT_PENDING_INTR | BX_EVENT_PENDING_LAPIC_INTR | BX_EVENT_PENDING_UINTR);\n\n     mask_event(BX_EVENT_SVM_VIRQ_PENDING);\n",
        to: "       mask_event(BX_EVENT_PENDING_INTR | BX_EVENT_PENDING_LAPIC_INTR | BX_EVENT_PENDING_UINTR);\n     else\n       unmask_event(BX_EVENT_PENDING_INTR | BX_EVENT_PENDING_LAPIC_INTR);\n\n     mask_event(BX_EVENT_SVM_VIRQ_PENDING);\n",
    },
    Change {
        // A guest began with the CR2 that was there, not with the one of its control block.
        file: "cpu/svm.cc",
        from: "  BX_CPU_THIS_PTR cr3 = guest.cr3;\n",
        to: "  BX_CPU_THIS_PTR cr2 = guest.cr2;\n  BX_CPU_THIS_PTR cr3 = guest.cr3;\n",
    },
    Change {
        // A write of CR0 that is intercepted had changed EFER.LMA already.
        file: "cpu/crregs.cc",
        from: "        Svm_Vmexit(SVM_VMEXIT_CR0_SEL_WRITE);\n",
        to: "        BX_CPU_THIS_PTR efer.set_LMA(BX_CPU_THIS_PTR cr0.get_PG() && BX_CPU_THIS_PTR efer.get_LME());\n        Svm_Vmexit(SVM_VMEXIT_CR0_SEL_WRITE);\n",
    },
];
/// What is changed besides where the module looks on: it is told why the processor itself accesses memory, and of each page
/// that instructions are fetched from.
const CHANGES_TO_LOOK_ON: &[Change] = &[
    Change {
        file: "cpu/cpu.h",
        from: "BX_INSTR_PHY_ACCESS(BX_CPU_ID, (paddr), (size), (memtype), (rw));",
        to: "BX_INSTR_PHY_ACCESS(BX_CPU_ID, (paddr), (size), (memtype), (rw), (why));",
    },
    Change {
        file: "cpu/cpu.cc",
        from: "  if (fetchPtr) {\n",
        to: "  BX_INSTR_FETCH_PAGE(BX_CPU_ID, BX_CPU_THIS_PTR pAddrFetchPage);\n  if (fetchPtr) {\n",
    },
];
/// The module, and where it is put in the source.
const MODULE: &[(&str, &str)] = &[
    ("instrument.h", include_str!("../../instrument/instrument.h")),
    ("instrument.cc", include_str!("../../instrument/instrument.cc")),
    ("Makefile.in", include_str!("../../instrument/Makefile.in")),
];
const MODULE_DIRECTORY: &str = "instrument/lamina";
/// How it is configured: every processor feature, no debugger, no display.
const CONFIGURE: &[&str] = &[
    "--enable-x86-64",
    "--enable-vmx=2",
    "--enable-svm",
    "--enable-smp",
    "--enable-avx",
    "--enable-evex",
    "--enable-handlers-chaining",
    "--enable-fast-function-calls",
    "--enable-long-phy-address",
    "--enable-pci",
    "--disable-debugger",
    "--disable-plugins",
    "--with-nogui",
];
/// Every optimization there is.
const CONFIGURE_FAST: &[&str] = &["--enable-repeat-speedups", "--enable-all-optimizations"];
/// Every one but that of repeated string instructions, which would access memory past the module.
const CONFIGURE_TO_LOOK_ON: &[&str] = &["--enable-instrumentation=instrument/lamina"];
/// How many lines `configure` and `make` print, as far as the progress bar cares.
const CONFIGURE_LINES: u64 = 290;
const BUILD_LINES: u64 = 1040;

/// One text in one file of the source, and what takes its place.
struct Change {
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

impl Change {
    /// # Errors
    /// The file cannot be read or written, or does not have the text exactly once.
    fn apply(&self, source: &Path) -> Result<()> {
        let path = source.join(self.file);
        let text = fs::read_to_string(&path).with_context(|| format!("no {} in Bochs' source", self.file))?;
        let found = text.matches(self.from).count();
        ensure!(found == 1, "{} of Bochs {VERSION} has the text to be changed {found} times, not once", self.file);
        fs::write(&path, text.replace(self.from, self.to))?;
        Ok(())
    }
}

/// Which Bochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The one that everything runs on.
    Fast,
    /// The one with the module that looks on.
    LookingOn,
}

impl Kind {
    /// Its directory in the cache.
    fn directory(self) -> String {
        match self {
            Kind::Fast => DIRECTORY.to_owned(),
            Kind::LookingOn => {
                let module = MODULE.iter().flat_map(|(name, text)| [name.as_bytes(), text.as_bytes()]);
                let changes = CHANGES_TO_LOOK_ON.iter().map(|change| change.to.as_bytes());
                let configure = CONFIGURE_TO_LOOK_ON.iter().map(|option| option.as_bytes());
                let parts: Vec<_> = module.chain(changes).chain(configure).collect();
                format!("{DIRECTORY}-looking-on-{}", fingerprint(&parts))
            }
        }
    }

    fn program(self, cache: &Path) -> PathBuf {
        cache.join(self.directory()).join("bochs")
    }

    /// Why it is built.
    fn words(self) -> &'static str {
        match self {
            Kind::Fast => "3 times faster than Debian 12's; needed once, takes 2 to 4 minutes",
            Kind::LookingOn => "a second one, with a module that looks on; needed once, takes 2 to 4 minutes",
        }
    }

    /// Makes the source what is to be built.
    fn prepare(self, source: &Path) -> Result<()> {
        for change in CHANGES {
            change.apply(source)?;
        }
        if self == Kind::LookingOn {
            for change in CHANGES_TO_LOOK_ON {
                change.apply(source)?;
            }
            let directory = source.join(MODULE_DIRECTORY);
            fs::create_dir(&directory).context("no directory for a module in Bochs' source")?;
            for (name, text) in MODULE {
                fs::write(directory.join(name), text)?;
            }
        }
        Ok(())
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Kind::Fast => CONFIGURE_FAST,
            Kind::LookingOn => CONFIGURE_TO_LOOK_ON,
        }
    }
}

/// The firmware that the emulated PC starts with.
#[derive(Clone, Debug)]
pub struct Firmware {
    /// The system BIOS.
    pub bios: PathBuf,
    /// The BIOS of the graphics card.
    pub vga: PathBuf,
}

/// Bochs' firmware, from Debian's packages, which need not be installed.
///
/// # Errors
/// A package cannot be fetched.
pub fn firmware() -> Result<Firmware> {
    let installed = Firmware {
        bios: PathBuf::from("/usr/share/bochs/BIOS-bochs-latest"),
        vga: PathBuf::from("/usr/share/vgabios/vgabios.bin"),
    };
    if installed.bios.is_file() && installed.vga.is_file() {
        return Ok(installed);
    }
    Ok(Firmware {
        bios: debian::fetch("bochsbios", "the BIOS of the emulated PC")?.join("usr/share/bochs/BIOS-bochs-latest"),
        vga: debian::fetch("vgabios", "the VGA BIOS of the emulated PC")?.join("usr/share/vgabios/vgabios.bin"),
    })
}

/// The built program, if it is in the cache.
///
/// # Errors
/// There is no cache.
pub fn built() -> Result<Option<PathBuf>> {
    let program = Kind::Fast.program(&paths::cache()?);
    Ok(program.is_file().then_some(program))
}

/// The built program; it is built when it is not in the cache.
///
/// # Errors
/// The source cannot be fetched, is not what Debian's signed list says, or does not build.
pub fn build() -> Result<PathBuf> {
    build_kind(Kind::Fast)
}

/// The built program with the module that looks on; it is built when it is not in the cache.
///
/// # Errors
/// As [`build`].
pub fn build_looking_on() -> Result<PathBuf> {
    build_kind(Kind::LookingOn)
}

fn build_kind(kind: Kind) -> Result<PathBuf> {
    let cache = paths::cache()?;
    let program = kind.program(&cache);
    if program.is_file() {
        return Ok(program);
    }
    let _lock = lock(&cache, "bochs")?;
    if program.is_file() {
        return Ok(program);
    }
    let compilers = ["g++", "make", "xz"];
    if compilers.iter().any(|name| find_program(name).is_none()) {
        apt::install(&["g++", "make", "xz-utils"], "building Bochs")?;
    }
    report::say(format_args!("building Bochs {VERSION}: {}", kind.words()));
    let work = tempfile::Builder::new().prefix(".bochs").tempdir_in(&cache)?;
    let tarball = fetch_source(work.path())?;
    let source = work.path().join("source");
    fs::create_dir(&source)?;
    let mut command = Command::new("tar");
    command.arg("-xJf").arg(tarball).arg("--strip-components=1").arg("-C").arg(&source);
    report::run("unpacking Bochs", Progress::Unknown, command)?;
    kind.prepare(&source)?;

    let mut command = Command::new("./configure");
    command.args(CONFIGURE).args(kind.options()).current_dir(&source).env("CFLAGS", "-O3").env("CXXFLAGS", "-O3");
    report::run("configuring Bochs", Progress::Lines(CONFIGURE_LINES), command)?;
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut command = Command::new("make");
    command.arg(format!("-j{jobs}")).arg("bochs").current_dir(&source);
    report::run("building Bochs", Progress::Lines(BUILD_LINES), command)?;

    let directory = program.parent().context("no directory for Bochs")?;
    fs::create_dir_all(directory)?;
    // Both are in the cache's file system: it is there completely or not.
    fs::rename(source.join("bochs"), &program)?;
    Ok(program)
}

/// Downloads the source's tarball and checks it against the list that Debian signed. Apt's own configuration and lists
/// are left alone: this works in a private one, with another suite at the mirror that the system uses.
fn fetch_source(work: &Path) -> Result<PathBuf> {
    let message = "building Bochs needs apt to fetch its source";
    if find_program("apt-get").is_none() {
        return Err(CannotInstall(message.to_owned()).into());
    }
    let (lists, cache, sources) = (work.join("lists"), work.join("cache"), work.join("sources.list"));
    fs::create_dir_all(lists.join("partial"))?;
    fs::create_dir_all(cache.join("archives/partial"))?;
    fs::write(&sources, source_line(&mirror()?))?;
    let apt = |program: &str| {
        let mut command = Command::new(program);
        for (key, value) in [("Dir::Etc::sourcelist", &sources), ("Dir::State::lists", &lists), ("Dir::Cache", &cache)]
        {
            command.arg("-o").arg(format!("{key}={}", value.display()));
        }
        command.args(["-o", "Dir::Etc::sourceparts=-", "-o", "APT::Sandbox::User=root"]);
        command
    };
    let mut update = apt("apt-get");
    update.args(["-o", "APT::Status-Fd=1", "update"]);
    report::run("fetching the list of sources", Progress::Apt, update)?;

    let output = apt("apt-get").args(["source", "--print-uris", "--only-source", "bochs"]).output()?;
    ensure!(output.status.success(), "apt knows no source package bochs in {SUITE}");
    let text = String::from_utf8(output.stdout)?;
    let Some(tarball) = text.lines().filter_map(Tarball::of_line).find(|tarball| tarball.name.contains(".orig.tar."))
    else {
        bail!("the source package bochs of {SUITE} has no original tarball");
    };
    let upstream = format!("bochs_{VERSION}");
    ensure!(tarball.name.starts_with(&upstream), "{SUITE} has {}, not {upstream}", tarball.name);

    let path = work.join(tarball.name);
    let mut download = Command::new("/usr/lib/apt/apt-helper");
    download.args(["-o", "APT::Sandbox::User=root", "download-file", tarball.address]).arg(&path).arg(tarball.hash);
    report::run("fetching Bochs' source", Progress::Unknown, download)?;
    Ok(path)
}

/// One file of a source package, as `apt-get source --print-uris` prints it: `'ADDRESS' NAME SIZE SHA256:HASH`.
#[derive(Debug, PartialEq, Eq)]
struct Tarball<'a> {
    address: &'a str,
    name: &'a str,
    hash: &'a str,
}

impl<'a> Tarball<'a> {
    fn of_line(line: &'a str) -> Option<Self> {
        let (address, rest) = line.strip_prefix('\'')?.split_once('\'')?;
        let mut fields = rest.split_whitespace();
        let (name, _size, hash) = (fields.next()?, fields.next()?, fields.next()?);
        // Only a strong hash is worth being checked.
        let plain = !name.contains('/') && (hash.starts_with("SHA256:") || hash.starts_with("SHA512:"));
        plain.then_some(Self { address, name, hash })
    }
}

/// The mirror that this system takes Debian's main archive from.
fn mirror() -> Result<String> {
    let format = "$(SITE) $(ORIGIN) $(LABEL)";
    let output = Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]).output()?;
    let text = String::from_utf8(output.stdout)?;
    if let Some(site) = debian_site(&text) {
        return Ok(site.to_owned());
    }
    // Without lists there are no targets.
    apt::update()?;
    let output = Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]).output()?;
    let text = String::from_utf8(output.stdout)?;
    debian_site(&text).map(str::to_owned).context("apt has no mirror of Debian to take the source of Bochs from")
}

/// The site of the first line that is Debian's main archive; its security archive has a label of its own.
fn debian_site(targets: &str) -> Option<&str> {
    targets.lines().find_map(|line| line.strip_suffix(" Debian Debian"))
}

fn source_line(mirror: &str) -> String {
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let option = if Path::new(keyring).is_file() { format!("[signed-by={keyring}] ") } else { String::new() };
    format!("deb-src {option}{mirror} {SUITE} main\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_list_of_files_is_understood() {
        let line = "'http://host/pool/bochs_3.0%2bdfsg.orig.tar.xz' bochs_3.0+dfsg.orig.tar.xz 3896488 SHA256:78f6";
        let tarball = Tarball::of_line(line).unwrap();
        assert_eq!(tarball.address, "http://host/pool/bochs_3.0%2bdfsg.orig.tar.xz");
        assert_eq!((tarball.name, tarball.hash), ("bochs_3.0+dfsg.orig.tar.xz", "SHA256:78f6"));
        assert_eq!(Tarball::of_line("Need to get 3930 kB of source archives."), None);
        assert_eq!(Tarball::of_line("'http://host/x' ../x 1 SHA256:78f6"), None);
        assert_eq!(Tarball::of_line("'http://host/x' x 1 MD5Sum:78f6"), None);
    }

    #[test]
    fn a_change_needs_its_text_exactly_once() {
        let source = tempfile::tempdir().unwrap();
        let change = Change { file: "a.cc", from: "if (a)", to: "if (b)" };
        let file = source.path().join(change.file);
        assert!(change.apply(source.path()).unwrap_err().to_string().contains("no a.cc"));
        fs::write(&file, "x; if (a) y;").unwrap();
        change.apply(source.path()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "x; if (b) y;");
        assert!(change.apply(source.path()).unwrap_err().to_string().contains("0 times"));
        fs::write(&file, "if (a) if (a)").unwrap();
        assert!(change.apply(source.path()).unwrap_err().to_string().contains("2 times"));
    }

    #[test]
    fn the_one_that_looks_on_is_apart_and_has_the_module() {
        assert_eq!(Kind::Fast.directory(), DIRECTORY);
        assert_ne!(Kind::LookingOn.directory(), DIRECTORY);
        let source = tempfile::tempdir().unwrap();
        let text = |file: &str| fs::read_to_string(source.path().join(file)).unwrap();
        let fresh = || {
            fs::create_dir_all(source.path().join("cpu")).unwrap();
            fs::create_dir_all(source.path().join("instrument")).unwrap();
            for change in CHANGES.iter().chain(CHANGES_TO_LOOK_ON) {
                let all = CHANGES.iter().chain(CHANGES_TO_LOOK_ON).filter(|other| other.file == change.file);
                let text: String = all.map(|other| other.from).collect();
                fs::write(source.path().join(change.file), text).unwrap();
            }
        };
        fresh();
        Kind::Fast.prepare(source.path()).unwrap();
        assert!(text("cpu/event.cc").contains("is_unmasked_event_pending"));
        assert!(!text("cpu/cpu.cc").contains("BX_INSTR_FETCH_PAGE"));
        assert!(!source.path().join(MODULE_DIRECTORY).exists());
        fresh();
        Kind::LookingOn.prepare(source.path()).unwrap();
        assert!(text("cpu/cpu.cc").contains("BX_INSTR_FETCH_PAGE") && text("cpu/cpu.h").contains("(why)"));
        assert!(text("instrument/lamina/instrument.cc").contains("violation"));
        let inside = format!("--enable-instrumentation={MODULE_DIRECTORY}");
        assert!(Kind::LookingOn.options().contains(&inside.as_str()));
        // What would go past the module.
        assert!(!Kind::LookingOn.options().iter().chain(CONFIGURE).any(|option| option.contains("repeat")));
    }

    #[test]
    fn the_mirror_is_debians_main_archive() {
        let targets = "https://other/apt Google cloud-sdk\nhttp://a/debian-security Debian Debian-Security\n\
                       http://a/debian Debian Debian\n";
        assert_eq!(debian_site(targets), Some("http://a/debian"));
        assert_eq!(debian_site("https://other/apt Google cloud-sdk\n"), None);
    }
}
