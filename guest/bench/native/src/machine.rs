//! What touches the machine: memory, page tables, the jump.

use core::arch::asm;
use core::ops::Range;

/// Top table, one table of 1 GiB entries, four of 2 MiB pages. Unit: bytes.
pub const TABLES_SIZE: u64 = 6 * 0x1000;
/// Present and writable.
const TABLE: u64 = 0b11;
/// And a page of 2 MiB.
const LARGE: u64 = 0b1000_0011;
/// Line status of the first serial port; bit 5: the transmitter takes a byte.
const LINE_STATUS: u16 = 0x3fd;
const TRANSMITTER: u16 = 0x3f8;

/// Null, two entries that Linux does not use, its code segment at 0x10, its data segment at 0x18.
static GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// A range of physical memory that is ours.
pub struct Physical {
    offset: u64,
    range: Range<u64>,
}

impl Physical {
    /// # Safety
    /// All of the range is mapped writable at `offset`, and nobody else uses it.
    pub unsafe fn new(offset: u64, range: Range<u64>) -> Self {
        Self { offset, range }
    }

    /// Writes; `None` outside the range.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Option<()> {
        let end = at.checked_add(bytes.len() as u64)?;
        if at < self.range.start || end > self.range.end {
            return None;
        }
        // SAFETY: it is inside the range, which is mapped and ours; `bytes` is not in it, since the range is memory that
        // the loader left free.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), (self.offset + at) as *mut u8, bytes.len()) };
        Some(())
    }
}

/// Makes page tables at `at` that map the first 4 GiB one to one, and above that what is mapped now: this program goes
/// on running under them. Returns the address of the top one; `None` outside `memory`.
pub fn identity_tables(memory: &Physical, at: u64) -> Option<u64> {
    let current: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) current, options(nomem, nostack, preserves_flags)) };
    let top = (memory.offset + (current & 0x000f_ffff_ffff_f000)) as *const [u64; 512];
    // SAFETY: all of physical memory is mapped at the offset, page tables too, and nobody changes them now.
    let mut table = unsafe { *top };
    let tables: [u64; 6] = core::array::from_fn(|index| at + 0x1000 * index as u64);
    table[0] = tables[1] | TABLE;
    let write = |at: u64, table: &[u64; 512]| {
        table.iter().zip(0..).try_for_each(|(entry, index)| memory.write(at + 8 * index, &entry.to_le_bytes()))
    };
    write(tables[0], &table)?;
    let mut table = [0; 512];
    for (entry, directory) in table.iter_mut().zip(&tables[2..]) {
        *entry = directory | TABLE;
    }
    write(tables[1], &table)?;
    for (gigabyte, directory) in (0..).zip(&tables[2..]) {
        let table: [u64; 512] = core::array::from_fn(|index| (gigabyte << 30 | (index as u64) << 21) | LARGE);
        write(*directory, &table)?;
    }
    Some(at)
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Jumps to a kernel as the boot protocol has it ("64-bit Boot Protocol"): interrupts off, its segments, RSI at the zero
/// page, all of it mapped one to one.
///
/// # Safety
/// The tables at `tables` map this program and stack as they are now, and map the kernel, the zero page and what it names
/// one to one; `entry` is the kernel's 64-bit entry.
pub unsafe fn jump(entry: u64, zero: u64, tables: u64) -> ! {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let gdt = Pointer { limit: 31, base: (&raw const GDT) as u64 };
    // SAFETY: the caller's promise; nothing of this program runs afterwards.
    unsafe {
        asm!(
            "cli",
            "cld",
            "lgdt [{gdt}]",
            "mov cr3, {tables}",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "mov ss, {data:e}",
            "push 0x10",
            "push {entry}",
            "retfq",
            gdt = in(reg) &raw const gdt,
            tables = in(reg) tables,
            data = in(reg) 0x18_u64,
            entry = in(reg) entry,
            in("rsi") zero,
            options(noreturn),
        )
    }
}

// The way from 64-bit mode to where a Multiboot image is entered, in memory that is mapped one to one: moves the image
// to its place (RDI: to, RSI: from, RCX: length), which may be where this program was, and leaves long mode. RDX: the
// information, R8: the entry.
core::arch::global_asm!(
    ".section .rodata.descent, \"a\"",
    ".balign 16",
    "descent_start:",
    "rep movsb",
    "mov ebx, edx",
    "mov ebp, r8d",
    "lea rsp, [rip + descent_end]",
    "lea rax, [rip + 3f]",
    "mov [rip + 4f + 2], rax",
    "lgdt [rip + 4f]",
    "push 8",
    "lea rax, [rip + 2f]",
    "push rax",
    "retfq",
    ".code32",
    "2:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov ss, eax",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "and eax, 0xfffffeff",
    "wrmsr",
    "mov eax, 0x2badb002",
    "jmp ebp",
    ".code64",
    ".balign 8",
    "3: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff",
    "4: .word 23",
    ".quad 0",
    ".skip 64",
    "descent_end:",
    ".text",
);

unsafe extern "C" {
    static descent_start: u8;
    static descent_end: u8;
}

/// The code of the descent, to be put anywhere that is mapped one to one.
pub fn descent() -> &'static [u8] {
    let start = &raw const descent_start;
    let length = (&raw const descent_end).addr() - start.addr();
    // SAFETY: the bytes between two labels of one section.
    unsafe { core::slice::from_raw_parts(start, length) }
}

/// What [`descend`] takes along; all physical addresses.
pub struct Descent {
    /// Where [`descent`] was put.
    pub code: u64,
    /// The tables of [`identity_tables`].
    pub tables: u64,
    /// Where the image is, where it belongs, its length in bytes.
    pub from: u64,
    /// See `from`.
    pub to: u64,
    /// See `from`.
    pub length: u64,
    /// Multiboot's information.
    pub information: u64,
    /// The image's entry.
    pub entry: u64,
}

/// Enters a Multiboot image.
///
/// # Safety
/// Everything is where `descent` says, below 4 GiB, and the image's place overlaps neither code, tables nor `from`.
pub unsafe fn descend(descent: &Descent) -> ! {
    // SAFETY: the caller's promise; nothing of this program runs afterwards.
    unsafe {
        asm!(
            "cli",
            "cld",
            "mov cr3, {tables}",
            "jmp {code}",
            tables = in(reg) descent.tables,
            code = in(reg) descent.code,
            in("rdi") descent.to,
            in("rsi") descent.from,
            in("rcx") descent.length,
            in("rdx") descent.information,
            in("r8") descent.entry,
            options(noreturn),
        )
    }
}

/// Says why on the serial port, which the firmware has set up, and stands still.
pub fn give_up(words: &str) -> ! {
    for byte in words.bytes() {
        // SAFETY: the ports of the first serial port; the bytes go out or nowhere.
        unsafe {
            let mut status = 0u8;
            while status & 0x20 == 0 {
                asm!("in al, dx", out("al") status, in("dx") LINE_STATUS, options(nomem, nostack));
            }
            asm!("out dx, al", in("al") byte, in("dx") TRANSMITTER, options(nomem, nostack));
        }
    }
    loop {
        // SAFETY: stops this processor until the next interrupt.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    give_up("bench-native: a bug\r\n")
}
