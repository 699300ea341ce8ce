//! INS and OUTS: registers, memory through the guest's paging, and faults in the middle.

use lamina_arch::addr::Gla;
use lamina_arch::cr::{Cr0, Rflags};
use lamina_arch::event::{Event, vector};
use lamina_arch::exit::{Direction, Exit, IoExit, StringIo, Width};
use lamina_arch::regs::{Gpr, SysReg};
use lamina_arch::segment::{AccessRights, Segment, SegmentName};

use super::*;
use crate::layout::SHUTDOWN_PORT;
use crate::vcpu::Vcpu;

/// Bytes of every instruction here.
const LENGTH: u64 = 4;

/// INS or OUTS with a REP prefix (where `rep`) and an address of `address` bytes. The segment's base is `base`, and the
/// index register holds what it holds.
fn string(direction: Direction, width: Width, rep: bool, address: Width, base: u64) -> impl Fn(&mut FakeVcpu) -> Step {
    string_to(DATA_PORT, direction, width, rep, address, base)
}

/// The same, with that port.
fn string_to(
    port: u16,
    direction: Direction,
    width: Width,
    rep: bool,
    address: Width,
    base: u64,
) -> impl Fn(&mut FakeVcpu) -> Step {
    move |cpu| {
        let index = if direction == Direction::In { Gpr::Rdi } else { Gpr::Rsi };
        let linear = Gla(base + (cpu.gprs().get(index) & address.mask()));
        let string = Some(StringIo { rep, address_width: address, linear: Some(linear) });
        cpu.gprs().set(Gpr::Rdx, port.into());
        let long = cpu.segment(SegmentName::Cs).rights.is_long();
        for name in [SegmentName::Ds, SegmentName::Es] {
            let rights = AccessRights::DATA32;
            cpu.set_segment(name, Segment { selector: 0x10, base, limit: u32::MAX, rights });
        }
        let mut code = vec![];
        if address != if long { Width::B8 } else { Width::B4 } {
            code.push(0x67);
        }
        if rep {
            code.push(0xf3);
        }
        if width == Width::B2 {
            code.push(0x66);
        }
        let opcode = if direction == Direction::In { 0x6c } else { 0x6e };
        code.push(opcode | u8::from(width != Width::B1));
        // A DS prefix says what holds anyway.
        while code.len() as u64 != LENGTH {
            code.insert(0, 0x3e);
        }
        cpu.write_memory(ENTRY, &code);
        Step::exit(Exit::Io(IoExit { port, width, direction, string }))
    }
}

/// The next step, made when it is asked for.
type Asked = Box<dyn FnOnce(&mut FakeVcpu) -> Step>;

/// A guest after string instructions.
#[derive(Clone, Debug, PartialEq)]
struct After {
    rcx: u64,
    rsi: u64,
    rdi: u64,
    rip: u64,
    cr2: u64,
    events: Vec<Event>,
    memory: Vec<u8>,
    /// What the device was given.
    written: Vec<Vec<u8>>,
}

/// Runs `before` and then one exit for each element of `steps`, and sees `look` (address and length) of memory.
fn run(before: impl FnOnce(&mut FakeVcpu) + 'static, mut steps: Vec<Asked>, look: (u64, usize)) -> After {
    let notes = Notes::new();
    let seen = notes.clone();
    let mut before = Some(before);
    steps.reverse();
    let program: Program = Box::new(move |cpu| {
        if let Some(before) = before.take() {
            return Step::act(before);
        }
        if let Some(step) = steps.pop() {
            return step(cpu);
        }
        let (rcx, rsi, rdi) = (cpu.gprs().get(Gpr::Rcx), cpu.gprs().get(Gpr::Rsi), cpu.gprs().get(Gpr::Rdi));
        seen.push(After {
            rcx,
            rsi,
            rdi,
            rip: cpu.read(SysReg::Rip).wrapping_sub(ENTRY),
            cr2: cpu.read(SysReg::Cr2),
            events: cpu.delivered.clone(),
            memory: cpu.read_memory(look.0, look.1),
            written: vec![],
        });
        Step::spin()
    });
    let (mut machine, _) = Bench::new().vm("a", program).boot::<FakeChipset>();
    assert_eq!(machine.step(), None);
    let mut after = notes.taken()[0].clone();
    after.written = alive(&machine, 0).expect("it lives").chipset.written.clone();
    after
}

/// The same, with one exit.
fn once(before: impl FnOnce(&mut FakeVcpu) + 'static, step: impl Fn(&mut FakeVcpu) -> Step + 'static) -> After {
    run(before, vec![Box::new(step)], (0x4_8000, 16))
}

fn registers(rcx: u64, rsi: u64, rdi: u64) -> impl Fn(&mut FakeVcpu) {
    move |cpu| {
        cpu.gprs().set(Gpr::Rcx, rcx);
        cpu.gprs().set(Gpr::Rsi, rsi);
        cpu.gprs().set(Gpr::Rdi, rdi);
    }
}

fn put(at: u64, bytes: &'static [u8], then: impl Fn(&mut FakeVcpu)) -> impl FnOnce(&mut FakeVcpu) {
    move |cpu| {
        cpu.write_memory(at, bytes);
        then(cpu);
    }
}

fn backwards(cpu: &mut FakeVcpu) {
    cpu.write(SysReg::Rflags, (Rflags::FIXED | Rflags::DF).bits());
}

/// Protected mode without paging.
fn unpaged(cpu: &mut FakeVcpu) {
    cpu.write(SysReg::Efer, 0);
    cpu.write(SysReg::Cr0, (Cr0::PE | Cr0::ET).bits());
    let code = Segment { selector: 8, base: 0, limit: u32::MAX, rights: AccessRights::CODE32 };
    cpu.set_segment(SegmentName::Cs, code);
}

const RCX: u64 = 0xcccc_cccc_cccc_cccc;

#[test]
fn outs_gives_one_element_and_leaves_rcx_alone() {
    for (width, bytes) in [(Width::B1, 1), (Width::B2, 2), (Width::B4, 4)] {
        let outs = string(Direction::Out, width, false, Width::B8, 0);
        let after = once(put(0x4_8000, b"abcdefgh", registers(RCX, 0x4_8000, 0x77)), outs);
        assert_eq!(after.written, [b"abcdefgh"[..bytes].to_vec()]);
        assert_eq!((after.rcx, after.rsi, after.rdi, after.rip), (RCX, 0x4_8000 + bytes as u64, 0x77, LENGTH));
    }
}

#[test]
fn rep_ins_fills_memory_and_counts_rcx_down() {
    let ins = string(Direction::In, Width::B2, true, Width::B8, 0);
    let after = once(registers(3, 0x66, 0x4_8000), ins);
    assert_eq!(after.memory[..8], [1, 2, 3, 4, 5, 6, 0, 0]);
    assert_eq!((after.rcx, after.rsi, after.rdi, after.rip), (0, 0x66, 0x4_8006, LENGTH));
}

#[test]
fn rep_with_a_count_of_0_does_nothing() {
    let after = once(registers(0, 0x4_8000, 0x4_8000), string(Direction::In, Width::B4, true, Width::B8, 0));
    assert_eq!((after.rcx, after.rdi, after.rip, after.memory), (0, 0x4_8000, LENGTH, vec![0; 16]));
    // Only the low 16 bits count with 16-bit addresses.
    let outs = string(Direction::Out, Width::B1, true, Width::B2, 0);
    let set = registers(0x5_0000, 0x4_8000, 0);
    let prepare = move |cpu: &mut FakeVcpu| {
        unpaged(cpu);
        set(cpu);
    };
    let after = once(prepare, outs);
    assert_eq!((after.rcx, after.written.len(), after.rip), (0x5_0000, 0, LENGTH));
}

#[test]
fn the_direction_flag_goes_downwards() {
    let ins = string(Direction::In, Width::B4, true, Width::B8, 0);
    let set = registers(3, 0, 0x4_8008);
    let after = once(
        move |cpu| {
            set(cpu);
            backwards(cpu);
        },
        ins,
    );
    assert_eq!(after.memory, [9, 10, 11, 12, 5, 6, 7, 8, 1, 2, 3, 4, 0, 0, 0, 0]);
    assert_eq!((after.rcx, after.rdi), (0, 0x4_7ffc));
}

#[test]
fn an_index_of_16_bits_wraps_within_its_segment_and_keeps_the_upper_bits() {
    let high = 0x1234_5678_9abc_0000;
    let prepare = move |cpu: &mut FakeVcpu| {
        unpaged(cpu);
        cpu.write_memory(0x1_fffe, b"ab");
        cpu.write_memory(0x1_0000, b"cdef");
        cpu.write_memory(0x2_0000, b"XXXX");
        registers(high | 3, high | 0xfffe, 0)(cpu);
    };
    let after = once(prepare, string(Direction::Out, Width::B2, true, Width::B2, 0x1_0000));
    assert_eq!(after.written, [b"ab".to_vec(), b"cd".to_vec(), b"ef".to_vec()]);
    assert_eq!((after.rcx, after.rsi), (high, high | 4));
    // And downwards through 0.
    let prepare = move |cpu: &mut FakeVcpu| {
        unpaged(cpu);
        backwards(cpu);
        cpu.write_memory(0x1_0000, b"a");
        cpu.write_memory(0x1_ffff, b"b");
        registers(high | 2, high, 0)(cpu);
    };
    let after = once(prepare, string(Direction::Out, Width::B1, true, Width::B2, 0x1_0000));
    assert_eq!(after.written, [b"a".to_vec(), b"b".to_vec()]);
    assert_eq!((after.rcx, after.rsi), (high, high | 0xfffe));
}

#[test]
fn an_index_of_32_bits_clears_the_upper_half() {
    let high = 0xffff_ffff_0000_0000;
    let outs = string(Direction::Out, Width::B1, true, Width::B4, 0);
    let after = once(put(0x4_8000, b"xyz", registers(high | 2, high | 0x4_8000, 0)), outs);
    assert_eq!(after.written, [b"x".to_vec(), b"y".to_vec()]);
    assert_eq!((after.rcx, after.rsi), (0, 0x4_8002));
    // Backwards through 0, where the linear address wraps too.
    let prepare = |cpu: &mut FakeVcpu| {
        unpaged(cpu);
        backwards(cpu);
        cpu.write_memory(0x4_9000, b"p");
        cpu.write_memory(0x4_8fff, b"q");
        registers(2, 0, 0)(cpu);
    };
    let after = once(prepare, string(Direction::Out, Width::B1, true, Width::B4, 0x4_9000));
    assert_eq!((after.written, after.rsi), (vec![b"p".to_vec(), b"q".to_vec()], 0xffff_fffe));
}

#[test]
fn a_long_run_is_done_in_pieces_so_that_interrupts_come_in_between() {
    let outs = || Box::new(string(Direction::Out, Width::B1, true, Width::B8, 0)) as Asked;
    let set = || registers(100, 0x4_8000, 0);
    let part = run(set(), vec![outs()], (0, 0));
    assert_eq!((part.rcx, part.rsi, part.rip, part.written.len()), (36, 0x4_8040, 0, 64));
    let whole = run(set(), vec![outs(), outs()], (0, 0));
    assert_eq!((whole.rcx, whole.rsi, whole.rip, whole.written.len()), (0, 0x4_8064, LENGTH, 100));
    // The interrupt is raised by the run itself: the elements are vectors.
    let raise = |cpu: &mut FakeVcpu| {
        cpu.set_interrupts(true);
        cpu.write_memory(0x4_8000, &[0x41; 100]);
        registers(100, 0x4_8000, 0)(cpu);
    };
    let to_trigger = string_to(INTERRUPT_PORT, Direction::Out, Width::B1, true, Width::B8, 0);
    let after = run(raise, vec![Box::new(to_trigger), Box::new(|_| Step::compute(1))], (0, 0));
    assert_eq!((after.events, after.rcx, after.rip), (vec![Event::external(0x41)], 36, 0));
}

/// Page tables: linear page 0x48 is at 0x30000 (for users, where `user`), page 0x49 at 0x50000 where `second`, else not there.
fn paging(cpu: &mut FakeVcpu, second: bool, user: bool) {
    let rights = 3 | u64::from(user) << 2;
    for (table, next) in [(0x2_0000, 0x2_1000), (0x2_1000, 0x2_2000), (0x2_2000, 0x2_3000u64)] {
        cpu.write_memory(table, &(next | 7).to_le_bytes());
    }
    cpu.write_memory(0x2_3800, &(ENTRY | 7).to_le_bytes());
    cpu.write_memory(0x2_3240, &(0x3_0000u64 | rights).to_le_bytes());
    cpu.write_memory(0x2_3248, &(0x5_0006u64 | u64::from(second)).to_le_bytes());
    cpu.write(SysReg::Cr3, 0x2_0000);
}

#[test]
fn an_element_may_cross_into_a_page_that_lies_elsewhere() {
    let prepare = |cpu: &mut FakeVcpu| {
        paging(cpu, true, false);
        cpu.write_memory(0x3_0ffd, b"abc");
        cpu.write_memory(0x5_0000, b"defgh");
        registers(2, 0x4_8ffd, 0)(cpu);
    };
    let after = once(prepare, string(Direction::Out, Width::B4, true, Width::B8, 0));
    assert_eq!(after.written, [b"abcd".to_vec(), b"efgh".to_vec()]);
    let prepare = |cpu: &mut FakeVcpu| {
        paging(cpu, true, false);
        registers(1, 0, 0x4_8fff)(cpu);
    };
    let ins = || Box::new(string(Direction::In, Width::B4, true, Width::B8, 0)) as Asked;
    assert_eq!(run(prepare, vec![ins()], (0x3_0fff, 1)).memory, [1]);
    assert_eq!(run(prepare, vec![ins()], (0x5_0000, 4)).memory, [2, 3, 4, 0]);
}

#[test]
fn a_page_fault_in_the_middle_leaves_registers_to_go_on_from() {
    let prepare = |cpu: &mut FakeVcpu| {
        paging(cpu, false, false);
        registers(5, 0, 0x4_8ffd)(cpu);
    };
    let ins = || Box::new(string(Direction::In, Width::B1, true, Width::B8, 0)) as Asked;
    let after = run(prepare, vec![ins()], (0x3_0ffd, 3));
    assert_eq!((after.rcx, after.rdi, after.rip, after.cr2), (2, 0x4_9000, 0, 0x4_9000));
    assert_eq!(after.events, [Event::exception(vector::PF, Some(2))], "a write to what is not present");
    assert_eq!(after.memory, [1, 2, 3]);
    // The handler brings the page, and the instruction goes on; the device has lost nothing.
    let repaired = Box::new(|cpu: &mut FakeVcpu| {
        paging(cpu, true, false);
        string(Direction::In, Width::B1, true, Width::B8, 0)(cpu)
    });
    let after = run(prepare, vec![ins(), repaired], (0x5_0000, 3));
    assert_eq!((after.rcx, after.rdi, after.rip, after.memory), (0, 0x4_9002, LENGTH, vec![4, 5, 0]));
}

#[test]
fn an_element_that_faults_on_its_second_page_does_nothing() {
    let prepare = |cpu: &mut FakeVcpu| {
        paging(cpu, false, false);
        registers(1, 0, 0x4_8ffe)(cpu);
    };
    let after = run(prepare, vec![Box::new(string(Direction::In, Width::B4, true, Width::B8, 0))], (0x3_0ffe, 2));
    assert_eq!((after.rcx, after.rdi, after.cr2, after.memory), (1, 0x4_8ffe, 0x4_9000, vec![0, 0]));
}

#[test]
fn a_users_access_is_checked_as_a_users() {
    let user = |page_for_users: bool| {
        move |cpu: &mut FakeVcpu| {
            paging(cpu, false, page_for_users);
            let rights = AccessRights(AccessRights::DATA32.0 | 3 << 5);
            cpu.set_segment(SegmentName::Ss, Segment { rights, ..Segment::default() });
            registers(1, 0x4_8000, 0x4_8000)(cpu);
        }
    };
    let after = once(user(false), string(Direction::Out, Width::B1, true, Width::B8, 0));
    assert_eq!((after.events, after.cr2), (vec![Event::exception(vector::PF, Some(5))], 0x4_8000));
    let after = once(user(false), string(Direction::In, Width::B1, true, Width::B8, 0));
    assert_eq!(after.events, [Event::exception(vector::PF, Some(7))]);
    let after = once(user(true), string(Direction::Out, Width::B1, true, Width::B8, 0));
    assert_eq!((after.events, after.rip), (vec![], LENGTH));
}

#[test]
fn a_fault_behind_4_gib_in_32_bit_mode_names_a_linear_address_of_32_bits() {
    // Flat but for its base: EDI 0 less one element, in a segment at 0x1000, is 0xffff_fffc + 0x1000.
    let prepare = |cpu: &mut FakeVcpu| {
        unpaged(cpu);
        backwards(cpu);
        // 32-bit paging: nothing is mapped but the page at 0x1000, and the code.
        cpu.write(SysReg::Cr4, 0);
        cpu.write_memory(0x2_0000, &0x2_1003u32.to_le_bytes());
        cpu.write_memory(0x2_1004, &0x4_8003u32.to_le_bytes());
        cpu.write_memory(0x2_1400, &0x10_0003u32.to_le_bytes());
        cpu.write(SysReg::Cr3, 0x2_0000);
        cpu.write(SysReg::Cr0, (Cr0::PE | Cr0::ET | Cr0::PG).bits());
        registers(2, 0, 0)(cpu);
    };
    let after = once(prepare, string(Direction::In, Width::B4, true, Width::B4, 0x1000));
    assert_eq!((after.rcx, after.rdi, after.cr2), (1, 0xffff_fffc, 0xffc));
    assert_eq!(after.memory[..4], [1, 2, 3, 4]);
}

#[test]
fn a_device_may_end_the_vm_in_the_middle() {
    let outs = string_to(SHUTDOWN_PORT, Direction::Out, Width::B1, true, Width::B8, 0);
    let mut outs = Some(outs);
    let program: Program = Box::new(move |cpu| {
        registers(5, 0x4_8000, 0)(cpu);
        outs.take().map_or_else(Step::spin, |outs| outs(cpu))
    });
    let (mut machine, world) = Bench::new().vm("a", program).boot::<FakeChipset>();
    finish(&mut machine);
    assert_eq!(world.lines()[0], "[lamina] a stopped: powered off (status 0)");
}

#[test]
fn in_of_each_width_keeps_or_clears_the_rest_of_rax() {
    let notes = Notes::new();
    let fill = |cpu: &mut FakeVcpu| cpu.gprs().set(Gpr::Rax, u64::MAX);
    run_one(
        [Width::B1, Width::B2, Width::B4]
            .into_iter()
            .flat_map(|width| [inp(DATA_PORT, width).with(fill), notes.note(|cpu| cpu.gprs().get(Gpr::Rax))]),
    );
    assert_eq!(notes.taken(), [0xffff_ffff_ffff_ff01, 0xffff_ffff_ffff_0302, 0x0706_0504]);
    // A port without a device.
    let notes = Notes::new();
    run_one([inp(0x5555, Width::B4), notes.note(|cpu| cpu.gprs().get(Gpr::Rax))]);
    assert_eq!(notes.taken(), [0xffff_ffff]);
}
