//! RDMSR and WRMSR of what the guest does not reach by itself.

use lamina_arch::cr::{Cr0, Efer};
use lamina_arch::event::GuestFault;
use lamina_arch::msr;
use lamina_arch::regs::{Gpr, SysReg};
use lamina_arch::time::Tsc;

use super::{Resume, chipset_now};
use crate::chipset::Chipset;
use crate::fault::{self, Site};
use crate::host::Host;
use crate::msr::{Effect, MISC_XD_DISABLE, efer_written, is_valid_pat, watched};
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// Whether the local APIC answers for MSR `index`.
pub const fn is_apic(index: u32) -> bool {
    index == msr::IA32_APIC_BASE || is_x2apic(index)
}

/// Whether MSR `index` is a register of the x2APIC's.
pub const fn is_x2apic(index: u32) -> bool {
    matches!(index, msr::X2APIC_FIRST..=msr::X2APIC_LAST)
}

/// RDMSR of the MSR in ECX.
pub fn read<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H) -> Resume {
    fault::point(Site::Rdmsr);
    let index = vm.vcpu.gprs().get32(Gpr::Rcx);
    let now = chipset_now(vm, host);
    let value = match index {
        msr::IA32_TSC_DEADLINE => read_deadline(&mut vm.chipset, vm.msrs.tsc_adjust, now),
        _ if is_apic(index) => vm.chipset.msr_read(now, index),
        msr::IA32_TIME_STAMP_COUNTER => Ok(now.0.wrapping_add(vm.msrs.tsc_adjust)),
        msr::IA32_EFER => Ok(vm.vcpu.read(SysReg::Efer)),
        msr::IA32_PAT => Ok(vm.vcpu.read(SysReg::Pat)),
        _ => vm.msrs.read(index),
    };
    match value {
        Ok(value) => {
            vm.vcpu.gprs().set_edx_eax(value);
            Resume::Advance
        }
        Err(fault) => refused(vm, false, index, fault),
    }
}

/// WRMSR of EDX:EAX to the MSR in ECX.
pub fn write<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H) -> Resume {
    fault::point(Site::Wrmsr);
    let index = vm.vcpu.gprs().get32(Gpr::Rcx);
    let value = vm.vcpu.gprs().edx_eax();
    let now = chipset_now(vm, host);
    let written = match index {
        msr::IA32_TSC_DEADLINE => write_deadline(&mut vm.chipset, vm.msrs.tsc_adjust, now, value),
        msr::IA32_APIC_BASE => vm.chipset.msr_write(now, index, value).map(|()| {
            const ENABLED: u64 = 1 << 11;
            vm.cpuid.show_apic(value & ENABLED != 0);
        }),
        _ if is_apic(index) => vm.chipset.msr_write(now, index, value),
        msr::IA32_MISC_ENABLE => vm.msrs.write(index, value).map(|()| vm.cpuid.follow_misc_enable(value)),
        msr::IA32_TIME_STAMP_COUNTER => move_tsc(vm, now, value.wrapping_sub(now.0)),
        msr::IA32_TSC_ADJUST => move_tsc(vm, now, value),
        msr::IA32_EFER => write_efer(vm, value),
        msr::IA32_PAT if is_valid_pat(value) => {
            vm.vcpu.write(SysReg::Pat, value);
            Ok(())
        }
        msr::IA32_PAT => Err(GuestFault::GP0),
        msr::IA32_SPEC_CTRL | msr::IA32_PRED_CMD => write_speculation(vm, index, value),
        // Without one, the guest cannot read it either.
        msr::IA32_TSC_AUX if !vm.vcpu.has_tsc_aux() => Err(GuestFault::GP0),
        _ => match watched(index, value, vm.cpuid.linear_bits()) {
            Some(register) => register.map(|register| vm.vcpu.write(register, value)),
            None => vm.msrs.write(index, value),
        },
    };
    match written {
        Ok(()) => Resume::Advance,
        Err(fault) => refused(vm, true, index, fault),
    }
}

/// IA32_TSC_DEADLINE in the guest's time; 0 where it is not armed. The chipset counts without what the guest added to
/// its TSC.
///
/// # Errors
/// As the chipset's.
pub fn read_deadline<C: Chipset>(chipset: &mut C, tsc_adjust: u64, now: Tsc) -> Result<u64, GuestFault> {
    Ok(match chipset.msr_read(now, msr::IA32_TSC_DEADLINE)? {
        // Not armed, or so far away that no clock gets there.
        never @ (0 | u64::MAX) => never,
        deadline => deadline.wrapping_add(tsc_adjust),
    })
}

/// IA32_TSC_DEADLINE from the guest's time.
///
/// # Errors
/// As the chipset's.
pub fn write_deadline<C: Chipset>(chipset: &mut C, tsc_adjust: u64, now: Tsc, value: u64) -> Result<(), GuestFault> {
    // How far away it is counts: what is past is due now, and not when the difference has wrapped.
    let left = value.saturating_sub(now.0.wrapping_add(tsc_adjust));
    let deadline = if value == 0 { 0 } else { (now + left).0.max(1) };
    chipset.msr_write(now, msr::IA32_TSC_DEADLINE, deadline)
}

/// Moves the guest's TSC. A deadline stays where it is on that clock, so it comes nearer or goes further away.
fn move_tsc<V: Vcpu, C: Chipset>(vm: &mut Vm<V, C>, now: Tsc, adjust: u64) -> Result<(), GuestFault> {
    let deadline = read_deadline(&mut vm.chipset, vm.msrs.tsc_adjust, now)?;
    vm.set_tsc_adjust(adjust);
    if deadline == 0 { Ok(()) } else { write_deadline(&mut vm.chipset, adjust, now, deadline) }
}

fn write_speculation<V: Vcpu, C>(vm: &mut Vm<V, C>, index: u32, value: u64) -> Result<(), GuestFault> {
    match vm.msrs.speculation.write(index, value)? {
        Some(Effect::Control(value)) => vm.vcpu.set_speculation_control(value),
        Some(Effect::Barrier) => vm.vcpu.prediction_barrier(),
        None => {}
    }
    Ok(())
}

fn write_efer<V: Vcpu, C>(vm: &mut Vm<V, C>, value: u64) -> Result<(), GuestFault> {
    let old = Efer::from_bits_retain(vm.vcpu.read(SysReg::Efer));
    let cr0 = Cr0::from_bits_retain(vm.vcpu.read(SysReg::Cr0));
    let new = efer_written(old, value, cr0)?;
    if new.contains(Efer::NXE) && vm.msrs.read(msr::IA32_MISC_ENABLE)? & MISC_XD_DISABLE != 0 {
        return Err(GuestFault::GP0);
    }
    vm.vcpu.write(SysReg::Efer, new.bits());
    if (old ^ new).contains(Efer::NXE) {
        vm.vcpu.invalidate_linear();
    }
    Ok(())
}

fn refused<V: Vcpu, C>(vm: &mut Vm<V, C>, write: bool, index: u32, fault: GuestFault) -> Resume {
    if vm.refused_msrs.note(index, write) {
        let instruction = if write { "WRMSR" } else { "RDMSR" };
        log::debug!("{}: {instruction} of {index:#x} gives #GP, as will others that `msrs` counts", vm.name);
    }
    Resume::Inject(fault)
}
