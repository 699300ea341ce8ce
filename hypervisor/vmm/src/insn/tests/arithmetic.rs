//! Every form of arithmetic with an operand in a device, at every width and in every mode, against the model.

use std::collections::HashMap;
use std::format;
use std::string::String;
use std::sync::OnceLock;
use std::vec;
use std::vec::Vec;

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};
use lamina_arch::cr::Rflags;
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::exit::Width;
use lamina_arch::regs::Gpr;

use super::machine::{CODE, DEVICE, Machine, Seen};
use super::model::{self, Flags, Shift};
use crate::insn::alu::ARITHMETIC;
use crate::insn::{Done, Refused};

const WIDTHS: [Width; 4] = [Width::B1, Width::B2, Width::B4, Width::B8];
const AT: u64 = 0x40;

/// The encoding with this name.
fn code(name: &str) -> Code {
    static NAMES: OnceLock<HashMap<String, Code>> = OnceLock::new();
    let names = NAMES.get_or_init(|| Code::values().map(|code| (format!("{code:?}"), code)).collect());
    names.get(name).copied().unwrap_or_else(|| panic!("no encoding {name}"))
}

fn encode(bits: u32, instruction: &Instruction) -> Vec<u8> {
    let mut encoder = Encoder::new(bits);
    encoder.encode(instruction, CODE).unwrap();
    encoder.take_buffer()
}

/// RBX, or the part of it that has `width`.
fn source(width: Width) -> Register {
    match width {
        Width::B1 => Register::BL,
        Width::B2 => Register::BX,
        Width::B4 => Register::EBX,
        Width::B8 => Register::RBX,
    }
}

/// The device, through SI and a displacement.
fn operand(bits: u32, machine: &mut Machine) -> MemoryOperand {
    let base = match bits {
        16 => {
            machine.segments[3].base = DEVICE;
            Register::SI
        }
        32 => Register::ESI,
        _ => Register::RSI,
    };
    let start = if bits == 16 { 0 } else { DEVICE };
    machine.set(Gpr::Rsi, start + AT + 0x10);
    MemoryOperand::with_base_displ(base, -0x10)
}

fn modes(width: Width) -> &'static [u32] {
    if width == Width::B8 { &[64] } else { &[16, 32, 64] }
}

/// A value of `width` in RBX, as an instruction of that width leaves it.
fn merged(old: u64, width: Width, value: u64) -> u64 {
    match width {
        Width::B4 | Width::B8 => value,
        _ => old & !width.mask() | value & width.mask(),
    }
}

/// Numbers at the borders, and some from a generator.
fn samples(width: Width) -> Vec<u64> {
    let mask = width.mask();
    let half = mask / 2;
    let mut values = vec![0, 1, 0xf, 0x10, half, half + 1, mask - 1, mask];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..3 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        values.push((state ^ state >> 29) & mask);
    }
    values
}

fn check_flags(machine: &Machine, before: Rflags, expected: Flags, what: &str) {
    let cases = [
        (Rflags::CF, expected.carry),
        (Rflags::OF, expected.overflow),
        (Rflags::AF, expected.auxiliary),
        (Rflags::ZF, expected.zero),
        (Rflags::SF, expected.sign),
        (Rflags::PF, expected.parity),
    ];
    for (flag, expected) in cases {
        if let Some(expected) = expected {
            assert_eq!(machine.flags.contains(flag), expected, "{flag:?} of {what}");
        }
    }
    assert_eq!(machine.flags - ARITHMETIC, before - ARITHMETIC, "{what}");
}

/// Runs `instruction` and returns its bytes' description.
fn run(machine: &mut Machine, instruction: &Instruction) -> String {
    let bytes = encode(machine.bits(), instruction);
    let what = format!("{:?} in {} bits", instruction.code(), machine.bits());
    assert_eq!(machine.run_bytes(&bytes), Ok(Done::Advance(u8::try_from(bytes.len()).unwrap())), "{what}");
    what
}

fn access_log(width: Width, written: Option<u64>) -> Vec<Seen> {
    let mut seen = vec![Seen::Read(AT, width.bytes())];
    if let Some(value) = written {
        seen.push(Seen::Write(AT, value.to_le_bytes()[..width.bytes()].into()));
    }
    seen
}

type Model = fn(u64, u64, bool, usize) -> (u64, Flags);

const TWO_OPERANDS: [(&str, Model, bool); 9] = [
    ("Add", |a, b, _, w| model::add(a, b, false, w), true),
    ("Adc", model::add, true),
    ("Sub", |a, b, _, w| model::sub(a, b, false, w), true),
    ("Sbb", model::sub, true),
    ("Cmp", |a, b, _, w| model::sub(a, b, false, w), false),
    ("And", |a, b, _, w| model::logic(a, b, |a, b| a && b, w), true),
    ("Or", |a, b, _, w| model::logic(a, b, |a, b| a || b, w), true),
    ("Xor", |a, b, _, w| model::logic(a, b, |a, b| a != b, w), true),
    ("Test", |a, b, _, w| model::logic(a, b, |a, b| a && b, w), false),
];

#[test]
fn two_operands_in_every_form() {
    for (name, model, stores) in TWO_OPERANDS {
        for width in WIDTHS {
            for &bits in modes(width) {
                for left in samples(width) {
                    for right in samples(width) {
                        two_operands(name, model, stores, width, bits, left, right);
                    }
                }
            }
        }
    }
}

fn two_operands(name: &str, model: Model, stores: bool, width: Width, bits: u32, left: u64, right: u64) {
    let size = width.bits();
    let carry = (left ^ right) & 1 != 0;
    let expected = model(left, right, carry, size as usize);
    let start = || {
        let mut machine = Machine::new(bits);
        machine.flags.set(Rflags::CF, carry);
        machine.flags |= Rflags::IF | Rflags::DF;
        let memory = operand(bits, &mut machine);
        (machine, memory)
    };
    let (mut machine, memory) = start();
    let before = machine.flags;
    machine.put(DEVICE + AT, left, width);
    machine.set(Gpr::Rbx, right | 0x5500_0000_0000_0000 & !width.mask());
    let instruction = Instruction::with2(code(&format!("{name}_rm{size}_r{size}")), memory, source(width)).unwrap();
    let what = format!("{} of {left:#x}, {right:#x}", run(&mut machine, &instruction));
    check_flags(&machine, before, expected.1, &what);
    assert_eq!(machine.seen, access_log(width, stores.then_some(expected.0)), "{what}");

    if name != "Test" {
        let (mut machine, memory) = start();
        let old = left | 0x5500_0000_0000_0000 & !width.mask();
        machine.put(DEVICE + AT, right, width);
        machine.set(Gpr::Rbx, old);
        let instruction = Instruction::with2(code(&format!("{name}_r{size}_rm{size}")), source(width), memory).unwrap();
        let what = format!("{} of {left:#x}, {right:#x}", run(&mut machine, &instruction));
        check_flags(&machine, before, expected.1, &what);
        let result = if stores { merged(old, width, expected.0) } else { old };
        assert_eq!(machine.get(Gpr::Rbx), result, "{what}");
        assert_eq!(machine.seen, access_log(width, None), "{what}");
    }

    // Constants: as wide as the operand up to 32 bits, or 8 bits, sign-extended.
    let full = if width == Width::B8 { 32 } else { size };
    for constant in [full, 8] {
        if constant == 8 && (size == 8 || name == "Test") {
            continue;
        }
        let unused = 64 - constant;
        let extended = i32::try_from((right << unused).cast_signed() >> unused).unwrap();
        let expected = model(left, i64::from(extended).cast_unsigned() & width.mask(), carry, size as usize);
        let (mut machine, memory) = start();
        machine.put(DEVICE + AT, left, width);
        let instruction =
            Instruction::with2(code(&format!("{name}_rm{size}_imm{constant}")), memory, extended).unwrap();
        let what = format!("{} of {left:#x}, {right:#x}", run(&mut machine, &instruction));
        check_flags(&machine, before, expected.1, &what);
        assert_eq!(machine.seen, access_log(width, stores.then_some(expected.0)), "{what}");
    }
}

#[test]
fn one_operand_in_every_form() {
    let models: [(&str, Model); 4] = [
        ("Inc", |a, _, _, w| model::add(a, 1, false, w)),
        ("Dec", |a, _, _, w| model::sub(a, 1, false, w)),
        ("Neg", |a, _, _, w| model::sub(0, a, false, w)),
        ("Not", |a, _, _, w| (model::logic(a, a, |a, _| !a, w).0, Flags::default())),
    ];
    for (name, model) in models {
        for width in WIDTHS {
            for &bits in modes(width) {
                for (value, carry) in samples(width).into_iter().zip([true, false].into_iter().cycle()) {
                    let mut machine = Machine::new(bits);
                    machine.flags.set(Rflags::CF, carry);
                    let memory = operand(bits, &mut machine);
                    machine.put(DEVICE + AT, value, width);
                    let (before, size) = (machine.flags, width.bits());
                    let instruction = Instruction::with1(code(&format!("{name}_rm{size}")), memory).unwrap();
                    let what = format!("{} of {value:#x}", run(&mut machine, &instruction));
                    let (result, mut flags) = model(value, 0, carry, size as usize);
                    if name != "Neg" {
                        flags.carry = Some(carry);
                    }
                    if name == "Not" {
                        assert_eq!(machine.flags, before);
                    }
                    check_flags(&machine, before, flags, &what);
                    assert_eq!(machine.seen, access_log(width, Some(result)), "{what}");
                }
            }
        }
    }
}

#[test]
fn shifts_and_rotates_by_every_count() {
    let kinds = [Shift::Shl, Shift::Shr, Shift::Sar, Shift::Rol, Shift::Ror, Shift::Rcl, Shift::Rcr];
    for kind in kinds {
        for width in WIDTHS {
            for &bits in modes(width) {
                for value in samples(width) {
                    for count in (0..=width.bits() + 2).chain([width.bits() * 2 + 1]) {
                        shift(kind, width, bits, value, count);
                    }
                }
            }
        }
    }
}

fn shift(kind: Shift, width: Width, bits: u32, value: u64, count: u32) {
    let size = width.bits();
    let carry = (value ^ value >> 3 ^ u64::from(count)) & 1 != 0;
    let (result, flags) = model::shift(kind, value, count, carry, size as usize);
    let masked = count & if size == 64 { 0x3f } else { 0x1f };
    let forms = [format!("{kind:?}_rm{size}_CL"), format!("{kind:?}_rm{size}_imm8"), format!("{kind:?}_rm{size}_1")];
    for (n, form) in forms.iter().enumerate() {
        if n == 2 && count != 1 {
            continue;
        }
        let mut machine = Machine::new(bits);
        machine.flags.set(Rflags::CF, carry);
        machine.flags.insert(Rflags::IF | Rflags::AF);
        let before = machine.flags;
        let memory = operand(bits, &mut machine);
        machine.put(DEVICE + AT, value, width);
        machine.set(Gpr::Rcx, 0xff00 | u64::from(count));
        let instruction = match n {
            0 => Instruction::with2(code(form), memory, Register::CL),
            1 => Instruction::with2(code(form), memory, count),
            _ => Instruction::with2(code(form), memory, 1u32),
        };
        let what = format!("{} of {value:#x} by {count}", run(&mut machine, &instruction.unwrap()));
        check_flags(&machine, before, flags, &what);
        if masked == 0 {
            assert_eq!(machine.flags, before, "{what}");
        }
        assert_eq!(machine.seen, access_log(width, (masked != 0).then_some(result)), "{what}");
    }
}

#[test]
fn a_shift_by_zero_clears_the_upper_half() {
    let mut machine = Machine::new(64);
    machine.set(Gpr::Rcx, 32);
    let instruction = Instruction::with2(Code::Shl_rm32_CL, Register::EAX, Register::CL).unwrap();
    let before = machine.flags;
    run(&mut machine, &instruction);
    assert_eq!((machine.get(Gpr::Rax), machine.flags), (0x5566_7780, before));
}

#[test]
fn double_shifts_by_every_count() {
    for (name, left) in [("Shld", true), ("Shrd", false)] {
        for width in &WIDTHS[1..] {
            for &bits in modes(*width) {
                for (value, filler) in samples(*width).into_iter().zip(samples(*width).into_iter().rev()) {
                    for count in 0..=width.bits() {
                        double_shift(name, left, *width, bits, value, filler, count);
                    }
                }
            }
        }
    }
}

fn double_shift(name: &str, left: bool, width: Width, bits: u32, value: u64, filler: u64, count: u32) {
    let size = width.bits();
    let masked = count & if size == 64 { 0x3f } else { 0x1f };
    let (result, flags) = model::double_shift(left, value, filler, masked, size as usize);
    for by_register in [false, true] {
        let mut machine = Machine::new(bits);
        let before = machine.flags;
        let memory = operand(bits, &mut machine);
        machine.put(DEVICE + AT, value, width);
        machine.set(Gpr::Rbx, filler);
        machine.set(Gpr::Rcx, count.into());
        let instruction = if by_register {
            let code = code(&format!("{name}_rm{size}_r{size}_CL"));
            Instruction::with3(code, memory, source(width), Register::CL)
        } else {
            let code = code(&format!("{name}_rm{size}_r{size}_imm8"));
            Instruction::with3(code, memory, source(width), count)
        };
        let what = format!("{} of {value:#x}, {filler:#x} by {count}", run(&mut machine, &instruction.unwrap()));
        check_flags(&machine, before, flags, &what);
        assert_eq!(machine.seen, access_log(width, (masked != 0).then_some(result)), "{what}");
    }
}

/// The registers of a wide product or dividend: RAX and RDX as they are with this low and high half.
fn wide(rax: u64, rdx: u64, width: Width, low: u64, high: u64) -> (u64, u64) {
    match width {
        Width::B1 => (rax & !0xffff | high << 8 | low, rdx),
        _ => (merged(rax, width, low), merged(rdx, width, high)),
    }
}

#[test]
fn products() {
    for width in WIDTHS {
        for &bits in modes(width) {
            for left in samples(width) {
                for right in samples(width) {
                    product(width, bits, left, right);
                }
            }
        }
    }
}

fn product(width: Width, bits: u32, left: u64, right: u64) {
    let size = width.bits();
    for (name, (low, high)) in
        [("Mul", model::mul(left, right, size as usize)), ("Imul", model::imul(left, right, size as usize))]
    {
        let mut machine = Machine::new(bits);
        let before = machine.flags;
        let memory = operand(bits, &mut machine);
        machine.put(DEVICE + AT, right, width);
        let rax = merged(machine.get(Gpr::Rax), width, left);
        let rdx = machine.get(Gpr::Rdx);
        machine.set(Gpr::Rax, rax);
        let instruction = Instruction::with1(code(&format!("{name}_rm{size}")), memory).unwrap();
        let what = format!("{} of {left:#x}, {right:#x}", run(&mut machine, &instruction));
        assert_eq!((machine.get(Gpr::Rax), machine.get(Gpr::Rdx)), wide(rax, rdx, width, low, high), "{what}");
        let sign = if low >> (size - 1) != 0 { width.mask() } else { 0 };
        let lost = if name == "Mul" { high != 0 } else { high != sign };
        check_flags(&machine, before, Flags { carry: Some(lost), overflow: Some(lost), ..Flags::default() }, &what);
        if name == "Mul" || width == Width::B1 {
            continue;
        }
        // The forms with a target of their own.
        let constant = i32::try_from((right << 56).cast_signed() >> 56).unwrap();
        let (low8, high8) = model::imul(left, i64::from(constant).cast_unsigned() & width.mask(), size as usize);
        let sign8 = if low8 >> (size - 1) != 0 { width.mask() } else { 0 };
        for three in [false, true] {
            let mut machine = Machine::new(bits);
            let memory = operand(bits, &mut machine);
            let (expected, lost) = if three { (low8, high8 != sign8) } else { (low, lost) };
            let rbx = if three { machine.get(Gpr::Rbx) } else { merged(machine.get(Gpr::Rbx), width, left) };
            machine.set(Gpr::Rbx, rbx);
            let instruction = if three {
                machine.put(DEVICE + AT, left, width);
                Instruction::with3(code(&format!("Imul_r{size}_rm{size}_imm8")), source(width), memory, constant)
            } else {
                machine.put(DEVICE + AT, right, width);
                Instruction::with2(code(&format!("Imul_r{size}_rm{size}")), source(width), memory)
            };
            let what = format!("{} of {left:#x}, {right:#x}", run(&mut machine, &instruction.unwrap()));
            assert_eq!(machine.get(Gpr::Rbx), merged(rbx, width, expected), "{what}");
            check_flags(&machine, before, Flags { carry: Some(lost), overflow: Some(lost), ..Flags::default() }, &what);
        }
    }
}

#[test]
fn quotients_and_divide_errors() {
    let mut errors = 0;
    for width in WIDTHS {
        for &bits in modes(width) {
            for low in samples(width) {
                for high in [0, 1, 2, width.mask() - 1, width.mask(), width.mask() / 2, low / 3, low] {
                    for divisor in samples(width) {
                        errors += quotient(width, bits, low, high, divisor);
                    }
                }
            }
        }
    }
    assert!(errors > 100);
}

fn quotient(width: Width, bits: u32, low: u64, high: u64, divisor: u64) -> u32 {
    let size = width.bits();
    let mut errors = 0;
    let models = [
        ("Div", model::div(low, high, divisor, size as usize)),
        ("Idiv", model::idiv(low, high, divisor, size as usize)),
    ];
    for (name, expected) in models {
        let mut machine = Machine::new(bits);
        let memory = operand(bits, &mut machine);
        machine.put(DEVICE + AT, divisor, width);
        let (rax, rdx) = wide(machine.get(Gpr::Rax), machine.get(Gpr::Rdx), width, low, high);
        machine.set(Gpr::Rax, rax);
        machine.set(Gpr::Rdx, rdx);
        let instruction = Instruction::with1(code(&format!("{name}_rm{size}")), memory).unwrap();
        let what = format!("{name} of {high:#x}:{low:#x} by {divisor:#x}, {size} bits");
        match expected {
            Some((quotient, rest)) => {
                run(&mut machine, &instruction);
                let expected = wide(rax, rdx, width, quotient, rest);
                assert_eq!((machine.get(Gpr::Rax), machine.get(Gpr::Rdx)), expected, "{what}");
            }
            None => {
                errors += 1;
                let before = machine.gprs;
                let fault = GuestFault { vector: vector::DE, error: None, cr2: None };
                let outcome = machine.run_bytes(&encode(bits, &instruction));
                assert_eq!(outcome, Err(Refused::Fault(fault)), "{what}");
                assert_eq!(machine.gprs, before, "{what}");
            }
        }
    }
    errors
}
