//! Descriptors in the guest's tables (SDM vol. 3, "Segment Descriptors", "System Descriptor Types").

use lamina_arch::addr::{Gla, PAGE_4K};
use lamina_arch::cr::Efer;
use lamina_arch::event::GuestFault;
use lamina_arch::regs::SysReg;
use lamina_arch::segment::{AccessRights, Segment, SegmentName};

use super::{Processor, Purpose};

/// The byte that has a code or data segment's accessed flag in bit 0, and a TSS' busy flag in bit 1. Unit: bytes.
const TYPE: u64 = 5;

/// A segment or system descriptor.
#[derive(Clone, Copy)]
pub struct Descriptor {
    /// Its linear address.
    pub at: u64,
    /// Its 8 bytes.
    pub value: u64,
}

impl Descriptor {
    pub fn rights(self) -> AccessRights {
        AccessRights(u32::try_from(self.value >> 40 & 0xf0ff).unwrap_or(0))
    }

    pub fn base(self) -> u64 {
        self.value >> 16 & 0xff_ffff | self.value >> 32 & 0xff00_0000
    }

    /// With the granularity applied. Unit: bytes.
    pub fn limit(self) -> u32 {
        let limit = u32::try_from(self.value >> 32 & 0xf_0000 | self.value & 0xffff).unwrap_or(0);
        if self.rights().bit(15) { limit << 12 | 0xfff } else { limit }
    }

    /// The segment register that was loaded with it.
    pub fn segment(self, selector: u16) -> Segment {
        Segment { selector, base: self.base(), limit: self.limit(), rights: self.rights() }
    }

    /// The four bits of its type, where it is a system descriptor.
    pub fn system(self) -> Option<u32> {
        let rights = self.rights();
        if rights.bit(4) { None } else { Some(rights.kind()) }
    }

    pub fn is_present(self) -> bool {
        self.rights().bit(7)
    }

    /// Marks a code or data segment accessed, where it is not.
    ///
    /// # Errors
    /// The page fault that the guest gets.
    pub fn mark_accessed<P: Processor>(self, processor: &mut P) -> Result<(), GuestFault> {
        self.set_type_bit(processor, 0)
    }

    /// Marks a TSS busy.
    ///
    /// # Errors
    /// The page fault that the guest gets.
    pub fn mark_busy<P: Processor>(self, processor: &mut P) -> Result<(), GuestFault> {
        self.set_type_bit(processor, 1)
    }

    fn set_type_bit<P: Processor>(self, processor: &mut P, bit: u32) -> Result<(), GuestFault> {
        let [.., kind, _, _] = self.value.to_le_bytes();
        if kind >> bit & 1 == 0 {
            let at = linear(processor, self.at.wrapping_add(TYPE));
            let place = processor.translate(at, Purpose::SystemWrite)?;
            processor.store(place, &[kind | 1 << bit]);
        }
        Ok(())
    }
}

/// An address in a table: 32 bits, but for IA-32e mode.
fn linear<P: Processor>(processor: &mut P, at: u64) -> Gla {
    let long = processor.read(SysReg::Efer) & Efer::LMA.bits() != 0;
    Gla(if long { at } else { at & 0xffff_ffff })
}

/// Reads 8 bytes of a table.
///
/// # Errors
/// The page fault that the guest gets.
pub fn read<P: Processor>(processor: &mut P, at: u64) -> Result<u64, GuestFault> {
    let mut bytes = [0; 8];
    let mut done = 0;
    while done < bytes.len() {
        let here = linear(processor, at.wrapping_add(done as u64));
        let left = usize::try_from(PAGE_4K - here.offset_in(PAGE_4K)).unwrap_or(1);
        let end = bytes.len().min(done + left);
        let place = processor.translate(here, Purpose::SystemRead)?;
        if let Some(part) = bytes.get_mut(done..end) {
            processor.load(place, part);
        }
        done = end;
    }
    Ok(u64::from_le_bytes(bytes))
}

/// The descriptor that `selector` chooses; `None` outside of its table, where its last byte is `size` bytes behind its
/// beginning.
///
/// # Errors
/// The page fault that the guest gets.
pub fn find<P: Processor>(processor: &mut P, selector: u16, size: u64) -> Result<Option<Descriptor>, GuestFault> {
    let (base, limit) = if selector & 4 != 0 {
        let table = processor.segment(SegmentName::Ldtr);
        if table.rights.is_unusable() {
            return Ok(None);
        }
        (table.base, u64::from(table.limit))
    } else {
        (processor.read(SysReg::GdtBase), processor.read(SysReg::GdtLimit))
    };
    let offset = u64::from(selector & !7);
    if offset + size - 1 > limit {
        return Ok(None);
    }
    let at = linear(processor, base.wrapping_add(offset)).0;
    Ok(Some(Descriptor { at, value: read(processor, at)? }))
}
