//! The 8254 timer (datasheet: "Control Word Format", "Mode Definitions").

use crate::{cpu, port};

/// Rate of its clock. Unit: ticks per second.
pub const RATE: u64 = 1_193_182;

const CHANNEL0: u16 = 0x40;
const CHANNEL2: u16 = 0x42;
const CONTROL: u16 = 0x43;
/// Port B of the chipset: channel 2's gate (bit 0), the speaker (bit 1), channel 2's output (bit 5).
const PORT_B: u16 = 0x61;

fn write(port: u16, value: u8) {
    // SAFETY: called with the timer's registers and port B only; what they start is an interrupt whose vector `trap`
    // has an entry for.
    unsafe { port::write_u8(port, value) };
}

/// Has channel 0 interrupt `hz` times a second, as near as a divisor of 16 bits allows (19 and more).
pub fn interrupt_at(hz: u16) {
    let [low, high] = divisor(hz).to_le_bytes();
    write(CONTROL, 0x34); // channel 0, low byte then high, mode 2, binary
    write(CHANNEL0, low);
    write(CHANNEL0, high);
}

fn divisor(hz: u16) -> u16 {
    let hz = u64::from(hz.max(1));
    u16::try_from((RATE + hz / 2) / hz).unwrap_or(u16::MAX)
}

/// Has channel 2 count down from 65536 without end.
pub fn run_free() {
    write(PORT_B, port::read_u8(PORT_B) & !2 | 1);
    write(CONTROL, 0xb4); // channel 2, low byte then high, mode 2, binary
    write(CHANNEL2, 0);
    write(CHANNEL2, 0);
}

/// Channel 2's count, latched; 0 stands for 65536.
pub fn count() -> u16 {
    write(CONTROL, 0x80);
    u16::from_le_bytes([port::read_u8(CHANNEL2), port::read_u8(CHANNEL2)])
}

/// Measures how far the time-stamp counter goes in `milliseconds` (at most 54) by channel 2. Unit: ticks per second.
pub fn measure_tsc(milliseconds: u16) -> u64 {
    let count = u16::try_from(RATE * u64::from(milliseconds) / 1000).unwrap_or(u16::MAX);
    let [low, high] = count.to_le_bytes();
    let before = port::read_u8(PORT_B);
    write(PORT_B, before & !2 | 1);
    write(CONTROL, 0xb0); // channel 2, low byte then high, mode 0, binary
    write(CHANNEL2, low);
    write(CHANNEL2, high);
    let start = cpu::tsc();
    while port::read_u8(PORT_B) & 0x20 == 0 {}
    let ticks = cpu::tsc() - start;
    write(PORT_B, before);
    // The count runs out one tick of the timer's after it was loaded and counted down.
    ticks * RATE / (u64::from(count) + 1)
}
