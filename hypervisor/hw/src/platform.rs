//! The machine for the run loop: `lamina_vmm::host::Host` over this crate's parts.
//!
//! Owns the pool's memory and the vendor's back end. One for the machine; made at the end of bring-up.

use alloc::string::String;
use alloc::vec::Vec;
use core::arch::naked_asm;
use core::sync::atomic::Ordering;
use lamina_arch::addr::Hpa;
use lamina_arch::time::{Frequency, Tsc};
use lamina_vmm::frames::FrameStock;
use lamina_vmm::host::{Bug, Host, HostMemory};
use lamina_vmm::ownership::Announcement;
use lamina_vmm::vcpu::Vcpu;

use crate::guest_ram::GuestRam;
use crate::memory::KernelHeap;
use crate::{announce, apic, contain, interrupts, logger, paging, percpu, rtc, serial, timer, watchdog, xstate};

/// Memory that is cleared before the watchdog is told that this has come further. Unit: bytes.
const ZEROED_AT_ONCE: usize = 16 << 20;

/// A vendor's way of making virtual processors.
pub trait Backend {
    /// Its virtual processor.
    type Vcpu: Vcpu;

    /// Makes one as after reset, for the guest with the number `vm`, from 1.
    ///
    /// # Errors
    /// A sentence that says what could not be had.
    fn create_vcpu(&mut self, vm: u16) -> Result<Self::Vcpu, String>;
}

/// What the machine began with.
#[derive(Clone, Copy)]
pub struct Handover {
    /// When the loader handed it over.
    pub at: Tsc,
    /// The hypervisor's heap.
    pub heap: &'static KernelHeap,
}

/// The machine.
pub struct Platform<B> {
    memory: GuestRam,
    backend: B,
    tsc: Frequency,
    started: Tsc,
    handover: Handover,
    unix_at_start: u64,
}

impl<B: Backend> Platform<B> {
    /// The machine with the pool `memory`, after bring-up has set up all the rest. Reads the clock of date and time.
    pub fn new(memory: GuestRam, backend: B, handover: Handover) -> Self {
        let (tsc, started, unix_at_start) = (timer::frequency(), timer::now(), rtc::unix_seconds());
        Platform { memory, backend, tsc, started, handover, unix_at_start }
    }

    /// The memory that virtual machines and their tables may have: address and length (unit: bytes), for the frame
    /// pool.
    pub fn pool(&self) -> Vec<(Hpa, u64)> {
        self.memory.regions().to_vec()
    }

    /// The vendor's back end.
    pub const fn backend(&mut self) -> &mut B {
        &mut self.backend
    }
}

impl<B> HostMemory for Platform<B> {
    const ANNOUNCES: bool = announce::ANNOUNCES;

    fn read(&self, from: Hpa, data: &mut [u8]) {
        self.memory.read(from, data);
    }

    fn write(&mut self, to: Hpa, data: &[u8]) {
        self.memory.write(to, data);
    }

    fn zero(&mut self, at: Hpa, length: u64) {
        // A frame may be as large as 1 GiB.
        for from in (0..length).step_by(ZEROED_AT_ONCE) {
            self.memory.zero(at + from, (length - from).min(ZEROED_AT_ONCE as u64));
            watchdog::progress();
        }
    }

    #[inline]
    fn read_u64(&self, at: Hpa) -> u64 {
        self.memory.read_u64(at)
    }

    fn write_u64(&mut self, at: Hpa, value: u64) {
        self.memory.write_u64(at, value);
    }

    fn stock(&mut self) -> &mut FrameStock {
        self.memory.stock()
    }

    fn release(&mut self) {
        self.memory.release();
    }

    #[inline(always)]
    fn announce(&self, announcement: Announcement) {
        announce::announce(announcement);
    }
}

impl<B: Backend> Host for Platform<B> {
    type Vcpu = B::Vcpu;

    fn survive(work: &mut dyn FnMut()) -> bool {
        contain::survive(work)
    }

    #[inline]
    fn begin_work(&mut self, vm: usize) {
        contain::work_for(vm as u64 + 1);
    }

    #[inline]
    fn end_work(&mut self) {
        contain::work_for(0);
    }

    fn progress(&self) {
        watchdog::progress();
    }

    fn take_bug(&mut self) -> Option<Bug> {
        // What was abandoned may have been at a window.
        self.memory.reset();
        contain::take_bug()
    }

    fn forget_vcpu(&mut self) {
        let cpu = percpu::current();
        // Its VMCS, if it has one, is current still, and the next one that is used becomes it. Its page is never freed.
        cpu.current_vmcs.store(0, Ordering::Relaxed);
        cpu.current_vm.store(0, Ordering::Relaxed);
        cpu.current_vmcb.store(0, Ordering::Relaxed);
        // Nobody knows what it left in the MSRs that move: the next vCPU writes all of its own. What it asked of the
        // processor's predictions stays until another vCPU that asks for something, and only restricts.
        cpu.left.known.store(false, Ordering::Relaxed);
        apic::disarm();
        xstate::forget();
    }

    fn now(&self) -> Tsc {
        timer::now()
    }

    fn tsc_frequency(&self) -> Frequency {
        self.tsc
    }

    fn unix_seconds(&self) -> u64 {
        let elapsed = timer::now().since(self.started);
        self.unix_at_start + elapsed / self.tsc.hz()
    }

    fn create_vcpu(&mut self, vm: u16) -> Result<Self::Vcpu, String> {
        self.backend.create_vcpu(vm)
    }

    fn handle_interrupt(&mut self, vector: Option<u8>) {
        // Everybody's: a bug in there is not this VM's alone.
        let cpu = percpu::current();
        let work = cpu.work.swap(0, Ordering::Relaxed);
        match vector {
            Some(vector) => interrupts::dispatch(vector),
            None => interrupts::accept_pending(),
        }
        cpu.work.store(work, Ordering::Relaxed);
    }

    fn handle_pending_interrupts(&mut self) {
        interrupts::accept_pending();
        serial::serve_polled();
    }

    fn handle_machine_check(&mut self) {
        // SAFETY: vector 18 has a handler with a stack of its own, which reports and ends the machine.
        unsafe { core::arch::asm!("int 18") };
    }

    fn handle_nmi(&mut self) {
        // Through the IDT: the handler's IRET also ends the blocking of NMIs that the exit began.
        // SAFETY: vector 2 has a handler with a stack of its own, which returns.
        unsafe { core::arch::asm!("int 2") };
    }

    fn idle(&mut self, until: Option<Tsc>) {
        idle(until);
    }

    fn serial_write(&mut self, bytes: &[u8]) -> usize {
        serial::write(bytes)
    }

    fn has_news(&self) -> bool {
        serial::has_received() || logger::has_lines()
    }

    fn serial_read(&mut self) -> Option<u8> {
        serial::read()
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let answer = raw_cpuid::native_cpuid::cpuid_count(leaf, subleaf);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    }

    fn arch_capabilities(&self) -> u64 {
        crate::speculation::capabilities()
    }

    fn heap_used(&self) -> u64 {
        self.handover.heap.usage().1 as u64
    }

    fn since_loader(&self) -> Option<u64> {
        Some(timer::now().since(self.handover.at))
    }

    fn audit(&mut self, violation: &mut dyn FnMut(String)) {
        self.memory.release();
        paging::audit(self.memory.regions(), violation);
    }

    #[cfg(feature = "plant")]
    fn plant_writable_code(&mut self) -> bool {
        paging::plant_writable_code()
    }

    #[cfg(feature = "plant")]
    fn plant_mapping(&mut self, frame: Hpa) -> bool {
        paging::plant_mapping(frame)
    }

    #[cfg(feature = "count")]
    fn events(&self) -> Option<u64> {
        Some(crate::events::packed())
    }

    fn take_log_line(&mut self) -> Option<String> {
        watchdog::check();
        logger::take_line()
    }
}

/// Halts until an interrupt was handled, at the latest the timer's at `until`. No wake-up is lost: interrupts are off
/// from the caller's last look at its work until HLT, and what came meanwhile ends HLT at once. A serial port that is
/// polled bounds the time, and is looked at behind it.
pub fn idle(until: Option<Tsc>) {
    let until = until.into_iter().chain(serial::next_poll()).min();
    if let Some(until) = until {
        // A deadline that is past interrupts at once.
        apic::arm(until);
    }
    // SAFETY: interrupts are handled, and are off again behind it.
    unsafe { halt() };
    watchdog::progress();
    if until.is_some() {
        apic::disarm();
    }
    serial::serve_polled();
}

/// Halts until an interrupt was handled; STI keeps them away until HLT is executed. Non-maskable ones are not kept away:
/// [`watchdog::nmi`] leaves HLT out where one came in between.
///
/// # Safety
/// Interrupts are off, and may be taken.
#[unsafe(naked)]
unsafe extern "sysv64" fn halt() {
    naked_asm!("sti", "hlt", "cli", "ret")
}

/// Length of HLT. Unit: bytes.
pub(crate) const HALT_LENGTH: u64 = 1;
/// Length of STI. Unit: bytes.
const ENABLE_LENGTH: u64 = 1;

/// Where HLT is that waits for interrupts.
pub(crate) fn halt_address() -> u64 {
    (halt as *const ()).expose_provenance() as u64 + ENABLE_LENGTH
}
