//! What a PC has only where it is asked for.

use super::*;
use lamina_arch::addr::Hpa;
use lamina_vmm::dma;
use lamina_vmm::fake_memory::FakeMemory;
use lamina_vmm::frames::FramePool;
use lamina_vmm::memory::{Backing, GuestMemory};

#[test]
fn what_nobody_asked_for_is_not_there() {
    let mut rig = Rig::new();
    for port in [0x510, 0x511, 0x514, 0x1f7, 0x177, 0x3f6, 0x3c4, 0x3d4, 0xc000] {
        assert_eq!(rig.inb(port), 0xff, "{port:#x}");
    }
    assert_eq!(rig.pc.unclaimed(), 9);
    assert!(!rig.pc.mmio_read(Tsc(0), layout::HPET, &mut [0; 8]));
    assert!(!rig.pc.mmio_read(Tsc(0), Gpa(0xb_8000), &mut [0; 2]));
    assert_eq!(rig.pc.screen(), None);
    let mut rig = Rig::with_everything();
    for port in [0x511, 0x514, 0x1f7, 0x177, 0x3f6, 0x3c4, 0x3d4, 0xc000] {
        assert_ne!(rig.inb(port), 0xff, "{port:#x}");
    }
    assert_eq!(rig.pc.unclaimed(), 0);
}

#[test]
fn firmware_is_told_of_its_machine_by_port_and_by_dma() {
    let mut rig = Rig::with_everything();
    let now = Tsc(0);
    assert_eq!(rig.pc.port_write(now, 0x510, &[0, 0]), Signal::None);
    assert_eq!([0; 4].map(|_: u8| rig.inb(0x511)), *b"QEMU");
    assert_eq!(rig.pc.port_write(now, 0x514, &[0, 0, 0, 0]), Signal::None);
    assert_eq!(rig.pc.port_write(now, 0x518, &0x1000u32.to_be_bytes()), Signal::Dma);
    let mut data = [0; TRANSFER_MAX];
    let request = rig.pc.dma_request(&mut data).unwrap();
    assert_eq!((request.gpa, request.length), (Gpa(0x1000), 16));
    // Select the signature and read four bytes to 0x2000.
    rig.pc.dma_complete(Some(&[0, 0, 0, 0x0a, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0x20, 0]));
    let request = rig.pc.dma_request(&mut data).unwrap();
    assert_eq!((request.gpa, &data[..request.length]), (Gpa(0x2000), &b"QEMU"[..]));
}

#[test]
fn a_long_transfer_is_carried_out_part_by_part() {
    let mut rig = Rig::with_everything();
    let mut host = FakeMemory::new(16 << 20);
    let mut pool = FramePool::new(&[(Hpa(2 << 20), 14 << 20)]);
    let mut memory = GuestMemory::allocate(4 << 20, Backing::Eager, &mut pool, &mut host).unwrap();
    // 300,000 bytes of the file at key 0x20, to 2 MiB.
    let command = [[0, 0x20, 0, 0x0a], 300_000u32.to_be_bytes(), [0; 4], (2u32 << 20).to_be_bytes()].concat();
    memory.write(&mut host, Gpa(0x1000), &command).unwrap();
    memory.write(&mut host, Gpa(2 << 20), &[0xaa; 300_001]).unwrap();
    assert_eq!(rig.pc.port_write(Tsc(0), 0x518, &0x1000u32.to_be_bytes()), Signal::Dma);
    let parts = (0..10).take_while(|_| dma::serve(&mut rig.pc, &mut memory, &mut host) == dma::Served::Part).count();
    assert_eq!(parts, 2, "of 128 KiB each");
    let mut data = vec![0; 300_001];
    memory.read(&host, Gpa(2 << 20), &mut data).unwrap();
    assert_eq!((&data[..8], data[299_999], data[300_000]), (&0x3f8u64.to_le_bytes()[..], 0, 0xaa));
    memory.read(&host, Gpa(0x1000), &mut data[..4]).unwrap();
    assert_eq!(data[..4], [0; 4], "done, without an error");
    // Where there is no memory, the device is told so, and the guest by it.
    let command = [[0, 0x20, 0, 0x0a], 8u32.to_be_bytes(), [0; 4], 0xfff0_0000u32.to_be_bytes()].concat();
    memory.write(&mut host, Gpa(0x1000), &command).unwrap();
    assert_eq!(rig.pc.port_write(Tsc(0), 0x518, &0x1000u32.to_be_bytes()), Signal::Dma);
    assert_eq!(dma::serve(&mut rig.pc, &mut memory, &mut host), dma::Served::All);
    memory.read(&host, Gpa(0x1000), &mut data[..4]).unwrap();
    assert_eq!(data[..4], [0, 0, 0, 1]);
}

#[test]
fn the_cd_rom_drive_interrupts_on_line_15_and_its_data_port_is_wide() {
    let mut rig = Rig::with_everything();
    rig.program_pics(1 << 15 | 1 << 2);
    rig.quiet(&[(0x176, 0xa0), (0x177, 0xa1)]);
    assert_eq!(rig.pc.acknowledge(), Some(0x3f));
    assert_eq!(rig.inb(0x177), 0x58);
    let mut data = [0; 4];
    rig.pc.port_read(Tsc(0), 0x170, &mut data);
    assert_eq!(data, [0xc0, 0x85, 0, 0]);
    for _ in 0..127 {
        rig.pc.port_read(Tsc(0), 0x170, &mut data);
    }
    assert_eq!(rig.inb(0x177), 0x50);
    // The bus master moves with its base address.
    rig.quiet(&[(0xc00c, 0x55)]);
    assert_eq!(rig.inb(0xc00c), 0x54);
    let now = Tsc(0);
    assert_eq!(rig.pc.port_write(now, 0xcf8, &0x8000_0920u32.to_le_bytes()), Signal::None);
    assert_eq!(rig.pc.port_write(now, 0xcfc, &0xd000u32.to_le_bytes()), Signal::None);
    assert_eq!((rig.inb(0xc00c), rig.inb(0xd00c)), (0xff, 0x54));
}

#[test]
fn the_power_management_timer_is_where_firmware_puts_it_and_where_acpi_says() {
    let mut rig = Rig::with_everything();
    let now = Tsc(0);
    assert_eq!(rig.pc.port_write(now, 0xcf8, &0x8000_0b40u32.to_le_bytes()), Signal::None);
    assert_eq!(rig.pc.port_write(now, 0xcfc, &0xb001u32.to_le_bytes()), Signal::None);
    rig.advance_to(1_000_000_000);
    for port in [0x608, 0xb008] {
        let mut data = [0; 4];
        rig.pc.port_read(Tsc(rig.now), port, &mut data);
        assert_eq!(u32::from_le_bytes(data), 3_579_545, "{port:#x}");
    }
}

#[test]
fn the_text_window_is_the_screen() {
    let mut rig = Rig::with_everything();
    assert!(rig.pc.mmio_write(Tsc(0), Gpa(0xb_8000), &[b'o', 7, b'k', 7]));
    let mut data = [0; 4];
    assert!(rig.pc.mmio_read(Tsc(0), Gpa(0xb_8000), &mut data));
    assert_eq!(data, [b'o', 7, b'k', 7]);
    assert_eq!(rig.pc.screen().unwrap()[0], "ok");
    assert!(!rig.pc.mmio_write(Tsc(0), Gpa(0xa_0000), &[0]), "closed in text modes");
}

#[test]
fn the_hpet_takes_the_place_of_the_timer_and_has_pins_of_its_own() {
    let mut rig = Rig::with_everything();
    rig.program_pics(1 << 0);
    rig.ioapic_write(0x10 + 2 * 20, 0x44);
    rig.lapic_write(0xf0, 0x1ff);
    rig.program_pit(1000);
    let write = |rig: &mut Rig, offset, value: u64| {
        assert!(rig.pc.mmio_write(Tsc(rig.now), layout::HPET + offset, &value.to_le_bytes()));
    };
    write(&mut rig, 0x100, 0x4);
    write(&mut rig, 0x108, 6_250);
    write(&mut rig, 0x140, 20 << 9 | 0x4);
    write(&mut rig, 0x148, 12_500);
    write(&mut rig, 0x10, 0x3);
    rig.advance_to(99_999);
    assert!(!rig.pc.interrupt_pending());
    rig.advance_to(100_000);
    assert_eq!(rig.pc.acknowledge(), Some(0x30));
    rig.quiet(&[(0x20, 0x20)]);
    rig.advance_to(200_000);
    assert_eq!(rig.pc.acknowledge(), Some(0x44));
    rig.advance_to(10_000_000);
    assert!(!rig.pc.interrupt_pending(), "the 8254 is cut off");
    write(&mut rig, 0x10, 0x1);
    rig.advance_to(20_000_000);
    assert_eq!(rig.pc.acknowledge(), Some(0x30), "and on again");
}
