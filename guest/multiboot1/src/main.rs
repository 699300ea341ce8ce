//! Guest program: a Multiboot 1 image. Prints what the loader says, and checks it. Status: the number of failures.
#![no_std]
#![no_main]

use guest_rt::multiboot::{handover, image, memory, read_u32, read_u64, string};
use guest_rt::{Boot, println};

guest_rt::entry!(main);

const MAGIC: u32 = 0x1bad_b002;
/// Modules at pages, and the sizes of memory.
const FLAGS: u32 = 3;
guest_rt::multiboot_header!([MAGIC, FLAGS, 0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS)]);

/// Memory sizes, command line, modules, memory map, loader's name.
const PROMISED: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;

fn main(_: &Boot) -> u32 {
    let mut failures = 0;
    let mut check = |holds: bool, what: &str| {
        if !holds {
            println!("FAILED {what}");
            failures += 1;
        }
    };
    let (magic, at) = handover();
    let at = u64::from(at);
    println!("magic {magic:#x}, information at {at:#x}");
    check(magic == 0x2bad_b002, "the magic number");
    check(at >= 0x1_0000, "the information is where trampolines go");
    check(at.is_multiple_of(4), "the information is not aligned");

    let flags = read_u32(at);
    check(flags & PROMISED == PROMISED, "something is missing");
    println!("loader: {}", string(read_u32(at + 64).into()));
    println!("command line: {}", string(read_u32(at + 16).into()));
    println!("{} KiB below, {} KiB above", read_u32(at + 4), read_u32(at + 8));

    let modules = u64::from(read_u32(at + 24));
    for number in 0..u64::from(read_u32(at + 20)) {
        let [start, end, line] = [0, 4, 8].map(|field| u64::from(read_u32(modules + 16 * number + field)));
        let text = core::str::from_utf8(memory(start, end - start)).unwrap_or("not text");
        println!("module {number}: {:?}: {text:?}", string(line));
        check(start.is_multiple_of(4096), "a module is not at a page");
        check(start >= image().end, "a module is not behind the image");
    }

    let map = u64::from(read_u32(at + 48));
    let (mut next, end) = (map, map + u64::from(read_u32(at + 44)));
    let mut behind = 0;
    while next < end {
        let (start, length, kind) = (read_u64(next + 4), read_u64(next + 12), read_u32(next + 20));
        println!("memory {start:#x} {length:#x} {kind}");
        check(start >= behind, "the map is not in order");
        behind = start + length;
        next += u64::from(read_u32(next)) + 4;
    }
    check(next == end, "the map does not end with its last entry");
    failures
}
