//! Random bytes as code: no panic, and no effect by halves.

use bolero::check;

use super::machine::{MEMORY, Machine, Seen};
use crate::insn::{Done, MAX_LENGTH, Refused, execute, fetch};

/// What code begins with more often than chance would have it: prefixes, VEX and EVEX, the x87, and far transfers.
const FIRST: [u8; 20] = [
    0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x48, 0x0f, 0x4d, 0xc4, 0xc5, 0x62, 0xd9, 0xdb, 0xdd, 0xdf, 0x8e, 0xca, 0xcb, 0xcf,
    0xff,
];

#[test]
fn random_code_is_done_or_leaves_everything_as_it_was() {
    check!().with_type::<(u8, u8, [u8; MAX_LENGTH], [u64; 16])>().for_each(|(mode, prefix, code, gprs)| {
        let mut machine = match mode & 3 {
            0 => Machine::real(),
            1 => Machine::new(16),
            2 => Machine::new(32),
            _ => Machine::new(64),
        };
        // Addresses that there are, more often than not.
        let near = |value: &u64| if value & 3 == 0 { *value } else { value >> 2 & (MEMORY as u64 - 1) };
        machine.gprs = core::array::from_fn(|i| near(&gprs[i]));
        if mode & 4 != 0 {
            machine.user();
        }
        let mut code = *code;
        if prefix & 1 != 0 {
            code[0] = FIRST[usize::from(prefix >> 1) % FIRST.len()];
        }
        let at = usize::try_from(machine.rip).unwrap();
        machine.memory[at..at + code.len()].copy_from_slice(&code);
        let fetched = fetch(&mut machine);
        assert!(fetched.bytes().len() <= MAX_LENGTH);
        let Ok(instruction) = fetched.instruction else { return };
        let repeated =
            instruction.is_string_instruction() && (instruction.has_rep_prefix() || instruction.has_repne_prefix());
        let mut before = machine.clone();
        machine.patience = 100;
        before.patience = 100;
        match execute(&mut machine, &instruction) {
            Ok(Done::Advance(length) | Done::AdvanceIntoShadow(length)) => {
                assert_eq!(usize::from(length), instruction.len())
            }
            Ok(Done::Jumped) => {}
            Ok(Done::Again) => assert!(repeated, "{code:02x?}"),
            Err(Refused::Fault(_)) if repeated => {}
            Err(_) => {
                let wrote = |seen: &Seen| !matches!(seen, Seen::Read(..));
                assert!(!machine.seen.iter().any(wrote), "{code:02x?}");
                before.seen.clone_from(&machine.seen);
                before.patience = machine.patience;
                assert!(machine == before, "{code:02x?}: {machine:?}");
            }
        }
    });
}
