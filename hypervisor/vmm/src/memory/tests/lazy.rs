//! Memory that is backed on first touch.

use lamina_arch::addr::PAGE_2M;
use proptest::prelude::*;

use super::*;
use crate::frames::{STOCK_LOW, fill_stock};
use crate::host::HostMemory;

const MIB: u64 = 1 << 20;

fn lazy(size: u64, pool: &mut FramePool, host: &mut FakeMemory) -> GuestMemory {
    GuestMemory::allocate(size, Backing::Lazy, pool, host).unwrap()
}

#[test]
fn nothing_is_backed_until_it_is_touched_and_then_one_page_is() {
    let (mut pool, mut host) = machine(64 * MIB);
    let mut memory = lazy(4 << 30, &mut pool, &mut host);
    // The page of the empty ROMs, whatever the size.
    assert_eq!((memory.backed(), pool.used()), (0, PAGE_4K));
    assert!(fill_stock(&mut host, &mut pool, STOCK_LOW));
    let before = host.stock().len();
    for gpa in [0x1234, (1 << 32) + 5] {
        let Touched::Backed { gpa: page, hpa, size } = memory.touch(&mut host, &mut pool, Gpa(gpa)) else {
            panic!("{gpa:#x} is not backed")
        };
        assert_eq!((page, size), (Gpa(gpa & !0xfff), FrameSize::Size4K));
        // Once more: the same frame.
        let again = memory.touch(&mut host, &mut pool, Gpa(gpa | 0xfff));
        assert_eq!(again, Touched::Backed { gpa: page, hpa, size });
        host.write(hpa + 0x10, &[0x5a]);
        let mut byte = [0];
        memory.read(&host, page + 0x10, &mut byte).unwrap();
        assert_eq!(byte, [0x5a]);
    }
    // Each in a chunk of its own: a frame and the directory's.
    assert_eq!((memory.backed(), before - host.stock().len()), (2 * PAGE_4K, 4));
    for hole in [0xa_0000, 0xc_0000, 0xdffff, 0xc000_0000, 0xffff_ffff, (1 << 32) + (1 << 30), u64::MAX] {
        assert_eq!(memory.touch(&mut host, &mut pool, Gpa(hole)), Touched::NotLazy, "{hole:#x}");
    }
    assert_eq!(memory.backed(), 2 * PAGE_4K);
}

#[test]
fn what_reads_backs_nothing_and_what_writes_backs_its_pages() {
    let (mut pool, mut host) = machine(64 * MIB);
    let mut memory = lazy(16 * MIB, &mut pool, &mut host);
    assert!(fill_stock(&mut host, &mut pool, STOCK_LOW));
    let mut data = [0x55; 9000];
    memory.read(&host, Gpa(0x20_0ffe), &mut data).unwrap();
    assert!(data.iter().all(|&byte| byte == 0));
    assert_eq!(memory.backed(), 0);
    memory.write(&mut host, Gpa(0x20_0ffe), &[7; 4]).unwrap();
    assert_eq!(memory.backed(), 2 * PAGE_4K);
    memory.read(&host, Gpa(0x20_0ffd), &mut data).unwrap();
    assert_eq!(data[..6], [0, 7, 7, 7, 7, 0]);
    assert!(!memory.is_starved());
}

#[test]
fn without_a_frame_the_vm_is_starved_and_nobody_else() {
    let (mut pool, mut host) = machine(64 * MIB);
    let mut memory = lazy(16 * MIB, &mut pool, &mut host);
    assert!(fill_stock(&mut host, &mut pool, 2));
    memory.write(&mut host, Gpa(0x20_0000), &[1]).unwrap();
    assert!(host.stock().is_empty());
    assert!(!memory.is_starved());
    let mut other = lazy(16 * MIB, &mut pool, &mut host);
    assert_eq!(other.touch(&mut host, &mut pool, Gpa(0)), Touched::NoFrame);
    memory.write(&mut host, Gpa(0x20_0fff), &[1]).unwrap();
    assert!(!memory.is_starved());
    memory.write(&mut host, Gpa(0x20_0fff), &[1, 2]).unwrap();
    assert!(memory.is_starved());
    // More than the pool has cannot be had, and nothing of it is taken.
    let (used, more) = (pool.used(), usize::try_from(pool.free_bytes() / PAGE_4K).unwrap() + 1);
    assert!(!fill_stock(&mut host, &mut pool, more));
    assert_eq!(pool.used(), used);
}

#[test]
fn a_large_frame_follows_a_chunk_that_is_in_use() {
    let (mut pool, mut host) = machine(64 * MIB);
    let mut memory = lazy(16 * MIB, &mut pool, &mut host);
    assert!(fill_stock(&mut host, &mut pool, 1000));
    let size = |touched| match touched {
        Touched::Backed { gpa, size, .. } => (gpa.0, size),
        other => panic!("{other:?}"),
    };
    let mut touch = |gpa| size(memory.touch(&mut host, &mut pool, Gpa(gpa)));
    for page in 0..384 {
        assert_eq!(touch(PAGE_2M + page * PAGE_4K).1, FrameSize::Size4K);
        if page == 382 {
            // One too few: small, and so small for good.
            assert_eq!(touch(2 * PAGE_2M), (2 * PAGE_2M, FrameSize::Size4K));
        }
    }
    assert_eq!(touch(2 * PAGE_2M + PAGE_4K).1, FrameSize::Size4K);
    for page in 1..400 {
        touch(2 * PAGE_2M + page * PAGE_4K);
    }
    assert_eq!(touch(3 * PAGE_2M + 0x12_3456), (3 * PAGE_2M, FrameSize::Size2M));
    assert_eq!(touch(3 * PAGE_2M), (3 * PAGE_2M, FrameSize::Size2M));
    assert_eq!(touch(4 * PAGE_2M + 8), (4 * PAGE_2M, FrameSize::Size2M));
    // The legacy area's chunk has holes, and is never one frame.
    assert_eq!(touch(0), (0, FrameSize::Size4K));
    let mut data = vec![1; usize::try_from(PAGE_2M).unwrap()];
    memory.read(&host, Gpa(3 * PAGE_2M), &mut data).unwrap();
    assert!(data.iter().all(|&byte| byte == 0), "a large frame is cleared");
}

#[test]
fn a_chunk_that_memory_ends_in_is_never_one_frame() {
    let (mut pool, mut host) = machine(64 * MIB);
    let mut memory = lazy(2 * PAGE_2M + 8 * PAGE_4K, &mut pool, &mut host);
    assert!(fill_stock(&mut host, &mut pool, 1000));
    for page in 0..512 {
        memory.write(&mut host, Gpa(PAGE_2M + page * PAGE_4K), &[1]).unwrap();
    }
    let touched = memory.touch(&mut host, &mut pool, Gpa(2 * PAGE_2M));
    assert!(matches!(touched, Touched::Backed { size: FrameSize::Size4K, .. }), "{touched:?}");
}

#[test]
fn firmware_and_the_empty_roms_are_there_from_the_start() {
    let (mut pool, mut host) = machine(64 * MIB);
    assert!(fill_stock(&mut host, &mut pool, 100));
    let rom = vec![0xea; 256 << 10];
    let memory = GuestMemory::allocate_with_firmware(16 * MIB, Backing::Lazy, &rom, &mut pool, &mut host).unwrap();
    let mut end = [0; 16];
    memory.read(&host, Gpa(0xf_fff0), &mut end).unwrap();
    assert_eq!(end, [0xea; 16]);
    let mut tables = NestedTables::new(EPT, &mut host, &mut pool).unwrap();
    memory.map_into(&mut tables, &mut host, &mut pool).unwrap().acknowledge(&mut pool);
    assert_eq!(tables.walk(&host, Gpa(0xffff_fff0)).unwrap().access, Access::RX);
    assert_eq!(tables.walk(&host, Gpa(0xe_0000)).unwrap().access, Access::RWX);
    assert_eq!(tables.walk(&host, Gpa(0x10_0000)), None);

    let plain = lazy(16 * MIB, &mut pool, &mut host);
    let mut tables = NestedTables::new(EPT, &mut host, &mut pool).unwrap();
    plain.map_into(&mut tables, &mut host, &mut pool).unwrap().acknowledge(&mut pool);
    for page in (0xc_0000..0xe_0000).step_by(4096) {
        let found = tables.walk(&host, Gpa(page)).unwrap();
        assert_eq!((found.access, host.read_u64(found.hpa + 8)), (Access::R, u64::MAX));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn lazy_memory_reads_like_eager_memory_and_gives_all_back(
        steps in prop::collection::vec(
            (any::<bool>(), 0u64..0x60_0000, prop::collection::vec(any::<u8>(), 0..9000)), 1..20,
        ),
    ) {
        let (mut pool, mut host) = machine(64 * MIB);
        let mut eager = GuestMemory::allocate(0x50_0000, Backing::Eager, &mut pool, &mut host).unwrap();
        let mut lazy = lazy(0x50_0000, &mut pool, &mut host);
        for (touch, gpa, data) in &steps {
            prop_assert!(fill_stock(&mut host, &mut pool, STOCK_LOW));
            if *touch {
                let backed = lazy.touch(&mut host, &mut pool, Gpa(*gpa));
                prop_assert_eq!(backed == Touched::NotLazy, !eager.is_memory(Gpa(*gpa), 1));
            }
            prop_assert_eq!(lazy.write(&mut host, Gpa(*gpa), data), eager.write(&mut host, Gpa(*gpa), data));
        }
        for region in lazy.regions() {
            let (mut a, mut b) = (vec![1; region.length as usize], vec![2; region.length as usize]);
            lazy.read(&host, region.start, &mut a).unwrap();
            eager.read(&host, region.start, &mut b).unwrap();
            prop_assert!(a == b);
        }
        let owned: Vec<_> = lazy.owned(&host).map(|(_, hpa, _)| hpa).collect();
        let distinct: std::collections::HashSet<_> = owned.iter().collect();
        prop_assert_eq!(owned.len(), distinct.len());
        lazy.release(&host, &mut pool);
        eager.release(&host, &mut pool);
        prop_assert_eq!(pool.used(), host.stock().len() as u64 * PAGE_4K);
    }
}
