//! Loads of DS, ES, FS and GS (SDM vol. 2, "MOV—Move", loads of segment registers; vol. 3, "Segment Descriptors").
//!
//! Loads of SS are refused: they would begin a one-instruction shadow, and no stack segment comes from a device.

use lamina_arch::addr::Gla;
use lamina_arch::cr::Rflags;
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::exit::Width;
use lamina_arch::regs::SysReg;
use lamina_arch::segment::{AccessRights, Segment, SegmentName};

use super::{Context, Processor, Purpose, Refused};

/// A segment of virtual-8086 mode: writable data, present, DPL 3, accessed.
const VIRTUAL_8086: AccessRights = AccessRights(0xf3);

const ACCESSED: u64 = 1 << 40;

impl<P: Processor> Context<'_, P> {
    /// Loads `name` with the segment that `selector` (16 bits) chooses.
    ///
    /// # Errors
    /// #GP, #NP or #PF as the manual says; other segment registers are not emulated.
    pub(super) fn load_segment(&mut self, name: SegmentName, selector: u64) -> Result<(), Refused> {
        if matches!(name, SegmentName::Ss | SegmentName::Cs | SegmentName::Ldtr | SegmentName::Tr) {
            return Err(self.unsupported());
        }
        let visible = u16::try_from(selector).unwrap_or(0);
        if !self.is_protected() {
            let old = self.processor.segment(name);
            let base = selector << 4;
            let virtual_8086 = self.flags().contains(Rflags::VM);
            let segment = if virtual_8086 {
                Segment { selector: visible, base, limit: 0xffff, rights: VIRTUAL_8086 }
            } else {
                // Real mode leaves limit and rights as they were.
                Segment { selector: visible, base, ..old }
            };
            self.processor.set_segment(name, segment);
            return Ok(());
        }
        if selector & !3 == 0 {
            let null = Segment { selector: visible, base: 0, limit: 0, rights: AccessRights::UNUSABLE };
            self.processor.set_segment(name, null);
            return Ok(());
        }
        let segment = self.descriptor(visible)?;
        self.processor.set_segment(name, segment);
        Ok(())
    }

    /// Reads and checks the descriptor of a data segment, and marks it accessed.
    fn descriptor(&mut self, selector: u16) -> Result<Segment, GuestFault> {
        let error = Some(u32::from(selector & !3));
        let denied = GuestFault { vector: vector::GP, error, cr2: None };
        let (base, limit) = if selector & 4 != 0 {
            let table = self.processor.segment(SegmentName::Ldtr);
            if table.rights.is_unusable() {
                return Err(denied);
            }
            (table.base, u64::from(table.limit))
        } else {
            (self.processor.read(SysReg::GdtBase), self.processor.read(SysReg::GdtLimit))
        };
        let offset = u64::from(selector & !7);
        if offset + 7 > limit {
            return Err(denied);
        }
        let mut at = Gla(base.wrapping_add(offset));
        if !self.is_64() {
            at.0 &= 0xffff_ffff;
        }
        let place = self.pages(at, 8, Purpose::SystemRead)?;
        let value = self.load(place, Width::B8);
        let rights = AccessRights(u32::try_from(value >> 40 & 0xf0ff).unwrap_or(0));
        let (code, conforming, readable) = (rights.bit(3), rights.bit(2), rights.bit(1));
        let privilege = u8::try_from(selector & 3).unwrap_or(3).max(self.cpl());
        let outranked = !(code && conforming) && privilege > rights.dpl();
        if !rights.bit(4) || code && !readable || outranked {
            return Err(denied);
        }
        if !rights.bit(7) {
            return Err(GuestFault { vector: vector::NP, error, cr2: None });
        }
        if value & ACCESSED == 0 {
            let place = self.pages(at, 8, Purpose::SystemWrite)?;
            self.store(place, Width::B8, value | ACCESSED);
        }
        let limit = u32::try_from(value >> 32 & 0xf_0000 | value & 0xffff).unwrap_or(0);
        Ok(Segment {
            selector,
            base: value >> 16 & 0xff_ffff | value >> 32 & 0xff00_0000,
            limit: if rights.bit(15) { limit << 12 | 0xfff } else { limit },
            rights: AccessRights(rights.0 | 1),
        })
    }
}
