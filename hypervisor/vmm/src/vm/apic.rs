//! The local APIC where the processor virtualizes it: the page that stands in its place in the guest's memory.
//!
//! Owns that page, a frame of the VM's whose contents nobody ever sees, and whether it is mapped. Only while the
//! registers are in memory and the processor turns accesses to them aside does the guest's memory have it.

use alloc::string::{String, ToString};

use lamina_arch::addr::{Gpa, Hpa, PAGE_4K};

use super::Vm;
use crate::apic::ApicMode;
use crate::chipset::Chipset;
use crate::frames::{FramePool, FrameSize};
use crate::host::HostMemory;
use crate::layout;
use crate::nested::{Access, TableFrames};
use crate::vcpu::Vcpu;

/// The page in the place of the registers.
#[derive(Debug)]
pub struct AccessPage {
    frame: Hpa,
    mapped: bool,
}

impl AccessPage {
    /// The frame.
    pub(crate) const fn frame(&self) -> Hpa {
        self.frame
    }

    /// Whether the nested tables may map `hpa` at `gpa` for its sake, with `access`.
    pub(crate) fn explains(&self, gpa: Gpa, hpa: Hpa, size: FrameSize, access: Access) -> bool {
        self.mapped && gpa == layout::LAPIC && hpa == self.frame && size == FrameSize::Size4K && access == Access::RW
    }

    /// Gives the frame back, which nothing maps any more.
    pub(super) fn release(self, pool: &mut FramePool) {
        pool.free_table(self.frame);
    }
}

impl<V: Vcpu, C: Chipset> Vm<V, C> {
    /// Has the processor virtualize the local APIC, where both can. It is on from the first look of the run loop.
    ///
    /// # Errors
    /// A sentence that says what there was not enough memory for. The VM is to be given back then.
    pub(super) fn virtualize_apic(&mut self, host: &mut impl HostMemory, pool: &mut FramePool) -> Result<(), String> {
        if !self.vcpu.virtualizes_apic() {
            return Ok(());
        }
        let Some(registers) = self.chipset.virtualize_apic() else { return Ok(()) };
        let frame = pool.allocate(FrameSize::Size4K).ok_or("no frame is left for its local APIC")?;
        // Nobody reads it, but nobody shall find there what was another VM's either.
        host.zero(frame, PAGE_4K);
        self.memory.announce_page(host, frame, Access::RW);
        self.access_page = Some(AccessPage { frame, mapped: false });
        let mapped = self.tables.map(host, pool, layout::LAPIC, frame, PAGE_4K, Access::RW);
        // Nothing has walked these tables yet, so nothing of them can be cached.
        mapped.map_err(|error| error.to_string())?.acknowledge(pool);
        // From here on the tables to the page are there, and it can be mapped again at any time.
        self.tables.unmap_small(host, layout::LAPIC);
        self.vcpu.virtualize_apic(registers, frame);
        Ok(())
    }

    /// Tells the processor what has changed of the local APIC, if anything has.
    pub(crate) fn follow_apic(&mut self, host: &mut impl HostMemory) {
        let Some(page) = &mut self.access_page else { return };
        let Some(mode) = self.chipset.take_apic_change() else { return };
        let mapped = mode == ApicMode::Xapic;
        if mapped != page.mapped {
            // Before the processor looks aside no longer, the page is gone; where it stays absent, accesses exit.
            page.mapped = if mapped {
                self.tables.map_absent(host, layout::LAPIC, page.frame, Access::RW)
            } else {
                !self.tables.unmap_small(host, layout::LAPIC)
            };
            self.vcpu.invalidate_nested();
        }
        self.vcpu.apic_changed(mode);
    }
}
