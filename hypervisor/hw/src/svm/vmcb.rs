//! The page of a VMCB, and the instructions that take its address.

use core::arch::asm;

use lamina_arch::addr::Hpa;
use lamina_arch::svm::vmcb::Vmcb;

use crate::memory::HostPage;

/// A VMCB where the processor finds it.
pub struct VmcbPage(HostPage);

impl VmcbPage {
    /// All zero.
    pub fn new() -> VmcbPage {
        VmcbPage(HostPage::new())
    }

    /// Its address.
    pub fn hpa(&self) -> Hpa {
        self.0.hpa()
    }

    /// Its fields. The processor writes them in VMRUN and VMSAVE only, which need this borrow to have ended.
    pub const fn fields(&mut self) -> &mut Vmcb {
        let fields = self.0.as_ptr().cast::<Vmcb>();
        // SAFETY: a `Vmcb` is 4096 bytes of any value, aligned like a page; the page is ours, and borrowed mutably.
        unsafe { &mut *fields }
    }
}

impl Default for VmcbPage {
    fn default() -> Self {
        Self::new()
    }
}

/// VMSAVE of this processor's state to `to`: FS, GS, TR, LDTR with their hidden parts, and the MSRs of SYSCALL and
/// SYSENTER.
pub fn save_host(to: &mut VmcbPage) {
    // SAFETY: SVM is on (`Svm::enable` calls this after it has turned it on), and the page is ours.
    unsafe { asm!("vmsave rax", in("rax") to.hpa().0, options(nostack, preserves_flags)) };
}
