//! What a virtual machine is.
//!
//! Owns: the seam to the processor ([`vcpu::Vcpu`]), exit dispatch, the port and MMIO bus, nested page tables, guest
//! memory, configuration, loaders, firmware tables, the scheduler and the console. Never executes a privileged
//! instruction, never turns a guest's address into a pointer, never names a vendor: hardware comes in through the
//! traits [`vcpu::Vcpu`], [`host::Host`] and [`chipset::Chipset`], so all of it runs on the host under test.
#![cfg_attr(not(any(test, feature = "testing")), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
pub mod apic;
pub mod bus;
pub mod change;
pub mod chipset;
pub mod config;
pub mod console;
pub mod cpu_model;
pub mod cpuid;
pub mod dma;
pub mod event;
pub mod exit;
#[cfg(any(test, feature = "testing"))]
pub mod fake_memory;
pub mod fault;
pub mod frames;
#[cfg(test)]
mod harness;
pub mod host;
pub mod insn;
pub mod layout;
pub mod load;
pub mod machine;
pub mod memory;
pub mod msr;
pub mod nested;
pub mod ownership;
pub mod pipe;
pub mod sched;
pub mod smbios;
pub mod stop;
pub mod trace;
pub mod vcpu;
pub mod vm;
pub mod walk;
