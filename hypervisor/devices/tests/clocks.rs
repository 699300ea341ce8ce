//! A minute of guest time by every clock of the PC, against the TSC: none drifts, and none runs backwards, however long
//! the guest is off the processor between two readings.

use lamina_arch::msr::IA32_APIC_BASE;
use lamina_arch::time::{Frequency, Tsc};
use lamina_devices::pc::Pc;
use lamina_devices::pit::PIT_HZ;
use lamina_vmm::chipset::{Chipset, ChipsetSetup, Extras, Signal};
use lamina_vmm::layout;

const HZ: u64 = 2_899_999_927;
const MINUTE: u64 = 60 * HZ;
/// The longest time off the processor: less than half a round of the shortest clock, the PIT's. Unit: ticks.
const AWAY: u64 = HZ / 40;
/// A thousandth of a minute, by which a clock may be off. Unit: nanoseconds.
const TOLERANCE: u64 = 60_000_000;

const PM_HZ: u64 = 3_579_545;
const HPET_COUNTER: u64 = 0xf0;
const X2APIC_LVT_TIMER: u32 = 0x832;
const X2APIC_INITIAL_COUNT: u32 = 0x838;
const X2APIC_CURRENT_COUNT: u32 = 0x839;
const PERIODIC: u64 = 1 << 17;

fn pc() -> Pc {
    let extras = Extras { hpet: true, ..Extras::default() };
    let setup = ChipsetSetup {
        tsc: Frequency::from_hz(HZ),
        now: Tsc(0),
        unix_seconds: 1_700_000_000,
        memory: 64 << 20,
        apic_id: 0,
        extras,
    };
    Pc::new(&setup)
}

fn outb(pc: &mut Pc, now: u64, port: u16, value: u8) {
    assert_eq!(pc.port_write(Tsc(now), port, &[value]), Signal::None);
}

fn inb(pc: &mut Pc, now: u64, port: u16) -> u64 {
    let mut data = [0];
    pc.port_read(Tsc(now), port, &mut data);
    data[0].into()
}

fn hpet(pc: &mut Pc, now: u64, register: u64) -> u64 {
    let mut data = [0; 8];
    assert!(pc.mmio_read(Tsc(now), layout::HPET + register, &mut data));
    u64::from_le_bytes(data)
}

fn set_hpet(pc: &mut Pc, now: u64, register: u64, value: u64) {
    assert!(pc.mmio_write(Tsc(now), layout::HPET + register, &value.to_le_bytes()));
}

/// The local APIC in x2APIC mode, on, with the 8259s let through.
fn enable_apic(pc: &mut Pc) {
    for (msr, value) in [(IA32_APIC_BASE, 0xfee0_0d00), (0x80f, 0x1ff), (0x835, 0x700), (0x83e, 0b1011)] {
        pc.msr_write(Tsc(0), msr, value).unwrap();
    }
}

/// A clock: how it is read, its rate, and after how many of its ticks it begins again.
struct Clock {
    name: &'static str,
    read: fn(&mut Pc, u64) -> u64,
    hz: u64,
    round: u64,
}

const CLOCKS: [Clock; 5] = [
    Clock {
        name: "PM timer",
        read: |pc, now| {
            let mut data = [0; 4];
            pc.port_read(Tsc(now), layout::PM_TIMER_PORT, &mut data);
            u32::from_le_bytes(data).into()
        },
        hz: PM_HZ,
        round: 1 << 32,
    },
    Clock {
        name: "PIT",
        // Latched, low byte and high byte; it counts down.
        read: |pc, now| {
            outb(pc, now, 0x43, 0x00);
            let count = inb(pc, now, 0x40) | inb(pc, now, 0x40) << 8;
            (0x1_0000 - count) & 0xffff
        },
        hz: PIT_HZ,
        round: 1 << 16,
    },
    Clock {
        name: "RTC",
        read: |pc, now| {
            outb(pc, now, 0x70, 0x00);
            let seconds = inb(pc, now, 0x71);
            (seconds >> 4) * 10 + (seconds & 0xf)
        },
        hz: 1,
        round: 60,
    },
    Clock { name: "HPET", read: |pc, now| hpet(pc, now, HPET_COUNTER), hz: 0, round: 1 << 63 },
    Clock {
        name: "APIC timer",
        read: |pc, now| 0xffff_ffff - pc.msr_read(Tsc(now), X2APIC_CURRENT_COUNT).unwrap(),
        hz: layout::APIC_TIMER_HZ,
        round: 1 << 32,
    },
];

/// Times from 0 to beyond a minute, apart as a guest reads its clocks: at once, a little later, or after its neighbours had
/// the processor.
fn readings() -> impl Iterator<Item = u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut now = 0;
    std::iter::from_fn(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        now += (state >> 33) % [2, 1_000, HZ / 10_000, AWAY][(state >> 60) as usize % 4];
        (now <= MINUTE + 2 * HZ).then_some(now)
    })
}

#[test]
fn no_clock_drifts_or_runs_backwards_over_a_minute() {
    for clock in &CLOCKS {
        let mut pc = pc();
        enable_apic(&mut pc);
        [(0x43, 0x34), (0x40, 0), (0x40, 0)].into_iter().for_each(|(port, value)| outb(&mut pc, 0, port, value));
        set_hpet(&mut pc, 0, 0x10, 1);
        pc.msr_write(Tsc(0), X2APIC_LVT_TIMER, 0x1_0000).unwrap();
        pc.msr_write(Tsc(0), X2APIC_INITIAL_COUNT, 0xffff_ffff).unwrap();
        // Its first register tells its period. Unit: femtoseconds.
        let hz = if clock.hz == 0 { 1_000_000_000_000_000 / (hpet(&mut pc, 0, 0) >> 32) } else { clock.hz };
        let (mut last, mut ticks) = ((clock.read)(&mut pc, 0), 0u64);
        // The first and the latest change: when, and how many ticks after the beginning.
        let (mut first, mut latest) = (None, (0, 0));
        for now in readings() {
            let value = (clock.read)(&mut pc, now);
            let gone = (value + clock.round - last) % clock.round;
            assert!(gone < clock.round / 2, "{}: {last:#x} and then {value:#x}", clock.name);
            if gone != 0 {
                ticks += gone;
                latest = (now, ticks);
                first.get_or_insert(latest);
            }
            last = value;
        }
        let first = first.expect("it runs");
        let by_tsc = u128::from(latest.0 - first.0) * 1_000_000_000 / u128::from(HZ);
        let by_clock = u128::from(latest.1 - first.1) * 1_000_000_000 / u128::from(hz);
        assert!(by_tsc > 59_000_000_000, "{}: {by_tsc} ns only", clock.name);
        let off = by_tsc.abs_diff(by_clock);
        assert!(off < TOLERANCE.into(), "{}: {by_clock} ns in {by_tsc} ns", clock.name);
    }
}

#[test]
fn every_timer_interrupts_at_its_rate_over_a_minute() {
    const PIT: u8 = 0x30;
    const RTC: u8 = 0x38;
    const APIC: u8 = 0x50;
    const HPET: u8 = 0x60;
    const PIT_COUNT: u64 = 1193;
    let mut pc = pc();
    enable_apic(&mut pc);
    let pics = [(0x20, 0x11), (0x21, PIT), (0x21, 4), (0x21, 1), (0x21, !0x05)];
    let second = [(0xa0, 0x11), (0xa1, RTC), (0xa1, 2), (0xa1, 1), (0xa1, !0x01)];
    // The RTC's periodic interrupt at 1024 Hz; the PIT as a rate generator.
    let rtc = [(0x70, 0x0a), (0x71, 0x26), (0x70, 0x0b), (0x71, 0x42), (0x70, 0x0c)];
    let [low, high, ..] = PIT_COUNT.to_le_bytes();
    let pit = [(0x43, 0x34), (0x40, low), (0x40, high)];
    for (port, value) in pics.into_iter().chain(second).chain(rtc).chain(pit) {
        outb(&mut pc, 0, port, value);
    }
    pc.msr_write(Tsc(0), X2APIC_LVT_TIMER, PERIODIC | u64::from(APIC)).unwrap();
    pc.msr_write(Tsc(0), X2APIC_INITIAL_COUNT, layout::APIC_TIMER_HZ / 1000).unwrap();
    // HPET: timer 0 periodic, every millisecond, to pin 20 of the I/O APIC.
    let hpet_ticks = 1_000_000_000_000 / (hpet(&mut pc, 0, 0) >> 32);
    set_hpet(&mut pc, 0, 0x100, 1 << 2 | 1 << 3 | 1 << 6 | 20 << 9);
    set_hpet(&mut pc, 0, 0x108, hpet_ticks);
    set_hpet(&mut pc, 0, 0x108, hpet_ticks);
    set_hpet(&mut pc, 0, 0x10, 1);
    for (register, value) in [(0u64, 0x10 + 2 * 20), (0x10, u32::from(HPET))] {
        assert!(pc.mmio_write(Tsc(0), layout::IOAPIC + register, &value.to_le_bytes()));
    }

    let mut counts = [0u64; 256];
    let mut now = 0;
    while let Some(next) = pc.next_deadline().filter(|next| next.0 <= MINUTE) {
        assert!(next.0 >= now, "no deadline lies behind what has been");
        // A little late, as everything is.
        now = next.0 + HZ / 100_000;
        pc.advance(Tsc(now));
        while let Some(vector) = pc.acknowledge() {
            counts[usize::from(vector)] += 1;
            match vector {
                PIT => outb(&mut pc, now, 0x20, 0x20),
                RTC => {
                    inb(&mut pc, now, 0x71);
                    outb(&mut pc, now, 0xa0, 0x20);
                    outb(&mut pc, now, 0x20, 0x20);
                }
                _ => pc.msr_write(Tsc(now), 0x80b, 0).unwrap(),
            }
        }
    }
    for (name, vector, expected) in
        [("PIT", PIT, 60 * PIT_HZ / PIT_COUNT), ("RTC", RTC, 60 * 1024), ("APIC", APIC, 60_000), ("HPET", HPET, 60_000)]
    {
        let found = counts[usize::from(vector)];
        assert!(found.abs_diff(expected) <= expected / 1000, "{name}: {found} interrupts, not {expected}");
    }
}
