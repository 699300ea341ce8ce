//! Paging: rights, reserved bits, accessed and dirty flags, translations that must be forgotten, process-context
//! identifiers; for memory, and for devices, whose accesses a hypervisor finishes.

use core::arch::asm;
use core::cell::UnsafeCell;

use guest_rt::cpu;

use crate::devices::HOLE;
use crate::machine::{GP, NOTHING, last, rdmsr, read32, write32, wrmsr};
use crate::user::{self, Shared, with_cr4};
use crate::{Test, Verdict, apic, raises, same};

pub const TESTS: &[Test] = &[
    ("paging: not present", || fault_of(0, false, 0)),
    ("paging: write to what is not present", || fault_of(0, true, 2)),
    ("paging: read-only, write protection on", || protected(true)),
    ("paging: read-only, write protection off", || protected(false)),
    ("paging: reserved physical bits", || fault_of(memory(0) | P | W | 1 << 51, false, 9)),
    ("paging: no execute without the feature", no_execute_reserved),
    ("paging: no execute", no_execute),
    ("paging: supervisor execution of a user page", smep),
    ("paging: supervisor access to a user page", smap),
    ("paging: accessed and dirty", || flags(memory(0))),
    ("paging: accessed and dirty of a device", || flags(DEVICE)),
    ("paging: large page with reserved bits", large_reserved),
    ("paging: device that is read-only", device_read_only),
    ("paging: device that is the user's", device_of_user),
    ("paging: device that is not present", || fault_of(DEVICE, true, 2)),
    ("paging: access across pages, the second not present", across_absent),
    ("paging: access across pages, the second read-only", across_read_only),
    ("paging: access across two pages of devices", across_devices),
    ("paging: string to a device, then not present", string_across),
    ("paging: invlpg forgets", || forgets(invlpg)),
    ("paging: invlpg of what is not canonical", || same(raises!(["invlpg [{a}]"] a = in(reg) 1u64 << 63,), NOTHING)),
    ("paging: mov to cr3 forgets", || forgets(|_| reload())),
    ("paging: global pages outlive mov to cr3 or not, toggling pge forgets", global_pages),
    ("paging: cr3 reserved bits", cr3_reserved),
    ("paging: cr3 bit 63 without pcid", || same(cr3(|cr3| cr3 | 1 << 63), GP)),
    ("paging: pcid", pcid),
    ("paging: pcid with a nonzero cr3", pcid_nonzero),
    ("paging: pcid forbids to switch paging off", pcid_paging),
    ("paging: invpcid types", invpcid),
    ("paging: la57 in long mode", || same(cr4_with(1 << 12), GP)),
    ("cr4 bits agree with cpuid", cr4_agrees),
    ("efer bits agree with cpuid", efer_agrees),
];

const P: u64 = 1;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;
const EFER: u32 = 0xc000_0080;
const NXE: u64 = 1 << 11;
/// The local APIC's page, without rights.
const DEVICE: u64 = 0xfee0_0000;
/// Where the pages are mapped: the top table's third entry, otherwise unused.
const BASE: u64 = 2 << 39;
const PAGE: u64 = 4096;
const PF: u64 = 14 << 32;

/// Page-directory-pointer table, page directory, page table.
static TABLES: Shared<[[u64; 512]; 3]> = Shared(UnsafeCell::new([[0; 512]; 3]));
static MEMORY: Shared<[[u8; 4096]; 2]> = Shared(UnsafeCell::new([[0; 4096]; 2]));

/// Physical address of a page of memory.
fn memory(n: u64) -> u64 {
    MEMORY.0.get() as u64 + PAGE * n
}

fn invlpg(at: u64) {
    // SAFETY: forgets a translation.
    unsafe { asm!("invlpg [{}]", in(reg) at) };
}

fn reload() {
    // SAFETY: CR3 stays what it is.
    unsafe { asm!("mov {t}, cr3", "mov cr3, {t}", t = out(reg) _) };
}

/// Sets the entries of the pages at [`BASE`]; nothing of them is remembered then.
fn map(entries: &[u64]) {
    // SAFETY: the tables are this module's, and what they map is mapped elsewhere, too.
    unsafe {
        let [pointers, directory, table] = &mut *TABLES.0.get();
        pointers[0] = directory.as_ptr() as u64 | P | W | U;
        directory[0] = table.as_ptr() as u64 | P | W | U;
        table[..entries.len()].copy_from_slice(entries);
        user::top().add(2).write(pointers.as_ptr() as u64 | P | W | U);
    }
    for n in 0..entries.len() as u64 {
        invlpg(BASE + n * PAGE);
    }
}

fn entry(n: usize) -> *mut u64 {
    // SAFETY: as in `map`.
    unsafe { (&raw mut (*TABLES.0.get())[2][n]).cast() }
}

fn load(at: u64) -> u64 {
    raises!(["mov {v:e}, [{a}]"] a = in(reg) at, v = out(reg) _,)
}

fn store(at: u64) -> u64 {
    raises!(["mov [{a}], {v:e}"] a = in(reg) at, v = in(reg) 0x30,)
}

fn fault(found: u64, error: u64, at: u64) -> Verdict {
    same(found, PF | error)?;
    same(last().cr2, at)
}

fn fault_of(page: u64, write: bool, error: u64) -> Verdict {
    map(&[page]);
    fault(if write { store(BASE + 8) } else { load(BASE + 8) }, error, BASE + 8)
}

const WRITE_PROTECT: u64 = 1 << 16;

/// Does `act` with CR0.WP as said.
fn with_protection<T>(on: bool, act: impl FnOnce() -> T) -> T {
    let before: u64;
    // SAFETY: this program has no page that is read-only, but for the tests.
    unsafe {
        asm!("mov {b}, cr0", "mov {n}, {b}", "and {n}, {m}", "or {n}, {o}", "mov cr0, {n}", b = out(reg) before, n = out(reg) _, m = in(reg) !WRITE_PROTECT, o = in(reg) if on { WRITE_PROTECT } else { 0 });
    }
    let result = act();
    // SAFETY: the former value.
    unsafe { asm!("mov cr0, {}", in(reg) before) };
    result
}

fn protected(on: bool) -> Verdict {
    map(&[memory(0) | P]);
    let found = with_protection(on, || store(BASE));
    same(found, if on { PF | 3 } else { NOTHING })
}

fn with_efer<T>(bits: u64, on: bool, act: impl FnOnce() -> T) -> T {
    let before = rdmsr(EFER).unwrap_or(0);
    wrmsr(EFER, if on { before | bits } else { before & !bits });
    let result = act();
    wrmsr(EFER, before);
    result
}

fn no_execute_reserved() -> Verdict {
    with_efer(NXE, false, || fault_of(memory(0) | P | W | NX, false, 9))
}

/// Calls what is at `at`: a RET.
fn call(at: u64) -> u64 {
    // A fault of the call's target leaves its return address on the stack.
    raises!(["mov {s}, rsp", "call {a}", "77:", "mov rsp, {s}"] a = in(reg) at, s = out(reg) _,)
}

fn place_return() {
    // SAFETY: memory of this module's.
    unsafe { (memory(0) as *mut u8).write_volatile(0xc3) };
}

fn no_execute() -> Verdict {
    place_return();
    with_efer(NXE, true, || {
        map(&[memory(0) | P | W]);
        same(call(BASE), NOTHING)?;
        map(&[memory(0) | P | W | NX]);
        fault(call(BASE), 0x11, BASE)
    })
}

fn smep() -> Verdict {
    if !cpu::has(7, 0, 1, 7) {
        return Ok(());
    }
    place_return();
    map(&[memory(0) | P | W | U]);
    same(call(BASE), NOTHING)?;
    let found = with_cr4(1 << 20, || call(BASE));
    fault(found, 0x11, BASE)
}

const SMAP: u64 = 1 << 21;

/// A load with RFLAGS.AC set or clear.
fn load_with(allowed: bool, at: u64) -> u64 {
    if allowed {
        raises!(["stac", "mov {v:e}, [{a}]", "clac"] a = in(reg) at, v = out(reg) _,)
    } else {
        raises!(["clac", "mov {v:e}, [{a}]"] a = in(reg) at, v = out(reg) _,)
    }
}

fn user_page(page: u64) -> Verdict {
    if !cpu::has(7, 0, 1, 20) {
        return Ok(());
    }
    map(&[page | P | W | U]);
    let (allowed, refused) = with_cr4(SMAP, || (load_with(true, BASE + 0x30), load_with(false, BASE + 0x30)));
    same(allowed, NOTHING)?;
    fault(refused, 1, BASE + 0x30)
}

fn smap() -> Verdict {
    user_page(memory(0))
}

fn device_of_user() -> Verdict {
    user_page(DEVICE)
}

fn flags(page: u64) -> Verdict {
    map(&[page | P | W]);
    same(load(BASE + 0x80), NOTHING)?;
    // SAFETY: the processor writes the flags; nobody else does.
    let read = unsafe { entry(0).read_volatile() } & (A | D);
    same(raises!(["mov dword ptr [{a}], 0"] a = in(reg) BASE + 0x80,), NOTHING)?;
    // SAFETY: as above.
    let written = unsafe { entry(0).read_volatile() } & (A | D);
    same(read << 16 | written, A << 16 | A | D)
}

fn large_reserved() -> Verdict {
    map(&[0]);
    // SAFETY: the directory is this module's.
    let set = |value: u64| unsafe { (&raw mut (*TABLES.0.get())[1][1]).write_volatile(value) };
    let at = BASE + (2 << 20);
    // Bits 20 to 13 of a 2 MiB page's entry are reserved.
    set(1 << 13 | 1 << 7 | P | W);
    invlpg(at);
    let found = load(at);
    set(0);
    invlpg(at);
    same(found, PF | 9)
}

fn device_read_only() -> Verdict {
    map(&[DEVICE | P]);
    write32(apic::TASK_PRIORITY, 0);
    let found = with_protection(true, || store(BASE + 0x80));
    fault(found, 3, BASE + 0x80)?;
    same(read32(apic::TASK_PRIORITY).into(), 0)?;
    same(with_protection(false, || store(BASE + 0x80)), NOTHING)?;
    let written = read32(apic::TASK_PRIORITY);
    write32(apic::TASK_PRIORITY, 0);
    same(written.into(), 0x30)
}

fn across_absent() -> Verdict {
    map(&[HOLE | P | W, 0]);
    fault(store(BASE + PAGE - 2), 2, BASE + PAGE)?;
    fault(load(BASE + PAGE - 2), 0, BASE + PAGE)
}

fn across_read_only() -> Verdict {
    map(&[HOLE | P | W, memory(1) | P]);
    let found = with_protection(true, || store(BASE + PAGE - 2));
    fault(found, 3, BASE + PAGE)
}

fn across_devices() -> Verdict {
    map(&[HOLE | P | W, memory(1) | P | W]);
    // SAFETY: memory of this module's.
    unsafe { (memory(1) as *mut u32).write_volatile(0x1234_5678) };
    let value: u64;
    let raised = raises!(["mov {v:e}, [{a}]"] a = in(reg) BASE + PAGE - 2, v = out(reg) value,);
    same(raised, NOTHING)?;
    same(value, 0x5678_ffff)?;
    same(raises!(["mov [{a}], {v:e}"] a = in(reg) BASE + PAGE - 2, v = in(reg) 0xaaaa_bbbbu32,), NOTHING)?;
    // SAFETY: as above.
    let found = unsafe { (memory(1) as *const u32).read_volatile() };
    same(found.into(), 0x1234_aaaa)
}

fn string_across() -> Verdict {
    map(&[HOLE | P | W, 0]);
    let (left, at): (u64, u64);
    let raised = raises!(
        ["rep stosb"]
        inout("rcx") 8u64 => left, inout("rdi") BASE + PAGE - 5 => at, in("al") 0u8,
    );
    fault(raised, 2, BASE + PAGE)?;
    same(left << 32 | at.wrapping_sub(BASE), 3 << 32 | PAGE)
}

fn forgets(act: impl Fn(u64)) -> Verdict {
    map(&[memory(0) | P | W]);
    // SAFETY: memory of this module's.
    unsafe {
        (memory(0) as *mut u32).write_volatile(0x11);
        (memory(1) as *mut u32).write_volatile(0x22);
    }
    let before = read32(BASE);
    // SAFETY: the entry is this module's.
    unsafe { entry(0).write_volatile(memory(1) | P | W) };
    act(BASE);
    same(u64::from(before) << 32 | u64::from(read32(BASE)), 0x11 << 32 | 0x22)
}

fn global_pages() -> Verdict {
    with_cr4(1 << 7, || {
        map(&[memory(0) | P | W | G]);
        // SAFETY: memory of this module's.
        unsafe {
            (memory(0) as *mut u32).write_volatile(0x11);
            (memory(1) as *mut u32).write_volatile(0x22);
        }
        let before = read32(BASE);
        // SAFETY: the entry is this module's.
        unsafe { entry(0).write_volatile(memory(1) | P | W | G) };
        reload();
        let between = read32(BASE);
        // SAFETY: PGE is clear, and set again.
        unsafe { asm!("mov {t}, cr4", "btr {t}, 7", "mov cr4, {t}", "bts {t}, 7", "mov cr4, {t}", t = out(reg) _) };
        same(u64::from(matches!(between, 0x11 | 0x22)), 1)?;
        same(u64::from(before) << 32 | u64::from(read32(BASE)), 0x11 << 32 | 0x22)
    })
}

/// Writes CR3 and, where that was allowed, the former value again.
fn cr3(change: impl Fn(u64) -> u64) -> u64 {
    let before: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) before) };
    raises!(["mov cr3, {new}", "mov cr3, {old}"] new = in(reg) change(before), old = in(reg) before,)
}

fn cr3_reserved() -> Verdict {
    let width = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
    same(cr3(|cr3| cr3 | 1 << width), GP)?;
    same(cr3(|cr3| cr3 | 1 << 62), GP)
}

const PCIDE: u64 = 1 << 17;

fn has_pcid() -> bool {
    cpu::has(1, 0, 2, 17)
}

fn pcid() -> Verdict {
    if !has_pcid() {
        return same(cr4_with(PCIDE), GP);
    }
    let with = with_cr4(PCIDE, || cr3(|cr3| cr3 | 1 << 63 | 5));
    same(with, NOTHING)
}

fn pcid_nonzero() -> Verdict {
    if !has_pcid() {
        return Ok(());
    }
    let cr3: u64;
    // SAFETY: without PCIDE the low bits are cache controls.
    unsafe { asm!("mov {c}, cr3", "mov {n}, {c}", "or {n}, 8", "mov cr3, {n}", c = out(reg) cr3, n = out(reg) _) };
    let found = cr4_with(PCIDE);
    // SAFETY: the former value.
    unsafe { asm!("mov cr3, {}", in(reg) cr3) };
    same(found, GP)
}

fn pcid_paging() -> Verdict {
    if !has_pcid() {
        return Ok(());
    }
    let found = with_cr4(PCIDE, || raises!(["mov {t}, cr0", "btr {t}, 31", "mov cr0, {t}"] t = out(reg) _,));
    same(found, GP)
}

/// INVPCID of `kind` with a descriptor of identifier and address.
fn invalidate(kind: u64, identifier: u64, address: u64) -> u64 {
    let descriptor = [identifier, address];
    raises!(["invpcid {k}, [{d}]"] k = in(reg) kind, d = in(reg) descriptor.as_ptr(),)
}

fn invpcid() -> Verdict {
    if !cpu::has(7, 0, 1, 10) {
        // What a model hides need not be refused.
        return Ok(());
    }
    for (kind, identifier, address, expected) in [
        (0, 0, BASE, NOTHING),
        (0, 0, 1 << 63, GP),
        (0, 1, BASE, GP),
        (1, 1, 0, GP),
        (1, 0, 0, NOTHING),
        (2, 0, 0, NOTHING),
        (3, 0, 0, NOTHING),
        (4, 0, 0, GP),
        (2, 1 << 12, 0, GP),
    ] {
        let found = invalidate(kind, identifier, address);
        same(kind << 56 | found & !(0xff << 56), kind << 56 | expected & !(0xff << 56))?;
    }
    if has_pcid() {
        same(with_cr4(PCIDE, || invalidate(1, 10, 0)), NOTHING)?;
        same(with_cr4(PCIDE, || invalidate(0, 10, 1 << 63)), GP)?;
    }
    Ok(())
}

/// Sets bits of CR4, and clears them where that was allowed.
fn cr4_with(bits: u64) -> u64 {
    let before: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) before) };
    raises!(["mov cr4, {new}", "mov cr4, {old}"] new = in(reg) before | bits, old = in(reg) before,)
}

fn cr4_agrees() -> Verdict {
    // Bit of CR4; leaf, register and bit of CPUID. Bits 13, 14 and above 21 are left to their own tests, or to none.
    let told = [
        (0, 1, 3, 1),
        (1, 1, 3, 1),
        (2, 1, 3, 4),
        (3, 1, 3, 2),
        (4, 1, 3, 3),
        (6, 1, 3, 7),
        (7, 1, 3, 13),
        (9, 1, 3, 24),
        (10, 1, 3, 25),
        (11, 7, 2, 2),
        (16, 7, 1, 0),
        (17, 1, 2, 17),
        (18, 1, 2, 26),
        (20, 7, 1, 7),
        (21, 7, 1, 20),
    ];
    for (bit, leaf, register, told) in told {
        let expected = if cpu::has(leaf, 0, register, told) { NOTHING } else { GP };
        same(bit << 56 | cr4_with(1 << bit) >> 8, bit << 56 | expected >> 8)?;
    }
    for bit in [15, 26, 29, 33, 63] {
        same(bit << 56 | cr4_with(1 << bit) >> 8, bit << 56 | GP >> 8)?;
    }
    Ok(())
}

fn efer_agrees() -> Verdict {
    let before = rdmsr(EFER).unwrap_or(0);
    for (bit, allowed) in [
        (0, cpu::has(0x8000_0001, 0, 3, 11)),
        (1, false),
        (9, false),
        (11, cpu::has(0x8000_0001, 0, 3, 20)),
        (16, false),
        (22, false),
        (63, false),
    ] {
        let found = wrmsr(EFER, before | 1 << bit);
        wrmsr(EFER, before);
        same(bit << 56 | found >> 8, bit << 56 | if allowed { NOTHING } else { GP } >> 8)?;
    }
    Ok(())
}
