//! Guest program: says hello and stops with status 0, or with `status=N` of its command line.
#![no_std]
#![no_main]

use guest_rt::{Boot, println};

guest_rt::entry!(main);

fn main(boot: &Boot) -> u32 {
    println!("Hello from a guest with {} MiB of memory", boot.memory >> 20);
    boot.number("status").and_then(|status| status.try_into().ok()).unwrap_or(0)
}
