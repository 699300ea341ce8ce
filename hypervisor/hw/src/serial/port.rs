//! The UART with its two rings, whatever its registers are reached through: what is sent and received, and when.
//!
//! Owns the transmit ring, the writer's end of the receive ring, and the UART's IER. Whether interrupts come at all is
//! found out by [`super`], which also decides when to look without them.

use lamina_vmm::pipe::Writer;
use uart_16550::Uart16550;
use uart_16550::backend::Backend;
use uart_16550::spec::FIFO_SIZE;
use uart_16550::spec::registers::{IER, LSR};

use super::{RECEIVE_RING, TRANSMIT_RING};

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
pub(super) struct Serial<B: Backend> {
    /// `None` where there is none: then what is written goes nowhere.
    pub(super) uart: Option<Uart16550<B>>,
    transmit: Ring<TRANSMIT_RING>,
    pub(super) receive: Option<Writer<'static, RECEIVE_RING>>,
    interrupts: bool,
    /// The transmitter's interrupt is on: while the ring holds bytes that wait for it, and until the next interrupt.
    transmit_interrupt: bool,
    /// Output stands in the middle of a line.
    pub(super) mid_line: bool,
    /// Bytes received while the ring was full.
    pub(super) lost: u64,
    /// The last polled look found something that was received: more may follow.
    receives: bool,
}

impl<B: Backend> Serial<B> {
    pub(super) const fn new() -> Self {
        Serial {
            uart: None,
            transmit: Ring::new(),
            receive: None,
            interrupts: false,
            transmit_interrupt: false,
            mid_line: false,
            lost: 0,
            receives: false,
        }
    }

    /// Puts `bytes` into the transmit ring; returns how many it had room for.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let taken = self.transmit.push(bytes);
        if let Some(&last) = bytes[..taken].last() {
            self.mid_line = last != b'\n';
        }
        // With the interrupt on, the ring is being emptied already. A full one may be so because no interrupt comes.
        if taken > 0 && !self.transmit_interrupt || self.transmit.room() == 0 {
            self.feed();
        }
        taken
    }

    /// Gives the transmitter what it takes at once, and keeps its interrupt on while bytes wait.
    fn feed(&mut self) {
        let Some(uart) = self.uart.as_mut() else {
            self.transmit.consume(self.transmit.length);
            return;
        };
        loop {
            let sent = uart.send_bytes(self.transmit.front(FIFO_SIZE));
            self.transmit.consume(sent);
            let waiting = self.interrupts && self.transmit.length > 0;
            if waiting == self.transmit_interrupt {
                return;
            }
            self.transmit_interrupt = waiting;
            if !waiting {
                uart.disable_interrupts(IER::THR_EMPTY);
                return;
            }
            uart.enable_interrupts(IER::THR_EMPTY);
            // The transmitter may have run empty since it was looked at, and not every UART interrupts for that when the
            // bit is set only then: one more look, so that no byte is left behind.
        }
    }

    /// Takes what was received, a FIFO's content at most; returns how much.
    fn drain_receiver(&mut self) -> usize {
        let Some(uart) = self.uart.as_mut() else { return 0 };
        let mut bytes = [0; FIFO_SIZE];
        let count = uart.receive_bytes(&mut bytes);
        let kept = self.receive.as_mut().map_or(0, |receive| receive.push(&bytes[..count]));
        self.lost += (count - kept) as u64;
        count
    }

    /// Does what the port's interrupt asks for. It is edge-triggered: returns only when the port asks for nothing more, or
    /// a new edge would never come.
    pub(super) fn handle_interrupt(&mut self) {
        for _ in 0..ROUNDS {
            let Some(uart) = self.uart.as_mut() else { return };
            if !uart.isr().has_pending_interrupt() {
                return;
            }
            // Reading the status registers acknowledges what only they can: line errors and modem changes.
            let _ = (uart.lsr(), uart.msr());
            self.drain_receiver();
            self.feed();
        }
    }

    /// Does the same where no interrupt comes: one look at the receiver, one at the transmitter where bytes wait for it.
    pub(super) fn poll(&mut self) {
        self.receives = self.drain_receiver() > 0;
        self.feed();
    }

    /// Whether the next polled look should come soon: bytes wait for the transmitter, or are being received.
    pub(super) const fn is_busy(&self) -> bool {
        self.receives || self.transmit.length > 0
    }

    /// Turns the port's interrupts on, that of the transmitter too, which is empty: so one is due at once.
    pub(super) fn begin_interrupts(&mut self) {
        self.flush_polled();
        self.interrupts = true;
        if let Some(uart) = self.uart.as_mut() {
            uart.enable_interrupts(IER::DATA_READY | IER::RECEIVER_LINE_STATUS | IER::THR_EMPTY);
            self.transmit_interrupt = true;
        }
    }

    /// Turns them off again: the port is polled from here on.
    pub(super) fn end_interrupts(&mut self) {
        self.interrupts = false;
        self.transmit_interrupt = false;
        if let Some(uart) = self.uart.as_mut() {
            uart.disable_interrupts(IER::all());
        }
        self.feed();
    }

    /// Sends the ring's bytes and then `bytes`, waiting for the port; what a dead port does not take is dropped.
    pub(super) fn send_polled(&mut self, bytes: &[u8]) {
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

    /// Sends what the ring holds and waits until the last bit has left the port.
    pub(super) fn flush_polled(&mut self) {
        self.send_polled(&[]);
        if let Some(uart) = self.uart.as_mut() {
            let _ = (0..POLLS).find(|_| uart.lsr().contains(LSR::TRANSMITTER_EMPTY));
        }
    }
}

/// Sends the first few of `bytes` as soon as the port takes them; `None` where it looks dead.
fn send_some<B: Backend>(uart: &mut Uart16550<B>, bytes: &[u8]) -> Option<usize> {
    (0..POLLS).map(|_| uart.send_bytes(bytes)).find(|&sent| sent > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;
    use alloc::vec;
    use alloc::vec::Vec;
    use core::cell::RefCell;
    use uart_16550::Config;
    use uart_16550::spec::registers::{FifoTriggerLevel, offsets};

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

    /// A 16550A whose line takes bytes when a test says so.
    #[derive(Default)]
    struct Chip {
        registers: [u8; 8],
        fifo: usize,
        sent: Vec<u8>,
        received: Vec<u8>,
        /// The transmitter's interrupt is pending.
        pending: bool,
        /// An empty transmitter interrupts when its bit in IER is set; else only when it becomes empty.
        tells_empty_when_enabled: bool,
        /// The FIFO runs empty right before IER is next written.
        empties_before_enabled: bool,
        /// How often LSR was read.
        looks: usize,
    }

    const THR_EMPTY: u8 = IER::THR_EMPTY.bits();

    impl Chip {
        /// The line has taken all that was in the FIFO.
        fn empties(&mut self) {
            if self.fifo > 0 {
                self.fifo = 0;
                self.pending = self.registers[offsets::IER] & THR_EMPTY != 0;
            }
        }
    }

    #[derive(Clone, Default)]
    struct Line(Rc<RefCell<Chip>>);

    impl Backend for Line {
        unsafe fn read(&mut self, register: u8) -> u8 {
            let mut chip = self.0.borrow_mut();
            match usize::from(register) {
                offsets::DATA if !chip.received.is_empty() => chip.received.remove(0),
                // ISR, with FIFOs enabled.
                offsets::ISR => {
                    let pending = core::mem::take(&mut chip.pending);
                    if pending { 0xc2 } else { 0xc1 }
                }
                offsets::LSR => {
                    chip.looks += 1;
                    let empty = LSR::THR_EMPTY | LSR::TRANSMITTER_EMPTY;
                    let ready = if chip.received.is_empty() { LSR::empty() } else { LSR::DATA_READY };
                    (ready | if chip.fifo == 0 { empty } else { LSR::empty() }).bits()
                }
                other => chip.registers[other],
            }
        }

        unsafe fn write(&mut self, register: u8, value: u8) {
            let mut chip = self.0.borrow_mut();
            let register = usize::from(register);
            let divisor = chip.registers[offsets::LCR] & 0x80 != 0;
            match register {
                offsets::DATA if !divisor => {
                    chip.fifo += 1;
                    assert!(chip.fifo <= FIFO_SIZE, "more than the FIFO holds");
                    chip.sent.push(value);
                    chip.pending = false;
                }
                offsets::IER if !divisor => {
                    if core::mem::take(&mut chip.empties_before_enabled) {
                        chip.empties();
                    }
                    let newly = value & !chip.registers[register] & THR_EMPTY != 0;
                    chip.registers[register] = value;
                    chip.pending |= newly && chip.fifo == 0 && chip.tells_empty_when_enabled;
                }
                _ => chip.registers[register] = value,
            }
        }
    }

    /// A port on such a chip, with interrupts.
    fn port(tells_empty_when_enabled: bool) -> (Serial<Line>, Line) {
        let line = Line::default();
        line.0.borrow_mut().tells_empty_when_enabled = tells_empty_when_enabled;
        // SAFETY: no register of the fake has an effect on memory.
        let mut uart = unsafe { Uart16550::new_with_backend(line.clone()) };
        uart.init(Config { fifo_trigger_level: Some(FifoTriggerLevel::Eight), ..Config::DEFAULT }).unwrap();
        let mut serial = Serial::new();
        serial.uart = Some(uart);
        serial.begin_interrupts();
        // What the trial of the interrupt comes to.
        line.0.borrow_mut().pending = true;
        serial.handle_interrupt();
        assert!(!serial.transmit_interrupt);
        (serial, line)
    }

    /// The line takes what it has, and its interrupt is handled, until nothing more happens.
    fn run(serial: &mut Serial<Line>, line: &Line) {
        for _ in 0..TRANSMIT_RING {
            line.0.borrow_mut().empties();
            if !line.0.borrow().pending {
                return;
            }
            serial.handle_interrupt();
        }
    }

    #[test]
    fn the_interrupt_empties_the_ring_and_a_write_behind_bytes_that_wait_looks_at_no_register() {
        let (mut serial, line) = port(true);
        let text: Vec<u8> = (0..200).collect();
        assert_eq!(serial.write(&text[..100]), 100);
        let looks = line.0.borrow().looks;
        assert_eq!(serial.write(&text[100..]), 100);
        assert_eq!(line.0.borrow().looks, looks, "the interrupt sends it");
        run(&mut serial, &line);
        assert_eq!(line.0.borrow().sent, text);
        assert_eq!(line.0.borrow().registers[offsets::IER] & THR_EMPTY, 0, "nothing waits");
    }

    #[test]
    fn a_transmitter_that_runs_empty_before_its_interrupt_is_on_is_fed_all_the_same() {
        for tells in [true, false] {
            let (mut serial, line) = port(tells);
            line.0.borrow_mut().empties_before_enabled = true;
            let text: Vec<u8> = (0..100).collect();
            assert_eq!(serial.write(&text), 100);
            run(&mut serial, &line);
            assert_eq!(line.0.borrow().sent, text, "tells when enabled: {tells}");
            // Here the second look takes the rest, and the next write finds the interrupt off.
            line.0.borrow_mut().empties_before_enabled = true;
            let text = &text[..20];
            line.0.borrow_mut().sent.clear();
            for _ in 0..3 {
                serial.write(text);
                run(&mut serial, &line);
            }
            assert_eq!(line.0.borrow().sent, [text; 3].concat(), "tells when enabled: {tells}");
        }
    }

    #[test]
    fn a_full_ring_is_emptied_by_its_writers_where_no_interrupt_comes() {
        let (mut serial, line) = port(true);
        let text = vec![b'x'; 2 * TRANSMIT_RING];
        let mut taken = 0;
        while taken < text.len() {
            let looks = line.0.borrow().looks;
            let now = serial.write(&text[taken..]);
            taken += now;
            assert!(line.0.borrow().looks - looks <= 1 || taken == now, "one look at LSR");
            // The line takes what it has, and nobody hears of it.
            line.0.borrow_mut().empties();
            line.0.borrow_mut().pending = false;
            assert!(line.0.borrow().sent.len() + TRANSMIT_RING >= taken);
            assert!(now > 0 || taken == TRANSMIT_RING, "it stands still at {taken} bytes");
        }
    }

    #[test]
    fn a_polled_port_sends_and_receives_with_its_interrupts_off() {
        static RECEIVED: lamina_vmm::pipe::Pipe<RECEIVE_RING> = lamina_vmm::pipe::Pipe::new();
        let (writer, mut reader) = RECEIVED.ends().unwrap();
        let (mut serial, line) = port(true);
        serial.receive = Some(writer);
        serial.end_interrupts();
        assert_eq!(line.0.borrow().registers[offsets::IER], 0);
        let text: Vec<u8> = (0..40).collect();
        assert_eq!(serial.write(&text), 40);
        assert!(serial.is_busy());
        let mut busy = Vec::new();
        for _ in 0..3 {
            line.0.borrow_mut().empties();
            serial.poll();
            busy.push(serial.is_busy());
        }
        assert_eq!(line.0.borrow().sent, text);
        assert_eq!(busy, [true, false, false]);
        line.0.borrow_mut().received = b"vms\r".to_vec();
        serial.poll();
        assert!(serial.is_busy(), "more may follow");
        assert_eq!(core::iter::from_fn(|| reader.pop()).collect::<Vec<_>>(), b"vms\r");
        assert_eq!(line.0.borrow().registers[offsets::IER], 0);
    }

    #[test]
    fn without_a_port_everything_is_taken() {
        let mut serial = Serial::<Line>::new();
        for _ in 0..3 {
            assert_eq!(serial.write(&[b'x'; TRANSMIT_RING]), TRANSMIT_RING);
        }
        serial.begin_interrupts();
        serial.end_interrupts();
        serial.poll();
        assert_eq!(serial.write(b"y"), 1);
    }
}
