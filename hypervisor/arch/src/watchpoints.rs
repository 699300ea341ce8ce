//! Breakpoints on data and on ports: which of them an access meets (SDM vol. 3, "Debug Registers"; APM vol. 2, "Hardware
//! Breakpoints").
//!
//! For accesses that software finishes: at all others the processor looks by itself. Never decides what follows.

use crate::addr::Gla;

/// DR7, bits 7:0: a local and a global enable bit for each breakpoint.
const ENABLED: u64 = 0xff;
/// DR7: where the two bits begin that say what the first breakpoint is for, and behind them its length; four for each.
const CONDITIONS: usize = 16;
const WRITES: u64 = 0b01;
const PORTS: u64 = 0b10;
const DATA: u64 = 0b11;

/// The breakpoints of a guest that has enabled some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchpoints {
    addresses: [u64; 4],
    dr7: u64,
    ports: bool,
}

impl Watchpoints {
    /// Those of DR0 to DR3, as DR7 has them; `ports`: CR4.DE is set, without which there are none on ports. `None` where
    /// none is enabled.
    pub fn new(addresses: impl FnOnce() -> [u64; 4], dr7: u64, ports: impl FnOnce() -> bool) -> Option<Watchpoints> {
        (dr7 & ENABLED != 0).then(|| Watchpoints { addresses: addresses(), dr7, ports: ports() })
    }

    /// Which ones an access to `length` bytes at `at` meets: bits 3:0, as in DR6.
    pub fn memory(&self, at: Gla, length: usize, write: bool) -> u64 {
        self.met(at.0, length, |condition| condition == DATA || condition == WRITES && write)
    }

    /// Which ones an access to `length` ports from `port` on meets: bits 3:0, as in DR6.
    pub fn port(&self, port: u16, length: usize) -> u64 {
        self.met(port.into(), length, |condition| condition == PORTS && self.ports)
    }

    fn met(&self, from: u64, length: usize, is_meant: impl Fn(u64) -> bool) -> u64 {
        let mut met = 0;
        for (n, &address) in self.addresses.iter().enumerate() {
            let enabled = self.dr7 >> (2 * n) & 0b11 != 0;
            let condition = self.dr7 >> (CONDITIONS + 4 * n);
            // As in DR7: 1, 2, 8, 4 bytes; the address's low bits do not count.
            let watched: u64 = [1, 2, 8, 4][(condition >> 2 & 0b11) as usize];
            let first = address & !(watched - 1);
            // Either begins within the other.
            let overlaps = from.wrapping_sub(first) < watched || first.wrapping_sub(from) < length as u64;
            if enabled && is_meant(condition & 0b11) && overlaps {
                met |= 1 << n;
            }
        }
        met
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DR7 with breakpoint `n` enabled for `condition`, and with this code for its length.
    const fn dr7(n: usize, condition: u64, length: u64) -> u64 {
        1 << (2 * n) | (length << 2 | condition) << (CONDITIONS + 4 * n)
    }

    fn at(address: u64, dr7: u64) -> Watchpoints {
        Watchpoints::new(|| [address; 4], dr7, || true).unwrap()
    }

    #[test]
    fn none_is_none() {
        assert_eq!(Watchpoints::new(|| panic!("not asked for"), 0x400 | DATA << CONDITIONS, || true), None);
        assert!(Watchpoints::new(|| [0; 4], 0x402, || true).is_some(), "global ones count too");
    }

    #[test]
    fn each_condition_meets_what_it_is_for() {
        for n in 0..4 {
            let met = |condition| {
                let w = at(0x1000, dr7(n, condition, 0));
                [w.memory(Gla(0x1000), 1, false), w.memory(Gla(0x1000), 1, true), w.port(0x1000, 1)].map(|met| met >> n)
            };
            assert_eq!(met(0), [0, 0, 0], "instructions");
            assert_eq!(met(WRITES), [0, 1, 0]);
            assert_eq!(met(PORTS), [0, 0, 1]);
            assert_eq!(met(DATA), [1, 1, 0]);
        }
        let without = Watchpoints::new(|| [0x80; 4], dr7(0, PORTS, 0), || false).unwrap();
        assert_eq!(without.port(0x80, 1), 0, "CR4.DE is clear");
    }

    #[test]
    fn any_byte_in_common_counts_and_no_other() {
        for (code, watched) in [(0, 1), (1, 2), (2, 8), (3, 4)] {
            let w = at(0x1007, dr7(2, DATA, code));
            let first = 0x1007 & !(watched - 1);
            for from in 0xff0..0x1020_u64 {
                for length in [1, 2, 4, 8, 32] {
                    let common = (from..from + length).any(|byte| (first..first + watched).contains(&byte));
                    let met = w.memory(Gla(from), usize::try_from(length).unwrap(), false);
                    assert_eq!(met, u64::from(common) << 2, "{watched} bytes, {length} from {from:#x}");
                }
            }
        }
    }
}
