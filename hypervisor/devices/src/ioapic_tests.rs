use super::*;
use proptest::prelude::*;

fn read(ioapic: &mut IoApic, index: u8) -> u32 {
    ioapic.write(0x00, &[index, 0, 0, 0]);
    let mut data = [0; 4];
    ioapic.read(0x10, &mut data);
    u32::from_le_bytes(data)
}

fn write(ioapic: &mut IoApic, index: u8, value: u32) {
    ioapic.write(0x00, &[index, 0, 0, 0]);
    ioapic.write(0x10, &value.to_le_bytes());
}

/// An I/O APIC whose `pin` has the low half `entry`.
fn with(pin: u8, entry: u32) -> IoApic {
    let mut ioapic = IoApic::new();
    write(&mut ioapic, 0x10 + 2 * pin, entry);
    ioapic
}

/// Takes the next message and accepts it; its vector.
fn accept(ioapic: &mut IoApic) -> Option<u8> {
    let message = ioapic.take_message()?;
    ioapic.accepted(&message);
    Some(message.vector)
}

const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const ACTIVE_LOW: u32 = 1 << 13;
const REMOTE_IRR: u32 = 1 << 14;

#[test]
fn id_version_and_arbitration() {
    let mut ioapic = IoApic::new();
    assert_eq!(read(&mut ioapic, 0x01), 0x0017_0011);
    write(&mut ioapic, 0x01, 0xffff_ffff);
    assert_eq!(read(&mut ioapic, 0x01), 0x0017_0011);
    write(&mut ioapic, 0x00, 0xffff_ffff);
    assert_eq!(read(&mut ioapic, 0x00), 0x0f00_0000);
    assert_eq!(read(&mut ioapic, 0x02), 0x0f00_0000);
    assert_eq!(read(&mut ioapic, 0x40), 0);
}

#[test]
fn the_index_register_reads_back_at_any_width() {
    let mut ioapic = IoApic::new();
    ioapic.write(0x00, &[0x12]);
    let mut byte = [0];
    ioapic.read(0x00, &mut byte);
    assert_eq!(byte, [0x12]);
    let mut wide = [0xff; 8];
    ioapic.read(0x00, &mut wide);
    assert_eq!(wide, [0x12, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn entries_are_masked_after_reset_and_keep_their_writable_bits() {
    let mut ioapic = IoApic::new();
    for pin in 0..PINS {
        assert_eq!((read(&mut ioapic, 0x10 + 2 * pin), read(&mut ioapic, 0x11 + 2 * pin)), (MASKED, 0));
    }
    write(&mut ioapic, 0x10 + 2 * 23, 0xffff_ffff);
    write(&mut ioapic, 0x11 + 2 * 23, 0xffff_ffff);
    assert_eq!(read(&mut ioapic, 0x10 + 2 * 23), 0x0001_afff);
    assert_eq!(read(&mut ioapic, 0x11 + 2 * 23), 0xff00_0000);
}

#[test]
fn an_edge_sends_one_message() {
    let mut ioapic = with(4, 0x0934);
    write(&mut ioapic, 0x11 + 2 * 4, 0x0300_0000);
    ioapic.set_line(4, true);
    let message = ioapic.take_message().unwrap();
    assert_eq!(
        message,
        Message {
            pin: 4,
            vector: 0x34,
            mode: DeliveryMode::LowestPriority,
            logical: true,
            level: false,
            destination: 3
        }
    );
    ioapic.accepted(&message);
    assert_eq!(read(&mut ioapic, 0x10 + 2 * 4), 0x0934, "no remote IRR for an edge");
    ioapic.set_line(4, true);
    assert_eq!(ioapic.take_message(), None);
    ioapic.set_line(4, false);
    assert_eq!(ioapic.take_message(), None);
    ioapic.set_line(4, true);
    assert_eq!(accept(&mut ioapic), Some(0x34));
}

#[test]
fn an_edge_at_a_masked_input_is_lost_a_level_is_not() {
    for (entry, expected) in [(0x34, None), (0x34 | LEVEL, Some(0x34))] {
        let mut ioapic = with(4, entry | MASKED);
        ioapic.set_line(4, true);
        write(&mut ioapic, 0x10 + 2 * 4, entry);
        assert_eq!(accept(&mut ioapic), expected);
    }
}

#[test]
fn a_level_waits_for_its_eoi_and_then_comes_again() {
    let mut ioapic = with(9, 0x50 | LEVEL);
    ioapic.set_line(9, true);
    assert_eq!(accept(&mut ioapic), Some(0x50));
    assert_eq!(read(&mut ioapic, 0x10 + 2 * 9), 0x50 | LEVEL | REMOTE_IRR);
    ioapic.set_line(9, false);
    ioapic.set_line(9, true);
    assert_eq!(accept(&mut ioapic), None);
    ioapic.eoi(0x51);
    assert_eq!(accept(&mut ioapic), None);
    ioapic.eoi(0x50);
    assert_eq!(accept(&mut ioapic), Some(0x50));
    ioapic.set_line(9, false);
    ioapic.eoi(0x50);
    assert_eq!(accept(&mut ioapic), None);
    assert_eq!(read(&mut ioapic, 0x10 + 2 * 9), 0x50 | LEVEL);
}

#[test]
fn a_level_that_no_one_accepted_is_offered_again_when_asked() {
    let mut ioapic = with(9, 0x50 | LEVEL);
    ioapic.set_line(9, true);
    assert!(ioapic.take_message().is_some());
    assert_eq!(ioapic.take_message(), None);
    ioapic.resend();
    assert_eq!(accept(&mut ioapic), Some(0x50));
    ioapic.resend();
    assert_eq!(accept(&mut ioapic), None);
}

#[test]
fn polarity_turns_the_input_round() {
    let mut ioapic = with(9, 0x50 | LEVEL | ACTIVE_LOW);
    assert_eq!(accept(&mut ioapic), Some(0x50));
    ioapic.set_line(9, true);
    ioapic.eoi(0x50);
    assert_eq!(accept(&mut ioapic), None);
    let mut ioapic = with(5, 0x35 | ACTIVE_LOW);
    ioapic.set_line(5, true);
    assert_eq!(accept(&mut ioapic), None);
    ioapic.set_line(5, false);
    assert_eq!(accept(&mut ioapic), Some(0x35));
}

#[test]
fn changing_to_edge_and_back_ends_a_level_interrupt() {
    let mut ioapic = with(9, 0x50 | LEVEL);
    ioapic.set_line(9, true);
    assert_eq!(accept(&mut ioapic), Some(0x50));
    write(&mut ioapic, 0x10 + 2 * 9, 0x50 | MASKED);
    assert_eq!(read(&mut ioapic, 0x10 + 2 * 9), 0x50 | MASKED);
    write(&mut ioapic, 0x10 + 2 * 9, 0x50 | LEVEL);
    assert_eq!(accept(&mut ioapic), Some(0x50));
}

#[test]
fn remote_irr_cannot_be_written() {
    let mut ioapic = with(9, 0x50 | LEVEL | REMOTE_IRR | 1 << 12);
    assert_eq!(read(&mut ioapic, 0x10 + 2 * 9), 0x50 | LEVEL);
}

#[test]
fn extint_and_nmi() {
    let mut ioapic = with(0, 0x700);
    assert!(ioapic.extint_enabled());
    ioapic.set_line(0, true);
    assert_eq!(ioapic.take_message(), None, "the 8259 holds the vector");
    write(&mut ioapic, 0x10, 0x700 | MASKED);
    assert!(!ioapic.extint_enabled());
    let mut ioapic = with(7, 0x400);
    ioapic.set_line(7, true);
    assert_eq!(ioapic.take_message().map(|message| message.mode), Some(DeliveryMode::Nmi));
}

proptest! {
    #[test]
    fn no_access_panics_and_messages_end(
        steps in prop::collection::vec((0u8..6, any::<u8>(), any::<u64>(), 1usize..=8, any::<bool>()), 0..200)
    ) {
        let mut ioapic = IoApic::new();
        for (what, pin, value, width, flag) in steps {
            let mut data = value.to_le_bytes();
            match what {
                0 => ioapic.set_line(pin, flag),
                1 => ioapic.set_line(pin % PINS, flag),
                2 => ioapic.eoi(pin),
                3 => ioapic.read(value & 0xfff, &mut data[..width]),
                4 => write(&mut ioapic, 0x10 + pin % 48, (value & 0xffff_ffff) as u32),
                _ => ioapic.write(if flag { value & 0xfff } else { 0x10 }, &data[..width]),
            }
            let mut messages = 0;
            while let Some(message) = ioapic.take_message() {
                if flag {
                    ioapic.accepted(&message);
                }
                messages += 1;
            }
            prop_assert!(messages <= PINS);
        }
    }
}
