//! Guest program: touches `touch=N` MiB of its memory (16) from 16 MiB on, each page once, and checks that it is zero at
//! first and keeps what was written. Stops with status 0, or with 1 where not; with `stay=1` it stays instead.
#![no_std]
#![no_main]

use guest_rt::{Boot, cpu, memory, println};

guest_rt::entry!(main);

const PAGE: u64 = 4096;

fn main(boot: &Boot) -> u32 {
    let bytes = boot.number("touch").unwrap_or(16) << 20;
    let pages = || (0..bytes / PAGE).map(|page| memory::FIRST + page * PAGE);
    for page in pages() {
        for offset in [0, 8, PAGE / 2, PAGE - 8] {
            let found = memory::read(page + offset);
            if found != 0 {
                println!("{found:#x} at {:#x} is not zero", page + offset);
                return 1;
            }
        }
        memory::write(page, page | 1);
        memory::write(page + PAGE - 8, !page);
    }
    for page in pages() {
        let found = [memory::read(page), memory::read(page + PAGE - 8)];
        if found != [page | 1, !page] {
            println!("{found:x?} at {page:#x} is not what was written");
            return 1;
        }
    }
    println!("touched {} MiB", bytes >> 20);
    if boot.number("stay").is_some() {
        cpu::hog();
    }
    0
}
