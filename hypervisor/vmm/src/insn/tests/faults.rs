//! Page faults with no partial effect, accesses across pages, and the fetch.

use iced_x86::code_asm::*;
use lamina_arch::event::GuestFault;
use lamina_arch::exit::Width;
use lamina_arch::regs::Gpr;
use lamina_arch::segment::{Segment, SegmentName};

use super::machine::{DEVICE, Machine, Page, Seen};
use crate::insn::{Done, Refused, fetch};

#[test]
fn an_access_across_pages_goes_to_both() {
    let mut m = Machine::new(64);
    // The page behind the device is page 3.
    m.pages.insert(0x11, Page::At(0x3000));
    m.set(Gpr::Rbx, 0x8877_6655_4433_2211);
    m.does(|a| a.mov(qword_ptr(DEVICE + 0xffd), rbx));
    assert_eq!(m.seen, [Seen::Write(0xffd, [0x11, 0x22, 0x33].into())]);
    assert_eq!(m.memory[0x3000..0x3005], [0x44, 0x55, 0x66, 0x77, 0x88]);
    m.does(|a| a.mov(rax, qword_ptr(DEVICE + 0xffd)));
    assert_eq!(m.get(Gpr::Rax), 0x8877_6655_4433_2211);
    m.does(|a| a.lock().add(dword_ptr(DEVICE + 0xffe), 1));
    assert_eq!(m.peek(0x3000, Width::B1), 0x44);
    assert_eq!(m.device[0xffe..], [0x23, 0x33]);
}

#[test]
fn a_fault_in_the_second_page_comes_before_any_effect() {
    let mut m = Machine::new(64);
    let second = DEVICE + 0x1000;
    m.pages.insert(second >> 12, Page::Absent);
    let at = second - 2;
    m.faults(GuestFault::page_fault(second, 2), |a| a.mov(dword_ptr(at), eax));
    m.faults(GuestFault::page_fault(second, 0), |a| a.mov(eax, dword_ptr(at)));
    m.faults(GuestFault::page_fault(second, 2), |a| a.xchg(dword_ptr(at), eax));
    m.faults(GuestFault::page_fault(second, 2), |a| a.lock().cmpxchg8b(qword_ptr(at)));
    m.pages.insert(second >> 12, Page::ReadOnly);
    m.faults(GuestFault::page_fault(second, 3), |a| a.lock().inc(dword_ptr(at)));
    m.user();
    m.faults(GuestFault::page_fault(second, 7), |a| a.sets(byte_ptr(second)));
}

#[test]
fn what_only_reads_needs_no_right_to_write() {
    let mut m = Machine::new(64);
    m.pages.insert(5, Page::ReadOnly);
    m.set(Gpr::Rsp, 0x3000);
    m.does(|a| a.cmp(dword_ptr(0x5000), eax));
    m.does(|a| a.test(dword_ptr(0x5000), eax));
    m.does(|a| a.bt(dword_ptr(0x5000), 3));
    m.does(|a| a.push(qword_ptr(0x5000)));
    m.does(|a| a.imul_2(eax, dword_ptr(0x5000)));
    let write = GuestFault::page_fault(0x5000, 3);
    // What reads and writes needs it from the start, whatever is computed.
    m.faults(write, |a| a.or(dword_ptr(0x5000), 0));
    m.faults(write, |a| a.cmpxchg(dword_ptr(0x5000), ebx));
    m.faults(write, |a| a.shl(dword_ptr(0x5000), 0));
    m.faults(write, |a| a.not(dword_ptr(0x5000)));
    m.faults(write, |a| a.xadd(dword_ptr(0x5000), ebx));
    m.faults(write, |a| a.pop(qword_ptr(0x5000)));
}

#[test]
fn the_next_page_is_fetched_only_if_it_is_needed() {
    let mut m = Machine::new(64);
    m.pages.insert(5, Page::Absent);
    // MOV [RSI], EAX ends with the page.
    m.rip = 0x4ffe;
    m.set(Gpr::Rsi, DEVICE);
    assert_eq!(m.run_bytes(&[0x89, 0x06]), Ok(Done::Advance(2)));
    // With a displacement it does not.
    m.memory[0x4ffe..0x5001].copy_from_slice(&[0x89, 0x46, 0x08]);
    let before = m.clone();
    assert_eq!(m.run(), Err(Refused::Fault(GuestFault::page_fault(0x5000, 0))));
    assert_eq!(m, before);
    m.pages.clear();
    m.seen.clear();
    assert_eq!(m.run(), Ok(Done::Advance(3)));
    assert!(matches!(m.seen.as_slice(), [Seen::Write(8, _)]));
}

#[test]
fn instructions_have_at_most_15_bytes() {
    let mut m = Machine::new(64);
    m.set(Gpr::Rsi, DEVICE);
    let mut code = [0x66; 16];
    code[13..15].copy_from_slice(&[0x89, 0x06]);
    assert_eq!(m.run_bytes(&code), Ok(Done::Advance(15)));
    code[13] = 0x66;
    code[14..16].copy_from_slice(&[0x89, 0x06]);
    assert_eq!(m.run_bytes(&code), Err(Refused::Fault(GuestFault::GP0)));
    assert_eq!(m.run_bytes(&[0x66; 15]), Err(Refused::Fault(GuestFault::GP0)));
    // Bytes that are no instruction, with as many behind them.
    code[..2].copy_from_slice(&[0x0f, 0xff]);
    assert!(!matches!(m.run_bytes(&code[..15]), Err(Refused::Fault(_))));
}

#[test]
fn code_ends_with_its_segment() {
    let mut m = Machine::new(32);
    m.segments[SegmentName::Cs as usize].limit = 0x4001;
    m.set(Gpr::Rsi, DEVICE);
    assert_eq!(m.run_bytes(&[0x89, 0x06]), Ok(Done::Advance(2)));
    assert_eq!(m.run_bytes(&[0x89, 0x46, 0x08]), Err(Refused::Fault(GuestFault::GP0)));
    m.segments[SegmentName::Cs as usize].limit = 0x3fff;
    assert_eq!(m.run(), Err(Refused::Fault(GuestFault::GP0)));
}

#[test]
fn code_is_decoded_in_its_width_and_at_its_base() {
    // 89 06 16-bit: MOV [disp16], AX; 32- and 64-bit: MOV [rSI], EAX.
    for (bits, length) in [(16, 4), (32, 2), (64, 2)] {
        let mut m = Machine::new(bits);
        m.set(Gpr::Rsi, 0x34);
        assert_eq!(m.run_bytes(&[0x89, 0x06, 0x34, 0x00]), Ok(Done::Advance(length)));
        let width = if bits == 16 { Width::B2 } else { Width::B4 };
        assert_eq!(m.peek(0x34, width), 0x1122_3344_5566_7780 & width.mask());
    }
    let mut m = Machine::real();
    m.segments[SegmentName::Cs as usize] =
        Segment { selector: 0x200, base: 0x2000, ..m.segments[SegmentName::Cs as usize] };
    m.rip = 0x100;
    m.memory[0x2100..0x2103].copy_from_slice(&[0xa0, 0x34, 0x12]);
    let fetched = fetch(&mut m);
    assert_eq!((fetched.bytes(), fetched.rip), (&[0xa0, 0x34, 0x12][..], 0x100));
    // At the end of 16 bits there is nothing more.
    m.rip = 0xffff;
    m.segments[SegmentName::Cs as usize].base = 0;
    m.memory[0xffff] = 0xa0;
    assert_eq!(m.run(), Err(Refused::Fault(GuestFault::GP0)));
}
