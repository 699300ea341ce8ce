//! Port 0x61: whether the machine itself has failed, which it tells by a non-maskable interrupt, and the gate of the
//! 8254's channel 2.
//!
//! Owns the port. Never says what becomes of a failure: [`crate::report`] does. Bits 7 to 4 are status and are to be written
//! as 0; bits 3 and 2 switch the two sources of NMIs off, and stay as the firmware has them.
//!
//! Source: Intel I/O Controller Hub (ICH) data sheets, "NMI_SC—NMI Status and Control Register".

use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

use x86_64::instructions::port::Port;

const PORT: u16 = 0x61;
/// Status: somebody on PCI has signalled a system error.
const SERR: u8 = 1 << 7;
/// Status: somebody on the ISA or LPC bus has signalled an error.
const IOCHK: u8 = 1 << 6;
/// Switches NMIs of [`IOCHK`] off, and forgets one.
const IOCHK_OFF: u8 = 1 << 3;
/// Switches NMIs of [`SERR`] off, and forgets one.
const SERR_OFF: u8 = 1 << 2;
/// Sends the output of channel 2 to the speaker.
const SPEAKER: u8 = 1 << 1;
/// Lets channel 2 count.
const GATE: u8 = 1 << 0;
/// What is written as it was read.
const CONTROL: u8 = IOCHK_OFF | SERR_OFF | SPEAKER | GATE;

/// What the machine says has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// SERR#.
    pub system_error: bool,
    /// IOCHK#.
    pub channel_check: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.system_error, self.channel_check) {
            (true, true) => "SERR# (an error on PCI or in memory) and IOCHK# (an error on the ISA or LPC bus)",
            (true, false) => "SERR# (an error on PCI or in memory)",
            _ => "IOCHK# (an error on the ISA or LPC bus)",
        })
    }
}

/// The failure that the port's `value` tells of, as far as `looked_at` has its bit. A source that is off tells of none, so
/// the all ones of a port that nobody answers are no failure.
const fn decode(value: u8, looked_at: u8) -> Option<Failure> {
    let system_error = value & looked_at & SERR != 0 && value & SERR_OFF == 0;
    let channel_check = value & looked_at & IOCHK != 0 && value & IOCHK_OFF == 0;
    if system_error || channel_check { Some(Failure { system_error, channel_check }) } else { None }
}

/// What is written, one after the other, to a port that reads as `value`, for it to forget all failures.
const fn forgetting(value: u8) -> [u8; 2] {
    [value & CONTROL | IOCHK_OFF | SERR_OFF, value & CONTROL]
}

/// What is written to a port that reads as `value`, for channel 2 to count, its speaker off.
const fn counting(value: u8) -> u8 {
    value & CONTROL & !SPEAKER | GATE
}

/// The status bits that mean something. There is one port.
static LOOKED_AT: AtomicU8 = AtomicU8::new(SERR | IOCHK);

fn read() -> u8 {
    // SAFETY: the port reaches no memory, and reading it changes nothing.
    unsafe { Port::<u8>::new(PORT).read() }
}

fn write(value: u8) {
    // SAFETY: the port reaches no memory, and only this module writes it. All values are of the functions above: status
    // bits 0.
    unsafe { Port::<u8>::new(PORT).write(value) };
}

/// Lets channel 2 of the 8254 count, its speaker off.
pub(crate) fn start_channel_2() {
    write(counting(read()));
}

/// A failure from before, which is not the hypervisor's to end for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// What it was.
    pub failure: Failure,
    /// The port still tells of it: what it tells of there is not looked at any more.
    pub stays: bool,
}

/// Has the machine forget what failed before now, if anything did, and returns it. Once, before
/// non-maskable interrupts are let in: else the first would end the machine for what the firmware has left.
pub fn forget_earlier() -> Option<Earlier> {
    let value = read();
    let failure = decode(value, SERR | IOCHK)?;
    for value in forgetting(value) {
        write(value);
    }
    let left = read() & (SERR | IOCHK);
    LOOKED_AT.store((SERR | IOCHK) & !left, Ordering::Relaxed);
    Some(Earlier { failure, stays: left != 0 })
}

/// Why a non-maskable interrupt came, where it was the machine's failure. Told once: the port goes on telling, with each
/// interrupt of the watchdog's. One read of a port, about 1 µs; takes no lock.
pub(crate) fn take_failure() -> Option<Failure> {
    let failure = decode(read(), LOOKED_AT.load(Ordering::Relaxed))?;
    LOOKED_AT.store(0, Ordering::Relaxed);
    Some(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    const ALL: u8 = SERR | IOCHK;

    #[test]
    fn each_status_bit_is_a_failure_of_its_own_name() {
        // A watchdog's tick on a PC: channel 2 counts, its output and the refresh clock may be 1.
        for tick in [0x00, 0x01, 0x11, 0x21, 0x31, 0x03] {
            assert_eq!(decode(tick, ALL), None);
            let serr = Failure { system_error: true, channel_check: false };
            assert_eq!(decode(tick | 0x80, ALL), Some(serr));
            assert_eq!(decode(tick | 0x40, ALL), Some(Failure { system_error: false, channel_check: true }));
            assert_eq!(decode(tick | 0xc0, ALL), Some(Failure { system_error: true, channel_check: true }));
        }
        let words = |value| format!("{}", decode(value, ALL).unwrap());
        assert!(words(0x80).contains("SERR#") && !words(0x80).contains("IOCHK#"));
        assert!(words(0x40).contains("IOCHK#") && !words(0x40).contains("SERR#"));
        assert!(words(0xc0).contains("IOCHK#") && words(0xc0).contains("SERR#"));
    }

    #[test]
    fn a_source_that_is_off_or_not_looked_at_tells_of_nothing() {
        assert_eq!(decode(0x84, ALL), None);
        assert_eq!(decode(0x48, ALL), None);
        assert_eq!(decode(0xff, ALL), None, "nobody answers");
        assert!(decode(0x88, ALL).is_some_and(|failure| failure.system_error));
        assert!(decode(0x44, ALL).is_some_and(|failure| failure.channel_check));
        assert_eq!(decode(0xc0, SERR), Some(Failure { system_error: true, channel_check: false }));
        assert_eq!(decode(0xc0, 0), None);
    }

    #[test]
    fn what_is_written_has_no_status_and_leaves_the_sources_as_they_were() {
        for value in 0..=u8::MAX {
            let [off, back] = forgetting(value);
            assert_eq!((off & 0xfc, back & 0xf0), (0x0c, 0));
            assert_eq!((off & 3, back & 0x0f), (value & 3, value & 0x0f));
            assert_eq!(counting(value), value & 0x0c | 1);
        }
    }
}
