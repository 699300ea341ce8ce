//! Keeping the processor: none of these comes back. The VM beside it must get its share all the same.

use core::arch::asm;

use guest_rt::hypercall::Lamina;
use guest_rt::{cpu, println, trap};

use crate::engine::{self, DATA};
use crate::seen::Seen;
use crate::{Case, apic, devices, window};

/// A case that repeats instructions with interrupts out.
macro_rules! forever {
    ($($line:literal),+) => {
        || {
            // SAFETY: the instructions change what nobody uses again.
            unsafe { asm!("2:", $($line,)+ "jmp 2b", in("rdi") DATA.address(), options(noreturn)) }
        }
    };
}

pub const CASES: &[Case] = &[
    ("hold-jump", || cpu::hog()),
    ("hold-pause", forever!("pause")),
    ("hold-cpuid", forever!("mov eax, 1", "cpuid")),
    ("hold-hypercall", || match Lamina::find() {
        Some(lamina) if lamina.uses_vmmcall() => forever!("xor eax, eax", "vmmcall")(),
        _ => forever!("xor eax, eax", "vmcall")(),
    }),
    ("hold-rdmsr", forever!("mov ecx, 0x2ff", "rdmsr")),
    ("hold-wrmsr", forever!("mov ecx, 0x3b", "xor eax, eax", "xor edx, edx", "wrmsr")),
    ("hold-port", forever!("in al, 0x40")),
    ("hold-mmio", forever!("mov eax, 0xfee00020", "mov eax, [rax]")),
    ("hold-wbinvd", forever!("wbinvd")),
    ("hold-cr3", forever!("mov rax, cr3", "mov cr3, rax")),
    ("hold-cr4", forever!("mov rax, cr4", "xor rax, 0x80", "mov cr4, rax")),
    ("hold-cr0", forever!("mov rax, cr0", "xor rax, 0x40000000", "mov cr0, rax")),
    ("hold-invlpg", forever!("invlpg [rdi]")),
    ("hold-split-lock", forever!("lock inc qword ptr [rdi + 61]")),
    ("hold-rep-movs", forever!("lea rsi, [rdi + 1]", "mov ecx, 4000", "push rdi", "rep movsb", "pop rdi")),
    ("hold-rep-outs", forever!("mov rsi, rdi", "mov ecx, 8192", "mov edx, 0x80", "rep outsb")),
    ("hold-rep-ins", forever!("push rdi", "mov ecx, 8192", "mov edx, 0x60", "rep insb", "pop rdi")),
    ("hold-rep-stos-mmio", forever!("mov edi, 0xfee00080", "mov ecx, 16", "xor eax, eax", "rep stosd")),
    ("hold-ud-storm", || storm(6, forever!("ud2"))),
    ("hold-gp-storm", || storm(13, forever!("mov ecx, 0x1fff", "rdmsr"))),
    ("hold-pf-storm", || storm(14, forever!("mov rax, 0x7f0000000000", "mov rax, [rax]"))),
    ("hold-ac-storm", || storm(17, alignment_checks)),
    ("hold-db-storm", || storm(1, forever!("pushf", "or qword ptr [rsp], 0x100", "popf", "nop"))),
    ("hold-db-delivery", breakpoint_on_the_handlers_stack),
    ("hold-interrupt-storm", || devices::interrupt_storm()),
    ("hold-timer-storm", || apic::timer_storm()),
    ("hold-ipi-storm", || apic::ipi_storm()),
    ("hold-nmi-storm", || apic::nmi_storm()),
    ("hold-deadline-storm", || apic::deadline_storm()),
    ("hold-console-flood", || {
        loop {
            println!("the quick brown fox jumps over the lazy dog");
        }
    }),
    ("hold-yield", || {
        loop {
            let _ = Lamina::find().map(Lamina::yield_now);
        }
    }),
    ("hold-clock", || {
        loop {
            let _ = Lamina::find().map(Lamina::clock);
        }
    }),
    ("hold-halt-forever", || {
        loop {
            cpu::wait_for_interrupt();
        }
    }),
    ("hold-halt-wakes", || devices::halt_storm()),
];

/// Exceptions without end: the handler of `vector` returns to where it came from, and the instruction raises it again.
fn storm(vector: u8, raise: fn() -> Seen) -> Seen {
    trap::set_handler(vector, |_| {});
    raise()
}

/// #AC without end, at privilege level 3.
fn alignment_checks() -> Seen {
    // SAFETY: sets CR0.AM, which level 0 does not notice.
    unsafe { asm!("mov {t}, cr0", "or {t}, 0x40000", "mov cr0, {t}", t = out(reg) _, options(nostack)) };
    let stack = window::map(window::STACK, DATA.address(), window::USER);
    engine::stay_at_level_3(engine::CODE_OF_MISALIGNED_READ, stack + 2048)
}

/// A breakpoint on what the delivery of its own exception writes (CVE-2015-8104): where delivery raises it again, it
/// does so for ever.
fn breakpoint_on_the_handlers_stack() -> Seen {
    trap::set_handler(1, |_| {});
    let top = crate::segments::exception_stack() - 8;
    // SAFETY: debug registers watch the last word of the exceptions' stack, which every delivery writes.
    unsafe {
        asm!("mov dr0, {}", in(reg) top, options(nomem, nostack));
        asm!("mov dr7, {}", in(reg) 0x9_0402u64, options(nomem, nostack));
        asm!("2:", "mov qword ptr [{}], 0", "jmp 2b", in(reg) top, options(noreturn))
    }
}
