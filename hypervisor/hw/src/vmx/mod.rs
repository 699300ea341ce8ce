//! Intel VMX: from enabling it to a virtual processor behind the seam.
//!
//! The way of an exit: `entry` saves the general-purpose registers, `capture` makes the only VMREADs that decoding
//! needs, `lamina_arch::vmx::exit` decodes, the run loop decides, and `resume` makes the VMWRITEs of what changed.
//! Never decides anything about a guest.

mod apic;
pub mod bitmaps;
mod cache;
mod capture;
pub mod enable;
mod entry;
mod explain;
mod quick;
mod resume;
mod setup;
mod switched;
pub mod vcpu;
pub mod vmcs;

pub use capture::last_exit;
pub use enable::{Unsupported, Vmx};
pub use vcpu::VmxVcpu;
