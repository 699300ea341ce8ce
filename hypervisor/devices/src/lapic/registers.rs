//! Where the local APIC keeps its registers: a page that a processor can be given (`lamina_vmm::apic`).

use alloc::sync::Arc;
use lamina_vmm::apic::ApicPage;

/// The registers, by number: offset in the page divided by 16. A clone has a page of its own.
#[derive(Debug, PartialEq)]
pub(super) struct Registers(Arc<ApicPage>);

impl Clone for Registers {
    fn clone(&self) -> Registers {
        Registers(self.0.copy())
    }
}

impl Registers {
    /// The page itself.
    pub(super) fn page(&self) -> Arc<ApicPage> {
        self.0.clone()
    }

    /// Registers that are 0.
    pub(super) fn new() -> Registers {
        Registers(ApicPage::new())
    }

    const fn offset(number: u32) -> usize {
        number as usize * 16
    }

    #[inline]
    pub(super) fn read(&self, number: u32) -> u32 {
        self.0.read(Self::offset(number))
    }

    #[inline]
    pub(super) fn write(&self, number: u32, value: u32) {
        self.0.write(Self::offset(number), value);
    }

    /// Bits 63:32 of a register that has so many. Only the x2APIC's interrupt command register has.
    pub(super) fn read_high(&self, number: u32) -> u32 {
        self.0.read(Self::offset(number) + 4)
    }

    /// Sets bits 63:32.
    pub(super) fn write_high(&self, number: u32, value: u32) {
        self.0.write(Self::offset(number) + 4, value);
    }

    /// The same registers, all of them 0 now, for who takes the place of their owner.
    pub(super) fn cleared(&self) -> Registers {
        self.0.clear();
        Registers(self.0.clone())
    }
}
