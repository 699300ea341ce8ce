use super::channel::{STATUS_BUSY, STATUS_DATA, STATUS_ERROR};
use super::*;
use crate::atapi;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

const CD: Which = Which::Secondary;

fn ide() -> Ide {
    let image: Vec<u8> = (0..20 * 2048usize).map(|n| (n / 2048).to_le_bytes()[0] + 1).collect();
    Ide::new(Some(Cdrom::new(image.leak())))
}

fn words(ide: &mut Ide, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    bytes.chunks_mut(2).for_each(|word| ide.read_data(CD, word));
    bytes
}

/// Sends a packet as a driver does, with `limit` bytes per block.
fn packet(ide: &mut Ide, limit: u16, bytes: &[u8]) {
    let [low, high] = limit.to_le_bytes();
    for (register, value) in [(6, 0xa0), (1, 0), (4, low), (5, high), (7, 0xa0)] {
        ide.write(CD, register, value);
    }
    assert_eq!((ide.read(CD, 7) & (STATUS_DATA | STATUS_ERROR), ide.read(CD, 2) & 3), (STATUS_DATA, 1));
    assert!(!ide.irq(CD), "the request for the packet does not interrupt");
    let mut packet = [0; 12];
    packet[..bytes.len()].copy_from_slice(bytes);
    packet.chunks(2).for_each(|word| ide.write_data(CD, word));
}

/// Reads the data phase of a packet command: the sizes of its blocks, and all bytes.
fn data(ide: &mut Ide) -> (Vec<usize>, Vec<u8>) {
    let (mut blocks, mut bytes) = (Vec::new(), Vec::new());
    loop {
        assert!(ide.irq(CD));
        let status = ide.read(CD, 7);
        assert!(!ide.irq(CD), "reading the status takes the interrupt back");
        assert_eq!(status & (STATUS_BUSY | STATUS_ERROR), 0);
        if status & STATUS_DATA == 0 {
            assert_eq!(ide.read(CD, 2) & 3, 3);
            return (blocks, bytes);
        }
        assert_eq!(ide.read(CD, 2) & 3, 2);
        let length = usize::from(u16::from_le_bytes([ide.read(CD, 4), ide.read(CD, 5)]));
        blocks.push(length);
        bytes.extend(words(ide, length));
    }
}

#[test]
fn a_reset_shows_the_signature_of_a_packet_device() {
    let mut ide = ide();
    ide.write(CD, 4, 0x55);
    ide.write_control(CD, 0x04);
    assert_eq!(ide.read_alternate_status(CD), STATUS_BUSY);
    ide.write_control(CD, 0x00);
    let registers: Vec<u8> = (1..6).map(|register| ide.read(CD, register)).collect();
    assert_eq!(registers, [1, 1, 1, 0x14, 0xeb]);
    assert_eq!(ide.read(CD, 7), 0, "not ready, as a packet device is");
    assert!(!ide.irq(CD));
}

#[test]
fn a_drive_that_is_not_there_reads_as_zero_and_takes_nothing() {
    let mut ide = ide();
    for (which, device) in [(Which::Primary, 0xa0), (Which::Primary, 0xb0), (CD, 0xb0)] {
        for (register, value) in [(6, device), (2, 0x55), (3, 0xaa), (7, 0xec), (7, 0xa1)] {
            ide.write(which, register, value);
        }
        assert!((1..8).all(|register| ide.read(which, register) == 0), "{which:?} {device:#x}");
        assert_eq!(ide.read_alternate_status(which), 0);
        assert!(!ide.irq(which));
    }
    // The registers are both drives' alike.
    ide.write(CD, 6, 0xa0);
    assert_eq!((ide.read(CD, 2), ide.read(CD, 3), ide.read(CD, 6)), (0x55, 0xaa, 0xa0));
}

#[test]
fn identify_device_is_aborted_and_identify_packet_device_answers() {
    let mut ide = ide();
    ide.write(CD, 6, 0xa0);
    ide.write(CD, 7, 0xec);
    assert!(ide.irq(CD));
    assert_eq!((ide.read(CD, 7) & 0x89, ide.read(CD, 1), ide.read(CD, 4), ide.read(CD, 5)), (1, 4, 0x14, 0xeb));
    ide.write(CD, 7, 0xa1);
    assert!(ide.irq(CD));
    assert_eq!(ide.read(CD, 7) & 0x89, STATUS_DATA);
    assert_eq!(words(&mut ide, 512), atapi::Cdrom::identify());
    assert_eq!(ide.read(CD, 7) & 0x89, 0);
    assert!(!ide.irq(CD), "the end of the data does not interrupt");
}

#[test]
fn a_read_comes_in_blocks_of_the_hosts_size_and_interrupts_for_each() {
    let mut ide = ide();
    packet(&mut ide, 2048, &[0x28, 0, 0, 0, 0, 3, 0, 0, 2]);
    let (blocks, bytes) = data(&mut ide);
    assert_eq!(blocks, [2048, 2048]);
    assert!(bytes[..2048].iter().all(|&byte| byte == 4) && bytes[2048..].iter().all(|&byte| byte == 5));
    packet(&mut ide, 3001, &[0x28, 0, 0, 0, 0, 3, 0, 0, 2]);
    assert_eq!(data(&mut ide).0, [3000, 1096], "blocks are even");
    packet(&mut ide, 0, &[0xa8, 0, 0, 0, 0, 0, 0, 0, 0, 20]);
    assert_eq!(data(&mut ide).0, [40960]);
    packet(&mut ide, 0xffff, &[0x28, 0, 0, 0, 0, 0, 0, 0, 20]);
    assert_eq!(data(&mut ide).0, [40960]);
}

#[test]
fn short_answers_and_none() {
    let mut ide = ide();
    packet(&mut ide, 8, &[0x25]);
    assert_eq!(data(&mut ide), (vec![8], vec![0, 0, 0, 19, 0, 0, 8, 0]));
    packet(&mut ide, 0, &[0x00]);
    assert_eq!(data(&mut ide), (vec![], vec![]));
}

#[test]
fn an_error_shows_its_sense_key() {
    let mut ide = ide();
    packet(&mut ide, 2048, &[0x28, 0, 0, 0, 0, 20, 0, 0, 1]);
    assert!(ide.irq(CD));
    assert_eq!((ide.read(CD, 1), ide.read(CD, 2) & 3), (0x50, 3));
    assert_eq!(ide.read(CD, 7) & (STATUS_ERROR | STATUS_DATA), STATUS_ERROR);
    packet(&mut ide, 18, &[0x03, 0, 0, 0, 18]);
    assert_eq!(data(&mut ide).1[12], 0x21);
}

#[test]
fn dma_is_refused_and_modes_without_it_are_not() {
    let mut ide = ide();
    for (register, value) in [(6, 0xa0), (1, 1), (7, 0xa0)] {
        ide.write(CD, register, value);
    }
    assert_eq!(ide.read(CD, 7) & 0x89, STATUS_ERROR);
    for (mode, error) in [(0x0c, 0), (0x08, 0), (0x00, 0), (0x22, STATUS_ERROR), (0x42, STATUS_ERROR)] {
        for (register, value) in [(1, 0x03), (2, mode), (7, 0xef)] {
            ide.write(CD, register, value);
        }
        assert_eq!(ide.read(CD, 7) & STATUS_ERROR, error, "mode {mode:#x}");
    }
}

#[test]
fn interrupts_can_be_kept_back() {
    let mut ide = ide();
    ide.write_control(CD, 0x02);
    packet(&mut ide, 0, &[0x00]);
    assert!(!ide.irq(CD));
    ide.write_control(CD, 0x00);
    assert!(ide.irq(CD));
    assert_eq!(ide.read_alternate_status(CD) & STATUS_BUSY, 0);
    assert!(ide.irq(CD), "the alternate status takes nothing back");
}

#[test]
fn a_new_command_ends_the_one_before() {
    let mut ide = ide();
    packet(&mut ide, 2048, &[0x28, 0, 0, 0, 0, 3, 0, 0, 2]);
    words(&mut ide, 100);
    packet(&mut ide, 2048, &[0x28, 0, 0, 0, 0, 7, 0, 0, 1]);
    assert_eq!(data(&mut ide), (vec![2048], vec![8; 2048]));
}

#[test]
fn doublewords_from_the_data_register_are_two_words() {
    let mut ide = ide();
    packet(&mut ide, 2048, &[0x25]);
    let mut bytes = [0; 8];
    ide.read_data(CD, &mut bytes[..4]);
    ide.read_data(CD, &mut bytes[4..]);
    assert_eq!(bytes, [0, 0, 0, 19, 0, 0, 8, 0]);
    ide.read_data(CD, &mut bytes);
    assert_eq!(bytes, [0; 8], "nothing is left");
}

#[test]
fn the_bus_master_keeps_its_registers() {
    let mut ide = ide();
    for (offset, value, kept) in [(0, 0xff, 0x09), (2, 0xff, 0x60), (4, 0xff, 0xfc), (13, 0x5a, 0x5a), (1, 0xff, 0)] {
        ide.write_bus_master(offset, value);
        assert_eq!(ide.read_bus_master(offset), kept, "port {offset}");
    }
    assert_eq!(ide.read_bus_master(10), 0);
}

proptest! {
    #[test]
    fn no_access_panics(accesses in prop::collection::vec(
        (0u8..8, any::<bool>(), 0u8..10, any::<u32>(), prop::sample::select(vec![1usize, 2, 4])), 0..300)) {
        let mut ide = ide();
        for (what, second, register, value, width) in accesses {
            let which = if second { Which::Secondary } else { Which::Primary };
            let bytes = value.to_le_bytes();
            match what {
                0 => { ide.read(which, register); }
                1 => ide.write(which, register, bytes[0]),
                2 => ide.write(CD, 7, [0xa0, 0xa1, 0xec, 0x90, 0x08, 0xef][usize::from(bytes[0] % 6)]),
                3 => ide.write_data(CD, &bytes[..width]),
                4 => ide.read_data(CD, &mut [0; 4][..width]),
                5 => ide.write_control(which, bytes[0]),
                6 => ide.write_bus_master(u16::from(register) * 3, bytes[0]),
                _ => { ide.read_bus_master(u16::from(register) * 7); }
            }
            ide.irq(which);
        }
    }
}

#[test]
fn what_is_ready_can_be_read_at_once() {
    let read = [0xa8, 0, 0, 0, 0, 2, 0, 0, 0, 2];
    let (mut one, mut other) = (ide(), ide());
    assert_eq!(one.ready(CD), 0);
    for ide in [&mut one, &mut other] {
        packet(ide, 2048, &read);
        assert_eq!(ide.ready(CD), 2048);
    }
    let mut block = vec![0; 2048];
    one.read_data(CD, &mut block);
    assert_eq!(block, words(&mut other, 2048));
    assert!(one.irq(CD) && one == other, "the next block is ready, and says so");
}
