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
    let left = deadline.since(timer::now());
    // Rounded up: a deadline met early is an entry for nothing.
    let ticks = left.div_ceil(1 << timer_shift);
    vmcs.write(field::PREEMPTION_TIMER, u32::try_from(ticks).unwrap_or(u32::MAX));
}
