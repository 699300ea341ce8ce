//! Paging: what the processor checks itself, and what Lamina's own walks must check alike (SDM vol. 3, "Paging").

use guest_rt::cpu;

use crate::engine::{DATA, RAX, RCX, RDI, RDX, Run, run};
use crate::registers::{self, EFER};
use crate::seen::{Seen, all, expect, expect_end};
use crate::window::{self, KERNEL, PRESENT, USER};
use crate::{Case, code};

const NO_EXECUTE: u64 = 1 << 63;

pub const CASES: &[Case] = &[
    ("paging-reserved-bit", || read(window::map(8, DATA.address() | reserved(), KERNEL))),
    ("paging-reserved-bit-by-outs", || outs(window::map(8, DATA.address() | reserved(), KERNEL))),
    ("paging-no-execute-off-is-reserved", || {
        let before = registers::read(EFER);
        registers::write(EFER, before & !(1 << 11));
        let seen = read(window::map(8, DATA.address() | NO_EXECUTE, KERNEL));
        registers::write(EFER, before);
        seen
    }),
    ("paging-no-execute", || {
        let before = registers::read(EFER);
        registers::write(EFER, before | 1 << 11);
        let seen =
            Run::new(code!("jmp rdi")).with(RDI, window::map(8, DATA.address() | NO_EXECUTE, KERNEL)).go().into();
        registers::write(EFER, before);
        seen
    }),
    ("paging-not-present-by-outs", || outs(window::map(8, 0, 0))),
    ("paging-write-protect-at-3", || {
        Run::new(code!("mov [rdi], eax")).with(RDI, window::map(8, DATA.address(), PRESENT | 4)).user().go().into()
    }),
    ("paging-smep", || {
        if !cpu::has(7, 0, 1, 7) {
            return Seen::Lacking("SMEP");
        }
        DATA.put(0, &[0xcc]);
        let code = code!("mov rax, cr4", "or eax, 0x100000", "mov cr4, rax", "jmp rdi");
        let seen = Run::new(code).with(RDI, window::map(8, DATA.address(), USER)).go().into();
        run(code!("mov rax, cr4", "and eax, ~0x100000", "mov cr4, rax"));
        seen
    }),
    ("paging-smap", || smap(code!("mov eax, [rdi]"), 0)),
    ("paging-smap-with-ac", || smap(code!("mov eax, [rdi]"), 1 << 18)),
    ("paging-smap-by-outs", || smap(code!("mov rsi, rdi", "mov edx, 0x80", "outsb"), 0)),
    ("paging-smap-by-outs-with-ac", || smap(code!("mov rsi, rdi", "mov edx, 0x80", "outsb"), 1 << 18)),
    ("paging-remapped", || {
        // The same address becomes another page: what was remembered of the first is gone.
        DATA.put(0, &[1; 8]);
        DATA.put(4096, &[2; 8]);
        all(|| {
            let page = window::map(8, DATA.address(), KERNEL);
            let load = || Run::new(code!("mov rax, [rdi]")).with(RDI, page).go().gprs[RAX];
            expect("the first page", load(), 0x0101_0101_0101_0101)?;
            window::map(8, DATA.address() + 4096, KERNEL);
            expect("the second page", load(), 0x0202_0202_0202_0202)
        })
    }),
    ("paging-device-becomes-memory", || {
        all(|| {
            DATA.put(0x20, &[7; 8]);
            let page = window::map(8, 0xfee0_0000, KERNEL);
            let load = || Run::new(code!("mov eax, [rdi + 0x20]")).with(RDI, page).go().gprs[RAX];
            expect("the APIC's number", load(), 0)?;
            window::map(8, DATA.address(), KERNEL);
            expect("memory", load(), 0x0707_0707)?;
            window::map(8, 0xfee0_0000, KERNEL);
            expect("the APIC's number again", load(), 0)
        })
    }),
    ("paging-tables-map-themselves", || {
        // A page-table entry changed through the window it maps.
        all(|| {
            let table = window::table();
            let page = window::map(8, table, KERNEL);
            let write = Run::new(code!("mov [rdi + 8 * 9], rax", "invlpg [rdi + 4096]", "mov rax, [rdi + 4096]"));
            DATA.put(0, &[3; 8]);
            let ran = write.with(RDI, page).with(RAX, DATA.address() | KERNEL).go();
            expect_end(&ran, Seen::Completes)?;
            expect("what was mapped", ran.gprs[RAX], 0x0303_0303_0303_0303)
        })
    }),
    ("paging-open-bus", || {
        all(|| {
            // A hole between devices: ones, and writes go nowhere.
            let ran = Run::new(code!("mov [rdi], eax", "mov rax, [rdi]")).with(RDI, 0xd000_0000).go();
            expect_end(&ran, Seen::Completes)?;
            expect("open bus", ran.gprs[RAX], u64::MAX)
        })
    }),
    ("paging-invpcid-bad-type", || invpcid(4, 0)),
    ("paging-invpcid-reserved", || invpcid(0, 1 << 12)),
    ("paging-invpcid-non-canonical", || {
        DATA.put(8, &(1u64 << 47).to_le_bytes());
        invpcid(0, 0)
    }),
];

/// The highest physical-address bit that this processor does not have, below 52.
fn reserved() -> u64 {
    let width = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
    if width < 52 { 1 << 51 } else { 0 }
}

fn read(address: u64) -> Seen {
    Run::new(code!("mov eax, [rdi]")).with(RDI, address).go().into()
}

fn outs(address: u64) -> Seen {
    Run::new(code!("outsb")).with(6, address).with(RDX, 0x80).go().into()
}

/// At level 0, on a page of level 3's, with supervisor-mode access prevention on.
fn smap(code: &[u8], flags: u64) -> Seen {
    if !cpu::has(7, 0, 1, 20) {
        return Seen::Lacking("SMAP");
    }
    let page = window::map(8, DATA.address(), USER);
    run(code!("mov rax, cr4", "or eax, 0x200000", "mov cr4, rax"));
    let seen = Run::new(code).with(RDI, page).flags(flags).go().into();
    run(code!("mov rax, cr4", "and eax, ~0x200000", "mov cr4, rax"));
    seen
}

fn invpcid(kind: u64, descriptor: u64) -> Seen {
    if !cpu::has(7, 0, 1, 10) {
        return Seen::Lacking("INVPCID");
    }
    DATA.put(0, &descriptor.to_le_bytes());
    let seen = Run::new(code!("invpcid rcx, [rdi]")).with(RCX, kind).with(RDI, DATA.address()).go().into();
    DATA.fill(0);
    seen
}
