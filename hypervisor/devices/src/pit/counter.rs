//! One counter of the 8254: modes, count register, latches, gate and output.
//!
//! Owns what was written and at which tick it took effect. "Tick" is a falling edge of CLK, numbered by the caller; a
//! count that is written at tick T is loaded at T + 1, as the datasheet has it.

/// Which bytes of the count a program reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low,
    High,
    LowThenHigh,
}

/// A count that a running periodic counter takes over at the end of its (half) cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reload {
    at: u64,
    count: u32,
    /// The start to reckon from afterwards: not `at` where a square wave goes on with its low half.
    start: u64,
}

/// One counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    mode: u8,
    bcd: bool,
    access: Access,
    /// What was written, still encoded.
    register: u16,
    /// The count in effect: 1 to 65536 (in BCD 10000; a little more where the digits were none).
    count: u32,
    /// When `count` was loaded; `None` where nothing was since the control word.
    start: Option<u64>,
    /// How far the counter had come when the gate stopped it.
    held: Option<u64>,
    reload: Option<Reload>,
    /// A new count was written that no trigger has loaded yet.
    untriggered: bool,
    gate: bool,
    write_low: Option<u8>,
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    /// A counter in an arbitrary mode, not counting.
    pub(super) const fn new(gate: bool) -> Counter {
        Counter {
            mode: 3,
            bcd: false,
            access: Access::LowThenHigh,
            register: 0,
            count: 0x1_0000,
            start: None,
            held: None,
            reload: None,
            untriggered: true,
            gate,
            write_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// Takes over a new count whose time has come. To be called before anything else at `tick`.
    #[inline]
    pub(super) fn settle(&mut self, tick: u64) {
        if let Some(reload) = self.reload.filter(|reload| reload.at <= tick) {
            self.count = reload.count;
            self.start = Some(reload.start);
            self.reload = None;
        }
    }

    /// A control word for this counter: the latch command, or a new mode.
    pub(super) fn control(&mut self, value: u8, tick: u64) {
        let access = match value >> 4 & 3 {
            0 => return self.latch_count(tick),
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowThenHigh,
        };
        let mode = match value >> 1 & 7 {
            6 => 2,
            7 => 3,
            mode => mode,
        };
        *self = Counter { mode, bcd: value & 1 != 0, access, register: self.register, ..Counter::new(self.gate) };
    }

    /// The counter latch command: the count as it is now is what reads give next.
    pub(super) fn latch_count(&mut self, tick: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.value(tick));
        }
    }

    /// The read-back command's status.
    pub(super) fn latch_status(&mut self, tick: u64) {
        if self.latched_status.is_some() {
            return;
        }
        let null_count = self.untriggered || self.reload.is_some() || self.start.is_none_or(|start| tick < start);
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::LowThenHigh => 3,
        };
        self.latched_status = Some(
            u8::from(self.out(tick)) << 7
                | u8::from(null_count) << 6
                | access << 4
                | self.mode << 1
                | u8::from(self.bcd),
        );
    }

    /// Reads the next byte.
    pub(super) fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status {
            self.latched_status = None;
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.value(tick)).to_le_bytes();
        match (self.access, self.read_high) {
            (Access::LowThenHigh, false) => {
                self.read_high = true;
                return low;
            }
            (Access::LowThenHigh, true) => self.read_high = false,
            _ => {}
        }
        self.latched_count = None;
        if self.access == Access::Low { low } else { high }
    }

    /// Writes the next byte of the count.
    pub(super) fn write(&mut self, value: u8, tick: u64) {
        let register = match (self.access, self.write_low.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::LowThenHigh, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::LowThenHigh, None) => {
                self.write_low = Some(value);
                if self.mode == 0 {
                    // The first byte stops the count and takes the output down at once.
                    self.start = None;
                }
                return;
            }
        };
        self.register = register;
        self.untriggered = matches!(self.mode, 1 | 5);
        match self.mode {
            // These load on the gate's trigger.
            1 | 5 => {}
            2 | 3 => self.load_periodic(tick),
            _ => {
                self.count = self.programmed();
                self.start = Some(tick.saturating_add(1));
                self.held = (!self.gate).then_some(0);
            }
        }
    }

    /// Sets the level of the gate.
    pub(super) fn set_gate(&mut self, gate: bool, tick: u64) {
        if gate == self.gate {
            return;
        }
        let elapsed = self.elapsed(tick);
        self.gate = gate;
        match (self.mode, gate) {
            (1 | 5, true) => {
                self.count = self.programmed();
                self.start = Some(tick.saturating_add(1));
                self.untriggered = false;
            }
            (1 | 5, false) => {}
            (2 | 3, true) => {
                self.count = self.programmed();
                self.start = self.start.map(|_| tick.saturating_add(1));
                self.held = None;
            }
            (2 | 3, false) => {
                self.held = elapsed;
                self.reload = None;
            }
            (_, true) => {
                self.start = self.start.map(|_| tick.saturating_sub(self.held.unwrap_or(0)));
                self.held = None;
            }
            (_, false) => self.held = elapsed,
        }
    }

    /// The level of the output.
    pub(super) fn out(&self, tick: u64) -> bool {
        let Some(elapsed) = self.elapsed(tick) else { return self.mode != 0 };
        let count = u64::from(self.count.max(1));
        match self.mode {
            0 | 1 => elapsed >= count,
            2 | 3 if self.held.is_some() => true,
            2 => count == 1 || elapsed % count != count - 1,
            3 => elapsed % count < count.div_ceil(2),
            _ => elapsed != count,
        }
    }

    /// When the output rises next after `tick`.
    pub(super) fn next_rising_edge(&self, tick: u64) -> Option<u64> {
        let edge = self.edge_as_loaded(tick);
        match self.reload {
            Some(reload) if edge.is_none_or(|edge| edge > reload.at) => {
                let mut later = *self;
                later.settle(reload.at);
                later.edge_as_loaded(tick.max(reload.at))
            }
            _ => edge,
        }
    }

    fn edge_as_loaded(&self, tick: u64) -> Option<u64> {
        if self.held.is_some() {
            return None;
        }
        let start = self.start?;
        let count = u64::from(self.count.max(1));
        let edge = match self.mode {
            0 | 1 => start.saturating_add(count),
            // A count of 1 is not allowed in the periodic modes; the output then stays high.
            2 | 3 if count == 1 => return None,
            2 | 3 => {
                let cycles = tick.saturating_sub(start) / count + 1;
                start.saturating_add(cycles.saturating_mul(count))
            }
            _ => start.saturating_add(count + 1),
        };
        (edge > tick).then_some(edge)
    }

    /// A new count for mode 2 or 3: at once where it does not run, else at the end of the cycle or half cycle.
    fn load_periodic(&mut self, tick: u64) {
        let new = self.programmed();
        let running = self.start.filter(|&start| start <= tick && self.held.is_none());
        let Some(start) = running else {
            self.count = new;
            self.start = Some(tick.saturating_add(1));
            self.held = (!self.gate).then_some(0);
            return;
        };
        let count = u64::from(self.count.max(1));
        let cycle = tick - (tick - start) % count;
        let low_half = cycle.saturating_add(count.div_ceil(2));
        self.reload = Some(if self.mode == 3 && tick < low_half {
            Reload { at: low_half, count: new, start: low_half.saturating_sub(u64::from(new).div_ceil(2)) }
        } else {
            let end = cycle.saturating_add(count);
            Reload { at: end, count: new, start: end }
        });
    }

    /// Ticks counted since the count was loaded; `None` where none is loaded.
    fn elapsed(&self, tick: u64) -> Option<u64> {
        let start = self.start?;
        Some(self.held.unwrap_or(tick.saturating_sub(start)))
    }

    /// What the counting element holds, encoded.
    fn value(&self, tick: u64) -> u16 {
        let elapsed = self.elapsed(tick).unwrap_or(0);
        let count = u64::from(self.count.max(1));
        let value = match self.mode {
            2 => count - elapsed % count,
            3 => {
                // By twos, once for each half; an odd count starts from the even number below.
                let phase = elapsed % count;
                let half = count.div_ceil(2);
                (count & !1) - 2 * if phase < half { phase } else { phase - half }
            }
            _ => {
                // The others go on from the top.
                let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
                count + modulus - elapsed % modulus
            }
        };
        self.encode(value)
    }

    /// The count that the register's value means; 0 is the largest.
    fn programmed(&self) -> u32 {
        if !self.bcd {
            return if self.register == 0 { 0x1_0000 } else { u32::from(self.register) };
        }
        let digit = |n: u32| u32::from(self.register) >> (4 * n) & 0xf;
        match digit(0) + 10 * digit(1) + 100 * digit(2) + 1000 * digit(3) {
            0 => 10_000,
            count => count,
        }
    }

    fn encode(&self, value: u64) -> u16 {
        if !self.bcd {
            return (value & 0xffff) as u16;
        }
        let value = (value % 10_000) as u16;
        (value / 1000) << 12 | (value / 100 % 10) << 8 | (value / 10 % 10) << 4 | (value % 10)
    }
}
