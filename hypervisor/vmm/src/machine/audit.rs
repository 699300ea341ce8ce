//! The audit: whether what isolates the VMs is as it should be.
//!
//! Owns the rules. Every frame that is taken has one owner; what a VM's nested tables map is that VM's own memory, at
//! its place, and nothing else; a frame in the stock is clear; and of the hypervisor's own memory the machine says
//! what is wrong with it. Never changes anything, and never runs while a guest does.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use lamina_arch::addr::{Hpa, PAGE_4K};

use super::{Machine, State};
use crate::chipset::Chipset;
use crate::frames::{Census, FrameSize};
use crate::host::Host;
use crate::nested::{Access, Visited};

/// Violations that are told; of more, only their number.
const TOLD: usize = 16;
/// Pages and frames that are looked at in one step.
const STEP: u64 = 1 << 14;

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Frames of 4 KiB that VMs, their tables and the stock have.
    pub frames: u64,
    /// Pages that nested tables map.
    pub pages: u64,
    /// What is wrong, a sentence each; at most [`TOLD`].
    pub violations: Vec<String>,
    /// How much is wrong.
    pub count: u64,
}

impl Audit {
    fn violation(&mut self, what: String) {
        self.count += 1;
        if self.violations.len() < TOLD {
            self.violations.push(what);
        }
    }
}

impl<H: Host, C: Chipset> Machine<H, C> {
    /// Looks at everything. Takes a time that grows with the machine's memory.
    pub(super) fn audit(&mut self) -> Audit {
        let mut audit = Audit::default();
        let stock = self.host.stock().frames().to_vec();
        let Some(mut census) = Census::new(&self.pool) else {
            audit.violation(String::from("not done: the heap has no room for it"));
            return audit;
        };
        self.each_claim(&stock, &mut |owner, at, size| {
            if let Err(wrong) = census.claim(at, size) {
                audit.violation(format!("{owner}: {wrong}"));
            }
        });
        for slot in &self.slots {
            let State::Alive(vm) = &slot.state else { continue };
            vm.tables().visit(&self.host, &mut |visited| {
                let Visited::Page { gpa, hpa, size, access } = visited else { return };
                audit.pages += 1;
                if audit.pages.is_multiple_of(STEP) {
                    self.host.progress();
                }
                let may = vm.memory.mapping(&self.host, gpa, size);
                let own = may.is_some_and(|(own, most)| own == hpa && within(access, most));
                let apic = vm.access_page.as_ref().is_some_and(|page| page.explains(gpa, hpa, size, access));
                if !own && !apic {
                    let kib = size.bytes() >> 10;
                    audit.violation(format!(
                        "{}: {kib} KiB at guest address {gpa:#x} are mapped to {hpa:#x} for {access}",
                        vm.name
                    ));
                }
            });
        }
        for at in stock {
            if (0..PAGE_4K).step_by(8).any(|offset| self.host.read_u64(at + offset) != 0) {
                audit.violation(format!("the stock: frame {at:#x} is not clear"));
            }
        }
        audit.frames = census.claimed();
        if let Some((first, count)) = census.lost() {
            audit.violation(format!("{count} frames are taken and nobody has them, {first:#x} first"));
        }
        self.host.audit(&mut |wrong| audit.violation(wrong));
        audit
    }

    /// Tells `claim` of every frame that a VM which lives, its tables or the stock has, or that nobody gets any more: whose
    /// it is, where, and its size.
    pub(super) fn each_claim(&self, stock: &[Hpa], claim: &mut dyn FnMut(&str, Hpa, FrameSize)) {
        let mut claimed = 0u64;
        for slot in &self.slots {
            let State::Alive(vm) = &slot.state else { continue };
            self.host.progress();
            for (_, at, size) in vm.memory.owned(&self.host) {
                claim(&vm.name, at, size);
                claimed += 1;
                if claimed.is_multiple_of(STEP) {
                    self.host.progress();
                }
            }
            if let Some(page) = &vm.access_page {
                claim(&vm.name, page.frame(), FrameSize::Size4K);
            }
            vm.tables().visit(&self.host, &mut |visited| {
                if let Visited::Table(at) = visited {
                    claim(&vm.name, at, FrameSize::Size4K);
                }
            });
        }
        for &at in stock {
            claim("the stock", at, FrameSize::Size4K);
        }
        for at in self.withheld.iter(&self.pool) {
            claim("withheld", at, FrameSize::Size4K);
        }
    }
}

/// Whether `access` allows nothing beyond `most`.
const fn within(access: Access, most: Access) -> bool {
    (!access.read || most.read) && (!access.write || most.write) && (!access.execute || most.execute)
}
