//! Another hypervisor, measured with the same guest: KVM, in a stock Linux on the same emulated machine.
//!
//! Linux is booted as [`super::native`] boots one; `guest/bench/kvm` is its process 1. Twice: without defences against
//! speculation, and as Linux has it by default.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use regex::Regex;

use super::exits::{Figures, figures_of};
use super::native;
use crate::backend::Backend;
use crate::report::{self, say};
use crate::setup::debian::{self, KvmKernel, Package};
use crate::{artifacts, initramfs};

/// What can be measured beside Lamina.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// Linux' KVM
    Kvm,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What it was, in the peer's words.
    pub what: String,
    /// Figures by name: with `mitigations=off`, and by default.
    pub figures: [Figures; 2],
}

/// The kernel whose KVM it is.
const KERNEL: &str = "linux-image-cloud-amd64";
/// As for `bench linux`.
const COMMAND_LINE: &str = "console=ttyS0 quiet tsc_early_khz=100000 cryptomgr.notests";
/// What is added to it, in the order of [`Measured::figures`].
const CONFIGURATIONS: [&str; 2] = [" mitigations=off", ""];
/// Memory of the machine. Unit: MiB.
const MEMORY: u64 = 512;
/// One boot takes a fraction of this.
const LIMIT: Duration = Duration::from_secs(600);

/// Builds what is needed and measures both configurations.
///
/// # Errors
/// Something cannot be built or fetched, or does not come to its end.
pub fn measure(backend: &Backend) -> Result<Measured> {
    let _activity = report::activity("kvm");
    let init =
        artifacts::build_for_linux("bench-kvm", "bench-kvm", "the program that runs virtual machines under KVM")?;
    let image = artifacts::build("guest-bench", "bench")?;
    // Bochs' models for benchmarks are Intel's.
    let KvmKernel { kernel, modules } = debian::kvm_kernel(&Package::amd64(KERNEL), "intel")?;
    let modules = modules.iter().map(|path| {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok((name, std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?))
    });
    let modules = modules.collect::<Result<Vec<_>>>()?;
    let initrd = initramfs::measuring(&std::fs::read(init)?, &std::fs::read(image)?, &modules);
    say(format_args!("kvm: two boots, 20 to 60 s each"));
    let mut what = String::new();
    let mut all = Vec::new();
    let ends = Regex::new(r"^peer (end|failed: .*)$|Kernel panic")?;
    for configuration in CONFIGURATIONS {
        let cmdline = format!("{COMMAND_LINE}{configuration}");
        let mut machine = native::start(backend, &kernel, &initrd, &cmdline, MEMORY, LIMIT)?;
        match machine.wait_for(&ends) {
            Ok(line) if line.text == "peer end" => {}
            Ok(line) => bail!("{}\n{}", line.text, machine.report(60)),
            Err(stop) => bail!("{stop}, and the peer has not come to its end\n{}", machine.report(60)),
        }
        let lines = machine.transcript().lines();
        what = lines.iter().find_map(|line| line.strip_prefix("peer: ")).unwrap_or("a Linux without a name").to_owned();
        all.push(figures_of(lines));
    }
    let figures = all.try_into().ok().context("two configurations")?;
    Ok(Measured { what, figures })
}
