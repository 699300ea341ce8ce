//! What a processor does that virtualizes the local APIC: only as much as the run loop can tell from outside.

use std::sync::Arc;

use lamina_arch::addr::Hpa;
use lamina_arch::exit::Exit;

use super::FakeVcpu;
use crate::apic::{ApicMode, ApicPage};
use crate::host::HostMemory;
use crate::layout;

const TPR: usize = 0x80;
const ISR: usize = 0x100;
const IRR: usize = 0x200;

/// The virtualized local APIC of one processor.
pub(super) struct FakeApic {
    registers: Arc<ApicPage>,
    pub(super) access: Hpa,
    pub(super) mode: ApicMode,
    /// Requesting and servicing virtual interrupt: kept, and looked up in the page only when that has been said to have
    /// changed.
    requesting: u8,
    servicing: u8,
    /// Vectors whose end exits.
    exits: [u64; 4],
}

impl FakeApic {
    pub(super) fn new(registers: Arc<ApicPage>, access: Hpa) -> FakeApic {
        FakeApic { registers, access, mode: ApicMode::Off, requesting: 0, servicing: 0, exits: [0; 4] }
    }

    pub(super) fn change(&mut self, mode: ApicMode) {
        self.mode = mode;
        self.exits = self.registers.level_triggered();
        self.look();
    }

    fn look(&mut self) {
        [self.requesting, self.servicing] = self.registers.interrupt_status().to_le_bytes();
    }

    fn set(&self, set: usize, vector: u8, present: bool) {
        let at = set + usize::from(vector / 32) * 16;
        let bit = 1 << (vector % 32);
        let old = self.registers.read(at);
        self.registers.write(at, if present { old | bit } else { old & !bit });
    }

    /// "Virtual-Interrupt Delivery".
    pub(super) fn deliver(&mut self) -> Option<u8> {
        let priority = self.registers.read(TPR).to_le_bytes()[0].max(self.servicing);
        if self.mode == ApicMode::Off || self.requesting >> 4 <= priority >> 4 {
            return None;
        }
        let vector = self.requesting;
        self.set(ISR, vector, true);
        self.set(IRR, vector, false);
        self.look();
        Some(vector)
    }

    /// "EOI Virtualization": the exit, where there is one.
    pub(super) fn end(&mut self) -> Option<Exit> {
        assert_ne!(self.mode, ApicMode::Off, "the guest's access would have exited");
        let vector = self.servicing;
        self.set(ISR, vector, false);
        self.look();
        let exits = self.exits[usize::from(vector / 64)] >> (vector % 64) & 1 != 0;
        exits.then_some(Exit::ApicEoi { vector })
    }

    /// "Self-IPI Virtualization".
    pub(super) fn send(&mut self, vector: u8) {
        assert_ne!(self.mode, ApicMode::Off, "the guest's access would have exited");
        self.set(IRR, vector, true);
        self.look();
    }

    /// A write to the page by the guest, whose exit is that of an APIC write.
    pub(super) fn write(&self, offset: u16, value: u32) -> Exit {
        assert_ne!(self.mode, ApicMode::Off, "the guest's access would have exited");
        self.registers.write(offset.into(), value);
        Exit::ApicWrite { offset }
    }

    pub(super) fn read(&self, offset: u16) -> u32 {
        self.registers.read(offset.into())
    }
}

impl FakeVcpu {
    pub(super) fn apic(&mut self) -> &mut FakeApic {
        self.apic.as_mut().expect("the local APIC is virtualized")
    }

    /// EOI to the virtualized local APIC: the exit, where there is one.
    pub fn end_of_interrupt(&mut self) -> Option<Exit> {
        self.apic().end()
    }

    /// An interrupt to itself through the virtualized local APIC.
    pub fn self_ipi(&mut self, vector: u8) {
        self.apic().send(vector);
    }

    /// A write to a register of the virtualized local APIC, and its exit.
    pub fn write_apic(&mut self, offset: u16, value: u32) -> Exit {
        self.apic().write(offset, value)
    }

    /// A register of the virtualized local APIC, as the guest reads it without an exit.
    pub fn read_apic(&mut self, offset: u16) -> u32 {
        self.apic().read(offset)
    }

    /// Where the page that stands in the place of the local APIC's registers is mapped to, and whether it is there.
    pub fn apic_page(&mut self) -> (Hpa, bool) {
        let (root, access) = (self.root, self.apic().access);
        let mapped = self.world.with(|w| {
            let mut table = root.expect("the nested root is set").0;
            for shift in [39, 30, 21, 12] {
                let entry = w.memory.read_u64(Hpa(table + (layout::LAPIC.0 >> shift & 0x1ff) * 8));
                table = entry & 0x000f_ffff_ffff_f000;
                if entry & 7 == 0 {
                    return false;
                }
            }
            assert_eq!(table, access.0, "the page that the processor was told of");
            true
        });
        (access, mapped)
    }
}
