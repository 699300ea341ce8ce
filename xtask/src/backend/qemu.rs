//! QEMU: with KVM, so that Lamina runs on the processor's own VMX or SVM nested in the host's, or with QEMU's own
//! emulation (TCG), SVM included.
//!
//! Owns QEMU's command line.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Machine, log};
use crate::paths::find_program;

/// QEMU's program for this architecture.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// The package that holds it.
pub const PACKAGE: &str = "qemu-system-x86";
/// The emulated processor: one of AMD's that kernels know, as far as the emulation goes.
const TCG_MODEL: &str = "EPYC";
/// Without a person, an emulated machine's time is the instructions it has executed, 8 ns each, and a processor that
/// halts skips time: what a machine does then does not depend on what else the host has to do.
const COUNTED: &str = "shift=3,sleep=off";

/// What executes the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's processor, by way of Linux.
    Kvm,
    /// QEMU itself.
    Tcg,
}

/// A QEMU that can be run.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// How it runs the machine.
    pub accelerator: Accelerator,
}

/// A machine with more memory than this may have more than the host. Unit: bytes.
const MUCH_MEMORY: u64 = 16 << 30;

impl Qemu {
    /// The command that runs a machine.
    pub fn command(&self, machine: &Machine) -> Command {
        let mut command = match find_program("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        let Machine { image, cpus, memory, serial, directory, .. } = machine;
        let (accelerator, model) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Tcg => ("tcg", TCG_MODEL),
        };
        let model = format!("{model}{}", machine.processor_options.as_deref().unwrap_or_default());
        let pc = format!("pc{}", machine.machine_options.as_deref().unwrap_or_default());
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-machine", &pc, "-accel", accelerator, "-cpu", &model])
            .args(["-m", &format!("{}M", memory >> 20)])
            .args(["-smp", &cpus.to_string()])
            .args(["-drive", &format!("format=raw,if=ide,file={}", comma_doubled(image))])
            .args(["-vga", "std"])
            .args(["-chardev", &format!("socket,id=com1,host=127.0.0.1,port={serial}")])
            .arg("-D")
            .arg(log(directory))
            .current_dir(directory);
        if self.accelerator == Accelerator::Kvm {
            // Else the 8254 waits for the end of its last interrupt, of which a non-maskable one has none.
            command.args(["-global", "kvm-pit.lost_tick_policy=discard"]);
        }
        if *memory > MUCH_MEMORY {
            // More than the host may have: what the machine does not touch, it need not.
            let ram = format!("memory-backend-ram,id=ram,size={}M,reserve=off", memory >> 20);
            command.args(["-object", &ram, "-machine", "memory-backend=ram"]);
        }
        match machine.serial_irq {
            None => command.args(["-serial", "chardev:com1"]),
            Some(irq) => command.args(["-device", &format!("isa-serial,iobase=0x3f8,irq={irq},chardev=com1")]),
        };
        if let Some(firmware) = &machine.uefi {
            command.arg("-bios").arg(firmware);
        }
        match &machine.monitor {
            // With the means to end itself the machine would take its last picture along.
            Some(monitor) => command.args(["-monitor", &format!("unix:{},server=on,wait=off", comma_doubled(monitor))]),
            None => command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]),
        };
        if self.accelerator == Accelerator::Tcg && !machine.interactive {
            command.args(["-icount", COUNTED]);
        }
        command
    }
}

/// In QEMU's options, a comma in a value is written twice.
fn comma_doubled(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(accelerator: Accelerator, machine: &Machine) -> String {
        let command = Qemu { program: "qemu".into(), accelerator }.command(machine);
        command.get_args().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_command_line_has_the_machine() {
        let mut machine = Machine {
            image: "/a,b".into(),
            cpus: 3,
            memory: 512 << 20,
            serial: 99,
            directory: "/d".into(),
            ..Machine::default()
        };
        let kvm = line(Accelerator::Kvm, &machine);
        for part in ["-accel kvm -cpu host ", "-m 512M", "-smp 3", "file=/a,,b", "port=99", "isa-debug-exit"] {
            assert!(kvm.contains(part), "{part} is not in: {kvm}");
        }
        assert!(!kvm.contains("icount") && !kvm.contains("-bios") && !kvm.contains("reserve"), "{kvm}");
        // The watchdog's non-maskable interrupts come from KVM's 8254, which else waits for an end of the last one.
        assert!(kvm.contains("-global kvm-pit.lost_tick_policy=discard"), "{kvm}");
        let tcg = line(Accelerator::Tcg, &machine);
        assert!(tcg.contains("-machine pc -accel tcg -cpu EPYC ") && tcg.contains("-icount shift=3"), "{tcg}");
        assert!(!tcg.contains("kvm-pit") && tcg.contains("isa-debug-exit") && !tcg.contains("-monitor"), "{tcg}");
        machine.interactive = true;
        machine.memory = 300 << 30;
        machine.uefi = Some("/ovmf".into());
        machine.processor_options = Some(",svm=off".to_owned());
        machine.machine_options = Some(",pit=off".to_owned());
        let tcg = line(Accelerator::Tcg, &machine);
        assert!(!tcg.contains("icount"), "a person's time is the wall's: {tcg}");
        let ram = "-object memory-backend-ram,id=ram,size=307200M,reserve=off -machine memory-backend=ram";
        assert!(tcg.contains("-m 307200M ") && tcg.contains(ram), "{tcg}");
        assert!(tcg.contains("-bios /ovmf") && tcg.contains("-cpu EPYC,svm=off "), "{tcg}");
        assert!(tcg.contains("-machine pc,pit=off "), "{tcg}");
    }

    #[test]
    fn the_serial_port_is_at_its_place_whatever_its_interrupt() {
        let mut machine = Machine::default();
        let usual = line(Accelerator::Tcg, &machine);
        assert!(usual.contains("-serial chardev:com1") && !usual.contains("isa-serial"), "{usual}");
        machine.serial_irq = Some(3);
        let moved = line(Accelerator::Tcg, &machine);
        assert!(moved.contains("-device isa-serial,iobase=0x3f8,irq=3,chardev=com1"), "{moved}");
        assert!(!moved.contains("-serial "), "two ports at one place: {moved}");
    }

    #[test]
    fn a_machine_with_a_monitor_stays_for_its_last_picture() {
        let machine = Machine { monitor: Some("/d,e/monitor".into()), ..Machine::default() };
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            let line = line(accelerator, &machine);
            assert!(line.contains("-monitor unix:/d,,e/monitor,server=on,wait=off"), "{line}");
            assert!(!line.contains("isa-debug-exit"), "{line}");
        }
    }
}
