//! The modes that a 64-bit program has to leave long mode for: tasks, virtual-8086 mode, real mode.
//!
//! `legacy_call` takes the processor to 32-bit protected mode without paging and back. The code that runs there is below
//! it; this module's Rust code fills its tables before and reads its results afterwards.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use crate::user::Shared;
use crate::{Test, Verdict, same};

pub const TESTS: &[Test] = &[
    ("task: jump and back", || task(0, 0x11)),
    ("task: not nested by a jump", || task(1, 0)),
    ("task: TS is set", || task(2, 1)),
    ("task: call nests", || task(3, 1)),
    ("task: the link is the caller", || task(4, 0x28)),
    ("task: iret comes back", || task(5, 0x22)),
    ("task: gate of an interrupt", || task(6, 0x33)),
    ("task: gate of a fault has its error code", || task(7, 0xf8)),
    ("task: gate of a fault saves where it was", || task(8, 1)),
    ("task: busy task is refused", || task(9, 0x28)),
    ("task: 16-bit", || task(10, 0x44)),
    ("task: registers are kept apart", || task(11, 0x1234_5678)),
    ("virtual-8086: segments and an interrupt", || virtual_8086(0, 0x3412)),
    ("virtual-8086: the flag was set", || virtual_8086(1, 1)),
    ("virtual-8086: cli without IOPL", || virtual_8086(2, 13)),
    ("real mode: interrupt and divide error", || real(0, 0x00aa_0055)),
    ("real mode: segment arithmetic", || real(1, 0xbeef)),
    ("real mode: string and far call", || real(2, 0x6667)),
];

const CODE: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const CODE16: u64 = 0x0000_9b00_0000_ffff;
const DATA16: u64 = 0x0000_9300_0000_ffff;

/// Where 16-bit code is copied to. Unit: bytes.
pub const LOW: u64 = 0x8000;

static GDT: Shared<[u64; 16]> = Shared(UnsafeCell::new([0; 16]));
static IDT: Shared<[u64; 128]> = Shared(UnsafeCell::new([0; 128]));
/// TSSs 0 to 3 of 32 bits, 4 of 16 bits.
pub static TSS: Shared<[[u32; 32]; 5]> = Shared(UnsafeCell::new([[0; 32]; 5]));
/// What the code leaves.
pub static RESULTS: Shared<[u32; 16]> = Shared(UnsafeCell::new([0; 16]));
static STACKS: Shared<[[u8; 1024]; 6]> = Shared(UnsafeCell::new([[0; 1024]; 6]));

global_asm!(
    ".section .data.legacy, \"aw\"",
    "legacy_gdtr: .word 127", ".quad {gdt}",
    "legacy_idtr: .word 1023", ".quad {idt}",
    "legacy_ivt: .word 0x3ff", ".quad 0",
    "legacy_saved_gdtr: .skip 10",
    "legacy_saved_idtr: .skip 10",
    ".balign 8",
    "legacy_saved_rsp: .quad 0",
    "legacy_saved_cr3: .quad 0",
    "legacy_saved_esp: .long 0",
    ".text",
    ".global legacy_call",
    "legacy_call:",
    "pushq %rbx", "pushq %rbp", "pushq %r12", "pushq %r13", "pushq %r14", "pushq %r15",
    "movq %rsp, legacy_saved_rsp",
    "sgdt legacy_saved_gdtr",
    "sidt legacy_saved_idtr",
    "movq %cr3, %rax", "movq %rax, legacy_saved_cr3",
    "lgdt legacy_gdtr", "lidt legacy_idtr",
    "pushq $8", "leaq 1f(%rip), %rax", "pushq %rax", "lretq",
    ".code32",
    "1: movl $0x10, %eax", "movl %eax, %ds", "movl %eax, %es", "movl %eax, %ss", "movl %eax, %fs", "movl %eax, %gs",
    "movl ${stacks} + 1024, %esp",
    "movl %cr0, %eax", "btrl $31, %eax", "movl %eax, %cr0",
    "movl $0xc0000080, %ecx", "rdmsr", "btrl $8, %eax", "wrmsr",
    "calll *%edi",
    "legacy_return:",
    "movl legacy_saved_cr3, %eax", "movl %eax, %cr3",
    "movl $0xc0000080, %ecx", "rdmsr", "btsl $8, %eax", "wrmsr",
    "clts",
    "movl %cr0, %eax", "btsl $31, %eax", "movl %eax, %cr0",
    "lgdt legacy_saved_gdtr",
    "ljmp $8, $2f",
    ".code64",
    "2: lidt legacy_saved_idtr",
    "movl $0x10, %eax", "movl %eax, %ds", "movl %eax, %es", "movl %eax, %ss",
    "xorl %eax, %eax", "movl %eax, %fs", "movl %eax, %gs",
    "movq legacy_saved_rsp, %rsp",
    "popq %r15", "popq %r14", "popq %r13", "popq %r12", "popq %rbp", "popq %rbx",
    "retq",

    // Tasks. TR gets the main task's TSS.
    ".code32",
    ".global legacy_tasks",
    "legacy_tasks:",
    "movw $0x28, %ax", "ltrw %ax",
    "movl $0x12345678, %ebx",
    "ljmp $0x30, $0",
    "movl %ebx, {results} + 44",
    "lcall $0x38, $0",
    "movl $0x22, {results} + 20",
    "int $0x40",
    // A fault: the selector is outside of the table. Its handler goes on behind it.
    "movl $0xf8, %eax",
    ".global legacy_fault", "legacy_fault: movw %ax, %fs",
    // The main task is busy: #GP with its selector.
    ".global legacy_busy", "legacy_busy: ljmp $0x28, $0",
    "3: lcall $0x50, $0",
    "retl",
    ".global legacy_task_jump",
    "legacy_task_jump:",
    "movl $0x11, {results}",
    "pushfl", "popl %eax", "shrl $14, %eax", "andl $1, %eax", "movl %eax, {results} + 4",
    "movl %cr0, %eax", "shrl $3, %eax", "andl $1, %eax", "movl %eax, {results} + 8",
    "movl $0, %ebx",
    "ljmp $0x28, $0",
    ".global legacy_task_call",
    "legacy_task_call:",
    "pushfl", "popl %eax", "shrl $14, %eax", "andl $1, %eax", "movl %eax, {results} + 12",
    "movzwl {tss} + 256, %eax", "movl %eax, {results} + 16",
    "iretl",
    // Called again by INT 0x40.
    "movl $0x33, {results} + 24",
    "iretl",
    ".global legacy_task_fault",
    "legacy_task_fault:",
    "popl %eax", "movl %eax, {results} + 28",
    "movl {tss} + 32, %eax", "cmpl $legacy_fault, %eax", "sete %al", "movzbl %al, %eax", "movl %eax, {results} + 32",
    "movl $legacy_busy, {tss} + 32",
    // IRET to another task saves flags. QEMU's emulation (7.2) saves what the last comparison compared, unless somebody has
    // read them since: TF is among that.
    "pushfl", "popl %eax",
    "iretl",
    // The second fault: the jump to a busy task.
    "popl %eax", "movl %eax, {results} + 36",
    "movl $3b, {tss} + 32",
    "iretl",
    ".global legacy_task_16",
    "legacy_task_16:",
    "movl $0x44, {results} + 40",
    "iretl",

    // Virtual-8086 mode.
    ".global legacy_v86",
    "legacy_v86:",
    "movl %esp, legacy_saved_esp",
    "movw $0x28, %ax", "ltrw %ax",
    "pushl $0x900", "pushl $0x900", "pushl $0x900", "pushl $0x900",
    "pushl $0x900", "pushl $0x7f0", "pushl $0x23002", "pushl $0x800", "pushl $0",
    "iretl",
    ".global legacy_v86_int",
    "legacy_v86_int:",
    "movl $0x10, %ecx", "movl %ecx, %ds",
    "movl %eax, {results}",
    "movl 8(%esp), %eax", "shrl $17, %eax", "andl $1, %eax", "movl %eax, {results} + 4",
    // Again, at the CLI, with IOPL 0.
    "andl $0xffffcfff, 8(%esp)",
    "iretl",
    ".global legacy_v86_fault",
    "legacy_v86_fault:",
    "movl $0x10, %eax", "movl %eax, %ds",
    "movl $13, {results} + 8",
    "movl %eax, %es", "movl %eax, %fs", "movl %eax, %gs",
    "movl legacy_saved_esp, %esp",
    "retl",

    // Real mode, by way of 16-bit protected mode; the code is at 0x8000.
    ".global legacy_real",
    "legacy_real:",
    "movl %esp, legacy_saved_esp",
    "lidt legacy_ivt",
    "ljmp $0x18, $0x8000",
    ".global legacy_real_return",
    "legacy_real_return:",
    "movl $0x10, %eax", "movl %eax, %ds", "movl %eax, %es", "movl %eax, %ss", "movl %eax, %fs", "movl %eax, %gs",
    "movl legacy_saved_esp, %esp",
    "lidt legacy_idtr",
    "retl",

    ".code16",
    ".global legacy_v86_code, legacy_v86_end, legacy_real_code, legacy_real_end",
    "legacy_v86_code:",
    "movw $0x1234, 0x10",
    "movw $0x900, %ax", "movw %ax, %es",
    "movb %es:0x11, %al", "movb %es:0x10, %ah", "xchgb %al, %ah",
    "movw %es:0x10, %bx", "xchgb %bl, %bh", "movzwl %bx, %eax",
    "int $0x41",
    "cli",
    "hlt",
    "legacy_v86_end:",
    "legacy_real_code:",
    "movw $0x20, %ax", "movw %ax, %ds", "movw %ax, %ss",
    "movl %cr0, %eax", "andl $0xfffffffe, %eax", "movl %eax, %cr0",
    "ljmp $0x800, $(4f - legacy_real_code)",
    "4: xorw %ax, %ax", "movw %ax, %ds", "movw %ax, %ss", "movw %ax, %es", "movw $0x7c00, %sp",
    // Vectors 0 and 0x42.
    "movw $(5f - legacy_real_code), 0", "movw $0x800, 2",
    "movw $(6f - legacy_real_code), 0x108", "movw $0x800, 0x10a",
    "movl $0, 0x7000",
    "int $0x42",
    "xorw %cx, %cx", "movw $1, %ax", "xorw %dx, %dx", "divw %cx",
    // 0xffff:0x10 is 1 MiB with A20 on; 0x0900:0x0020 and 0x0902:0 are the same.
    "movw $0x900, %ax", "movw %ax, %es", "movw $0xbeef, %es:0x20",
    "movw $0x902, %ax", "movw %ax, %fs", "movzwl %fs:0, %eax", "movl %eax, 0x7004",
    "xorw %ax, %ax", "movw %ax, %es", "cld", "movw $0x7100, %di", "movw $4, %cx", "movw $0x6666, %ax", "rep stosw",
    "lcall $0x800, $(7f - legacy_real_code)",
    "movzwl 0x7106, %eax", "movl %eax, 0x7008",
    "movl %cr0, %eax", "orl $1, %eax", "movl %eax, %cr0",
    "ljmpl $8, $legacy_real_return",
    // The divide error returns to DIV, two bytes long.
    "5: addb $0xaa, 0x7002", "pushw %bp", "movw %sp, %bp", "addw $2, 2(%bp)", "popw %bp", "iretw",
    "6: addb $0x55, 0x7000", "iretw",
    "7: incw 0x7106", "lretw",
    "legacy_real_end:",
    ".code64",
    gdt = sym GDT,
    idt = sym IDT,
    tss = sym TSS,
    results = sym RESULTS,
    stacks = sym STACKS,
    options(att_syntax)
);

unsafe extern "C" {
    fn legacy_call(routine: u64);
    static legacy_tasks: u8;
    static legacy_task_jump: u8;
    static legacy_task_call: u8;
    static legacy_task_fault: u8;
    static legacy_task_16: u8;
    static legacy_v86: u8;
    static legacy_v86_int: u8;
    static legacy_v86_fault: u8;
    static legacy_v86_code: u8;
    static legacy_v86_end: u8;
    static legacy_real: u8;
    static legacy_real_code: u8;
    static legacy_real_end: u8;
}

/// An address of the program.
#[allow(clippy::cast_possible_truncation, reason = "the program is below 4 GiB")]
pub fn low(at: *const u8) -> u32 {
    at as u64 as u32
}

fn system(base: u64, limit: u64, rights: u64) -> u64 {
    limit & 0xffff | (base & 0xff_ffff) << 16 | rights << 40 | (base >> 24) << 56
}

/// A gate of an IDT of 32 bits.
pub fn gate(selector: u64, at: u32, rights: u64) -> u64 {
    let at = u64::from(at);
    at & 0xffff | selector << 16 | rights << 40 | (at >> 16) << 48
}

/// Runs `routine` in 32-bit mode with fresh tables and these gates, by their vectors.
pub fn run(routine: *const u8, interrupts: &[(usize, u64)]) -> [u32; 16] {
    let entries = [&raw const legacy_task_jump, &raw const legacy_task_call, &raw const legacy_task_fault];
    prepare(entries, interrupts);
    // SAFETY: nothing else uses these tables now.
    unsafe {
        let (gdt, tasks) = (&mut *GDT.0.get(), &mut *TSS.0.get());
        gdt[10] = system(tss(4), 0x2b, 0x81);
        // Of 16 bits: IP cannot reach the code, so its segment begins there.
        gdt[11] = system(u64::from(low(&raw const legacy_task_16)), 0xffff, 0x9b) | 1 << 54;
        let words = tasks[4].as_mut_ptr().cast::<u16>();
        for (at, value) in [(7, 0), (8, 2), (13, 0x7000), (17, 0x10), (18, 0x58), (19, 0x20), (20, 0x10)] {
            words.add(at).write(value);
        }
    }
    call(routine)
}

/// The same with three tasks (selectors 0x30, 0x38, 0x40) that begin at `entries`, and one in virtual-8086 mode (0x50,
/// busy) at [`LOW`].
pub fn run_tasks(routine: *const u8, entries: [*const u8; 3], interrupts: &[(usize, u64)]) -> [u32; 16] {
    prepare(entries, interrupts);
    // SAFETY: nothing else uses these tables now.
    unsafe {
        let (gdt, tasks) = (&mut *GDT.0.get(), &mut *TSS.0.get());
        gdt[10] = system(tss(4), 0x67, 0x8b);
        let task = &mut tasks[4];
        task[9] = 0x2_0002;
        task[14] = 0x7f0;
        // ES, CS (that of `LOW`), SS, DS, FS, GS.
        for (place, segment) in task[18..24].iter_mut().zip([0x2345, 0x800, 0x900, 0x1234, 0, 0]) {
            *place = segment;
        }
    }
    call(routine)
}

fn stack(n: usize) -> u32 {
    low(STACKS.0.get().cast::<u8>().wrapping_add(1024 * (n + 1)))
}

fn tss(n: usize) -> u64 {
    TSS.0.get().cast::<u8>().wrapping_add(128 * n) as u64
}

/// Fresh tables: the main task, and three that begin at `entries`.
fn prepare(entries: [*const u8; 3], interrupts: &[(usize, u64)]) {
    // SAFETY: nothing else uses these tables now.
    unsafe {
        let (gdt, idt, tasks) = (&mut *GDT.0.get(), &mut *IDT.0.get(), &mut *TSS.0.get());
        *RESULTS.0.get() = [0; 16];
        *gdt = [0; 16];
        gdt[1..5].copy_from_slice(&[CODE, DATA, CODE16, DATA16]);
        for n in 0..4 {
            gdt[5 + n] = system(tss(n), 0x67, 0x89);
        }
        *idt = [0; 128];
        for &(vector, entry) in interrupts {
            idt[vector] = entry;
        }
        *tasks = [[0; 32]; 5];
        // The main task: a stack for what comes from virtual-8086 mode.
        tasks[0][1] = stack(5);
        tasks[0][2] = 0x10;
        for (n, entry) in entries.into_iter().enumerate() {
            let task = &mut tasks[n + 1];
            task[8] = low(entry);
            task[9] = 2;
            task[14] = stack(n + 1);
            task[18] = 0x10;
            task[19] = 8;
            task[20..24].fill(0x10);
        }
    }
}

fn call(routine: *const u8) -> [u32; 16] {
    // SAFETY: the tables are prepared for it.
    unsafe {
        legacy_call(routine as u64);
        *RESULTS.0.get()
    }
}

fn result(results: [u32; 16], n: usize, expected: u64) -> Verdict {
    same(results[n].into(), expected)
}

fn task(n: usize, expected: u64) -> Verdict {
    // Task gates: vector 13 to the third task, 0x40 to the second.
    let results = run(&raw const legacy_tasks, &[(13, 0x40 << 16 | 0x85 << 40), (0x40, 0x38 << 16 | 0x85 << 40)]);
    result(results, n, expected)
}

/// Copies 16-bit code to where its segment begins.
fn place(from: *const u8, to: *const u8) {
    let length = (to as usize).saturating_sub(from as usize);
    // SAFETY: conventional memory that nobody uses.
    unsafe { core::ptr::copy(from, LOW as *mut u8, length) };
}

fn virtual_8086(n: usize, expected: u64) -> Verdict {
    place(&raw const legacy_v86_code, &raw const legacy_v86_end);
    let (int, fault) = (low(&raw const legacy_v86_int), low(&raw const legacy_v86_fault));
    let results = run(&raw const legacy_v86, &[(13, gate(8, fault, 0x8e)), (0x41, gate(8, int, 0xee))]);
    result(results, n, expected)
}

fn real(n: usize, expected: u64) -> Verdict {
    place(&raw const legacy_real_code, &raw const legacy_real_end);
    run(&raw const legacy_real, &[]);
    // SAFETY: where the code has left its results.
    let found = unsafe { ((0x7000 + 4 * n) as *const u32).read_volatile() };
    same(found.into(), expected)
}
