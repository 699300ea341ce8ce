//! What a guest may do to each device, one harness each: random accesses never panic and keep what the chip promises.
//! Property tests here, fuzz targets under cargo-bolero, proofs under Kani. And what is small enough to be looked at
//! whole.

use bolero::check;
use lamina_arch::addr::Gpa;
use lamina_arch::time::{Frequency, Tsc};
use lamina_devices::acpi_pm::AcpiPm;
use lamina_devices::atapi::{Answer, Cdrom};
use lamina_devices::fw_cfg::FwCfg;
use lamina_devices::hpet::Hpet;
use lamina_devices::i8042::I8042;
use lamina_devices::ide::{self, Ide};
use lamina_devices::ioapic::IoApic;
use lamina_devices::lapic::Lapic;
use lamina_devices::pci::{Functions, Pci};
use lamina_devices::pic::{self, Pic};
use lamina_devices::pit::{PIT_HZ, Pit};
use lamina_devices::rtc::Rtc;
use lamina_devices::uart::Uart;
use lamina_devices::vga::Vga;
use lamina_vmm::chipset::Key;
use lamina_vmm::dma::TRANSFER_MAX;

const HZ: Frequency = Frequency::from_hz(1_000_000_000);
const WIDTHS: [usize; 4] = [1, 2, 4, 8];
static MEDIUM: [u8; 10_000] = [0x5a; 10_000];

/// One access: what kind, where, the value, and how much later than the one before (by its size's order).
type Access = (u8, u16, u64, u8);

/// Time after `now`, by steps from one tick to half of all time.
fn later(now: &mut Tsc, order: u8) -> Tsc {
    now.0 = now.0.saturating_add(1u64 << (order % 64) >> 1);
    *now
}

fn accesses(mut device: impl FnMut(Access)) -> impl FnMut(&Vec<Access>) {
    move |all| all.iter().for_each(|&access| device(access))
}

#[test]
fn pit_accesses() {
    check!().with_type::<Vec<Access>>().for_each(|all| {
        let (mut pit, mut now) = (Pit::new(HZ, Tsc(0)), Tsc(0));
        for &(kind, offset, value, order) in all {
            let now = later(&mut now, order);
            let [offset, value] = [offset.to_le_bytes()[0] & 3, value.to_le_bytes()[0]];
            match kind % 6 {
                0 => drop(pit.read(now, offset)),
                1 => drop(pit.read_control(now)),
                2 => pit.write_control(now, value),
                3 => drop(pit.take_edge()),
                _ => pit.write(now, offset, value),
            }
            pit.advance(now);
            if let Some(deadline) = pit.next_deadline() {
                assert!(deadline > now, "a deadline is not in the past: {deadline:?} {now:?}");
            }
        }
    });
}

#[test]
fn pic_accesses() {
    check!().with_type::<Vec<Access>>().for_each(|all| {
        let mut pic = Pic::new(0);
        for &(kind, place, value, _) in all {
            let which = if place & 1 == 0 { pic::Which::Master } else { pic::Which::Slave };
            let byte = value.to_le_bytes()[0];
            match kind % 6 {
                0 => pic.set_line(byte & 15, place & 2 != 0),
                1 => pic.write_elcr(which, byte),
                2 => drop(pic.read(which, place & 2 != 0)),
                3 if pic.intr() => drop(pic.acknowledge()),
                _ => pic.write(which, place & 2 != 0, byte),
            }
            assert_eq!(pic.read_elcr(pic::Which::Master) & 0b111, 0, "the fixed inputs are edge-triggered");
        }
    });
}

#[test]
fn rtc_accesses() {
    check!().with_type::<(u64, Vec<Access>)>().for_each(|(seconds, all)| {
        let (mut rtc, mut now) = (Rtc::new(HZ, Tsc(0), *seconds, 0, 0), Tsc(0));
        for &(kind, index, value, order) in all {
            let now = later(&mut now, order);
            rtc.write_index(index.to_le_bytes()[0] & if index & 0x100 == 0 { 0x0f } else { 0xff });
            if kind % 3 == 0 {
                let _ = rtc.read_data(now);
            } else {
                rtc.write_data(now, value.to_le_bytes()[0]);
            }
            rtc.advance(now);
            assert!(rtc.next_deadline().is_none_or(|deadline| deadline > now));
        }
    });
}

#[test]
fn uart_accesses() {
    check!().with_type::<Vec<Access>>().for_each(|all| {
        let (mut uart, mut now) = (Uart::new(HZ), Tsc(0));
        for &(kind, offset, value, order) in all {
            let now = later(&mut now, order);
            let (offset, bytes) = (offset.to_le_bytes()[0] & 7, value.to_le_bytes());
            match kind % 5 {
                0 => drop(uart.read(now, offset)),
                1 => assert!(uart.give_input(now, &bytes) <= bytes.len()),
                2 => uart.take_output(&mut |byte| byte & 1 == 0),
                _ => uart.write(now, offset, bytes[0]),
            }
            uart.advance(now);
            if let Some(quiet) = uart.quiet_line_status() {
                assert_eq!(uart.clone().read(now, 5), quiet, "what is told quickly is what a read tells");
            }
        }
    });
}

#[test]
fn lapic_accesses() {
    check!().with_type::<Vec<Access>>().for_each(|all| {
        let (mut lapic, mut now) = (Lapic::new(0, HZ), Tsc(0));
        for &(kind, place, value, order) in all {
            let now = later(&mut now, order);
            let offset = u64::from(place & 0x3f) << 4;
            let width = WIDTHS[usize::from(place >> 8) & 3];
            let register = 0x800 + u32::from(place & 0x3f);
            match kind % 8 {
                0 => lapic.read(now, offset + u64::from(place >> 12), &mut [0; 8][..width]),
                1 => drop(lapic.read_msr(now, register)),
                2 => drop(lapic.write_msr(now, register, value)),
                3 => drop(lapic.write_msr(now, 0x1b, 0xfee0_0100 | value & 0xc00)),
                4 => assert_eq!(lapic.set_cr8(value).is_ok(), value < 16),
                5 => {
                    let told = lapic.deliverable();
                    assert_eq!(lapic.acknowledge(now), told);
                }
                6 => lapic.set_lint0(value & 1 != 0),
                _ => drop(lapic.write(now, offset, &value.to_le_bytes()[..width])),
            }
            lapic.advance(now);
            assert!(lapic.deliverable().is_none_or(|vector| vector >= 16), "a vector that is an exception's");
            assert!(lapic.cr8() < 16);
        }
    });
}

#[test]
fn ioapic_accesses() {
    check!().with_type::<Vec<Access>>().for_each(|all| {
        let mut ioapic = IoApic::new();
        for &(kind, place, value, _) in all {
            let offset = u64::from(place & 0xff);
            let width = WIDTHS[usize::from(place >> 8) & 3];
            match kind % 8 {
                0 => ioapic.read(offset, &mut [0; 8][..width]),
                1 => ioapic.write(0, &[value.to_le_bytes()[0] & 0x3f, 0, 0, 0]),
                2 => ioapic.write(0x10, &value.to_le_bytes()[..4]),
                3 | 4 => ioapic.set_line(value.to_le_bytes()[0] % 24, place & 1 != 0),
                5 => ioapic.eoi(value.to_le_bytes()[0]),
                6 => ioapic.resend(),
                _ => ioapic.write(offset, &value.to_le_bytes()[..width]),
            }
            for _ in 0..64 {
                let Some(message) = ioapic.take_message() else { break };
                assert!(message.pin < 24);
                ioapic.accepted(&message);
            }
            assert_eq!(ioapic.take_message(), None, "accepted messages end");
        }
    });
}

#[test]
fn hpet_accesses() {
    check!().with_type::<Vec<Access>>().for_each(|all| {
        let (mut hpet, mut now) = (Hpet::new(HZ, Tsc(0)), Tsc(0));
        for &(kind, place, value, order) in all {
            let now = later(&mut now, order);
            let offset = if place & 0x8000 == 0 { u64::from(place & 0x3f) << 3 } else { u64::from(place & 0x3ff) };
            let width = WIDTHS[usize::from(place >> 10) & 3];
            match kind % 4 {
                0 => hpet.read(now, offset, &mut [0; 8][..width]),
                1 => drop(hpet.take_edges()),
                _ => hpet.write(now, offset, &value.to_le_bytes()[..width]),
            }
            hpet.advance(now);
            assert!(hpet.next_deadline().is_none_or(|deadline| deadline > now));
            assert_eq!(hpet.take_edges() & !7, 0, "there are three timers");
        }
    });
}

#[test]
fn ide_accesses() {
    check!().with_type::<Vec<Access>>().for_each(|all| {
        let mut ide = Ide::new(Some(Cdrom::new(&MEDIUM)));
        for &(kind, place, value, _) in all {
            let which = if place & 0x100 == 0 { ide::Which::Secondary } else { ide::Which::Primary };
            let (register, bytes) = (place.to_le_bytes()[0] & 7, value.to_le_bytes());
            match kind % 10 {
                0 => drop(ide.read(which, register)),
                1 => {
                    let ready = ide.ready(which);
                    let mut data = vec![0; ready.min(4096)];
                    ide.read_data(which, &mut data);
                    assert!(ide.ready(which) <= 0x1_0000);
                }
                2 => ide.write_data(which, &bytes[..2 << (place & 1)]),
                3 => ide.write_control(which, bytes[0]),
                4 => drop(ide.read_bus_master(place)),
                5 => ide.write_bus_master(place, bytes[0]),
                6 => {
                    // A whole packet, so that more than the first state is seen.
                    ide.write(which, 7, 0xa0);
                    ide.write_data(which, &[[0x28, 0x43, 0x4a, 0x12, 0x25, 0x03][usize::from(bytes[0]) % 6], bytes[1]]);
                    bytes.chunks(2).for_each(|word| ide.write_data(which, word));
                    ide.write_data(which, &bytes[..2]);
                }
                _ => ide.write(which, register, bytes[0]),
            }
            let _ = (ide.irq(which), ide.read_alternate_status(which));
        }
    });
}

#[test]
fn atapi_packets() {
    check!().with_type::<Vec<[u8; 12]>>().for_each(|packets| {
        let mut drive = Cdrom::new(&MEDIUM);
        for packet in packets {
            let mut packet = *packet;
            packet[0] = [packet[0], 0x28, 0xa8, 0x12, 0x43, 0x5a, 0x46][usize::from(packet[11]) % 7];
            match drive.command(&packet) {
                Ok(Answer::Bytes { bytes, length }) => assert!(length <= bytes.len()),
                Ok(Answer::Medium { start, length }) => {
                    let end = start.checked_add(length).unwrap();
                    assert!(end <= (MEDIUM.len() as u64).next_multiple_of(2048), "outside of the medium");
                }
                Ok(Answer::Done) | Err(_) => {}
            }
        }
    });
}

#[test]
fn fw_cfg_accesses() {
    check!().with_type::<Vec<Access>>().for_each(|all| {
        let mut device = FwCfg::new(64 << 20, &[]);
        for &(kind, place, value, _) in all {
            let bytes = value.to_le_bytes();
            match kind % 5 {
                0 => device.select(place & 0x403f),
                1 => drop(device.read_data()),
                2 => device.read_address(bytes[0] & 7, &mut [0; 8][..WIDTHS[usize::from(place) & 3]]),
                3 => drop(device.write_address(bytes[0] & 7, &bytes[..WIDTHS[usize::from(place) & 3]])),
                _ => {
                    let mut data = [0; TRANSFER_MAX];
                    if let Some(request) = device.dma_request(&mut data) {
                        assert!(request.length <= TRANSFER_MAX);
                        // The command: what the guest's memory holds is its own.
                        let filled: Vec<u8> = (0..request.length).map(|n| bytes[n % 8]).collect();
                        device.dma_complete((place & 1 == 0).then_some(&filled));
                    }
                }
            }
        }
    });
}

#[test]
fn vga_accesses() {
    check!().with_type::<Vec<Access>>().for_each(|all| {
        let (mut vga, mut now) = (Vga::new(HZ, Tsc(0)), Tsc(0));
        for &(kind, place, value, order) in all {
            let now = later(&mut now, order);
            let (port, byte) = (0x3b0 + (place & 0x3f), value.to_le_bytes()[0]);
            match kind % 5 {
                0 => drop(vga.read(now, port)),
                1 => drop(vga.read_memory(value >> 8 & 0x3_ffff)),
                2 => drop(vga.write_memory(value >> 8 & 0x3_ffff, byte)),
                _ => drop(vga.write(port, byte)),
            }
            if kind & 0x80 != 0
                && let Some(lines) = vga.screen()
            {
                assert!(lines.iter().all(|line| line.chars().all(|c| !c.is_control())), "{lines:?}");
            }
        }
    });
}

#[test]
fn pci_accesses() {
    check!().with_type::<Vec<Access>>().for_each(|all| {
        let mut pci = Pci::new(Functions { ide: true, firmware: true });
        let identity = |pci: &mut Pci| {
            pci.write_address(0x8000_0000);
            let mut id = [0; 4];
            pci.read_data(0, &mut id);
            id
        };
        let first = identity(&mut pci);
        for &(kind, place, value, _) in all {
            let offset = place.to_le_bytes()[0] & 3;
            let width = WIDTHS[usize::from(place >> 8) % 3].min(4 - usize::from(offset));
            let [a, b, c, d, e, ..] = value.to_le_bytes();
            pci.write_address(0x8000_0000 | u32::from(c) << 8 & 0x0b00 | u32::from(a) & 0xfc);
            match kind % 3 {
                0 => pci.read_data(offset, &mut [0; 4][..width]),
                1 => pci.write_address(u32::from_le_bytes([a, b, c, d])),
                _ => pci.write_data(offset, &[b, c, d, e][..width]),
            }
            let _ = (pci.attributes(Gpa(value & 0xf_ffff)), pci.bus_master_ports(), pci.power_ports());
            assert!(pci.route(a & 3).is_none_or(|line| line < 16));
        }
        assert_eq!(identity(&mut pci), first, "identifiers cannot be written");
    });
}

#[test]
fn keyboard_controller_accesses() {
    check!().with_type::<Vec<Access>>().for_each(|all| {
        let (mut device, mut now) = (I8042::new(HZ), Tsc(0));
        accesses(|(kind, _, value, order)| match kind % 7 {
            0 => drop(device.read_data()),
            5 => drop(device.type_key(Key::Char(char::from(value.to_le_bytes()[0])))),
            6 => {
                device.advance(later(&mut now, order));
                assert!(device.next_deadline().is_none_or(|deadline| deadline > now));
            }
            1 => drop(device.read_status()),
            2 => drop(device.write_command(value.to_le_bytes()[0])),
            3 => drop(device.write_fast_a20(value.to_le_bytes()[0])),
            _ => drop(device.write_data(value.to_le_bytes()[0])),
        })(all);
    });
}

#[test]
fn power_management_accesses() {
    check!().with_type::<Vec<Access>>().for_each(|all| {
        let (mut device, mut now) = (AcpiPm::new(HZ, Tsc(0)), Tsc(0));
        for &(kind, place, value, order) in all {
            let now = later(&mut now, order);
            let (offset, width) = (place.to_le_bytes()[0] & 15, WIDTHS[usize::from(place >> 8) % 3]);
            if kind % 3 == 0 {
                device.read(now, offset, &mut [0; 4][..width]);
            } else {
                let _ = device.write(now, offset, &value.to_le_bytes()[..width]);
            }
            device.advance(now);
            assert!(device.next_deadline().is_none_or(|deadline| deadline > now));
        }
    });
}

/// Every mode with every count of 8 bits: the output's first change, or its period, is what the data sheet says.
#[test]
fn every_pit_mode_and_8_bit_count() {
    let tick = Frequency::from_hz(PIT_HZ);
    for mode in 0..8u8 {
        for count in 0..=255u8 {
            let mut pit = Pit::new(tick, Tsc(0));
            pit.write(Tsc(0), 3, 0x10 | mode << 1);
            pit.write(Tsc(0), 0, count);
            let n = if count == 0 { 0x1_0000 } else { u64::from(count) };
            let edges: Vec<u64> = (1..4 * 256 + 8).filter(|&t| pit.out0(Tsc(t)) && !pit.out0(Tsc(t - 1))).collect();
            // In ticks after the write; the first of them loads the count.
            match mode {
                0 if n < 512 => assert_eq!(edges, [n + 1], "mode 0, count {n}"),
                // One-shots wait for a gate that is tied high.
                1 | 5 => assert!(edges.is_empty(), "mode {mode}, count {n}"),
                // A count of 1 is not allowed: it need only do no harm.
                2 | 3 | 6 | 7 if (2..300).contains(&n) => {
                    assert!(edges.len() >= 3, "mode {mode}, count {n}: {edges:?}");
                    assert!(edges.windows(2).all(|pair| pair[1] - pair[0] == n), "mode {mode}, count {n}: {edges:?}");
                }
                4 if n < 512 => assert_eq!(edges, [n + 2], "mode 4, count {n}"),
                _ => {}
            }
        }
    }
}
