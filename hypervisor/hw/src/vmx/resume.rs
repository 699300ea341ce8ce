//! Before an entry: the VMWRITEs of what changed, and no others.

use lamina_arch::event::Event;
use lamina_arch::time::Tsc;
use lamina_arch::vmx::field;
use lamina_arch::vmx::interruption;

use super::cache::Cache;
use super::vmcs::Current;
use crate::timer;

/// Writes what the run loop changed, the event to inject, and the time that is left. VMWRITEs: one for the timer, one
/// for each register that changed (mostly RIP), up to three for an event.
pub fn resume(vmcs: &mut Current<'_>, cache: &mut Cache, event: Option<Event>, deadline: Tsc, timer_shift: u32) {
    cache.write_back(vmcs);
    if let Some(event) = event {
        if let Some(error) = event.error {
            vmcs.write(field::ENTRY_EXCEPTION_ERROR_CODE, error);
        }
        if event.length != 0 {
            vmcs.write(field::ENTRY_INSTRUCTION_LENGTH, u32::from(event.length));
        }
        vmcs.write(field::ENTRY_INTERRUPTION_INFORMATION, interruption::encode(&event));
    }
    set_timer(vmcs, deadline, timer::now(), timer_shift);
}

/// Writes the time that is left at `now`. VMWRITEs: one.
#[inline(always)]
pub fn set_timer(vmcs: &mut Current<'_>, deadline: Tsc, now: Tsc, timer_shift: u32) {
    let left = deadline.since(now);
    // Up to a count late, as a deadline met early is an entry for nothing. What does not fit into 32 bits is cut, and
    // the guest exits too early, to be entered again; the run loop gives no such deadlines on any rate there is.
    let counts = (left >> timer_shift) + 1;
    vmcs.write_on(field::PREEMPTION_TIMER, (counts & 0xffff_ffff) as u32);
}
