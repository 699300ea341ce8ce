//! The machine: all VMs, the console, and the loop that runs them.
//!
//! Owns everything that outlives an exit. One iteration: serve the console, wake who is due, pick who runs, run it
//! until its slice ends, it waits, or it stops; halt the processor when nobody can run. The same loop drives `hw` and
//! the fakes of the tests.

mod audit;
mod commands;
mod contain;
#[cfg(any(test, feature = "testing"))]
pub mod fakes;
#[cfg(any(test, feature = "plant"))]
mod plant;
mod run;
#[cfg(test)]
mod tests;
mod traces;

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use lamina_arch::time::Tsc;

use crate::chipset::Chipset;
use crate::config::{self, Bundle, ConfigError, VmConfig};
use crate::console::{Console, Event};
use crate::fault;
use crate::frames::{FramePool, FrameSet, STOCK_FULL, empty_stock, fill_stock};
use crate::host::Host;
use crate::sched::Scheduler;
use crate::stop::StopReason;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// Status of the machine when every VM ended as intended.
const STATUS_GOOD: u32 = 0;
/// How long a timer that did not wake its VM is not looked at. Unit: nanoseconds.
const FUTILE_TIMER_NS: u64 = 100_000;
/// A VM that is reset this often in a row is stopped: each time costs the others the loading of its image.
const RESETS_MAX: u32 = 8;
/// A VM that ran this long since its last reset starts counting anew. Unit: nanoseconds.
const RESET_REST_NS: u64 = 1_000_000_000;
/// How many frames are cleared before the loop looks again who can run: 64 KiB take some microseconds.
const CLEAR_AHEAD: usize = 16;
/// Status of the machine when one did not.
const STATUS_BAD: u32 = 1;
/// Status of the machine where there was a bug of ours, contained or not: that of a panic.
const STATUS_BUG: u32 = 101;

/// A place for one VM, kept after its end.
struct Slot<H: Host, C> {
    config: VmConfig,
    state: State<H, C>,
    /// A timer of a VM that waits came due and did not wake it: its next one does not count before this. Else a timer
    /// that can never interrupt would keep the others from running.
    not_before: Tsc,
    /// When it was last reset, and how often in a row without [`RESET_REST_NS`] in between.
    last_reset: Tsc,
    resets: u32,
}

enum State<H: Host, C> {
    Alive(Box<Vm<H::Vcpu, C>>),
    Ended {
        intended: bool,
        /// How many exits it has had, since it last started.
        exits: u64,
    },
}

/// The machine with its VMs.
pub struct Machine<H: Host, C> {
    host: H,
    pool: FramePool,
    console: Console,
    scheduler: Scheduler,
    slots: Vec<Slot<H, C>>,
    /// How many of them are alive.
    alive: usize,
    /// [`FUTILE_TIMER_NS`] in ticks of the TSC.
    futile_timer: u64,
    /// The bundle's bytes, from which VMs start and start again; what is in a drive stays there.
    image: &'static [u8],
    /// The VM whose vCPU is loaded on the processor.
    loaded: Option<usize>,
    interactive: bool,
    /// Asked to end.
    quit: bool,
    /// It was said that all VMs have ended.
    told_end: bool,
    /// A VM transmits what the console had no room for.
    transmits: bool,
    /// A VM is to be traced.
    traces: bool,
    /// Bugs of ours that were contained.
    bugs: u64,
    /// Frames of VMs that ended by one, and that nobody gets any more.
    withheld: FrameSet,
}

/// The number of the VM in place `index`, from 1: its VPID, and its ASID where there are enough.
fn number(index: usize) -> u16 {
    u16::try_from(index + 1).unwrap_or(u16::MAX)
}

impl<H: Host, C: Chipset> Machine<H, C> {
    /// The machine `host` with memory `pool`, and the VMs of `bundle`, whose blobs are in `image`. A VM that cannot
    /// start is refused with its reason on the console; the others start.
    pub fn new(host: H, pool: FramePool, bundle: Bundle, image: &'static [u8]) -> Self {
        let tsc = host.tsc_frequency();
        let mut machine = Machine {
            console: Console::new(bundle.interactive, tsc),
            scheduler: Scheduler::new(tsc),
            slots: Vec::new(),
            alive: 0,
            futile_timer: tsc.ticks_in_ns(FUTILE_TIMER_NS),
            host,
            pool,
            image,
            loaded: None,
            interactive: bundle.interactive,
            quit: false,
            told_end: false,
            transmits: false,
            traces: bundle.vms.iter().any(|config| config.trace > 0),
            bugs: 0,
            withheld: FrameSet::default(),
        };
        for (index, mut config) in bundle.vms.into_iter().enumerate() {
            let earlier = machine.slots.iter().map(|slot| slot.config.name.as_str());
            let refused = config::validate(&config, earlier, image.len() as u64).err();
            if matches!(refused, Some(ConfigError::Name { .. } | ConfigError::DuplicateName(_))) {
                // A name that is not one, or another's, must not stand in front of a line.
                config.name = format!("vm-{index}");
            }
            machine.console.add_vm(&config.name);
            fault::arm(index, &config.cmdline);
            machine.scheduler.add(config.weight);
            machine.slots.push(Slot {
                config,
                state: State::Ended { intended: false, exits: 0 },
                not_before: Tsc(0),
                last_reset: Tsc(0),
                resets: 0,
            });
            match refused {
                Some(why) => machine.ended(index, 0, &StopReason::Refused(format!("{why}"))),
                None => machine.start(index),
            }
        }
        machine
    }

    /// Runs until the end, and returns the machine's status: 101 where there was a bug of ours; else 0 where every VM
    /// ended as intended with status 0, or on `quit`; 1 else. The last line stands on the serial port's ring then.
    pub fn run(mut self) -> (u32, H) {
        if let Some(ticks) = self.host.since_loader() {
            let made = self.slots.iter().filter(|slot| matches!(slot.state, State::Alive(_))).count();
            log::info!("{made} virtual machines made, {ticks} ticks after the loader");
        }
        let mut status = None;
        loop {
            let whole = H::survive(&mut || {
                while status.is_none() {
                    status = self.step();
                }
            });
            if !whole {
                self.contain();
            }
            if let Some(status) = status {
                return (status, self.host);
            }
        }
    }

    /// One iteration of the loop; the machine's status when it has ended.
    fn step(&mut self) -> Option<u32> {
        self.host.handle_pending_interrupts();
        let now = self.host.now();
        if self.transmits || self.host.has_news() || !self.console.is_quiet(now) {
            self.serve_console(now);
        }
        if self.traces {
            self.show_records();
        }
        if let Some(status) = self.status_at_end() {
            let violated = self.tell_violations();
            let status = match (self.bugs, violated) {
                (0, false) => status,
                (0, true) => STATUS_BAD,
                _ => STATUS_BUG,
            };
            self.console.exit(status);
            self.flush();
            return Some(status);
        }
        let event = self.wake_due(now).into_iter().chain(self.console.next_deadline()).min();
        match self.scheduler.pick(now) {
            Some((index, until)) => self.run_vm(index, now, event.map_or(until, |event| event.min(until))),
            None if self.clear_ahead() => {}
            None => self.host.idle(event),
        }
        None
    }

    /// Waits until everything that the console shows is on its way.
    fn flush(&mut self) {
        while self.console.has_output() {
            self.console.drain(&mut |bytes| self.host.serial_write(bytes));
            if self.console.has_output() {
                self.host.idle(None);
            }
        }
    }

    /// Clears a few frames for VMs whose memory is backed on first touch, in time that nobody uses; false where nothing
    /// is to be done.
    fn clear_ahead(&mut self) -> bool {
        let stocked = self.host.stock().len();
        let count = (stocked + CLEAR_AHEAD).min(STOCK_FULL);
        stocked < STOCK_FULL && self.any_lazy() && fill_stock(&mut self.host, &mut self.pool, count)
    }

    /// Whether a VM lives whose memory is backed on first touch.
    fn any_lazy(&self) -> bool {
        self.slots.iter().any(|slot| matches!(&slot.state, State::Alive(vm) if vm.memory.is_lazy()))
    }

    /// Makes VM `index` from its configuration and lets it run, or says why not.
    fn start(&mut self, index: usize) {
        let id = number(index);
        // Making a vCPU makes it the processor's current one.
        self.unload();
        let (from, heap) = (self.host.now(), self.host.heap_used());
        let machine = contain::known(self);
        let config = &machine.slots[index].config;
        contain::begin(&mut machine.host, index);
        let made = Vm::create(config, id, machine.image, &mut machine.host, &mut machine.pool);
        contain::end(&mut machine.host);
        let slot = &mut self.slots[index];
        match made {
            Ok(mut vm) => {
                vm.counters.made = self.host.now().since(from);
                vm.counters.heap = self.host.heap_used().saturating_sub(heap);
                slot.state = State::Alive(vm);
                self.alive += 1;
                self.scheduler.wake(index);
                self.told_end = false;
            }
            Err(why) => self.ended(index, 0, &StopReason::Refused(why)),
        }
    }

    /// Takes VM `index` down.
    fn stop(&mut self, index: usize, reason: &StopReason) {
        if let Some(status) = self.take_down(index) {
            self.ended(index, status, reason);
        }
    }

    /// Starts VM `index` again from its image.
    fn reset(&mut self, index: usize) {
        let now = self.host.now();
        let rest = self.host.tsc_frequency().ticks_in_ns(RESET_REST_NS);
        let slot = &mut self.slots[index];
        slot.resets = if now.since(slot.last_reset) < rest { slot.resets + 1 } else { 1 };
        slot.last_reset = now;
        if slot.resets > RESETS_MAX {
            self.stop(index, &StopReason::ResetLoop { resets: RESETS_MAX });
            return;
        }
        if self.take_down(index).is_some() {
            self.console.vm_stopped(index);
            let line = format!("{} reset", self.slots[index].config.name);
            self.console.log_line(&line);
            self.start(index);
        }
    }

    /// Gives back what VM `index` holds; its recorded status, or `None` where it has ended already.
    fn take_down(&mut self, index: usize) -> Option<u32> {
        if self.loaded == Some(index) {
            self.unload();
        }
        self.scheduler.block(index);
        let slot = &mut self.slots[index];
        match core::mem::replace(&mut slot.state, State::Ended { intended: false, exits: 0 }) {
            State::Alive(mut vm) => {
                slot.state = State::Ended { intended: false, exits: vm.counters.all_exits() };
                self.alive -= 1;
                if traces::show(&mut self.console, &mut vm) {
                    self.flush();
                }
                let (now, status) = (self.host.now(), vm.status);
                let at = Tsc(now.since(vm.started));
                let machine = contain::known(self);
                contain::begin(&mut machine.host, index);
                vm.pass_output(&mut machine.console, index, at, now);
                vm.destroy(&mut machine.host, &mut machine.pool);
                contain::end(&mut machine.host);
                if !self.any_lazy() {
                    empty_stock(&mut self.host, &mut self.pool);
                }
                Some(status)
            }
            ended => {
                slot.state = ended;
                None
            }
        }
    }

    /// Says on the console that VM `index` has ended, and remembers whether it was meant to.
    fn ended(&mut self, index: usize, status: u32, reason: &StopReason) {
        self.console.vm_stopped(index);
        let slot = &mut self.slots[index];
        let intended = reason.is_intended() && (status == 0 || *reason == StopReason::Console);
        if let State::Ended { intended: told, .. } = &mut slot.state {
            *told = intended;
        }
        self.console.announce(&format!("{} stopped: {reason} (status {status})", slot.config.name));
    }

    /// Moves console input and output; acts on commands.
    fn serve_console(&mut self, now: Tsc) {
        while let Some(line) = self.host.take_log_line() {
            self.console.log_line(&line);
        }
        while self.console.accepts_input() {
            let Some(byte) = self.host.serial_read() else { break };
            match self.console.input(byte) {
                Some(Event::Command(command)) => self.command(&command, now),
                Some(Event::GuestInput { .. }) | None => {}
            }
        }
        self.transmits = false;
        for index in 0..self.slots.len() {
            let machine = contain::known(self);
            if let State::Alive(vm) = &mut machine.slots[index].state {
                contain::begin(&mut machine.host, index);
                let at = Tsc(now.since(vm.started));
                vm.pass_input(&mut machine.console, index, at);
                vm.pass_output(&mut machine.console, index, at, now);
                let transmits = vm.chipset.has_output();
                contain::end(&mut machine.host);
                machine.transmits |= transmits;
            }
        }
        self.console.poll(now);
        if self.console.has_output() {
            self.console.drain(&mut |bytes| self.host.serial_write(bytes));
        }
    }

    /// The machine's status, if it is to end now.
    fn status_at_end(&mut self) -> Option<u32> {
        if self.quit {
            return Some(STATUS_GOOD);
        }
        if self.alive > 0 {
            return None;
        }
        if !self.told_end {
            self.told_end = true;
            self.console.log_line("all virtual machines have stopped");
        }
        let good = self.slots.iter().all(|s| matches!(s.state, State::Ended { intended: true, .. }));
        (!self.interactive).then_some(if good { STATUS_GOOD } else { STATUS_BAD })
    }

    /// Wakes every VM that waits and has an interrupt by `now`. When the first timer is due of those that wait on.
    fn wake_due(&mut self, now: Tsc) -> Option<Tsc> {
        let mut first: Option<Tsc> = None;
        // Who runs is alive.
        if self.scheduler.runnable() == self.alive {
            return first;
        }
        for index in 0..self.slots.len() {
            let machine = contain::known(self);
            let slot = &mut machine.slots[index];
            let State::Alive(vm) = &mut slot.state else { continue };
            if machine.scheduler.is_runnable(index) {
                continue;
            }
            contain::begin(&mut machine.host, index);
            let at = Tsc(now.since(vm.started));
            let due = vm.chipset.next_deadline().is_some_and(|deadline| deadline <= at);
            if due {
                vm.chipset.advance(at);
            }
            vm.nmi_waits |= vm.chipset.take_nmi();
            let wakes = vm.nmi_waits || !vm.awaits_nmi && vm.chipset.interrupt_pending();
            let timer = vm.chipset.next_deadline();
            contain::end(&mut machine.host);
            if wakes {
                machine.scheduler.wake(index);
                continue;
            }
            if due {
                slot.not_before = now + machine.futile_timer;
            }
            if let Some(timer) = timer {
                let timer = (vm.started + timer.0).max(slot.not_before);
                first = Some(first.map_or(timer, |first| first.min(timer)));
            }
        }
        first
    }

    /// Takes the loaded vCPU off the processor.
    fn unload(&mut self) {
        if let Some(index) = self.loaded.take()
            && let State::Alive(vm) = &mut self.slots[index].state
        {
            vm.vcpu.unload();
        }
        self.host.release();
    }
}
