//! How long a stock Linux takes from its entry to the first instruction of `/init`, natively and as the only VM.
//!
//! Both sides have the same kernel, initramfs, command line, emulator and amount of memory. The native side is booted by
//! `guest/bench/native`, which reads the TSC at its jump to the kernel; a VM's TSC is 0 when it starts. `/init` is
//! `guest/bench/init`, whose first instruction reads the TSC.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use regex::Regex;

use super::native;
use super::table::{Figure, Row, Table};
use crate::backend::Backend;
use crate::machine::Machine;
use crate::report::{self, say};
use crate::session::Request;
use crate::setup::debian::{self, Package};
use crate::{artifacts, initramfs};

/// The kernel that is booted.
const KERNEL: &str = "linux-image-cloud-amd64";
/// `tsc_early_khz` is true for the machine: Bochs' TSC runs at the rate that its configuration gives. The last word is
/// for the native side's entry to be written to; in a VM it is right as it stands.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet tsc_early_khz=100000 cryptomgr.notests lamina_entry_tsc=0000000000000000";
/// Memory of the machine natively, and of the VM. Unit: MiB.
const MEMORY: u64 = 512;
/// One boot takes a fraction of this.
const LIMIT: Duration = Duration::from_secs(600);
/// Lamina may take so much longer, and aims at so much.
const MUST: f64 = 1.03;
const AIM: f64 = 1.005;

/// Measures both sides `runs` times.
pub fn measure(backend: &Backend, runs: u32, table: &mut Table) -> Result<()> {
    say(format_args!("linux: {} boots, 10 to 30 s each", 2 * runs));
    let directory = tempfile::tempdir().context("no temporary directory")?;
    let kernel = debian::image(&Package::amd64(KERNEL), None)?;
    let initrd = directory.path().join("initrd");
    let init = std::fs::read(artifacts::build("bench-init", "bench-init")?)?;
    std::fs::write(&initrd, initramfs::single(&init))?;

    let (mut native, mut lamina) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        let _activity = report::activity(&format!("linux, run {run} of {runs}"));
        native.push(natively(backend, &kernel, &initrd)?);
        lamina.push(under_lamina(backend, &kernel, &initrd)?);
    }
    let ratios: Vec<f64> = native.iter().zip(&lamina).map(|(native, lamina)| lamina / native).collect();
    let version = kernel.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let config = format!("{version}, {MEMORY} MiB, {COMMAND_LINE:?}");
    let row = |id, config, unit, samples: &[f64]| Row { config, ..Row::new(id, unit, Figure::of(samples)) };
    table.push(row("linux/native", format!("natively: {config}"), "ticks", &native));
    table.push(row("linux/lamina", format!("the only VM: {config}"), "ticks", &lamina));
    let config = "linux/lamina to linux/native".to_owned();
    table.push(Row { must: Some(MUST), aim: Some(AIM), ..row("linux/ratio", config, "ratio", &ratios) });
    Ok(())
}

fn natively(backend: &Backend, kernel: &Path, initrd: &Path) -> Result<f64> {
    let machine = native::start(backend, kernel, &std::fs::read(initrd)?, COMMAND_LINE, MEMORY, LIMIT)?;
    ticks(machine).context("natively")
}

fn under_lamina(backend: &Backend, kernel: &Path, initrd: &Path) -> Result<f64> {
    let quoted = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
    let config = format!(
        "[[vm]]\nname = \"linux\"\nkernel = {}\ninitrd = {}\ncmdline = {COMMAND_LINE:?}\nmemory = \"{MEMORY}M\"\n",
        quoted(kernel),
        quoted(initrd)
    );
    let prepared = Request::text(config, "").on(Some(backend.name())).timeout(LIMIT).prepare()?;
    ticks(prepared.start()?).context("under Lamina")
}

/// Waits for what `/init` says.
fn ticks(mut machine: Machine) -> Result<f64> {
    let pattern = Regex::new("init_tsc=([0-9a-f]{16}) entry_tsc=([0-9a-f]{16})")?;
    let line = match machine.wait_for(&pattern) {
        Ok(line) => line.text,
        Err(stop) => anyhow::bail!("{stop}, and /init has said nothing\n{}", machine.report(60)),
    };
    between(&pattern, &line).with_context(|| format!("not to be understood: {line}"))
}

/// Ticks from the entry to `/init`.
fn between(pattern: &Regex, line: &str) -> Result<f64> {
    let groups = pattern.captures(line).context("no numbers")?;
    let number = |index| u64::from_str_radix(groups.get(index).map_or("", |group| group.as_str()), 16);
    let (init, entry) = (number(1)?, number(2)?);
    ensure!(init > entry, "/init before its kernel");
    #[expect(clippy::cast_precision_loss, reason = "below 2^53: a quarter of a year of ticks")]
    Ok((init - entry) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_counted_from_the_entry() {
        let pattern = Regex::new("init_tsc=([0-9a-f]{16}) entry_tsc=([0-9a-f]{16})").unwrap();
        let line = "[linux] init_tsc=0000000000000110 entry_tsc=0000000000000010";
        assert_eq!(between(&pattern, line).unwrap(), 256.0);
        let back = "init_tsc=0000000000000001 entry_tsc=0000000000000010";
        assert!(between(&pattern, back).is_err());
        assert!(between(&pattern, "init_tsc=1 entry_tsc=none").is_err());
    }

    #[test]
    fn the_command_line_has_room_for_the_entry() {
        let (_, digits) = COMMAND_LINE.rsplit_once("lamina_entry_tsc=").unwrap();
        assert_eq!(digits, "0".repeat(16));
    }
}
