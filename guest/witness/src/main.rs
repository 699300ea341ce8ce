//! Guest program: stands beside hostile ones and says whether it was harmed. It fills 4 MiB with a pattern, reads them
//! again and again, and counts how much of the time it ran: one line for each window of 200 ms of its clock,
//!
//! `window N: ran R of T kiloticks, P passes, memory as it was`
//!
//! with sums since its start, or `MEMORY CHANGED …` once. What it spends on printing counts on neither side. It never
//! ends by itself.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::hypercall::Lamina;
use guest_rt::{Boot, cpu, println};

guest_rt::entry!(main);

/// Words in a part, the least that is timed: far less than a time slice.
const PART: usize = 4096;
/// Parts of the memory that is watched.
const PARTS: usize = 128;

/// Atomic, so that each word is read each time.
static MEMORY: [AtomicU64; PART * PARTS] = [const { AtomicU64::new(0) }; PART * PARTS];

/// The rate to count with where nobody tells one. Unit: kHz.
const RATE: u32 = 1_000_000;
/// Windows in a second.
const WINDOWS: u64 = 5;

/// What belongs into a word.
fn pattern(index: usize) -> u64 {
    (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The hash of a part (FNV-1a over words). Never inlined: what two copies of it take would not compare.
#[inline(never)]
fn hash(part: usize) -> u64 {
    let words = &MEMORY[part * PART..(part + 1) * PART];
    words.iter().fold(0xcbf2_9ce4_8422_2325, |hash, word| {
        (hash ^ word.load(Ordering::Relaxed)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn main(_: &Boot) -> u32 {
    let kilohertz = Lamina::find().map_or(RATE, |lamina| lamina.timing()[0]);
    let window = u64::from(kilohertz) * 1000 / WINDOWS;
    for (index, word) in MEMORY.iter().enumerate() {
        word.store(pattern(index), Ordering::Relaxed);
    }
    let mut hashes = [0; PARTS];
    // A part takes as many ticks as the fastest took: then nobody else had the processor.
    let mut ticks = u64::MAX;
    for (part, expected) in hashes.iter_mut().enumerate() {
        let start = cpu::tsc();
        *expected = hash(part);
        ticks = ticks.min(cpu::tsc() - start);
    }
    let (mut parts, mut part, mut elapsed) = (0u64, 0, 0u64);
    for number in 1u64.. {
        let start = cpu::tsc();
        loop {
            let before = cpu::tsc();
            if hash(part) != hashes[part] {
                let at = (part * PART..(part + 1) * PART).find(|&at| MEMORY[at].load(Ordering::Relaxed) != pattern(at));
                println!("MEMORY CHANGED in part {part} at word {at:?}");
                return 1;
            }
            let now = cpu::tsc();
            ticks = ticks.min(now - before);
            parts += 1;
            part = (part + 1) % PARTS;
            if now - start >= window {
                elapsed += now - start;
                break;
            }
        }
        let (ran, of) = (parts * ticks / 1000, elapsed / 1000);
        println!("window {number}: ran {ran} of {of} kiloticks, {} passes, memory as it was", parts / PARTS as u64);
    }
    0
}
