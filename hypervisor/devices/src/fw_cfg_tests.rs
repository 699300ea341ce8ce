use super::*;
use alloc::string::{String, ToString};
use alloc::vec;
use proptest::prelude::*;

const MEMORY: u64 = 64 << 20;

fn device() -> FwCfg {
    let files = [
        FirmwareFile::number("etc/sercon-port", 0x3f8),
        FirmwareFile::new("bootorder", &b"/pci@i0cf8/*@1,1/drive@1/disk@0\0"[..]),
        FirmwareFile::new("vgaroms/big", (0..10_000u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<u8>>()),
    ];
    FwCfg::new(MEMORY, &files)
}

fn bytes(device: &mut FwCfg, key: u16, count: usize) -> Vec<u8> {
    device.select(key);
    (0..count).map(|_| device.read_data()).collect()
}

/// Name, key and size of every file, as firmware reads them.
fn directory_of(device: &mut FwCfg) -> Vec<(String, u16, u32)> {
    let raw = bytes(device, 0x19, 4);
    let count = u32::from_be_bytes(raw.try_into().unwrap());
    (0..count)
        .map(|_| {
            let entry: Vec<u8> = (0..64).map(|_| device.read_data()).collect();
            let name = entry[8..].split(|&byte| byte == 0).next().unwrap();
            (
                core::str::from_utf8(name).unwrap().to_string(),
                u16::from_be_bytes([entry[4], entry[5]]),
                u32::from_be_bytes(entry[..4].try_into().unwrap()),
            )
        })
        .collect()
}

#[test]
fn signature_interface_and_sizes() {
    let mut device = device();
    assert_eq!(bytes(&mut device, 0, 6), b"QEMU\0\0");
    assert_eq!(bytes(&mut device, 1, 4), [3, 0, 0, 0]);
    assert_eq!(bytes(&mut device, 3, 8), MEMORY.to_le_bytes());
    assert_eq!(bytes(&mut device, 5, 2), [1, 0]);
    assert_eq!(bytes(&mut device, 0x0f, 2), [1, 0]);
    assert_eq!(bytes(&mut device, 0x8000, 4), [0; 4], "an item that is not there is empty");
    assert_eq!(bytes(&mut device, 0x4000, 4), *b"QEMU", "asking for writing selects all the same");
}

#[test]
fn files_are_found_by_name_and_read_by_key() {
    let mut device = device();
    let files = directory_of(&mut device);
    let names: Vec<&str> = files.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["etc/sercon-port", "bootorder", "vgaroms/big", "etc/e820"]);
    assert_eq!(files[0], ("etc/sercon-port".to_string(), 0x20, 8));
    assert_eq!(files[2].2, 10_000);
    assert_eq!(bytes(&mut device, files[0].1, 9), [0xf8, 3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes(&mut device, files[1].1, 4), b"/pci");
}

#[test]
fn the_memory_map_has_a_hole_below_4_gib() {
    let entry = |start: u64, length: u64, kind: u32| {
        [&start.to_le_bytes()[..], &length.to_le_bytes(), &kind.to_le_bytes()].concat()
    };
    let reserved = entry(0xe000_0000, 0x1000_0000, 2);
    assert_eq!(e820(MEMORY), [entry(0, MEMORY, 1), reserved.clone()].concat());
    assert_eq!(e820(5 << 30), [entry(0, 3 << 30, 1), reserved, entry(4 << 30, 2 << 30, 1)].concat());
}

#[test]
fn a_file_of_the_callers_replaces_ours_and_a_bad_name_is_left_out() {
    let long = "x".repeat(56);
    let files = [
        FirmwareFile::new("etc/e820", &b"mine"[..]),
        FirmwareFile::new(&long, &b"?"[..]),
        FirmwareFile::number("a", 1),
    ];
    let mut device = FwCfg::new(MEMORY, &files);
    let names: Vec<String> = directory_of(&mut device).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["etc/e820", "a"]);
    assert_eq!(bytes(&mut device, 0x20, 4), b"mine");
}

/// Guest memory of the tests: 64 KiB from 0.
struct Memory(Vec<u8>);

impl Memory {
    fn command(control: u32, length: u32, address: u64) -> Memory {
        let mut memory = vec![0xaa; 0x1_0000];
        let command = [&control.to_be_bytes()[..], &length.to_be_bytes(), &address.to_be_bytes()].concat();
        memory[0x100..0x110].copy_from_slice(&command);
        Memory(memory)
    }

    /// Carries out what the device asks for; how many pieces that were.
    fn serve(&mut self, device: &mut FwCfg) -> usize {
        let mut buffer = [0; TRANSFER_MAX];
        let mut pieces = 0;
        while let Some(request) = device.dma_request(&mut buffer) {
            pieces += 1;
            assert!(pieces < 1000, "never ends");
            let start = usize::try_from(request.gpa.0).unwrap_or(usize::MAX);
            let place = start.checked_add(request.length).and_then(|end| self.0.get_mut(start..end));
            match (place, request.direction) {
                (Some(place), DmaDirection::FromMemory) => device.dma_complete(Some(place)),
                (Some(place), DmaDirection::ToMemory) => {
                    place.copy_from_slice(&buffer[..request.length]);
                    device.dma_complete(Some(place));
                }
                (None, _) => device.dma_complete(None),
            }
        }
        pieces
    }

    fn control(&self) -> u32 {
        u32::from_be_bytes(self.0[0x100..0x104].try_into().unwrap())
    }
}

fn trigger(device: &mut FwCfg, address: u64) {
    let [a, b, c, d, e, f, g, h] = address.to_be_bytes();
    assert!(!device.write_address(0, &[a, b, c, d]));
    assert!(device.write_address(4, &[e, f, g, h]));
}

#[test]
fn dma_announces_itself() {
    let mut data = [0; 4];
    device().read_address(0, &mut data);
    assert_eq!(&data, b"QEMU");
    device().read_address(4, &mut data);
    assert_eq!(&data, b" CFG");
}

#[test]
fn dma_selects_and_reads_a_file_in_pieces_and_reports() {
    let mut device = device();
    let mut memory = Memory::command(0x22 << 16 | CONTROL_SELECT | CONTROL_READ, 10_000, 0x2000);
    trigger(&mut device, 0x100);
    assert_eq!(memory.serve(&mut device), 1 + 5 + 1, "the command, 10,000 bytes, the report");
    assert_eq!(memory.control(), 0);
    assert!((0..10_000).all(|n: usize| memory.0[0x2000 + n] == n.to_le_bytes()[0]));
    assert_eq!(memory.0[0x2000 + 10_000], 0xaa);
}

#[test]
fn dma_skips_goes_on_and_gives_zeros_beyond_the_end() {
    let mut device = device();
    device.select(0);
    for (control, length) in [(CONTROL_SKIP, 2), (CONTROL_READ, 4)] {
        let mut memory = Memory::command(control, length, 0x2000);
        trigger(&mut device, 0x100);
        memory.serve(&mut device);
        assert_eq!(memory.control(), 0);
        let expected: &[u8] = if control == CONTROL_READ { b"MU\0\0\xaa" } else { b"\xaa\xaa\xaa\xaa\xaa" };
        assert_eq!(&memory.0[0x2000..0x2005], expected);
    }
}

#[test]
fn dma_errors_are_reported_in_the_control_field() {
    let cases = [
        (CONTROL_WRITE, 4, 0x2000),
        (CONTROL_READ, 4, 0xfffe),
        (CONTROL_READ, 4, u64::MAX),
        (CONTROL_READ, 4096, 0x1_0000 - 2048),
    ];
    for (control, length, address) in cases {
        let mut device = device();
        let mut memory = Memory::command(control, length, address);
        trigger(&mut device, 0x100);
        memory.serve(&mut device);
        assert_eq!(memory.control(), CONTROL_ERROR, "{control:#x} {length} {address:#x}");
    }
    // A command outside of memory: nothing to report to, and the next one works.
    let mut device = device();
    let mut memory = Memory::command(CONTROL_READ, 4, 0x2000);
    trigger(&mut device, 0x1_0000);
    assert_eq!(memory.serve(&mut device), 1);
    trigger(&mut device, 0x100);
    memory.serve(&mut device);
    assert_eq!(&memory.0[0x2000..0x2004], b"QEMU");
}

#[test]
fn the_address_may_be_written_whole_and_a_busy_device_ignores_more() {
    let mut device = device();
    assert!(device.write_address(0, &0x100u64.to_be_bytes()));
    assert!(!device.write_address(4, &[0; 4]));
    let request = device.dma_request(&mut [0; TRANSFER_MAX]);
    assert_eq!(request, Some(DmaRequest { direction: DmaDirection::FromMemory, gpa: Gpa(0x100), length: 16 }));
}

proptest! {
    #[test]
    fn no_access_panics(accesses in prop::collection::vec(
        (0u8..6, any::<u16>(), any::<u8>(), any::<[u8; 16]>(), 0usize..=16), 0..50,
    )) {
        let mut device = device();
        for (what, key, offset, data, length) in accesses {
            match what {
                0 => device.select(key),
                1 => { device.read_data(); }
                2 => device.read_address(offset, &mut data.clone()),
                3 => { device.write_address(offset, &data[..length]); }
                4 => { trigger_if_idle(&mut device, &data); }
                _ => {
                    let request = device.dma_request(&mut [0; TRANSFER_MAX]);
                    prop_assert!(request.is_none_or(|request| request.length <= TRANSFER_MAX));
                    device.dma_complete((length != 0).then_some(&data[..length]));
                }
            }
        }
    }
}

fn trigger_if_idle(device: &mut FwCfg, data: &[u8; 16]) {
    device.write_address(0, &data[..8]);
    device.dma_complete(Some(data));
}
