//! The para-virtual interface of `arch::hypercall`.

use lamina_arch::addr::Gpa;
use lamina_arch::cr::Efer;
use lamina_arch::hypercall as abi;
use lamina_arch::regs::{Gpr, SysReg};
use lamina_arch::segment::SegmentName;

use super::{Resume, Surroundings, chipset_now, linear};
use crate::chipset::Chipset;
use crate::fault::{self, Site};
use crate::host::Host;
use crate::stop::StopReason;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// Handles a hypercall.
pub fn call<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, around: &mut Surroundings<'_, H>) -> Resume {
    fault::point(Site::Hypercall);
    let number = vm.vcpu.gprs().get(Gpr::Rax);
    if number == abi::NOP {
        return Resume::Advance;
    }
    let long = vm.vcpu.read(SysReg::Efer) & Efer::LMA.bits() != 0 && vm.vcpu.segment(SegmentName::Cs).rights.is_long();
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    let privileged = linear::cpl(&mut vm.vcpu) == 0;
    let gprs = vm.vcpu.gprs();
    let (first, second) = (gprs.get(Gpr::Rdi) & mask, gprs.get(Gpr::Rsi) & mask);
    let mut resume = Resume::Advance;
    let result = match number & mask {
        abi::NOP => 0,
        _ if !privileged => abi::EPERM,
        abi::CONSOLE_WRITE => console_write(vm, around, Gpa(first), second),
        abi::YIELD => {
            resume = Resume::Yield;
            0
        }
        abi::CLOCK => {
            let ticks = chipset_now(vm, around.host).0;
            (around.host.tsc_frequency().ns_in_ticks(ticks) & (u64::MAX >> 1)).cast_signed()
        }
        abi::COUNTS => around.host.events().map_or(abi::ENOSYS, u64::cast_signed),
        abi::EXIT => {
            vm.status = (first & 0xffff_ffff) as u32;
            resume = Resume::Stop(StopReason::Exited);
            0
        }
        _ => abi::ENOSYS,
    };
    vm.vcpu.gprs().set(Gpr::Rax, result.cast_unsigned() & mask);
    resume
}

/// Gives bytes of guest memory to the console, as many as it has room for.
fn console_write<H: Host, C>(vm: &Vm<H::Vcpu, C>, around: &mut Surroundings<'_, H>, from: Gpa, length: u64) -> i64 {
    if length > abi::CONSOLE_WRITE_MAX {
        return abi::EINVAL;
    }
    let now = around.host.now();
    let mut taken: i64 = 0;
    let mut chunk = [0; 256];
    let mut left = usize::try_from(length).unwrap_or(0);
    // Checked as a whole before a byte is shown: a call that fails has no effect.
    if !vm.memory.is_memory(from, length) {
        return abi::EFAULT;
    }
    let mut at = from;
    while left > 0 {
        let part = &mut chunk[..left.min(256)];
        if vm.memory.read(around.host, at, part).is_err() {
            return abi::EFAULT;
        }
        for byte in part.iter() {
            if !around.console.guest_byte(around.slot, *byte, now) {
                return taken;
            }
            taken += 1;
        }
        left -= part.len();
        at = at + part.len() as u64;
    }
    taken
}
