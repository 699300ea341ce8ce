//! Instructions with an operand that is no memory, form by form: the task priority register, which keeps eight bits,
//! and the hole, where reads give ones and writes go nowhere.

use core::arch::asm;

use guest_rt::cpu;

use crate::apic::TASK_PRIORITY;
use crate::devices::HOLE;
use crate::machine::{GP, NOTHING, last, rdmsr, read32, write32};
use crate::{Test, Verdict, raises, same};

pub const TESTS: &[Test] = &[
    ("operand: inc and dec, locked", increments),
    ("operand: adc and sbb", carries),
    ("operand: shifts and rotations", shifts),
    ("operand: double shifts", double_shifts),
    ("operand: imul, mul, div", products),
    ("operand: div by a device that is zero", divide_by_zero),
    ("operand: div overflow", divide_overflow),
    ("operand: bsf and bsr", scans),
    ("operand: bsf of zero", scan_of_zero),
    ("operand: cmov clears the upper half", conditional),
    ("operand: movbe", byte_swapped),
    ("operand: xlat", table),
    ("operand: cmpxchg8b and cmpxchg16b", pairs),
    ("operand: test, cmp and flags", comparisons),
    ("operand: scas", scans_of_strings),
    ("operand: repe cmps", compared_strings),
    ("operand: repne scas", searched_string),
    ("operand: rep movs out of the hole, backwards", moved_backwards),
    ("operand: rep ins to a device", string_in),
    ("operand: rep outs from a device", string_out),
    ("operand: push and pop of words", pushed_words),
    ("operand: stack in the hole", stack_in_hole),
    ("operand: segment selector", || same(raises!(["mov fs, word ptr [{h}]"] h = in(reg) HOLE,), GP | 0xfffc)),
    ("operand: far pointer", || same(raises!(["lfs eax, [{h}]"] h = in(reg) HOLE, out("rax") _,), GP | 0xfffc)),
    ("operand: jump through the hole", || through(false)),
    ("operand: call through the hole", || through(true)),
    ("operand: rip-relative", relative),
    ("operand: address of 32 bits", address_of_32_bits),
    ("operand: segment base", segment_base),
    ("operand: cache lines", cache_lines),
    ("operand: undefined forms", undefined_forms),
    ("operand: locked form without a lock", locked),
];

fn set(value: u32) {
    write32(TASK_PRIORITY, value);
}

/// What the register holds; it is clear then.
fn taken() -> u64 {
    let value = read32(TASK_PRIORITY);
    set(0);
    value.into()
}

fn increments() -> Verdict {
    set(0x10);
    // SAFETY: a register that keeps eight bits.
    unsafe {
        asm!("inc dword ptr [{t}]", "lock inc dword ptr [{t}]", "lock dec dword ptr [{t}]", "inc dword ptr [{t}]", "lock not dword ptr [{t}]", "lock neg dword ptr [{t}]", t = in(reg) TASK_PRIORITY);
    }
    same(taken(), 0x13)
}

fn carries() -> Verdict {
    set(0x10);
    // SAFETY: as above.
    unsafe {
        asm!("stc", "adc dword ptr [{t}], 1", "stc", "sbb dword ptr [{t}], 0", "clc", "adc dword ptr [{t}], 3", t = in(reg) TASK_PRIORITY)
    };
    same(taken(), 0x14)
}

fn shifts() -> Verdict {
    set(0x12);
    // SAFETY: as above.
    unsafe {
        asm!("shl dword ptr [{t}], 1", "shr dword ptr [{t}], 2", "mov ecx, 4", "rol dword ptr [{t}], cl", "ror dword ptr [{t}], 3", t = in(reg) TASK_PRIORITY, out("ecx") _);
    }
    same(taken(), 0x12)
}

fn double_shifts() -> Verdict {
    set(0x12);
    // SAFETY: as above.
    unsafe {
        asm!("mov eax, 0x50000000", "shld dword ptr [{t}], eax, 3", "mov ecx, 4", "mov eax, 0x3", "shrd dword ptr [{t}], eax, cl", t = in(reg) TASK_PRIORITY, out("eax") _, out("ecx") _);
    }
    same(taken(), 0x09)
}

fn products() -> Verdict {
    set(7);
    let (a, b, c, d): (u64, u64, u64, u64);
    // SAFETY: as above.
    unsafe {
        asm!(
            "imul {a:e}, dword ptr [{t}], 6", "mov eax, 5", "mul dword ptr [{t}]", "mov {b}, rax",
            "mov eax, 50", "xor edx, edx", "div dword ptr [{t}]", "mov {c}, rax", "mov {d}, rdx",
            t = in(reg) TASK_PRIORITY, a = out(reg) a, b = out(reg) b, c = out(reg) c, d = out(reg) d, out("rax") _, out("rdx") _,
        );
    }
    set(0);
    same(a << 24 | b << 16 | c << 8 | d, 42 << 24 | 35 << 16 | 7 << 8 | 1)
}

fn divide_by_zero() -> Verdict {
    set(0);
    let (a, d): (u64, u64);
    let raised =
        raises!(["div dword ptr [{t}]"] t = in(reg) TASK_PRIORITY, inout("rax") 5u64 => a, inout("rdx") 6u64 => d,);
    same(raised, 0)?;
    same(a << 8 | d, 5 << 8 | 6)
}

fn divide_overflow() -> Verdict {
    set(2);
    let raised =
        raises!(["div dword ptr [{t}]"] t = in(reg) TASK_PRIORITY, inout("rax") 5u64 => _, inout("rdx") 2u64 => _,);
    set(0);
    same(raised, 0)
}

fn scans() -> Verdict {
    set(0x28);
    let (a, b): (u64, u64);
    // SAFETY: reads a register.
    unsafe { asm!("bsf {a:e}, [{t}]", "bsr {b:e}, [{t}]", t = in(reg) TASK_PRIORITY, a = out(reg) a, b = out(reg) b) };
    set(0);
    same(a << 8 | b, 3 << 8 | 5)
}

fn scan_of_zero() -> Verdict {
    set(0);
    let zero: u64;
    // SAFETY: reads a register.
    unsafe {
        asm!("bsf {a:e}, [{t}]", "setz {z:l}", t = in(reg) TASK_PRIORITY, a = inout(reg) 9u64 => _, z = inout(reg) 0u64 => zero)
    };
    same(zero & 1, 1)
}

fn conditional() -> Verdict {
    set(0x33);
    let (not, taken_over): (u64, u64);
    // SAFETY: reads a register.
    unsafe {
        asm!("cmp {a:e}, {a:e}", "cmovne {a:e}, [{t}]", "cmove {b:e}, [{t}]", t = in(reg) TASK_PRIORITY, a = inout(reg) 0x1234_5678_0000_0009_u64 => not, b = inout(reg) u64::MAX => taken_over);
    }
    set(0);
    same(not << 32 | taken_over, 9 << 32 | 0x33)
}

fn byte_swapped() -> Verdict {
    if !cpu::has(1, 0, 2, 22) {
        return Ok(());
    }
    set(0x12);
    let value: u64;
    // SAFETY: reads and writes the register.
    unsafe {
        asm!("movbe {v:e}, [{t}]", "mov {x:e}, 0x34000000", "movbe [{t}], {x:e}", t = in(reg) TASK_PRIORITY, v = out(reg) value, x = out(reg) _)
    };
    same(value << 8 | taken(), 0x1200_0000 << 8 | 0x34)
}

fn table() -> Verdict {
    set(0x5a);
    let value: u64;
    // SAFETY: RBX is kept.
    unsafe {
        asm!("xchg rbx, {t}", "xor eax, eax", "xlatb", "xchg rbx, {t}", t = inout(reg) TASK_PRIORITY => _, out("rax") value)
    };
    set(0);
    same(value & 0xff, 0x5a)
}

fn pairs() -> Verdict {
    let (unequal, equal, low, high): (u64, u64, u64, u64);
    // SAFETY: RBX is kept; the hole keeps nothing.
    unsafe {
        asm!(
            "mov rdi, rbx", "xor ebx, ebx", "xor ecx, ecx", "xor eax, eax", "xor edx, edx",
            "lock cmpxchg8b qword ptr [{h}]", "setz {u:l}", "lock cmpxchg8b qword ptr [{h}]", "setz {e:l}",
            "mov rbx, rdi",
            h = in(reg) HOLE, u = inout(reg) 0u64 => unequal, e = inout(reg) 0u64 => equal,
            out("rax") low, out("rdx") high, out("rcx") _, out("rdi") _,
        );
    }
    same(unequal << 1 | equal & 1, 1)?;
    same(low & high, 0xffff_ffff)?;
    if !cpu::has(1, 0, 2, 13) {
        return Ok(());
    }
    let (low, high): (u64, u64);
    // SAFETY: as above.
    unsafe {
        asm!(
            "mov rdi, rbx", "xor ebx, ebx", "xor ecx, ecx", "lock cmpxchg16b [{h}]", "mov rbx, rdi",
            h = in(reg) HOLE, inout("rax") 0u64 => low, inout("rdx") 0u64 => high, out("rcx") _, out("rdi") _,
        );
    }
    same(low & high, u64::MAX)?;
    let unaligned = raises!(
        ["mov rdi, rbx", "lock cmpxchg16b [{h}]", "77:", "mov rbx, rdi"]
        h = in(reg) HOLE + 8, inout("rax") 0u64 => _, inout("rdx") 0u64 => _, out("rdi") _,
    );
    same(unaligned, GP)
}

fn comparisons() -> Verdict {
    set(0x80);
    let flags: u64;
    // SAFETY: reads a register.
    unsafe {
        asm!(
            "cmp dword ptr [rsi], 0x81", "lahf", "movzx edi, ah", "shl edi, 8",
            "test dword ptr [rsi], 0x7f", "lahf", "movzx eax, ah", "or edi, eax",
            in("rsi") TASK_PRIORITY, out("rdi") flags, out("rax") _,
        );
    }
    set(0);
    // CF, AF, SF, PF of -1; ZF and PF of 0. AF is undefined behind TEST.
    same(flags & 0xd7c7, 0x9746)
}

fn scans_of_strings() -> Verdict {
    let found: u64;
    // SAFETY: reads the hole.
    unsafe {
        asm!(
            "mov rax, -1", "mov rdi, {h}", "scasb", "setz {f:l}", "scasw", "setz dl", "and {f:l}, dl", "scasd", "setz dl", "and {f:l}, dl", "scasq", "setz dl", "and {f:l}, dl",
            "sub rdi, {h}", "shl rdi, 8", "movzx {f:e}, {f:l}", "or {f}, rdi",
            h = in(reg) HOLE, f = inout(reg) 0u64 => found, out("rax") _, out("rdx") _, out("rdi") _,
        );
    }
    same(found, 15 << 8 | 1)
}

fn compared_strings() -> Verdict {
    let bytes = [0xffu8, 0xff, 0xff, 0x7f, 0xff];
    let (left, at): (u64, u64);
    // SAFETY: reads as many bytes as there are.
    unsafe {
        asm!("repe cmpsb", inout("rcx") 5u64 => left, inout("rsi") bytes.as_ptr() => at, inout("rdi") HOLE => _);
    }
    same(left << 8 | at.wrapping_sub(bytes.as_ptr() as u64), 1 << 8 | 4)
}

fn searched_string() -> Verdict {
    let (left, at): (u64, u64);
    // SAFETY: reads the hole.
    unsafe { asm!("repne scasw", inout("rcx") 100u64 => left, inout("rdi") HOLE => at, in("ax") 0x1234u16) };
    same(left << 16 | at.wrapping_sub(HOLE), 200)
}

fn moved_backwards() -> Verdict {
    let mut words = [0u32; 4];
    let last = &raw mut words[3];
    // SAFETY: as many words as there are, from the last on.
    unsafe {
        asm!("std", "rep movsd", "cld", inout("rcx") 4u64 => _, inout("rsi") HOLE + 12 => _, inout("rdi") last => _)
    };
    same(words.iter().fold(u64::MAX, |sum, &word| sum & u64::from(word)), 0xffff_ffff)
}

fn string_in() -> Verdict {
    let (left, at): (u64, u64);
    // SAFETY: a port without a device, to the hole.
    unsafe { asm!("rep insb", inout("rcx") 100u64 => left, inout("rdi") HOLE + 4090 => at, in("dx") 0xedu16) };
    same(left << 16 | at.wrapping_sub(HOLE), 4190)
}

fn string_out() -> Verdict {
    let (left, at): (u64, u64);
    // SAFETY: from the hole, to a port without a device.
    unsafe { asm!("rep outsw", inout("rcx") 100u64 => left, inout("rsi") HOLE => at, in("dx") 0xedu16) };
    same(left << 16 | at.wrapping_sub(HOLE), 200)
}

fn pushed_words() -> Verdict {
    let (word, moved): (u64, u64);
    // SAFETY: the stack is as it was.
    unsafe {
        asm!(
            "mov {m}, rsp", "push word ptr [{h}]", "pop ax", ".byte 0x66, 0x6a, 0x55", "pop word ptr [{h}]", "sub {m}, rsp", "movzx eax, ax",
            h = in(reg) HOLE, m = out(reg) moved, out("rax") word,
        );
    }
    same(moved << 16 | word, 0xffff)
}

fn stack_in_hole() -> Verdict {
    let (value, moved): (u64, u64);
    // SAFETY: interrupts are out; the stack is as it was.
    unsafe {
        asm!(
            "mov {s}, rsp", "mov rsp, {h}", "push 5", "push {s}", "pop {v}", "sub rsp, {h}", "mov {m}, rsp", "mov rsp, {s}",
            h = in(reg) HOLE + 0x100, s = out(reg) _, v = out(reg) value, m = out(reg) moved,
        );
    }
    same(value, u64::MAX)?;
    same(moved, 8u64.wrapping_neg())
}

fn through(call: bool) -> Verdict {
    let raised = if call {
        raises!(["mov {s}, rsp", "call qword ptr [{h}]", "77:", "mov rsp, {s}"] h = in(reg) HOLE, s = out(reg) _,)
    } else {
        raises!(["jmp qword ptr [{h}]"] h = in(reg) HOLE,)
    };
    let place = last().cr2 & last().rip;
    // That it was a fetch is told where execution can be forbidden.
    let efer = rdmsr(0xc000_0080).unwrap_or(0);
    same(raised, 14 << 32 | efer >> 11 << 4 & 0x10)?;
    same(place, u64::MAX)
}

/// Code at the other end of the addresses that reach a device by their distance.
fn relative() -> Verdict {
    // MOV byte [RIP + distance], 1 and RET.
    static CODE: crate::user::Shared<[u8; 16]> = crate::user::Shared(core::cell::UnsafeCell::new([0; 16]));
    let at = CODE.0.get().cast::<u8>();
    let distance = HOLE.wrapping_sub(at as u64 + 7);
    let mut code = [0xc6, 0x05, 0, 0, 0, 0, 1, 0xc3];
    let Ok(distance) = i32::try_from(distance.cast_signed()) else {
        // Too far for 32 bits with their sign: the device is reached by its other side, where nothing is mapped.
        code[2..6].copy_from_slice(&0x7fff_0000u32.to_le_bytes());
        return run(at, &code);
    };
    code[2..6].copy_from_slice(&distance.to_le_bytes());
    run(at, &code)
}

fn run(at: *mut u8, code: &[u8; 8]) -> Verdict {
    // SAFETY: the code writes where nothing is, and returns.
    unsafe {
        core::ptr::copy_nonoverlapping(code.as_ptr(), at, 8);
    }
    same(raises!(["call {c}"] c = in(reg) at,), NOTHING)
}

fn address_of_32_bits() -> Verdict {
    set(0x44);
    let value: u64;
    // SAFETY: reads a register; the upper half of the address counts for nothing.
    unsafe { asm!("mov {v:e}, dword ptr [{t:e}]", t = in(reg) TASK_PRIORITY | 0x1234 << 32, v = out(reg) value) };
    set(0);
    same(value, 0x44)
}

fn segment_base() -> Verdict {
    set(0x45);
    let value: u64;
    crate::machine::wrmsr(0xc000_0100, TASK_PRIORITY - 0x1000);
    // SAFETY: reads a register.
    unsafe { asm!("mov {v:e}, dword ptr fs:[{o}]", o = in(reg) 0x1000u64, v = out(reg) value) };
    crate::machine::wrmsr(0xc000_0100, 0);
    set(0);
    same(value, 0x45)
}

fn cache_lines() -> Verdict {
    same(
        raises!(["clflush [{h}]", "prefetcht0 [{h}]", "prefetchnta [{h}]", "lfence", "sfence", "mfence"] h = in(reg) HOLE,),
        NOTHING,
    )
}

fn undefined_forms() -> Verdict {
    // LEA and MOVBE with a register for memory, CLWB without memory, RDPRU.
    let forms = [
        raises!([".byte 0x8d, 0xc0"]),
        raises!([".byte 0x0f, 0x38, 0xf0, 0xc0"]),
        raises!([".byte 0x0f, 0x01, 0xfd"] in("ecx") 0,),
    ];
    forms.into_iter().try_for_each(|found| same(found, crate::machine::UD))
}

fn locked() -> Verdict {
    same(raises!([".byte 0xf0, 0x8b, 0x06"] in("rsi") HOLE, out("rax") _,), crate::machine::UD)?;
    same(raises!([".byte 0xf0, 0x01, 0xc0"] out("rax") _,), crate::machine::UD)
}
