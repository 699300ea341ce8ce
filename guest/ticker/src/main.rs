//! Guest program: counts the ticks of its own timer (the 8254 at 100 Hz through the 8259 pair), halted in between, and
//! prints the count every 100 ticks. With `count=N` on its command line it stops with status 0 after N such lines.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};
use guest_rt::trap::FIRST_IRQ_VECTOR;
use guest_rt::{Boot, cpu, pic, pit, println, trap};

guest_rt::entry!(main);

const TIMER_IRQ: u8 = 0;
const RATE: u16 = 100;

/// Written by the interrupt's handler, read by `main`; one processor.
static TICKS: AtomicU64 = AtomicU64::new(0);

fn main(boot: &Boot) -> u32 {
    let count = boot.number("count");
    trap::set_handler(FIRST_IRQ_VECTOR + TIMER_IRQ, |_| {
        TICKS.fetch_add(1, Ordering::Relaxed);
        pic::end_of_interrupt();
    });
    pic::init();
    pit::interrupt_at(RATE);
    pic::unmask(TIMER_IRQ);
    println!("ticking at {RATE} Hz");

    let mut lines = 0;
    while count.is_none_or(|count| lines < count) {
        cpu::wait_for_interrupt();
        let ticks = TICKS.load(Ordering::Relaxed);
        if ticks / u64::from(RATE) > lines {
            lines += 1;
            println!("{ticks} ticks");
        }
    }
    0
}
