//! Guest program: tries what a guest must not get away with.
//!
//! Each case has a name. `cases=A,B,…` on the command line runs them one after the other, and for each a line says what
//! the guest saw:
//!
//! `case NAME: SEEN`
//!
//! where SEEN is `completes` (the instructions ran to their end), an exception (`#GP(0x0)`), `behaves` (all that the
//! case looked at was as the architecture says), or `deviates: …`. What must be seen, the suite's own table says
//! (`tests/hostile/table`). With `wait` the program waits for a line on its serial port first, so that only one of many
//! such VMs is at work; a case that is not meant to come back says `case NAME begins`. `list` prints all names.
//! `seed=N steps=M` does random operations instead (see `fuzz`).
#![no_std]
#![no_main]

#[macro_use]
mod report;

mod apic;
mod calls;
mod devices;
mod emulator;
mod ends;
mod engine;
mod entry;
mod extended;
mod fuzz;
mod hold;
mod instructions;
mod msrs;
mod pagewalk;
mod registers;
mod seen;
mod segments;
mod wait;
mod window;

use guest_rt::Boot;

use seen::Seen;

guest_rt::entry!(main);

/// A case and its name.
type Case = (&'static str, fn() -> Seen);

const CHAPTERS: [&[Case]; 12] = [
    hold::CASES,
    ends::CASES,
    entry::CASES,
    registers::CASES,
    msrs::CASES,
    extended::CASES,
    emulator::CASES,
    pagewalk::CASES,
    apic::CASES,
    devices::CASES,
    calls::CASES,
    instructions::CASES,
];

fn main(boot: &Boot) -> u32 {
    segments::install();
    window::install();
    if boot.cmdline.split_ascii_whitespace().any(|word| word == "list") {
        CHAPTERS.iter().flat_map(|chapter| chapter.iter()).for_each(|(name, _)| report!("{name}"));
    }
    let alone = boot.cmdline.split_ascii_whitespace().any(|word| word == "wait");
    if alone {
        report!("waiting");
        wait::for_line();
    }
    for name in boot.word("cases").unwrap_or("").split(',').filter(|name| !name.is_empty()) {
        let case = CHAPTERS.iter().flat_map(|chapter| chapter.iter()).find(|(own, _)| *own == name);
        let Some((_, try_it)) = case else {
            report!("case {name}: unknown");
            continue;
        };
        if alone {
            report!("case {name} begins");
        }
        let seen = try_it();
        segments::refresh();
        registers::calm();
        report!("case {name}: {seen}");
    }
    if let (Some(seed), Some(steps)) = (boot.number("seed"), boot.number("steps")) {
        fuzz::run(seed, steps);
    }
    report!("done");
    0
}
