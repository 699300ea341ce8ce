//! The report of a bug of the hypervisor's own, an exception or a panic, or of the machine's failure. Ends the machine,
//! except where a panic can be contained: then the report goes to the console and the run loop goes on.
//!
//! Owns the last words. They take no lock that the interrupted code may hold, allocate nothing, and end the machine even
//! where reporting itself fails. A report that is contained may do all of that, as nobody holds a lock then.

use alloc::format;
use core::arch::asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};
use x86_64::registers::control::{Cr0, Cr2, Cr3, Cr4};

use crate::exit::end_machine;
use crate::idt::TrapFrame;
use crate::logger::Polled;
use crate::machine_check::{self, Error};
use crate::nmi_status::Failure;
use crate::watchdog::{self, PATIENCE_SECONDS};
use crate::{contain, logger, paging, percpu, screen, serial, svm, symbols, vmx};

/// The status of a machine that ended by a bug.
pub const STATUS: u32 = 101;
/// RFLAGS with interrupts off and upwards strings: the bit that is always set.
const RFLAGS_FIXED: u64 = 2;
/// Longest backtrace. Unit: frames.
const DEPTH: usize = 32;

/// Reports that have begun: one that fails begins another. Shared by all processors.
static REPORTS: AtomicU32 = AtomicU32::new(0);

/// What a frame pointer may point at.
const STACK_WINDOW: core::ops::Range<u64> = paging::STACKS..paging::DEVICES;

/// Opens a report; ends the machine at once where another one failed in the middle.
fn begin() {
    x86_64::instructions::interrupts::disable();
    // What goes wrong in a report that was to be contained is not contained.
    if let Some(cpu) = percpu::try_current() {
        cpu.reporting.store(false, Ordering::Relaxed);
        cpu.work.store(0, Ordering::Relaxed);
    }
    let earlier = REPORTS.fetch_add(1, Ordering::SeqCst);
    if earlier > 2 {
        end_machine(STATUS);
    }
    // SAFETY: nothing that holds these locks goes on: this processor never returns from here, and no other is started.
    unsafe {
        serial::break_lock();
        screen::break_lock();
        logger::break_lock();
    }
    // Last words are for whoever is there.
    screen::show(true);
    if serial::mid_line() {
        serial::write_polled(b"\r\n");
    }
    if earlier > 0 {
        say(format_args!("the report of a bug failed"));
        finish();
    }
    logger::write_waiting();
}

/// A line of a report: to the console where that goes on, else to the port, which may take its time.
fn say(line: fmt::Arguments<'_>) {
    watchdog::progress_if_up();
    if percpu::try_current().is_some_and(|cpu| cpu.reporting.load(Ordering::Relaxed)) {
        return logger::queue_line(line);
    }
    // Nobody is left to tell of a port that does not take it.
    let _ = writeln!(Polled, "{line}");
}

fn finish() -> ! {
    say(format_args!("exit {STATUS}"));
    end_machine(STATUS);
}

/// Reports a panic. Ends the machine, or where it came up in work for one VM that can be abandoned, that work.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    let frame: u64;
    // SAFETY: only reads RBP.
    unsafe { asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    if let Some(bug) = contain::begin() {
        let what = match info.location() {
            Some(at) => format!("panicked at {}:{}:{}: {}", at.file(), at.line(), at.column(), info.message()),
            None => format!("panicked: {}", info.message()),
        };
        say(format_args!("{what}, in work for VM {}", bug.vm() + 1));
        backtrace(None, frame);
        let checkpoint = bug.end(what);
        // SAFETY: `contain::begin` found that the run loop waits behind the checkpoint on this stack, and that nothing
        // that is abandoned is needed by anybody.
        unsafe { contain::leave(checkpoint) };
    }
    begin();
    match info.location() {
        Some(at) => say(format_args!("panicked at {}:{}:{}: {}", at.file(), at.line(), at.column(), info.message())),
        None => say(format_args!("panicked: {}", info.message())),
    }
    backtrace(None, frame);
    finish();
}

/// Ends the machine with a status that was decided before any console: the last line says it.
pub fn end(status: u32) -> ! {
    say(format_args!("exit {status}"));
    end_machine(status);
}

/// Ends the machine with an explanation: it cannot run the hypervisor, which is nobody's bug.
pub fn refuse(reason: fmt::Arguments<'_>) -> ! {
    begin();
    say(format_args!("error: {reason}"));
    say(format_args!("exit 1"));
    end_machine(1);
}

/// Reports that this processor is stuck, at `frame`. Ends the machine; or where it is stuck in work for one VM that can be
/// abandoned, has the run loop go on without that VM when the interrupt's handler returns: by IRET, which also lets
/// non-maskable interrupts in again.
pub fn stuck(frame: &mut TrapFrame) {
    let Some(bug) = contain::begin() else {
        begin();
        say(format_args!(
            "watchdog: stuck for {PATIENCE_SECONDS} s in work for no virtual machine that can be stopped alone"
        ));
        say_last_exit();
        registers(frame);
        backtrace(Some(frame.rip), frame.rbp);
        finish();
    };
    // Another VM may be on the processor, or one that is only being made.
    let loaded =
        percpu::try_current().is_some_and(|cpu| usize::from(cpu.current_vm.load(Ordering::Relaxed)) == bug.vm() + 1);
    let what = match last_exit().filter(|_| loaded) {
        Some((kind, rip)) => format!("stuck for {PATIENCE_SECONDS} s, last exit {kind} at rip {rip:#x}"),
        None => format!("stuck for {PATIENCE_SECONDS} s"),
    };
    say(format_args!("watchdog: {what}, in work for VM {}", bug.vm() + 1));
    registers(frame);
    backtrace(Some(frame.rip), frame.rbp);
    let checkpoint = bug.end(what);
    frame.rip = (contain::leave as *const ()).expose_provenance() as u64;
    frame.rdi = checkpoint;
    frame.rsp = checkpoint;
    frame.rflags = RFLAGS_FIXED;
}

/// What the guest that was on this processor last exited for, and where.
fn last_exit() -> Option<(&'static str, u64)> {
    vmx::last_exit().or_else(svm::last_exit)
}

fn say_last_exit() {
    if let Some((kind, rip)) = last_exit() {
        let (_, vm) = here();
        say(format_args!("last exit of a guest: VM {vm}, {kind}, rip {rip:#x}"));
    }
}

/// This processor's number, and that of the VM that it last entered; 0 for each where it has no structure yet.
fn here() -> (u32, u16) {
    percpu::try_current().map_or((0, 0), |cpu| (cpu.id, cpu.current_vm.load(Ordering::Relaxed)))
}

/// Reports an exception of the hypervisor's own and ends the machine.
pub fn exception(frame: &TrapFrame) -> ! {
    begin();
    let name = NAMES.get(usize::try_from(frame.vector).unwrap_or(usize::MAX)).copied().unwrap_or("unknown");
    let (id, vm) = here();
    say(format_args!("exception {} ({name}), error code {:#x}, processor {id}, VM {vm}", frame.vector, frame.error));
    let cr2 = Cr2::read_raw();
    if matches!(frame.vector, 8 | 14) {
        let e = frame.error;
        let access = match (e & 0x10 != 0, e & 2 != 0) {
            _ if frame.vector == 8 => "last page fault",
            (true, _) => "execution",
            (_, true) => "write",
            _ => "read",
        };
        say(format_args!("{access} at {cr2:#018x}: {}", paging::describe(cr2)));
    }
    if frame.vector == 18 {
        for error in machine_check::errors() {
            let Error { bank, status, address } = error;
            match address {
                Some(address) => say(format_args!("bank {bank}: status {status:#018x}, address {address:#x}")),
                None => say(format_args!("bank {bank}: status {status:#018x}")),
            }
        }
    }
    registers(frame);
    backtrace(Some(frame.rip), frame.rbp);
    finish();
}

/// Reports that the machine itself has failed, as a non-maskable interrupt told, and ends it.
pub fn machine_failure(frame: &TrapFrame, failure: Failure) -> ! {
    begin();
    let (id, vm) = here();
    say(format_args!("the machine has failed: NMI by {failure}, processor {id}, VM {vm}"));
    registers(frame);
    backtrace(Some(frame.rip), frame.rbp);
    finish();
}

/// Says what was in the registers.
fn registers(frame: &TrapFrame) {
    let cr2 = Cr2::read_raw();
    let f = frame;
    say(format_args!(
        "rip {:#018x} rsp {:#018x} rflags {:#010x} cs {:#x} ss {:#x}",
        f.rip, f.rsp, f.rflags, f.cs, f.ss
    ));
    say(format_args!("rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}", f.rax, f.rbx, f.rcx, f.rdx));
    say(format_args!("rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}", f.rsi, f.rdi, f.rbp, f.r8));
    say(format_args!("r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}", f.r9, f.r10, f.r11, f.r12));
    say(format_args!("r13 {:016x} r14 {:016x} r15 {:016x} cr2 {cr2:016x}", f.r13, f.r14, f.r15));
    let (cr0, cr3, cr4) = (Cr0::read_raw(), Cr3::read().0.start_address().as_u64(), Cr4::read_raw());
    say(format_args!("cr0 {cr0:016x} cr3 {cr3:016x} cr4 {cr4:016x}"));
}

/// Says who called whom, by the chain of frame pointers from `frame` on, innermost first.
fn backtrace(rip: Option<u64>, frame: u64) {
    say(format_args!("backtrace:"));
    if let Some(rip) = rip {
        say_address(rip, rip);
    }
    let mut frame = frame;
    for _ in 0..DEPTH {
        let inside = |at: u64| at.is_multiple_of(8) && STACK_WINDOW.contains(&at) && paging::is_mapped(at);
        if !inside(frame) || !inside(frame + 8) {
            return;
        }
        let at = core::ptr::with_exposed_provenance::<u64>(usize::try_from(frame).unwrap_or(0));
        // SAFETY: both words were just found aligned, mapped, and in the addresses of stacks, which are plain memory.
        let (next, address) = unsafe { (at.read_volatile(), at.add(1).read_volatile()) };
        if address == 0 {
            return;
        }
        // A call that never returns can be the last instruction of its function: look up the call, not what follows.
        say_address(address, address - 1);
        // Stacks grow down, so a caller's frame is above; anything else is no chain (or a change of stacks, which a
        // report of a double fault makes once).
        if next <= frame {
            return;
        }
        frame = next;
    }
}

/// Says an address, with the function that holds `inside`.
fn say_address(address: u64, inside: u64) {
    match symbols::find(inside) {
        Some(symbol) => say(format_args!("  {address:#018x} {:#}+{:#x}", symbol.name, symbol.offset)),
        None => say(format_args!("  {address:#018x}")),
    }
}

/// Names of the exceptions, by vector (SDM vol. 3, "Exception and Interrupt Reference").
const NAMES: [&str; 32] = [
    "#DE, divide error",
    "#DB, debug",
    "NMI",
    "#BP, breakpoint",
    "#OF, overflow",
    "#BR, bound range exceeded",
    "#UD, invalid opcode",
    "#NM, device not available",
    "#DF, double fault",
    "coprocessor segment overrun",
    "#TS, invalid TSS",
    "#NP, segment not present",
    "#SS, stack fault",
    "#GP, general protection",
    "#PF, page fault",
    "reserved",
    "#MF, x87 error",
    "#AC, alignment check",
    "#MC, machine check",
    "#XM, SIMD error",
    "#VE, virtualization",
    "#CP, control protection",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "#HV, hypervisor injection",
    "#VC, VMM communication",
    "#SX, security",
    "reserved",
];
