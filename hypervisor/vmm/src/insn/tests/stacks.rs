//! PUSH, POP, CALL, JMP and RET with operands in a device, and stacks of every width.

use iced_x86::code_asm::*;
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::exit::Width;
use lamina_arch::regs::Gpr;
use lamina_arch::segment::{AccessRights, SegmentName};

use super::machine::{CODE, DEVICE, Machine, Page, Seen, assembled};
use crate::insn::Done;

const SS0: GuestFault = GuestFault { vector: vector::SS, error: Some(0), cr2: None };
const STACK: u64 = 0x3000;

fn machine(bits: u32) -> Machine {
    let mut machine = Machine::new(bits);
    machine.set(Gpr::Rsp, STACK);
    machine
}

fn jumps(machine: &mut Machine, assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> u64 {
    let bytes = assembled(machine.bits(), machine.rip, assemble);
    assert_eq!(machine.run_bytes(&bytes), Ok(Done::Jumped), "{bytes:02x?}");
    core::mem::replace(&mut machine.rip, CODE)
}

#[test]
fn push_and_pop_of_each_width() {
    let mut m = machine(64);
    m.does(|a| a.push(qword_ptr(DEVICE)));
    assert_eq!((m.get(Gpr::Rsp), m.peek(STACK - 8, Width::B8)), (STACK - 8, m.peek(DEVICE, Width::B8)));
    m.does(|a| a.pop(qword_ptr(DEVICE + 0x20)));
    assert_eq!((m.get(Gpr::Rsp), m.peek(DEVICE + 0x20, Width::B8)), (STACK, m.peek(DEVICE, Width::B8)));
    m.does(|a| a.push(word_ptr(DEVICE)));
    assert_eq!(m.get(Gpr::Rsp), STACK - 2);
    m.does(|a| a.push(-2));
    assert_eq!((m.get(Gpr::Rsp), m.peek(STACK - 10, Width::B8)), (STACK - 10, u64::MAX - 1));
    m.does(|a| a.pop(rbx));
    assert_eq!(m.get(Gpr::Rbx), u64::MAX - 1);

    let mut m = machine(32);
    m.set(Gpr::Rsp, 0xffff_ffff_0000_0000 | STACK);
    m.does(|a| a.push(dword_ptr(0x1_0000)));
    assert_eq!((m.get(Gpr::Rsp), m.peek(STACK - 4, Width::B4)), (STACK - 4, m.peek(DEVICE, Width::B4)));
    // 32-bit code on a 16-bit stack.
    m.segments[SegmentName::Ss as usize].rights = AccessRights(0x93);
    m.set(Gpr::Rsp, 0x5555_0002);
    let low = m.peek(DEVICE, Width::B2);
    m.does(|a| a.push(dword_ptr(0x1_0000)));
    assert_eq!((m.get(Gpr::Rsp), m.peek(0xfffe, Width::B2)), (0x5555_fffe, low));
}

#[test]
fn the_stack_pointer_in_an_address_is_old_for_push_and_new_for_pop() {
    let mut m = machine(64);
    m.set(Gpr::Rsp, DEVICE + 0x100);
    m.does(|a| a.push(qword_ptr(rsp + 8)));
    assert_eq!(m.seen, [Seen::Read(0x108, 8), Seen::Write(0xf8, m.device[0x108..0x110].into())]);
    m.seen.clear();
    m.does(|a| a.pop(qword_ptr(rsp + 8)));
    assert_eq!(m.seen, [Seen::Read(0xf8, 8), Seen::Write(0x108, m.device[0xf8..0x100].into())]);
    assert_eq!(m.get(Gpr::Rsp), DEVICE + 0x100);
    m.does(|a| a.push(rsp));
    assert_eq!(m.peek(DEVICE + 0xf8, Width::B8), DEVICE + 0x100);
    m.does(|a| a.pop(rsp));
    assert_eq!(m.get(Gpr::Rsp), DEVICE + 0x100);
}

#[test]
fn near_calls_jumps_and_returns() {
    let mut m = machine(64);
    m.put(DEVICE, 0xffff_8000_1234_5678, Width::B8);
    assert_eq!(jumps(&mut m, |a| a.jmp(qword_ptr(DEVICE))), 0xffff_8000_1234_5678);
    assert_eq!(m.get(Gpr::Rsp), STACK);
    assert_eq!(jumps(&mut m, |a| a.call(qword_ptr(DEVICE))), 0xffff_8000_1234_5678);
    assert_eq!((m.get(Gpr::Rsp), m.peek(STACK - 8, Width::B8)), (STACK - 8, CODE + 7));
    assert_eq!(jumps(&mut m, CodeAssembler::ret), CODE + 7);
    assert_eq!(m.get(Gpr::Rsp), STACK);
    // With the stack in the device.
    m.set(Gpr::Rsp, DEVICE + 0x80);
    assert_eq!(jumps(&mut m, |a| a.call(0x1234)), 0x1234);
    assert_eq!(m.seen.last(), Some(&Seen::Write(0x78, (CODE + 5).to_le_bytes().into())));
    assert_eq!(jumps(&mut m, |a| a.ret_1(0x10)), CODE + 5);
    assert_eq!(m.get(Gpr::Rsp), DEVICE + 0x90);

    let mut m = machine(32);
    m.put(DEVICE, 0x1_2345, Width::B4);
    assert_eq!(jumps(&mut m, |a| a.call(dword_ptr(0x1_0000))), 0x1_2345);
    assert_eq!((m.get(Gpr::Rsp), m.peek(STACK - 4, Width::B4)), (STACK - 4, CODE + 6));
    let mut m = Machine::real();
    m.set(Gpr::Rsp, STACK);
    m.segments[SegmentName::Ds as usize].base = DEVICE;
    m.put(DEVICE, 0x1_2345, Width::B4);
    assert_eq!(jumps(&mut m, |a| a.call(word_ptr(0))), 0x2345);
    assert_eq!((m.get(Gpr::Rsp), m.peek(STACK - 2, Width::B2)), (STACK - 2, CODE + 4));
}

#[test]
fn nothing_is_pushed_for_a_call_that_faults() {
    let mut m = machine(64);
    m.put(0x500, 0x8000_0000_0000, Width::B8);
    m.faults(GuestFault::GP0, |a| a.call(qword_ptr(0x500)));
    m.faults(GuestFault::GP0, |a| a.jmp(qword_ptr(0x500)));
    m.put(0x500, 0x1234, Width::B8);
    m.pages.insert(2, Page::ReadOnly);
    m.faults(GuestFault::page_fault(0x2ff8, 3), |a| a.call(qword_ptr(0x500)));
    m.faults(GuestFault::page_fault(0x2ff8, 3), |a| a.push(qword_ptr(0x500)));
    m.set(Gpr::Rsp, 0x8000_0000_0000);
    m.faults(SS0, CodeAssembler::ret);
    m.faults(SS0, |a| a.pop(rax));

    let mut m = machine(32);
    m.segments[SegmentName::Cs as usize].limit = 0x1_0000;
    m.put(0x500, 0x1_0001, Width::B4);
    m.faults(GuestFault::GP0, |a| a.jmp(dword_ptr(0x500)));
    m.put(0x500, 0x1_0000, Width::B4);
    assert_eq!(jumps(&mut m, |a| a.jmp(dword_ptr(0x500))), 0x1_0000);
}

#[test]
fn a_pop_whose_target_faults_leaves_the_stack_pointer() {
    let mut m = machine(64);
    m.set(Gpr::Rbx, 0x5000);
    m.pages.insert(5, Page::Absent);
    m.faults(GuestFault::page_fault(0x5000, 2), |a| a.pop(qword_ptr(rbx)));
    // The stack, which is a device here, is not read either.
    m.set(Gpr::Rsp, DEVICE);
    m.faults(GuestFault::page_fault(0x5000, 2), |a| a.pop(qword_ptr(rbx)));
}
