//! One virtual machine: its processor, memory, nested tables and chipset, made from its configuration and given back
//! when it ends.

mod apic;
mod power_on;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use lamina_arch::addr::{Gpa, Hpa};
use lamina_arch::cr::Rflags;
use lamina_arch::event::Event;
use lamina_arch::exit::Kind;
use lamina_arch::regs::SysReg;
use lamina_arch::time::Tsc;

use crate::chipset::{Chipset, ChipsetSetup};
use crate::config::{Apic, VmConfig};
use crate::console::Console;
use crate::cpu_model::Model;
use crate::cpuid::{Cpuid, ModelInput};
use crate::exit::{LastMov, TIMER_REST_NS};
use crate::fault::{self, Site};
use crate::frames::{FramePool, FrameSize};
use crate::host::{Host, HostMemory};
use crate::memory::GuestMemory;
use crate::msr::{Msrs, Refused};
use crate::nested::{Access, MapError, NestedTables};
use crate::ownership::Announcement;
use crate::trace::{self, Recorder};
use crate::vcpu::Vcpu;
use apic::AccessPage;
use power_on::Images;

/// Local APIC ID of the one virtual processor.
const APIC_ID: u8 = 0;

/// What is counted of one kind of exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounter {
    /// How many.
    pub count: u64,
    /// Time in the hypervisor from the exit until the next entry is made ready. Unit: ticks of the machine's TSC.
    pub ticks: u64,
}

/// What is counted of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Exits to the hypervisor, by [`Kind`].
    pub exits: [ExitCounter; Kind::ALL.len()],
    /// What it took to make the VM, from its configuration until it could run. Unit: ticks of the machine's TSC.
    pub made: u64,
    /// What the VM took of the hypervisor's heap when it was made. Unit: bytes.
    pub heap: u64,
    /// Interrupts injected.
    pub interrupts: u64,
}

impl Counters {
    /// Exits of all kinds.
    pub fn all_exits(&self) -> u64 {
        self.exits.iter().map(|counter| counter.count).sum()
    }
}

/// A virtual machine.
#[derive(Debug)]
pub struct Vm<V: Vcpu, C> {
    pub(crate) name: String,
    pub(crate) vcpu: V,
    pub(crate) chipset: C,
    pub(crate) memory: GuestMemory,
    /// An address without memory or device is open bus wherever it is: see `exit::mmio`.
    pub(crate) open_bus: bool,
    pub(crate) tables: NestedTables<V::Nested>,
    pub(crate) cpuid: Cpuid,
    pub(crate) msrs: Msrs,
    /// How a device was reached last.
    pub(crate) last_mov: LastMov,
    /// What of MSRs the guest tried and did not get.
    pub(crate) refused_msrs: Refused,
    /// The machine's TSC when the VM started.
    pub(crate) started: Tsc,
    /// How long a timer that was due is not looked at again ([`TIMER_REST_NS`]). Unit: ticks.
    pub(crate) timer_rest: u64,
    /// What the guest recorded; 0 at first.
    pub(crate) status: u32,
    /// [`crate::vcpu::Vcpu::request_interrupt_window`] is in force.
    pub(crate) interrupt_window: bool,
    /// An NMI waits for NMI blocking to end.
    pub(crate) nmi_waits: bool,
    /// It halted with interrupts off: only an NMI wakes it.
    pub(crate) awaits_nmi: bool,
    /// A device wants to transfer from or to memory before the guest runs again.
    pub(crate) dma_waits: bool,
    pub(crate) counters: Counters,
    /// What stands in the place of the local APIC's registers, where the processor virtualizes it.
    pub(crate) access_page: Option<AccessPage>,
    /// Records what the guest sees of its exits, where that was asked for.
    pub(crate) trace: Option<Box<Recorder>>,
}

impl<V: Vcpu, C: Chipset> Vm<V, C> {
    /// Makes the VM that `config` describes, with blobs out of `image`, ready to run. `id` is its number, from 1.
    ///
    /// # Errors
    /// A sentence that says what the image, the configuration or the machine did not allow; nothing is kept then.
    pub fn create<H: Host<Vcpu = V>>(
        config: &VmConfig,
        id: u16,
        image: &'static [u8],
        host: &mut H,
        pool: &mut FramePool,
    ) -> Result<Box<Vm<V, C>>, String> {
        let images = Images::find(config, image)?;
        let mut memory = images.allocate(config, pool, host)?;
        match Self::create_in(config, id, &images, host, pool, &mut memory) {
            Ok((vcpu, tables, cpuid)) => {
                let started = host.now();
                let setup = ChipsetSetup {
                    tsc: host.tsc_frequency(),
                    now: Tsc(0),
                    unix_seconds: host.unix_seconds(),
                    memory: config.memory,
                    apic_id: APIC_ID,
                    extras: images.extras(config),
                };
                let mut vm = Vm {
                    name: config.name.clone(),
                    vcpu,
                    chipset: C::new(&setup),
                    memory,
                    open_bus: images.expect_a_pc(),
                    tables,
                    last_mov: LastMov::default(),
                    msrs: Msrs::new(cpuid.physical_bits(), cpuid.speculation(host.arch_capabilities())),
                    refused_msrs: Refused::default(),
                    cpuid,
                    started,
                    timer_rest: host.tsc_frequency().ticks_in_ns(TIMER_REST_NS),
                    status: 0,
                    interrupt_window: false,
                    nmi_waits: false,
                    awaits_nmi: false,
                    dma_waits: false,
                    counters: Counters::default(),
                    access_page: None,
                    trace: (config.trace > 0).then(|| Box::new(Recorder::new(config.trace))),
                };
                if vm.trace.is_some() {
                    vm.memory.record_writes();
                }
                vm.set_tsc_adjust(0);
                // What is recorded is compared with another vendor's, whose processor leaves other exits out.
                if config.apic == Apic::Virtualized && config.trace == 0 {
                    let virtualized = vm.virtualize_apic(host, pool);
                    if let Err(why) = virtualized {
                        vm.destroy(host, pool);
                        return Err(why);
                    }
                }
                Ok(Box::new(vm))
            }
            Err(why) => {
                memory.release(host, pool);
                Err(why)
            }
        }
    }

    /// Everything that may fail once there is memory.
    fn create_in<H: Host<Vcpu = V>>(
        config: &VmConfig,
        id: u16,
        images: &Images<'_>,
        host: &mut H,
        pool: &mut FramePool,
        memory: &mut GuestMemory,
    ) -> Result<(V, NestedTables<V::Nested>, Cpuid), String> {
        let model = Model::by_name(&config.cpu).ok_or_else(|| format!("there is no CPU model {:?}", config.cpu))?;
        let state = images.load(config, memory, host)?;
        let mut vcpu = host.create_vcpu(id)?;
        let mut tables = NestedTables::new(vcpu.nested_format(), host, pool).map_err(|e| e.to_string())?;
        match memory.map_into(&mut tables, host, pool) {
            // Nothing has walked these tables yet, so nothing of them can be cached.
            Ok(flush) => flush.acknowledge(pool),
            Err(why) => {
                tables.destroy(host).acknowledge(pool);
                return Err(why.to_string());
            }
        }
        memory.announce(host, id);
        host.announce(Announcement::Root { vm: id, root: tables.root() });
        vcpu.set_nested_root(tables.root());
        // Firmware starts where a processor comes out of reset, and that is where a new one is.
        if let Some(state) = state {
            state.apply(&mut vcpu);
        }
        let input = ModelInput {
            tsc: host.tsc_frequency(),
            apic_id: u32::from(APIC_ID),
            hypercall_instruction: V::HYPERCALL_INSTRUCTION,
            wide_addresses: vcpu.holds_wide_addresses(),
        };
        let machine = |leaf, subleaf| host.cpuid(leaf, subleaf);
        let cpuid = Cpuid::host(&|leaf, subleaf| model.limit(leaf, subleaf, machine(leaf, subleaf)), &input);
        vcpu.allow_cr4(cpuid.cr4_allowed());
        vcpu.hide(model.hidden(&machine));
        Ok((vcpu, tables, cpuid))
    }

    /// Gives back all memory of the VM.
    pub fn destroy<H: Host<Vcpu = V>>(self, host: &mut H, pool: &mut FramePool) {
        let Vm { mut vcpu, memory, tables, access_page, .. } = self;
        vcpu.unload();
        let flush = tables.destroy(host);
        vcpu.invalidate_nested();
        drop(vcpu);
        flush.acknowledge(pool);
        if let Some(page) = access_page {
            page.release(pool);
        }
        memory.release(host, pool);
    }

    /// The tables that the guest's memory goes through.
    pub(crate) fn tables(&self) -> &NestedTables<V::Nested> {
        &self.tables
    }

    /// Maps `hpa`, a frame of the VM's, at `gpa`, where nothing is mapped: the guest may do everything there.
    ///
    /// # Errors
    /// [`MapError`]; nothing has changed then.
    pub(crate) fn map(
        &mut self,
        host: &mut impl HostMemory,
        pool: &mut FramePool,
        gpa: Gpa,
        hpa: Hpa,
        size: FrameSize,
    ) -> Result<(), MapError> {
        if size == FrameSize::Size4K && self.tables.map_absent(host, gpa, hpa, Access::RWX) {
            return Ok(());
        }
        let flush = self.tables.map(host, pool, gpa, hpa, size.bytes(), Access::RWX)?;
        if flush.is_needed() {
            self.vcpu.invalidate_nested();
        }
        flush.acknowledge(pool);
        Ok(())
    }

    /// Makes `event` happen at the next entry. A fault costs a read of RFLAGS, and a write; no processor sets RF for what
    /// is injected.
    pub(crate) fn inject(&mut self, event: Event) {
        fault::point(Site::Inject);
        if event.sets_resume_flag() {
            let flags = self.vcpu.read(SysReg::Rflags);
            self.vcpu.write(SysReg::Rflags, flags | Rflags::RF.bits());
        }
        if let Some(trace) = &mut self.trace {
            trace.event(event, trace::registers(&mut self.vcpu));
        }
        self.vcpu.inject(event);
    }

    /// The guest's TSC becomes what it would be without, plus `adjust` ticks.
    pub(crate) fn set_tsc_adjust(&mut self, adjust: u64) {
        self.msrs.tsc_adjust = adjust;
        self.vcpu.set_tsc_offset(adjust.wrapping_sub(self.started.0).cast_signed());
    }

    /// Moves what the serial port transmits to the console, as far as it has room. `now` is the chipset's time,
    /// `console_now` the machine's.
    pub(crate) fn pass_output(&mut self, console: &mut Console, slot: usize, now: Tsc, console_now: Tsc) {
        if self.chipset.has_output() {
            self.chipset.take_output(now, &mut |byte| console.guest_byte(slot, byte, console_now));
        }
    }

    /// Moves what waits at the console for this VM to its serial port, as far as that has room.
    pub(crate) fn pass_input(&mut self, console: &mut Console, slot: usize, now: Tsc) {
        if console.has_input(slot) {
            console.give_input(slot, &mut |bytes| self.chipset.give_input(now, bytes));
        }
    }
}
