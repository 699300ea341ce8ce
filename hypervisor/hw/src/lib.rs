//! The machine itself: the one crate of the hypervisor that may be unsafe.
//!
//! Owns: processor tables (GDT, TSS, IDT), page tables, the heap's memory and the list of memory that virtual machines
//! may have, the local and the I/O APIC, time, the serial port, and the end of the machine. Offers them as
//! [`platform::Platform`], the implementation of `lamina_vmm::host::Host`. Never decides what a guest may do: that is
//! `lamina_vmm`'s, which forbids unsafe code.
//!
//! The hypervisor runs with interrupts off, always. It takes them at two places: in [`platform::Platform`]'s `idle`,
//! and by a guest's exit, which hands the vector to [`interrupts::dispatch`]. So no lock of this crate is ever held
//! when an interrupt's handler runs on the same processor; only an NMI or an exception can come at any instruction,
//! and their handlers take no lock.
#![no_std]
#![allow(
    unsafe_code,
    reason = "this crate executes privileged instructions and touches physical memory; every block says why it is sound"
)]

extern crate alloc;

/// What is said where there is no virtualization at all.
pub const NEITHER: &str =
    "this processor has neither VT-x (CPUID 1:ECX.VMX is 0) nor AMD-V (CPUID 0x80000001:ECX.SVM is 0)";

pub mod acpi;
pub mod announce;
pub mod apic;
mod contain;
pub mod control;
pub mod events;
pub mod exit;
pub mod gdt;
pub mod guest_ram;
pub mod hpet;
pub mod idt;
pub mod interrupts;
pub mod ioapic;
pub mod logger;
pub mod machine_check;
pub mod madt;
pub mod memory;
mod msr_safe;
pub mod nmi_status;
pub mod paging;
pub mod percpu;
pub mod pic;
mod pit;
pub mod platform;
pub mod pm_timer;
pub mod reference;
pub mod report;
pub mod rtc;
pub mod screen;
pub mod serial;
mod speculation;
pub mod svm;
pub mod symbols;
pub mod timer;
pub mod vmx;
pub mod watchdog;
pub mod window;
pub mod xstate;
