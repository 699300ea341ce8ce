//! The delivery of events: faults in it, its order, NMIs in handlers, and what a device's access does in between.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::trap;

use crate::machine::{self, GP, NOTHING, SECOND, VECTOR, count, forget, last, order};
use crate::user::{self, ABSENT};
use crate::{Test, Verdict, apic, raises, same};

pub const TESTS: &[Test] = &[
    ("delivery: gate with an absent segment", || absent_segment(|| raises!(["int 0x35"]), 11 << 32 | ABSENT)),
    ("delivery: gate with an absent segment, of an interrupt", absent_for_interrupt),
    ("delivery: gate with a data segment", data_segment),
    ("delivery: stack that is not mapped", unmapped_stack),
    ("delivery: double fault of two contributory ones", double_fault),
    ("delivery: double fault of a fault that a hypervisor injects", double_fault_injected),
    ("delivery: page fault, then a general protection fault", fault_in_page_fault),
    ("delivery: fault of an interrupt's delivery loses nothing", interrupt_after_fault),
    ("order: int n in the shadow of sti, then the interrupt", int_in_shadow),
    ("order: two interrupts, the higher first", || two(SECOND, VECTOR, u64::from(VECTOR) << 8 | u64::from(SECOND))),
    ("order: two interrupts, one behind the task priority", behind_priority),
    ("order: priority lowered by cr8", priority_by_cr8),
    ("order: interrupt behind popf", behind_popf),
    ("order: interrupt behind mov ss", behind_mov_ss),
    ("order: interrupt between instructions that exit", between_exits),
    ("order: exception goes before what waits", exception_first),
    ("nmi: many in its handler are one", many_nmis),
    ("nmi: the second comes at once behind iret", nmi_behind_iret),
    ("nmi: an exception's iret in its handler ends the blocking", nmi_after_inner_iret),
    ("nmi: in the shadow of mov ss", nmi_behind_mov_ss),
    ("nmi: a single one is not lost among interrupts", nmi_among_interrupts),
    ("iret: to what is not canonical", iret_not_canonical),
    ("iret: to an absent segment", || iret_to(ABSENT, 11 << 32 | ABSENT)),
    ("iret: to a data segment", || iret_to(0x10, GP | 0x10)),
    ("iret: to a null segment", || iret_to(0, GP)),
    ("far jump to what is not canonical", far_not_canonical),
    ("execution to the end of the canonical addresses", || edge(&[0x90, 0x90, 0x90])),
    ("execution to the end of the canonical addresses by what exits", || edge(&[0x90, 0x0f, 0xa2])),
    ("execution to the end of the canonical addresses by a device's access", || edge(&[0x90, 0x8b, 0x06])),
    ("ss: null at level 0, not at level 3", null_stack_segment),
    ("repeated string is interrupted and goes on", interrupted_string),
];

/// Replaces the selector of `vector`'s gate while `act` runs.
fn with_selector<T>(vector: usize, selector: u64, act: impl FnOnce() -> T) -> T {
    let gate = user::gate(vector);
    // SAFETY: the gate is the runtime's, and is as it was afterwards.
    unsafe {
        let before = gate.read();
        gate.write(before & !(0xffff << 16) | selector << 16);
        let result = act();
        gate.write(before);
        result
    }
}

/// Has `vector` use the stack of its own while `act` runs.
fn with_stack<T>(vector: usize, act: impl FnOnce() -> T) -> T {
    let gate = user::gate(vector);
    // SAFETY: as above.
    unsafe {
        let before = gate.read();
        gate.write(before & !(7 << 32) | 1 << 32);
        let result = act();
        gate.write(before);
        result
    }
}

/// Clears the present bit of `vector`'s gate while `act` runs.
fn without_gate<T>(vector: usize, act: impl FnOnce() -> T) -> T {
    let gate = user::gate(vector);
    // SAFETY: as above.
    unsafe {
        let before = gate.read();
        gate.write(before & !(1 << 47));
        let result = act();
        gate.write(before);
        result
    }
}

fn absent_segment(act: impl Fn() -> u64, expected: u64) -> Verdict {
    same(with_selector(VECTOR.into(), ABSENT, act), expected)
}

/// The error code says that the event was external.
fn absent_for_interrupt() -> Verdict {
    apic::self_ipi(VECTOR);
    let found = with_selector(VECTOR.into(), ABSENT, || raises!(["sti", "nop", "nop", "cli"]));
    // It was taken, whatever became of it.
    apic::end_of_interrupt();
    // SAFETY: the fault has left interrupts as they were at the NOP: on.
    unsafe { asm!("cli") };
    same(found, 11 << 32 | ABSENT | 1)
}

fn data_segment() -> Verdict {
    same(with_selector(VECTOR.into(), 0x10, || raises!(["int 0x35"])), GP | 0x10)
}

fn unmapped_stack() -> Verdict {
    const AT: u64 = 0x12_3456_7800;
    let found = with_stack(
        14,
        || raises!(["mov {s}, rsp", "mov rsp, {t}", "int 0x35", "77:", "mov rsp, {s}"] s = out(reg) _, t = in(reg) AT,),
    );
    same(found, 14 << 32 | 2)?;
    same(last().cr2, AT - 8)
}

fn double_fault() -> Verdict {
    let found = without_gate(0, || raises!(["div {z:e}"] z = in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _,));
    same(found, 8 << 32)
}

fn double_fault_injected() -> Verdict {
    let found = without_gate(13, || raises!(["mov cr4, {v}"] v = in(reg) 1u64 << 63,));
    same(found, 8 << 32)
}

fn fault_in_page_fault() -> Verdict {
    let found = without_gate(14, || raises!(["mov {v}, [{a}]"] a = in(reg) 0x12_3456_7000u64, v = out(reg) _,));
    same(found, 8 << 32)
}

/// The handler of the fault mends the gate; the interrupt that was lost to it is sent again by no one.
fn interrupt_after_fault() -> Verdict {
    apic::self_ipi(SECOND);
    apic::self_ipi(VECTOR);
    let found = with_selector(VECTOR.into(), ABSENT, || raises!(["sti", "nop", "nop", "cli"]));
    apic::end_of_interrupt();
    // SAFETY: the lower one may come now.
    unsafe { asm!("sti", "nop", "nop", "cli") };
    same(found >> 32, 11)?;
    same(last().vector, SECOND.into())
}

fn int_in_shadow() -> Verdict {
    apic::self_ipi(SECOND);
    forget();
    // SAFETY: both have handlers.
    unsafe { asm!("sti", "int 0x35", "nop", "cli") };
    // The handler of INT n ends an interrupt that is not in service: that has no effect.
    same(order(), u64::from(VECTOR) << 8 | u64::from(SECOND))
}

fn two(first: u8, second: u8, expected: u64) -> Verdict {
    apic::self_ipi(first);
    apic::self_ipi(second);
    forget();
    machine::breathe();
    same(order(), expected)
}

fn behind_priority() -> Verdict {
    apic::self_ipi(SECOND);
    apic::self_ipi(VECTOR);
    apic::set_priority(0x20);
    forget();
    machine::breathe();
    same(order(), VECTOR.into())?;
    // SAFETY: interrupts have handlers. The write lets the lower one in.
    unsafe { asm!("sti", "mov dword ptr [{t}], 0", "nop", "cli", t = in(reg) apic::TASK_PRIORITY) };
    same(order(), u64::from(VECTOR) << 8 | u64::from(SECOND))
}

fn priority_by_cr8() -> Verdict {
    apic::self_ipi(VECTOR);
    forget();
    let between: u64;
    // SAFETY: interrupts have handlers.
    unsafe {
        asm!(
            "mov {t:e}, 15", "mov cr8, {t}", "sti", "nop", "nop", "mov {b}, [rip + {o}]", "xor {t:e}, {t:e}", "mov cr8, {t}", "nop", "cli",
            t = out(reg) _, b = out(reg) between, o = sym machine::ORDER,
        );
    }
    same(between << 8 | order(), VECTOR.into())
}

fn behind_popf() -> Verdict {
    apic::self_ipi(VECTOR);
    forget();
    let place: u64;
    // SAFETY: interrupts have handlers. POPF has no shadow.
    unsafe {
        asm!("lea {p}, [rip + 2f]", "pushfq", "or qword ptr [rsp], 0x200", "popfq", "2: nop", "cli", p = out(reg) place)
    };
    same(count(), 1)?;
    same(last().rip, place)
}

fn behind_mov_ss() -> Verdict {
    apic::self_ipi(VECTOR);
    forget();
    let place: u64;
    // SAFETY: interrupts have handlers; SS is what it was.
    unsafe {
        asm!("lea {p}, [rip + 2f]", "mov ecx, 0x10", "sti", "mov ss, ecx", "nop", "2: nop", "cli", p = out(reg) place, out("rcx") _)
    };
    same(count(), 1)?;
    // Behind STI's shadow, or behind MOV SS's: the second in a row need not hold it back.
    same(u64::from(last().rip == place || last().rip == place - 1), 1)
}

fn between_exits() -> Verdict {
    apic::self_ipi(VECTOR);
    forget();
    let place: u64;
    // SAFETY: interrupts have handlers.
    unsafe {
        asm!(
            "mov rsi, rbx", "lea {p}, [rip + 2f]", "xor eax, eax", "sti", "cpuid", "2: cpuid", "cli", "mov rbx, rsi",
            p = out(reg) place, out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _,
        );
    }
    same(count(), 1)?;
    same(last().rip, place)
}

fn exception_first() -> Verdict {
    apic::self_ipi(VECTOR);
    raises!(["sti", "mov cr4, {v}", "77:", "nop", "cli"] v = in(reg) 1u64 << 63,);
    same(order(), 13 << 8 | u64::from(VECTOR))
}

static TAKEN: AtomicU64 = AtomicU64::new(0);
static INNER: AtomicU64 = AtomicU64::new(0);
static PLACES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Takes NMIs with `handler` while they are sent and some time passes: how many there were.
fn nmis(handler: trap::Handler) -> u64 {
    TAKEN.store(0, Ordering::Relaxed);
    trap::set_handler(2, handler);
    apic::self_nmi();
    for _ in 0..300 {
        core::hint::spin_loop();
    }
    machine::install();
    TAKEN.load(Ordering::Relaxed)
}

fn many_nmis() -> Verdict {
    let taken = nmis(|_| {
        if TAKEN.fetch_add(1, Ordering::Relaxed) == 0 {
            for _ in 0..10 {
                apic::self_nmi();
            }
        }
    });
    same(taken, 2)
}

fn nmi_behind_iret() -> Verdict {
    let taken = nmis(|frame| {
        let n = TAKEN.fetch_add(1, Ordering::Relaxed);
        if let Some(place) = PLACES.get(usize::from(n != 0)) {
            place.store(frame.rip, Ordering::Relaxed);
        }
        if n == 0 {
            apic::self_nmi();
        }
    });
    same(taken, 2)?;
    same(PLACES[1].load(Ordering::Relaxed), PLACES[0].load(Ordering::Relaxed))
}

fn nmi_after_inner_iret() -> Verdict {
    let taken = nmis(|_| {
        if TAKEN.fetch_add(1, Ordering::Relaxed) == 0 {
            apic::self_nmi();
            // SAFETY: it has a handler, whose IRET lets the second NMI in.
            unsafe { asm!("int3", "nop") };
            INNER.store(TAKEN.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    });
    same(taken << 8 | INNER.load(Ordering::Relaxed), 2 << 8 | 2)
}

fn nmi_behind_mov_ss() -> Verdict {
    let command = apic::command();
    forget();
    // SAFETY: SS is what it was.
    unsafe {
        asm!("mov ss, {2:e}", "mov [{0}], {1:e}", "nop", "nop", in(reg) command, in(reg) apic::SELF_NMI, in(reg) 0x10)
    };
    same(order(), 2)
}

fn nmi_among_interrupts() -> Verdict {
    apic::self_ipi(SECOND);
    apic::self_ipi(VECTOR);
    let command = apic::command();
    forget();
    // SAFETY: all three have handlers.
    unsafe { asm!("mov [{0}], {1:e}", "sti", "nop", "nop", "cli", in(reg) command, in(reg) apic::SELF_NMI) };
    same(order(), 2 << 16 | u64::from(VECTOR) << 8 | u64::from(SECOND))
}

/// IRET to the same level with `segment` and `place` as its target.
fn iret(segment: u64, place: u64) -> u64 {
    raises!(
        ["mov {s}, rsp", "push 0x10", "push {s}", "push 2", "push {c}", "push {p}", "iretq", "77:", "mov rsp, {s}"]
        s = out(reg) _, c = in(reg) segment, p = in(reg) place,
    )
}

fn iret_to(segment: u64, expected: u64) -> Verdict {
    same(iret(segment, 0x10_0000), expected)
}

fn iret_not_canonical() -> Verdict {
    same(iret(8, 1 << 63), GP)
}

fn far_not_canonical() -> Verdict {
    let target: [u64; 2] = [1 << 63, 8];
    // A far jump through memory with a 64-bit offset.
    same(raises!([".byte 0x48, 0xff, 0x6e, 0x00"] in("rsi") target.as_ptr(),), GP)
}

/// Where the lower half of the canonical addresses ends.
const END: u64 = 1 << 47;

/// Executes three bytes that end there: the next instruction is where none can be.
fn edge(code: &[u8; 3]) -> Verdict {
    let page = user::map_last_page();
    // SAFETY: the page is nobody else's.
    unsafe { core::ptr::copy_nonoverlapping(code.as_ptr(), page.add(4093), 3) };
    let found = raises!(
        ["mov rdi, rbx", "jmp {e}", "77:", "mov rbx, rdi"]
        e = in(reg) END - 3, inout("rsi") apic::TASK_PRIORITY => _, out("rdi") _, inout("rax") 0u64 => _, out("rcx") _, out("rdx") _,
    );
    same(found, GP)?;
    same(last().rip, END)
}

fn null_stack_segment() -> Verdict {
    let good = raises!(["mov ss, {z:e}", "mov ss, {d:e}"] z = in(reg) 0, d = in(reg) 0x10,);
    same(good, NOTHING)?;
    same(raises!(["mov ss, {z:e}"] z = in(reg) 3,), GP)
}

/// A string that takes longer than a timer needs: the interrupt comes within it, and all of it is done.
fn interrupted_string() -> Verdict {
    static TARGET: user::Shared<[u8; 4096]> = user::Shared(core::cell::UnsafeCell::new([0; 4096]));
    forget();
    apic::start_timer(200);
    let left: u64;
    // SAFETY: as long as the target; interrupts have handlers.
    unsafe {
        asm!(
            "sti", "2: mov rdi, {t}", "mov ecx, 4096", "rep stosb", "dec {n}", "jnz 2b", "cli",
            t = in(reg) TARGET.0.get(), n = inout(reg) 20u64 => _, out("rdi") _, inout("rcx") 0u64 => left, in("al") 0x5au8,
        );
    }
    apic::stop_timer();
    // SAFETY: nobody writes any more.
    let all = unsafe { (*TARGET.0.get()).iter().all(|&byte| byte == 0x5a) };
    same(left << 16 | u64::from(all) << 8 | count(), 1 << 8 | 1)
}
