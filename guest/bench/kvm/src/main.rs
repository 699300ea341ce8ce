//! Process 1 of the machine that KVM is measured on: a Linux program that loads KVM's modules, lets `guest/bench` run
//! in virtual machines, and powers off.
//!
//! The same program starts itself for each measurement, with its name as the argument. The guest's lines go to standard
//! output as they come; what is measured here has their form. The last line is `peer end`, or `peer failed: WHY`.

mod vm;

use std::ffi::CString;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result, bail, ensure};
use rustix::system::{RebootCommand, finit_module, reboot, uname};

use vm::Vm;

/// Where the initramfs has this program, the guest's image and KVM's modules, in the order of their names.
const INIT: &str = "/init";
const IMAGE: &str = "/bench";
const MODULES: &str = "/modules";
/// Parameters of modules, by the ends of their files' names. KVM neither polls before it lets the processor halt, nor
/// enters a guest ahead of its timer: deadlines are then of what Lamina does. It does not virtualize the local APIC:
/// Bochs 3.0 refuses the address of its posted-interrupt descriptor, without which KVM does not use the rest.
const PARAMETERS: [(&str, &str); 2] =
    [("-kvm.ko", "halt_poll_ns=0 lapic_timer_advance_ns=0"), ("-kvm-intel.ko", "enable_apicv=0")];
/// VMs that are made for `vm/create`, without the first, which finds nothing warm.
const CREATED: usize = 16;

fn main() {
    let name = std::env::args().nth(1);
    let result = match name.as_deref() {
        None => first_process(),
        Some("exits") => run("role=exits", 64 << 20),
        Some("switch") => run("role=switch", 16 << 20),
        Some("partner") => run("role=partner", 16 << 20),
        Some("create") => create(),
        Some(other) => Err(anyhow::anyhow!("there is no measurement {other}")),
    };
    if name.is_some() {
        if let Err(error) = result {
            println!("{error:#}");
            std::process::exit(1);
        }
        return;
    }
    match result {
        Ok(()) => println!("peer end"),
        Err(error) => println!("peer failed: {error:#}"),
    }
    // What was printed leaves the serial port first. Nobody is there to hear of a failure.
    let _ = rustix::termios::tcdrain(rustix::stdio::stdout());
    let _ = reboot(RebootCommand::PowerOff);
    loop {
        std::thread::park();
    }
}

/// Everything, one after the other.
fn first_process() -> Result<()> {
    let system = uname();
    println!("peer: Linux {} {}", system.release().to_string_lossy(), system.version().to_string_lossy());
    load_modules()?;
    for name in ["exits", "create"] {
        finish(name, start(name)?)?;
    }
    let mut partner = start("partner")?;
    let switch = start("switch").and_then(|child| finish("switch", child));
    // It goes on for ever.
    partner.kill().and_then(|()| partner.wait()).context("cannot end the partner")?;
    switch
}

fn start(name: &str) -> Result<Child> {
    Command::new(INIT).arg(name).spawn().with_context(|| format!("cannot start {name}"))
}

fn finish(name: &str, mut child: Child) -> Result<()> {
    let status = child.wait()?;
    ensure!(status.success(), "{name}: {status}");
    Ok(())
}

fn load_modules() -> Result<()> {
    let mut paths = std::fs::read_dir(MODULES)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        let name = path.to_string_lossy();
        let parameters = PARAMETERS.into_iter().find(|(end, _)| name.ends_with(end)).map_or("", |(_, words)| words);
        let parameters = CString::new(parameters)?;
        let told = || format!("cannot load {}", path.display());
        finit_module(File::open(&path).with_context(told)?, &parameters, 0).with_context(told)?;
    }
    ensure!(Path::new("/dev/kvm").exists(), "there is no /dev/kvm");
    Ok(())
}

/// Runs the guest in this role until its last line.
fn run(cmdline: &str, memory: usize) -> Result<()> {
    let image = std::fs::read(IMAGE).context("no image")?;
    // Its memory is there from the start: what a first touch costs is KVM's part alone.
    let mut vm = Vm::new(memory, true, &image, cmdline)?;
    vm.run()
}

/// From nothing to the first instruction of a VM.
fn create() -> Result<()> {
    let image = std::fs::read(IMAGE).context("no image")?;
    let mut samples = Vec::new();
    for _ in 0..=CREATED {
        let from = rdtsc();
        let mut vm = Vm::new(16 << 20, false, &image, "role=partner")?;
        vm.step()?;
        samples.push(rdtsc() - from);
    }
    samples.remove(0);
    samples.sort_unstable();
    let [min, .., max] = samples.as_slice() else { bail!("no samples") };
    let (count, median) = (samples.len(), samples[samples.len() / 2]);
    let mean = samples.iter().sum::<u64>() / samples.len() as u64;
    println!("R vm/create {count} {min} {median} {mean} {max}");
    Ok(())
}

fn rdtsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}
