//! What ends the VM, or starts it again: with a reason, and nobody else notices.

use core::arch::asm;

use guest_rt::hypercall::Lamina;
use guest_rt::trap;

use crate::calls::either;
use crate::engine::{DATA, RAX, RCX, RDI, RSI, Run, run};
use crate::seen::Seen;
use crate::{Case, code, segments, window};

/// Nothing is here: beyond the VM's memory, below the devices.
const NOWHERE: u64 = 0x8000_0000;
const LAPIC: u64 = 0xfee0_0000;

pub const CASES: &[Case] = &[
    ("end-triple-fault", || {
        trap::load_empty();
        trap::undefined_instruction()
    }),
    ("end-halt", || run(code!("cli", "hlt")).into()),
    ("end-idt-in-mmio", || with_idt(LAPIC)),
    ("end-idt-nowhere", || with_idt(NOWHERE)),
    ("end-idt-unmapped", || with_idt(0x7f00_0000_0000)),
    ("end-idt-too-short", || {
        load_idt(trap::table().0, 16 * 3 - 1);
        trap::undefined_instruction()
    }),
    ("end-gdt-in-mmio", || gdt(LAPIC)),
    ("end-gdt-nowhere", || gdt(NOWHERE)),
    ("end-read-nowhere", || on(NOWHERE, code!("mov rax, [rdi]"))),
    ("end-write-nowhere", || on(NOWHERE, code!("mov [rdi], rax"))),
    ("end-fetch-nowhere", || on(NOWHERE, code!("jmp rdi"))),
    ("end-fetch-mmio", || on(LAPIC, code!("jmp rdi"))),
    ("end-fetch-behind-memory", || on(crate::window::map(9, NOWHERE, window::KERNEL), code!("jmp rdi"))),
    ("end-beyond-the-bus", || on(window::map(9, 1 << 38, window::KERNEL), code!("mov [rdi], rax"))),
    ("end-just-above-4g", || on(window::map(9, 1 << 32, window::KERNEL), code!("mov rax, [rdi]"))),
    ("end-rep-movs-off-the-end", || {
        Run::new(code!("rep movsb")).with(RCX, 1 << 20).with(RSI, DATA.address()).with(RDI, NOWHERE - 4096).go().into()
    }),
    ("end-rep-outs-from-nowhere", || {
        Run::new(code!("mov dx, 0x80", "rep outsb")).with(RCX, 1).with(RSI, NOWHERE).go().into()
    }),
    ("end-rep-ins-to-nowhere", || {
        Run::new(code!("mov dx, 0x60", "rep insb")).with(RCX, 1).with(RDI, NOWHERE).go().into()
    }),
    ("end-stack-nowhere", || Run::new(code!("push rax")).stack(NOWHERE + 8).go().into()),
    ("end-exception-stack-nowhere", || {
        segments::put_exception_stack(NOWHERE + 4096);
        trap::undefined_instruction()
    }),
    ("end-exception-stack-in-mmio", || {
        segments::put_exception_stack(LAPIC + 0x400);
        trap::undefined_instruction()
    }),
    ("end-page-tables-nowhere", || Run::new(code!("mov cr3, rax", "mov rbx, [rdi]")).with(RAX, NOWHERE).go().into()),
    ("end-page-tables-in-mmio", || Run::new(code!("mov cr3, rax", "mov rbx, [rdi]")).with(RAX, LAPIC).go().into()),
    ("end-page-table-nowhere", || {
        window::break_top(5, NOWHERE | window::USER);
        on(5 << 39, code!("mov rax, [rdi]"))
    }),
    ("end-vector-to-mmio", || {
        let _ = guest_rt::extended::Extended::enable();
        on(LAPIC + 0x80, code!("addps xmm0, [rdi]"))
    }),
    ("end-x87-to-mmio", || on(LAPIC + 0x80, code!("fnstenv [rdi]"))),
    ("end-xsave-to-mmio", || {
        let _ = guest_rt::extended::Extended::enable();
        on(LAPIC, code!("mov eax, 7", "xor edx, edx", "xsave [rdi]"))
    }),
    ("end-reset-cf9", || Run::new(code!("mov dx, 0xcf9", "mov al, 6", "out dx, al")).go().into()),
    ("end-reset-8042", || Run::new(code!("mov al, 0xfe", "out 0x64, al")).go().into()),
    ("end-reset-fast", || Run::new(code!("mov al, 1", "out 0x92, al")).go().into()),
    ("end-reset-loop", || Run::new(code!("mov dx, 0xcf9", "mov al, 6", "out dx, al")).go().into()),
    ("end-power-off", || Run::new(code!("mov dx, 0x604", "mov ax, 0x3400", "out dx, ax")).go().into()),
    ("end-shutdown-port", || {
        for letter in *b"ShutShutdown" {
            Run::new(code!("mov dx, 0x8900", "out dx, al")).with(RAX, letter.into()).go();
        }
        Seen::Completes
    }),
    ("end-exit-dirty", || {
        let run = Run::new(either(code!("vmcall"), code!("vmmcall"))).with(RAX, lamina_arch::hypercall::EXIT);
        run.with(RDI, 0xffff_ffff_0000_0000).go().into()
    }),
    ("end-exit-status", || match Lamina::find() {
        Some(lamina) => lamina.exit(0x8000_0001),
        None => Seen::Lacking("Lamina"),
    }),
];

fn on(address: u64, code: &[u8]) -> Seen {
    Run::new(code).with(RDI, address).go().into()
}

fn load_idt(base: u64, limit: u16) {
    let mut descriptor = [0; 10];
    descriptor[..2].copy_from_slice(&limit.to_le_bytes());
    descriptor[2..].copy_from_slice(&base.to_le_bytes());
    // SAFETY: what the case is about; the program does not go on behind the next exception.
    unsafe { asm!("lidt [{}]", in(reg) &raw const descriptor, options(readonly, nostack, preserves_flags)) };
}

fn with_idt(base: u64) -> Seen {
    load_idt(base, 0xfff);
    trap::undefined_instruction()
}

/// Loads a segment from a descriptor table that is there.
fn gdt(base: u64) -> Seen {
    DATA.put(0, &0xffffu16.to_le_bytes());
    DATA.put(2, &base.to_le_bytes());
    on(DATA.address(), code!("lgdt [rdi]", "mov ax, 0x10", "mov ds, ax"))
}
