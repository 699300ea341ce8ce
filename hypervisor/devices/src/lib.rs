//! The devices of a PC, each a pure state machine.
//!
//! Owns: the registers of each chip, what a guest's accesses do to them, and the levels of their interrupt lines.
//! [`pc::Pc`] wires them into the chipset that a VM's run loop drives. Nothing here touches guest memory or hardware,
//! waits, or reads a clock: time comes in as the guest's TSC with every call, and whatever a guest writes, no call
//! panics.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi_pm;
pub mod atapi;
pub mod clock;
pub mod debug_port;
pub mod fw_cfg;
pub mod hpet;
pub mod i8042;
pub mod ide;
pub mod ioapic;
pub mod keyboard;
pub mod lapic;
pub mod pc;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod rtc;
pub mod uart;
pub mod vga;
