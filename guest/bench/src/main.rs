//! Guest program: what operations cost that exit in a virtual machine, counted by the time-stamp counter.
//!
//! A Multiboot image that runs as it is on a bare machine, under Lamina and under any other hypervisor: what is not
//! there is left out. Each figure is of [`measure::ROUNDS`] rounds and printed as
//! `R NAME ROUNDS MINIMUM MEDIAN MEAN MAXIMUM`, in ticks, net of an empty pair of RDTSC.
//!
//! With `count=events`, under a Lamina that counts, what instructions do not show takes the place of ticks ([`counts`]).
//!
//! Command line: `role=exits` (also without one), `role=switch`, which counts its way through another VM and back, and
//! `role=partner`, which is that other VM. Status 0.
#![no_std]
#![no_main]

mod counts;
mod exits;
mod instruction;
mod interrupts;
mod measure;

use guest_rt::hypercall::Lamina;
use guest_rt::multiboot::{handover, read_u32, string};
use guest_rt::{Boot, port, println};

guest_rt::entry!(main);

const MAGIC: u32 = 0x1bad_b002;
/// Nothing is asked for.
const FLAGS: u32 = 0;
guest_rt::multiboot_header!([MAGIC, FLAGS, 0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS)]);

/// What a loader leaves in EAX.
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// The information structure has a command line.
const HAS_COMMAND_LINE: u32 = 1 << 2;

fn main(_: &Boot) -> u32 {
    let lamina = Lamina::find();
    if word("count=") == "events" {
        counts::enable();
    }
    match word("role=") {
        "partner" => partner(lamina),
        "switch" => switch(lamina),
        _ => exits::run(lamina),
    }
    println!("R end");
    0
}

/// What stands behind `key` on the command line.
fn word(key: &str) -> &'static str {
    let (magic, at) = handover();
    let at = u64::from(at);
    if magic != LOADER_MAGIC || read_u32(at) & HAS_COMMAND_LINE == 0 {
        return "";
    }
    let line = string(read_u32(at + 16).into());
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)).unwrap_or("")
}

/// Another hypervisor's runner yields when this port is written; on a PC there is nothing.
const YIELD: u16 = 0x5e0;

/// Gives the processor back whenever it gets it.
fn partner(lamina: Option<Lamina>) {
    println!("partner");
    loop {
        yield_now(lamina);
    }
}

/// Gives the processor to the other VM.
#[inline(always)]
fn yield_now(lamina: Option<Lamina>) {
    match lamina {
        Some(lamina) => {
            let _ = lamina.yield_now();
        }
        // SAFETY: where a device has this port, it is not on a machine that this program is meant for.
        None => unsafe { port::write_u8(YIELD, 0) },
    }
}

/// From this VM to another and back: two switches, each with an exit that yields, the scheduler and an entry.
fn switch(lamina: Option<Lamina>) {
    // The other one gets time to start.
    for _ in 0..1000 {
        yield_now(lamina);
    }
    measure::operation("switch/there-and-back", || yield_now(lamina));
}
