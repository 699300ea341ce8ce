//! The boot processor's state at a guest's entry, and the descriptor and page tables that it needs in guest memory.

use alloc::vec;
use alloc::vec::Vec;

use lamina_arch::addr::{Gpa, PAGE_2M, PAGE_4K};
use lamina_arch::cr::{Cr0, Cr4, Efer, Rflags};
use lamina_arch::regs::{Gpr, SysReg};
use lamina_arch::segment::{AccessRights, Segment, SegmentName};

use super::bytes::put;
use super::space::Space;
use super::{BOOT_DATA_FLOOR, LoadError, Part, Piece};
use crate::vcpu::Vcpu;

/// The mode that a guest starts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit mode, the first 4 GiB mapped to themselves.
    Long64,
    /// 32-bit protected mode without paging, flat segments.
    Protected32,
}

/// A descriptor-table register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Table {
    /// Linear address, which is the guest-physical one at the entry.
    pub base: u64,
    /// Size minus 1. Unit: bytes.
    pub limit: u16,
}

/// The boot processor at the guest's entry. Registers that are not named are as after INIT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialState {
    /// Mode.
    pub mode: Mode,
    /// First instruction.
    pub rip: u64,
    /// Top of a stack, or 0 where the protocol gives none.
    pub rsp: u64,
    /// CR0.
    pub cr0: Cr0,
    /// CR3: the top page table, or 0.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// IA32_EFER.
    pub efer: Efer,
    /// General-purpose registers that the protocol names; all others are 0.
    pub gprs: Vec<(Gpr, u64)>,
    /// CS, with its hidden part.
    pub code: Segment,
    /// SS, DS, ES, FS, GS, with their hidden part.
    pub data: Segment,
    /// GDT, in guest memory.
    pub gdt: Table,
}

/// Selector of the code segment: Linux' __BOOT_CS.
const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segment: Linux' __BOOT_DS.
const DATA_SELECTOR: u16 = 0x18;
/// Descriptors of the flat segments, accessed, DPL 0 (SDM vol. 3, "Segment Descriptors").
const CODE64_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
const CODE32_DESCRIPTOR: u64 = 0x00cf_9b00_0000_ffff;
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;

/// Page-table entry bits (SDM vol. 3, "4-Level Paging and 5-Level Paging").
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
/// GiB that the page tables map.
const MAPPED_GIB: u64 = 4;
/// First byte that the page tables do not map.
pub const MAPPED_END: u64 = MAPPED_GIB << 30;

impl InitialState {
    /// 64-bit mode at `rip`, with tables that are put into free memory of `space` and added to `pieces`.
    ///
    /// # Errors
    /// [`LoadError::NoRoom`].
    pub(super) fn long64(
        rip: u64,
        rsp: u64,
        gprs: Vec<(Gpr, u64)>,
        space: &mut Space,
        pieces: &mut Vec<(Gpa, Piece<'_>)>,
    ) -> Result<InitialState, LoadError> {
        let tables = space.take_lowest(Part::BootData, (2 + MAPPED_GIB) * PAGE_4K, PAGE_4K, BOOT_DATA_FLOOR)?;
        pieces.push((tables, Piece::Made(identity_tables(tables))));
        let gdt = gdt(CODE64_DESCRIPTOR, space, pieces)?;
        Ok(InitialState {
            mode: Mode::Long64,
            rip,
            rsp,
            cr0: Cr0::PE | Cr0::ET | Cr0::NE | Cr0::PG,
            cr3: tables.0,
            cr4: Cr4::PAE,
            efer: Efer::LME | Efer::LMA,
            gprs,
            code: flat(CODE_SELECTOR, AccessRights::CODE64),
            data: flat(DATA_SELECTOR, AccessRights::DATA32),
            gdt,
        })
    }

    /// Protected mode without paging at `rip`, with a descriptor table that is put into free memory of `space` and
    /// added to `pieces`.
    ///
    /// # Errors
    /// [`LoadError::NoRoom`].
    pub(super) fn protected32(
        rip: u32,
        gprs: Vec<(Gpr, u64)>,
        space: &mut Space,
        pieces: &mut Vec<(Gpa, Piece<'_>)>,
    ) -> Result<InitialState, LoadError> {
        Ok(InitialState {
            mode: Mode::Protected32,
            rip: u64::from(rip),
            rsp: 0,
            cr0: Cr0::PE | Cr0::ET | Cr0::NE,
            cr3: 0,
            cr4: Cr4::empty(),
            efer: Efer::empty(),
            gprs,
            code: flat(CODE_SELECTOR, AccessRights::CODE32),
            data: flat(DATA_SELECTOR, AccessRights::DATA32),
            gdt: gdt(CODE32_DESCRIPTOR, space, pieces)?,
        })
    }

    /// Puts a processor that is as after INIT into this state.
    pub fn apply(&self, vcpu: &mut impl Vcpu) {
        vcpu.write(SysReg::Efer, self.efer.bits());
        vcpu.write(SysReg::Cr4, self.cr4.bits());
        vcpu.write(SysReg::Cr3, self.cr3);
        vcpu.write(SysReg::Cr0, self.cr0.bits());
        vcpu.set_segment(SegmentName::Cs, self.code);
        for name in [SegmentName::Ss, SegmentName::Ds, SegmentName::Es, SegmentName::Fs, SegmentName::Gs] {
            vcpu.set_segment(name, self.data);
        }
        // The processor must have a usable busy TSS, even where the guest has not loaded one (SDM vol. 3, "Checks on
        // Guest Segment Registers").
        let tss = Segment { selector: 0, base: 0, limit: 0xffff, rights: AccessRights::TSS_BUSY };
        vcpu.set_segment(SegmentName::Tr, tss);
        vcpu.set_segment(SegmentName::Ldtr, Segment { rights: AccessRights::UNUSABLE, ..Segment::default() });
        vcpu.write(SysReg::GdtBase, self.gdt.base);
        vcpu.write(SysReg::GdtLimit, u64::from(self.gdt.limit));
        vcpu.write(SysReg::IdtBase, 0);
        vcpu.write(SysReg::IdtLimit, 0);
        vcpu.write(SysReg::Rflags, Rflags::FIXED.bits());
        vcpu.write(SysReg::Rip, self.rip);
        vcpu.write(SysReg::Rsp, self.rsp);
        let registers = vcpu.gprs();
        registers.0 = [0; 16];
        for &(register, value) in &self.gprs {
            registers.set(register, value);
        }
    }
}

fn flat(selector: u16, rights: AccessRights) -> Segment {
    Segment { selector, base: 0, limit: u32::MAX, rights }
}

/// A GDT with the flat segments, in free memory.
fn gdt(code: u64, space: &mut Space, pieces: &mut Vec<(Gpa, Piece<'_>)>) -> Result<Table, LoadError> {
    let bytes: Vec<u8> = [0, 0, code, DATA_DESCRIPTOR].into_iter().flat_map(u64::to_le_bytes).collect();
    let limit = 4 * 8 - 1;
    let at = space.take_lowest(Part::BootData, bytes.len() as u64, PAGE_4K, BOOT_DATA_FLOOR)?;
    pieces.push((at, Piece::Made(bytes)));
    Ok(Table { base: at.0, limit })
}

/// Page tables for `at` that map the first 4 GiB to themselves in pages of 2 MiB: the top table, one table of page
/// directories, and the directories.
fn identity_tables(at: Gpa) -> Vec<u8> {
    let mut bytes = vec![0; 4096 * 6];
    let mut entry = |index: usize, value: u64| put(&mut bytes, index * 8, &value.to_le_bytes());
    entry(0, (at.0 + PAGE_4K) | PRESENT_WRITABLE);
    for directory in 0..4u16 {
        entry(512 + usize::from(directory), (at.0 + (2 + u64::from(directory)) * PAGE_4K) | PRESENT_WRITABLE);
    }
    for page in 0..2048u16 {
        let address = u64::from(page) * PAGE_2M;
        entry(1024 + usize::from(page), address | PRESENT_WRITABLE | LARGE_PAGE);
    }
    bytes
}
