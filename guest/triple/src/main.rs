//! Guest program: shuts its processor down by a triple fault (an exception without an IDT).
#![no_std]
#![no_main]

use guest_rt::{Boot, println, serial, trap};

guest_rt::entry!(main);

fn main(_: &Boot) -> u32 {
    println!("about to triple-fault");
    serial::flush();
    trap::load_empty();
    trap::undefined_instruction()
}
