//! Guest program: takes the processor and never gives it back (`cli; jmp $`). Only preemption helps.
#![no_std]
#![no_main]

use guest_rt::{Boot, cpu, println};

guest_rt::entry!(main);

fn main(_: &Boot) -> u32 {
    println!("I keep the processor from here on");
    cpu::hog()
}
