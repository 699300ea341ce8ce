//! One VM on the processor: enter, handle the exit, apply what follows, until another's turn.

use lamina_arch::cr::Rflags;
use lamina_arch::event::{Event, EventKind, GuestFault, vector};
use lamina_arch::exit::{Exit, Kind};
use lamina_arch::regs::SysReg;
use lamina_arch::time::Tsc;

use super::{Machine, State, contain};
use crate::chipset::{Attention, Chipset, Signal};
use crate::dma::{self, Served};
use crate::event::{Delivery, combine};
use crate::exit::{QuickLeft, Resume, Shortcut, Surroundings, dispatch, obey, step_over};
use crate::frames::{STOCK_LOW, fill_stock};
use crate::host::Host;
use crate::stop::StopReason;
use crate::trace::{self, LongWay};
use crate::vcpu::{EntryFailure, Ran, Vcpu};
use crate::vm::Vm;

/// Why a VM left the processor.
enum Left {
    /// The slice, or a deadline of others, is over, or the machine wants to look.
    SliceEnd,
    /// It gave the rest of its slice away.
    Yielded,
    /// It waits for an interrupt.
    Waits,
    /// It is to start again.
    Reset,
    /// It ended.
    Stopped(StopReason),
}

impl<H: Host, C: Chipset> Machine<H, C> {
    /// Runs VM `index` until `limit`, or until it waits, or stops. What a turn costs is this VM's, all of it
    /// since `from`: the look at console and timers before it, switching to it, and starting it again. Else one that
    /// leaves the processor at once, again and again, would cost the others more than it is charged.
    pub(super) fn run_vm(&mut self, index: usize, from: Tsc, limit: Tsc) {
        let switches = self.loaded != Some(index);
        if switches {
            self.unload();
        }
        // What outlives this VM is in memory before anything is done for it alone.
        let machine = contain::known(self);
        let State::Alive(vm) = &mut machine.slots[index].state else { return };
        contain::begin(&mut machine.host, index);
        if switches {
            machine.loaded = Some(index);
            vm.vcpu.load();
        }
        let mut around = Surroundings {
            host: &mut machine.host,
            pool: &mut machine.pool,
            console: &mut machine.console,
            slot: index,
        };
        let left = turn(vm, &mut around, limit);
        if vm.trace.is_some() {
            trace::handled(vm);
        }
        contain::end(&mut machine.host);
        match left {
            Left::SliceEnd => {}
            Left::Yielded => self.scheduler.give_up(),
            Left::Waits => self.scheduler.block(index),
            Left::Reset => self.reset(index),
            Left::Stopped(reason) => self.stop(index, &reason),
        }
        let ran = self.host.now().since(from);
        self.scheduler.charge(index, ran);
    }
}

/// The loop around the guest.
fn turn<H: Host, C: Chipset>(vm: &mut Vm<H::Vcpu, C>, around: &mut Surroundings<'_, H>, limit: Tsc) -> Left {
    let mut last: Option<(Kind, Tsc)> = None;
    loop {
        let now = around.host.now();
        if let Some((kind, since)) = last {
            vm.counters.exits[kind as usize].ticks += now.since(since);
        }
        let mut deadline = limit;
        if let Some(timer) = vm.chipset.next_deadline() {
            let at = Tsc(now.since(vm.started));
            let mut soonest = now;
            if timer <= at {
                vm.chipset.advance(at);
                soonest = now + vm.timer_rest;
            }
            let timer = vm.chipset.next_deadline().unwrap_or(Tsc(u64::MAX));
            deadline = deadline.min((vm.started + timer.0).max(soonest));
        }
        if now >= limit || vm.trace.as_ref().is_some_and(|trace| trace.is_full()) {
            return Left::SliceEnd;
        }
        if vm.memory.is_lazy() {
            if vm.memory.is_starved() {
                return Left::Stopped(StopReason::OutOfFrames);
            }
            if around.host.stock().len() < STOCK_LOW {
                // Where the machine has none left, the guest may go on as long as it asks for none.
                fill_stock(around.host, around.pool, 2 * STOCK_LOW);
            }
        }
        if vm.dma_waits {
            vm.dma_waits = dma::serve(&mut vm.chipset, &mut vm.memory, around.host) == Served::Part;
            around.host.progress();
            // The loop is gone through again, so that a long transfer is interrupted like a guest.
            continue;
        }
        if vm.trace.is_some() {
            trace::handled(vm);
        }
        if vm.access_page.is_some() {
            vm.follow_apic(around.host);
        }
        deliver(vm);
        let exit = match enter(vm, around.host, deadline, limit) {
            Ok((Ran::Exit(exit), ..)) => exit,
            Ok((Ran::Look, left)) => {
                last = None;
                if vm.chipset.has_output() {
                    let now = around.host.now();
                    vm.pass_output(around.console, around.slot, Tsc(now.since(vm.started)), now);
                }
                let Some(left) = left else { continue };
                if left.signal != Signal::None {
                    match obey(vm, left.signal) {
                        Some(Resume::Stop(reason)) => return Left::Stopped(reason),
                        Some(Resume::Reset) => return Left::Reset,
                        _ => {}
                    }
                }
                if left.yields {
                    return Left::Yielded;
                }
                continue;
            }
            Err(failure) => return Left::Stopped(StopReason::EntryFailed(failure)),
        };
        let kind = exit.kind();
        last = Some((kind, around.host.now()));
        vm.counters.exits[kind as usize].count += 1;
        if vm.trace.is_some() {
            trace::exited(vm, around.host, &exit);
        }
        let interrupted = vm.vcpu.interrupted_event();
        let resume = dispatch(vm, around, exit);
        // An event whose delivery was cut short is delivered again, unless a fault takes its place.
        if let Some(event) = interrupted
            && !matches!(
                resume,
                Resume::Inject(_)
                    | Resume::InjectAfter(_)
                    | Resume::Deliver(_)
                    | Resume::Delivered
                    | Resume::Stop(_)
                    | Resume::Reset
            )
        {
            vm.vcpu.inject(event);
        }
        match resume {
            Resume::Advance => {
                if let Err(reason) = step_over(vm, around.host) {
                    return Left::Stopped(reason);
                }
            }
            Resume::AdvanceBy(length) => vm.vcpu.advance_by(length),
            Resume::AdvanceIntoShadow(length) => {
                vm.vcpu.advance_by(length);
                vm.vcpu.begin_shadow();
            }
            Resume::Again | Resume::Delivered => {}
            Resume::Inject(fault) => match inject(vm, interrupted, fault) {
                Ok(()) => {}
                Err(reason) => return Left::Stopped(reason),
            },
            Resume::InjectAfter(fault) => match inject(vm, None, fault) {
                Ok(()) => {}
                Err(reason) => return Left::Stopped(reason),
            },
            Resume::Deliver(event) => {
                let fault = GuestFault { vector: event.vector, error: event.error, cr2: None };
                match combine(interrupted, fault) {
                    // As itself, not as the fault: a software exception returns behind its instruction.
                    Delivery::Event(second) if second.vector == event.vector => vm.inject(event),
                    Delivery::Event(double) => vm.inject(double),
                    Delivery::TripleFault => {
                        return Left::Stopped(StopReason::TripleFault { rip: vm.vcpu.read(SysReg::Rip) });
                    }
                }
            }
            Resume::Halt => {
                if let Err(reason) = step_over(vm, around.host) {
                    return Left::Stopped(reason);
                }
                if let Some(left) = halt(vm) {
                    return left;
                }
            }
            Resume::Yield => {
                return match step_over(vm, around.host) {
                    Ok(()) => Left::Yielded,
                    Err(reason) => Left::Stopped(reason),
                };
            }
            Resume::SliceEnd => {
                // A timer of the guest's own is served at the top of the loop; anything else is the machine's.
                if matches!(exit, Exit::HostInterrupt { .. }) {
                    return Left::SliceEnd;
                }
            }
            Resume::Stop(reason) => return Left::Stopped(reason),
            Resume::Reset => return Left::Reset,
        }
    }
}

/// Enters the guest, with the short way at hand; also what a device asked for on it.
fn enter<H: Host, C: Chipset>(
    vm: &mut Vm<H::Vcpu, C>,
    host: &mut H,
    deadline: Tsc,
    limit: Tsc,
) -> Result<(Ran, Option<QuickLeft>), EntryFailure> {
    if vm.trace.is_some() {
        return Ok((vm.vcpu.run(deadline, &mut LongWay)?, None));
    }
    let (vcpu, mut shortcut) = Shortcut::split(vm, host, limit);
    let ran = vcpu.run(deadline, &mut shortcut)?;
    let left = shortcut.left();
    vm.nmi_waits = left.nmi;
    Ok((ran, Some(left)))
}

/// Injects a waiting NMI or interrupt, or asks for the window to do so. Costs no VMREAD where nothing waits.
fn deliver<V: Vcpu, C: Chipset>(vm: &mut Vm<V, C>) {
    vm.nmi_waits |= vm.chipset.take_nmi();
    if vm.nmi_waits {
        let state = vm.vcpu.interruptibility();
        if state.shadow && !state.nmi_blocked && state.interrupts_enabled {
            // Where STI's shadow does not keep an NMI window closed, that would open at once, again and again. The
            // shadow's end is where interrupts can be taken.
            if !vm.interrupt_window {
                vm.interrupt_window = true;
                vm.vcpu.request_interrupt_window(true);
            }
        } else if state.nmi_blocked || state.shadow || state.event_pending {
            vm.vcpu.request_nmi_window(true);
        } else {
            vm.nmi_waits = false;
            vm.inject(Event { kind: EventKind::Nmi, vector: vector::NMI, error: None, length: 0 });
        }
    }
    if !vm.chipset.attention().contains(Attention::INTERRUPT) {
        if vm.interrupt_window && !vm.nmi_waits {
            vm.interrupt_window = false;
            vm.vcpu.request_interrupt_window(false);
        }
        return;
    }
    if vm.interrupt_window {
        return;
    }
    if vm.vcpu.interruptibility().can_take_interrupt()
        && let Some(vector) = vm.chipset.acknowledge()
    {
        vm.counters.interrupts += 1;
        vm.inject(Event::external(vector));
    }
    if vm.chipset.attention().contains(Attention::INTERRUPT) {
        vm.interrupt_window = true;
        vm.vcpu.request_interrupt_window(true);
    }
}

/// HLT, with RIP past it: `None` where an interrupt waits already, or a single step traps behind it.
fn halt<V: Vcpu, C: Chipset>(vm: &mut Vm<V, C>) -> Option<Left> {
    let flags = vm.vcpu.read(SysReg::Rflags);
    let enabled = flags & Rflags::IF.bits() != 0;
    vm.awaits_nmi = false;
    if vm.nmi_waits || flags & Rflags::TF.bits() != 0 || enabled && vm.chipset.interrupt_pending() {
        None
    } else if enabled {
        Some(Left::Waits)
    } else if vm.chipset.nmi_possible() {
        vm.awaits_nmi = true;
        Some(Left::Waits)
    } else {
        Some(Left::Stopped(StopReason::Halted))
    }
}

fn inject<V: Vcpu, C: Chipset>(vm: &mut Vm<V, C>, first: Option<Event>, fault: GuestFault) -> Result<(), StopReason> {
    match combine(first, fault) {
        Delivery::Event(event) => {
            if let Some(address) = fault.cr2
                && event.vector == vector::PF
            {
                vm.vcpu.write(SysReg::Cr2, address);
            }
            vm.inject(event);
            Ok(())
        }
        Delivery::TripleFault => Err(StopReason::TripleFault { rip: vm.vcpu.read(SysReg::Rip) }),
    }
}
