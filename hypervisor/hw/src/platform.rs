//! The machine for the run loop: `lamina_vmm::host::Host` over this crate's parts.
//!
//! Owns the pool's memory and the vendor's back end. One for the machine; made at the end of bring-up.

use alloc::string::String;
use alloc::vec::Vec;
use lamina_arch::addr::Hpa;
use lamina_arch::time::{Frequency, Tsc};
use lamina_vmm::frames::FrameStock;
use lamina_vmm::host::{Host, HostMemory};
use lamina_vmm::vcpu::Vcpu;
use x86_64::instructions::interrupts::{disable, enable_and_hlt};

use crate::guest_ram::GuestRam;
use crate::memory::KernelHeap;
use crate::{apic, interrupts, logger, paging, rtc, serial, timer};

/// A vendor's way of making virtual processors.
pub trait Backend {
    /// Its virtual processor.
    type Vcpu: Vcpu;

    /// Makes one as after reset, for the guest with the identifier `vm` (VPID or ASID; from 1).
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
    fn read(&self, from: Hpa, data: &mut [u8]) {
        self.memory.read(from, data);
    }

    fn write(&mut self, to: Hpa, data: &[u8]) {
        self.memory.write(to, data);
    }

    fn zero(&mut self, at: Hpa, length: u64) {
        self.memory.zero(at, length);
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
}

impl<B: Backend> Host for Platform<B> {
    type Vcpu = B::Vcpu;

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
        match vector {
            Some(vector) => interrupts::dispatch(vector),
            None => interrupts::accept_pending(),
        }
    }

    fn handle_pending_interrupts(&mut self) {
        interrupts::accept_pending();
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
        logger::take_line()
    }
}

/// Halts until an interrupt was handled, at the latest the timer's at `until`. No wake-up is lost: interrupts are off
/// from the caller's last look at its work until HLT, and what came meanwhile ends HLT at once.
pub fn idle(until: Option<Tsc>) {
    if let Some(until) = until {
        // A deadline that is past interrupts at once.
        apic::arm(until);
    }
    enable_and_hlt();
    disable();
    if until.is_some() {
        apic::disarm();
    }
}
