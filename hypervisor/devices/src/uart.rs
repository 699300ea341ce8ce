//! The 16550A serial port (National Semiconductor PC16550D, "Universal Asynchronous Receiver/Transmitter with FIFOs").
//!
//! Owns the registers, both FIFOs and the level of the interrupt line. The line itself is infinitely fast: a byte
//! leaves as soon as [`Uart::take_output`] finds a taker, and until then the transmitter shows busy. Never drops a
//! byte that the guest wrote while the transmitter holding register showed empty, and never lets received bytes
//! overrun: [`Uart::give_input`] takes only what fits.

use bitflags::bitflags;
use lamina_arch::time::{Frequency, Tsc};
use lamina_vmm::fault::{self, Site};

/// Depth of each FIFO. Unit: bytes.
pub const FIFO_DEPTH: usize = 16;
/// The baud rate of divisor 1 (a 1.8432 MHz crystal). Unit: bits per second.
const BASE_BAUD: u64 = 115_200;

bitflags! {
    /// Interrupt enable register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Ier: u8 {
        const RECEIVED_DATA = 1 << 0;
        const THR_EMPTY = 1 << 1;
        const LINE_STATUS = 1 << 2;
        const MODEM_STATUS = 1 << 3;
    }

    /// Modem control register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Mcr: u8 {
        const DTR = 1 << 0;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        const OUT2 = 1 << 3;
        const LOOP = 1 << 4;
    }
}

/// Line control: the divisor latch is in place of the data and interrupt enable registers.
const LCR_DLAB: u8 = 1 << 7;
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RX: u8 = 1 << 1;
const FCR_CLEAR_TX: u8 = 1 << 2;
const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_THR_EMPTY: u8 = 1 << 5;
const LSR_TX_EMPTY: u8 = 1 << 6;
const IIR_NONE: u8 = 0x01;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_THR_EMPTY: u8 = 0x02;
const IIR_RECEIVED_DATA: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFOS_ENABLED: u8 = 0xc0;
const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;
/// What a terminal at the other end asserts.
const MSR_CONNECTED: u8 = MSR_CTS | MSR_DSR | MSR_DCD;

/// One FIFO; as deep as `limit`, 1 where FIFOs are off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fifo {
    bytes: [u8; FIFO_DEPTH],
    first: usize,
    length: usize,
}

impl Fifo {
    const EMPTY: Fifo = Fifo { bytes: [0; FIFO_DEPTH], first: 0, length: 0 };

    fn front(&self) -> Option<u8> {
        (self.length > 0).then(|| self.bytes[self.first % FIFO_DEPTH])
    }

    fn pop(&mut self) -> Option<u8> {
        let byte = self.front()?;
        self.first = (self.first + 1) % FIFO_DEPTH;
        self.length -= 1;
        Some(byte)
    }

    /// False where `limit` bytes are in already; the byte is not taken then.
    fn push(&mut self, byte: u8, limit: usize) -> bool {
        if self.length >= limit {
            return false;
        }
        self.bytes[(self.first + self.length) % FIFO_DEPTH] = byte;
        self.length += 1;
        true
    }
}

/// The serial port.
#[derive(Clone, Debug, PartialEq)]
pub struct Uart {
    tsc: Frequency,
    ier: Ier,
    lcr: u8,
    mcr: Mcr,
    scratch: u8,
    divisor: [u8; 2],
    fifos_enabled: bool,
    trigger: usize,
    rx: Fifo,
    tx: Fifo,
    overrun: bool,
    /// The interrupt "transmitter holding register empty" is pending; a latch of its own, see [`Uart::write`].
    thr_empty_pending: bool,
    /// Modem lines as last seen by the delta bits (high nibble), and the deltas (low nibble).
    msr: u8,
    /// When bytes below the trigger level become a character timeout.
    timeout_at: Option<Tsc>,
    timeout: bool,
}

impl Uart {
    /// A port as after reset.
    pub const fn new(tsc: Frequency) -> Uart {
        Uart {
            tsc,
            ier: Ier::empty(),
            lcr: 0,
            mcr: Mcr::empty(),
            scratch: 0,
            divisor: [1, 0],
            fifos_enabled: false,
            trigger: 1,
            rx: Fifo::EMPTY,
            tx: Fifo::EMPTY,
            overrun: false,
            thr_empty_pending: false,
            msr: MSR_CONNECTED,
            timeout_at: None,
            timeout: false,
        }
    }

    /// Reads the register at `offset` (the low three bits count).
    pub fn read(&mut self, now: Tsc, offset: u8) -> u8 {
        fault::point(Site::UartRead);
        let dlab = self.lcr & LCR_DLAB != 0;
        match offset & 7 {
            0 if dlab => self.divisor[0],
            1 if dlab => self.divisor[1],
            0 => self.read_data(now),
            1 => self.ier.bits(),
            2 => {
                let cause = self.cause();
                if cause == IIR_THR_EMPTY {
                    self.thr_empty_pending = false;
                }
                if self.fifos_enabled { cause | IIR_FIFOS_ENABLED } else { cause }
            }
            3 => self.lcr,
            4 => self.mcr.bits(),
            5 => {
                let status = self.line_status();
                self.overrun = false;
                status
            }
            6 => {
                let status = self.msr;
                self.msr &= 0xf0;
                status
            }
            _ => self.scratch,
        }
    }

    /// The line status, as a read of its register gives it; `None` where that would change something.
    #[inline]
    pub fn quiet_line_status(&self) -> Option<u8> {
        fault::point(Site::UartRead);
        if self.overrun { None } else { Some(self.line_status()) }
    }

    /// Writes the register at `offset` (the low three bits count).
    pub fn write(&mut self, now: Tsc, offset: u8, value: u8) {
        fault::point(Site::UartWrite);
        let dlab = self.lcr & LCR_DLAB != 0;
        match offset & 7 {
            0 if dlab => self.divisor[0] = value,
            1 if dlab => self.divisor[1] = value,
            0 => self.transmit(now, value),
            1 => {
                let before = self.ier;
                self.ier = Ier::from_bits_truncate(value);
                // Enabling the interrupt while the register is empty raises it: drivers start transmission so.
                if self.tx.length == 0 && (self.ier - before).contains(Ier::THR_EMPTY) {
                    self.thr_empty_pending = true;
                }
            }
            2 => self.write_fifo_control(value),
            3 => self.lcr = value,
            4 => {
                self.mcr = Mcr::from_bits_truncate(value);
                self.update_modem_lines();
            }
            // The line and modem status registers are the factory's test points: writes have no effect.
            5 | 6 => {}
            _ => self.scratch = value,
        }
    }

    /// The level of the interrupt line. On a PC the OUT2 output gates it, and loopback turns that output off.
    pub fn irq(&self) -> bool {
        self.mcr.contains(Mcr::OUT2) && !self.mcr.contains(Mcr::LOOP) && self.cause() != IIR_NONE
    }

    /// Brings the character timeout up to `now`.
    pub fn advance(&mut self, now: Tsc) {
        if self.timeout_at.is_some_and(|at| at <= now) {
            self.timeout_at = None;
            self.timeout = self.rx.length > 0;
        }
    }

    /// When the character timeout would raise an interrupt.
    pub fn next_deadline(&self) -> Option<Tsc> {
        self.timeout_at.filter(|_| self.ier.contains(Ier::RECEIVED_DATA) && self.rx.length < self.trigger)
    }

    /// Gives the bytes that wait to `sink`, in order, until it returns false: that byte and the rest stay.
    pub fn take_output(&mut self, sink: &mut dyn FnMut(u8) -> bool) {
        fault::point(Site::UartOutput);
        if !self.has_output() {
            return;
        }
        while let Some(byte) = self.tx.front() {
            if !sink(byte) {
                return;
            }
            self.tx.pop();
        }
        self.thr_empty_pending = true;
    }

    /// Whether bytes wait for [`Uart::take_output`].
    pub const fn has_output(&self) -> bool {
        self.tx.length > 0
    }

    /// Receives bytes as far as there is room; returns how many.
    pub fn give_input(&mut self, now: Tsc, bytes: &[u8]) -> usize {
        // In loopback the receiver hears only the transmitter; the line's bytes wait outside.
        if self.mcr.contains(Mcr::LOOP) {
            return 0;
        }
        let depth = self.depth();
        let taken = bytes.iter().take_while(|&&byte| self.rx.push(byte, depth)).count();
        if taken > 0 {
            self.restart_timeout(now);
        }
        taken
    }

    const fn depth(&self) -> usize {
        if self.fifos_enabled { FIFO_DEPTH } else { 1 }
    }

    fn read_data(&mut self, now: Tsc) -> u8 {
        let byte = self.rx.pop().unwrap_or(0);
        self.restart_timeout(now);
        byte
    }

    fn transmit(&mut self, now: Tsc, byte: u8) {
        self.thr_empty_pending = false;
        if self.mcr.contains(Mcr::LOOP) {
            let depth = self.depth();
            if !self.rx.push(byte, depth) {
                self.overrun = true;
            }
            self.restart_timeout(now);
            self.thr_empty_pending = true;
        } else {
            // Writing to a full FIFO loses the byte, as on the chip: the guest was shown THRE clear.
            let depth = self.depth();
            self.tx.push(byte, depth);
        }
    }

    fn write_fifo_control(&mut self, value: u8) {
        let enable = value & FCR_ENABLE != 0;
        let changed = enable != self.fifos_enabled;
        self.fifos_enabled = enable;
        // The other bits are only taken with the enable bit set.
        self.trigger = match (enable, value >> 6) {
            (true, 1) => 4,
            (true, 2) => 8,
            (true, 3) => 14,
            _ => 1,
        };
        if changed || (enable && value & FCR_CLEAR_RX != 0) {
            self.rx = Fifo::EMPTY;
            self.timeout = false;
            self.timeout_at = None;
        }
        if (changed || (enable && value & FCR_CLEAR_TX != 0)) && self.tx.length > 0 {
            self.tx = Fifo::EMPTY;
            self.thr_empty_pending = true;
        }
    }

    fn update_modem_lines(&mut self) {
        let lines = if self.mcr.contains(Mcr::LOOP) {
            let line = |output, input| if self.mcr.contains(output) { input } else { 0 };
            line(Mcr::RTS, MSR_CTS) | line(Mcr::DTR, MSR_DSR) | line(Mcr::OUT1, MSR_RI) | line(Mcr::OUT2, MSR_DCD)
        } else {
            MSR_CONNECTED
        };
        let changed = (self.msr ^ lines) & 0xf0;
        // The ring indicator's delta tells of its end only.
        let deltas = changed & (MSR_CTS | MSR_DSR | MSR_DCD) | (changed & MSR_RI & self.msr);
        self.msr = lines | (self.msr & 0x0f) | (deltas >> 4);
    }

    fn line_status(&self) -> u8 {
        let mut status = 0;
        if self.rx.length > 0 {
            status |= LSR_DATA_READY;
        }
        if self.overrun {
            status |= LSR_OVERRUN;
        }
        if self.tx.length == 0 {
            status |= LSR_THR_EMPTY | LSR_TX_EMPTY;
        }
        status
    }

    /// The pending interrupt of the highest priority, as the identification register encodes it.
    fn cause(&self) -> u8 {
        if self.overrun && self.ier.contains(Ier::LINE_STATUS) {
            IIR_LINE_STATUS
        } else if self.rx.length >= self.trigger && self.ier.contains(Ier::RECEIVED_DATA) {
            IIR_RECEIVED_DATA
        } else if self.timeout && self.ier.contains(Ier::RECEIVED_DATA) {
            IIR_TIMEOUT
        } else if self.thr_empty_pending && self.ier.contains(Ier::THR_EMPTY) {
            IIR_THR_EMPTY
        } else if self.msr & 0x0f != 0 && self.ier.contains(Ier::MODEM_STATUS) {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    /// Every character that comes in or is read restarts the timeout: four character times without either.
    fn restart_timeout(&mut self, now: Tsc) {
        self.timeout = false;
        self.timeout_at = (self.fifos_enabled && self.rx.length > 0).then(|| now + self.four_characters());
    }

    /// Unit: TSC ticks.
    fn four_characters(&self) -> u64 {
        let data = 5 + u64::from(self.lcr & 3);
        let stop = 1 + u64::from(self.lcr >> 2 & 1);
        let parity = u64::from(self.lcr >> 3 & 1);
        let divisor = u64::from(u16::from_le_bytes(self.divisor)).max(1);
        let bits = 4 * (1 + data + parity + stop);
        Frequency::from_hz(BASE_BAUD).convert_up(bits * divisor, self.tsc)
    }
}

#[cfg(test)]
#[path = "uart_tests.rs"]
mod tests;
