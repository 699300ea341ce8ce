//! The command surface of Lamina: what stands behind `cargo xtask`, and what the boot scenarios call.
//!
//! Owns everything that happens on the host: setting up what is missing ([`setup`]), reading and checking the
//! configuration ([`config`]), packing it for the hypervisor ([`bundle`]), building kernel, guests and disk image
//! ([`artifacts`], [`image`]), choosing what to boot it on ([`backend`]) and talking to it while it runs ([`machine`]).
//! Never decides what a guest sees: that is the hypervisor's.
//!
//! Words of its own go to standard error; standard output belongs to the machine's serial port.
#![forbid(unsafe_code)]

pub mod artifacts;
pub mod backend;
pub mod bench;
pub mod bundle;
pub mod check;
pub mod cli;
pub mod config;
pub mod diff;
pub mod doctor;
pub mod fuzz;
pub mod image;
pub mod initramfs;
pub mod machine;
pub mod opinion;
pub mod paths;
pub mod report;
pub mod rescue;
pub mod run;
pub mod session;
pub mod setup;
pub mod terminal;
pub mod testing;
