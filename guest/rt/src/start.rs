//! From the loader's jump to the program's `main`.

use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};

use crate::{power, serial, trap};

/// Size of the stack. Unit: bytes.
const STACK_SIZE: usize = 64 << 10;

/// The stack: only `_start` names it.
#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK_SIZE]>);

// SAFETY: nothing refers to it but the stack pointer of the one processor.
unsafe impl Sync for Stack {}

static STACK: Stack = Stack(UnsafeCell::new([0; STACK_SIZE]));

/// Null, 64-bit code at 0x08, data at 0x10; the accessed bits are set, so that the processor never writes here.
#[repr(C, align(8))]
struct Gdt([u64; 3]);

static GDT: Gdt = Gdt([0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);

/// What the loader says.
#[derive(Clone, Copy, Debug)]
pub struct Boot {
    /// The command line; empty where it is not UTF-8.
    pub cmdline: &'static str,
    /// Size of the machine's memory. Unit: bytes.
    pub memory: u64,
}

impl Boot {
    /// The value of `name=VALUE` on the command line; decimal, or hexadecimal behind `0x`. `None` where there is no
    /// such word or it holds no number.
    pub fn number(&self, name: &str) -> Option<u64> {
        let value = self.word(name)?;
        match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => value.parse().ok(),
        }
    }

    /// The text of `name=TEXT` on the command line.
    pub fn word(&self, name: &str) -> Option<&'static str> {
        self.cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

/// The image's entry point. RDI: address of the command line, which ends with NUL. RDX: size of memory in bytes.
/// Takes a stack and segments of its own, so that it depends on nothing of the loader's but the page tables.
#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.start")]
#[unsafe(naked)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        "cli",
        "cld",
        "lea rsp, [rip + {stack} + {stack_size}]",
        // A pseudo-descriptor on the new stack: limit, base.
        "lea rax, [rip + {gdt}]",
        "sub rsp, 16",
        "mov word ptr [rsp], {gdt_limit}",
        "mov [rsp + 2], rax",
        "lgdt [rsp]",
        "add rsp, 16",
        "lea rax, [rip + 2f]",
        "push 0x08",
        "push rax",
        "retfq",
        "2:",
        "mov eax, 0x10",
        "mov ds, eax",
        "mov es, eax",
        "mov ss, eax",
        "xor eax, eax",
        "mov fs, eax",
        "mov gs, eax",
        "xor ebp, ebp",
        "mov rsi, rdx",
        "call guest_main",
        "ud2",
        stack = sym STACK,
        stack_size = const STACK_SIZE,
        gdt = sym GDT,
        gdt_limit = const size_of::<Gdt>() - 1,
    )
}

/// Calls a program's `main` and ends the machine with the status that it returns. For [`entry!`](crate::entry) alone.
///
/// # Safety
/// To be called once, with the two values that the loader gave `_start`.
pub unsafe fn start(cmdline: *const c_char, memory: u64, main: fn(&Boot) -> u32) -> ! {
    let cmdline = if cmdline.is_null() {
        ""
    } else {
        // SAFETY: the loader put a string with a NUL there, in memory that it gives to nothing else (the caller's
        // duty: the pointer is the loader's).
        unsafe { CStr::from_ptr(cmdline) }.to_str().unwrap_or("")
    };
    trap::install();
    serial::init();
    power::exit(main(&Boot { cmdline, memory }))
}

/// Makes `fn main(&Boot) -> u32` the program: what it returns is the VM's status.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[allow(unsafe_code, reason = "the name that the runtime calls")]
        #[unsafe(no_mangle)]
        extern "C" fn guest_main(cmdline: *const ::core::ffi::c_char, memory: u64) -> ! {
            // SAFETY: only the runtime's entry code calls this, once, with the loader's values.
            unsafe { $crate::start(cmdline, memory, $main) }
        }
    };
}
