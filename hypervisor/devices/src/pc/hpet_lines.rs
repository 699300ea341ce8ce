//! What the HPET's timers do to the interrupt lines.

use super::Pc;
use super::timers::Timer;
use crate::hpet;
use lamina_vmm::layout;

impl Pc {
    /// Brings the HPET up to now and passes its interrupts on.
    pub(super) fn hpet_changed(&mut self) {
        let Some(hpet) = &mut self.hpet else { return };
        hpet.advance(self.now);
        let edges = hpet.take_edges();
        let states: [_; hpet::TIMERS] = core::array::from_fn(|n| (hpet.route(n), edges >> n & 1 != 0, hpet.level(n)));
        let mut pins = 0;
        for (route, edge, level) in states {
            let irq = match route {
                Some(hpet::Route::Pit) => layout::PIT_IRQ,
                Some(hpet::Route::Rtc) => layout::RTC_IRQ,
                Some(hpet::Route::Pin(pin)) => {
                    pins |= u32::from(level) << (pin & 31);
                    if edge {
                        self.ioapic.set_line(pin, true);
                        self.ioapic.set_line(pin, false);
                    }
                    continue;
                }
                None => continue,
            };
            if edge {
                self.pulse(irq);
            }
            self.drive(irq, level);
        }
        for pin in 0..32 {
            if (pins ^ self.hpet_pins) >> pin & 1 != 0 {
                self.ioapic.set_line(pin, pins >> pin & 1 != 0);
            }
        }
        self.hpet_pins = pins;
        self.deliver();
        self.refresh(Timer::Hpet);
    }
}
