//! After an exit: what decoding needs of the VMCB.

use lamina_arch::svm::exit::Captured;
use lamina_arch::svm::features::Features;
use lamina_arch::svm::vmcb::{self, Vmcb};

/// Reads what the exit's decoding needs.
pub fn capture(vmcb: &Vmcb, features: Features) -> Captured {
    Captured {
        code: vmcb.read(vmcb::EXITCODE),
        info1: vmcb.read(vmcb::EXITINFO1),
        info2: vmcb.read(vmcb::EXITINFO2),
        interrupted: vmcb.read(vmcb::EXITINTINFO),
        rip: vmcb.read(vmcb::RIP),
        next_rip: vmcb.read(vmcb::NEXT_RIP),
        dr6: vmcb.read(vmcb::DR6),
        features,
    }
}
