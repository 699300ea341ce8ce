//! More of 32-bit protected mode: task gates for NMIs, interrupts and traps, a task in virtual-8086 mode, and paging with
//! entries of four bytes and with page-directory pointers.

use core::arch::global_asm;

use crate::legacy::{self, RESULTS, TSS};
use crate::user::Shared;
use crate::{Test, Verdict, same};

pub const TESTS: &[Test] = &[
    ("task gate: nmi", || tasks(0, 1)),
    ("task gate: interrupt", || tasks(1, 1)),
    ("task gate: into", || tasks(2, 1)),
    ("task gate: virtual-8086 task and back", || tasks(3, 1)),
    ("task gate: int 2 is no nmi", || tasks(4, 2)),
    ("paging of 32 bits: on", || paging(0, 0x111)),
    ("paging of 32 bits: a device", || paging(1, 0x14)),
    ("paging of 32 bits: accessed and dirty", || paging(2, 0x60)),
    ("paging of 32 bits: page fault", || paging(3, 0x0002_000e)),
    ("pae paging: on", || paging(4, 0x222)),
    ("pae paging: a device", || paging(5, 0x14)),
    ("pae paging: pointers with reserved bits, by cr3", || paging(6, 1)),
    ("pae paging: pointers with reserved bits, by cr0", || paging(7, 1)),
    ("pae paging: pointers are kept until cr3 is written", || paging(8, 0x333)),
];

/// A page directory of 4 MiB pages.
static DIRECTORY: Shared<[u32; 1024]> = Shared(core::cell::UnsafeCell::new([0; 1024]));
/// Page-directory pointers, and four directories of 2 MiB pages.
static POINTERS: Shared<[u64; 512]> = Shared(core::cell::UnsafeCell::new([0; 512]));
static DIRECTORIES: Shared<[[u64; 512]; 4]> = Shared(core::cell::UnsafeCell::new([[0; 512]; 4]));

global_asm!(
    ".code32",
    ".global legacy32_tasks",
    "legacy32_tasks:",
    "movw $0x28, %ax", "ltrw %ax",
    // An NMI to self, by the processor's number.
    "movl $0x13f, 0xfee000f0",
    "movl 0xfee00020, %eax", "andl $0xff000000, %eax", "movl %eax, 0xfee00310", "movl $0x4400, 0xfee00300",
    "nop", "nop", "nop",
    // An interrupt to self.
    "movl $0x44041, 0xfee00300", "sti", "nop", "nop", "cli",
    "movb $0x7f, %al", "addb $1, %al", "into",
    "int $2", "movl {results}, %eax", "movl %eax, {results} + 16", "movl $1, {results}",
    // IRET out of a task that is nested, to one in virtual-8086 mode, whose #UD leads back.
    "movw $0x50, {tss}",
    "pushfl", "orl $0x4000, (%esp)", "popfl",
    "iretl",
    "incl {results} + 12",
    "pushfl", "andl $0xffffbfff, (%esp)", "popfl",
    "retl",
    ".global legacy32_nmi, legacy32_interrupt, legacy32_trap",
    "legacy32_nmi: incl {results}", "iretl", "jmp legacy32_nmi",
    "legacy32_interrupt: incl {results} + 4", "movl $0, 0xfee000b0", "iretl", "jmp legacy32_interrupt",
    "legacy32_trap: incl {results} + 8", "iretl", "jmp legacy32_trap",

    ".global legacy32_paging",
    "legacy32_paging:",
    "movl %cr4, %ebp",
    "movl %ebp, %eax", "andl $0xffffffdf, %eax", "orl $0x10, %eax", "movl %eax, %cr4",
    "movl ${directory}, %eax", "movl %eax, %cr3",
    "movl %cr0, %eax", "orl $0x80000000, %eax", "movl %eax, %cr0",
    "movl $0x111, {results}",
    "movzbl 0xfee00030, %eax", "movl %eax, {results} + 4",
    // The 4 MiB page at 0x40000000 is the first one, too.
    "movl {directory} + 1024, %eax", "movl 0x40000000, %ecx", "movl %ecx, 0x40000000",
    "movl {directory} + 1024, %eax", "andl $0x60, %eax", "movl %eax, {results} + 8",
    // The next one is not present.
    "movl %eax, 0x40400000",
    "movl %cr0, %eax", "andl $0x7fffffff, %eax", "movl %eax, %cr0",
    // PAE.
    "movl %cr4, %eax", "orl $0x20, %eax", "movl %eax, %cr4",
    "movl ${pointers}, %eax", "movl %eax, %cr3",
    "movl %cr0, %eax", "orl $0x80000000, %eax", "movl %eax, %cr0",
    "movl $0x222, {results} + 16",
    "movzbl 0xfee00030, %eax", "movl %eax, {results} + 20",
    // The second pointer goes, and counts until CR3 is written.
    "movl $0x333, 0x40000100", "movl {pointers} + 8, %ebx", "movl $0, {pointers} + 8", "invlpg 0x40000100",
    "movl 0x40000100, %eax", "movl %eax, {results} + 32", "movl %ebx, {pointers} + 8",
    // Reserved bits.
    "orl $2, {pointers} + 8",
    "movl ${pointers}, %eax", "movl %eax, %cr3", "movl {faults}, %ecx", "movl %ecx, {results} + 24",
    "movl %cr0, %eax", "andl $0x7fffffff, %eax", "movl %eax, %cr0",
    "movl %cr0, %eax", "orl $0x80000000, %eax", "movl $0, {faults}", "movl %eax, %cr0",
    "movl {faults}, %ecx", "movl %ecx, {results} + 28",
    "movl %cr0, %eax", "andl $0x7fffffff, %eax", "movl %eax, %cr0",
    "movl %ebp, %cr4",
    "retl",
    // #GP of a move of three bytes.
    ".global legacy32_gp, legacy32_pf",
    "legacy32_gp: incl {faults}", "addl $4, %esp", "addl $3, (%esp)", "iretl",
    // #PF of a move of five bytes: error code and vector of the first. There is another one where the second pointer does
    // not count any more.
    "legacy32_pf: popl %ecx", "cmpl $0, {results} + 12", "jne 1f",
    "shll $16, %ecx", "orl $14, %ecx", "movl %ecx, {results} + 12",
    "1: addl $5, (%esp)", "iretl",
    ".code64",
    results = sym RESULTS,
    tss = sym TSS,
    directory = sym DIRECTORY,
    pointers = sym POINTERS,
    faults = sym FAULTS,
    options(att_syntax)
);

static FAULTS: Shared<u32> = Shared(core::cell::UnsafeCell::new(0));

unsafe extern "C" {
    static legacy32_tasks: u8;
    static legacy32_nmi: u8;
    static legacy32_interrupt: u8;
    static legacy32_trap: u8;
    static legacy32_paging: u8;
    static legacy32_gp: u8;
    static legacy32_pf: u8;
}

fn tasks(n: usize, expected: u64) -> Verdict {
    let entries = [&raw const legacy32_nmi, &raw const legacy32_interrupt, &raw const legacy32_trap];
    // UD2, where the task in virtual-8086 mode begins.
    // SAFETY: conventional memory that nobody uses.
    unsafe { (legacy::LOW as *mut [u8; 2]).write([0x0f, 0x0b]) };
    let gate = |selector: u64| selector << 16 | 0x85 << 40;
    let gates = [(2, gate(0x30)), (0x41, gate(0x38)), (4, gate(0x40)), (6, gate(0x28))];
    let results = legacy::run_tasks(&raw const legacy32_tasks, entries, &gates);
    crate::apic::enable();
    same(results[n].into(), expected)
}

fn paging(n: usize, expected: u64) -> Verdict {
    const AMD: u32 = 0x6874_7541;
    // A processor that reads the pointers whenever it needs them is as right.
    if n == 8 && guest_rt::cpu::cpuid(0, 0)[1] == AMD {
        return Ok(());
    }
    // SAFETY: nothing else uses these tables.
    unsafe {
        let directory = &mut *DIRECTORY.0.get();
        for (entry, page) in directory.iter_mut().zip(0u32..) {
            *entry = page << 22 | 0x83;
        }
        directory[0x100] = 0x83;
        directory[0x101] = 0;
        let directories = &mut *DIRECTORIES.0.get();
        for (entry, page) in directories.as_flattened_mut().iter_mut().zip(0u64..) {
            *entry = page << 21 | 0x83;
        }
        // The second gigabyte is the first one, too.
        directories[1] = directories[0];
        let pointers = &mut *POINTERS.0.get();
        for (pointer, directory) in pointers.iter_mut().zip(directories.iter()) {
            *pointer = directory.as_ptr() as u64 | 1;
        }
        *FAULTS.0.get() = 0;
    }
    let (gp, pf) = (legacy::low(&raw const legacy32_gp), legacy::low(&raw const legacy32_pf));
    let gates = [(13, legacy::gate(8, gp, 0x8e)), (14, legacy::gate(8, pf, 0x8e))];
    let results = legacy::run(&raw const legacy32_paging, &gates);
    same(results[n].into(), expected)
}
