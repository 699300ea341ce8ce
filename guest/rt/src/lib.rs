//! Runtime of the guest programs.
//!
//! Owns what a program finds when Lamina has loaded it as a plain ELF64 image and entered it in 64-bit mode at
//! privilege level 0, with the first 4 GiB mapped one to one: its stack, its segments, the console on the first serial
//! port, the way out, exceptions and interrupts, timers, and the calls to Lamina. All that a program needs `unsafe`
//! for is in here. There is one processor and no heap; code runs with interrupts disabled except within
//! [`cpu::wait_for_interrupt`].
//!
//! ```ignore
//! guest_rt::entry!(main);
//!
//! fn main(boot: &guest_rt::Boot) -> u32 {
//!     guest_rt::println!("{} bytes of memory", boot.memory);
//!     0 // the VM's status
//! }
//! ```
#![no_std]
#![allow(unsafe_code, reason = "the one place where guest programs keep theirs")]

pub mod cpu;
pub mod extended;
pub mod hypercall;
pub mod lapic;
pub mod memory;
pub mod multiboot;
pub mod pic;
pub mod pit;
pub mod port;
pub mod power;
pub mod probe;
pub mod rtc;
pub mod serial;
mod start;
pub mod trap;

pub use start::{Boot, start};

/// Status of a program that panicked.
pub const PANIC_STATUS: u32 = 101;

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    cpu::disable_interrupts();
    println!("{info}");
    power::exit(PANIC_STATUS)
}

/// No heap: `alloc` is linked by a dependency that no program uses it through, and wants an allocator to exist.
struct NoHeap;

// SAFETY: it gives out nothing, so nothing that it gives out can be wrong.
unsafe impl core::alloc::GlobalAlloc for NoHeap {
    unsafe fn alloc(&self, _: core::alloc::Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: core::alloc::Layout) {}
}

#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: NoHeap = NoHeap;
