//! Guest program: reads where there is no memory (2 GiB, or `at=ADDRESS` of its command line). Status 1 if it survives. With
//! `wait=1` it waits for a line on its serial port before.
#![no_std]
#![no_main]

use guest_rt::{Boot, println, probe, serial};

guest_rt::entry!(main);

fn main(boot: &Boot) -> u32 {
    let address = boot.number("at").unwrap_or(0x8000_0000);
    if boot.number("wait").is_some() {
        println!("waiting");
        serial::wait_for_line();
    }
    println!("about to read {address:#x}");
    serial::flush();
    println!("it held {:x?}", probe::read_memory(address));
    1
}
