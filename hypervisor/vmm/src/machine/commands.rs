//! What the console's commands do.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use lamina_arch::addr::PAGE_4K;
use lamina_arch::exit::Kind;
use lamina_arch::time::Tsc;

use super::{Machine, State, contain};
use crate::chipset::{Chipset, Key};
use crate::console::Command;
use crate::host::Host;
use crate::nested::Visited;
use crate::stop::StopReason;
use crate::vm::ExitCounter;

impl<H: Host, C: Chipset> Machine<H, C> {
    /// Does what `command` asks.
    pub(super) fn command(&mut self, command: &Command, now: Tsc) {
        match command {
            Command::Vms => self.list(now),
            Command::Exits(name) => {
                if let Some(index) = self.alive(name) {
                    self.exits(index);
                }
            }
            Command::Memory(name) => {
                if let Some(index) = self.alive(name) {
                    self.memory(index);
                }
            }
            Command::Msrs(name) => {
                if let Some(index) = self.alive(name) {
                    self.msrs(index);
                }
            }
            Command::Stop(name) => {
                if let Some(index) = self.alive(name) {
                    self.stop(index, &StopReason::Console);
                }
            }
            Command::Attach(name) => {
                if let Some(index) = self.alive(name) {
                    self.console.attach(index);
                }
            }
            Command::Audit => self.tell_audit(),
            #[cfg(any(test, feature = "plant"))]
            Command::Plant(kind) => self.plant(kind),
            Command::Screen(name) => {
                if let Some(index) = self.alive(name) {
                    self.screen(index);
                }
            }
            Command::Type { name, keys } => {
                if let Some(index) = self.alive(name) {
                    self.type_keys(index, keys, now);
                }
            }
            Command::Quit => self.quit = true,
        }
    }

    /// Audits, and says what was found.
    fn tell_audit(&mut self) {
        let audit = self.audit();
        self.console.reply(&format!(
            "audit: looked at {} frames and {} nested pages: {} violations",
            audit.frames, audit.pages, audit.count
        ));
        for violation in &audit.violations {
            self.console.reply(&format!("audit: {violation}"));
        }
    }

    /// Audits, and says only what is wrong. Whether anything is.
    pub(super) fn tell_violations(&mut self) -> bool {
        let audit = self.audit();
        for violation in &audit.violations {
            self.console.log_line(&format!("audit: {violation}"));
        }
        audit.count != 0
    }

    /// The number of the VM `name`, if it runs; says so where not.
    fn alive(&mut self, name: &str) -> Option<usize> {
        let index = self.console.find_vm(name);
        let problem = match index.map(|i| &self.slots[i].state) {
            Some(State::Alive(_)) => return index,
            Some(State::Ended { .. }) => "has stopped",
            None => "is no virtual machine; `vms` lists them",
        };
        self.console.reply(&format!("{name} {problem}"));
        None
    }

    /// A line for each kind of exit that VM `index` has had, the most frequent first.
    fn exits(&mut self, index: usize) {
        let State::Alive(vm) = &self.slots[index].state else { return };
        let counters = vm.counters;
        let mut rows: Vec<(Kind, ExitCounter)> = Kind::ALL.into_iter().zip(counters.exits).collect();
        rows.retain(|(_, counter)| counter.count > 0);
        rows.sort_by_key(|(_, counter)| core::cmp::Reverse(counter.count));
        self.console.reply("EXIT                            COUNT   TICKS-EACH        TICKS");
        for (kind, counter) in rows {
            let each = counter.ticks / counter.count;
            self.console.reply(&format!("{:<27} {:>9} {each:>12} {:>12}", kind.name(), counter.count, counter.ticks));
        }
        self.console.reply(&format!(
            "made in {} ticks; {} exits, {} interrupts injected, {} accesses to MSRs refused, {} to devices that are not there",
            counters.made,
            counters.all_exits(),
            counters.interrupts,
            vm.refused_msrs.count(),
            vm.chipset.unclaimed()
        ));
    }

    /// What VM `index` takes of the machine's memory: its own, and the hypervisor's for its sake.
    fn memory(&mut self, index: usize) {
        let State::Alive(vm) = &self.slots[index].state else { return };
        let (mut tables, mut own, mut directory) = (0, 0, 0);
        vm.tables().visit(&self.host, &mut |visited| {
            if let Visited::Table(_) = visited {
                tables += PAGE_4K;
            }
        });
        for (place, _, size) in vm.memory.owned(&self.host) {
            *(if place.is_some() { &mut own } else { &mut directory }) += size.bytes();
        }
        let page = if vm.access_page.is_some() { PAGE_4K } else { 0 };
        let heap = vm.counters.heap;
        let beside = heap + tables + directory + page;
        self.console.reply(&format!(
            "{own} bytes of memory are its own; beside them {beside} bytes: {heap} of the heap when it was made, {tables} of \
             nested tables, {directory} of its directory, {page} in the place of its local APIC"
        ));
    }

    /// A line for each MSR that VM `index` tried and did not get.
    fn msrs(&mut self, index: usize) {
        let State::Alive(vm) = &self.slots[index].state else { return };
        let refused = &vm.refused_msrs;
        if refused.rows().is_empty() {
            let line = format!("{}: no access to an MSR was refused", vm.name);
            self.console.reply(&line);
            return;
        }
        self.console.reply("MSR             RDMSR      WRMSR");
        for row in refused.rows() {
            self.console.reply(&format!("{:#010x} {:>10} {:>10}", row.index, row.reads, row.writes));
        }
        if refused.others() > 0 {
            self.console.reply(&format!("and {} accesses to MSRs beyond these", refused.others()));
        }
    }

    /// The text on the screen of VM `index`, a line each.
    fn screen(&mut self, index: usize) {
        let machine = contain::known(self);
        let State::Alive(vm) = &machine.slots[index].state else { return };
        contain::begin(&mut machine.host, index);
        let screen = vm.chipset.screen();
        contain::end(&mut machine.host);
        match screen {
            Some(mut lines) => {
                let used = lines.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1);
                lines.truncate(used);
                let heading = format!("screen of {}, {used} lines:", vm.name);
                machine.console.reply(&heading);
                lines.iter().for_each(|line| machine.console.reply(&format!("| {line}")));
            }
            None if machine.slots[index].config.vga.is_some() => {
                let line = format!("the screen of {} shows no text", vm.name);
                machine.console.reply(&line);
            }
            None => {
                let line = format!("{} has no screen; `vga = true` gives it one", vm.name);
                machine.console.reply(&line);
            }
        }
    }

    /// Types on the keyboard of VM `index`.
    fn type_keys(&mut self, index: usize, keys: &[Key], now: Tsc) {
        let machine = contain::known(self);
        let State::Alive(vm) = &mut machine.slots[index].state else { return };
        let at = Tsc(now.since(vm.started));
        contain::begin(&mut machine.host, index);
        let typed = keys.iter().take_while(|key| vm.chipset.type_key(at, **key)).count();
        contain::end(&mut machine.host);
        if typed < keys.len() {
            let line = format!("{}: {typed} of {} keys typed: its keyboard takes no more now", vm.name, keys.len());
            self.console.reply(&line);
        }
    }

    /// A line for each VM.
    fn list(&mut self, now: Tsc) {
        let hz = self.host.tsc_frequency();
        self.console.reply("NAME                             STATE      MEMORY     BACKED  CPU-SECONDS      EXITS");
        for (index, slot) in self.slots.iter().enumerate() {
            let (state, backed, exits) = match &slot.state {
                State::Alive(vm) => {
                    let state = if self.scheduler.is_runnable(index) { "running" } else { "waiting" };
                    (state, vm.memory.backed(), vm.counters.all_exits())
                }
                State::Ended { exits, .. } => ("stopped", 0, *exits),
            };
            let milliseconds = hz.ns_in_ticks(self.scheduler.ran(index)) / 1_000_000;
            let line: String = format!(
                "{:<32} {:<8} {:>5} MiB {:>6} MiB {:>8}.{:03} {:>10}",
                slot.config.name,
                state,
                slot.config.memory >> 20,
                backed.div_ceil(1 << 20),
                milliseconds / 1000,
                milliseconds % 1000,
                exits
            );
            self.console.reply(&line);
        }
        let up = hz.ns_in_ticks(now.0) / 1_000_000_000;
        self.console.reply(&format!(
            "{} MiB of {} MiB of guest memory free, up {up} s",
            self.pool.free_bytes() >> 20,
            self.pool.total() >> 20
        ));
    }
}
