//! Facts of the x86_64 processor, as data.
//!
//! Owns: address and register types, the vendor-neutral [`exit::Exit`], numbers and layouts from the manuals, and the
//! pure decoding of exit information. Never executes a privileged instruction and never touches guest memory: every
//! function here is pure and runs on the host.
//!
//! Manual sections are cited by title; `ARCHITECTURE.md` pins the revisions ("SDM" is Intel's, "APM" AMD's).
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod cr;
pub mod event;
pub mod exit;
pub mod hypercall;
pub mod instruction;
pub mod msr;
pub mod regs;
pub mod segment;
pub mod speculation;
pub mod svm;
pub mod time;
pub mod vmx;
pub mod watchpoints;
