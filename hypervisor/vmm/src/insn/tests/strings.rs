//! String instructions: directions, widths, prefixes, borders, faults in the middle, ports.

use iced_x86::code_asm::CodeAssembler;
use lamina_arch::cr::Rflags;
use lamina_arch::event::GuestFault;
use lamina_arch::exit::Width;
use lamina_arch::regs::Gpr;
use lamina_arch::segment::SegmentName;

use super::machine::{DEVICE, Machine, PORT, Page, Seen, assembled};
use crate::insn::string::ITERATIONS;
use crate::insn::{Done, Refused};

fn bytes(bits: u32, assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> std::vec::Vec<u8> {
    assembled(bits, super::machine::CODE, assemble)
}

fn setup(bits: u32, from: u64, to: u64, count: u64) -> Machine {
    let mut machine = Machine::new(bits);
    machine.set(Gpr::Rsi, from);
    machine.set(Gpr::Rdi, to);
    machine.set(Gpr::Rcx, count);
    machine
}

#[test]
fn movs_goes_both_ways() {
    let mut machine = setup(64, 0x100, DEVICE + 8, 3);
    machine.does(|a| a.rep().movsd());
    assert_eq!((machine.get(Gpr::Rsi), machine.get(Gpr::Rdi), machine.get(Gpr::Rcx)), (0x10c, DEVICE + 20, 0));
    for i in 0..3 {
        assert_eq!(machine.peek(DEVICE + 8 + 4 * i, Width::B4), machine.peek(0x100 + 4 * i, Width::B4));
    }
    let mut machine = setup(64, 0x108, DEVICE + 16, 2);
    machine.flags.insert(Rflags::DF);
    machine.does(|a| a.rep().movsq());
    assert_eq!((machine.get(Gpr::Rsi), machine.get(Gpr::Rdi)), (0xf8, DEVICE));
    assert_eq!(machine.peek(DEVICE + 16, Width::B8), machine.peek(0x108, Width::B8));
    assert_eq!(machine.peek(DEVICE + 8, Width::B8), machine.peek(0x100, Width::B8));
}

#[test]
fn without_a_prefix_the_counter_does_not_count() {
    let mut machine = setup(64, 0x100, DEVICE, 0);
    machine.does(CodeAssembler::movsb);
    assert_eq!((machine.get(Gpr::Rsi), machine.get(Gpr::Rdi), machine.get(Gpr::Rcx)), (0x101, DEVICE + 1, 0));
    let mut machine = setup(64, 0x100, DEVICE, 0);
    let before = machine.gprs;
    machine.does(|a| a.rep().movsb());
    assert_eq!(machine.gprs, before);
    assert_eq!(machine.seen, []);
}

#[test]
fn a_single_step_traps_behind_each_iteration() {
    let mut machine = setup(64, 0x100, DEVICE, 3);
    machine.flags.insert(Rflags::TF);
    let movs = bytes(64, |a| a.rep().movsb());
    for left in [2, 1] {
        assert_eq!((machine.run_bytes(&movs), machine.get(Gpr::Rcx)), (Ok(Done::Jumped), left));
    }
    assert_eq!((machine.run_bytes(&movs), machine.get(Gpr::Rcx)), (Ok(Done::Advance(2)), 0));
}

#[test]
fn each_prefix_repeats_stos_and_lods() {
    for prefix in [0xf2, 0xf3] {
        let mut machine = setup(64, 0, DEVICE, 5);
        machine.set(Gpr::Rax, 0x1234_5678);
        // STOSW.
        assert_eq!(machine.run_bytes(&[prefix, 0x66, 0xab]), Ok(Done::Advance(3)));
        assert_eq!((machine.get(Gpr::Rdi), machine.get(Gpr::Rcx)), (DEVICE + 10, 0));
        assert_eq!(machine.peek(DEVICE + 8, Width::B2), 0x5678);
        assert_eq!(machine.seen.len(), 5);
    }
    let mut machine = setup(64, DEVICE, 0, 2);
    machine.put(DEVICE + 4, 0x9abc_def0, Width::B4);
    machine.does(|a| a.rep().lodsd());
    assert_eq!((machine.get(Gpr::Rax), machine.get(Gpr::Rsi)), (0x9abc_def0, DEVICE + 8));
    machine.does(CodeAssembler::lodsb);
    assert_eq!(machine.get(Gpr::Rax), 0x9abc_de00 | machine.peek(DEVICE + 8, Width::B1));
}

#[test]
fn comparisons_stop_at_their_condition() {
    let mut machine = setup(64, 0x100, DEVICE, 8);
    for i in 0..8 {
        machine.put(0x100 + i, i, Width::B1);
        machine.put(DEVICE + i, if i == 5 { 0x80 } else { i }, Width::B1);
    }
    machine.does(|a| a.repe().cmpsb());
    assert_eq!((machine.get(Gpr::Rsi), machine.get(Gpr::Rdi), machine.get(Gpr::Rcx)), (0x106, DEVICE + 6, 2));
    // 5 - 0x80: a borrow, an overflow, a negative result.
    assert!(machine.flags.contains(Rflags::CF | Rflags::OF | Rflags::SF));
    assert!(!machine.flags.contains(Rflags::ZF));
    machine.set(Gpr::Rdi, DEVICE);
    machine.set(Gpr::Rcx, 100);
    machine.set(Gpr::Rax, 3);
    machine.does(|a| a.repne().scasb());
    assert_eq!((machine.get(Gpr::Rdi), machine.get(Gpr::Rcx)), (DEVICE + 4, 96));
    assert!(machine.flags.contains(Rflags::ZF));
    // The end of the count ends it as well.
    machine.set(Gpr::Rcx, 2);
    machine.does(|a| a.repne().scasb());
    assert_eq!((machine.get(Gpr::Rdi), machine.get(Gpr::Rcx)), (DEVICE + 6, 0));
}

#[test]
fn interrupts_come_in_between_iterations() {
    let count = 2 * u64::from(ITERATIONS) + 1;
    let mut machine = setup(64, 0, DEVICE, count);
    let code = bytes(64, |a| a.rep().stosb());
    assert_eq!(machine.run_bytes(&code), Ok(Done::Again));
    assert_eq!(machine.get(Gpr::Rcx), count - u64::from(ITERATIONS));
    assert_eq!(machine.run(), Ok(Done::Again));
    assert_eq!(machine.run(), Ok(Done::Advance(2)));
    assert_eq!((machine.get(Gpr::Rcx), machine.get(Gpr::Rdi)), (0, DEVICE + count));

    let mut machine = setup(64, 0, DEVICE, 10);
    machine.patience = 3;
    assert_eq!(machine.run_bytes(&code), Ok(Done::Again));
    assert_eq!((machine.get(Gpr::Rcx), machine.get(Gpr::Rdi)), (7, DEVICE + 3));
    // Exactly as many as are done at a time need no second entry.
    let mut machine = setup(64, 0, DEVICE, ITERATIONS.into());
    assert_eq!(machine.run_bytes(&code), Ok(Done::Advance(2)));
}

#[test]
fn a_fault_keeps_the_iterations_before_it() {
    let mut machine = setup(64, 0x1000, 0x2ff8, 4);
    machine.pages.insert(3, Page::ReadOnly);
    let code = bytes(64, |a| a.rep().movsd());
    assert_eq!(machine.run_bytes(&code), Err(Refused::Fault(GuestFault::page_fault(0x3000, 3))));
    assert_eq!((machine.get(Gpr::Rsi), machine.get(Gpr::Rdi), machine.get(Gpr::Rcx)), (0x1008, 0x3000, 2));
    machine.pages.clear();
    assert_eq!(machine.run(), Ok(Done::Advance(2)));
    assert_eq!(machine.memory[0x2ff8..0x3008], machine.memory[0x1000..0x1010]);
}

#[test]
fn a_device_is_not_read_for_an_iteration_that_faults() {
    let mut machine = setup(64, DEVICE, 0x3000, 1);
    machine.pages.insert(3, Page::Absent);
    machine.faults(GuestFault::page_fault(0x3000, 2), |a| a.rep().movsd());
    machine.set(Gpr::Rdx, PORT.into());
    machine.faults(GuestFault::page_fault(0x3000, 2), |a| a.rep().insw());
    machine.set(Gpr::Rsi, 0x2ffe);
    machine.faults(GuestFault::page_fault(0x3000, 0), CodeAssembler::outsd);
}

#[test]
fn address_size_decides_which_part_of_the_registers_counts() {
    // 64-bit code with 32-bit addresses: the upper halves are cleared, by what is written only.
    let mut machine = setup(64, 0xffff_ffff_0000_0100, 0xffff_ffff_0001_0000, 0xffff_ffff_0000_0001);
    // REP MOVSB with an address-size prefix.
    assert_eq!(machine.run_bytes(&[0x67, 0xf3, 0xa4]), Ok(Done::Advance(3)));
    assert_eq!((machine.get(Gpr::Rsi), machine.get(Gpr::Rdi), machine.get(Gpr::Rcx)), (0x101, DEVICE + 1, 0));
    let mut machine = setup(64, 0xffff_ffff_0000_0100, 0, 0xffff_ffff_0000_0000);
    let before = machine.gprs;
    assert_eq!(machine.run_bytes(&[0x67, 0xf3, 0xa4]), Ok(Done::Advance(3)));
    assert_eq!(machine.gprs, before);

    // 16-bit addresses wrap and keep the rest.
    let mut machine = setup(16, 0x5555_ffff, 0x6666_0010, 0x7777_0002);
    machine.segments[SegmentName::Es as usize].base = DEVICE;
    machine.does(|a| a.rep().movsb());
    assert_eq!((machine.get(Gpr::Rsi), machine.get(Gpr::Rdi)), (0x5555_0001, 0x6666_0012));
    assert_eq!(machine.get(Gpr::Rcx), 0x7777_0000);
    assert_eq!(machine.peek(DEVICE + 0x11, Width::B1), u64::from(machine.memory[0]));
}

#[test]
fn the_source_may_name_its_segment_but_the_target_is_es() {
    let mut machine = setup(32, 0x10, 0x20, 1);
    machine.segments[SegmentName::Fs as usize].base = DEVICE;
    machine.segments[SegmentName::Es as usize].base = 0x2000;
    // FS MOVSD.
    assert_eq!(machine.run_bytes(&[0x64, 0xa5]), Ok(Done::Advance(2)));
    assert_eq!(machine.peek(0x2020, Width::B4), machine.peek(DEVICE + 0x10, Width::B4));
    machine.segments[SegmentName::Es as usize].limit = 0x22;
    machine.set(Gpr::Rdi, 0x20);
    machine.faults(GuestFault::GP0, CodeAssembler::stosd);
    machine.does(CodeAssembler::stosw);
}

#[test]
fn ports_and_memory() {
    let mut machine = setup(64, 0, 0x2000, 3);
    machine.set(Gpr::Rdx, 0xffff_0000 | u64::from(PORT));
    machine.does(|a| a.rep().insw());
    assert_eq!(machine.memory[0x2000..0x2006], [1, 1, 2, 2, 3, 3]);
    assert_eq!(machine.seen, [Seen::In(PORT, 2), Seen::In(PORT, 2), Seen::In(PORT, 2)]);
    assert_eq!((machine.get(Gpr::Rdi), machine.get(Gpr::Rcx)), (0x2006, 0));

    let mut machine = setup(64, 0x2004, 0, 2);
    machine.set(Gpr::Rdx, PORT.into());
    machine.flags.insert(Rflags::DF);
    machine.memory[0x2000..0x2008].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    machine.does(|a| a.rep().outsd());
    assert_eq!(machine.seen, [Seen::Out(PORT, [5, 6, 7, 8].into()), Seen::Out(PORT, [1, 2, 3, 4].into())]);
    assert_eq!(machine.get(Gpr::Rsi), 0x1ffc);
}

#[test]
fn a_port_that_was_not_checked_is_not_touched() {
    let mut machine = setup(64, 0x2000, 0x2000, 3);
    machine.set(Gpr::Rdx, PORT.into());
    machine.ports_allowed = false;
    for code in [&[0x6c][..], &[0x6e], &[0xf3, 0x6d], &[0xf3, 0x66, 0x6f]] {
        let before = machine.clone();
        assert_eq!(machine.run_bytes(code), Err(Refused::Changed));
        assert_eq!((machine.gprs, &machine.seen), (before.gprs, &before.seen));
    }
}

#[test]
fn a_device_gives_ins_all_that_it_has_ready_within_a_page() {
    let code = |bits| bytes(bits, |a| a.rep().insw());
    let start = |at: u64, count, ready| {
        let mut machine = setup(64, 0, at, count);
        machine.set(Gpr::Rdx, PORT.into());
        machine.ready = ready;
        machine
    };
    // Less than was asked for, and then the rest singly.
    let mut machine = start(0x1000, 12, 20);
    assert_eq!(machine.run_bytes(&code(64)), Ok(Done::Again));
    assert_eq!((machine.get(Gpr::Rdi), machine.get(Gpr::Rcx)), (0x1014, 2));
    assert_eq!(machine.memory[0x1000..0x1014], core::array::from_fn::<u8, 20, _>(|n| u8::try_from(n).unwrap() + 1));
    assert_eq!(machine.run(), Ok(Done::Advance(3)));
    assert_eq!(machine.seen, [Seen::In(PORT, 20), Seen::In(PORT, 2), Seen::In(PORT, 2)]);
    // All of it, though more is there.
    let mut machine = start(0x1000, 12, 100);
    assert_eq!(machine.run_bytes(&code(64)), Ok(Done::Advance(3)));
    assert_eq!((machine.get(Gpr::Rdi), machine.get(Gpr::Rcx), machine.ready), (0x1018, 0, 76));
    // Up to the end of a page, and nothing that is torn by it.
    let mut machine = start(0x1ffb, 8, 100);
    assert_eq!(machine.run_bytes(&code(64)), Ok(Done::Again));
    assert_eq!((machine.get(Gpr::Rdi), machine.seen.as_slice()), (0x1fff, &[Seen::In(PORT, 4)][..]));
    // Backwards, and across the end of a segment, singly.
    let mut machine = start(0x1000, 2, 100);
    machine.flags |= Rflags::DF;
    assert_eq!(machine.run_bytes(&code(64)), Ok(Done::Advance(3)));
    assert_eq!(machine.seen, [Seen::In(PORT, 2), Seen::In(PORT, 2)]);
    let mut machine = Machine::real();
    machine.set(Gpr::Rdi, 0xfffc);
    machine.set(Gpr::Rcx, 3);
    machine.set(Gpr::Rdx, PORT.into());
    machine.ready = 100;
    assert_eq!(machine.run_bytes(&code(16)), Ok(Done::Advance(2)));
    assert_eq!((machine.get(Gpr::Rdi) & 0xffff, machine.ready), (2, 100));
    // Nothing is taken from the device where the page faults.
    let mut machine = start(0x3000, 8, 100);
    machine.pages.insert(3, Page::Absent);
    assert_eq!(machine.run_bytes(&code(64)), Err(Refused::Fault(GuestFault::page_fault(0x3000, 2))));
    assert_eq!((machine.seen.len(), machine.ready), (0, 100));
}
