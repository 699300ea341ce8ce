use super::*;
use proptest::prelude::*;

/// 1 MHz: four characters of ten bits at 115200 baud are 347.2 ticks.
const TSC: Frequency = Frequency::from_hz(1_000_000);
const NOW: Tsc = Tsc(1000);
const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const MSR: u8 = 6;
const SCR: u8 = 7;
const EIGHT_N_ONE: u8 = 0x03;
const OUT2: u8 = 0x08;

fn uart(writes: &[(u8, u8)]) -> Uart {
    let mut uart = Uart::new(TSC);
    for &(offset, value) in writes {
        uart.write(NOW, offset, value);
    }
    uart
}

fn drain(uart: &mut Uart) -> Vec<u8> {
    let mut bytes = Vec::new();
    uart.take_output(&mut |byte| {
        bytes.push(byte);
        true
    });
    bytes
}

#[test]
fn registers_after_reset() {
    let mut uart = uart(&[]);
    let registers: Vec<u8> = (1..=6).map(|offset| uart.read(NOW, offset)).collect();
    assert_eq!(registers, [0x00, 0x01, 0x00, 0x00, 0x60, 0xb0]);
    assert!(!uart.irq());
}

#[test]
fn the_divisor_latch_hides_data_and_interrupt_enable() {
    let mut uart = uart(&[(IER, 0x05), (LCR, 0x80), (DATA, 0x0c), (IER, 0x01)]);
    assert_eq!((uart.read(NOW, DATA), uart.read(NOW, IER)), (0x0c, 0x01));
    uart.write(NOW, LCR, EIGHT_N_ONE);
    assert_eq!((uart.read(NOW, DATA), uart.read(NOW, IER)), (0x00, 0x05));
    assert!(!uart.has_output());
}

#[test]
fn unused_bits_read_as_zero_and_the_scratch_register_keeps_all() {
    let mut uart = uart(&[(IER, 0xff), (MCR, 0xff), (SCR, 0xa5)]);
    assert_eq!(uart.read(NOW, IER), 0x0f);
    assert_eq!(uart.read(NOW, MCR), 0x1f);
    assert_eq!(uart.read(NOW, SCR), 0xa5);
}

/// What Linux's 8250 driver does to tell a 16550A from its predecessors and successors.
#[test]
fn is_identified_as_a_16550a() {
    let mut uart = uart(&[(IER, 0x00)]);
    assert_eq!(uart.read(NOW, IER) & 0x0f, 0x00);
    uart.write(NOW, IER, 0x0f);
    assert_eq!(uart.read(NOW, IER) & 0x0f, 0x0f);
    uart.write(NOW, IER, 0x00);
    // In loopback RTS and OUT2 come back as CTS and DCD.
    uart.write(NOW, MCR, 0x10 | 0x0a);
    assert_eq!(uart.read(NOW, MSR) & 0xf0, 0x90);
    uart.write(NOW, MCR, 0);
    // FIFOs that work say 3; the 16650's and 16750's registers are not there.
    uart.write(NOW, FCR, 0x01);
    assert_eq!(uart.read(NOW, IIR) >> 6, 3);
    for lcr in [0x80, 0xbf] {
        uart.write(NOW, LCR, lcr);
        assert_ne!(uart.read(NOW, 2), 0, "no enhanced feature register behind LCR {lcr:#x}");
    }
    uart.write(NOW, FCR, 0x21);
    assert_eq!(uart.read(NOW, IIR) & 0x20, 0, "no 64-byte FIFO");
    uart.write(NOW, LCR, 0);
    uart.write(NOW, IER, 0x40);
    assert_eq!(uart.read(NOW, IER) & 0x40, 0, "no UART unit enable");
    // 256 bytes sent to itself: 16 are there.
    for (offset, value) in [(FCR, 0x07), (MCR, 0x10), (LCR, EIGHT_N_ONE)] {
        uart.write(NOW, offset, value);
    }
    for byte in 0..=255 {
        uart.write(NOW, DATA, byte);
    }
    let mut count = 0;
    while uart.read(NOW, LSR) & 0x01 != 0 {
        assert_eq!(uart.read(NOW, DATA), count);
        count += 1;
    }
    assert_eq!(count, 16);
}

#[test]
fn thr_empty_interrupts_on_enable_and_is_cleared_by_reading_iir() {
    let mut uart = uart(&[(MCR, OUT2), (IER, 0x02)]);
    assert!(uart.irq());
    assert_eq!(uart.read(NOW, IIR), 0x02);
    assert_eq!(uart.read(NOW, IIR), 0x01);
    assert!(!uart.irq());
    // Enabling what is enabled is no edge.
    uart.write(NOW, IER, 0x02);
    assert!(!uart.irq());
    uart.write(NOW, IER, 0x00);
    uart.write(NOW, IER, 0x02);
    assert!(uart.irq());
}

#[test]
fn thr_empty_is_cleared_by_writing_data_and_comes_when_the_last_byte_left() {
    let mut uart = uart(&[(MCR, OUT2), (FCR, 0x01), (IER, 0x02), (DATA, b'a'), (DATA, b'b')]);
    assert!(!uart.irq());
    let mut first = true;
    uart.take_output(&mut |_| core::mem::take(&mut first));
    assert!(!uart.irq(), "one byte is left");
    assert_eq!(drain(&mut uart), b"b");
    assert!(uart.irq());
}

#[test]
fn identifying_another_interrupt_does_not_clear_thr_empty() {
    let mut uart = uart(&[(MCR, OUT2), (IER, 0x03)]);
    assert_eq!(uart.give_input(NOW, b"x"), 1);
    assert_eq!(uart.read(NOW, IIR), 0x04);
    assert_eq!(uart.read(NOW, DATA), b'x');
    assert_eq!(uart.read(NOW, IIR), 0x02);
}

#[test]
fn the_transmitter_is_busy_while_nobody_takes_its_bytes() {
    let mut uart = uart(&[(FCR, 0x01)]);
    for byte in 0..16 {
        uart.write(NOW, DATA, byte);
    }
    for _ in 0..3 {
        uart.take_output(&mut |_| false);
        assert_eq!(uart.read(NOW, LSR), 0x00);
    }
    assert_eq!(drain(&mut uart), (0..16).collect::<Vec<_>>());
    assert_eq!(uart.read(NOW, LSR), 0x60);
}

#[test]
fn without_fifos_one_byte_fits_in_each_direction() {
    let mut uart = uart(&[(DATA, b'a')]);
    assert_eq!(uart.read(NOW, LSR), 0x00);
    assert_eq!(drain(&mut uart), b"a");
    assert_eq!(uart.give_input(NOW, b"xyz"), 1);
    assert_eq!(uart.read(NOW, LSR), 0x61);
    assert_eq!(uart.read(NOW, DATA), b'x');
    assert_eq!(uart.read(NOW, LSR), 0x60);
}

#[test]
fn input_is_taken_as_far_as_there_is_room_and_keeps_its_order() {
    let mut uart = uart(&[(FCR, 0x01)]);
    let bytes: Vec<u8> = (0..20).collect();
    assert_eq!(uart.give_input(NOW, &bytes), 16);
    assert_eq!(uart.give_input(NOW, &bytes[16..]), 0);
    assert_eq!(uart.read(NOW, LSR) & 0x02, 0, "no overrun");
    assert_eq!(uart.read(NOW, DATA), 0);
    assert_eq!(uart.give_input(NOW, &bytes[16..]), 1);
    for expected in 1..=16 {
        assert_eq!(uart.read(NOW, DATA), expected);
    }
}

#[test]
fn trigger_levels() {
    for (fcr, level) in [(0x01, 1), (0x41, 4), (0x81, 8), (0xc1, 14)] {
        let mut uart = uart(&[(MCR, OUT2), (FCR, fcr), (IER, 0x01)]);
        assert_eq!(uart.give_input(NOW, &[0; 16][..level - 1]), level - 1);
        assert!(!uart.irq(), "{level}");
        assert_eq!(uart.give_input(NOW, &[0]), 1);
        assert_eq!(uart.next_deadline(), None, "it interrupts already");
        assert_eq!(uart.read(NOW, IIR), 0xc4);
        uart.read(NOW, DATA);
        assert!(!uart.irq(), "below {level} again");
    }
}

#[test]
fn the_character_timeout_comes_four_characters_after_the_last_activity() {
    let mut uart = uart(&[(LCR, EIGHT_N_ONE), (MCR, OUT2), (FCR, 0xc1), (IER, 0x01)]);
    assert_eq!(uart.give_input(NOW, b"ab"), 2);
    let deadline = uart.next_deadline().unwrap();
    assert_eq!(deadline, NOW + 348);
    uart.advance(deadline - 1);
    assert!(!uart.irq());
    uart.advance(deadline);
    assert!(uart.irq());
    assert_eq!(uart.read(deadline, IIR), 0xcc);
    // Reading takes it away, and starts the time anew for what is left.
    assert_eq!(uart.read(deadline, DATA), b'a');
    assert!(!uart.irq());
    assert_eq!(uart.next_deadline(), Some(deadline + 348));
    assert_eq!(uart.read(deadline, DATA), b'b');
    assert_eq!(uart.next_deadline(), None);
}

#[test]
fn the_timeout_follows_the_line_settings() {
    // 12 bits a character, divisor 12.
    let mut uart = uart(&[(LCR, 0x8f), (DATA, 12), (IER, 0), (LCR, 0x0f), (FCR, 0xc1), (IER, 0x01)]);
    assert_eq!(uart.give_input(NOW, b"a"), 1);
    assert_eq!(uart.next_deadline(), Some(NOW + 5000));
}

#[test]
fn overrun_is_a_line_status_interrupt_until_it_is_read() {
    let mut uart = uart(&[(IER, 0x07), (MCR, 0x10), (DATA, b'a'), (DATA, b'b')]);
    assert_eq!(uart.read(NOW, IIR), 0x06, "of the highest priority");
    assert_eq!(uart.read(NOW, LSR), 0x63);
    assert_eq!(uart.read(NOW, LSR), 0x61);
    assert_eq!(uart.read(NOW, IIR), 0x04);
    assert_eq!(uart.read(NOW, DATA), b'a');
}

#[test]
fn loopback_stays_inside() {
    let mut uart = uart(&[(FCR, 0x01), (MCR, 0x10 | OUT2), (IER, 0x0f), (DATA, b'a')]);
    assert!(!uart.has_output());
    assert_eq!(uart.give_input(NOW, b"z"), 0);
    assert_ne!(uart.read(NOW, IIR) & 1, 1);
    assert!(!uart.irq(), "OUT2 is inactive");
    assert_eq!(uart.read(NOW, DATA), b'a');
}

#[test]
fn modem_status_tells_changes_once() {
    let mut uart = uart(&[(MCR, OUT2), (IER, 0x08)]);
    // Into loopback with nothing asserted: CTS, DSR and DCD fall.
    uart.write(NOW, MCR, 0x10);
    assert_eq!(uart.read(NOW, IIR), 0x00);
    assert_eq!(uart.read(NOW, MSR), 0x0b);
    assert_eq!(uart.read(NOW, MSR), 0x00);
    // The ring indicator counts when it ends.
    uart.write(NOW, MCR, 0x14);
    assert_eq!(uart.read(NOW, MSR), 0x40);
    uart.write(NOW, MCR, 0x10);
    assert_eq!(uart.read(NOW, MSR), 0x04);
    uart.write(NOW, MCR, OUT2);
    assert!(uart.irq());
    assert_eq!(uart.read(NOW, MSR), 0xbb);
    assert!(!uart.irq());
}

#[test]
fn fifo_control_clears_each_fifo_and_changing_the_mode_clears_both() {
    let full = |fcr: u8| {
        let mut uart = uart(&[(FCR, 0x01), (DATA, b'a')]);
        assert_eq!(uart.give_input(NOW, b"b"), 1);
        uart.write(NOW, FCR, fcr);
        (uart.read(NOW, LSR) & 0x01 != 0, uart.has_output())
    };
    assert_eq!(full(0x01), (true, true));
    assert_eq!(full(0x03), (false, true));
    assert_eq!(full(0x05), (true, false));
    assert_eq!(full(0x00), (false, false));
}

#[test]
fn out2_gates_the_line() {
    let mut uart = uart(&[(IER, 0x02)]);
    assert!(!uart.irq());
    uart.write(NOW, MCR, OUT2);
    assert!(uart.irq());
}

proptest! {
    #[test]
    fn no_access_panics_and_no_byte_is_lost_or_made_up(
        accesses in prop::collection::vec((any::<u8>(), any::<u8>(), 0u8..4, any::<u64>()), 0..200)
    ) {
        let mut uart = uart(&[(FCR, 0x01)]);
        let mut written = Vec::new();
        let mut seen = Vec::new();
        for (offset, value, what, now) in accesses {
            let now = Tsc(now);
            match what {
                // Only data with the transmitter empty, so that the program may count on it.
                0 if uart.read(now, LSR) & 0x20 != 0 && uart.read(now, LCR) & 0x80 == 0
                    && uart.read(now, MCR) & 0x10 == 0 =>
                {
                    uart.write(now, DATA, value);
                    written.push(value);
                }
                1 if offset & 7 != 2 && offset & 7 != 0 => uart.write(now, offset, value),
                2 => {
                    uart.read(now, offset);
                }
                _ => {
                    uart.give_input(now, &[value, offset]);
                    uart.advance(now);
                    seen.extend(drain(&mut uart));
                }
            }
            uart.irq();
            uart.next_deadline();
        }
        seen.extend(drain(&mut uart));
        prop_assert_eq!(seen, written);
    }
}
