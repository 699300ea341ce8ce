//! After an exit: what decoding needs of the VMCB.

use core::sync::atomic::Ordering;

use lamina_arch::addr::Hpa;
use lamina_arch::svm::exit::{Captured, decode};
use lamina_arch::svm::features::Features;
use lamina_arch::svm::vmcb::{self, Vmcb};

use crate::memory::direct;
use crate::percpu;

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

/// For the report of a bug: what the guest whose VMCB is loaded last exited for, and its RIP then.
pub fn last_exit() -> Option<(&'static str, u64)> {
    let at = percpu::try_current()?.current_vmcb.load(Ordering::Relaxed);
    if at == 0 {
        return None;
    }
    // SAFETY: a virtual processor's page, which is there at least as long as it is loaded. Whoever was stopped in the
    // middle of changing it does not go on before this copy is made, and any bytes are a VMCB.
    let vmcb = unsafe { direct(Hpa(at)).cast::<Vmcb>().read_volatile() };
    let rip = vmcb.read(vmcb::RIP);
    Some((decode(&capture(&vmcb, Features::empty())).kind().name(), rip))
}
