//! Harm done on command, so that a test sees the audit find it. Only in builds for that.

use alloc::format;

use lamina_arch::addr::{Gpa, Hpa, PAGE_4K};

use super::{Machine, State};
use crate::chipset::Chipset;
use crate::frames::{FrameSize, fill_stock};
use crate::host::Host;
use crate::layout::PCI_HOLE;

/// Where a page is mapped that should not be: no VM has memory there, and no device listens.
const NOWHERE: Gpa = Gpa(PCI_HOLE.0 + 0x1000_0000);
/// Memory that is the firmware's, and no VM's ever.
const FIRMWARE: Hpa = Hpa(PAGE_4K);

impl<H: Host, C: Chipset> Machine<H, C> {
    /// Does the harm that is called `kind`.
    pub(super) fn plant(&mut self, kind: &str) {
        let done = match kind {
            "shared-frame" => self.memory_of(1).is_some_and(|frame| self.map_for_first(frame)),
            "table-frame" => {
                let root = self.slots.iter().find_map(|slot| match &slot.state {
                    State::Alive(vm) => Some(vm.tables().root()),
                    State::Ended { .. } => None,
                });
                root.is_some_and(|frame| self.map_for_first(frame))
            }
            "hypervisor-frame" => self.map_for_first(FIRMWARE),
            "lost-frame" => self.pool.allocate(FrameSize::Size4K).is_some(),
            "freed-frame" => {
                let frame = self.memory_of(0);
                frame.is_some_and(|frame| self.pool.free(frame, FrameSize::Size4K).is_ok())
            }
            "dirty-frame" => {
                let filled = fill_stock(&mut self.host, &mut self.pool, 1);
                let frame = self.host.stock().frames().first().copied();
                if let Some(frame) = frame {
                    self.host.write_u64(frame + 8, 1);
                }
                filled && frame.is_some()
            }
            "mapped-frame" => self.memory_of(0).is_some_and(|frame| self.host.plant_mapping(frame)),
            "writable-code" => self.host.plant_writable_code(),
            _ => false,
        };
        let told = if done { "is done" } else { "cannot be done" };
        self.console.reply(&format!("plant: {kind} {told}"));
    }

    /// A frame of the VM in place `index`, or the first 4 KiB of a larger one.
    fn memory_of(&self, index: usize) -> Option<Hpa> {
        let State::Alive(vm) = &self.slots.get(index)?.state else { return None };
        vm.memory.owned(&self.host).next().map(|(_, frame, _)| frame)
    }

    /// Maps `frame` for the first VM that lives, where it has no memory.
    fn map_for_first(&mut self, frame: Hpa) -> bool {
        let vm = self.slots.iter_mut().find_map(|slot| match &mut slot.state {
            State::Alive(vm) => Some(vm),
            State::Ended { .. } => None,
        });
        vm.is_some_and(|vm| vm.map(&mut self.host, &mut self.pool, NOWHERE, frame, FrameSize::Size4K).is_ok())
    }
}
