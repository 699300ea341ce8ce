//! The local APIC's MSRs: IA32_APIC_BASE, IA32_TSC_DEADLINE and the registers of x2APIC mode (Intel SDM vol. 3,
//! "Extended XAPIC (x2APIC)").
//!
//! Owns the rules of what faults. What a register does is told where both modes share it.

use super::timer::Mode;
use super::{Base, Effect, ICR_WRITABLE, LVT_MASKED, LVT_WRITABLE, Lapic, SVR_WRITABLE, register};
use lamina_arch::addr::{Gpa, PAGE_4K};
use lamina_arch::event::GuestFault;
use lamina_arch::msr;
use lamina_arch::time::Tsc;
use lamina_vmm::layout;

/// Remote IRR and delivery status: read-only, so that writing them is no fault.
const LVT_READ_ONLY: u32 = 1 << 14 | 1 << 12;

/// The registers that are written most, as MSRs.
const X2APIC_EOI: u32 = msr::X2APIC_FIRST + register::EOI;
const X2APIC_SELF_IPI: u32 = msr::X2APIC_FIRST + register::SELF_IPI;

impl Lapic {
    /// IA32_APIC_BASE.
    pub const fn apic_base(&self) -> u64 {
        self.address.0 | self.base.bits()
    }

    /// RDMSR.
    ///
    /// # Errors
    /// #GP(0) for a register that does not exist or cannot be read, and outside of x2APIC mode.
    pub fn read_msr(&mut self, now: Tsc, number: u32) -> Result<u64, GuestFault> {
        match number {
            msr::IA32_APIC_BASE => Ok(self.apic_base()),
            msr::IA32_TSC_DEADLINE => {
                self.advance(now);
                Ok(self.timer.deadline())
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST if self.x2apic() => match number - msr::X2APIC_FIRST {
                register::EOI | register::SELF_IPI | register::DFR | register::RRD | register::ICR_HIGH => {
                    Err(GuestFault::GP0)
                }
                register::ICR => Ok(self.icr()),
                register => self.read_register(now, register).map(u64::from).ok_or(GuestFault::GP0),
            },
            _ => Err(GuestFault::GP0),
        }
    }

    /// WRMSR.
    ///
    /// # Errors
    /// #GP(0) for a register that does not exist or cannot be written, outside of x2APIC mode, where a reserved bit is
    /// set, and for a change of mode that is not allowed.
    pub fn write_msr(&mut self, now: Tsc, number: u32, value: u64) -> Result<Effect, GuestFault> {
        match number {
            msr::IA32_APIC_BASE => {
                let effect = self.write_base(now, value)?;
                self.settle();
                Ok(effect)
            }
            msr::IA32_TSC_DEADLINE => {
                self.advance(now);
                if self.timer_mode() == Mode::TscDeadline {
                    self.timer.set_deadline(value);
                    self.advance(now);
                }
                Ok(Effect::None)
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST if self.x2apic() => {
                let effect = self.write_x2apic(now, number - msr::X2APIC_FIRST, value)?;
                self.settle();
                Ok(effect)
            }
            _ => Err(GuestFault::GP0),
        }
    }

    /// WRMSR of what kernels write most, where it takes no more than this; else false, nothing was done, and
    /// [`Lapic::write_msr`] is to be asked. The timer must have been brought up to `now`.
    #[inline(always)]
    pub fn write_frequent(&mut self, now: Tsc, number: u32, value: u64) -> bool {
        // A processor that has the registers is to be told more.
        if self.given {
            return false;
        }
        match number {
            msr::IA32_TSC_DEADLINE if self.has_tsc_deadline() => {
                self.timer.set_deadline(value);
                self.advance(now);
            }
            X2APIC_EOI if self.x2apic() && value == 0 => {
                return self.end_edge_triggered();
            }
            X2APIC_SELF_IPI if self.x2apic() && self.software_enabled() && (16..=255).contains(&value) => {
                self.raise((value & 0xff) as u8, false);
            }
            _ => return false,
        }
        true
    }

    pub(super) fn write_x2apic(&mut self, now: Tsc, number: u32, value: u64) -> Result<Effect, GuestFault> {
        if number == register::ICR {
            if value & 0xffff_ffff & !u64::from(ICR_WRITABLE) != 0 {
                return Err(GuestFault::GP0);
            }
            self.registers.write(register::ICR, (value & 0xffff_ffff) as u32);
            self.registers.write_high(register::ICR, (value >> 32) as u32);
            self.send();
            return Ok(Effect::None);
        }
        let allowed = match number {
            register::TPR | register::SELF_IPI => 0xff,
            register::EOI | register::ESR => 0,
            register::SVR => SVR_WRITABLE,
            register::LVT_TIMER..=register::LVT_ERROR => {
                LVT_WRITABLE[(number - register::LVT_TIMER) as usize] | LVT_READ_ONLY
            }
            register::INITIAL_COUNT => u32::MAX,
            register::DIVIDE => 0b1011,
            _ => return Err(GuestFault::GP0),
        };
        let low = u32::try_from(value).map_err(|_| GuestFault::GP0)?;
        if low & !allowed != 0 {
            return Err(GuestFault::GP0);
        }
        if number == register::SELF_IPI {
            self.send_fixed((low & 0xff) as u8, true);
            return Ok(Effect::None);
        }
        self.write_register(now, number, low).ok_or(GuestFault::GP0)
    }

    /// Writes IA32_APIC_BASE ("Local APIC State Transitions": from xAPIC to x2APIC and to disabled, from x2APIC to
    /// disabled, from disabled to xAPIC only).
    fn write_base(&mut self, now: Tsc, value: u64) -> Result<Effect, GuestFault> {
        let new = Base::from_bits_truncate(value);
        let address = value & !Base::all().bits();
        // Beyond the hole, there may be memory, which is mapped for the guest and would hide the registers.
        if !address.is_multiple_of(PAGE_4K) || !(layout::PCI_HOLE.0..layout::ABOVE_4G.0).contains(&address) {
            return Err(GuestFault::GP0);
        }
        self.advance(now);
        let mode = |base: Base| (base.contains(Base::EN), base.contains(Base::EXTD));
        match (mode(self.base), mode(new)) {
            (_, (false, true)) | ((true, true), (true, false)) | ((false, _), (true, true)) => {
                return Err(GuestFault::GP0);
            }
            ((true, _), (false, false)) => {
                // Disabling forgets everything, and leaves what reset would.
                let &mut Lapic { id, tsc, lint0, given, .. } = self;
                let registers = self.registers.cleared();
                let fresh = Lapic::with(id, tsc, registers);
                *self =
                    Lapic { svr: 0xff, lvt: [LVT_MASKED; 6], lint0, given, mode: self.mode, changed: given, ..fresh };
            }
            ((true, false), (true, true)) => self.registers.write_high(register::ICR, 0),
            _ => {}
        }
        self.base = new;
        self.address = Gpa(address);
        Ok(Effect::Accepting)
    }
}
