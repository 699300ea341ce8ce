//! Loads of the segment registers but CS (SDM vol. 2, "MOV—Move", loads of segment registers; vol. 3, "Segment
//! Descriptors").

use lamina_arch::cr::Rflags;
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::segment::{AccessRights, Segment, SegmentName};

use super::descriptor::{self, Descriptor};
use super::{Context, Processor};

/// A segment of virtual-8086 mode: writable data, present, DPL 3, accessed.
const VIRTUAL_8086: AccessRights = AccessRights(0xf3);

/// The fault whose error code names `selector`.
pub fn selector_fault(vector: u8, selector: u16) -> GuestFault {
    GuestFault { vector, error: Some(u32::from(selector & !3)), cr2: None }
}

/// A segment that was found good, and where it came from, to be marked accessed.
pub type Found = (Segment, Option<Descriptor>);

impl<P: Processor> Context<'_, P> {
    /// Loads `name`, which is not CS, with the segment that `selector` chooses.
    ///
    /// # Errors
    /// #GP, #NP, #SS or #PF as the manual says, with nothing changed.
    pub(super) fn load_segment(&mut self, name: SegmentName, selector: u16) -> Result<(), GuestFault> {
        let found = self.find_segment(name, selector)?;
        self.use_segment(name, found)
    }

    /// Puts a segment that was found good in place.
    ///
    /// # Errors
    /// The page fault of marking it accessed, with nothing changed.
    pub(super) fn use_segment(&mut self, name: SegmentName, (segment, from): Found) -> Result<(), GuestFault> {
        if let Some(descriptor) = from {
            descriptor.mark_accessed(self.processor)?;
        }
        self.processor.set_segment(name, segment);
        Ok(())
    }

    /// The segment that a load of `name` with `selector` makes.
    ///
    /// # Errors
    /// See [`Context::load_segment`].
    pub(super) fn find_segment(&mut self, name: SegmentName, selector: u16) -> Result<Found, GuestFault> {
        if !self.is_protected() {
            return Ok((self.unprotected_segment(name, selector), None));
        }
        let cpl = self.cpl();
        if name == SegmentName::Ss {
            let long = self.is_64();
            return self.stack_segment(selector, cpl, long);
        }
        if selector & !3 == 0 {
            return Ok((Segment { selector, rights: AccessRights::UNUSABLE, ..Segment::default() }, None));
        }
        let denied = selector_fault(vector::GP, selector);
        let found = descriptor::find(self.processor, selector, 8)?.ok_or(denied)?;
        let rights = found.rights();
        let (code, conforming, readable) = (rights.bit(3), rights.bit(2), rights.bit(1));
        let privilege = u8::try_from(selector & 3).unwrap_or(3).max(cpl);
        let outranked = !(code && conforming) && privilege > rights.dpl();
        if !rights.bit(4) || code && !readable || outranked {
            return Err(denied);
        }
        if !found.is_present() {
            return Err(selector_fault(vector::NP, selector));
        }
        Ok((accessed(found.segment(selector)), Some(found)))
    }

    /// The stack segment that `selector` chooses at the privilege level `cpl`, for 64-bit code or not.
    ///
    /// # Errors
    /// #GP, #SS or #PF.
    pub(super) fn stack_segment(&mut self, selector: u16, cpl: u8, long: bool) -> Result<Found, GuestFault> {
        let requested = u8::try_from(selector & 3).unwrap_or(3);
        if selector & !3 == 0 {
            if !long || cpl == 3 || requested != cpl {
                return Err(GuestFault::GP0);
            }
            // The privilege level is kept in it all the same.
            let rights = AccessRights(AccessRights::UNUSABLE.0 | u32::from(cpl) << 5);
            return Ok((Segment { selector, rights, ..Segment::default() }, None));
        }
        let denied = selector_fault(vector::GP, selector);
        let found = descriptor::find(self.processor, selector, 8)?.ok_or(denied)?;
        let rights = found.rights();
        let writable_data = rights.bit(4) && !rights.bit(3) && rights.bit(1);
        if !writable_data || requested != cpl || rights.dpl() != cpl {
            return Err(denied);
        }
        if !found.is_present() {
            return Err(selector_fault(vector::SS, selector));
        }
        Ok((accessed(found.segment(selector)), Some(found)))
    }

    /// What a load of `name` makes where segments have no descriptors.
    pub(super) fn unprotected_segment(&mut self, name: SegmentName, selector: u16) -> Segment {
        let base = u64::from(selector) << 4;
        if self.flags().contains(Rflags::VM) {
            return Segment { selector, base, limit: 0xffff, rights: VIRTUAL_8086 };
        }
        // Real mode leaves limit and rights as they were.
        Segment { selector, base, ..self.processor.segment(name) }
    }
}

/// As it is once its descriptor is marked.
pub fn accessed(mut segment: Segment) -> Segment {
    segment.rights.0 |= 1;
    segment
}
