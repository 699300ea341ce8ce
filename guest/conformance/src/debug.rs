//! Debug exceptions one by one: where each traps, and what DR6 tells of it.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use guest_rt::trap::{self, Frame};

use crate::machine::{self, RESUME_FLAG, UD, VECTOR, count, forget, last, order, saved_flags};
use crate::{Test, Verdict, apic, raises, same};

pub const TESTS: &[Test] = &[
    ("steps: plain instructions", plain),
    ("steps: instructions that a hypervisor sees", exits),
    ("steps: a device in memory", device),
    ("steps: each iteration of rep stos", rep_stos),
    ("steps: each iteration of rep outs", rep_outs),
    ("steps: each iteration of rep movs to a device", rep_movs),
    ("steps: int n", int_n),
    ("steps: sti", sti),
    ("steps: sti and an interrupt that waits", sti_and_interrupt),
    ("steps: sti and hlt", sti_hlt),
    ("steps: mov ss", mov_ss),
    ("steps: mov ss and what exits", mov_ss_exit),
    ("steps: mov ss and int1", mov_ss_int1),
    ("steps: mov ss and general detect", mov_ss_general_detect),
    ("steps: a fault has no trap", fault_in_steps),
    ("watchpoint keeps the step flag in dr6", watchpoint_keeps_bs),
    ("watchpoint clears other breakpoints in dr6", watchpoint_clears_b),
    ("watchpoint on mov ss, then cpuid", || watched_ss(Behind::Cpuid, 0x01)),
    ("watchpoint on mov ss, then int1", || watched_ss(Behind::Int1, 0x01)),
    ("watchpoint on mov ss, then int3", || watched_ss(Behind::Int3, 0x0103)),
    ("watchpoint on a port", watched_port),
    ("watchpoint on a port, each iteration of rep outs", watched_rep_outs),
    ("watchpoint on a port, without debugging extensions", || on_port(0, &[])),
    ("watchpoint on a device in memory", watched_device),
    ("watchpoint on what rep movs writes to a device", watched_rep_movs),
    ("watchpoint on a device, and a step", watched_and_stepped),
    ("breakpoint on cpuid", || broken(Broken::Cpuid, 0x01)),
    ("breakpoint on what faults", || broken(Broken::Cr4, 0x010d)),
    ("breakpoint behind mov ss is held back", || broken(Broken::ShadowedNop, 0)),
    ("dr4 and dr5 are dr6 and dr7", aliases),
    ("dr4 with debugging extensions", || same(with_extensions(), UD)),
    ("resume flag of a general protection fault", resume_gp),
    ("resume flag of an undefined instruction", || resume(undefined, true)),
    ("resume flag of a page fault", || resume(page_fault, true)),
    ("resume flag of a breakpoint instruction", || resume(breakpoint, false)),
];

const MOST: usize = 12;
const TRAP_FLAG: u64 = 1 << 8;
/// DR6: BS, BD.
const STEP: u64 = 1 << 14;
const DETECT: u64 = 1 << 13;
/// Code that switches single steps off, one instruction after the other: offsets behind PUSHFQ, AND, POPFQ.
const END: [u64; 3] = [1, 9, 10];

static SEEN: AtomicUsize = AtomicUsize::new(0);
static PLACES: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
static TOLD: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];

fn dr6() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, dr6", out(reg) value) };
    value
}

fn set_dr6(value: u64) {
    // SAFETY: a report only.
    unsafe { asm!("mov dr6, {}", in(reg) value | 0xffff_0ff0) };
}

fn set_dr7(value: u64) {
    // SAFETY: debug exceptions have a handler, which returns.
    unsafe { asm!("mov dr7, {}", in(reg) value | 0x400) };
}

fn on_debug(frame: &mut Frame) {
    let n = SEEN.fetch_add(1, Ordering::Relaxed);
    let told = dr6();
    if let (Some(place), Some(slot)) = (PLACES.get(n), TOLD.get(n)) {
        place.store(frame.rip, Ordering::Relaxed);
        slot.store(told, Ordering::Relaxed);
    }
    if told & 0xf != 0 {
        frame.rflags |= RESUME_FLAG;
    }
    if n >= MOST - 1 {
        frame.rflags &= !TRAP_FLAG;
        set_dr7(0);
    }
}

/// Executes instructions; the debug exceptions are noted. Value: where label 66 is.
macro_rules! traced {
    ([$($instruction:expr),+] $($operands:tt)*) => {{
        SEEN.store(0, Ordering::Relaxed);
        trap::set_handler(1, on_debug);
        set_dr6(0);
        let start: u64;
        // SAFETY: the instructions leave the stack as it is and TF clear; what they touch is the test's.
        unsafe { asm!("lea {start}, [rip + 66f]", $($instruction,)+ start = out(reg) start, $($operands)*) };
        set_dr7(0);
        machine::install();
        start
    }};
}

/// The same with single steps on from label 66 on, and off behind the instructions.
macro_rules! stepped {
    ([$($instruction:expr),+] $($operands:tt)*) => {
        traced!([
            "pushfq", "or qword ptr [rsp], 0x100", "popfq", "66:",
            $($instruction,)+
            "pushfq", "and qword ptr [rsp], -257", "popfq"
        ] $($operands)*)
    };
}

/// The exceptions were at these offsets from `start`, told of as `told`, and then at the end of the steps.
fn at(start: u64, offsets: &[u64], told: &[u64]) -> Verdict {
    let last = offsets.last().copied().unwrap_or(0);
    let expected = offsets.iter().copied().chain(END.map(|offset| last + offset));
    let told = told.iter().copied().chain(core::iter::repeat(STEP));
    for ((n, offset), told) in expected.clone().enumerate().zip(told) {
        let found = PLACES[n].load(Ordering::Relaxed).wrapping_sub(start);
        same((n as u64) << 32 | found & 0xffff_ffff, (n as u64) << 32 | offset)?;
        same(TOLD[n].load(Ordering::Relaxed) & 0xe00f, told)?;
    }
    same(SEEN.load(Ordering::Relaxed) as u64, expected.count() as u64)
}

fn plain() -> Verdict {
    at(stepped!(["nop", "nop"]), &[1, 2], &[])
}

fn exits() -> Verdict {
    let start = stepped!(
        ["mov rsi, rbx", "cpuid", "mov rbx, rsi", "in al, 0x61", "out 0x80, al", "mov rax, cr8", "mov cr8, rax", "wbinvd"]
        inout("rax") 0u64 => _, inout("rcx") 0u64 => _, out("rdx") _, out("rsi") _,
    );
    at(start, &[3, 5, 8, 10, 12, 16, 20, 22], &[])
}

fn device() -> Verdict {
    let start = stepped!(["mov eax, [rsi]", "add dword ptr [rsi], 0"] in("rsi") apic::TASK_PRIORITY, out("rax") _,);
    at(start, &[2, 5], &[])
}

fn rep_stos() -> Verdict {
    let mut bytes = [1u8; 3];
    let start = stepped!(["rep stosb"] inout("rcx") 3u64 => _, inout("rdi") bytes.as_mut_ptr() => _, in("al") 0u8,);
    at(start, &[0, 0, 2], &[])?;
    same(u64::from(bytes[0] | bytes[1] | bytes[2]), 0)
}

fn rep_outs() -> Verdict {
    let bytes = [0u8; 3];
    let start = stepped!(["rep outsb"] inout("rcx") 3u64 => _, inout("rsi") bytes.as_ptr() => _, in("dx") 0xedu16,);
    at(start, &[0, 0, 2], &[])
}

fn rep_movs() -> Verdict {
    let words = [0x11u32, 0x22, 0x33];
    let start = stepped!(
        ["rep movsd"]
        inout("rcx") 3u64 => _, inout("rsi") words.as_ptr() => _, inout("rdi") crate::devices::HOLE => _,
    );
    at(start, &[0, 0, 2], &[])
}

fn int_n() -> Verdict {
    // The interrupt's delivery clears TF; behind its IRET the next instruction traps.
    at(stepped!(["nop", "int 0x35", "nop"]), &[1, 4], &[])
}

fn sti() -> Verdict {
    at(stepped!(["sti", "nop", "cli"]), &[1, 2, 3], &[])
}

fn sti_and_interrupt() -> Verdict {
    apic::self_ipi(VECTOR);
    forget();
    let start = stepped!(["sti", "nop", "nop", "cli"]);
    same(count(), 1)?;
    // The trap behind STI ends its shadow, too.
    same(last().rip.wrapping_sub(start), 1)?;
    at(start, &[1, 2, 3, 4], &[])
}

fn sti_hlt() -> Verdict {
    apic::start_timer(1_000_000);
    let start = stepped!(["sti", "hlt", "cli"]);
    apic::stop_timer();
    at(start, &[1, 2, 3], &[])
}

fn mov_ss() -> Verdict {
    at(stepped!(["nop", "mov ss, ecx", "nop", "nop"] in("ecx") 0x10,), &[1, 4, 5], &[])
}

fn mov_ss_exit() -> Verdict {
    let start = stepped!(
        ["mov rsi, rbx", "mov ss, edi", "cpuid", "mov rbx, rsi"]
        in("edi") 0x10, inout("rax") 0u64 => _, inout("rcx") 0u64 => _, out("rdx") _, out("rsi") _,
    );
    at(start, &[3, 7, 10], &[])
}

fn mov_ss_int1() -> Verdict {
    let start = traced!(
        [
            "pushfq", "or qword ptr [rsp], 0x100",
            "popfq", "mov ss, ecx", ".byte 0xf1", "66:", "nop",
            "pushfq", "and qword ptr [rsp], -257", "popfq"
        ]
        in("ecx") 0x10,
    );
    // INT1 tells nothing in DR6, and the step behind MOV SS is lost.
    at(start, &[0, 1], &[0])
}

fn mov_ss_general_detect() -> Verdict {
    let start = traced!(
        [
            "pushfq", "or qword ptr [rsp], 0x100", "mov dr7, {detect}",
            "popfq", "mov ss, ecx", "66:", "mov dr6, {zero}",
            "pushfq", "and qword ptr [rsp], -257", "popfq"
        ]
        in("ecx") 0x10, detect = in(reg) 0x2400u64, zero = in(reg) 0xffff_0ff0u64,
    );
    at(start, &[0, 3], &[DETECT])
}

fn fault_in_steps() -> Verdict {
    forget();
    // The handler of #UD steps over it: the trap comes behind the next instruction.
    trap::set_handler(6, |frame| frame.rip += 2);
    let start = stepped!(["nop", "ud2", "nop"]);
    at(start, &[1, 4], &[])
}

static WATCHED: AtomicU64 = AtomicU64::new(0);
/// DR7: breakpoint 0 on writes of eight bytes, on reads and writes of four, on an instruction.
const ON_WRITE: u64 = 2 | 0b1001 << 16;
const ON_ACCESS: u64 = 2 | 0b1111 << 16;
const ON_FETCH: u64 = 2;

fn watch(address: u64) {
    // SAFETY: DR7 decides whether it counts.
    unsafe { asm!("mov dr0, {}", in(reg) address) };
}

fn watched_write(before: u64) -> u64 {
    watch(WATCHED.as_ptr() as u64);
    SEEN.store(0, Ordering::Relaxed);
    trap::set_handler(1, on_debug);
    set_dr6(before);
    set_dr7(ON_WRITE);
    WATCHED.store(1, Ordering::Relaxed);
    set_dr7(0);
    machine::install();
    (SEEN.load(Ordering::Relaxed) as u64) << 16 | TOLD[0].load(Ordering::Relaxed) & 0xe00f
}

fn watchpoint_keeps_bs() -> Verdict {
    same(watched_write(STEP), 1 << 16 | STEP | 1)
}

fn watchpoint_clears_b() -> Verdict {
    same(watched_write(2), 1 << 16 | 1)
}

/// DR7: breakpoint 0 on a port, on writes of four bytes.
const ON_PORT: u64 = 2 | 0b0010 << 16;
const ON_STORE: u64 = 2 | 0b1101 << 16;
/// CR4.DE.
const EXTENSIONS: u64 = 1 << 3;

fn set_extensions(on: u64) {
    // SAFETY: breakpoints on ports are there with it; DR4 and DR5 are not.
    unsafe { asm!("mov {t}, cr4", "and {t}, -9", "or {t}, {on}", "mov cr4, {t}", t = out(reg) _, on = in(reg) on) };
}

/// The exceptions were at these offsets from `start`, each told of as `told`.
fn only_at(start: u64, offsets: &[u64], told: u64) -> Verdict {
    for (n, offset) in offsets.iter().enumerate() {
        let found = PLACES[n].load(Ordering::Relaxed).wrapping_sub(start);
        same((n as u64) << 32 | found & 0xffff_ffff, (n as u64) << 32 | offset)?;
        same(TOLD[n].load(Ordering::Relaxed) & 0xe00f, told)?;
    }
    same(SEEN.load(Ordering::Relaxed) as u64, offsets.len() as u64)
}

fn on_port(extensions: u64, offsets: &[u64]) -> Verdict {
    watch(0x61);
    set_extensions(extensions);
    let start = traced!(["mov dr7, {c}", "66: in al, 0x61", "in al, 0x60", "nop"] c = in(reg) ON_PORT, out("al") _,);
    set_extensions(0);
    only_at(start, offsets, 1)
}

fn watched_port() -> Verdict {
    on_port(EXTENSIONS, &[2])
}

fn watched_rep_outs() -> Verdict {
    let bytes = [0u8; 3];
    watch(0xed);
    set_extensions(EXTENSIONS);
    let start = traced!(
        ["mov dr7, {c}", "66: rep outsb", "nop"]
        c = in(reg) ON_PORT, inout("rcx") 3u64 => _, inout("rsi") bytes.as_ptr() => _, in("dx") 0xedu16,
    );
    set_extensions(0);
    only_at(start, &[0, 0, 2], 1)
}

fn watched_device() -> Verdict {
    watch(crate::devices::HOLE);
    let start = traced!(
        ["mov dr7, {c}", "66: mov eax, [rsi]", "mov [rsi], eax", "mov [rsi + 4], eax", "nop"]
        c = in(reg) ON_STORE, in("rsi") crate::devices::HOLE, out("eax") _,
    );
    only_at(start, &[4], 1)
}

fn watched_rep_movs() -> Verdict {
    let words = [0x11u32, 0x22, 0x33];
    watch(crate::devices::HOLE + 4);
    let start = traced!(
        ["mov dr7, {c}", "66: rep movsd", "nop"]
        c = in(reg) ON_STORE, inout("rcx") 3u64 => _, inout("rsi") words.as_ptr() => _,
        inout("rdi") crate::devices::HOLE => _,
    );
    only_at(start, &[0], 1)
}

fn watched_and_stepped() -> Verdict {
    watch(crate::devices::HOLE);
    let start = traced!(
        [
            "pushfq", "or qword ptr [rsp], 0x100", "mov dr7, {c}", "popfq", "66: mov [rsi], eax", "pushfq",
            "and qword ptr [rsp], -257", "popfq"
        ]
        c = in(reg) ON_STORE, in("rsi") crate::devices::HOLE, in("eax") 0,
    );
    at(start, &[2], &[STEP | 1])
}

#[derive(Clone, Copy)]
enum Behind {
    Cpuid,
    Int1,
    Int3,
}

/// MOV SS from a watched word holds its trap back until the next instruction is done.
fn watched_ss(behind: Behind, expected: u64) -> Verdict {
    WATCHED.store(0x10, Ordering::Relaxed);
    watch(WATCHED.as_ptr() as u64);
    forget();
    set_dr6(0);
    // SAFETY: the selector is the one that SS has; what comes behind has handlers.
    unsafe {
        match behind {
            Behind::Cpuid => asm!(
                "mov rsi, rbx", "mov dr7, {c}", "mov ss, word ptr [rip + {w}]", "cpuid", "mov rbx, rsi", "nop",
                c = in(reg) ON_ACCESS | 0x400, w = sym WATCHED, inout("eax") 0 => _, out("ecx") _, out("edx") _, out("rsi") _,
            ),
            Behind::Int1 => {
                asm!("mov dr7, {c}", "mov ss, word ptr [rip + {w}]", ".byte 0xf1", "nop", c = in(reg) ON_ACCESS | 0x400, w = sym WATCHED)
            }
            Behind::Int3 => {
                asm!("mov dr7, {c}", "mov ss, word ptr [rip + {w}]", "int3", "nop", c = in(reg) ON_ACCESS | 0x400, w = sym WATCHED)
            }
        }
    }
    set_dr7(0);
    same(order(), expected)
}

#[derive(Clone, Copy)]
enum Broken {
    Cpuid,
    Cr4,
    ShadowedNop,
}

/// A breakpoint on an instruction stops it once.
fn broken(instruction: Broken, expected: u64) -> Verdict {
    forget();
    set_dr6(0);
    // SAFETY: debug exceptions and #GP have handlers.
    unsafe {
        match instruction {
            Broken::Cpuid => asm!(
                "mov rsi, rbx", "lea {r}, [rip + 2f]", "mov dr0, {r}", "mov dr7, {c}", "2: cpuid", "mov rbx, rsi",
                r = out(reg) _, c = in(reg) ON_FETCH | 0x400, inout("eax") 0 => _, out("ecx") _, out("edx") _, out("rsi") _,
            ),
            Broken::Cr4 => {
                trap::set_handler(1, on_fetch);
                asm!(
                    "lea {r}, [rip + 3f]", "mov [rip + {resume}], {r}",
                    "lea {r}, [rip + 2f]", "mov dr0, {r}", "mov dr7, {c}", "2: mov cr4, {v}", "3: nop",
                    r = out(reg) _, c = in(reg) ON_FETCH | 0x400, resume = sym machine::RESUME, v = in(reg) 1u64 << 63,
                );
            }
            Broken::ShadowedNop => asm!(
                "lea {r}, [rip + 2f]", "mov dr0, {r}", "mov dr7, {c}", "mov ss, {s:e}", "2: nop", "nop",
                r = out(reg) _, c = in(reg) ON_FETCH | 0x400, s = in(reg) 0x10,
            ),
        }
    }
    set_dr7(0);
    let found = order() | FETCHED.swap(0, Ordering::Relaxed) << 8;
    machine::install();
    same(found, expected)
}

static FETCHED: AtomicU64 = AtomicU64::new(0);

fn on_fetch(frame: &mut Frame) {
    FETCHED.fetch_add(1, Ordering::Relaxed);
    frame.rflags |= RESUME_FLAG;
}

fn aliases() -> Verdict {
    let (six, seven): (u64, u64);
    // SAFETY: DE is clear; no breakpoint is enabled.
    unsafe {
        asm!(
            "mov {t}, cr4", "btr {t}, 3", "mov cr4, {t}",
            "mov eax, 0xffff4ff0", ".byte 0x0f, 0x23, 0xe0", "xor eax, eax", ".byte 0x0f, 0x21, 0xe0", "mov {six}, rax",
            ".byte 0x0f, 0x21, 0xe8", "mov {seven}, rax",
            t = out(reg) _, six = out(reg) six, seven = out(reg) seven, out("rax") _,
        );
    }
    set_dr6(0);
    same(six & 0xe00f, STEP)?;
    same(seven, 0x400)
}

fn with_extensions() -> u64 {
    // SAFETY: sets DE, and clears it.
    unsafe { asm!("mov {t}, cr4", "bts {t}, 3", "mov cr4, {t}", t = out(reg) _) };
    let raised = raises!([".byte 0x0f, 0x21, 0xe0"] out("rax") _,);
    // SAFETY: as above.
    unsafe { asm!("mov {t}, cr4", "btr {t}, 3", "mov cr4, {t}", t = out(reg) _) };
    raised
}

/// How many debug exceptions there are in `act`.
pub fn count_steps(act: impl Fn()) -> u64 {
    act();
    machine::STEPS.load(Ordering::Relaxed).into()
}

fn resume(act: impl Fn(), set: bool) -> Verdict {
    act();
    same(saved_flags() & RESUME_FLAG, if set { RESUME_FLAG } else { 0 })
}

fn undefined() {
    raises!(["ud2"]);
}

fn breakpoint() {
    raises!(["int3"]);
}

fn page_fault() {
    raises!(["mov {v}, [{a}]"] a = in(reg) 0x12_3456_7000u64, v = out(reg) _,);
}

fn resume_gp() -> Verdict {
    raises!(["mov cr4, {v}"] v = in(reg) 0xffff_ffffu64,);
    same(saved_flags() & RESUME_FLAG, RESUME_FLAG)?;
    raises!(["mov cr8, {v}"] v = in(reg) 0x10u64,);
    same(saved_flags() & RESUME_FLAG, RESUME_FLAG)
}
