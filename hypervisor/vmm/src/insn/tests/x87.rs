//! Moves of the x87, form by form, against the language's own conversions.

use std::vec;
use std::vec::Vec;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lamina_arch::cr::Cr0;
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::exit::Width;

use super::machine::{DEVICE, Machine, Page, Seen, assembled};
use crate::insn::Refused;

type Assemble = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const TO: u64 = DEVICE + 0x40;

const INVALID: u16 = 1;
const DENORMAL: u16 = 2;
const OVERFLOW: u16 = 8;
const UNDERFLOW: u16 = 16;
const PRECISION: u16 = 32;
const STACK: u16 = 64;
const SUMMARY: u16 = 0x8080;
const C1: u16 = 0x200;

/// Round to nearest, down, up, to 0.
const ROUNDING: [u16; 4] = [0x37f, 0x77f, 0xb7f, 0xf7f];

fn control(machine: &mut Machine, value: u16) {
    machine.x87[..2].copy_from_slice(&value.to_le_bytes());
}

fn status(machine: &Machine) -> u16 {
    u16::from_le_bytes([machine.x87[2], machine.x87[3]])
}

/// The status without the top of the stack.
fn flags(machine: &Machine) -> u16 {
    status(machine) & !0x3800
}

fn top(machine: &Machine) -> u16 {
    status(machine) >> 11 & 7
}

fn st0(machine: &Machine) -> (u16, u64) {
    let register = &machine.x87[24..34];
    (u16::from_le_bytes([register[8], register[9]]), u64::from_le_bytes(register[..8].try_into().unwrap()))
}

/// A machine with `value` in ST0.
fn holding(exponent: u16, significand: u64) -> Machine {
    let mut machine = Machine::new(64);
    let mut bytes = significand.to_le_bytes().to_vec();
    bytes.extend(exponent.to_le_bytes());
    machine.device[..10].copy_from_slice(&bytes);
    machine.does(|a| a.fld(tword_ptr(DEVICE)));
    machine.seen.clear();
    machine
}

/// Loads by `load` what `width` bytes of `value` say, and stores it by `store`: the result of 8 bytes, and the flags.
fn through(value: u64, width: Width, load: Assemble, store: Assemble, word: u16) -> (u64, u16) {
    let mut machine = Machine::new(64);
    machine.put(DEVICE, value, width);
    machine.put(TO, 0, Width::B8);
    machine.does(load);
    control(&mut machine, word);
    machine.does(store);
    assert_eq!((top(&machine), machine.x87[4]), (0, 0), "the stack is empty again");
    (machine.peek(TO, Width::B8), flags(&machine))
}

/// Numbers of double precision: at the borders of formats, and some from a generator.
fn doubles() -> Vec<f64> {
    let mut values = vec![0.0, 1.0, 1.5, 0.5, 2.5, 3.5, 0.1, 1e300, 1e-300, f64::MIN_POSITIVE, f64::MAX, 5e-324];
    let single = [f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1), f32::from_bits(0x7f_ffff)];
    for value in single.map(f64::from) {
        values.extend([value, value * 0.5, value * 0.75, value * 1.5, value.next_up(), value.next_down()]);
    }
    for power in [15, 16, 31, 32, 52, 62, 63, 64] {
        let value = f64::from(power).exp2();
        values.extend([value, value - 0.5, value + 0.5, value.next_down(), value.next_up()]);
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..200 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Exponents around those of single precision, and of integers.
        values.push(f64::from_bits(state >> 12 | (0x360 + (state & 0x120)) << 52));
        values.push(f64::from_bits(state >> 12 | (0x3f0 + (state & 0x5f)) << 52));
    }
    values.iter().flat_map(|&value| [value, -value]).collect()
}

const FLD64: Assemble = |a| a.fld(qword_ptr(DEVICE));
const FSTP32: Assemble = |a| a.fstp(dword_ptr(TO));

#[test]
fn double_to_single_as_the_language_does_it() {
    for value in doubles() {
        let (bits, flags) = through(value.to_bits(), Width::B8, FLD64, FSTP32, ROUNDING[0]);
        #[allow(clippy::cast_possible_truncation)]
        let expected = value as f32;
        assert_eq!(bits, u64::from(expected.to_bits()), "{value:e}");
        let inexact = f64::from(expected) != value;
        assert_eq!(flags & PRECISION != 0, inexact, "{value:e}");
        assert_eq!(flags & OVERFLOW != 0, expected.is_infinite(), "{value:e}");
        // What rounds up to the smallest normal number may be tiny or not.
        if expected.abs() != f32::MIN_POSITIVE {
            assert_eq!(flags & UNDERFLOW != 0, inexact && expected.abs() < f32::MIN_POSITIVE, "{value:e}");
        }
        assert_eq!(flags & C1 != 0, f64::from(expected).abs() > value.abs(), "{value:e}");
    }
}

#[test]
fn directed_rounding_takes_the_neighbour() {
    for value in doubles() {
        #[allow(clippy::cast_possible_truncation)]
        let nearest = value as f32;
        let wide = f64::from(nearest);
        let (below, above) = (
            if wide > value { nearest.next_down() } else { nearest },
            if wide < value { nearest.next_up() } else { nearest },
        );
        let zero = if value < 0.0 { above } else { below };
        for (word, expected) in [(ROUNDING[1], below), (ROUNDING[2], above), (ROUNDING[3], zero)] {
            let (bits, _) = through(value.to_bits(), Width::B8, FLD64, FSTP32, word);
            // 0 keeps the value's sign, which `next_up` does not.
            let expected = if expected == 0.0 { 0f32.copysign(if value < 0.0 { -1.0 } else { 1.0 }) } else { expected };
            let expected = if value == 0.0 { nearest } else { expected };
            assert_eq!(bits, u64::from(expected.to_bits()), "{value:e} by {word:#x}");
        }
    }
}

#[test]
fn tiny_is_what_is_tiny_after_rounding_without_a_smallest_exponent() {
    // Rounds up to the smallest normal number: with 24 bits of precision it was below it, so it is tiny all the same.
    let just_below = f64::from(f32::MIN_POSITIVE) * (1.0 - 2f64.powi(-25) - 2f64.powi(-26));
    let (bits, flags) = through(just_below.to_bits(), Width::B8, FLD64, FSTP32, ROUNDING[0]);
    assert_eq!((bits, flags), (u64::from(f32::MIN_POSITIVE.to_bits()), UNDERFLOW | PRECISION | C1));
    let nearer = f64::from(f32::MIN_POSITIVE) * (1.0 - 2f64.powi(-26));
    let (bits, flags) = through(nearer.to_bits(), Width::B8, FLD64, FSTP32, ROUNDING[0]);
    assert_eq!((bits, flags), (u64::from(f32::MIN_POSITIVE.to_bits()), PRECISION | C1));
}

#[test]
fn single_to_double_is_exact() {
    for value in [0f32, 1.0, -1.5, f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1), f32::from_bits(0x8000_0001)] {
        let load: Assemble = |a| a.fld(dword_ptr(DEVICE));
        let store: Assemble = |a| a.fstp(qword_ptr(TO));
        let (bits, flags) = through(value.to_bits().into(), Width::B4, load, store, ROUNDING[0]);
        let denormal = value != 0.0 && value.abs() < f32::MIN_POSITIVE;
        assert_eq!((bits, flags), (f64::from(value).to_bits(), if denormal { DENORMAL } else { 0 }));
    }
}

#[test]
fn integers_to_double_as_the_language_does_it() {
    let store: Assemble = |a| a.fstp(qword_ptr(TO));
    for value in [0i64, 1, -1, i64::MAX, i64::MIN, 0x1234_5678_9abc_def1, -0x20_0000_0000_0001, 1 << 53] {
        let load: Assemble = |a| a.fild(qword_ptr(DEVICE));
        #[allow(clippy::cast_precision_loss)]
        let expected = (value as f64).to_bits();
        assert_eq!(through(value.cast_unsigned(), Width::B8, load, store, ROUNDING[0]).0, expected);
    }
    for value in [0i32, i32::MIN, i32::MAX, -77] {
        let load: Assemble = |a| a.fild(dword_ptr(DEVICE));
        let bits = u64::from(value.cast_unsigned());
        assert_eq!(through(bits, Width::B4, load, store, ROUNDING[0]), (f64::from(value).to_bits(), 0));
    }
    for value in [0i16, i16::MIN, i16::MAX, -7] {
        let load: Assemble = |a| a.fild(word_ptr(DEVICE));
        let bits = u64::from(value.cast_unsigned());
        assert_eq!(through(bits, Width::B2, load, store, ROUNDING[0]), (f64::from(value).to_bits(), 0));
    }
}

#[test]
fn doubles_to_integers_as_the_language_does_it() {
    let stores: [(Assemble, u32); 3] =
        [(|a| a.fistp(word_ptr(TO)), 16), (|a| a.fistp(dword_ptr(TO)), 32), (|a| a.fistp(qword_ptr(TO)), 64)];
    for value in doubles() {
        for (store, bits) in stores {
            for (word, rounded) in
                ROUNDING.into_iter().zip([value.round_ties_even(), value.floor(), value.ceil(), value.trunc()])
            {
                check_integer(value, rounded, store, bits, word);
            }
        }
        let truncating: [(Assemble, u32); 3] =
            [(|a| a.fisttp(word_ptr(TO)), 16), (|a| a.fisttp(dword_ptr(TO)), 32), (|a| a.fisttp(qword_ptr(TO)), 64)];
        for (store, bits) in truncating {
            check_integer(value, value.trunc(), store, bits, ROUNDING[2]);
        }
    }
}

fn check_integer(value: f64, rounded: f64, store: Assemble, bits: u32, word: u16) {
    let (stored, flags) = through(value.to_bits(), Width::B8, FLD64, store, word);
    let limit = f64::from(bits - 1).exp2();
    let mask = u64::MAX >> (64 - bits);
    if rounded >= limit || rounded < -limit {
        assert_eq!((stored, flags & !DENORMAL), (1 << (bits - 1), INVALID), "{value:e} to {bits} bits");
    } else {
        #[allow(clippy::cast_possible_truncation)]
        let expected = (rounded as i64).cast_unsigned() & mask;
        assert_eq!(stored, expected, "{value:e} to {bits} bits by {word:#x}");
        assert_eq!(flags & PRECISION != 0, rounded != value, "{value:e} to {bits} bits");
        assert_eq!(flags & C1 != 0, rounded.abs() > value.abs(), "{value:e} to {bits} bits");
    }
}

#[test]
fn ten_bytes_go_through_as_they_are() {
    for (exponent, significand) in
        [(0x3fff, 1 << 63), (0x7fff, 1), (0, 5), (0x8000, 0), (0xffff, 0xa000_0000_0000_0001)]
    {
        let mut machine = holding(exponent, significand);
        assert_eq!((top(&machine), machine.x87[4], st0(&machine)), (7, 0x80, (exponent, significand)));
        machine.does(|a| a.fstp(tword_ptr(TO)));
        let mut expected = significand.to_le_bytes().to_vec();
        expected.extend(exponent.to_le_bytes());
        assert_eq!((machine.seen, flags_of(&machine.x87)), ([Seen::Write(0x40, expected)].into(), 0));
    }
}

fn flags_of(x87: &[u8]) -> u16 {
    u16::from_le_bytes([x87[2], x87[3]]) & !0x3800
}

#[test]
fn nans_become_quiet() {
    let mut machine = Machine::new(64);
    machine.put(DEVICE, 0x7fa0_0001, Width::B4);
    machine.does(|a| a.fld(dword_ptr(DEVICE)));
    assert_eq!((st0(&machine), flags(&machine)), ((0x7fff, 0xe000_0100_0000_0000), INVALID));
    let mut machine = holding(0xffff, 0xa000_0000_0000_0800);
    machine.does(|a| a.fst(qword_ptr(TO)));
    assert_eq!((machine.peek(TO, Width::B8), flags(&machine)), (0xfffc_0000_0000_0001, INVALID));
    // A pattern that no result has.
    let mut machine = holding(0x4000, 1);
    machine.does(|a| a.fst(dword_ptr(TO)));
    assert_eq!((machine.peek(TO, Width::B4), flags(&machine)), (0xffc0_0000, INVALID));
    let mut machine = holding(0x7fff, 1 << 63);
    machine.does(|a| a.fst(dword_ptr(TO)));
    assert_eq!((machine.peek(TO, Width::B4), flags(&machine)), (0x7f80_0000, 0));
}

#[test]
fn decimals() {
    let mut machine = Machine::new(64);
    let packed = [0x10, 0x32, 0x54, 0x76, 0x98, 0x10, 0x32, 0x54, 0x76, 0x80];
    machine.device[..10].copy_from_slice(&packed);
    machine.does(|a| a.fbld(tword_ptr(DEVICE)));
    machine.seen.clear();
    let saved = machine.clone();
    machine.does(|a| a.fistp(qword_ptr(TO)));
    assert_eq!(machine.peek(TO, Width::B8).cast_signed(), -765_432_109_876_543_210);
    let mut machine = saved;
    machine.does(|a| a.fbstp(tword_ptr(TO)));
    assert_eq!(machine.seen, [Seen::Write(0x40, packed.into())]);
    // 10^18 is too large by one.
    let mut machine = holding(0x3fff + 59, 0xde0b_6b3a_7640_0000);
    machine.does(|a| a.fbstp(tword_ptr(TO)));
    assert_eq!(machine.seen, [Seen::Write(0x40, vec![0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff])]);
    assert_eq!(flags(&machine), INVALID);
}

#[test]
fn a_full_and_an_empty_stack() {
    let mut machine = Machine::new(64);
    for n in 0..8 {
        assert_eq!(top(&machine), (8 - n) % 8);
        machine.does(|a| a.fild(word_ptr(DEVICE)));
    }
    assert_eq!((machine.x87[4], flags(&machine)), (0xff, 0));
    let full = machine.clone();
    machine.does(|a| a.fld(dword_ptr(DEVICE)));
    assert_eq!((st0(&machine), top(&machine)), ((0xffff, 0xc000_0000_0000_0000), 7));
    assert_eq!(flags(&machine), INVALID | STACK | C1);
    // Not masked: nothing is pushed.
    let mut machine = full;
    control(&mut machine, 0x37e);
    machine.does(|a| a.fld(dword_ptr(DEVICE)));
    assert_eq!((top(&machine), flags(&machine)), (0, INVALID | STACK | C1 | SUMMARY));

    let mut machine = Machine::new(64);
    machine.does(|a| a.fstp(dword_ptr(TO)));
    assert_eq!((machine.peek(TO, Width::B4), top(&machine)), (0xffc0_0000, 1));
    assert_eq!(flags(&machine), INVALID | STACK);
    let mut machine = Machine::new(64);
    control(&mut machine, 0x37e);
    machine.does(|a| a.fistp(dword_ptr(TO)));
    assert_eq!((machine.seen, flags_of(&machine.x87)), (vec![], INVALID | STACK | SUMMARY));
}

#[test]
fn what_is_not_masked_neither_stores_nor_pops() {
    let cases: [(u16, u64, u16, Assemble); 5] = [
        (0x7ffe, 1 << 63, OVERFLOW, |a| a.fstp(dword_ptr(TO))),
        (0x0001, 1 << 63, UNDERFLOW, |a| a.fstp(qword_ptr(TO))),
        // Tiny, and exact.
        (0x3fff - 149, 1 << 63, UNDERFLOW, |a| a.fstp(dword_ptr(TO))),
        (0x7fff, 0xa000_0000_0000_0000, INVALID, |a| a.fstp(dword_ptr(TO))),
        (0x4100, 1 << 63, INVALID, |a| a.fistp(qword_ptr(TO))),
    ];
    for (exponent, significand, exception, store) in cases {
        let mut machine = holding(exponent, significand);
        control(&mut machine, 0x340);
        machine.does(store);
        assert_eq!((machine.seen.as_slice(), top(&machine)), (&[][..], 7), "{exponent:#x}");
        assert_eq!(flags(&machine), exception | SUMMARY, "{exponent:#x}");
        // What comes next has to wait for it.
        machine.faults(GuestFault { vector: vector::MF, error: None, cr2: None }, |a| a.fild(word_ptr(DEVICE)));
        machine.does(|a| a.fnstsw(word_ptr(TO)));
        assert_eq!(machine.peek(TO, Width::B2), u64::from(exception | SUMMARY | 7 << 11));
    }
    // Precision stores and pops all the same.
    let mut machine = holding(0x3fff, u64::MAX);
    control(&mut machine, 0x35f);
    machine.does(|a| a.fstp(dword_ptr(TO)));
    assert_eq!((machine.peek(TO, Width::B4), top(&machine)), (0x4000_0000, 0));
    assert_eq!(flags(&machine), PRECISION | C1 | SUMMARY);
}

#[test]
fn the_control_word() {
    let mut machine = Machine::new(32);
    machine.put(DEVICE, 0xf27f, Width::B2);
    machine.does(|a| a.fldcw(word_ptr(DEVICE)));
    machine.does(|a| a.fnstcw(word_ptr(TO)));
    assert_eq!(machine.peek(TO, Width::B2), 0x127f);
    // A mask that is lifted wakes what has happened.
    machine.does(|a| a.fstp(dword_ptr(TO)));
    assert_eq!(flags(&machine), INVALID | STACK);
    machine.put(DEVICE, 0x37e, Width::B2);
    machine.does(|a| a.fldcw(word_ptr(DEVICE)));
    assert_eq!(flags(&machine), INVALID | STACK | SUMMARY);
    machine.faults(GuestFault { vector: vector::MF, error: None, cr2: None }, |a| a.fldcw(word_ptr(DEVICE)));
}

#[test]
fn the_pointers_tell_of_the_last_instruction() {
    let mut machine = Machine::new(64);
    machine.rip = 0x4321;
    machine.does(|a| a.fild(word_ptr(DEVICE + 2)));
    machine.rip = 0x4400;
    machine.does(|a| a.fnstcw(word_ptr(TO)));
    let pointer = |at: usize| u64::from_le_bytes(machine.x87[at..at + 8].try_into().unwrap());
    assert_eq!((pointer(8), pointer(16)), (0x4321, DEVICE + 2));
}

#[test]
fn faults_have_no_effect() {
    let mut machine = Machine::new(64);
    machine.pages.insert(0x11, Page::Absent);
    let at = DEVICE + 0xffa;
    machine.faults(GuestFault::page_fault(at + 6, 0), |a| a.fld(qword_ptr(at)));
    machine.faults(GuestFault::page_fault(at + 6, 2), |a| a.fstp(tword_ptr(at)));
    for bit in [Cr0::EM, Cr0::TS] {
        let mut machine = Machine::new(64);
        machine.cr0.insert(bit);
        let fault = GuestFault { vector: vector::NM, error: None, cr2: None };
        machine.faults(fault, |a| a.fld(dword_ptr(DEVICE)));
        machine.faults(fault, |a| a.fnstsw(word_ptr(DEVICE)));
    }
    let mut machine = Machine::new(32);
    machine.segments[3].limit = 0x1_0006;
    machine.faults(GuestFault::GP0, |a| a.fld(qword_ptr(DEVICE)));
}

#[test]
fn arithmetic_and_whole_states_are_refused() {
    let forms: [Assemble; 4] = [
        |a| a.fadd(dword_ptr(DEVICE)),
        |a| a.fnsave(ptr(DEVICE)),
        |a| a.fnstenv(ptr(DEVICE)),
        |a| a.fxsave(ptr(DEVICE)),
    ];
    for assemble in forms {
        let mut machine = Machine::new(64);
        let bytes = assembled(64, machine.rip, assemble);
        assert!(matches!(machine.run_bytes(&bytes), Err(Refused::Unsupported(_))), "{bytes:02x?}");
    }
}
