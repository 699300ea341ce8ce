//! Executes a few instructions, given as bytes, from a chosen state, and says how that ended.
//!
//! Everything ends with an exception: the one that the instructions raised, or that of the breakpoint behind them. The
//! handlers have a stack of their own, so not even the stack pointer needs to be sane.

use core::arch::{asm, naked_asm};
use core::cell::UnsafeCell;

use guest_rt::trap::{self, Fault, Place, RECOVERY};

use crate::segments::{self, COMPATIBILITY_CODE, KERNEL_CODE, KERNEL_DATA, USER_CODE, USER_DATA};
use crate::window;

/// INT3, which ends the instructions.
const END: u8 = 0xcc;
/// What ends them at privilege level 3, where INT3 may not be used: #GP with the gate's number. QEMU's emulation gives its
/// offset in 64-bit mode instead, where a gate has 16 bytes.
const USER_ENDS: [Fault; 2] = [Fault { vector: 13, error: 3 << 3 | 2 }, Fault { vector: 13, error: 3 << 4 | 2 }];
const BREAKPOINT: u8 = 3;
/// Room for instructions. Unit: bytes.
pub const CODE_SIZE: usize = 2 * 4096;
/// RFLAGS with nothing but its fixed bit.
const FLAGS: u64 = 2;

/// Pages for one purpose.
#[repr(C, align(4096))]
pub struct Pages<const N: usize>(UnsafeCell<[u8; N]>);

// SAFETY: one processor, no threads; who uses them does so between two statements.
unsafe impl<const N: usize> Sync for Pages<N> {}

impl<const N: usize> Pages<N> {
    /// Pages of zeros.
    pub const fn new() -> Self {
        Pages(UnsafeCell::new([0; N]))
    }

    /// Their address, physical as well as linear.
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }

    /// Puts `bytes` at `offset`; what does not fit is left out.
    pub fn put(&self, offset: usize, bytes: &[u8]) {
        for (at, byte) in (offset..N).zip(bytes) {
            // SAFETY: within the array. Volatile: instructions in assembly read it.
            unsafe { (self.address() as *mut u8).add(at).write_volatile(*byte) };
        }
    }

    /// The 8 bytes at `offset`; zeros beyond the end.
    pub fn word(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        for (at, byte) in (offset..N).zip(&mut bytes) {
            // SAFETY: as in `put`.
            *byte = unsafe { (self.address() as *const u8).add(at).read_volatile() };
        }
        u64::from_le_bytes(bytes)
    }

    /// Fills them.
    pub fn fill(&self, value: u8) {
        (0..N).for_each(|at| self.put(at, &[value]));
    }
}

/// Where instructions are put.
static CODE: Pages<CODE_SIZE> = Pages::new();
/// The stack that instructions are given; also mapped for privilege level 3.
static STACK: Pages<4096> = Pages::new();
/// Data for them.
pub static DATA: Pages<8192> = Pages::new();

/// General-purpose registers in the order of their numbers.
pub type Gprs = [u64; 16];

/// Numbers of registers.
pub const RAX: usize = 0;
/// See [`RAX`].
pub const RCX: usize = 1;
/// See [`RAX`].
pub const RDX: usize = 2;
/// See [`RAX`].
pub const RBX: usize = 3;
/// See [`RAX`].
pub const RSP: usize = 4;
/// See [`RAX`].
pub const RSI: usize = 6;
/// See [`RAX`].
pub const RDI: usize = 7;

/// What the entry code takes and the exit code leaves: the registers, then RIP, CS, RFLAGS, RSP, SS.
#[repr(C)]
struct Cell(UnsafeCell<[u64; 16 + 5]>);

// SAFETY: as for `Pages`.
unsafe impl Sync for Cell {}

static CELL: Cell = Cell(UnsafeCell::new([0; 21]));
/// The stack pointer to come back to.
static KEPT: Cell = Cell(UnsafeCell::new([0; 21]));

/// Loads everything from the cell with one IRETQ, and comes back with the next exception.
#[unsafe(naked)]
unsafe extern "C" fn enter() {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "mov [rip + {kept}], rsp",
        "lea rax, [rip + 2f]",
        "mov [rip + {recovery}], rax",
        "push qword ptr [rip + {cell} + 160]",
        "push qword ptr [rip + {cell} + 152]",
        "push qword ptr [rip + {cell} + 144]",
        "push qword ptr [rip + {cell} + 136]",
        "push qword ptr [rip + {cell} + 128]",
        "mov rax, [rip + {cell}]",
        "mov rcx, [rip + {cell} + 8]",
        "mov rdx, [rip + {cell} + 16]",
        "mov rbx, [rip + {cell} + 24]",
        "mov rbp, [rip + {cell} + 40]",
        "mov rsi, [rip + {cell} + 48]",
        "mov rdi, [rip + {cell} + 56]",
        "mov r8, [rip + {cell} + 64]",
        "mov r9, [rip + {cell} + 72]",
        "mov r10, [rip + {cell} + 80]",
        "mov r11, [rip + {cell} + 88]",
        "mov r12, [rip + {cell} + 96]",
        "mov r13, [rip + {cell} + 104]",
        "mov r14, [rip + {cell} + 112]",
        "mov r15, [rip + {cell} + 120]",
        "iretq",
        "2:",
        "mov [rip + {cell}], rax",
        "mov [rip + {cell} + 8], rcx",
        "mov [rip + {cell} + 16], rdx",
        "mov [rip + {cell} + 24], rbx",
        "mov [rip + {cell} + 32], rsp",
        "mov [rip + {cell} + 40], rbp",
        "mov [rip + {cell} + 48], rsi",
        "mov [rip + {cell} + 56], rdi",
        "mov [rip + {cell} + 64], r8",
        "mov [rip + {cell} + 72], r9",
        "mov [rip + {cell} + 80], r10",
        "mov [rip + {cell} + 88], r11",
        "mov [rip + {cell} + 96], r12",
        "mov [rip + {cell} + 104], r13",
        "mov [rip + {cell} + 112], r14",
        "mov [rip + {cell} + 120], r15",
        "mov rsp, [rip + {kept}]",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        cell = sym CELL,
        kept = sym KEPT,
        recovery = sym RECOVERY,
    )
}

/// The bytes of instructions that the assembler translates.
#[macro_export]
macro_rules! code {
    ($($line:literal),+ $(,)?) => {{
        let (start, end): (usize, usize);
        // SAFETY: takes two addresses and jumps over what is between them.
        unsafe {
            ::core::arch::asm!(
                "lea {start}, [rip + 88f]",
                "lea {end}, [rip + 89f]",
                "jmp 89f",
                "88:",
                $($line,)+
                "89:",
                start = out(reg) start,
                end = out(reg) end,
                options(nomem, nostack, preserves_flags)
            );
            // SAFETY: part of the program's text, which nothing writes to.
            ::core::slice::from_raw_parts(start as *const u8, end - start)
        }
    }};
}

/// Where and how instructions run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Kernel,
    User,
    /// 32-bit code at privilege level 0.
    Compatibility,
}

/// Instructions and the state that they start from.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    code: &'a [u8],
    /// General-purpose registers; RSP is given by [`Run::stack`].
    pub gprs: Gprs,
    flags: u64,
    stack: Option<u64>,
    offset: usize,
    mode: Mode,
}

/// How they ended.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// The exception; `None` where they ran to their end.
    pub fault: Option<Fault>,
    /// General-purpose registers.
    pub gprs: Gprs,
    /// How far behind the first byte the exception was. Unit: bytes.
    pub offset: u64,
    /// RFLAGS, RSP and the like at that point.
    pub place: Place,
}

impl<'a> Run<'a> {
    /// At privilege level 0, with flags and registers of zeros.
    pub fn new(code: &'a [u8]) -> Run<'a> {
        Run { code, gprs: [0; 16], flags: FLAGS, stack: None, offset: 0, mode: Mode::Kernel }
    }

    /// With a register.
    #[must_use]
    pub fn with(mut self, register: usize, value: u64) -> Self {
        self.gprs[register & 15] = value;
        self
    }

    /// With EDX:EAX.
    #[must_use]
    pub fn edx_eax(self, value: u64) -> Self {
        self.with(RAX, value & 0xffff_ffff).with(RDX, value >> 32)
    }

    /// With these flags.
    #[must_use]
    pub fn flags(mut self, flags: u64) -> Self {
        self.flags = FLAGS | flags;
        self
    }

    /// With this stack pointer.
    #[must_use]
    pub fn stack(mut self, pointer: u64) -> Self {
        self.stack = Some(pointer);
        self
    }

    /// At privilege level 3.
    #[must_use]
    pub fn user(mut self) -> Self {
        self.mode = Mode::User;
        self
    }

    /// In a segment of 32-bit code, at privilege level 0.
    #[must_use]
    pub fn compatibility(mut self) -> Self {
        self.mode = Mode::Compatibility;
        self
    }

    /// So far behind the beginning of the first of two pages.
    #[must_use]
    pub fn at(mut self, offset: usize) -> Self {
        self.offset = offset.min(CODE_SIZE);
        self
    }

    /// Runs them.
    pub fn go(&self) -> Ran {
        let length = self.code.len().min(CODE_SIZE - self.offset);
        CODE.put(self.offset, &self.code[..length]);
        CODE.put(self.offset + length, &[END; 16]);
        let (code, stack, cs, ss) = match self.mode {
            Mode::Kernel => (CODE.address(), STACK.address(), KERNEL_CODE, KERNEL_DATA),
            Mode::Compatibility => (CODE.address(), STACK.address(), COMPATIBILITY_CODE, KERNEL_DATA),
            Mode::User => {
                let code = window::map(window::CODE, CODE.address(), window::USER);
                window::map(window::CODE + 1, CODE.address() + 4096, window::USER);
                (code, window::map(window::STACK, STACK.address(), window::USER), USER_CODE, USER_DATA)
            }
        };
        let start = code + self.offset as u64;
        let pointer = self.stack.unwrap_or(stack + 4096 - 64);
        let cell = CELL.0.get();
        // SAFETY: one processor. The entry code saves and restores what the compiler's code needs; every exception
        // comes back to it, on a stack of the exceptions' own (`segments::install`).
        unsafe {
            (&mut (*cell))[..16].copy_from_slice(&self.gprs);
            (&mut (*cell))[16..].copy_from_slice(&[start, cs.into(), self.flags, pointer, ss.into()]);
            asm!("call {}", sym enter, clobber_abi("C"));
        }
        let place = trap::caught_at();
        // SAFETY: as above.
        let mut gprs = unsafe { *cell }[..16].try_into().unwrap_or([0; 16]);
        gprs[RSP] = place.rsp;
        let end = start + length as u64;
        let fault = trap::caught().filter(|fault| match self.mode {
            Mode::User => !(USER_ENDS.contains(fault) && place.rip == end),
            _ => !(fault.vector == BREAKPOINT && place.rip == end + 1),
        });
        segments::refresh();
        Ran { fault, gprs, offset: place.rip.wrapping_sub(start), place }
    }
}

/// Runs `code` at privilege level 0 with registers of zeros.
pub fn run(code: &[u8]) -> Ran {
    Run::new(code).go()
}

/// Reads 8 bytes from an address that is no multiple of 8, with alignment checks on, and never gets behind that.
pub const CODE_OF_MISALIGNED_READ: &[u8] = &[0x48, 0x8b, 0x44, 0x24, 0x01, 0xeb, 0xf9];
const ALIGNMENT_CHECK: u64 = 1 << 18;

/// Goes to privilege level 3 for good: exceptions there go to the handlers that are set.
pub fn stay_at_level_3(code: &[u8], stack: u64) -> ! {
    CODE.put(0, code);
    let start = window::map(window::CODE, CODE.address(), window::USER);
    // SAFETY: nothing comes back from there.
    unsafe {
        asm!(
            "push {ss}", "push {stack}", "push {flags}", "push {cs}", "push {start}", "iretq",
            ss = in(reg) u64::from(USER_DATA), stack = in(reg) stack, flags = in(reg) FLAGS | ALIGNMENT_CHECK,
            cs = in(reg) u64::from(USER_CODE), start = in(reg) start, options(noreturn)
        )
    }
}
