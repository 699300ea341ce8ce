use super::*;
use proptest::prelude::*;

const ALL: Functions = Functions { ide: true, firmware: true };

fn read<const N: usize>(pci: &mut Pci, address: u32, offset: u8) -> [u8; N] {
    pci.write_address(address);
    let mut data = [0; N];
    pci.read_data(offset, &mut data);
    data
}

fn read32(pci: &mut Pci, address: u32) -> u32 {
    u32::from_le_bytes(read(pci, address, 0))
}

fn write(pci: &mut Pci, address: u32, offset: u8, data: &[u8]) {
    pci.write_address(address);
    pci.write_data(offset, data);
}

#[test]
fn the_address_register_reads_back_without_its_reserved_bits() {
    let mut pci = Pci::new(Functions::default());
    pci.write_address(0xffff_ffff);
    assert_eq!(pci.read_address(), 0x80ff_fffc);
}

#[test]
fn both_bridges_answer_at_every_width_and_nothing_else_does() {
    let mut pci = Pci::new(Functions::default());
    assert_eq!(read32(&mut pci, 0x8000_0000), 0x1237_8086);
    assert_eq!(u16::from_le_bytes(read(&mut pci, 0x8000_0000, 2)), 0x1237);
    assert_eq!(read(&mut pci, 0x8000_0000, 3), [0x12]);
    assert_eq!(u16::from_le_bytes(read(&mut pci, 0x8000_0000, 1)), 0x3780);
    assert_eq!(read32(&mut pci, 0x8000_0008), 0x0600_0002);
    assert_eq!(read32(&mut pci, 0x8000_0800), 0x7000_8086);
    assert_eq!(u16::from_le_bytes(read(&mut pci, 0x8000_0808, 2)), 0x0601);
    assert_eq!(read(&mut pci, 0x8000_080c, 2), [0], "header type: one function, no bridge");
    for nobody in [0x8000_1000, 0x8000_0100, 0x8000_0900, 0x8000_0b00, 0x8001_0000, 0x0000_0000] {
        assert_eq!(read(&mut pci, nobody, 0), [0xff; 4], "{nobody:#x}");
    }
    assert_eq!(read(&mut pci, 0x8000_0000, 3), [0x12, 0xff], "beyond the data port");
}

#[test]
fn only_writable_bits_change() {
    let mut pci = Pci::new(Functions::default());
    write(&mut pci, 0x8000_0000, 0, &[0; 4]);
    assert_eq!(read32(&mut pci, 0x8000_0000), 0x1237_8086);
    write(&mut pci, 0x8000_0058, 1, &[0xff]);
    assert_eq!(read(&mut pci, 0x8000_0058, 0), [0x00, 0x77, 0x00, 0x00]);
    write(&mut pci, 0x8000_0010, 0, &[0xff; 4]);
    assert_eq!(read(&mut pci, 0x8000_0010, 0), [0; 4], "no base address register claims a size");
}

#[test]
fn all_functions_of_the_south_bridge_are_found() {
    let mut pci = Pci::new(ALL);
    assert_eq!(read32(&mut pci, 0x8000_0900), 0x7010_8086);
    assert_eq!(read32(&mut pci, 0x8000_0908), 0x0101_8000, "IDE with a bus master, both channels at ISA ports");
    assert_eq!(read32(&mut pci, 0x8000_0b00), 0x7113_8086);
    assert_eq!(read(&mut pci, 0x8000_080c, 2), [0x80], "header type: several functions");
    assert_eq!(read32(&mut pci, 0x8000_002c), 0x1100_1af4);
    let mut only_ide = Pci::new(Functions { ide: true, firmware: false });
    assert_eq!(read(&mut only_ide, 0x8000_080c, 2), [0x80]);
    assert_eq!(read32(&mut only_ide, 0x8000_0b00), u32::MAX);
    assert_eq!(read32(&mut only_ide, 0x8000_002c), 0);
}

#[test]
fn the_bus_master_has_16_ports_that_can_be_moved_and_switched_off() {
    let mut pci = Pci::new(ALL);
    assert_eq!(pci.bus_master_ports(), Some(0xc000));
    write(&mut pci, 0x8000_0920, 0, &[0xff; 4]);
    let size = !(read32(&mut pci, 0x8000_0920) & !3) + 1;
    assert_eq!((read32(&mut pci, 0x8000_0920) & 3, size), (1, 16));
    assert_eq!(pci.bus_master_ports(), None, "beyond 64 KiB there are no ports");
    write(&mut pci, 0x8000_0920, 0, &0xd041u32.to_le_bytes());
    assert_eq!(pci.bus_master_ports(), Some(0xd040));
    write(&mut pci, 0x8000_0904, 0, &[0x04]);
    assert_eq!(pci.bus_master_ports(), None);
    assert_eq!(Pci::new(Functions::default()).bus_master_ports(), None);
}

#[test]
fn the_attribute_map_by_segment() {
    let mut pci = Pci::new(ALL);
    let attributes = |pci: &Pci, gpa| pci.attributes(Gpa(gpa)).map(|a| (a.read, a.write));
    assert_eq!(attributes(&pci, 0xf_0000), Some((false, false)));
    // 0x59: the upper half only.
    write(&mut pci, 0x8000_0058, 1, &[0x33]);
    assert_eq!(attributes(&pci, 0xf_0000), Some((true, true)));
    assert_eq!(attributes(&pci, 0xf_ffff), Some((true, true)));
    assert_eq!(attributes(&pci, 0xe_ffff), Some((false, false)));
    // 0x5a: 0xc0000 below, 0xc4000 above.
    write(&mut pci, 0x8000_0058, 2, &[0x21]);
    assert_eq!(attributes(&pci, 0xc_0000), Some((true, false)));
    assert_eq!(attributes(&pci, 0xc_3fff), Some((true, false)));
    assert_eq!(attributes(&pci, 0xc_4000), Some((false, true)));
    assert_eq!(attributes(&pci, 0xc_8000), Some((false, false)));
    // 0x5f: 0xe8000 and 0xec000.
    write(&mut pci, 0x8000_005c, 3, &[0x10]);
    assert_eq!(attributes(&pci, 0xe_bfff), Some((false, false)));
    assert_eq!(attributes(&pci, 0xe_c000), Some((true, false)));
    assert_eq!(attributes(&pci, 0xb_ffff), None);
    assert_eq!(attributes(&pci, 0x10_0000), None);
}

#[test]
fn interrupt_lines_are_routed() {
    assert_eq!([0, 1, 2, 3].map(|pirq| Pci::new(Functions::default()).route(pirq)), [10, 10, 11, 11].map(Some));
    let mut pci = Pci::new(ALL);
    assert!((0..4).all(|pirq| pci.route(pirq).is_none()), "for firmware to route");
    write(&mut pci, 0x8000_0860, 0, &[0x0a, 0x0b, 0x8b, 0x08]);
    assert_eq!([0, 1, 2, 3].map(|pirq| pci.route(pirq)), [Some(10), Some(11), None, None]);
}

#[test]
fn configuration_space_in_memory_is_the_same_space() {
    let mut pci = Pci::new(ALL);
    let read = |pci: &Pci, offset| {
        let mut data = [0; 4];
        pci.read_memory(offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!((read(&pci, 0), read(&pci, 0x8000), read(&pci, 0x9000)), (0x1237_8086, 0x7000_8086, 0x7010_8086));
    assert_eq!(read(&pci, 0x9000 + 0xfe) >> 16, 0xffff, "no register beyond the first 256 bytes");
    for nobody in [0x1_0000, 0x9100, 0x10_0000, 0xfff_f000, u64::MAX] {
        assert_eq!(read(&pci, nobody), u32::MAX, "{nobody:#x}");
    }
    pci.write_memory(0x9020, &0xd041u32.to_le_bytes());
    pci.write_memory(0x90ff, &[0xff; 8]);
    pci.write_memory(0x1_0000, &[0; 4]);
    assert_eq!((pci.bus_master_ports(), read32(&mut pci, 0x8000_0920)), (Some(0xd040), 0xd041));
}

#[test]
fn power_management_can_be_moved_and_switched_off() {
    let mut pci = Pci::new(ALL);
    assert_eq!(pci.power_ports(), Some(0x600));
    write(&mut pci, 0x8000_0b40, 0, &0xb001u32.to_le_bytes());
    assert_eq!((read32(&mut pci, 0x8000_0b40), pci.power_ports()), (0xb001, Some(0xb000)));
    write(&mut pci, 0x8000_0b40, 0, &[0xff; 4]);
    assert_eq!((read32(&mut pci, 0x8000_0b40), pci.power_ports()), (0xffc1, Some(0xffc0)));
    write(&mut pci, 0x8000_0b80, 0, &[0]);
    assert_eq!(pci.power_ports(), None);
    write(&mut pci, 0x8000_0b80, 0, &[1]);
    assert_eq!(Pci::new(Functions::default()).power_ports(), None);
    assert_eq!(read32(&mut pci, 0x8000_0b58) & 1 << 25, 1 << 25, "system management mode needs no set-up");
    assert_eq!(read(&mut pci, 0x8000_0b80, 0), [1]);
}

proptest! {
    #[test]
    fn no_access_panics(accesses in prop::collection::vec((any::<u32>(), any::<u8>(), any::<u32>(), 1usize..=4,
                                                           any::<bool>(), any::<u64>()), 0..50)) {
        let mut pci = Pci::new(ALL);
        for (address, offset, value, width, store, gpa) in accesses {
            pci.write_address(0x8000_0000 | address);
            let mut data = value.to_le_bytes();
            if store {
                pci.write_data(offset, &data[..width]);
            } else {
                pci.read_data(offset, &mut data[..width]);
            }
            if store {
                pci.write_memory(gpa, &data[..width]);
            } else {
                pci.read_memory(gpa, &mut data[..width]);
            }
            pci.attributes(Gpa(gpa & 0x1f_ffff));
            pci.bus_master_ports();
            pci.power_ports();
            prop_assert!(pci.route(offset).is_none_or(|irq| irq < 16));
        }
    }
}
