//! The machine's serial port, COM1: 115200 baud, 8 data bits, no parity, one stop bit.
//!
//! Owns the port and two rings. Before [`enable_interrupts`], and in a report of a bug, output is polled; afterwards
//! bytes go through the transmit ring, which the port's interrupt empties into the FIFO, or, where no interrupt comes,
//! [`serve_polled`]. Nothing here waits except bring-up and `write_polled` and `flush_polled`, and those never run on an
//! exit's path. What is sent is shown on the [`screen`] too.
//!
//! The transmit ring is emptied by its writers too, so it is behind the port's lock. What was received goes one way, from
//! the interrupt's handler to the console, through a [`Pipe`]: the console takes it without that lock.
//!
//! Source: National Semiconductor PC16550D data sheet, "FIFO Interrupt Mode Operation".

mod port;

use core::sync::atomic::{AtomicBool, Ordering};

use lamina_arch::time::Tsc;
use lamina_vmm::pipe::{Pipe, Reader};
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::FifoTriggerLevel;
use uart_16550::{BaudRate, Config, Uart16550};

use crate::{interrupts, percpu, screen, timer};
use port::Serial;

/// First port of COM1.
pub const COM1: u16 = 0x3f8;
/// Capacity of the transmit ring, 0.18 s at 115200 baud: it bridges the time until the next interrupt. What waits longer
/// waits in the console, where each guest has its share and none is in front of another's. Unit: bytes.
pub const TRANSMIT_RING: usize = 2 << 10;
/// Capacity of the receive ring. Unit: bytes.
pub const RECEIVE_RING: usize = 4 << 10;
/// How long the port's interrupt is waited for when it is first turned on. Unit: nanoseconds.
const TRIAL_NS: u64 = 10_000_000;
/// How long the processor halts at most where the port is polled: somebody who types waits that long. Unit: nanoseconds.
const POLL_NS: u64 = 10_000_000;
/// The same while bytes come or go: what the FIFO's 16 take at 115200 baud. Unit: nanoseconds.
const POLL_BUSY_NS: u64 = 1_400_000;

/// Shared by all processors; the interrupt's handler takes it too, which is sound because the hypervisor runs with
/// interrupts off.
static SERIAL: Mutex<Serial<PioBackend>> = Mutex::new(Serial::new());

/// No interrupt comes: the port is looked at by [`serve_polled`].
static POLLED: AtomicBool = AtomicBool::new(false);

/// What was received: filled by the interrupt's handler, which has the other end in [`SERIAL`]. The run loop asks at each
/// turn whether there is something.
static RECEIVED: Pipe<RECEIVE_RING> = Pipe::new();

/// Its end for the console, from [`init`] on. A lock for what is one reader: the handler never takes it.
static READER: Mutex<Option<Reader<'static, RECEIVE_RING>>> = Mutex::new(None);

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

/// Turns the port's interrupt on and finds out whether it comes, which takes 10 ms at most. True: from here on the rings
/// work by it. False: it is off again, and the port is polled, as after [`poll`]. To be called on a processor that can take
/// the interrupt, once it is routed.
///
/// On a PC it need not come: firmware may have it off or on another number, and not every management controller's UART
/// that answers at COM1's ports has it at all.
pub fn enable_interrupts() -> bool {
    let count = &percpu::current().serial_interrupts;
    let before = count.load(Ordering::Relaxed);
    SERIAL.lock().begin_interrupts();
    let (start, trial) = (timer::now(), timer::frequency().ticks_in_ns(TRIAL_NS));
    loop {
        // Before the look: whoever has the processor taken away in between finds the interrupt all the same.
        let is_over = timer::now().since(start) > trial;
        // Its handler takes the lock.
        interrupts::accept_pending();
        if count.load(Ordering::Relaxed) != before {
            return true;
        }
        if is_over {
            poll();
            return false;
        }
        core::hint::spin_loop();
    }
}

/// From here on the port is polled: its interrupt is off, and whoever serves the console calls [`serve_polled`].
pub fn poll() {
    SERIAL.lock().end_interrupts();
    POLLED.store(true, Ordering::Relaxed);
}

/// Does the work of the port's interrupt where none comes: once in each turn of whoever serves the console. Where one
/// comes, a look at a flag.
#[inline]
pub fn serve_polled() {
    if POLLED.load(Ordering::Relaxed) {
        look();
    }
}

/// Out of the way of those who need not.
#[cold]
#[inline(never)]
fn look() {
    SERIAL.lock().poll();
}

/// When [`serve_polled`] is to be called at the latest; `None` where the port's interrupt comes.
pub fn next_poll() -> Option<Tsc> {
    POLLED.load(Ordering::Relaxed).then(|| {
        let interval = if SERIAL.lock().is_busy() { POLL_BUSY_NS } else { POLL_NS };
        timer::now() + timer::frequency().ticks_in_ns(interval)
    })
}

/// Whether there is a port.
pub fn is_present() -> bool {
    SERIAL.lock().uart.is_some()
}

/// Puts `bytes` into the transmit ring; returns how many it had room for. Never waits.
pub fn write(bytes: &[u8]) -> usize {
    let taken = SERIAL.lock().write(bytes);
    screen::write(&bytes[..taken]);
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

/// Serves the port's interrupt.
pub fn handle_interrupt() {
    SERIAL.lock().handle_interrupt();
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
    SERIAL.lock().flush_polled();
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
