//! Exceptions, traps, shadows and NMIs.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::trap::{self, Frame};

use crate::machine::{self, GP, NOTHING, STEPS, UD, VECTOR, breathe, count, forget, last};
use crate::{Test, Verdict, apic, raises, same};

pub const TESTS: &[Test] = &[
    ("int3 returns behind itself", || behind(3, || trap_at("int3"))),
    ("int1 returns behind itself", || behind(1, || trap_at("int1"))),
    ("int n returns behind itself", || behind(VECTOR.into(), || trap_at("int"))),
    ("ud2", || same(raises!(["ud2"]), UD)),
    ("divide error", || same(raises!(["div {z:e}"] z = in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _,), 0)),
    ("selector outside of the table", || same(raises!(["mov fs, {s:e}"] s = in(reg) 0xf8,), GP | 0xf8)),
    ("page fault of a read", || page_fault(false)),
    ("page fault of a write", || page_fault(true)),
    ("address not canonical", || same(raises!(["mov {a}, [{a}]"] a = inout(reg) 1u64 << 63 => _,), GP)),
    ("int of a gate that is not there", || same(raises!(["int 0x80"]), GP | 0x80 << 3 | 2)),
    ("single steps over what exits", single_steps),
    ("breakpoint on data", breakpoint_on_data),
    ("breakpoint on an instruction", breakpoint_on_instruction),
    ("general detect", general_detect),
    ("sti shadow of a plain instruction", || shadow(false)),
    ("sti shadow of what exits", || shadow(true)),
    ("mov ss shadow", mov_ss_shadow),
    ("sti and hlt", sti_hlt),
    ("nmi", nmi),
    ("nmi waits for the iret of the first", nested_nmi),
    ("nmi in an sti shadow", nmi_in_shadow),
    ("nmi and interrupt at once", nmi_and_interrupt),
    ("monitor and mwait agree with cpuid", monitor),
    ("xgetbv without osxsave", || same(raises!(["xgetbv"] in("ecx") 0, out("eax") _, out("edx") _,), UD)),
];

static BEHIND: AtomicU64 = AtomicU64::new(0);

/// Executes a software event of one or two bytes, and notes where the instruction behind it is.
fn trap_at(kind: &str) {
    // SAFETY: the events have handlers, which return.
    unsafe {
        match kind {
            "int3" => asm!("lea {r}, [rip + 2f]", "mov [rip + {b}], {r}", "int3", "2:", r = out(reg) _, b = sym BEHIND),
            "int1" => {
                asm!("lea {r}, [rip + 2f]", "mov [rip + {b}], {r}", ".byte 0xf1", "2:", r = out(reg) _, b = sym BEHIND);
            }
            _ => asm!("lea {r}, [rip + 2f]", "mov [rip + {b}], {r}", "int 0x35", "2:", r = out(reg) _, b = sym BEHIND),
        }
    }
}

fn behind(vector: u64, act: impl Fn()) -> Verdict {
    forget();
    act();
    same(last().vector, vector)?;
    same(last().rip, BEHIND.load(Ordering::Relaxed))
}

fn page_fault(write: bool) -> Verdict {
    // Behind what is mapped.
    let at = 0x12_3456_7000u64;
    let raised = if write {
        raises!(["mov [{a}], {a}"] a = in(reg) at,)
    } else {
        raises!(["mov {v}, [{a}]"] a = in(reg) at, v = out(reg) _,)
    };
    same(raised, 14 << 32 | u64::from(write) << 1)?;
    same(last().cr2, at)
}

fn single_steps() -> Verdict {
    forget();
    // SAFETY: each instruction is harmless, and TF is clear in the end.
    unsafe {
        asm!(
            "pushfq", "or qword ptr [rsp], 0x100", "popfq",
            "nop",
            "mov rsi, rbx", "xor eax, eax", "cpuid", "mov rbx, rsi",
            "in al, 0x61",
            "mov rax, cr3", "mov cr3, rax",
            "mov ecx, 0x1b", "rdmsr",
            "pushfq", "and qword ptr [rsp], 0xfffffffffffffeff", "popfq",
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _,
            inout("rdi") 0u64 => _,
        );
    }
    // The one that clears TF still traps? No: TF was clear before it ended. The one that set it does not.
    same(STEPS.load(Ordering::Relaxed).into(), 13)
}

static WATCHED: AtomicU64 = AtomicU64::new(0);

fn with_breakpoint(at: u64, control: u64, act: impl Fn()) {
    // SAFETY: the handler returns; the breakpoint is gone afterwards.
    unsafe { asm!("mov dr0, {}", "mov dr6, {}", "mov dr7, {}", in(reg) at, in(reg) 0xffff_0ff0_u64, in(reg) control) };
    act();
    // SAFETY: as above.
    unsafe { asm!("mov dr7, {}", in(reg) 0x400u64) };
}

fn dr6() -> u64 {
    let dr6: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, dr6", out(reg) dr6) };
    dr6
}

fn breakpoint_on_data() -> Verdict {
    forget();
    // Writes of 8 bytes.
    with_breakpoint(WATCHED.as_ptr() as u64, 0x400 | 2 | 0b1001 << 16, || WATCHED.store(1, Ordering::Relaxed));
    same(STEPS.load(Ordering::Relaxed).into(), 1)?;
    same(dr6() & 0xf, 1)
}

#[inline(never)]
fn stepped_on() {
    // SAFETY: nothing.
    unsafe { asm!("nop") };
}

fn breakpoint_on_instruction() -> Verdict {
    forget();
    with_breakpoint(stepped_on as *const () as u64, 0x402, stepped_on);
    same(STEPS.load(Ordering::Relaxed).into(), 1)?;
    same(last().rip, stepped_on as *const () as u64)
}

fn general_detect() -> Verdict {
    // SAFETY: the next access to a debug register traps, and clears the bit.
    unsafe { asm!("mov dr7, {}", in(reg) 0x2400u64) };
    let raised = raises!(["mov {v}, dr0"] v = out(reg) _,);
    same(raised, 1 << 32)?;
    same(dr6() >> 13 & 1, 1)
}

fn shadow(exits: bool) -> Verdict {
    apic::self_ipi(VECTOR);
    forget();
    // SAFETY: the interrupt has a handler.
    unsafe {
        if exits {
            asm!(
                "lea {r}, [rip + 2f]", "mov [rip + {b}], {r}", "push rbx", "sti", "cpuid", "2: cli", "pop rbx",
                r = out(reg) _, b = sym BEHIND, inout("eax") 0 => _, out("ecx") _, out("edx") _,
            );
        } else {
            asm!("lea {r}, [rip + 2f]", "mov [rip + {b}], {r}", "sti", "nop", "2: nop", "cli", r = out(reg) _, b = sym BEHIND);
        }
    }
    same(count(), 1)?;
    same(last().rip, BEHIND.load(Ordering::Relaxed))
}

fn mov_ss_shadow() -> Verdict {
    forget();
    // A single step that MOV SS puts off to the end of the next instruction.
    // SAFETY: the stack segment is what it was, and TF is clear in the end.
    unsafe {
        asm!(
            "mov {s:e}, ss",
            "pushfq", "or qword ptr [rsp], 0x100", "popfq",
            "mov ss, {s:e}",
            "nop",
            "pushfq", "and qword ptr [rsp], 0xfffffffffffffeff", "popfq",
            s = out(reg) _,
        );
    }
    same(STEPS.load(Ordering::Relaxed).into(), 4)
}

fn sti_hlt() -> Verdict {
    apic::self_ipi(VECTOR);
    forget();
    // SAFETY: the interrupt waits already, and STI keeps it out until HLT has begun.
    unsafe { asm!("sti", "hlt", "cli") };
    same(count(), 1)
}

fn nmi() -> Verdict {
    forget();
    apic::self_nmi();
    for _ in 0..100 {
        core::hint::spin_loop();
    }
    same(count() << 8 | last().vector, 1 << 8 | 2)
}

static DEPTH: AtomicU64 = AtomicU64::new(0);
static DEEPEST: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);

fn on_nmi(_: &mut Frame) {
    let depth = DEPTH.fetch_add(1, Ordering::Relaxed) + 1;
    DEEPEST.fetch_max(depth, Ordering::Relaxed);
    if TAKEN.fetch_add(1, Ordering::Relaxed) == 0 {
        apic::self_nmi();
        for _ in 0..100 {
            core::hint::spin_loop();
        }
    }
    DEPTH.fetch_sub(1, Ordering::Relaxed);
}

fn nested_nmi() -> Verdict {
    trap::set_handler(2, on_nmi);
    apic::self_nmi();
    for _ in 0..1000 {
        core::hint::spin_loop();
    }
    machine::install();
    same(TAKEN.load(Ordering::Relaxed) << 8 | DEEPEST.load(Ordering::Relaxed), 2 << 8 | 1)
}

fn nmi_in_shadow() -> Verdict {
    forget();
    // SAFETY: the write is the NMI's request, in the instruction behind STI.
    unsafe { asm!("sti", "mov [{0}], {1:e}", "nop", "cli", in(reg) apic::command(), in(reg) apic::SELF_NMI) };
    same(count() << 8 | last().vector, 1 << 8 | 2)
}

fn nmi_and_interrupt() -> Verdict {
    forget();
    apic::self_ipi(VECTOR);
    apic::self_nmi();
    breathe();
    same(count() << 8 | last().vector, 2 << 8 | u64::from(VECTOR))
}

fn monitor() -> Verdict {
    let shown = guest_rt::cpu::has(1, 0, 2, 3);
    let raised = raises!(["monitor"] in("rax") WATCHED.as_ptr(), in("ecx") 0, in("edx") 0,);
    same(raised, if shown { NOTHING } else { UD })
}
