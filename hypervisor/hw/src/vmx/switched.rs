//! Registers that no VMCS holds: they move when a vCPU comes in or goes out.
//!
//! Owns what a vCPU has in them, and when they are read and written at a switch: as seldom as can be, as on a real
//! processor each is slow. Writes of all MSRs but IA32_KERNEL_GS_BASE exit, so that these need not be read; and the
//! addresses of breakpoints are moved for guests only that have touched them: until then, MOV of a debug register exits.

use core::arch::asm;
use core::sync::atomic::Ordering;

use lamina_arch::msr;
use x86_64::registers::model_specific::Msr;

use crate::events::{self, Event};
use crate::percpu::{self, SWITCHED_MSRS};

/// MSRs that move. The last one not every processor has.
const MSRS: [u32; SWITCHED_MSRS] =
    [msr::IA32_STAR, msr::IA32_LSTAR, msr::IA32_CSTAR, msr::IA32_FMASK, msr::IA32_KERNEL_GS_BASE, msr::IA32_TSC_AUX];
/// Which of them the guest writes itself.
const KERNEL_GS_BASE: usize = 4;
const TSC_AUX: usize = 5;

/// DR6 after reset.
const DR6_RESET: u64 = 0xffff_0ff0;

/// What one vCPU has in these registers.
#[derive(Debug)]
pub(super) struct Switched {
    /// In the order of [`MSRS`]. While loaded, IA32_KERNEL_GS_BASE is in the processor alone. One that the processor does
    /// not have stays 0.
    msrs: [u64; SWITCHED_MSRS],
    has_tsc_aux: bool,
    /// DR0 to DR3 of a guest that has touched debug registers. While loaded, they are in the processor alone.
    breakpoints: Option<[u64; 4]>,
    /// While loaded, these are in the processor alone.
    dr6: u64,
    cr2: u64,
    loaded: bool,
}

impl Switched {
    /// As after reset.
    pub(super) const fn new(has_tsc_aux: bool) -> Switched {
        Switched { msrs: [0; SWITCHED_MSRS], has_tsc_aux, breakpoints: None, dr6: DR6_RESET, cr2: 0, loaded: false }
    }

    /// Moves them in. WRMSRs: one for each that the vCPU before has left otherwise.
    #[inline]
    pub(super) fn load(&mut self) {
        let left = &percpu::current().left;
        if !left.known.load(Ordering::Relaxed) {
            self.forget_left();
        }
        for (n, index) in MSRS.into_iter().enumerate() {
            let value = self.msrs[n];
            if left.msrs[n].load(Ordering::Relaxed) != value {
                write_msr(index, value);
                left.msrs[n].store(value, Ordering::Relaxed);
            }
        }
        if left.dr6.load(Ordering::Relaxed) != self.dr6 {
            write_dr6(self.dr6);
        }
        if let Some(breakpoints) = &self.breakpoints {
            write_breakpoints(breakpoints);
        }
        write_cr2(self.cr2);
        self.loaded = true;
    }

    /// Nothing is known of the processor's registers yet: has all be written.
    #[cold]
    fn forget_left(&self) {
        let left = &percpu::current().left;
        for (n, value) in self.msrs.into_iter().enumerate() {
            let other = if n == TSC_AUX && !self.has_tsc_aux { value } else { !value };
            left.msrs[n].store(other, Ordering::Relaxed);
        }
        left.dr6.store(!self.dr6, Ordering::Relaxed);
        left.known.store(true, Ordering::Relaxed);
    }

    /// Moves them out. RDMSRs: one.
    #[inline]
    pub(super) fn unload(&mut self) {
        let left = &percpu::current().left;
        let base = read_msr(MSRS[KERNEL_GS_BASE]);
        self.msrs[KERNEL_GS_BASE] = base;
        left.msrs[KERNEL_GS_BASE].store(base, Ordering::Relaxed);
        self.dr6 = read_dr6();
        left.dr6.store(self.dr6, Ordering::Relaxed);
        if let Some(breakpoints) = &mut self.breakpoints {
            *breakpoints = read_breakpoints();
        }
        self.cr2 = read_cr2();
        self.loaded = false;
    }

    /// Whether the processor has IA32_TSC_AUX.
    pub(super) const fn has_tsc_aux(&self) -> bool {
        self.has_tsc_aux
    }

    /// The MSR `index`, one of [`MSRS`].
    pub(super) fn msr(&self, index: u32) -> u64 {
        let at = MSRS.iter().position(|&msr| msr == index).unwrap_or(TSC_AUX);
        if self.loaded && at == KERNEL_GS_BASE { read_msr(index) } else { self.msrs[at] }
    }

    /// Sets the MSR `index`, one of [`MSRS`].
    pub(super) fn set_msr(&mut self, index: u32, value: u64) {
        let at = MSRS.iter().position(|&msr| msr == index).unwrap_or(TSC_AUX);
        if at == TSC_AUX && !self.has_tsc_aux {
            return;
        }
        self.msrs[at] = value;
        if self.loaded {
            write_msr(index, value);
            percpu::current().left.msrs[at].store(value, Ordering::Relaxed);
        }
    }

    /// The guest touches its debug registers: from here on DR0 to DR3 move with it. To be called while loaded.
    #[cold]
    pub(super) fn touch_breakpoints(&mut self) {
        if self.breakpoints.is_none() {
            // What stands there is another guest's.
            write_breakpoints(&[0; 4]);
            self.breakpoints = Some([0; 4]);
        }
    }

    /// DR0 to DR3. To be called while loaded.
    pub(super) fn breakpoints(&self) -> [u64; 4] {
        if self.breakpoints.is_some() { read_breakpoints() } else { [0; 4] }
    }

    /// Whether DR0 to DR3 move, and are what they were after reset. To be called while not loaded.
    pub(super) fn has_idle_breakpoints(&self) -> bool {
        self.breakpoints == Some([0; 4])
    }

    /// DR0 to DR3, which are 0, move no longer.
    pub(super) const fn leave_breakpoints(&mut self) {
        self.breakpoints = None;
    }

    /// DR6.
    pub(super) fn dr6(&self) -> u64 {
        if self.loaded { read_dr6() } else { self.dr6 }
    }

    /// Sets DR6.
    pub(super) fn set_dr6(&mut self, value: u64) {
        self.dr6 = value;
        if self.loaded {
            write_dr6(value);
        }
    }

    /// CR2.
    pub(super) fn cr2(&self) -> u64 {
        if self.loaded { read_cr2() } else { self.cr2 }
    }

    /// Sets CR2.
    pub(super) fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
        if self.loaded {
            write_cr2(value);
        }
    }
}

/// Reads an MSR of those that move.
fn read_msr(index: u32) -> u64 {
    events::count(Event::Rdmsr);
    // SAFETY: reading one of `MSRS`, of those that every processor has, changes nothing.
    unsafe { Msr::new(index).read() }
}

/// Writes one.
fn write_msr(index: u32, value: u64) {
    events::count(Event::Wrmsr);
    // SAFETY: one of `MSRS` that this processor has: none of them has an effect on our own code, which uses neither SYSCALL, SWAPGS nor
    // RDTSCP. The value is one that the processor takes: `lamina_vmm::msr::watched` has checked it, or the guest wrote
    // it by itself, or it is 0.
    unsafe { Msr::new(index).write(value) };
}

fn read_cr2() -> u64 {
    x86_64::registers::control::Cr2::read_raw()
}

fn write_cr2(value: u64) {
    // SAFETY: CR2 is only a report; a page fault of our own writes it anew.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nostack, nomem, preserves_flags)) };
}

fn read_dr6() -> u64 {
    let value: u64;
    // SAFETY: reading a debug register changes nothing; DR7.GD is clear in the host, as every exit sets DR7 to 0x400.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nostack, nomem, preserves_flags)) };
    value
}

fn write_dr6(value: u64) {
    // SAFETY: DR6 is only a report. The value was read from it, or is that after reset, or has no bit above the 32nd, as
    // the run loop makes it.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nostack, nomem, preserves_flags)) };
}

/// DR0 to DR3.
fn read_breakpoints() -> [u64; 4] {
    let [a, b, c, d]: [u64; 4];
    // SAFETY: reading debug registers changes nothing; DR7.GD is clear in the host, as every exit sets DR7 to 0x400.
    unsafe {
        asm!(
            "mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) a, out(reg) b, out(reg) c, out(reg) d,
            options(nostack, nomem, preserves_flags),
        );
    }
    [a, b, c, d]
}

/// Sets DR0 to DR3.
fn write_breakpoints(values: &[u64; 4]) {
    let [a, b, c, d] = *values;
    // SAFETY: breakpoints count only with DR7, which is 0x400 in the host: the addresses have no effect on us.
    unsafe {
        asm!(
            "mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
            in(reg) a, in(reg) b, in(reg) c, in(reg) d,
            options(nostack, nomem, preserves_flags),
        );
    }
}
