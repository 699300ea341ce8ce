//! Privilege level 3: what it may not do, and the ways there and back.
//!
//! Owns the descriptors and the task-state segment that all tests run with, and the pages that such code may use: the
//! first gigabyte, once more, from [`WINDOW`] on.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_rt::cpu;
use guest_rt::trap::Frame;

use crate::machine::{GP, NOTHING, UD, forget, last, raised};
use crate::{Test, Verdict, apic, debug, same};

/// Where memory is mapped for user code. Unit: bytes.
pub const WINDOW: u64 = 1 << 39;

/// Selectors: those of the runtime first.
const CODE: u64 = 0x08;
const DATA: u64 = 0x10;
const USER_DATA: u64 = 0x1b;
const USER_CODE: u64 = 0x23;
const USER_CODE_32: u64 = 0x2b;
/// A code segment that is not present.
pub const ABSENT: u64 = 0x30;
const TASK: u64 = 0x38;
/// Vector by which user code comes back: its gate is open to it.
const BACK: usize = 0x3e;
const STACK_SIZE: usize = 4096;

/// Memory that assembly code and tables use, one test after the other.
#[repr(C, align(4096))]
pub struct Shared<T>(pub UnsafeCell<T>);

// SAFETY: one processor, and no test runs beside another.
unsafe impl<T> Sync for Shared<T> {}

static GDT: Shared<[u64; 16]> = Shared(UnsafeCell::new([0; 16]));
/// I/O permissions of ports 0 to 0x7f are in it.
static TSS: Shared<[u8; 0x68 + 17]> = Shared(UnsafeCell::new([0; 0x68 + 17]));
/// For interrupts out of user code, for interrupts with a stack of their own, for user code.
static STACKS: Shared<[[u8; STACK_SIZE]; 3]> = Shared(UnsafeCell::new([[0; STACK_SIZE]; 3]));
/// A table of 1 GiB in the window, and its page directory.
static TABLES: Shared<[[u64; 512]; 2]> = Shared(UnsafeCell::new([[0; 512]; 2]));
/// The stack pointer to go back to; 0 while no user code runs.
static KERNEL: AtomicU64 = AtomicU64::new(0);

global_asm!(
    // RDI: where user code is; RSI: its stack; RDX: its flags; RCX: its code segment.
    ".global user_enter",
    "user_enter:",
    "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
    "mov [rip + {kernel}], rsp",
    "mov eax, {data}", "mov ds, eax", "mov es, eax",
    "push {data}", "push rsi", "push rdx", "push rcx", "push rdi",
    "iretq",
    ".global user_back",
    "user_back:",
    "mov rsp, [rip + {kernel}]",
    "mov qword ptr [rip + {kernel}], 0",
    "mov eax, 0x10", "mov ds, eax", "mov es, eax", "mov ss, eax",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
    "cld",
    "ret",
    kernel = sym KERNEL,
    data = const USER_DATA,
);

unsafe extern "C" {
    fn user_enter(at: u64, stack: u64, flags: u64, code: u64);
    static user_back: u8;
}

/// Loads the tables.
pub fn install() {
    let stack = |n: usize| STACKS.0.get().cast::<u8>().wrapping_add(STACK_SIZE * (n + 1)) as u64;
    // SAFETY: nothing else uses these tables; the selectors that are in use mean what they meant.
    unsafe {
        let tss = TSS.0.get().cast::<u8>();
        tss.add(4).cast::<u64>().write_unaligned(stack(0));
        tss.add(0x24).cast::<u64>().write_unaligned(stack(1));
        tss.add(0x66).cast::<u16>().write_unaligned(0x68);
        // Of the first ports, user code may use 0x61.
        core::ptr::write_bytes(tss.add(0x68), 0xff, 17);
        tss.add(0x68 + 0x61 / 8).write(!(1 << (0x61 % 8)));
        let gdt = &mut *GDT.0.get();
        let at = tss as u64;
        let limit = 0x68 + 16;
        gdt[..9].copy_from_slice(&[
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00af_1b00_0000_ffff,
            limit | (at & 0xff_ffff) << 16 | 0x89 << 40 | (at >> 24 & 0xff) << 56,
            at >> 32,
        ]);
        let descriptor = (0x7fu16, GDT.0.get() as u64);
        let mut bytes = [0u8; 10];
        bytes[..2].copy_from_slice(&descriptor.0.to_le_bytes());
        bytes[2..].copy_from_slice(&descriptor.1.to_le_bytes());
        asm!("lgdt [{}]", "ltr {:x}", in(reg) &raw const bytes, in(reg) TASK);
        let back = gate(BACK);
        let at = &raw const user_back as u64;
        back.write(at & 0xffff | CODE << 16 | 0xee00 << 32 | (at >> 16 & 0xffff) << 48);
        back.add(1).write(at >> 32);
        let [table, directory] = &mut *TABLES.0.get();
        table[0] = directory.as_ptr() as u64 | 7;
        for (entry, page) in directory.iter_mut().zip(0u64..) {
            *entry = page << 21 | 0x87;
        }
        top().add(1).write(table.as_ptr() as u64 | 7);
    }
}

/// The top paging table. Its entry 1 is the window's, 2 and above are free.
pub fn top() -> *mut u64 {
    let cr3: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) cr3) };
    (cr3 & !0xfff) as *mut u64
}

/// Maps a page at the end of the lower half of the canonical addresses; where it is in memory.
pub fn map_last_page() -> *mut u8 {
    static PAGES: Shared<[[u64; 512]; 4]> = Shared(UnsafeCell::new([[0; 512]; 4]));
    // SAFETY: the tables and the page are nobody else's.
    unsafe {
        let [pointers, directory, table, page] = &mut *PAGES.0.get();
        let page = page.as_mut_ptr();
        pointers[511] = directory.as_ptr() as u64 | 3;
        directory[511] = table.as_ptr() as u64 | 3;
        table[511] = page as u64 | 3;
        top().add(255).write(pointers.as_ptr() as u64 | 3);
        page.cast()
    }
}

/// The gate of `vector`, two words of the IDT that is loaded.
pub fn gate(vector: usize) -> *mut u64 {
    let mut bytes = [0u8; 10];
    // SAFETY: as long as what is stored.
    unsafe { asm!("sidt [{}]", in(reg) bytes.as_mut_ptr()) };
    let base = bytes[2..].iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
    (base as *mut u64).wrapping_add(2 * vector)
}

/// An event out of user code ends it, but for debug exceptions. True where the frame has become the way back.
pub fn leave(frame: &mut Frame) -> bool {
    if frame.cs & 3 != 3 || frame.vector == 1 || KERNEL.load(Ordering::Relaxed) == 0 {
        return false;
    }
    frame.rip = &raw const user_back as u64;
    (frame.cs, frame.ss, frame.rflags) = (CODE, DATA, 2);
    if frame.vector >= 32 {
        apic::end_of_interrupt();
    }
    true
}

/// Runs `code`, which ends with `int 0x3e` or with what it raises.
fn run(code: *const u8, flags: u64, segment: u64) -> u64 {
    forget();
    let stack = STACKS.0.get().cast::<u8>().wrapping_add(3 * STACK_SIZE) as u64;
    let window = if segment == USER_CODE_32 { 0 } else { WINDOW };
    // SAFETY: the window maps code and stack, and whatever happens leads to `user_back`.
    unsafe { user_enter(code as u64 + window, stack + window, flags | 2, segment) };
    raised()
}

/// What user code of these instructions raised, with these flags.
macro_rules! user {
    ($flags:expr, [$($instruction:expr),+] $($operands:tt)*) => {{
        let code: *const u8;
        // SAFETY: it jumps over code that only `run` enters.
        unsafe { asm!("lea {at}, [rip + 33f]", "jmp 34f", "33:", $($instruction,)+ "int 0x3e", "34:", at = out(reg) code, $($operands)*) };
        run(code, $flags, USER_CODE)
    }};
}

/// RFLAGS.IOPL of 3.
const IOPL: u64 = 3 << 12;
const ALIGNMENT_CHECK: u64 = 1 << 18;

pub const TESTS: &[Test] = &[
    ("user: comes back", || same(user!(0, ["nop"]), NOTHING)),
    ("user: hlt", || same(user!(0, ["hlt"]), GP)),
    ("user: cli and sti", || same(user!(0, ["cli"]), GP).and(same(user!(0, ["sti"]), GP))),
    ("user: cli with iopl", || same(user!(IOPL, ["cli"]), NOTHING)),
    ("user: mov to and from cr0", || same(user!(0, ["mov rax, cr0"]), GP).and(same(user!(0, ["mov cr0, rax"]), GP))),
    ("user: mov cr3 and cr8", || same(user!(0, ["mov rax, cr3"]), GP).and(same(user!(0, ["mov rax, cr8"]), GP))),
    ("user: mov to cr4", || same(user!(0, ["mov cr4, rax"]), GP)),
    ("user: clts and lmsw", || same(user!(0, ["clts"]), GP).and(same(user!(0, ["lmsw ax"]), GP))),
    ("user: mov dr", || same(user!(0, ["mov rax, dr7"]), GP).and(same(user!(0, ["mov dr0, rax"]), GP))),
    ("user: rdmsr and wrmsr", || same(user!(0, ["rdmsr"]), GP).and(same(user!(0, ["wrmsr"]), GP))),
    ("user: invlpg, wbinvd, invd", invalidations),
    ("user: lgdt, lidt, ltr, lldt", tables),
    ("user: xsetbv", xsetbv),
    ("user: swapgs", || same(user!(0, ["swapgs"]), GP)),
    ("user: cpuid and rdtsc", || same(user!(0, ["cpuid", "rdtsc"]), NOTHING)),
    ("user: rdtsc with time stamp disable", time_stamp_disable),
    ("user: rdpmc", || same(user!(0, ["mov ecx, 0x40001234", "rdpmc"]), GP)),
    ("user: port without permission", || same(user!(0, ["in al, 0x64"]), GP).and(same(user!(0, ["out 0x64, al"]), GP))),
    ("user: port beyond the permissions", || same(user!(0, ["mov dx, 0x3f8", "in al, dx"]), GP)),
    ("user: port with permission", || same(user!(0, ["in al, 0x61"]), NOTHING)),
    ("user: port of two, one without permission", || same(user!(0, ["in ax, 0x61"]), GP)),
    ("user: port with iopl", || same(user!(IOPL, ["in al, 0x64", "mov dx, 0x3fd", "in al, dx"]), NOTHING)),
    ("user: string port without permission", string_port),
    ("user: interrupt of a gate for others", || same(user!(0, ["int 0x35"]), GP | 0x35 << 3 | 2)),
    ("user: int3 of a gate for others", || same(user!(0, ["int3"]), GP | 3 << 3 | 2)),
    ("user: supervisor page", || same(user!(0, ["mov eax, [0x100000]"]), 14 << 32 | 5)),
    ("user: write to a supervisor page", || same(user!(0, ["mov [0x100000], eax"]), 14 << 32 | 7)),
    ("user: device of the supervisor", supervisor_device),
    ("user: tables stored", || stored(false)),
    ("user: tables stored with umip", || stored(true)),
    ("user: alignment check", alignment),
    ("user: fs base without the feature", || same(user!(0, ["rdfsbase rax"]), UD)),
    ("user: steps over what exits", steps),
    ("user: syscall disabled", || same(user!(0, ["syscall"]), UD)),
    ("user: sysenter without a segment", || same(user!(0, ["sysenter"]), GP)),
    ("user: 32-bit code", || same(code_32(0), NOTHING)),
    ("user: 32-bit overflow", || same(code_32(1), GP | 4 << 3 | 2)),
    ("user: 32-bit bound", || same(code_32(2), 5 << 32)),
    ("user: 32-bit port without permission", || same(code_32(3), GP)),
    ("user: vmmcall or vmcall of the other vendor", other_vendor),
];

fn other_vendor() -> Verdict {
    const AMD: u32 = 0x6874_7541;
    let amd = cpu::cpuid(0, 0)[1] == AMD;
    same(if amd { user!(0, ["vmcall"]) } else { user!(0, ["vmmcall"]) }, UD)
}

fn invalidations() -> Verdict {
    same(user!(0, ["invlpg [rax]"]), GP)?;
    same(user!(0, ["wbinvd"]), GP)?;
    same(user!(0, ["invd"]), GP)
}

fn tables() -> Verdict {
    same(user!(0, ["lgdt [rsp - 16]"]), GP)?;
    same(user!(0, ["lidt [rsp - 16]"]), GP)?;
    same(user!(0, ["ltr ax"]), GP)?;
    same(user!(0, ["lldt ax"]), GP)
}

/// Does `act` with these bits of CR4 set.
pub fn with_cr4<T>(bits: u64, act: impl FnOnce() -> T) -> T {
    let before: u64;
    // SAFETY: the bits change only what the test is about, and are as they were then.
    unsafe {
        asm!("mov {b}, cr4", "mov {n}, {b}", "or {n}, {s}", "mov cr4, {n}", b = out(reg) before, n = out(reg) _, s = in(reg) bits)
    };
    let result = act();
    // SAFETY: the former value.
    unsafe { asm!("mov cr4, {}", in(reg) before) };
    result
}

fn xsetbv() -> Verdict {
    same(with_cr4(1 << 18, || user!(0, ["xor ecx, ecx", "mov eax, 1", "xor edx, edx", "xsetbv"])), GP)
}

fn time_stamp_disable() -> Verdict {
    let (one, other) = with_cr4(1 << 2, || (user!(0, ["rdtsc"]), user!(0, ["rdtscp"])));
    same(one, GP)?;
    same(other, if cpu::has(0x8000_0001, 0, 3, 27) { GP } else { UD })
}

fn string_port() -> Verdict {
    same(user!(0, ["mov dx, 0x64", "mov ecx, 2", "lea rsi, [rsp - 16]", "rep outsb"]), GP)?;
    same(user!(0, ["mov dx, 0x61", "mov ecx, 2", "lea rdi, [rsp - 16]", "rep insb"]), NOTHING)
}

fn supervisor_device() -> Verdict {
    same(user!(0, ["mov eax, 0xfee00030", "mov eax, [rax]"]), 14 << 32 | 5)?;
    same(last().cr2, 0xfee0_0030)
}

/// SGDT, SIDT, SLDT, STR and SMSW.
fn stored(prevented: bool) -> Verdict {
    const PREVENTION: u64 = 1 << 11;
    if prevented && !cpu::has(7, 0, 2, 2) {
        return Ok(());
    }
    let all = || {
        [
            user!(0, ["sgdt [rsp - 16]"]),
            user!(0, ["sidt [rsp - 16]"]),
            user!(0, ["sldt ax"]),
            user!(0, ["str ax"]),
            user!(0, ["smsw ax"]),
        ]
    };
    let found = if prevented { with_cr4(PREVENTION, all) } else { all() };
    found.into_iter().try_for_each(|found| same(found, if prevented { GP } else { NOTHING }))
}

fn alignment() -> Verdict {
    let before: u64;
    // SAFETY: AM counts at privilege level 3 only.
    unsafe { asm!("mov {b}, cr0", "mov {n}, {b}", "bts {n}, 18", "mov cr0, {n}", b = out(reg) before, n = out(reg) _) };
    let unaligned = user!(ALIGNMENT_CHECK, ["mov eax, [rsp - 15]"]);
    let aligned = user!(ALIGNMENT_CHECK, ["mov eax, [rsp - 16]"]);
    let off = user!(0, ["mov eax, [rsp - 15]"]);
    // SAFETY: the former value.
    unsafe { asm!("mov cr0, {}", in(reg) before) };
    same(unaligned, 17 << 32)?;
    same(aligned & off, NOTHING)
}

fn steps() -> Verdict {
    let found = debug::count_steps(|| {
        user!(
            IOPL,
            [
                "pushfq",
                "or qword ptr [rsp], 0x100",
                "popfq",
                "cpuid",
                "in al, 0x61",
                "rdtsc",
                "pushfq",
                "and qword ptr [rsp], -257",
                "popfq"
            ]
        );
    });
    same(found, 6)
}

global_asm!(
    ".code32",
    ".global user_32",
    "user_32:",
    "movl {which}, %ebx",
    "cmpl $1, %ebx", "je 1f", "cmpl $2, %ebx", "je 2f", "cmpl $3, %ebx", "je 3f",
    "int $0x3e",
    "1: movb $0x7f, %al", "addb $1, %al", "into", "int $0x3e",
    // BOUND EAX, [ESP].
    "2: pushl $1", "pushl $0", "movl $5, %eax", ".byte 0x62, 0x04, 0x24", "int $0x3e",
    "3: inb $0x64, %al", "int $0x3e",
    ".code64",
    which = sym WHICH,
    options(att_syntax)
);

static WHICH: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    static user_32: u8;
}

/// 32-bit code by its number. The program is open to it meanwhile: its addresses have 32 bits.
fn code_32(number: u32) -> u64 {
    // SAFETY: the tables of the first gigabytes get the user bit, and lose it again.
    let open = |bit: u64| unsafe {
        let table = (top().read() & !0xfff) as *mut u64;
        let directory = (table.read() & !0xfff) as *mut u64;
        for entry in [top(), table, directory, directory.add(1)] {
            entry.write(entry.read() & !4 | bit);
        }
        asm!("mov {t}, cr3", "mov cr3, {t}", t = out(reg) _);
    };
    open(4);
    let code = &raw const user_32;
    WHICH.store(number, Ordering::Relaxed);
    let raised = run(code, 0, USER_CODE_32);
    open(0);
    raised
}
