//! The guest's memory by linear address: what an instruction that is finished in software fetches, reads or writes.

use lamina_arch::addr::{Gla, Gpa, PAGE_4K};
use lamina_arch::cr::{Cr0, Cr4, Efer, Rflags};
use lamina_arch::event::GuestFault;
use lamina_arch::regs::SysReg;
use lamina_arch::segment::SegmentName;

use crate::host::Host;
use crate::vcpu::Vcpu;
use crate::vm::Vm;
use crate::walk::{Access, Paging};

fn paging<V: Vcpu>(vcpu: &mut V) -> Paging {
    Paging {
        cr0: Cr0::from_bits_retain(vcpu.read(SysReg::Cr0)),
        cr3: vcpu.read(SysReg::Cr3),
        cr4: Cr4::from_bits_retain(vcpu.read(SysReg::Cr4)),
        efer: Efer::from_bits_retain(vcpu.read(SysReg::Efer)),
        alignment_check: vcpu.read(SysReg::Rflags) & Rflags::AC.bits() != 0,
    }
}

/// Current privilege level: the DPL of SS (SDM vol. 3, "Guest Register State").
pub fn cpl<V: Vcpu>(vcpu: &mut V) -> u8 {
    vcpu.segment(SegmentName::Ss).rights.dpl()
}

fn translate<H: Host, C>(
    vm: &Vm<H::Vcpu, C>,
    host: &H,
    paging: &Paging,
    at: Gla,
    access: Access,
) -> Result<Gpa, GuestFault> {
    paging.translate(at, access, &mut |gpa, width| {
        let mut entry = [0; 8];
        vm.memory.read(host, gpa, entry.get_mut(..width)?).ok()?;
        Some(u64::from_le_bytes(entry))
    })
}

/// Where a run of at most a page of linear addresses is in guest-physical memory: one or two pieces.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    first: Gpa,
    first_length: usize,
    second: Gpa,
}

impl Place {
    /// Translates `length` bytes from `at` for a data access with the guest's privilege.
    ///
    /// # Errors
    /// The page fault that the guest gets, with nothing done.
    pub fn find<H: Host, C>(
        vm: &mut Vm<H::Vcpu, C>,
        host: &H,
        at: Gla,
        length: usize,
        write: bool,
    ) -> Result<Place, GuestFault> {
        let access = Access::data(cpl(&mut vm.vcpu), write);
        let paging = paging(&mut vm.vcpu);
        let left = usize::try_from(PAGE_4K - at.offset_in(PAGE_4K)).unwrap_or(0);
        // Outside 64-bit mode linear addresses have 32 bits, and wrap.
        let long = paging.efer.contains(Efer::LMA) && vm.vcpu.segment(SegmentName::Cs).rights.is_long();
        let mask = if long { u64::MAX } else { 0xffff_ffff };
        let first = translate(vm, host, &paging, Gla(at.0 & mask), access)?;
        let first_length = length.min(left);
        let second = if first_length < length {
            translate(vm, host, &paging, Gla(at.0.wrapping_add(first_length as u64) & mask), access)?
        } else {
            first
        };
        Ok(Place { first, first_length, second })
    }

    /// Reads the bytes; what is not memory reads as all ones.
    pub fn read<H: Host, C>(&self, vm: &Vm<H::Vcpu, C>, host: &H, data: &mut [u8]) {
        let (first, second) = data.split_at_mut(self.first_length.min(data.len()));
        for (gpa, part) in [(self.first, first), (self.second, second)] {
            if !part.is_empty() && vm.memory.read(host, gpa, part).is_err() {
                crate::bus::open_bus(part);
            }
        }
    }

    /// Writes the bytes; what is not memory swallows them.
    pub fn write<H: Host, C>(&self, vm: &Vm<H::Vcpu, C>, host: &mut H, data: &[u8]) {
        let (first, second) = data.split_at(self.first_length.min(data.len()));
        for (gpa, part) in [(self.first, first), (self.second, second)] {
            if !part.is_empty() && vm.memory.write(host, gpa, part).is_err() {
                log::debug!("a string instruction wrote {} bytes to {gpa:?}, where no memory is", part.len());
            }
        }
    }
}

/// Fetches up to `bytes.len()` bytes of the instruction at RIP; returns how many could be fetched, the code segment's
/// width (16, 32 or 64 bits) and RIP.
pub fn fetch<H: Host, C>(vm: &mut Vm<H::Vcpu, C>, host: &H, bytes: &mut [u8]) -> (usize, u32, u64) {
    let cs = vm.vcpu.segment(SegmentName::Cs);
    let paging = paging(&mut vm.vcpu);
    let rip = vm.vcpu.read(SysReg::Rip);
    let long = paging.efer.contains(Efer::LMA) && cs.rights.is_long();
    let (bits, base) = match (long, cs.rights.is_default32()) {
        (true, _) => (64, 0),
        (false, true) => (32, cs.base),
        (false, false) => (16, cs.base),
    };
    let access = Access::fetch(cpl(&mut vm.vcpu));
    let mut have = 0;
    while have < bytes.len() {
        let mut at = Gla(base.wrapping_add(rip).wrapping_add(have as u64));
        if !long {
            at = Gla(at.0 & 0xffff_ffff);
        }
        let Ok(gpa) = translate(vm, host, &paging, at, access) else { break };
        let left = usize::try_from(PAGE_4K - at.offset_in(PAGE_4K)).unwrap_or(0);
        let end = bytes.len().min(have + left);
        if vm.memory.read(host, gpa, &mut bytes[have..end]).is_err() {
            break;
        }
        have = end;
    }
    (have, bits, rip)
}
