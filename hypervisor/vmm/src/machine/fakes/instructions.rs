//! Steps for the instructions that exit.

use std::vec::Vec;

use lamina_arch::addr::Gpa;
use lamina_arch::exit::{CrAccess, CrExit, Direction, Exit, IoExit, NestedFault, Width};
use lamina_arch::regs::Gpr;

use super::chipset::CONSOLE_PORT;
use super::step::Step;
pub use super::step::script;
use crate::layout;
use crate::vcpu::Vcpu;

/// OUT of `value` to `port`.
pub fn outp(port: u16, width: Width, value: u32) -> Step {
    let io = IoExit { port, width, direction: Direction::Out, string: None };
    Step::exit(Exit::Io(io)).with(move |cpu| cpu.gprs().set(Gpr::Rax, value.into()))
}

/// OUT of a byte to `port`.
pub fn outb(port: u16, value: u8) -> Step {
    outp(port, Width::B1, value.into())
}

/// IN from `port`.
pub fn inp(port: u16, width: Width) -> Step {
    Step::exit(Exit::Io(IoExit { port, width, direction: Direction::In, string: None }))
}

/// OUT of each byte of `text` to the console.
pub fn print(text: &str) -> Vec<Step> {
    text.bytes().map(|byte| outb(CONSOLE_PORT, byte)).collect()
}

/// Ends the VM in order.
pub fn power_off() -> Step {
    outb(layout::SHUTDOWN_PORT, 0)
}

/// STI.
pub fn sti() -> Step {
    Step::act(|cpu| cpu.set_interrupts(true))
}

/// CLI.
pub fn cli() -> Step {
    Step::act(|cpu| cpu.set_interrupts(false))
}

/// HLT.
pub fn hlt() -> Step {
    Step::exit(Exit::Hlt).length(1)
}

/// CPUID of `leaf` and `subleaf`.
pub fn cpuid(leaf: u32, subleaf: u32) -> Step {
    Step::exit(Exit::Cpuid).with(move |cpu| {
        cpu.gprs().set(Gpr::Rax, leaf.into());
        cpu.gprs().set(Gpr::Rcx, subleaf.into());
    })
}

/// RDMSR of `index`.
pub fn rdmsr(index: u32) -> Step {
    Step::exit(Exit::Rdmsr).with(move |cpu| cpu.gprs().set(Gpr::Rcx, index.into()))
}

/// WRMSR of `value` to `index`.
pub fn wrmsr(index: u32, value: u64) -> Step {
    wrmsr_with(index, move |_| value)
}

/// WRMSR to `index` of what `value` gives at that time.
pub fn wrmsr_with(index: u32, value: impl FnOnce(&mut super::FakeVcpu) -> u64 + 'static) -> Step {
    Step::exit(Exit::Wrmsr).with(move |cpu| {
        let value = value(cpu);
        cpu.gprs().set(Gpr::Rcx, index.into());
        cpu.gprs().set_edx_eax(value);
    })
}

/// VMCALL.
pub fn hypercall(number: u64, first: u64, second: u64) -> Step {
    Step::exit(Exit::Hypercall).length(3).with(move |cpu| {
        cpu.gprs().set(Gpr::Rax, number);
        cpu.gprs().set(Gpr::Rdi, first);
        cpu.gprs().set(Gpr::Rsi, second);
    })
}

/// MOV of `value` to control register `cr`, by way of RBX.
pub fn mov_to_cr(cr: u8, value: u64) -> Step {
    let access = Some(CrAccess::Write { cr, source: Gpr::Rbx });
    Step::exit(Exit::Cr(CrExit { access })).length(3).with(move |cpu| cpu.gprs().set(Gpr::Rbx, value))
}

/// An access to `gpa`, which the nested tables do not map.
pub fn touch(gpa: Gpa, write: bool) -> Step {
    let fault = NestedFault { gpa, read: !write, write, fetch: false, table_walk: false, linear: None };
    Step::exit(Exit::NestedFault(fault))
}
