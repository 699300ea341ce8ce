//! Control registers and XCR0, as far as the guest may not write them by itself (SDM vol. 2, "MOV—Move to/from
//! Control Registers", vol. 3, "Control Registers").

use lamina_arch::addr::Gpa;
use lamina_arch::cr::{Cr0, Cr4, Efer};
use lamina_arch::event::GuestFault;
use lamina_arch::exit::{CrAccess, CrExit};
use lamina_arch::regs::{Gpr, SysReg};
use lamina_arch::segment::SegmentName;

use super::{Resume, emulate, linear};
use crate::chipset::Chipset;
use crate::fault::{self, Site};
use crate::host::Host;
use crate::msr::is_valid_xcr0;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// Handles an access to a control register.
pub fn access<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &mut H, exit: &CrExit) -> Resume {
    fault::point(Site::Control);
    let (access, done) = match exit.access {
        Some(access) => (access, Resume::Advance),
        None => match emulate::control_access(vm, host) {
            // The length is known: after the access, the instruction need not be mapped any more.
            Ok((access, length)) => (access, Resume::AdvanceBy(length)),
            Err(resume) => return resume,
        },
    };
    match perform(vm, host, access) {
        Ok(()) => done,
        Err(fault) => Resume::Inject(fault),
    }
}

fn perform<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &H, access: CrAccess) -> Result<(), GuestFault> {
    match access {
        CrAccess::Write { cr, source } => {
            let value = if source == Gpr::Rsp { vm.vcpu.read(SysReg::Rsp) } else { vm.vcpu.gprs().get(source) };
            match cr {
                0 => write_cr0(vm, host, value)?,
                3 => move_to_cr3(vm, host, value)?,
                4 => write_cr4(vm, host, value)?,
                _ => vm.chipset.set_cr8(value)?,
            }
        }
        CrAccess::Read { cr, target } => {
            let value = match cr {
                0 => vm.vcpu.read(SysReg::Cr0),
                3 => vm.vcpu.read(SysReg::Cr3),
                4 => vm.vcpu.read(SysReg::Cr4),
                _ => vm.chipset.cr8(),
            };
            if target == Gpr::Rsp { vm.vcpu.write(SysReg::Rsp, value) } else { vm.vcpu.gprs().set(target, value) }
        }
        CrAccess::Clts => {
            let cr0 = vm.vcpu.read(SysReg::Cr0);
            write_cr0(vm, host, cr0 & !Cr0::TS.bits())?;
        }
        CrAccess::Lmsw { value } => {
            // LMSW sets PE but never clears it, and reaches MP, EM and TS.
            let cr0 = vm.vcpu.read(SysReg::Cr0);
            write_cr0(vm, host, cr0 & !0xe | u64::from(value) & 0xf)?;
        }
    }
    Ok(())
}

fn write_cr0<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &H, value: u64) -> Result<(), GuestFault> {
    if value >> 32 != 0 {
        return Err(GuestFault::GP0);
    }
    let old = Cr0::from_bits_retain(vm.vcpu.read(SysReg::Cr0));
    let new = Cr0::from_bits_truncate(value) | Cr0::ET;
    let cr4 = Cr4::from_bits_retain(vm.vcpu.read(SysReg::Cr4));
    let efer = Efer::from_bits_retain(vm.vcpu.read(SysReg::Efer));
    if new.contains(Cr0::PG) && !new.contains(Cr0::PE) || new.contains(Cr0::NW) && !new.contains(Cr0::CD) {
        return Err(GuestFault::GP0);
    }
    if (old ^ new).contains(Cr0::PG) {
        let long_code = vm.vcpu.segment(SegmentName::Cs).rights.is_long();
        if new.contains(Cr0::PG) && efer.contains(Efer::LME) {
            if !cr4.contains(Cr4::PAE) || long_code {
                return Err(GuestFault::GP0);
            }
            vm.vcpu.write(SysReg::Efer, (efer | Efer::LMA).bits());
        } else if !new.contains(Cr0::PG) {
            if efer.contains(Efer::LMA) && long_code || cr4.contains(Cr4::PCIDE) {
                return Err(GuestFault::GP0);
            }
            vm.vcpu.write(SysReg::Efer, (efer - Efer::LMA).bits());
        }
    }
    let pae = new.contains(Cr0::PG) && cr4.contains(Cr4::PAE) && !efer.contains(Efer::LME);
    if pae && (old ^ new).intersects(Cr0::PG | Cr0::CD | Cr0::NW) {
        load_pdptes(vm, host)?;
    }
    vm.vcpu.write(SysReg::Cr0, new.bits());
    if (old ^ new).intersects(Cr0::PG | Cr0::WP) {
        vm.vcpu.invalidate_linear();
    }
    Ok(())
}

fn write_cr4<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &H, value: u64) -> Result<(), GuestFault> {
    let old = Cr4::from_bits_retain(vm.vcpu.read(SysReg::Cr4));
    let new = Cr4::from_bits_retain(value);
    let cr0 = Cr0::from_bits_retain(vm.vcpu.read(SysReg::Cr0));
    let long = vm.vcpu.read(SysReg::Efer) & Efer::LMA.bits() != 0;
    if !vm.cpuid.cr4_allowed().contains(new) || long && !new.contains(Cr4::PAE) {
        return Err(GuestFault::GP0);
    }
    if long && (old ^ new).contains(Cr4::LA57) {
        return Err(GuestFault::GP0);
    }
    if new.contains(Cr4::PCIDE) && !old.contains(Cr4::PCIDE) && (!long || vm.vcpu.read(SysReg::Cr3) & 0xfff != 0) {
        return Err(GuestFault::GP0);
    }
    let paging = Cr4::PGE | Cr4::PAE | Cr4::PSE | Cr4::SMEP;
    if cr0.contains(Cr0::PG) && !long && new.contains(Cr4::PAE) && (old ^ new).intersects(paging) {
        load_pdptes(vm, host)?;
    }
    vm.vcpu.write(SysReg::Cr4, new.bits());
    if (old ^ new).intersects(paging | Cr4::SMAP | Cr4::PCIDE) {
        vm.vcpu.invalidate_linear();
    }
    Ok(())
}

/// MOV to CR3: in long mode with its reserved bits, outside it of 32 bits.
fn move_to_cr3<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, host: &H, value: u64) -> Result<(), GuestFault> {
    /// The translations of this identifier stay; not a part of the register.
    const KEEP: u64 = 1 << 63;
    if vm.vcpu.read(SysReg::Efer) & Efer::LMA.bits() == 0 {
        return write_cr3(vm, host, value & 0xffff_ffff);
    }
    let identifiers = vm.vcpu.read(SysReg::Cr4) & Cr4::PCIDE.bits() != 0;
    let new = if identifiers { value & !KEEP } else { value };
    if new & u64::MAX << vm.cpuid.physical_bits().clamp(32, 52) != 0 {
        return Err(GuestFault::GP0);
    }
    write_cr3(vm, host, new)
}

/// CR3 becomes `value`, with what MOV to CR3 does beside, in legacy modes.
///
/// # Errors
/// #GP(0) for page-directory pointers with reserved bits.
pub fn write_cr3<H: Host, C>(vm: &mut Vm<H::Vcpu, C>, host: &H, value: u64) -> Result<(), GuestFault> {
    let cr0 = Cr0::from_bits_retain(vm.vcpu.read(SysReg::Cr0));
    let cr4 = Cr4::from_bits_retain(vm.vcpu.read(SysReg::Cr4));
    let long = vm.vcpu.read(SysReg::Efer) & Efer::LMA.bits() != 0;
    let old = vm.vcpu.read(SysReg::Cr3);
    vm.vcpu.write(SysReg::Cr3, value);
    if !long
        && cr0.contains(Cr0::PG)
        && cr4.contains(Cr4::PAE)
        && let Err(fault) = load_pdptes(vm, host)
    {
        vm.vcpu.write(SysReg::Cr3, old);
        return Err(fault);
    }
    vm.vcpu.invalidate_linear();
    Ok(())
}

/// Reads the four PDPTEs of PAE paging, as MOV to CR0 and CR4 do (SDM vol. 3, "PDPTE Registers"), where the processor has
/// registers for them.
fn load_pdptes<H: Host, C>(vm: &mut Vm<H::Vcpu, C>, host: &H) -> Result<(), GuestFault> {
    if !H::Vcpu::PDPTE_REGISTERS {
        return Ok(());
    }
    // Bits 2:1 and 8:5 are reserved, and so is everything above the guest's physical-address width.
    let reserved = 0x1e6 | u64::MAX << vm.cpuid.physical_bits().clamp(32, 52);
    let base = vm.vcpu.read(SysReg::Cr3) & 0xffff_ffe0;
    let mut entries = [0; 4];
    for (entry, at) in entries.iter_mut().zip((base..).step_by(8)) {
        let mut bytes = [0xff; 8];
        if vm.memory.read(host, Gpa(at), &mut bytes).is_err() {
            crate::bus::open_bus(&mut bytes);
        }
        *entry = u64::from_le_bytes(bytes);
        if *entry & 1 != 0 && *entry & reserved != 0 {
            return Err(GuestFault::GP0);
        }
    }
    vm.vcpu.set_pdptes(entries);
    Ok(())
}

/// XSETBV of EDX:EAX to the extended control register in ECX. Not every processor looks at the privilege level before it
/// exits.
pub fn xsetbv<V: Vcpu, C>(vm: &mut Vm<V, C>) -> Resume {
    fault::point(Site::Xsetbv);
    if linear::cpl(&mut vm.vcpu) != 0 {
        return Resume::Inject(GuestFault::GP0);
    }
    let gprs = vm.vcpu.gprs();
    let (register, value) = (gprs.get32(Gpr::Rcx), gprs.edx_eax());
    if register != 0 || !is_valid_xcr0(value, vm.cpuid.xcr0_allowed()) {
        return Resume::Inject(GuestFault::GP0);
    }
    vm.vcpu.write(SysReg::Xcr0, value);
    Resume::Advance
}
