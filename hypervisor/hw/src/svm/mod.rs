//! AMD SVM: from enabling it to a virtual processor behind the seam.
//!
//! The way of an exit: `entry` saves the general-purpose registers, `capture` reads from the VMCB what decoding needs,
//! `lamina_arch::svm::exit` decodes, the run loop decides, and `resume` writes what belongs to the next entry. The VMCB
//! is ordinary memory, so there is nothing to cache: registers are read and written in place, and the clean bits tell
//! the processor what has changed. Never decides anything about a guest.

mod asid;
pub mod bitmaps;
mod capture;
pub mod enable;
mod entry;
mod explain;
mod quick;
mod read_shadow;
mod resume;
mod setup;
mod step;
mod switched;
pub mod vcpu;
pub mod vmcb;

pub use capture::last_exit;
pub use enable::{Svm, Unsupported};
pub use vcpu::SvmVcpu;
