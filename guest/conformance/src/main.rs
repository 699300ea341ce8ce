//! Guest program: what a processor and a PC do, test by test, as a Multiboot image that runs under Lamina and on the bare
//! machine alike. A line for each test, `PASS NAME` or `FAIL NAME: …`, and `done: N failed`; that number is the status.
//!
//! What counts is that both machines give the same verdicts: a test that fails on both tells of the emulator, not of
//! Lamina. `skip=A,B,…` on the command line leaves tests out, for a machine that does not come back from them: their names,
//! with `-` for each space and comma. A line says so of each, `SKIP NAME`.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "it executes what compilers do not")]
#![allow(clippy::macro_metavars_in_unsafe, reason = "the macro that awaits exceptions is for this crate alone")]

mod apic;
mod debug;
mod delivery;
mod devices;
mod events;
mod ioapic;
mod legacy;
mod legacy32;
mod machine;
mod operands;
mod paging;
mod registers;
mod user;
mod x2apic;

use guest_rt::{Boot, println};

guest_rt::entry!(main);

const MAGIC: u32 = 0x1bad_b002;
/// Modules at pages, and the sizes of memory.
const FLAGS: u32 = 3;
guest_rt::multiboot_header!([MAGIC, FLAGS, 0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS)]);

/// What a test found: nothing wrong, or what was found, and what was expected.
pub type Verdict = Result<(), (u64, u64)>;

/// Found and expected.
pub fn same(found: u64, expected: u64) -> Verdict {
    if found == expected { Ok(()) } else { Err((found, expected)) }
}

/// One test.
pub type Test = (&'static str, fn() -> Verdict);

/// Whether the command line leaves the test `name` out.
fn is_left_out(boot: &Boot, name: &str) -> bool {
    let plain = |byte: u8| if matches!(byte, b' ' | b',') { b'-' } else { byte };
    let named = |word: &str| word.bytes().eq(name.bytes().map(plain));
    boot.word("skip").is_some_and(|words| words.split(',').any(named))
}

fn main(boot: &Boot) -> u32 {
    machine::install();
    user::install();
    let mut failed = 0;
    for tests in [
        registers::TESTS,
        events::TESTS,
        debug::TESTS,
        delivery::TESTS,
        user::TESTS,
        paging::TESTS,
        apic::TESTS,
        ioapic::TESTS,
        devices::TESTS,
        operands::TESTS,
        legacy::TESTS,
        legacy32::TESTS,
        x2apic::TESTS,
    ] {
        for (name, test) in tests {
            if is_left_out(boot, name) {
                println!("SKIP {name}");
                continue;
            }
            match test() {
                Ok(()) => println!("PASS {name}"),
                Err((found, expected)) => {
                    failed += 1;
                    println!("FAIL {name}: {found:#x}, not {expected:#x}");
                }
            }
        }
    }
    println!("done: {failed} failed");
    failed
}
