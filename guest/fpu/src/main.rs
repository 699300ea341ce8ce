//! Guest program: keeps patterns in the x87 and vector registers, as wide as CPUID reports them, and their control registers while it spins, and
//! checks that nobody disturbs them; to be run beside a second one. `seed=N` makes their patterns differ, `rounds=N`
//! (40) and `spins=N` (1000000 each) say how long. Status 0 where every round was clean, else 1.
#![no_std]
#![no_main]

use guest_rt::extended::Extended;
use guest_rt::{Boot, println};

guest_rt::entry!(main);

fn main(boot: &Boot) -> u32 {
    let seed = boot.number("seed").unwrap_or(1);
    let rounds = boot.number("rounds").unwrap_or(40);
    let spins = boot.number("spins").unwrap_or(1_000_000);
    let extended = Extended::enable();
    println!("holding patterns of seed {seed} in {:?} registers", extended.width());
    for round in 0..rounds {
        if let Err(disturbed) = extended.hold(seed.wrapping_mul(1 << 32).wrapping_add(round), spins) {
            println!("disturbed in round {round}: {disturbed:x?}");
            return 1;
        }
    }
    println!("{rounds} rounds undisturbed");
    0
}
