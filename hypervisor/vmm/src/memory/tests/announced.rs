//! Who owns what, as it is said aloud: all that a guest may be given, before it is, and nothing else.

use std::collections::BTreeMap;

use super::*;
use crate::frames::{STOCK_FULL, fill_stock};
use crate::ownership::Announcement;

const VM: u16 = 7;

/// Who listens: each frame of 4 KiB that is somebody's, with what may be done there.
fn heard(host: &FakeMemory) -> BTreeMap<u64, Access> {
    let mut owned = BTreeMap::new();
    for announcement in host.announced.borrow().iter() {
        match *announcement {
            Announcement::Root { .. } => {}
            Announcement::Owned { vm, at, length, access } => {
                assert!(vm == VM && at.is_aligned(PAGE_4K) && length.is_multiple_of(PAGE_4K), "{announcement:?}");
                owned.extend((at.0..at.0 + length).step_by(4096).map(|frame| (frame, access)));
            }
            Announcement::Ended { vm } => {
                assert_eq!(vm, VM);
                owned.clear();
            }
        }
    }
    owned
}

/// What the nested tables would let the guest do: each frame with its rights.
fn mapped(memory: &GuestMemory, pool: &mut FramePool, host: &mut FakeMemory) -> BTreeMap<u64, Access> {
    let mut tables = NestedTables::new(EPT, host, pool).unwrap();
    memory.map_into(&mut tables, host, pool).unwrap().acknowledge(pool);
    let mut found = BTreeMap::new();
    tables.visit(host, &mut |visited| {
        if let crate::nested::Visited::Page { hpa, size, access, .. } = visited {
            found.extend((hpa.0..hpa.0 + size.bytes()).step_by(4096).map(|frame| (frame, access)));
        }
    });
    tables.destroy(host).acknowledge(pool);
    found
}

fn check(memory: &GuestMemory, pool: &mut FramePool, host: &mut FakeMemory) {
    let (owned, mapped) = (heard(host), mapped(memory, pool, host));
    assert!(!mapped.is_empty());
    for (frame, access) in &mapped {
        assert_eq!(owned.get(frame), Some(access), "{frame:#x}");
    }
}

#[test]
fn what_is_mapped_was_announced_with_its_rights() {
    let (mut pool, mut host) = machine(64 << 20);
    let rom = vec![1; 256 << 10];
    for memory in [
        GuestMemory::allocate(8 << 20, Backing::Eager, &mut pool, &mut host).unwrap(),
        GuestMemory::allocate_with_firmware(8 << 20, Backing::Eager, &rom, &mut pool, &mut host).unwrap(),
    ] {
        let mut memory = memory;
        assert_eq!(heard(&host).len(), 0, "said before anybody has a number");
        memory.announce(&host, VM);
        check(&memory, &mut pool, &mut host);
        assert!(heard(&host).values().any(|access| !access.write));
        memory.release(&host, &mut pool);
        assert_eq!(heard(&host).len(), 0);
    }
}

#[test]
fn what_is_backed_later_is_announced_then() {
    let (mut pool, mut host) = machine(64 << 20);
    let mut memory = GuestMemory::allocate(16 << 20, Backing::Lazy, &mut pool, &mut host).unwrap();
    assert!(fill_stock(&mut host, &mut pool, STOCK_FULL));
    // By a loader, before the VM has a number.
    memory.write(&mut host, Gpa(0x10_0000), &[1; 5000]).unwrap();
    memory.announce(&host, VM);
    check(&memory, &mut pool, &mut host);
    let before = heard(&host).len();
    // By the hypervisor, and by the guest: so densely that a large frame follows.
    memory.write(&mut host, Gpa(0x30_0000), &[1]).unwrap();
    for page in 0..512 {
        assert!(fill_stock(&mut host, &mut pool, STOCK_FULL));
        memory.touch(&mut host, &mut pool, Gpa(0x40_0000 + page * PAGE_4K));
    }
    let large = memory.touch(&mut host, &mut pool, Gpa(0x60_0000));
    assert!(matches!(large, Touched::Backed { size: FrameSize::Size2M, .. }), "{large:?}");
    check(&memory, &mut pool, &mut host);
    assert_eq!(heard(&host).len() - before, 1 + 512 + 512);
    // The directory is the hypervisor's.
    for (gpa, hpa, _) in memory.owned(&host) {
        assert_eq!(gpa.is_some(), heard(&host).contains_key(&hpa.0), "{hpa:#x}");
    }
    memory.release(&host, &mut pool);
    assert_eq!(heard(&host).len(), 0);
}
