//! IN, OUT, INS and OUTS.

use lamina_arch::exit::{Direction, IoExit, Width};
use lamina_arch::regs::{Gpr, Gprs};

use super::emulate::{self, Cause};
use super::{Resume, Surroundings, chipset_now, step_over};
use crate::chipset::{Chipset, Signal};
use crate::fault::{self, Site};
use crate::host::Host;
use crate::stop::StopReason;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// Handles a port access. VMREADs in all: reason, qualification, and on the way out length, RIP, interruptibility; two more
/// for a guest that may have breakpoints enabled. Not inlined: the run loop's turn would carry its frame, some 5
/// instructions.
#[inline(never)]
pub fn access<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, around: &mut Surroundings<'_, H>, io: &IoExit) -> Resume {
    fault::point(if io.direction == Direction::In { Site::PortIn } else { Site::PortOut });
    let now = chipset_now(vm, around.host);
    if io.string.is_some() {
        let resume = emulate::finish(vm, around.host, Cause::Port(io));
        vm.pass_output(around.console, around.slot, now, around.host.now());
        return resume;
    }
    let width = io.width.bytes();
    let met = vm.vcpu.watchpoints().map_or(0, |watchpoints| watchpoints.port(io.port, width));
    let resume = match io.direction {
        Direction::In => {
            let mut data = [0; 8];
            vm.chipset.port_read(now, io.port, &mut data[..width]);
            finish_in(vm.vcpu.gprs(), io.width, u64::from_le_bytes(data));
            Resume::Advance
        }
        Direction::Out => {
            let data = vm.vcpu.gprs().get(Gpr::Rax).to_le_bytes();
            let signal = vm.chipset.port_write(now, io.port, &data[..width]);
            vm.pass_output(around.console, around.slot, now, around.host.now());
            obey(vm, signal).unwrap_or(Resume::Advance)
        }
    };
    if met == 0 || !matches!(resume, Resume::Advance) {
        return resume;
    }
    trap(vm, around.host, met)
}

/// Goes past the instruction, which has met breakpoints.
#[cold]
#[inline(never)]
fn trap<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H, met: u64) -> Resume {
    match step_over(vm, host) {
        Ok(()) => {
            vm.vcpu.meet(met);
            Resume::Again
        }
        Err(reason) => Resume::Stop(reason),
    }
}

/// Puts what IN read into AL, AX or EAX.
pub fn finish_in(gprs: &mut Gprs, width: Width, value: u64) {
    let rax = gprs.get(Gpr::Rax);
    // A 32-bit result clears the upper half, narrower ones keep the rest.
    let merged = if width == Width::B4 { value } else { rax & !width.mask() | value };
    gprs.set(Gpr::Rax, merged);
}

/// Does what a device asked of the VM; `None` where the guest just goes on.
pub fn obey<V: Vcpu, C: Chipset>(vm: &mut Vm<V, C>, signal: Signal) -> Option<Resume> {
    match signal {
        Signal::None => None,
        Signal::Status(status) => {
            vm.status = status;
            None
        }
        Signal::Dma => {
            vm.dma_waits = true;
            None
        }
        Signal::DebugLine => {
            if let Some(line) = vm.chipset.take_debug_line() {
                log::debug!("{}: {line}", vm.name);
            }
            None
        }
        Signal::PowerOff => Some(Resume::Stop(StopReason::PowerOff)),
        Signal::Reset => Some(Resume::Reset),
    }
}
