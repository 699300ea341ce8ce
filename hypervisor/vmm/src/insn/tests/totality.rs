//! Whatever the bytes and the registers are: no panic, and no effect of what is refused.

use iced_x86::Instruction;
use lamina_arch::cr::{Cr0, Rflags};
use lamina_arch::segment::AccessRights;
use proptest::prelude::*;

use super::machine::{DEVICE, MEMORY, Machine, Page, Seen};
use crate::insn::{Done, MAX_LENGTH, Refused, execute, fetch};

/// Addresses near what is interesting, and anything.
fn register() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..MEMORY as u64 + 0x1100,
        3 => (0..0x12u64, -20i64..20).prop_map(|(page, offset)| (page << 12).wrapping_add_signed(offset)),
        2 => DEVICE..DEVICE + 0x1000,
        1 => (-300i64..300).prop_map(i64::cast_unsigned),
        1 => any::<u64>(),
        1 => Just(0x7fff_ffff_fffc),
    ]
}

/// Bytes that begin like instructions more often than chance would have it.
fn code() -> impl Strategy<Value = [u8; MAX_LENGTH]> {
    let prefix = prop::sample::select(
        &[0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x64, 0x65, 0x48, 0x4d, 0xc4, 0xc5, 0x62][..],
    );
    let prefixes = prop::collection::vec(prefix, 0..4);
    // Two-byte opcodes, the x87, loads of segments and far transfers; or as it comes.
    let opcodes = [0x0f, 0x0f, 0x0f, 0xd9, 0xdb, 0xdd, 0xdf, 0x8e, 0x17, 0xca, 0xcb, 0xcf, 0xff];
    let opcode = prop::option::of(prop::sample::select(opcodes.to_vec()));
    (prefixes, opcode, any::<[u8; MAX_LENGTH]>()).prop_map(|(prefixes, opcode, mut code)| {
        code[..prefixes.len()].copy_from_slice(&prefixes);
        if let Some(opcode) = opcode {
            code[prefixes.len()] = opcode;
        }
        code
    })
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Real,
    Virtual8086,
    Protected(u32),
}

fn machine() -> impl Strategy<Value = Machine> {
    let mode = prop_oneof![
        Just(Mode::Real),
        Just(Mode::Virtual8086),
        Just(Mode::Protected(16)),
        Just(Mode::Protected(32)),
        Just(Mode::Protected(64)),
        Just(Mode::Protected(64)),
    ];
    let page = prop_oneof![
        Just(Page::Absent),
        Just(Page::ReadOnly),
        Just(Page::System),
        (0..0x11u64).prop_map(|page| Page::At(page << 12)),
    ];
    let pages = prop::collection::btree_map(0..0x14u64, page, 0..5);
    // Segments: which, how far, and with what rights.
    let odd = (0..6usize, prop_oneof![Just(0xffff_ffffu32), 0..0x2_0000u32], 0x90..0x1_00ffu32);
    let flags = (any::<u16>(), any::<bool>(), any::<bool>(), any::<bool>());
    (mode, prop::array::uniform16(register()), pages, prop::option::of(odd), flags).prop_map(
        |(mode, gprs, pages, odd, (low, user, alignment, ports))| {
            let mut machine = match mode {
                Mode::Real | Mode::Virtual8086 => Machine::real(),
                Mode::Protected(bits) => Machine::new(bits),
            };
            machine.gprs = gprs;
            machine.pages = pages;
            machine.pages.remove(&4);
            machine.flags |= Rflags::from_bits_retain(u64::from(low & 0xcd5));
            machine.ports_allowed = ports;
            if let Some((which, limit, rights)) = odd
                && which != 1
            {
                machine.segments[which].limit = limit;
                machine.segments[which].rights = AccessRights(rights);
            }
            if user {
                machine.user();
            }
            if alignment {
                machine.cr0.insert(Cr0::AM);
                machine.flags.insert(Rflags::AC);
            }
            if matches!(mode, Mode::Virtual8086) {
                machine.cr0.insert(Cr0::PE);
                machine.flags.insert(Rflags::VM);
            }
            machine
        },
    )
}

fn is_repeated_string(instruction: &Instruction) -> bool {
    instruction.is_string_instruction() && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn whatever_is_fetched(mut machine in machine(), code in code()) {
        let at = usize::try_from(machine.rip).unwrap();
        machine.memory[at..at + code.len()].copy_from_slice(&code);
        let fetched = fetch(&mut machine);
        let Ok(instruction) = fetched.instruction else {
            prop_assert!(fetched.bytes().len() <= MAX_LENGTH);
            return Ok(());
        };
        prop_assert_eq!(fetched.bytes().len(), instruction.len());
        let mut before = machine.clone();
        let outcome = execute(&mut machine, &instruction);
        let wrote = machine.seen.iter().any(|seen| matches!(seen, Seen::Write(..) | Seen::In(..) | Seen::Out(..)));
        match outcome {
            Ok(Done::Advance(length) | Done::AdvanceIntoShadow(length)) => {
                prop_assert_eq!(usize::from(length), instruction.len());
                prop_assert_eq!(machine.rip, before.rip);
            }
            Ok(Done::Jumped) => {}
            Ok(Done::Again) => prop_assert!(is_repeated_string(&instruction)),
            // The iterations before stay done.
            Err(Refused::Fault(_)) if is_repeated_string(&instruction) => {}
            Err(_) => {
                prop_assert!(!wrote);
                // A device may have been read: a divisor, a selector, a jump's target.
                before.seen.clone_from(&machine.seen);
                prop_assert_eq!(machine, before);
            }
        }
    }
}
