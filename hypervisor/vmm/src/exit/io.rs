//! IN, OUT, INS and OUTS.

use lamina_arch::addr::Gla;
use lamina_arch::cr::Rflags;
use lamina_arch::event::GuestFault;
use lamina_arch::exit::{Direction, IoExit, StringIo, Width};
use lamina_arch::regs::{Gpr, SysReg};

use super::{Resume, Surroundings, chipset_now, linear};
use crate::chipset::{Chipset, Signal};
use crate::host::Host;
use crate::stop::StopReason;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// Most elements of a string instruction that one exit moves, so that interrupts come in between.
const STRING_ELEMENTS: u64 = 64;

/// Handles a port access. VMREADs in all: reason, qualification, and on the way out length, RIP, interruptibility.
pub fn access<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, around: &mut Surroundings<'_, H>, io: &IoExit) -> Resume {
    if let Some(string) = io.string {
        return string_access(vm, around, io, &string);
    }
    let now = chipset_now(vm, around.host);
    let width = io.width.bytes();
    match io.direction {
        Direction::In => {
            let mut data = [0; 8];
            vm.chipset.port_read(now, io.port, &mut data[..width]);
            let value = u64::from_le_bytes(data);
            let gprs = vm.vcpu.gprs();
            let rax = gprs.get(Gpr::Rax);
            // A 32-bit result clears the upper half, narrower ones keep the rest.
            let merged = if io.width == Width::B4 { value } else { rax & !io.width.mask() | value };
            gprs.set(Gpr::Rax, merged);
            Resume::Advance
        }
        Direction::Out => {
            let data = vm.vcpu.gprs().get(Gpr::Rax).to_le_bytes();
            let signal = vm.chipset.port_write(now, io.port, &data[..width]);
            vm.pass_output(around.console, around.slot, now, around.host.now());
            obey(vm, signal).unwrap_or(Resume::Advance)
        }
    }
}

/// Does what a device asked of the VM; `None` where the guest just goes on.
fn obey<V: Vcpu, C>(vm: &mut Vm<V, C>, signal: Signal) -> Option<Resume> {
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
        Signal::PowerOff => Some(Resume::Stop(StopReason::PowerOff)),
        Signal::Reset => Some(Resume::Reset),
    }
}

/// INS and OUTS: moves up to [`STRING_ELEMENTS`], each complete or not at all.
fn string_access<H: Host, C: Chipset>(
    vm: &mut Vm<H::Vcpu, C>,
    around: &mut Surroundings<'_, H>,
    io: &IoExit,
    string: &StringIo,
) -> Resume {
    let mask = string.address_width.mask();
    let count = if string.rep { vm.vcpu.gprs().get(Gpr::Rcx) & mask } else { 1 };
    let backwards = vm.vcpu.read(SysReg::Rflags) & Rflags::DF.bits() != 0;
    let width = io.width.bytes() as u64;
    let step = if backwards { width.wrapping_neg() } else { width };
    let index = if io.direction == Direction::In { Gpr::Rdi } else { Gpr::Rsi };
    let start = vm.vcpu.gprs().get(index);
    let now = chipset_now(vm, around.host);

    let mut done = 0;
    let mut ended = None;
    while done < count.min(STRING_ELEMENTS) && ended.is_none() {
        let offset = step.wrapping_mul(done);
        // The segment's base is the linear address less the index; the index wraps at its own width.
        let wrapped = (start.wrapping_add(offset) & mask).wrapping_sub(start & mask);
        let at = Gla(string.linear.0.wrapping_add(wrapped));
        match element(vm, around, io, at, now) {
            Ok(outcome) => {
                ended = outcome;
                done += 1;
            }
            Err(fault) => ended = Some(Resume::Inject(fault)),
        }
    }
    let moved = |old: u64, new: u64| match string.address_width {
        Width::B2 => old & !mask | new & mask,
        _ => new & mask,
    };
    let gprs = vm.vcpu.gprs();
    gprs.set(index, moved(start, start.wrapping_add(step.wrapping_mul(done))));
    if string.rep {
        gprs.set(Gpr::Rcx, moved(gprs.get(Gpr::Rcx), count - done));
    }
    vm.pass_output(around.console, around.slot, now, around.host.now());
    match ended {
        Some(resume) => resume,
        None if done == count => Resume::Advance,
        None => Resume::Again,
    }
}

/// One element of a string instruction.
fn element<H: Host, C: Chipset>(
    vm: &mut Vm<H::Vcpu, C>,
    around: &mut Surroundings<'_, H>,
    io: &IoExit,
    at: Gla,
    now: lamina_arch::time::Tsc,
) -> Result<Option<Resume>, GuestFault> {
    let width = io.width.bytes();
    let mut data = [0; 4];
    let data = &mut data[..width.min(4)];
    if io.direction == Direction::In {
        // The fault comes before the device is read, so that nothing of the device's is lost.
        let place = linear::Place::find(vm, around.host, at, data.len(), true)?;
        vm.chipset.port_read(now, io.port, data);
        place.write(vm, around.host, data);
        return Ok(None);
    }
    let place = linear::Place::find(vm, around.host, at, data.len(), false)?;
    place.read(vm, around.host, data);
    let signal = vm.chipset.port_write(now, io.port, data);
    Ok(obey(vm, signal))
}
