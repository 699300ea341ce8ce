//! Turning SVM on (APM vol. 2, "Enabling SVM"), and what every virtual processor shares: the permission maps and the
//! host's state.

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

use lamina_arch::msr;
use lamina_arch::speculation::{Mitigations, Plan};
use lamina_arch::svm::features::{Capabilities, Features, LEAF, LEAF1_ECX_SVM, VM_CR_SVMDIS};
use lamina_arch::svm::speculation::plan;
use lamina_vmm::frames::FrameSize;
use raw_cpuid::native_cpuid::cpuid_count;
use raw_cpuid::{CpuId, CpuIdResult, Hypervisor};
use x86_64::registers::control::{Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

use super::asid::Asid;
use super::bitmaps;
use super::vcpu::SvmVcpu;
use super::vmcb::{VmcbPage, save_host};
use crate::memory::{HostBlock, HostPage};
use crate::msr_safe::{rdmsr_safe, wrmsr_safe};
use crate::platform::Backend;
use crate::{control, speculation, xstate};

/// Why SVM cannot be used here. Its display is one line for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// CPUID does not show SVM.
    NoSvm,
    /// VM_CR.SVMDIS; whether it takes a key to clear it.
    Disabled {
        /// CPUID says that it is locked.
        locked: bool,
    },
    /// No nested paging.
    NoNestedPaging,
    /// No XSAVE.
    NoXsave,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsupported::NoSvm => write!(f, "this processor has no AMD-V (CPUID 0x80000001:ECX.SVM is 0)"),
            Unsupported::Disabled { locked: false } => {
                write!(f, "AMD-V is disabled in VM_CR.SVMDIS: turn it on in the firmware's set-up")
            }
            Unsupported::Disabled { locked: true } => {
                write!(
                    f,
                    "AMD-V is disabled in VM_CR.SVMDIS and locked with a key: turn it on in the firmware's set-up"
                )
            }
            Unsupported::NoNestedPaging => write!(f, "this processor's AMD-V lacks nested paging"),
            Unsupported::NoXsave => write!(f, "this processor has no XSAVE"),
        }
    }
}

/// What is asked of the processor before anything is changed.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// CPUID shows SVM.
    svm: bool,
    /// CPUID shows XSAVE.
    xsave: bool,
    /// VM_CR; 0 where there is no SVM.
    vm_cr: u64,
    features: Features,
}

impl Found {
    /// Whether that is enough. SVM's own defects come first: they are what a user can mend.
    fn check(&self) -> Result<(), Unsupported> {
        if !self.svm {
            return Err(Unsupported::NoSvm);
        }
        if self.vm_cr & VM_CR_SVMDIS != 0 {
            return Err(Unsupported::Disabled { locked: self.features.contains(Features::LOCK) });
        }
        if !self.features.contains(Features::NESTED_PAGING) {
            return Err(Unsupported::NoNestedPaging);
        }
        if !self.xsave {
            return Err(Unsupported::NoXsave);
        }
        Ok(())
    }
}

/// CPUID leaf 0x80000008, EBX: XSaveErPtr: XRSTOR always loads the x87 error pointers (APM vol. 3, "Fn8000_0008_EBX").
const ERROR_POINTERS: u32 = 1 << 2;

/// What every virtual processor refers to; lives as long as the machine.
pub struct Shared {
    /// What the processor can do.
    pub capabilities: Capabilities,
    /// The largest page of nested tables.
    pub largest_page: FrameSize,
    /// The processor has TSC_AUX.
    pub tsc_aux: bool,
    /// XRSTOR leaves the addresses of the last x87 instruction as they are where no exception waits.
    pub keeps_pointers: bool,
    /// The processor is QEMU's emulation: what EVENTINJ injects may come twice there (see `resume`), and VMEXIT_INVALID may be
    /// an exit of the guest's.
    pub is_qemu: bool,
    /// What is done against speculation.
    pub plan: Plan,
    /// Which MSRs do not exit.
    pub msr_map: HostBlock,
    /// Which ports do not exit.
    pub io_map: HostBlock,
    /// This processor's state as VMSAVE has it, for VMLOAD after each exit.
    pub host: VmcbPage,
    /// The host save area: the processor's while SVM is on.
    _save_area: HostPage,
}

/// SVM, turned on.
pub struct Svm {
    shared: &'static Shared,
}

impl Svm {
    /// Checks that this processor can do what is needed, and turns SVM on, and the defences that are wanted. After the
    /// processor's tables are in place: its segment state is saved here.
    ///
    /// # Errors
    /// [`Unsupported`], with nothing changed.
    pub fn enable(wanted: Mitigations) -> Result<Svm, Unsupported> {
        let cpuid = CpuId::new();
        let highest = cpuid_count(0x8000_0000, 0).eax;
        let svm = highest >= LEAF && cpuid_count(0x8000_0001, 0).ecx & LEAF1_ECX_SVM != 0;
        let physical = cpuid.get_processor_capacity_feature_info().map_or(36, |w| w.physical_address_bits());
        let leaf = if svm { cpuid_count(LEAF, 0) } else { CpuIdResult { eax: 0, ebx: 0, ecx: 0, edx: 0 } };
        let capabilities = Capabilities::of([leaf.eax, leaf.ebx, leaf.ecx, leaf.edx], physical);
        // SAFETY: every processor with SVM has VM_CR, and reading it changes nothing.
        let vm_cr = if svm { unsafe { Msr::new(msr::VM_CR).read() } } else { 0 };
        let xsave = cpuid.get_feature_info().is_some_and(|f| f.has_xsave());
        Found { svm, xsave, vm_cr, features: capabilities.features }.check()?;
        let tsc_aux = cpuid.get_extended_processor_and_feature_identifiers().is_some_and(|f| f.has_rdtscp());
        let save_area = HostPage::new();
        // SAFETY: SVM is there and not disabled; the bit only makes its instructions and VM_HSAVE_PA available.
        unsafe { Efer::update(|efer| efer.insert(EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE)) };
        // SAFETY: the area is a page of ours that nobody else touches from here on.
        unsafe { Msr::new(msr::VM_HSAVE_PA).write(save_area.hpa().0) };
        serialize_lfence();
        xstate::enable();
        let enumerated = speculation::enumerated();
        let plan = plan(wanted, &enumerated);
        speculation::begin(&plan);
        let mut host = VmcbPage::new();
        save_host(&mut host);
        let shared = Box::leak(Box::new(Shared {
            capabilities,
            largest_page: if control::has_huge_pages() { FrameSize::Size1G } else { FrameSize::Size2M },
            tsc_aux,
            keeps_pointers: enumerated.leaf8_ebx & ERROR_POINTERS == 0,
            is_qemu: cpuid.get_hypervisor_info().is_some_and(|info| info.identify() == Hypervisor::QEMU),
            plan,
            msr_map: bitmaps::msr(tsc_aux),
            io_map: bitmaps::io(),
            host,
            _save_area: save_area,
        }));
        log::debug!("SVM: {} ASIDs, {:?}", capabilities.asids, capabilities.features);
        Ok(Svm { shared })
    }
}

/// Makes LFENCE wait for all instructions before it, as the defences against speculation, ours and the guests', take it to.
/// Not every processor has the bit: some always wait.
fn serialize_lfence() {
    const LFENCE_SERIALIZES: u64 = 1 << 1;
    let Some(value) = rdmsr_safe(msr::DE_CFG).filter(|value| value & LFENCE_SERIALIZES == 0) else { return };
    // SAFETY: the bit only makes LFENCE slower.
    unsafe { wrmsr_safe(msr::DE_CFG, value | LFENCE_SERIALIZES) };
}

impl Backend for Svm {
    type Vcpu = SvmVcpu;

    fn create_vcpu(&mut self, vm: u16) -> Result<SvmVcpu, String> {
        let asid = Asid::of(vm, self.shared.capabilities.asids).ok_or("this processor has no ASID for guests")?;
        Ok(SvmVcpu::new(self.shared, vm, asid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    const SOUND: Found = Found { svm: true, xsave: true, vm_cr: 0, features: Features::NESTED_PAGING };

    fn line(found: Found) -> String {
        found.check().map_or_else(|unsupported| unsupported.to_string(), |()| String::from("usable"))
    }

    #[test]
    fn what_is_missing_is_told_in_one_line() {
        assert_eq!(line(SOUND), "usable");
        // VM_CR.LOCK alone disables nothing: firmware locks SVM on, too.
        assert_eq!(line(Found { vm_cr: 1 << 3, ..SOUND }), "usable");
        let lines = [
            (Found { svm: false, ..SOUND }, "this processor has no AMD-V (CPUID 0x80000001:ECX.SVM is 0)"),
            (
                Found { vm_cr: VM_CR_SVMDIS, ..SOUND },
                "AMD-V is disabled in VM_CR.SVMDIS: turn it on in the firmware's set-up",
            ),
            (
                Found { vm_cr: VM_CR_SVMDIS | 1 << 3, features: SOUND.features | Features::LOCK, ..SOUND },
                "AMD-V is disabled in VM_CR.SVMDIS and locked with a key: turn it on in the firmware's set-up",
            ),
            // It may have nested paging once it is on.
            (
                Found { vm_cr: VM_CR_SVMDIS, features: Features::empty(), ..SOUND },
                "AMD-V is disabled in VM_CR.SVMDIS: turn it on in the firmware's set-up",
            ),
            (Found { features: Features::empty(), ..SOUND }, "this processor's AMD-V lacks nested paging"),
            (Found { xsave: false, ..SOUND }, "this processor has no XSAVE"),
        ];
        for (found, expected) in lines {
            assert_eq!(line(found), expected);
        }
    }
}
