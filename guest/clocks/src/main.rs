//! Guest program: has every clock of the PC beside the time-stamp counter for `seconds=N` (60 without), and tells how far
//! each is off. It halts between two readings, so that its neighbours keep it off the processor.
//!
//! Status 0 where none is off by more than a thousandth, and by what a change was seen late, and none ran backwards; else 1.
#![no_std]
#![no_main]

mod clock;

use core::sync::atomic::{AtomicU64, Ordering};

use clock::Clock;
use guest_rt::hypercall::Lamina;
use guest_rt::lapic::LocalApic;
use guest_rt::trap::FIRST_IRQ_VECTOR;
use guest_rt::{Boot, cpu, memory, pic, pit, port, println, rtc, trap};

guest_rt::entry!(main);

const SECONDS: u64 = 60;
const TIMER_IRQ: u8 = 0;
/// Of the 8254's interrupts: seldom enough that none is late for the next. Unit: Hz.
const INTERRUPTS: u16 = 50;
/// The 8254's divisor for it.
const DIVISOR: u64 = (pit::RATE + INTERRUPTS as u64 / 2) / INTERRUPTS as u64;
const PM_TIMER_PORT: u16 = 0x608;
const PM_TIMER_RATE: u64 = 3_579_545;
const HPET: u64 = 0xfed0_0000;
const HPET_CONFIGURATION: u64 = HPET + 0x10;
const HPET_COUNTER: u64 = HPET + 0xf0;
const FEMTOSECONDS: u64 = 1_000_000_000_000_000;

/// Written by the interrupt's handler, read by `main`; one processor.
static TICKS: AtomicU64 = AtomicU64::new(0);

fn main(boot: &Boot) -> u32 {
    let Some(lamina) = Lamina::find() else {
        println!("no Lamina, which tells the rate of the time-stamp counter");
        return 1;
    };
    let [tsc_khz, apic_khz] = lamina.timing().map(u64::from);
    let length = boot.number("seconds").unwrap_or(SECONDS) * tsc_khz * 1000;

    trap::set_handler(FIRST_IRQ_VECTOR + TIMER_IRQ, |_| {
        TICKS.fetch_add(1, Ordering::Relaxed);
        pic::end_of_interrupt();
    });
    pic::init();
    let apic = LocalApic::enable();
    apic.count_from(u32::MAX);
    memory::write(HPET_CONFIGURATION, 1);
    pit::run_free();
    pit::interrupt_at(INTERRUPTS);
    pic::unmask(TIMER_IRQ);

    let hpet_rate = FEMTOSECONDS / (memory::read(HPET) >> 32).max(1);
    let mut clocks = [
        Clock::new("8254's interrupts", pit::RATE * 1000 / DIVISOR, u64::MAX, 20, |_| TICKS.load(Ordering::Relaxed)),
        Clock::new("8254's counter", pit::RATE * 1000, 0xffff, 1, |_| pit::count().wrapping_neg().into()),
        Clock::new("PM timer", PM_TIMER_RATE * 1000, 0xff_ffff, 1, |_| {
            u64::from(port::read_u32(PM_TIMER_PORT)) & 0xff_ffff
        }),
        Clock::new("HPET", hpet_rate * 1000, u64::MAX, 1, |_| memory::read(HPET_COUNTER)),
        Clock::new("RTC", 1000, 59, 40, |_| rtc::seconds().into()),
        Clock::new("APIC timer", apic_khz * 1_000_000, 0xffff_ffff, 1, |apic| (u32::MAX - apic.remaining()).into()),
    ];
    let start = cpu::tsc();
    let (mut last, mut backwards) = (start, 0);
    while last - start < length {
        cpu::wait_for_interrupt();
        let now = cpu::tsc();
        backwards += u32::from(now < last);
        last = now.max(last);
        clocks.iter_mut().for_each(|clock| clock.look(&apic, tsc_khz));
    }
    let off = clocks.iter().filter(|clock| !clock.tell(tsc_khz)).count();
    println!("{off} clocks are off, the time-stamp counter ran backwards {backwards} times");
    u32::from(off != 0 || backwards != 0)
}
