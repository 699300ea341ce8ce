//! The I/O APIC: its registers, and its inputs with the interval timer and the serial port as sources.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::{port, serial, trap};

use crate::apic::{self, enable, read, wait_for};
use crate::machine::{self, VECTOR, breathe, forget, outb, read32, write32};
use crate::{Test, Verdict, same};

const IO: u64 = 0xfec0_0000;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const REMOTE_IRR: u32 = 1 << 14;
/// The input of the first serial port.
const SERIAL: u32 = 4;

pub const TESTS: &[Test] = &[
    ("ioapic identification and version", ioapic_version),
    ("ioapic version cannot be written", version_kept),
    ("ioapic identification has four bits", identification),
    ("ioapic arbitration follows identification", arbitration),
    ("ioapic entry", ioapic_entry),
    ("ioapic edge from the interval timer", ioapic_edge),
    ("ioapic edge", || events(0, 1, 1)),
    ("ioapic edge that stays is one interrupt", || events(0, 2, 1)),
    ("ioapic level", || events(LEVEL, 1, 1)),
    ("ioapic level that stays comes again", || events(LEVEL, 2, 2)),
    ("ioapic level while masked", || masked(LEVEL, 1)),
    ("ioapic edge while masked is lost", || masked(0, 0)),
    ("ioapic remote irr until the end of the interrupt", remote_irr),
    ("ioapic trigger mode in the local apic", trigger_mode),
];

/// Reads one of its registers.
fn io_read(index: u32) -> u32 {
    write32(IO, index);
    read32(IO + 0x10)
}

fn io_write(index: u32, value: u32) {
    write32(IO, index);
    write32(IO + 0x10, value);
}

fn ioapic_version() -> Verdict {
    let version = io_read(1);
    same(u64::from(version >> 16 & 0xff), 23u64)?;
    io_write(0, 0x0f00_0000);
    same((io_read(0) >> 24 & 0xf).into(), 0xf)
}

fn ioapic_entry() -> Verdict {
    // Masked, edge, physical; delivery status and remote IRR cannot be written.
    io_write(0x10 + 2 * 5, 1 << 16 | 1 << 14 | 1 << 12 | 0x40);
    let entry = io_read(0x10 + 2 * 5);
    io_write(0x10 + 2 * 5, 1 << 16);
    same(entry.into(), 1 << 16 | 0x40)
}

/// The interval timer's counter 0 as a square wave of 1 kHz.
pub fn start_pit() {
    outb(0x43, 0x36);
    outb(0x40, 0xa9);
    outb(0x40, 0x04);
}

fn ioapic_edge() -> Verdict {
    enable();
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    start_pit();
    forget();
    let id = read(0x20) & 0xff00_0000;
    io_write(0x15, id);
    io_write(0x14, VECTOR.into());
    let taken = wait_for(2);
    io_write(0x14, 1 << 16);
    breathe();
    same(u64::from(taken >= 2), 1u64)
}

fn version_kept() -> Verdict {
    let before = io_read(1);
    io_write(1, !before);
    same(io_read(1).into(), before.into())
}

fn identification() -> Verdict {
    let before = io_read(0);
    io_write(0, !before);
    let changed = before ^ io_read(0);
    io_write(0, before);
    same(changed.into(), 0x0f00_0000)
}

fn arbitration() -> Verdict {
    let before = io_read(0);
    io_write(0, 0x0f00_0000);
    let follows = io_read(2);
    io_write(2, 0);
    let kept = io_read(2);
    io_write(0, before);
    same(u64::from(follows) << 32 | u64::from(kept), 0x0f00_0000 << 32 | 0x0f00_0000)
}

/// Drives the serial port's line: its transmitter is empty, and says so while that is enabled.
fn line(high: bool) {
    outb(0x3f9, if high { 2 } else { 0 });
}

/// How many interrupts are to come before the line is taken back.
static KEPT: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);

/// The serial port's input with `mode`, and a handler that takes the line back with its interrupt number `kept`.
fn with_serial(mode: u32, kept: u64, act: impl FnOnce()) -> u64 {
    enable();
    serial::flush();
    // Its interrupts reach the line.
    outb(0x3fc, 0x0b);
    line(false);
    KEPT.store(kept, Ordering::Relaxed);
    TAKEN.store(0, Ordering::Relaxed);
    trap::set_handler(VECTOR, |_| {
        let n = TAKEN.fetch_add(1, Ordering::Relaxed) + 1;
        const TMR: u64 = 0x180;
        let level = u64::from(read(TMR + 0x10) >> (VECTOR - 32) & 1);
        SEEN.store(level << 32 | u64::from(io_read(0x10 + 2 * SERIAL)), Ordering::Relaxed);
        if n >= KEPT.load(Ordering::Relaxed) {
            line(false);
        }
        apic::end_of_interrupt();
    });
    io_write(0x11 + 2 * SERIAL, read(0x20) & 0xff00_0000);
    io_write(0x10 + 2 * SERIAL, mode | u32::from(VECTOR));
    act();
    for _ in 0..4 {
        breathe();
    }
    line(false);
    io_write(0x10 + 2 * SERIAL, MASKED);
    breathe();
    machine::install();
    let _ = port::read_u8(0x3fa);
    TAKEN.load(Ordering::Relaxed)
}

fn events(mode: u32, kept: u64, expected: u64) -> Verdict {
    same(with_serial(mode, kept, || line(true)), expected)
}

fn masked(mode: u32, expected: u64) -> Verdict {
    let taken = with_serial(mode | MASKED, 1, || {
        line(true);
        breathe();
        SEEN.store(TAKEN.load(Ordering::Relaxed), Ordering::Relaxed);
        io_write(0x10 + 2 * SERIAL, mode | u32::from(VECTOR));
    });
    same(taken, expected)
}

fn remote_irr() -> Verdict {
    let taken = with_serial(LEVEL, 1, || line(true));
    let during = SEEN.load(Ordering::Relaxed) & u64::from(REMOTE_IRR);
    let after = io_read(0x10 + 2 * SERIAL) & REMOTE_IRR;
    same(taken << 48 | during << 16 | u64::from(after), 1 << 48 | u64::from(REMOTE_IRR) << 16)
}

fn trigger_mode() -> Verdict {
    with_serial(LEVEL, 1, || line(true));
    let level = SEEN.load(Ordering::Relaxed) >> 32;
    with_serial(0, 1, || line(true));
    let edge = SEEN.load(Ordering::Relaxed) >> 32;
    same(level << 1 | edge, 2)
}
