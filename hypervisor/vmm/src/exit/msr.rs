//! RDMSR and WRMSR of what the guest does not reach by itself.

use lamina_arch::cr::{Cr0, Efer};
use lamina_arch::event::GuestFault;
use lamina_arch::msr;
use lamina_arch::regs::{Gpr, SysReg};

use super::{Resume, chipset_now};
use crate::chipset::Chipset;
use crate::host::Host;
use crate::msr::efer_written;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// Whether the local APIC answers for MSR `index`.
const fn is_apic(index: u32) -> bool {
    matches!(index, msr::IA32_APIC_BASE | msr::X2APIC_FIRST..=msr::X2APIC_LAST)
}

/// RDMSR of the MSR in ECX.
pub fn read<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H) -> Resume {
    let index = vm.vcpu.gprs().get32(Gpr::Rcx);
    let now = chipset_now(vm, host);
    let value = match index {
        msr::IA32_TSC_DEADLINE => {
            // The chipset counts without what the guest added to its TSC.
            vm.chipset.msr_read(now, index).map(|d| if d == 0 { 0 } else { d.wrapping_add(vm.msrs.tsc_adjust) })
        }
        _ if is_apic(index) => vm.chipset.msr_read(now, index),
        msr::IA32_TIME_STAMP_COUNTER => Ok(now.0.wrapping_add(vm.msrs.tsc_adjust)),
        msr::IA32_EFER => Ok(vm.vcpu.read(SysReg::Efer)),
        _ => vm.msrs.read(index),
    };
    match value {
        Ok(value) => {
            vm.vcpu.gprs().set_edx_eax(value);
            Resume::Advance
        }
        Err(fault) => refused(vm, "RDMSR", index, fault),
    }
}

/// WRMSR of EDX:EAX to the MSR in ECX.
pub fn write<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H) -> Resume {
    let index = vm.vcpu.gprs().get32(Gpr::Rcx);
    let value = vm.vcpu.gprs().edx_eax();
    let now = chipset_now(vm, host);
    let written = match index {
        msr::IA32_TSC_DEADLINE => {
            let deadline = if value == 0 { 0 } else { value.wrapping_sub(vm.msrs.tsc_adjust).max(1) };
            vm.chipset.msr_write(now, index, deadline)
        }
        _ if is_apic(index) => vm.chipset.msr_write(now, index, value),
        msr::IA32_TIME_STAMP_COUNTER => {
            vm.set_tsc_adjust(value.wrapping_sub(now.0));
            Ok(())
        }
        msr::IA32_TSC_ADJUST => {
            vm.set_tsc_adjust(value);
            Ok(())
        }
        msr::IA32_EFER => write_efer(vm, value),
        _ => vm.msrs.write(index, value),
    };
    match written {
        Ok(()) => Resume::Advance,
        Err(fault) => refused(vm, "WRMSR", index, fault),
    }
}

fn write_efer<V: Vcpu, C>(vm: &mut Vm<V, C>, value: u64) -> Result<(), GuestFault> {
    let old = Efer::from_bits_retain(vm.vcpu.read(SysReg::Efer));
    let cr0 = Cr0::from_bits_retain(vm.vcpu.read(SysReg::Cr0));
    let new = efer_written(old, value, cr0)?;
    vm.vcpu.write(SysReg::Efer, new.bits());
    if (old ^ new).contains(Efer::NXE) {
        vm.vcpu.invalidate_linear();
    }
    Ok(())
}

fn refused<V: Vcpu, C>(vm: &mut Vm<V, C>, instruction: &str, index: u32, fault: GuestFault) -> Resume {
    vm.counters.msr_faults += 1;
    log::debug!("{}: {instruction} of {index:#x} gives #GP", vm.name);
    Resume::Inject(fault)
}
