//! Flags against a model that adds bit by bit, and decoding of any bytes.

use proptest::prelude::*;

use super::*;

const OPERATIONS: [(Operation, Mnemonic); 9] = [
    (Operation::Add, Mnemonic::Add),
    (Operation::Adc, Mnemonic::Adc),
    (Operation::Sub, Mnemonic::Sub),
    (Operation::Sbb, Mnemonic::Sbb),
    (Operation::Cmp, Mnemonic::Cmp),
    (Operation::And, Mnemonic::And),
    (Operation::Or, Mnemonic::Or),
    (Operation::Xor, Mnemonic::Xor),
    (Operation::Test, Mnemonic::Test),
];
const WIDTHS: [Width; 4] = [Width::B1, Width::B2, Width::B4, Width::B8];

/// Result, carry out of the top, carry into the top, and carry out of bit 3, of a row of full adders.
fn adders(left: u64, right: u64, carry: bool, bits: u32) -> (u64, bool, bool, bool) {
    let (mut result, mut carry, mut into_top, mut half) = (0, carry, false, false);
    for bit in 0..bits {
        let (a, b) = (left >> bit & 1 == 1, right >> bit & 1 == 1);
        into_top = carry;
        result |= u64::from(a ^ b ^ carry) << bit;
        carry = a && b || carry && (a || b);
        if bit == 3 {
            half = carry;
        }
    }
    (result, carry, into_top, half)
}

/// What the manual says of each instruction (SDM vol. 2, and vol. 1, "Status Flags"), on a row of adders: a subtraction
/// adds the complement, and borrows where nothing carries.
fn model(operation: Mnemonic, left: u64, right: u64, width: Width, carry: bool) -> (u64, Rflags) {
    let bits = width.bits();
    let (result, cf, of, af) = match operation {
        Mnemonic::Add | Mnemonic::Adc => {
            let (result, out, into, half) = adders(left, right, operation == Mnemonic::Adc && carry, bits);
            (result, out, out != into, half)
        }
        Mnemonic::Sub | Mnemonic::Cmp | Mnemonic::Sbb => {
            let (result, out, into, half) = adders(left, !right, !(operation == Mnemonic::Sbb && carry), bits);
            (result, !out, out != into, !half)
        }
        _ => {
            let of_bit = |bit: u32| {
                let (a, b) = (left >> bit & 1, right >> bit & 1);
                match operation {
                    Mnemonic::Or => a.max(b),
                    Mnemonic::Xor => u64::from(a != b),
                    _ => a.min(b),
                }
            };
            ((0..bits).map(|bit| of_bit(bit) << bit).sum(), false, false, false)
        }
    };
    let mut flags = Rflags::empty();
    flags.set(Rflags::CF, cf);
    flags.set(Rflags::OF, of);
    flags.set(Rflags::AF, af);
    flags.set(Rflags::ZF, (0..bits).all(|bit| result >> bit & 1 == 0));
    flags.set(Rflags::SF, result >> (bits - 1) & 1 == 1);
    flags.set(Rflags::PF, (0..8).filter(|bit| result >> bit & 1 == 1).count() % 2 == 0);
    (result, flags)
}

/// Values where carries and signs change, and any others.
fn value() -> impl Strategy<Value = u64> {
    let edges = [0u64, 1, 7, 8, 0xf, 0x10, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000];
    let edge = proptest::sample::select(edges.to_vec());
    prop_oneof![any::<u64>(), edge.clone(), edge.prop_map(u64::wrapping_neg), Just(1 << 63), Just(u64::MAX >> 1)]
}

/// All status flags that these instructions define.
fn status() -> Rflags {
    Rflags::CF | Rflags::PF | Rflags::AF | Rflags::ZF | Rflags::SF | Rflags::OF
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn results_and_flags_are_those_of_the_adders(left in value(), right in value(), old in any::<u64>()) {
        let old = Rflags::from_bits_retain(old);
        for (operation, mnemonic) in OPERATIONS {
            prop_assert!(Operation::of(mnemonic) == Some(operation));
            for width in WIDTHS {
                let (result, flags) = operation.apply(left, right, width, old);
                let expected = model(mnemonic, left, right, width, old.contains(Rflags::CF));
                prop_assert_eq!((result, flags & status()), expected, "{:?} {:?} {:#x} {:#x}", mnemonic, width, left, right);
                prop_assert_eq!(flags - status(), old - status(), "other flags stay");
            }
        }
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..20), rip in any::<u64>()) {
        for bits in [16, 32, 64] {
            if let Ok(instruction) = decode(&bytes, bits, rip) {
                let length = usize::from(length(&instruction));
                prop_assert!(1 <= length && length <= MAX_LENGTH.min(bytes.len()));
                // Only the instruction's own bytes count.
                let again = decode(&bytes[..length], bits, rip);
                prop_assert_eq!(again.map(|i| i.code()), Ok(instruction.code()));
                prop_assert_eq!(decode(&bytes[..length - 1], bits, rip), Err(Refused::Undecodable));
            }
        }
    }
}

#[test]
fn sixteen_bytes_are_no_instruction() {
    // Prefixes make it too long: the processor gives #GP.
    let mut bytes = [0x66; 16];
    bytes[15] = 0x90;
    assert_eq!(decode(&bytes, 64, 0), Err(Refused::Undecodable));
    assert!(decode(&bytes[1..], 64, 0).is_ok());
}

#[test]
fn the_model_itself_knows_the_manuals_examples() {
    let carry = Rflags::CF;
    assert_eq!(model(Mnemonic::Add, 0xff, 1, Width::B1, false), (0, carry | Rflags::ZF | Rflags::PF | Rflags::AF));
    assert_eq!(model(Mnemonic::Add, 0x7f, 1, Width::B1, false), (0x80, Rflags::OF | Rflags::SF | Rflags::AF));
    assert_eq!(model(Mnemonic::Sub, 0, 1, Width::B1, false).0, 0xff);
    assert_eq!(model(Mnemonic::Cmp, 5, 5, Width::B8, true), (0, Rflags::ZF | Rflags::PF));
    assert_eq!(model(Mnemonic::Xor, 6, 5, Width::B2, true), (3, Rflags::PF));
}
