//! Guest program: a Multiboot 2 image. Prints what the loader says, and checks it. Status: the number of failures.
#![no_std]
#![no_main]

use guest_rt::multiboot::{handover, image, memory, read_u32, read_u64, string};
use guest_rt::{Boot, println};

guest_rt::entry!(main);

const MAGIC: u32 = 0xe852_50d6;
/// Requests: command line, memory map, new RSDP. Modules at pages. A framebuffer would be nice. The end.
const TAGS: [u32; 16] = [1, 20, 1, 6, 15, 0, 6, 8, 1 << 16 | 5, 20, 1024, 768, 32, 0, 0, 8];
const LENGTH: u32 = 16 + 16 * 4;
guest_rt::multiboot_header!(header());

const fn header() -> [u32; 20] {
    let mut words = [0; 20];
    words[0] = MAGIC;
    words[2] = LENGTH;
    words[3] = 0u32.wrapping_sub(MAGIC).wrapping_sub(LENGTH);
    let mut at = 0;
    while at < TAGS.len() {
        words[4 + at] = TAGS[at];
        at += 1;
    }
    words
}

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
    check(magic == 0x36d7_6289, "the magic number");
    check(at >= 0x1_0000, "the information is where trampolines go");
    check(at.is_multiple_of(8), "the information is not aligned");

    let end = at + u64::from(read_u32(at));
    let mut seen = 0u32;
    let mut next = at + 8;
    loop {
        let (kind, size) = (read_u32(next), u64::from(read_u32(next + 4)));
        seen |= 1 << kind;
        match kind {
            1 => println!("command line: {}", string(next + 8)),
            2 => println!("loader: {}", string(next + 8)),
            3 => {
                let [start, end] = [8, 12].map(|field| u64::from(read_u32(next + field)));
                let text = core::str::from_utf8(memory(start, end - start)).unwrap_or("not text");
                println!("module: {:?}: {text:?}", string(next + 16));
                check(start.is_multiple_of(4096), "a module is not at a page");
                check(start >= image().end, "a module is not behind the image");
            }
            4 => println!("{} KiB below, {} KiB above", read_u32(next + 8), read_u32(next + 12)),
            6 => {
                let entry_size = u64::from(read_u32(next + 8));
                check(entry_size.is_multiple_of(8), "an odd size of the map's entries");
                let mut entry = next + 16;
                while entry < next + size {
                    let (start, length) = (read_u64(entry), read_u64(entry + 8));
                    println!("memory {start:#x} {length:#x} {}", read_u32(entry + 16));
                    entry += entry_size;
                }
            }
            14 | 15 => {
                let rsdp = memory(next + 8, size - 8);
                let sum = rsdp.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                println!("ACPI {}", if kind == 14 { "1" } else { "2" });
                check(rsdp.starts_with(b"RSD PTR ") && sum == 0, "the RSDP is none");
            }
            _ => {}
        }
        next = (next + size).next_multiple_of(8);
        if kind == 0 || next >= end {
            break;
        }
    }
    check(next == end, "the information does not end with its last tag");
    for kind in [0, 1, 2, 4, 6, 15] {
        check(seen & 1 << kind != 0, "something is missing");
    }
    failures
}
