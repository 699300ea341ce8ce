//! Process 1 of the boot benchmark, a Linux program: its first instruction reads the TSC; then it prints
//! `init_tsc=HEX entry_tsc=HEX` and powers off. The second number is what the kernel's command line said in
//! `lamina_entry_tsc=`, which Linux hands down in the environment.
#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};
use core::ffi::{CStr, c_char};

/// Linux' numbers of system calls (arch/x86/entry/syscalls/syscall_64.tbl).
const WRITE: u64 = 1;
const IOCTL: u64 = 16;
const REBOOT: u64 = 169;
/// reboot(2): LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF.
const POWER_OFF: [u64; 3] = [0xfee1_dead, 672_274_793, 0x4321_fedc];
/// ioctl_tty(2): with an argument that is not 0, it waits until everything is sent.
const TCSBRK: u64 = 0x5409;
/// Standard output, which Linux opens for process 1.
const STANDARD_OUTPUT: u64 = 1;
/// The variable of the environment.
const VARIABLE: &[u8] = b"lamina_entry_tsc=";

/// Entry from the kernel (System V ABI, AMD64 supplement, "Process Initialization"): RSP at the number of arguments.
///
/// # Safety
/// Only Linux calls it.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        "rdtsc",
        "shl rdx, 32",
        "lea rdi, [rax + rdx]",
        "mov rsi, rsp",
        "and rsp, -16",
        "call {main}",
        "ud2",
        main = sym main,
    )
}

/// # Safety
/// `stack` is the initial stack of a process.
unsafe extern "C" fn main(tsc: u64, stack: *const u64) -> ! {
    let mut line = Line { bytes: [0; 128], length: 0 };
    line.push(b"init_tsc=");
    line.push_hex(tsc);
    line.push(b" entry_tsc=");
    // SAFETY: the caller's promise.
    line.push(unsafe { entry(stack) }.unwrap_or(b"none"));
    line.push(b"\n");
    system_call(WRITE, [STANDARD_OUTPUT, line.bytes.as_ptr() as u64, line.length as u64]);
    system_call(IOCTL, [STANDARD_OUTPUT, TCSBRK, 1]);
    system_call(REBOOT, POWER_OFF);
    loop {
        core::hint::spin_loop();
    }
}

/// The variable's value.
///
/// # Safety
/// `stack` is the initial stack of a process.
unsafe fn entry(stack: *const u64) -> Option<&'static [u8]> {
    // SAFETY: the number of arguments, as many pointers, a null pointer, the pointers of the environment, a null pointer;
    // all of it is there as long as the process.
    unsafe {
        let arguments = usize::try_from(*stack).ok()?;
        let mut variable = stack.add(arguments + 2).cast::<*const c_char>();
        while !(*variable).is_null() {
            if let Some(value) = CStr::from_ptr(*variable).to_bytes().strip_prefix(VARIABLE) {
                return Some(value);
            }
            variable = variable.add(1);
        }
    }
    None
}

/// A line, collected so that one call writes it.
struct Line {
    bytes: [u8; 128],
    length: usize,
}

impl Line {
    /// Adds what fits.
    fn push(&mut self, bytes: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.length).zip(bytes) {
            *to = *from;
            self.length += 1;
        }
    }

    fn push_hex(&mut self, number: u64) {
        for digit in (0..16).rev().map(|index| (number >> (4 * index) & 0xf) as u8) {
            self.push(&[b"0123456789abcdef"[usize::from(digit)]]);
        }
    }
}

/// A system call with three arguments; its result is of no use here.
fn system_call(number: u64, [first, second, third]: [u64; 3]) {
    // SAFETY: the calls made here read memory of this program at most, inside the bounds that they are given; the
    // instruction changes RAX, RCX and R11 only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => _,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
