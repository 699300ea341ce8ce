//! Moves, exchanges, bit operations and conditions: form by form.

use iced_x86::Mnemonic;
use iced_x86::code_asm::*;
use lamina_arch::cr::Rflags;
use lamina_arch::event::GuestFault;
use lamina_arch::exit::Width;
use lamina_arch::regs::Gpr;

use super::machine::{CODE, DEVICE, Machine, Seen};
use crate::insn::{Done, Refused};

const AT: u64 = DEVICE + 0x40;

type Assemble = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;

/// 64-bit code with RSI at the device's register 0x40, which holds `value`.
fn machine(value: u64) -> Machine {
    let mut machine = Machine::new(64);
    machine.set(Gpr::Rsi, AT);
    machine.put(AT, value, Width::B8);
    machine
}

#[test]
fn loads_of_each_width_merge_as_the_processor_does() {
    let old = 0x1122_3344_5566_7780;
    let value = 0x8182_8384_8586_8788;
    let mut m = machine(value);
    m.does(|a| a.mov(rax, ptr(rsi)));
    assert_eq!(m.get(Gpr::Rax), value);
    m.does(|a| a.mov(ecx, ptr(rsi)));
    assert_eq!(m.get(Gpr::Rcx), 0x8586_8788);
    m.does(|a| a.mov(dx, ptr(rsi)));
    assert_eq!(m.get(Gpr::Rdx), old & !0xffff | 0x8788);
    m.does(|a| a.mov(bl, ptr(rsi)));
    assert_eq!(m.get(Gpr::Rbx), (old | 3) & !0xff | 0x88);
    m.does(|a| a.mov(bh, ptr(rsi + 1)));
    assert_eq!(m.get(Gpr::Rbx), (old | 3) & !0xffff | 0x8788);
    m.does(|a| a.mov(dil, ptr(rsi + 7)));
    assert_eq!(m.get(Gpr::Rdi), (old | 7) & !0xff | 0x81);
    m.does(|a| a.mov(r15d, ptr(rsi + 4)));
    assert_eq!(m.get(Gpr::R15), 0x8182_8384);
    m.does(|a| a.mov(esp, ptr(rsi)));
    assert_eq!(m.get(Gpr::Rsp), 0x8586_8788);
    let widths = [8, 4, 2, 1, 1, 1, 4, 4];
    let seen: std::vec::Vec<usize> =
        m.seen.iter().map(|seen| if let Seen::Read(_, width) = seen { *width } else { 0 }).collect();
    assert_eq!(seen, widths);
}

#[test]
fn stores_of_each_width_and_of_constants() {
    let cases: [(Assemble, &[u8]); 9] = [
        (|a| a.mov(ptr(rsi), rbx), &[0x83, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]),
        (|a| a.mov(ptr(rsi), ebx), &[0x83, 0x77, 0x66, 0x55]),
        (|a| a.mov(ptr(rsi), bx), &[0x83, 0x77]),
        (|a| a.mov(ptr(rsi), bh), &[0x77]),
        (|a| a.mov(qword_ptr(rsi), -2), &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        (|a| a.mov(dword_ptr(rsi), -2), &[0xfe, 0xff, 0xff, 0xff]),
        (|a| a.mov(word_ptr(rsi), 0x1234), &[0x34, 0x12]),
        (|a| a.movnti(ptr(rsi), ebx), &[0x83, 0x77, 0x66, 0x55]),
        (|a| a.movnti(ptr(rsi), rbx), &[0x83, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]),
    ];
    for (assemble, written) in cases {
        let mut m = machine(0);
        let before = m.gprs;
        m.does(assemble);
        assert_eq!((m.seen, m.gprs), ([Seen::Write(0x40, written.into())].into(), before));
    }
}

#[test]
fn absolute_addresses_and_every_way_to_form_one() {
    // MOV EAX, moffs and back, with 64-, 32- and 16-bit addresses.
    let mut m = machine(0x1234_5678);
    let at = AT.to_le_bytes();
    let mut code = std::vec![0xa1];
    code.extend(at);
    assert_eq!(m.run_bytes(&code), Ok(Done::Advance(9)));
    assert_eq!(m.get(Gpr::Rax), 0x1234_5678);
    assert_eq!(m.run_bytes(&[0x67, 0xa2, at[0], at[1], at[2], 0]), Ok(Done::Advance(6)));
    assert_eq!(m.seen.last(), Some(&Seen::Write(0x40, [0x78].into())));
    let mut m = Machine::real();
    m.segments[3].base = DEVICE;
    assert_eq!(m.run_bytes(&[0xa1, 0x40, 0]), Ok(Done::Advance(3)));
    assert_eq!(m.get(Gpr::Rax) & 0xffff, m.peek(AT, Width::B2));

    // Base, scaled index and displacement; relative to the instruction pointer; truncated to 32 bits.
    let expect = |assemble: &dyn Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
        let mut m = machine(0xabcd);
        m.set(Gpr::Rbx, 8);
        m.set(Gpr::R9, 0xffff_ffff_0000_0000 | AT);
        m.set(Gpr::R8, u64::MAX);
        m.set(Gpr::Rax, 0);
        m.does(assemble);
        assert_eq!(m.get(Gpr::Rax), 0xabcd);
    };
    expect(&|a| a.mov(ax, ptr(rsi + rbx * 4 - 32)));
    expect(&|a| a.mov(ax, ptr(rsi + r8 * 8 + 8)));
    expect(&|a| a.mov(ax, ptr(rbx * 2 + 0x1_0030)));
    expect(&|a| a.mov(ax, ptr(r9d)));
    expect(&|a| a.mov(ax, ptr(r9d + ebx - 8)));
    let mut m = machine(0xabcd);
    let distance = u32::try_from(AT - CODE - 7).unwrap().to_le_bytes();
    let [a, b, c, d] = distance;
    assert_eq!(m.run_bytes(&[0x66, 0x8b, 0x05, a, b, c, d]), Ok(Done::Advance(7)));
    assert_eq!(m.get(Gpr::Rax) & 0xffff, 0xabcd);
    assert_eq!(m.run_bytes(&[0x67, 0x8b, 0x05, a, b, c, d]), Ok(Done::Advance(7)));
    assert_eq!(m.get(Gpr::Rax), 0xabcd);
    // A displacement without registers is sign-extended: this is the top of the address space.
    let mut m = Machine::new(64);
    let fault = GuestFault::page_fault(0xffff_ffff_fee0_00b0, 2);
    m.faults(fault, |a| a.mov(dword_ptr(0xffff_ffff_fee0_00b0u64), eax));
}

#[test]
fn extensions() {
    let value = 0x8182_8384_8586_8788;
    let mut m = machine(value);
    m.does(|a| a.movzx(eax, byte_ptr(rsi)));
    assert_eq!(m.get(Gpr::Rax), 0x88);
    m.does(|a| a.movzx(rbx, word_ptr(rsi)));
    assert_eq!(m.get(Gpr::Rbx), 0x8788);
    m.does(|a| a.movzx(cx, byte_ptr(rsi)));
    assert_eq!(m.get(Gpr::Rcx), 0x1122_3344_5566_0088);
    m.does(|a| a.movsx(eax, byte_ptr(rsi)));
    assert_eq!(m.get(Gpr::Rax), 0xffff_ff88);
    m.does(|a| a.movsx(rbx, word_ptr(rsi)));
    assert_eq!(m.get(Gpr::Rbx), 0xffff_ffff_ffff_8788);
    m.does(|a| a.movsx(dx, byte_ptr(rsi)));
    assert_eq!(m.get(Gpr::Rdx), 0x1122_3344_5566_ff88);
    m.does(|a| a.movsxd(r8, dword_ptr(rsi)));
    assert_eq!(m.get(Gpr::R8), 0xffff_ffff_8586_8788);
    m.does(|a| a.movbe(rax, ptr(rsi)));
    assert_eq!(m.get(Gpr::Rax), value.swap_bytes());
    m.does(|a| a.movbe(ebx, ptr(rsi)));
    assert_eq!(m.get(Gpr::Rbx), 0x8887_8685);
    m.does(|a| a.movbe(word_ptr(rsi), cx));
    assert_eq!(m.seen.last(), Some(&Seen::Write(0x40, [0x00, 0x88].into())));
    m.set(Gpr::Rbx, AT);
    m.set(Gpr::Rax, 0x1105);
    m.does(CodeAssembler::xlatb);
    assert_eq!(m.get(Gpr::Rax), 0x1183);
}

#[test]
fn exchanges() {
    let mut m = machine(0x1111_2222);
    m.does(|a| a.xchg(ptr(rsi), ebx));
    assert_eq!((m.get(Gpr::Rbx), m.peek(AT, Width::B4)), (0x1111_2222, 0x5566_7783));
    m.set(Gpr::Rbx, 0x4444_0001_0000_0010);
    m.put(AT, 0xffff_fff8, Width::B4);
    m.does(|a| a.lock().xadd(ptr(rsi), ebx));
    assert_eq!((m.get(Gpr::Rbx), m.peek(AT, Width::B4)), (0xffff_fff8, 8));
    assert!(m.flags.contains(Rflags::CF));
    // A register added to itself is doubled.
    m.set(Gpr::Rbx, 5);
    m.does(|a| a.xadd(rbx, rbx));
    assert_eq!(m.get(Gpr::Rbx), 10);
}

#[test]
fn compare_and_exchange() {
    let mut m = machine(0x55);
    m.set(Gpr::Rax, 0x9999_9999_0000_0055);
    m.does(|a| a.lock().cmpxchg(ptr(rsi), ebx));
    assert_eq!((m.peek(AT, Width::B4), m.get(Gpr::Rax)), (0x5566_7783, 0x9999_9999_0000_0055));
    assert!(m.flags.contains(Rflags::ZF));
    // Unequal: the target is written with what it held, and the accumulator learns it.
    m.seen.clear();
    m.does(|a| a.lock().cmpxchg(ptr(rsi), ecx));
    assert_eq!(m.get(Gpr::Rax), 0x5566_7783);
    assert_eq!(m.seen, [Seen::Read(0x40, 4), Seen::Write(0x40, [0x83, 0x77, 0x66, 0x55].into())]);
    assert!(!m.flags.contains(Rflags::ZF) && m.flags.contains(Rflags::CF));

    // A register keeps even its upper half then.
    m.does(|a| a.cmpxchg(ecx, edx));
    assert_eq!((m.get(Gpr::Rcx), m.get(Gpr::Rax)), (0x1122_3344_5566_7781, 0x5566_7781));

    let mut m = machine(0x1111_2222_3333_4444);
    m.set(Gpr::Rax, 0x3333_4444);
    m.set(Gpr::Rdx, 0x1111_2222);
    m.does(|a| a.lock().cmpxchg8b(ptr(rsi)));
    assert_eq!(m.peek(AT, Width::B8), 0x5566_7781_5566_7783);
    assert!(m.flags.contains(Rflags::ZF));
    m.does(|a| a.cmpxchg8b(ptr(rsi)));
    assert_eq!((m.get(Gpr::Rdx), m.get(Gpr::Rax)), (0x5566_7781, 0x5566_7783));
    assert!(!m.flags.contains(Rflags::ZF));

    let mut m = machine(1);
    m.put(AT + 8, 2, Width::B8);
    m.set(Gpr::Rax, 1);
    m.set(Gpr::Rdx, 2);
    m.does(|a| a.lock().cmpxchg16b(ptr(rsi)));
    assert_eq!(m.peek(AT, Width::B8), m.get(Gpr::Rbx));
    assert_eq!(m.peek(AT + 8, Width::B8), m.get(Gpr::Rcx));
    m.set(Gpr::Rsi, AT + 8);
    m.faults(GuestFault::GP0, |a| a.lock().cmpxchg16b(ptr(rsi)));
}

#[test]
fn bit_offsets_reach_in_both_directions() {
    let cases: [(i64, u64, u32); 8] = [
        (0, 0, 0),
        (31, 0, 31),
        (32, 4, 0),
        (-1, u64::MAX - 3, 31),
        (-32, u64::MAX - 3, 0),
        (-33, u64::MAX - 7, 31),
        (1000, 124, 8),
        (-1000, u64::MAX - 127, 24),
    ];
    for (offset, bytes, bit) in cases {
        let mut m = Machine::new(64);
        m.set(Gpr::Rsi, DEVICE + 0x200);
        // Only the register's low half counts.
        m.set(Gpr::Rbx, 0x7777_7777_0000_0000 | offset.cast_unsigned() & 0xffff_ffff);
        let at = (DEVICE + 0x200).wrapping_add(bytes);
        m.put(at, 0, Width::B4);
        m.does(|a| a.bts(dword_ptr(rsi), ebx));
        assert_eq!(m.peek(at, Width::B4), 1 << bit, "{offset}");
        assert!(!m.flags.contains(Rflags::CF));
        m.does(|a| a.bt(dword_ptr(rsi), ebx));
        assert!(m.flags.contains(Rflags::CF));
        m.does(|a| a.btc(dword_ptr(rsi), ebx));
        m.does(|a| a.btr(dword_ptr(rsi), ebx));
        assert!(!m.flags.contains(Rflags::CF));
        assert_eq!(m.seen.last(), Some(&Seen::Write(at - DEVICE, [0; 4].into())));
        assert_eq!(m.seen.len(), 7);
    }
    let mut m = Machine::new(64);
    m.set(Gpr::Rsi, DEVICE + 0x200);
    m.set(Gpr::Rbx, (-65i64).cast_unsigned());
    m.put(DEVICE + 0x1f0, u64::MAX, Width::B8);
    m.does(|a| a.btr(qword_ptr(rsi), rbx));
    assert_eq!(m.peek(DEVICE + 0x1f0, Width::B8), u64::MAX >> 1);
    m.set(Gpr::Rbx, 0xfff0);
    m.does(|a| a.btc(word_ptr(rsi), bx));
    assert!(matches!(m.seen.last(), Some(Seen::Write(0x1fe, data)) if data.len() == 2));
    // A constant stays within the operand.
    m.put(DEVICE + 0x200, 0, Width::B4);
    m.does(|a| a.bts(dword_ptr(rsi), 33));
    assert_eq!(m.peek(DEVICE + 0x200, Width::B4), 2);
}

#[test]
fn scans_and_counts() {
    let mut m = machine(0x0000_0800_0010_0000);
    m.does(|a| a.bsf(rax, ptr(rsi)));
    m.does(|a| a.bsr(rbx, ptr(rsi)));
    m.does(|a| a.bsr(ecx, ptr(rsi)));
    m.does(|a| a.popcnt(rdx, ptr(rsi)));
    assert_eq!([m.get(Gpr::Rax), m.get(Gpr::Rbx), m.get(Gpr::Rcx), m.get(Gpr::Rdx)], [20, 43, 20, 2]);
    assert!(!m.flags.contains(Rflags::ZF));
    m.put(AT, 0, Width::B8);
    m.does(|a| a.bsf(rax, ptr(rsi)));
    assert!(m.flags.contains(Rflags::ZF));
    assert_eq!(m.get(Gpr::Rax), 20);
}

#[test]
fn conditions() {
    // Flags, and whether each of the sixteen conditions holds, in the order of their encodings.
    let cases = [
        (Rflags::empty(), 0b1010_1010_1010_1010u16),
        (Rflags::CF, 0b1010_1010_0110_0110),
        (Rflags::ZF, 0b0110_1010_0101_1010),
        (Rflags::SF, 0b0101_1001_1010_1010),
        (Rflags::OF, 0b0101_1010_1010_1001),
        (Rflags::SF | Rflags::OF, 0b1010_1001_1010_1001),
        (Rflags::PF, 0b1010_0110_1010_1010),
        (Rflags::SF | Rflags::ZF | Rflags::CF, 0b0101_1001_0101_0110),
    ];
    for (flags, expected) in cases {
        for condition in 0..16u8 {
            let holds = expected >> condition & 1 != 0;
            let mut m = machine(0x1234_5678);
            m.flags.insert(flags);
            let before = m.flags;
            assert_eq!(m.run_bytes(&[0x0f, 0x90 | condition, 0x06]), Ok(Done::Advance(3)));
            assert_eq!(m.seen, [Seen::Write(0x40, [u8::from(holds)].into())], "{flags:?} {condition}");
            let mut m = machine(0x1234_5678);
            m.flags.insert(flags);
            assert_eq!(m.run_bytes(&[0x0f, 0x40 | condition, 0x1e]), Ok(Done::Advance(3)));
            let kept = 0x5566_7783;
            assert_eq!(m.get(Gpr::Rbx), if holds { 0x1234_5678 } else { kept }, "{flags:?} {condition}");
            assert_eq!((m.flags, m.seen.len()), (before, 1));
        }
    }
}

#[test]
fn cache_lines_are_no_business_of_devices() {
    let mut m = machine(0);
    m.does(|a| a.clflush(byte_ptr(rsi)));
    m.does(|a| a.clflushopt(byte_ptr(rsi)));
    m.does(|a| a.clwb(byte_ptr(rsi)));
    m.does(|a| a.nop_1(dword_ptr(rsi)));
    assert_eq!(m.seen, []);
    m.set(Gpr::Rsi, 0x10_0000);
    m.faults(GuestFault::page_fault(0x10_0000, 0), |a| a.clflush(byte_ptr(rsi)));
}

#[test]
fn what_is_not_emulated_is_named() {
    let cases: [(&[u8], Mnemonic); 8] = [
        (&[0x0f, 0xae, 0x06], Mnemonic::Fxsave),
        (&[0x0f, 0x58, 0x06], Mnemonic::Addps),
        (&[0x62, 0xf1, 0x7c, 0x48, 0x58, 0x06], Mnemonic::Vaddps),
        (&[0xd8, 0x06], Mnemonic::Fadd),
        (&[0x0f, 0x01, 0x3e], Mnemonic::Invlpg),
        (&[0xdd, 0x36], Mnemonic::Fnsave),
        (&[0x74, 0x00], Mnemonic::Je),
        (&[0x0f, 0x22, 0xd8], Mnemonic::Mov),
    ];
    for (code, mnemonic) in cases {
        let mut m = machine(0);
        assert_eq!(m.run_bytes(code), Err(Refused::Unsupported(mnemonic)));
        assert_eq!(m.seen, []);
    }
    // No instruction; an unknown one that is locked.
    assert_eq!(machine(0).run_bytes(&[0x0f, 0x0f, 0x06, 0xff]), Err(Refused::Undecodable));
    assert_eq!(machine(0).run_bytes(&[0xf0, 0x0f, 0x0f, 0x06, 0xff]), Err(Refused::Undecodable));
    // LOCK belongs to no MOV.
    for code in [&[0xf0, 0x89, 0x06], &[0xf0, 0x8b, 0x06]] {
        assert_eq!(machine(0).run_bytes(code), Err(GuestFault::UD.into()));
    }
}
