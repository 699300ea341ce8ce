//! For programs that are Multiboot images: from 32-bit protected mode to where [`entry!`](crate::entry) expects to be,
//! and a look at what the loader left in memory.
//!
//! Such a program is linked with `multiboot-build.rs` and puts its header into the section `.multiboot`
//! ([`multiboot_header!`](crate::multiboot_header)). Its [`Boot`](crate::Boot) has the command line, by Multiboot 1;
//! what else the loader says, it reads itself.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering};

/// EAX and EBX at the entry.
#[repr(C)]
struct Handover {
    magic: AtomicU32,
    information: AtomicU32,
}

static HANDOVER: Handover = Handover { magic: AtomicU32::new(0), information: AtomicU32::new(0) };

#[cfg(target_os = "none")]
core::arch::global_asm!(
    // Six pages: the top table, one of page directories, and four directories of 2 MiB pages for 4 GiB.
    ".section .bss.multiboot_tables, \"aw\", @nobits",
    ".balign 4096",
    "multiboot_tables: .skip 6 * 4096",
    ".section .rodata.multiboot_gdt, \"a\"",
    ".balign 8",
    "multiboot_gdt: .quad 0, 0x00af9b000000ffff",
    "multiboot_gdt_pointer: .word 15",
    ".long multiboot_gdt",
    ".section .text.multiboot_start, \"ax\"",
    ".code32",
    ".global multiboot_start",
    "multiboot_start:",
    "cli",
    "cld",
    "movl %eax, {handover}",
    "movl %ebx, {handover} + 4",
    "movl $multiboot_tables, %edi",
    "leal 0x1003(%edi), %eax",
    "movl %eax, (%edi)",
    "movl $4, %ecx",
    "leal 0x1000(%edi), %ebx",
    "2: addl $0x1000, %eax",
    "movl %eax, (%ebx)",
    "addl $8, %ebx",
    "loop 2b",
    "movl $0x83, %eax",
    "movl $2048, %ecx",
    "leal 0x2000(%edi), %ebx",
    "3: movl %eax, (%ebx)",
    "addl $0x200000, %eax",
    "addl $8, %ebx",
    "loop 3b",
    "movl %edi, %cr3",
    "movl %cr4, %eax",
    "orl $0x20, %eax",
    "movl %eax, %cr4",
    "movl $0xc0000080, %ecx",
    "rdmsr",
    "orl $0x100, %eax",
    "wrmsr",
    "movl %cr0, %eax",
    "orl $0x80000000, %eax",
    "movl %eax, %cr0",
    "lgdt multiboot_gdt_pointer",
    "ljmp $8, $4f",
    ".code64",
    // Multiboot 1, and its information says that there is a command line.
    "4: xorl %edi, %edi",
    "xorl %edx, %edx",
    "cmpl $0x2badb002, {handover}",
    "jne 5f",
    "movl {handover} + 4, %eax",
    "testb $4, (%rax)",
    "je 5f",
    "movl 16(%rax), %edi",
    "5: jmp _start",
    ".text",
    handover = sym HANDOVER,
    options(att_syntax)
);

/// What the loader put into EAX and EBX: a magic number, and the physical address of its information.
pub fn handover() -> (u32, u32) {
    (HANDOVER.magic.load(Ordering::Relaxed), HANDOVER.information.load(Ordering::Relaxed))
}

unsafe extern "C" {
    static image_end: u8;
}

/// Where the program itself is in memory.
pub fn image() -> Range<u64> {
    // The linker script starts every program there.
    0x10_0000..(&raw const image_end) as u64
}

/// Memory below 4 GiB that the loader filled.
///
/// # Panics
/// It is in page 0, in the program itself or beyond 4 GiB: no loader's information is there.
pub fn memory(address: u64, length: u64) -> &'static [u8] {
    let image = image();
    let end = address.checked_add(length).expect("a range wraps");
    assert!(address >= 0x1000 && end <= 1 << 32, "{address:#x}..{end:#x} cannot be the loader's");
    assert!(end <= image.start || address >= image.end, "{address:#x}..{end:#x} is the program's own");
    let length = usize::try_from(length).expect("below 4 GiB");
    // SAFETY: mapped one to one, as `multiboot_start` did it; reading beyond the machine's memory gives ones. Nothing
    // of the program is there, so nothing writes to it. The address is not null.
    unsafe { core::slice::from_raw_parts(address as *const u8, length) }
}

/// The 32-bit field at `address`. Panics as [`memory`].
pub fn read_u32(address: u64) -> u32 {
    memory(address, 4).first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The 64-bit field at `address`. Panics as [`memory`].
pub fn read_u64(address: u64) -> u64 {
    u64::from(read_u32(address)) | u64::from(read_u32(address + 4)) << 32
}

/// The string at `address`, which a zero byte ends. Panics as [`memory`], and where it is not UTF-8.
pub fn string(address: u64) -> &'static str {
    let length = (address..).take_while(|&at| memory(at, 1) != [0]).count();
    core::str::from_utf8(memory(address, length as u64)).expect("a string of the loader's")
}

/// Puts 32-bit words where a loader looks for the header.
#[macro_export]
macro_rules! multiboot_header {
    ($words:expr) => {
        #[allow(unsafe_code, reason = "the section that the linker script puts first")]
        #[unsafe(link_section = ".multiboot")]
        #[used]
        static MULTIBOOT_HEADER: $crate::multiboot::Header<{ $words.len() }> = $crate::multiboot::Header($words);
    };
}

/// A header, aligned as both versions demand.
#[repr(C, align(8))]
#[derive(Debug)]
pub struct Header<const N: usize>(pub [u32; N]);
