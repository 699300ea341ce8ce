//! The guest's paging and privilege, for what is translated in software.

use lamina_arch::addr::Gpa;
use lamina_arch::cr::{Cr0, Cr4, Efer, Rflags};
use lamina_arch::regs::{ExtendedRegister, SysReg};
use lamina_arch::segment::SegmentName;

use crate::host::HostMemory;
use crate::memory::GuestMemory;
use crate::vcpu::Vcpu;
use crate::walk::{Paging, Tables};

/// Current privilege level: the DPL of SS (SDM vol. 3, "Guest Register State").
pub fn cpl<V: Vcpu>(vcpu: &mut V) -> u8 {
    vcpu.segment(SegmentName::Ss).rights.dpl()
}

/// The registers that paging depends on, and the current privilege level.
pub fn paging<V: Vcpu>(vcpu: &mut V, physical_bits: u32) -> (Paging, u8) {
    let cr4 = Cr4::from_bits_retain(vcpu.read(SysReg::Cr4));
    let efer = Efer::from_bits_retain(vcpu.read(SysReg::Efer));
    // Slow to read, and rarely needed.
    let pkru = (cr4.contains(Cr4::PKE) && efer.contains(Efer::LMA)).then(|| {
        let mut pkru = [0; 4];
        vcpu.extended(ExtendedRegister::Pkru, &mut pkru);
        u32::from_le_bytes(pkru)
    });
    let paging = Paging {
        cr0: Cr0::from_bits_retain(vcpu.read(SysReg::Cr0)),
        cr3: vcpu.read(SysReg::Cr3),
        cr4,
        efer,
        pkru,
        alignment_check: vcpu.read(SysReg::Rflags) & Rflags::AC.bits() != 0,
        physical_bits,
    };
    (paging, cpl(vcpu))
}

/// The guest's paging structures in its memory.
#[derive(Debug)]
pub struct GuestTables<'a, M> {
    /// The guest's memory.
    pub memory: &'a mut GuestMemory,
    /// The machine's memory.
    pub host: &'a mut M,
}

impl<M: HostMemory> Tables for GuestTables<'_, M> {
    fn entry(&mut self, at: Gpa, width: usize) -> Option<u64> {
        let mut entry = [0; 8];
        self.memory.read(self.host, at, entry.get_mut(..width)?).ok()?;
        Some(u64::from_le_bytes(entry))
    }

    // The processor does this in one locked operation. A VM has one processor, which is not running now.
    fn mark(&mut self, at: Gpa, flags: u8) {
        let mut byte = [0];
        if self.memory.read(self.host, at, &mut byte).is_ok() {
            let marked = self.memory.write(self.host, at, &[byte[0] | flags]);
            debug_assert!(marked.is_ok(), "what was read can be written");
        }
    }
}
