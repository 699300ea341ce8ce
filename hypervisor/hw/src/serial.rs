//! The machine's serial port, COM1: 115200 baud, 8 data bits, no parity, one stop bit.
//!
//! Owns the port and two rings. Before [`enable_interrupts`], and in a report of a bug, output is polled; afterwards
//! bytes go through the transmit ring, which the port's interrupt empties into the FIFO. Nothing here waits except the
//! functions whose names say `polled`, and those never run on an exit's path. What is sent is shown on the [`screen`] too.
//!
//! The transmit ring is emptied by its writers too, so it is behind the port's lock. What was received goes one way, from
//! the interrupt's handler to the console, through a [`Pipe`]: the console takes it without that lock.
//!
//! Source: National Semiconductor PC16550D data sheet, "FIFO Interrupt Mode Operation".

use lamina_vmm::pipe::{Pipe, Reader, Writer};
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::spec::FIFO_SIZE;
use uart_16550::spec::registers::{FifoTriggerLevel, IER, LSR};
use uart_16550::{BaudRate, Config, Uart16550};

use crate::screen;

/// First port of COM1.
pub const COM1: u16 = 0x3f8;
/// Capacity of the transmit ring, 0.18 s at 115200 baud: it bridges the time until the next interrupt. What waits longer
/// waits in the console, where each guest has its share and none is in front of another's. Unit: bytes.
pub const TRANSMIT_RING: usize = 2 << 10;
/// Capacity of the receive ring. Unit: bytes.
pub const RECEIVE_RING: usize = 4 << 10;
/// How often a polled wait looks at the port before it takes it for dead: at 115200 baud a byte takes 87 µs, and a
/// read of a port about 1 µs, far less in an emulator.
const POLLS: u32 = 1_000_000;
/// How often one interrupt's handler looks for more work: a port that never stops asking must not hold the processor.
const ROUNDS: u32 = 64;

/// Bytes in the order they came.
struct Ring<const N: usize> {
    bytes: [u8; N],
    head: usize,
    length: usize,
}

impl<const N: usize> Ring<N> {
    const fn new() -> Self {
        Ring { bytes: [0; N], head: 0, length: 0 }
    }

    const fn room(&self) -> usize {
        N - self.length
    }

    /// Takes as many of `bytes` as there is room for; returns how many.
    fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        let tail = (self.head + self.length) % N;
        let (before_end, wrapped) = bytes[..taken].split_at(taken.min(N - tail));
        self.bytes[tail..tail + before_end.len()].copy_from_slice(before_end);
        self.bytes[..wrapped.len()].copy_from_slice(wrapped);
        self.length += taken;
        taken
    }

    /// The bytes at the front that lie in one piece, at most `limit`.
    fn front(&self, limit: usize) -> &[u8] {
        let contiguous = self.length.min(N - self.head).min(limit);
        &self.bytes[self.head..self.head + contiguous]
    }

    fn consume(&mut self, count: usize) {
        self.head = (self.head + count) % N;
        self.length -= count;
    }
}

/// The port with its rings.
struct Serial {
    uart: Option<Uart16550<PioBackend>>,
    transmit: Ring<TRANSMIT_RING>,
    receive: Option<Writer<'static, RECEIVE_RING>>,
    interrupts: bool,
    /// The transmitter's interrupt is on: set exactly while the ring holds bytes that wait for it.
    transmit_interrupt: bool,
    /// Output stands in the middle of a line.
    mid_line: bool,
    /// Bytes received while the ring was full.
    lost: u64,
}

/// Shared by all processors; the interrupt's handler takes it too, which is sound because the hypervisor runs with
/// interrupts off.
static SERIAL: Mutex<Serial> = Mutex::new(Serial {
    uart: None,
    transmit: Ring::new(),
    receive: None,
    interrupts: false,
    transmit_interrupt: false,
    mid_line: false,
    lost: 0,
});

/// What was received: filled by the interrupt's handler, which has the other end in [`SERIAL`]. The run loop asks at each
/// turn whether there is something.
static RECEIVED: Pipe<RECEIVE_RING> = Pipe::new();

/// Its end for the console, from [`init`] on. A lock for what is one reader: the handler never takes it.
static READER: Mutex<Option<Reader<'static, RECEIVE_RING>>> = Mutex::new(None);

impl Serial {
    /// Gives the transmitter what it takes at once, and keeps its interrupt on exactly while bytes wait.
    fn feed(&mut self) {
        let Some(uart) = self.uart.as_mut() else {
            self.transmit.consume(self.transmit.length);
            return;
        };
        let sent = uart.send_bytes(self.transmit.front(FIFO_SIZE));
        self.transmit.consume(sent);
        let waiting = self.interrupts && self.transmit.length > 0;
        if waiting != self.transmit_interrupt {
            // Turning it on while the transmitter is empty raises the interrupt at once, so no byte is left behind.
            if waiting {
                uart.enable_interrupts(IER::THR_EMPTY);
            } else {
                uart.disable_interrupts(IER::THR_EMPTY);
            }
            self.transmit_interrupt = waiting;
        }
    }

    fn drain_receiver(&mut self) {
        let Some(uart) = self.uart.as_mut() else { return };
        let mut bytes = [0; FIFO_SIZE];
        let count = uart.receive_bytes(&mut bytes);
        let kept = self.receive.as_mut().map_or(0, |receive| receive.push(&bytes[..count]));
        self.lost += (count - kept) as u64;
    }

    /// Sends the ring's bytes and then `bytes`, waiting for the port; what a dead port does not take is dropped.
    fn send_polled(&mut self, bytes: &[u8]) {
        let Some(uart) = self.uart.as_mut() else { return };
        while self.transmit.length > 0 {
            let Some(sent) = send_some(uart, self.transmit.front(FIFO_SIZE)) else { return };
            self.transmit.consume(sent);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(sent) = send_some(uart, rest) else { return };
            rest = &rest[sent..];
        }
    }
}

/// Sends the first few of `bytes` as soon as the port takes them; `None` where it looks dead.
fn send_some(uart: &mut Uart16550<PioBackend>, bytes: &[u8]) -> Option<usize> {
    (0..POLLS).map(|_| uart.send_bytes(bytes)).find(|&sent| sent > 0)
}

/// Sets up the port for polled output. Returns whether there is one; without it, output goes nowhere.
pub fn init() -> bool {
    // SAFETY: COM1's ports have no side effects on memory, and nothing else in the hypervisor uses them: the only
    // `Uart16550` is the one behind `SERIAL`.
    let Ok(mut uart) = (unsafe { Uart16550::new_port(COM1) }) else { return false };
    let config = Config {
        baud_rate: BaudRate::Baud115200,
        // Eight: room for eight more bytes, 0.7 ms, until the interrupt is served.
        fifo_trigger_level: Some(FifoTriggerLevel::Eight),
        ..Config::DEFAULT
    };
    let present = uart.init(config).is_ok();
    let mut serial = SERIAL.lock();
    serial.uart = present.then_some(uart);
    if let Some((writer, reader)) = RECEIVED.ends() {
        serial.receive = Some(writer);
        *READER.lock() = Some(reader);
    }
    present
}

/// From here on the rings work by interrupt. To be called once the port's interrupt is routed.
pub fn enable_interrupts() {
    let mut serial = SERIAL.lock();
    serial.interrupts = true;
    if let Some(uart) = serial.uart.as_mut() {
        uart.enable_interrupts(IER::DATA_READY | IER::RECEIVER_LINE_STATUS);
    }
    serial.feed();
}

/// Puts `bytes` into the transmit ring; returns how many it had room for. Never waits.
pub fn write(bytes: &[u8]) -> usize {
    let mut serial = SERIAL.lock();
    let taken = serial.transmit.push(bytes);
    screen::write(&bytes[..taken]);
    if let Some(&last) = bytes[..taken].last() {
        serial.mid_line = last != b'\n';
        // With the interrupt on, the ring is being emptied already.
        if !serial.transmit_interrupt {
            serial.feed();
        }
    }
    taken
}

/// The next byte that was received.
pub fn read() -> Option<u8> {
    READER.lock().as_mut()?.pop()
}

/// Whether [`read`] would give a byte.
pub fn has_received() -> bool {
    !RECEIVED.is_empty()
}

/// Bytes received so far that found the ring full and were lost.
pub fn lost() -> u64 {
    SERIAL.lock().lost
}

/// Serves the port's interrupt. It is edge-triggered: returns only when the port asks for nothing more, or a new edge
/// would never come.
pub fn handle_interrupt() {
    let mut serial = SERIAL.lock();
    for _ in 0..ROUNDS {
        let Some(uart) = serial.uart.as_mut() else { return };
        if !uart.isr().has_pending_interrupt() {
            return;
        }
        // Reading the status registers acknowledges what only they can: line errors and modem changes.
        let _ = (uart.lsr(), uart.msr());
        serial.drain_receiver();
        serial.feed();
    }
}

/// Writes `bytes` after everything in the ring, waiting for the port.
pub fn write_polled(bytes: &[u8]) {
    let mut serial = SERIAL.lock();
    screen::write(bytes);
    serial.send_polled(bytes);
    if let Some(&last) = bytes.last() {
        serial.mid_line = last != b'\n';
    }
}

/// Whether output stands in the middle of a line.
pub fn mid_line() -> bool {
    SERIAL.lock().mid_line
}

/// Sends what the ring holds and waits until the last bit has left the port.
pub fn flush_polled() {
    let mut serial = SERIAL.lock();
    serial.send_polled(&[]);
    if let Some(uart) = serial.uart.as_mut() {
        let _ = (0..POLLS).find(|_| uart.lsr().contains(LSR::TRANSMITTER_EMPTY));
    }
}

/// Whether somebody holds the port's lock.
pub fn is_locked() -> bool {
    SERIAL.is_locked()
}

/// Opens the port's lock whoever holds it, for the report of a bug.
///
/// # Safety
/// The caller never returns to what it interrupted, and no other processor is running: a holder of the lock may have
/// been stopped in the middle.
pub unsafe fn break_lock() {
    // SAFETY: the caller guarantees that no holder goes on. The rings hold plain bytes and indices that are changed one
    // at a time, each state of which is valid.
    unsafe { SERIAL.force_unlock() };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_order_across_its_end_and_takes_no_more_than_fits() {
        let mut ring = Ring::<8>::new();
        assert_eq!(ring.push(b"abcdef"), 6);
        assert_eq!(ring.front(3), b"abc");
        ring.consume(3);
        assert_eq!(ring.push(b"ghijklm"), 5);
        assert_eq!((ring.room(), ring.push(b"x")), (0, 0));
        assert_eq!(ring.front(16), b"defgh");
        ring.consume(5);
        assert_eq!(ring.front(2), b"ij");
        ring.consume(2);
        assert_eq!(ring.front(2), b"k");
        ring.consume(1);
        assert_eq!(ring.front(2), b"");
    }
}
