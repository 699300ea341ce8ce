//! What is memory, what backs it, and what an access finds.

#![allow(clippy::cast_possible_truncation)]

use lamina_arch::addr::{PAGE_1G, PAGE_2M};
use proptest::prelude::*;

use super::*;
use crate::fake_memory::FakeMemory;
use crate::nested::ept::Ept;

mod announced;
mod lazy;

const EPT: Ept = Ept { execute_only: false, largest: FrameSize::Size1G };

fn machine(size: u64) -> (FramePool, FakeMemory) {
    (FramePool::new(&[(Hpa(PAGE_2M), size - PAGE_2M)]), FakeMemory::new(size))
}

fn region(start: u64, end: u64) -> Region {
    Region { start: Gpa(start), length: end - start }
}

#[test]
fn regions_are_those_of_a_pc() {
    let regions = |size| regions_of(size).collect::<Vec<_>>();
    let low = region(0, 0xa_0000);
    assert_eq!(regions(0x8_0000), [region(0, 0x8_0000)]);
    assert_eq!(regions(128 << 20), [low, region(0xe_0000, 128 << 20)]);
    assert_eq!(regions(3 * PAGE_1G), [low, region(0xe_0000, 3 * PAGE_1G)]);
    let large = [low, region(0xe_0000, 0xc000_0000), region(1 << 32, (1 << 32) + PAGE_4K)];
    assert_eq!(regions(3 * PAGE_1G + PAGE_4K), large);
}

#[test]
fn the_memory_map_reserves_the_firmware_tables() {
    let kinds: Vec<_> = e820_of(4 * PAGE_1G).map(|entry| (entry.region.start.0, entry.kind as u32)).collect();
    assert_eq!(kinds, [(0, 1), (0xe_0000, 2), (0x10_0000, 1), (0xe000_0000, 2), (0x1_0000_0000, 1)]);
}

#[test]
fn large_frames_back_what_they_can_and_holes_are_not_mapped() {
    let (mut pool, mut host) = machine(6 * PAGE_1G);
    let memory = GuestMemory::allocate(PAGE_1G + 2 * PAGE_2M + PAGE_4K, Backing::Eager, &mut pool, &mut host).unwrap();
    let mut tables = NestedTables::new(EPT, &mut host, &mut pool).unwrap();
    assert!(!memory.map_into(&mut tables, &mut host, &mut pool).unwrap().is_needed());
    let size = |gpa| tables.walk(&host, Gpa(gpa)).map(|found| found.size);
    assert_eq!(size(0), Some(FrameSize::Size4K));
    assert_eq!(size(0x9_ffff), Some(FrameSize::Size4K));
    assert_eq!(size(0xa_0000), None);
    assert_eq!(size(0xb_ffff), None);
    assert_eq!(size(0xe_0000), Some(FrameSize::Size4K));
    assert_eq!(size(0x10_0000), Some(FrameSize::Size4K));
    assert_eq!(size(PAGE_2M), Some(FrameSize::Size2M));
    assert_eq!(size(PAGE_1G + PAGE_2M), Some(FrameSize::Size2M));
    assert_eq!(size(PAGE_1G + 2 * PAGE_2M), Some(FrameSize::Size4K));
    assert_eq!(size(PAGE_1G + 2 * PAGE_2M + PAGE_4K), None);
    tables.destroy(&host).acknowledge(&mut pool);
    memory.release(&host, &mut pool);
    assert_eq!(pool.used(), 0);
}

#[test]
fn empty_roms_read_as_all_ones_and_cannot_be_written_or_run() {
    let (mut pool, mut host) = machine(64 << 20);
    let memory = GuestMemory::allocate(16 << 20, Backing::Eager, &mut pool, &mut host).unwrap();
    let mut tables = NestedTables::new(EPT, &mut host, &mut pool).unwrap();
    memory.map_into(&mut tables, &mut host, &mut pool).unwrap().acknowledge(&mut pool);
    for gpa in (0xc_0000..0xe_0000).step_by(8) {
        let found = tables.walk(&host, Gpa(gpa)).unwrap();
        assert_eq!((found.access, host.read_u64(found.hpa)), (Access::R, u64::MAX), "{gpa:#x}");
        assert!(!memory.is_memory(Gpa(gpa), 1));
    }
    assert_eq!(tables.walk(&host, Gpa(0xe_0000)).unwrap().access, Access::RWX);
}

#[test]
fn firmware_stands_below_4_gib_and_its_end_below_1_mib() {
    let (mut pool, mut host) = machine(64 << 20);
    let rom: Vec<u8> = (0..256 << 10).map(|i: u32| (i >> 8) as u8 ^ i as u8).collect();
    let memory = GuestMemory::allocate_with_firmware(16 << 20, Backing::Eager, &rom, &mut pool, &mut host).unwrap();
    let mut tables = NestedTables::new(EPT, &mut host, &mut pool).unwrap();
    memory.map_into(&mut tables, &mut host, &mut pool).unwrap().acknowledge(&mut pool);
    for at in (0..256 << 10).step_by(8) {
        let word = u64::from_le_bytes(rom[at as usize..][..8].try_into().unwrap());
        let found = tables.walk(&host, Gpa(ABOVE_4G.0 - (256 << 10) + at)).unwrap();
        assert_eq!((found.access, host.read_u64(found.hpa)), (Access::RX, word), "{at:#x}");
        if at >= 128 << 10 {
            let found = tables.walk(&host, Gpa(0xc_0000 + at)).unwrap();
            assert_eq!((found.access, host.read_u64(found.hpa)), (Access::RWX, word), "{at:#x}");
        }
    }
    assert!(memory.is_memory(Gpa(0xc_0000), 0x4_0000));
    assert!(!memory.is_memory(Gpa(ABOVE_4G.0 - 1), 1));
    tables.destroy(&host).acknowledge(&mut pool);
    memory.release(&host, &mut pool);
    assert_eq!(pool.used(), 0);
    for bad in [0, 100, 4095, ROM_MAX as usize + 4096] {
        let refused =
            GuestMemory::allocate_with_firmware(32 << 20, Backing::Eager, &vec![0; bad], &mut pool, &mut host);
        assert_eq!(refused.unwrap_err(), AllocateError::Rom(bad as u64));
    }
}

#[test]
fn too_little_memory_takes_nothing() {
    let (mut pool, mut host) = machine(64 << 20);
    let result = GuestMemory::allocate(64 << 20, Backing::Eager, &mut pool, &mut host);
    let free = 62 << 20;
    assert_eq!(result.unwrap_err(), AllocateError::OutOfMemory { wanted: 64 << 20, free });
    assert_eq!(pool.used(), 0);
    for size in [0, 1, 4097, u64::MAX, u64::MAX - 0xfff] {
        let result = GuestMemory::allocate(size, Backing::Eager, &mut pool, &mut host);
        assert_eq!(result.unwrap_err(), AllocateError::Size(size));
    }
}

#[test]
fn memory_is_zero_at_first() {
    let (mut pool, mut host) = machine(16 << 20);
    let memory = GuestMemory::allocate(8 << 20, Backing::Eager, &mut pool, &mut host).unwrap();
    let mut data = vec![0xff; (7 << 20) - 3];
    memory.read(&host, Gpa(0x10_0001), &mut data).unwrap();
    assert!(data.iter().all(|&byte| byte == 0));
}

#[test]
fn an_access_is_all_memory_or_refused_and_nothing_copied() {
    let (mut pool, mut host) = machine(16 << 20);
    let mut memory = GuestMemory::allocate(4 << 20, Backing::Eager, &mut pool, &mut host).unwrap();
    let refused = |gpa: u64, length: u64| Err(NotMemory { gpa: Gpa(gpa), length });
    for (gpa, length) in [
        (0x9_ffff, 2),
        (0xa_0000, 1),
        (0xd_ffff, 2),
        (0, 0x10_0000),
        ((4 << 20) - 1, 2),
        (4 << 20, 1),
        (0xfee0_0000, 4),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 7, 8),
    ] {
        let mut data = vec![0x55; length as usize];
        assert_eq!(memory.write(&mut host, Gpa(gpa), &data), refused(gpa, length));
        assert_eq!(memory.read(&host, Gpa(gpa), &mut data), refused(gpa, length));
        assert!(data.iter().all(|&byte| byte == 0x55));
    }
    let mut last = [0; 1];
    memory.read(&host, Gpa(0xf_ffff), &mut [0; 2]).unwrap();
    memory.read(&host, Gpa(0x9_ffff), &mut last).unwrap();
    assert_eq!(last, [0]);
    assert_eq!(memory.read(&host, Gpa(u64::MAX), &mut []), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_written_is_read_across_frames(
        writes in prop::collection::vec((0u64..0x14_0000, prop::collection::vec(any::<u8>(), 0..9000)), 1..8),
    ) {
        // Single free frames between taken ones: no two pages of the guest are neighbours in the machine.
        let mut pool = FramePool::new(&[(Hpa(0), 16 << 20)]);
        let all: Vec<Hpa> = core::iter::from_fn(|| pool.allocate(FrameSize::Size4K)).collect();
        all.iter().step_by(2).for_each(|&frame| pool.free(frame, FrameSize::Size4K).unwrap());
        let mut host = FakeMemory::new(16 << 20);
        let mut memory = GuestMemory::allocate(0x14_0000, Backing::Eager, &mut pool, &mut host).unwrap();
        let mut model = vec![0u8; 0x20_0000];
        for (gpa, data) in &writes {
            let range = *gpa as usize..*gpa as usize + data.len();
            match memory.write(&mut host, Gpa(*gpa), data) {
                Ok(()) => model[range].copy_from_slice(data),
                Err(_) => prop_assert!(!memory.is_memory(Gpa(*gpa), data.len() as u64)),
            }
        }
        for region in memory.regions() {
            let mut data = vec![0; region.length as usize];
            memory.read(&host, region.start, &mut data).unwrap();
            prop_assert!(data == model[region.start.0 as usize..][..data.len()]);
        }
    }
}
