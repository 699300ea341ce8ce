//! Defences against speculation on this processor, and the MSRs by which a guest has its own.
//!
//! Owns the way to these MSRs, and what the code of entries and exits does beside. Never decides: what the machine needs is
//! in a [`Plan`], and what a guest writes `lamina_vmm::msr::Speculation` has checked against what CPUID shows.

use core::arch::asm;

use lamina_arch::msr;
use lamina_arch::speculation::{Acts, Enumerated, Plan};
use x86_64::registers::control::{Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

use crate::events::{self, Event};

/// CPUID leaf 7, EDX: there is IA32_ARCH_CAPABILITIES.
const HAS_CAPABILITIES: u32 = 1 << 29;
/// EFER.AIBRSE: automatic IBRS (APM vol. 2, "Extended Feature Enable Register (EFER)").
const AUTOMATIC_IBRS: u64 = 1 << 21;
/// IA32_PRED_CMD: the barrier for indirect branches.
const IBPB: u64 = 1;
/// IA32_FLUSH_CMD: the L1 data cache is written back and invalidated.
const L1D_FLUSH: u64 = 1;

/// What is done before each entry.
const AT_ENTRY: Acts = Acts::CLEAR_BUFFERS.union(Acts::FLUSH_L1D_ALWAYS).union(Acts::EXIT_IBRS);
/// What is done behind each exit, by [`after_exit`].
const AT_EXIT: Acts = Acts::EXIT_BARRIER.union(Acts::EXIT_IBRS).union(Acts::EXIT_RETURN).union(Acts::EXIT_RETURNS);

/// The defences of one virtual processor; the layout of the first field is known to [`after_exit`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Defences {
    acts: u32,
    /// Of those, what is done before an entry.
    at_entry: u32,
    /// Whether anything is done when the guest comes in, and when it goes out.
    at_switch: bool,
    /// IA32_SPEC_CTRL while the guest runs.
    control: u64,
    /// And while none is loaded.
    resting: u64,
}

const _: () = assert!(core::mem::offset_of!(Defences, acts) == 0);
const _: () = assert!(core::mem::size_of::<Defences>() == 32);

impl Defences {
    /// Those of a guest that has set nothing.
    pub fn new(plan: &Plan) -> Defences {
        let acts = plan.acts();
        let mut defences = Defences {
            acts: acts.bits().into(),
            at_entry: (acts & AT_ENTRY).bits().into(),
            at_switch: false,
            control: plan.control(),
            resting: plan.control(),
        };
        defences.set_control(0, false);
        defences
    }

    const fn has(&self, act: Acts) -> bool {
        self.acts & act.bits() as u32 != 0
    }

    /// Whether an entry needs [`Defences::before_entry`], and is to be the kind that clears the processor's buffers.
    #[inline(always)]
    pub const fn at_entry(&self) -> bool {
        self.at_entry != 0
    }

    /// Whether an exit is to go by [`after_exit`].
    pub const fn at_exit(&self) -> bool {
        self.acts & AT_EXIT.bits() as u32 != 0
    }

    /// What goes before an entry from the run loop.
    #[inline(always)]
    pub fn before_first_entry(&self) {
        if self.has(Acts::FLUSH_L1D) {
            write(msr::IA32_FLUSH_CMD, L1D_FLUSH);
        }
    }

    /// What goes before every entry, but for VERW, which is to be the last.
    #[inline(always)]
    pub fn before_entry(&self) {
        // What the exit does is counted here: its code has no counter.
        for act in [Acts::EXIT_BARRIER, Acts::EXIT_IBRS] {
            if self.has(act) {
                events::count(Event::Wrmsr);
            }
        }
        if self.has(Acts::FLUSH_L1D_ALWAYS) {
            write(msr::IA32_FLUSH_CMD, L1D_FLUSH);
        }
        if self.has(Acts::EXIT_IBRS) {
            write(msr::IA32_SPEC_CTRL, self.control);
        }
    }

    /// The guest's IA32_SPEC_CTRL becomes `value`: bits that the processor has, as it has told the guest of them. Each only
    /// restricts what is predicted.
    pub fn set_control(&mut self, value: u64, loaded: bool) {
        self.control = value | self.resting;
        let switched = self.control != self.resting && !self.has(Acts::EXIT_IBRS);
        self.at_switch = switched || self.has(Acts::SWITCH_BARRIER);
        if loaded && !self.has(Acts::EXIT_IBRS) {
            write(msr::IA32_SPEC_CTRL, self.control);
        }
    }

    /// The guest comes in; whether it is `another` than the last.
    #[inline(always)]
    pub fn load(&self, another: impl FnOnce() -> bool) {
        if self.at_switch {
            self.switch(another(), self.control);
        }
    }

    /// The guest goes out.
    #[inline(always)]
    pub fn unload(&self) {
        if self.at_switch {
            self.switch(false, self.resting);
        }
    }

    #[cold]
    fn switch(&self, another: bool, control: u64) {
        if another && self.has(Acts::SWITCH_BARRIER) {
            barrier();
            stuff_returns();
        }
        if self.control != self.resting && !self.has(Acts::EXIT_IBRS) {
            write(msr::IA32_SPEC_CTRL, control);
        }
    }
}

/// The barrier for indirect branches, which the processor has: a plan or CPUID, as guests see it, says so.
pub fn barrier() {
    write(msr::IA32_PRED_CMD, IBPB);
}

/// One of the MSRs of this module.
#[inline(always)]
fn write(index: u32, value: u64) {
    events::count(Event::Wrmsr);
    // SAFETY: the processor has this MSR and the bits of `value`, by its enumeration: the plan was made from it, and so was
    // what guests see. They only make it forget, or restrict what it predicts.
    unsafe { Msr::new(index).write(value) };
}

/// Calls whose returns lead nowhere, as many as the processor remembers.
#[inline(always)]
fn stuff_returns() {
    // SAFETY: each call is taken back by moving the stack pointer; what is below it is nobody's.
    unsafe { asm!(stuff_all!(), out("ecx") _) };
}

/// 32 calls, two at a time, whose returns lead to where speculation ends. Changes ECX and the flags.
macro_rules! stuff_all {
    () => {
        "mov ecx, 16
        4: call 5f
        6: pause
        lfence
        jmp 6b
        5: call 7f
        6: pause
        lfence
        jmp 6b
        7: add rsp, 16
        dec ecx
        jnz 4b
        lfence"
    };
}
pub(crate) use stuff_all;

/// What goes behind an exit, before any RET or indirect branch, by the [`Defences`] at RDI. Changes RAX, RCX, RDX and the
/// flags. Its tests are of bits of `Acts`.
macro_rules! after_exit {
    () => {
        concat!(
            "test dword ptr [rdi], 2
            jz 2f
            mov ecx, 0x49
            mov eax, 1
            xor edx, edx
            wrmsr
            2: test dword ptr [rdi], 8
            jz 3f
            mov ecx, 0x48
            mov eax, 1
            xor edx, edx
            wrmsr
            3: test dword ptr [rdi], 0x40
            jz 8f
            ",
            $crate::speculation::stuff_all!(),
            "
            jmp 9f
            8: test dword ptr [rdi], 0x20
            jz 9f
            call 8f
            int3
            8: add rsp, 8
            9: lfence"
        )
    };
}
pub(crate) use after_exit;

const _: () = assert!(Acts::EXIT_BARRIER.bits() == 2 && Acts::EXIT_IBRS.bits() == 8);
const _: () = assert!(Acts::EXIT_RETURNS.bits() == 0x40 && Acts::EXIT_RETURN.bits() == 0x20);
const _: () = assert!(msr::IA32_PRED_CMD == 0x49 && msr::IA32_SPEC_CTRL == 0x48);

/// The operand of VERW: a selector that may be written through, which is the fast case.
pub static VERW_OPERAND: u16 = crate::gdt::DATA_SELECTOR;

/// What this processor says of itself.
pub fn enumerated() -> Enumerated {
    let leaf = |leaf, subleaf| raw_cpuid::native_cpuid::cpuid_count(leaf, subleaf);
    let (basic, extended) = (leaf(0, 0).eax, leaf(0x8000_0000, 0).eax);
    let mut of = Enumerated { capabilities: capabilities(), ..Enumerated::default() };
    if basic >= 7 {
        let features = leaf(7, 0);
        (of.leaf7_ebx, of.leaf7_edx) = (features.ebx, features.edx);
        if features.eax >= 2 {
            of.leaf7_2_edx = leaf(7, 2).edx;
        }
    }
    if extended >= 0x8000_0008 {
        of.leaf8_ebx = leaf(0x8000_0008, 0).ebx;
    }
    if extended >= 0x8000_0021 {
        let features = leaf(0x8000_0021, 0);
        (of.leaf21_eax, of.leaf21_ecx) = (features.eax, features.ecx);
    }
    of
}

/// Begins what is in force for good on this processor, and tells of the plan.
pub fn begin(plan: &Plan) {
    log::info!("speculation: {plan}");
    if plan.does(Acts::CONTROL) {
        write(msr::IA32_SPEC_CTRL, plan.control());
    }
    if plan.does(Acts::AUTOMATIC_IBRS) {
        // SAFETY: the processor has the bit, by its enumeration; it only restricts what is predicted.
        unsafe { Efer::update(|efer| efer.insert(EferFlags::from_bits_retain(AUTOMATIC_IBRS))) };
    }
}

/// IA32_ARCH_CAPABILITIES; 0 where there is none.
pub fn capabilities() -> u64 {
    let leaf = |leaf| raw_cpuid::native_cpuid::cpuid_count(leaf, 0);
    if leaf(0).eax < 7 || leaf(7).edx & HAS_CAPABILITIES == 0 {
        return 0;
    }
    // SAFETY: CPUID shows it; reading it changes nothing.
    unsafe { Msr::new(msr::IA32_ARCH_CAPABILITIES).read() }
}
