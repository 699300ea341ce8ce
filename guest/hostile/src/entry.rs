//! States that a VM entry might refuse, and events in the shadow of an instruction (SDM vol. 3, "VM Entries", "Masking
//! Exceptions and Interrupts When Switching Stacks", "Debug, Breakpoint, TSC, and Intel Resource Director Technology").

use guest_rt::trap::Fault;

use crate::calls::either;
use crate::engine::{DATA, RAX, RBX, RCX, RDI, RDX, Ran, Run, run};
use crate::registers::{self, EFER, FMASK, LSTAR, STAR};
use crate::seen::{Seen, all, expect, expect_end};
use crate::segments::{KERNEL_DATA, TASK, TASK_GATE};
use crate::{Case, code};

const NON_CANONICAL: u64 = 1 << 47;
const TRAP: u64 = 1 << 8;
const NESTED_TASK: u64 = 1 << 14;
const VIRTUAL_8086: u64 = 1 << 17;
const DB: Seen = Seen::Fault(Fault { vector: 1, error: 0 });

pub const CASES: &[Case] = &[
    ("entry-jump-non-canonical", || wild(code!("jmp rdi"))),
    ("entry-call-non-canonical", || wild(code!("call rdi"))),
    ("entry-return-non-canonical", || wild(code!("push rdi", "ret"))),
    ("entry-iret-non-canonical", || {
        wild(code!("mov rax, rsp", "push 0x10", "push rax", "push 2", "push 8", "push rdi", "iretq"))
    }),
    ("entry-far-return-non-canonical", || wild(code!("push 8", "push rdi", "retfq"))),
    ("entry-sysret-non-canonical", || with_syscall(0, || wild(code!("mov rcx, rdi", "sysretq")))),
    ("entry-run-off-the-canonical-end", || {
        // The last canonical page is not mapped: a page fault there, not a state that no entry takes.
        Run::new(code!("jmp rdi")).with(RDI, NON_CANONICAL - 1).go().into()
    }),
    ("entry-stack-non-canonical", || Run::new(code!("push rax")).stack(NON_CANONICAL + 64).go().into()),
    ("entry-invlpg-non-canonical", || wild(code!("invlpg [rdi]"))),
    ("entry-read-non-canonical", || wild(code!("mov rax, [rdi]"))),
    ("entry-mov-ss-single-step", || stepped(code!("mov ss, edx", "nop", "nop"), 3)),
    ("entry-mov-ss-cpuid-single-step", || stepped(code!("mov ss, edx", "cpuid", "nop"), 4)),
    ("entry-mov-ss-hypercall-single-step", || {
        stepped(either(code!("mov ss, edx", "vmcall", "nop"), code!("mov ss, edx", "vmmcall", "nop")), 5)
    }),
    ("entry-mov-ss-icebp", || {
        Run::new(code!("mov ss, edx", ".byte 0xf1", "nop")).with(RDX, KERNEL_DATA.into()).go().into()
    }),
    ("entry-mov-ss-icebp-single-step", || stepped(code!("mov ss, edx", ".byte 0xf1", "nop"), 3)),
    ("entry-mov-ss-cpuid", || Run::new(code!("mov ss, edx", "cpuid")).with(RDX, KERNEL_DATA.into()).go().into()),
    ("entry-mov-ss-watched", || {
        // CVE-2018-8897: the breakpoint on the operand waits for the instruction behind, which exits.
        DATA.put(0, &KERNEL_DATA.to_le_bytes());
        let run = Run::new(code!("mov dr0, rdi", "mov dr7, rax", "mov ss, [rdi]", "cpuid", "nop"));
        run.with(RDI, DATA.address()).with(RAX, 0xf_0402).go().into()
    }),
    ("entry-sti-cpuid", || run(code!("sti", "cpuid", "cli")).into()),
    ("entry-sti-icebp", || run(code!("sti", ".byte 0xf1")).into()),
    ("entry-sti-single-step", || stepped(code!("sti", "nop", "nop"), 1)),
    ("entry-sti-mov-ss", || Run::new(code!("sti", "mov ss, edx", "cpuid", "cli")).with(RDX, 0x10).go().into()),
    ("entry-single-step-cpuid", || stepped(code!("cpuid", "nop"), 2)),
    ("entry-single-step-port", || stepped(code!("in al, 0x80", "nop"), 2)),
    ("entry-single-step-mmio", || {
        ended_at(&Run::new(code!("mov eax, [rdi]", "nop")).with(RDI, 0xfee0_0020).flags(TRAP).go(), 2)
    }),
    ("entry-single-step-rdmsr", || ended_at(&Run::new(code!("rdmsr", "nop")).with(RCX, 0x2ff).flags(TRAP).go(), 2)),
    ("entry-single-step-rep-port", || {
        // One iteration, one trap, and the instruction is not over.
        let run = Run::new(code!("rep outsb", "nop")).with(RCX, 3).with(RDX, 0x80).with(6, DATA.address());
        let ran = run.flags(TRAP).go();
        all(|| {
            expect_end(&ran, DB)?;
            expect("how far it got", ran.offset, 0)?;
            expect("RCX", ran.gprs[RCX], 2)
        })
    }),
    ("entry-single-step-hypercall", || stepped(either(code!("vmcall", "nop"), code!("vmmcall", "nop")), 3)),
    ("entry-icebp", || run(code!(".byte 0xf1")).into()),
    ("entry-iret-nested-task", || Run::new(code!("iretq")).flags(NESTED_TASK).go().into()),
    ("entry-iret-virtual-8086", || {
        let run = Run::new(code!("mov rax, rsp", "push 0x10", "push rax", "push rdi", "push 8", "push rsi", "iretq"));
        // 64-bit mode takes no notice of the flag; the target is not mapped.
        run.with(RDI, VIRTUAL_8086 | 2).with(6, 0x7f00_0000_0000).go().into()
    }),
    ("entry-task-gate", || {
        DATA.put(8, &TASK_GATE.to_le_bytes());
        Run::new(code!("call fword ptr [rdi + 4]")).with(RDI, DATA.address()).go().into()
    }),
    ("entry-task-segment", || {
        DATA.put(8, &TASK.to_le_bytes());
        Run::new(code!("jmp fword ptr [rdi + 4]")).with(RDI, DATA.address()).go().into()
    }),
    ("entry-ltr-null", || run(code!("ltr ax")).into()),
    ("entry-ltr-busy", || Run::new(code!("ltr ax")).with(RAX, TASK.into()).go().into()),
    ("entry-lldt-data", || Run::new(code!("lldt ax")).with(RAX, KERNEL_DATA.into()).go().into()),
    ("entry-ldt-selector-without-ldt", || Run::new(code!("mov ds, eax")).with(RAX, 4).go().into()),
    ("entry-segment-absent", || Run::new(code!("mov ds, eax")).with(RAX, crate::segments::ABSENT.into()).go().into()),
    ("entry-segment-beyond-table", || Run::new(code!("mov ds, eax")).with(RAX, 0xfff8).go().into()),
    ("entry-stack-segment-null-at-3", || Run::new(code!("xor eax, eax", "mov ss, eax")).user().go().into()),
    ("entry-mov-cs", || run(code!(".byte 0x8e, 0xc8")).into()),
    ("entry-lgdt-non-canonical", || table(code!("lgdt [rdi]"))),
    ("entry-lidt-non-canonical", || table(code!("lidt [rdi]"))),
    ("entry-interrupt-beyond-table", || run(code!("int 0x80")).into()),
    ("entry-interrupt-at-3", || run_user(code!("int 0x20"))),
    ("entry-syscall-disabled", || run(code!("syscall")).into()),
    ("entry-syscall-single-step", || syscall_stepped(0)),
    ("entry-syscall-single-step-masked", || syscall_stepped(TRAP)),
    ("entry-sysret-to-3", || {
        with_syscall(0, || {
            let target = crate::window::map(9, DATA.address(), crate::window::USER);
            DATA.put(0, &[0xf4]);
            // Level 3 is entered, and may not halt.
            Run::new(code!("sysretq")).with(RCX, target).with(11, 2).go().into()
        })
    }),
    ("entry-sysenter-without-segment", || {
        registers::write(registers::SYSENTER_CS, 0);
        run_user(code!("sysenter"))
    }),
    ("entry-rsm", || run(code!("rsm")).into()),
    ("entry-hlt-at-3", || run_user(code!("hlt"))),
    ("entry-cli-at-3", || run_user(code!("cli"))),
    ("entry-port-at-3", || run_user(code!("in al, 0x80"))),
    ("entry-string-port-at-3", || run_user(code!("outsb"))),
    ("entry-cpuid-at-3", || run_user(code!("cpuid"))),
    ("entry-rdmsr-at-3", || run_user(code!("rdmsr"))),
    ("entry-wrmsr-at-3", || run_user(code!("wrmsr"))),
    ("entry-mov-cr-at-3", || run_user(code!("mov rax, cr0"))),
    ("entry-mov-dr-at-3", || run_user(code!("mov rax, dr7"))),
    ("entry-wbinvd-at-3", || run_user(code!("wbinvd"))),
    ("entry-invlpg-at-3", || run_user(code!("invlpg [rsp]"))),
    ("entry-rdpmc-at-3", || run_user(code!("rdpmc"))),
    ("entry-mmio-at-3", || {
        let page = crate::window::map(9, 0xfee0_0000, crate::window::USER);
        Run::new(code!("mov eax, [rdi + 0x20]")).with(RDI, page).user().go().into()
    }),
    ("entry-kernel-memory-at-3", || Run::new(code!("mov eax, [rdi]")).with(RDI, DATA.address()).user().go().into()),
];

fn run_user(code: &[u8]) -> Seen {
    Run::new(code).user().go().into()
}

fn wild(code: &[u8]) -> Seen {
    Run::new(code).with(RDI, NON_CANONICAL).go().into()
}

/// With the trap flag: #DB, so far behind the beginning.
fn stepped(code: &[u8], offset: u64) -> Seen {
    ended_at(&Run::new(code).with(RDX, KERNEL_DATA.into()).flags(TRAP).go(), offset)
}

fn ended_at(ran: &Ran, offset: u64) -> Seen {
    all(|| {
        expect_end(ran, DB)?;
        expect("how far it got", ran.offset, offset)
    })
}

fn table(code: &[u8]) -> Seen {
    DATA.put(0, &0xffu16.to_le_bytes());
    DATA.put(2, &NON_CANONICAL.to_le_bytes());
    Run::new(code).with(RDI, DATA.address()).go().into()
}

/// With SYSCALL enabled, its handler a breakpoint in the data pages, and these flags masked.
fn with_syscall(mask: u64, then: impl FnOnce() -> Seen) -> Seen {
    let before = registers::read(EFER);
    DATA.put(64, &[0xcc; 4]);
    for (msr, value) in [(EFER, before | 1), (STAR, 0x0010_0008 << 32), (LSTAR, DATA.address() + 64), (FMASK, mask)] {
        if !registers::write(msr, value) {
            return Seen::Deviates("writing an MSR of SYSCALL", msr.into(), 0);
        }
    }
    let seen = then();
    registers::write(EFER, before);
    seen
}

/// SYSCALL with the trap flag set (XSA-204).
fn syscall_stepped(mask: u64) -> Seen {
    with_syscall(mask, || {
        let ran = Run::new(code!("pushf", "or qword ptr [rsp], 0x100", "popf", "syscall")).with(RBX, 0).user().go();
        all(|| {
            // Its own trap, before the handler or not at all: processors differ. Never one at level 3.
            let vector = u64::from(ran.fault.map_or(0, |fault| fault.vector));
            expect("the code segment", ran.place.cs, 8)?;
            let at_handler = ran.place.rip - (DATA.address() + 64);
            expect("#DB or #BP in the handler", u64::from(matches!((vector, at_handler), (1, 0 | 1) | (3, 1))), 1)
        })
    })
}
