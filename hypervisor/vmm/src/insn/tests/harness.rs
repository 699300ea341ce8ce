//! Random bytes as code, as descriptors and as task states: no panic, and no effect by halves.

use bolero::check;
use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind};
use lamina_arch::exit::{TaskSource, Width};
use lamina_arch::segment::{AccessRights, Segment, SegmentName};

use super::machine::{CODE, MEMORY, Machine, Page, Seen};
use crate::exit::mov::{self, What};
use crate::insn::task::{Task, switch};
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

/// The instructions that read descriptors: with the selector in AX, or in the far pointer at RBX.
const READERS: [&[u8]; 13] = [
    &[0x8e, 0xc0],
    &[0x8e, 0xd0],
    &[0x8e, 0xd8],
    &[0x8e, 0xe0],
    &[0x8e, 0xe8],
    &[0x0f, 0x00, 0xd0],
    &[0x0f, 0x00, 0xd8],
    &[0x0f, 0x00, 0xe0],
    &[0x0f, 0x00, 0xe8],
    &[0x0f, 0x02, 0xc8],
    &[0x0f, 0x03, 0xc8],
    &[0xff, 0x2b],
    &[0xff, 0x1b],
];

/// The registers that the first five of them load.
const LOADED: [SegmentName; 5] = [SegmentName::Es, SegmentName::Ss, SegmentName::Ds, SegmentName::Fs, SegmentName::Gs];

/// Where the tables are.
const GDT: u64 = 0x1000;
const LDT: u64 = 0x1800;

/// A descriptor that is nearly one: the bits of `value`, present and of a common type more often than chance would have
/// it.
fn nearly(value: u64) -> u64 {
    const TYPES: [u64; 8] = [0x93, 0x9b, 0xf3, 0xfb, 0x9f, 0x82, 0x89, 0x8b];
    match value & 3 {
        0 => value,
        _ => value & !(0xff << 40) | TYPES[(value >> 2 & 7) as usize] << 40,
    }
}

#[test]
fn a_selector_loads_its_descriptor_or_changes_nothing() {
    check!().with_type::<(u8, u8, [u64; 8], u16)>().for_each(|(which, mode, descriptors, selector)| {
        let mut machine = Machine::new(if mode & 1 == 0 { 32 } else { 64 });
        // Both tables have the same few entries, so that most selectors name one.
        for (at, value) in (0u64..).step_by(8).zip(descriptors) {
            machine.put(GDT + at, nearly(*value), Width::B8);
            machine.put(LDT + at, nearly(*value), Width::B8);
        }
        machine.gdt = (GDT, 0x3f);
        if mode & 2 != 0 {
            let rights = AccessRights(0x82);
            machine.segments[SegmentName::Ldtr as usize] = Segment { selector: 8, base: LDT, limit: 0x3f, rights };
        }
        if mode & 4 != 0 {
            machine.user();
        }
        let selector = if mode & 8 == 0 { selector & 0x7f } else { *selector };
        machine.gprs[0] = u64::from(selector);
        machine.gprs[3] = CODE + 0x100;
        machine.gprs[4] = 0x5000;
        machine.put(CODE + 0x100, 0x4200 | u64::from(selector) << 32, Width::B8);
        let reader = usize::from(*which) % READERS.len();
        let at = usize::try_from(machine.rip).unwrap();
        machine.memory[at..at + READERS[reader].len()].copy_from_slice(READERS[reader]);
        let mut before = machine.clone();
        let fetched = fetch(&mut machine);
        let instruction = fetched.instruction.expect("they are instructions");
        let done = execute(&mut machine, &instruction);
        match done {
            Ok(_) if reader < LOADED.len() && selector > 3 => {
                let loaded = machine.segments[LOADED[reader] as usize];
                let table = if selector & 4 == 0 { GDT } else { LDT };
                let value = before.peek(table + u64::from(selector & !7), Width::B8);
                assert_eq!(loaded.selector, selector);
                assert_eq!(u64::from(loaded.rights.0), value >> 40 & 0xf0ff | 1, "{value:#x}");
                assert_eq!(loaded.base, value >> 16 & 0xff_ffff | value >> 32 & 0xff00_0000, "{value:#x}");
                assert!(loaded.rights.bit(7) && loaded.rights.bit(4), "it is no segment, or absent: {value:#x}");
            }
            Ok(_) => {}
            Err(_) => {
                before.seen.clone_from(&machine.seen);
                assert!(machine == before, "{done:?}: {machine:?}");
            }
        }
    });
}

#[test]
fn a_task_switch_is_refused_in_the_old_task_or_made() {
    const OLD: u16 = 0x28;
    const OLD_TSS: u64 = 0x6000;
    const NEW_TSS: usize = 0x7fd0;
    const SELECTORS: [usize; 7] = [72, 76, 80, 84, 88, 92, 96];
    type Input = (u8, u8, u8, [u64; 8], [u8; 104], u16);
    check!().with_type::<Input>().for_each(|(how, limit, pages, descriptors, tss, selector)| {
        let mut machine = Machine::new(32);
        for (at, value) in (0u64..).step_by(8).zip(descriptors) {
            machine.put(GDT + at, nearly(*value), Width::B8);
        }
        machine.gdt = (GDT, 0x3f);
        // The tables' page, the old TSS' and both of the new one's, so that what is found late is found too.
        for (bit, page) in [(0, 1), (2, 6), (4, 7), (6, 8)] {
            match pages >> bit & 3 {
                0 => drop(machine.pages.insert(page, Page::ReadOnly)),
                1 if bit == 6 => drop(machine.pages.insert(page, Page::Absent)),
                _ => {}
            }
        }
        machine.segments[SegmentName::Tr as usize] =
            Segment { selector: OLD, base: OLD_TSS, limit: 0x67, rights: AccessRights::TSS_BUSY };
        let selector = if how & 0x80 == 0 { 0x30 } else { selector & 0x7f };
        if how & 0x40 == 0 {
            // A TSS of either width and about the right length.
            let kind = [0x89, 0x8b, 0x81, 0x83][usize::from(how >> 2 & 3)];
            let limit = if limit & 1 == 0 { 0x67 } else { u64::from(limit >> 1) };
            machine.put(GDT + 0x30, limit | (NEW_TSS as u64) << 16 | kind << 40, Width::B8);
        }
        machine.memory[NEW_TSS..NEW_TSS + tss.len()].copy_from_slice(tss);
        for at in SELECTORS {
            machine.memory[NEW_TSS + at] &= 0x3f;
            machine.memory[NEW_TSS + at + 1] = 0;
        }
        let source = [TaskSource::Jmp, TaskSource::Call, TaskSource::Iret, TaskSource::Gate][usize::from(how & 3)];
        let error = (how & 0x10 != 0).then_some(4);
        let task = Task { selector, source, next_ip: CODE + 5, external: how & 0x20 != 0, error };
        let mut before = machine.clone();
        let outcome = switch(&mut machine, &task);
        let tr = machine.segments[SegmentName::Tr as usize];
        if outcome.is_err() && tr.selector == OLD && selector & !3 != OLD {
            before.seen.clone_from(&machine.seen);
            assert!(machine == before, "refused by halves: {outcome:?}, {machine:?}");
        } else if outcome.is_ok() {
            assert_eq!(tr.selector & !3, selector & !3);
            assert!(tr.rights.bit(7), "a task that is absent");
        }
    });
}

/// The MOVs that are told apart without the decoder are what the decoder says, and so are their addresses.
#[test]
fn a_mov_without_the_decoder_is_the_decoders() {
    check!().with_type::<(u8, u8, [u8; MAX_LENGTH], [u64; 16])>().for_each(|(form, rex, bytes, gprs)| {
        let mut code = *bytes;
        // One of its forms more often than not, with a prefix or without.
        if form & 3 != 0 {
            let opcode = [0x89, 0x8b, 0xc7][usize::from(form >> 2) % 3];
            let at = usize::from(rex & 1);
            code[0] = 0x40 | rex >> 1 & 0xf;
            code[at] = opcode;
        }
        let Some(mov) = mov::decode(&code) else { return };
        let mut decoder = Decoder::with_ip(64, &code, CODE, DecoderOptions::NONE);
        let told = decoder.decode();
        assert_eq!((told.mnemonic(), told.len()), (Mnemonic::Mov, usize::from(mov.length)), "{code:02x?}");
        assert_eq!(told.memory_size().size(), 4, "{code:02x?}");
        let address = told.virtual_address(u32::from(told.op0_kind() != OpKind::Memory), 0, |register, _, _| {
            // No segment has a base.
            if register.is_segment_register() { Some(0) } else { Some(gprs[register.number()]) }
        });
        assert_eq!(address, Some(mov.address(|gpr| gprs[gpr as usize])), "{code:02x?}");
        match mov.what {
            What::Load(gpr) => {
                assert_eq!((told.op1_kind(), told.op0_register().number()), (OpKind::Memory, gpr as usize))
            }
            What::Store(gpr) => {
                assert_eq!((told.op0_kind(), told.op1_register().number()), (OpKind::Memory, gpr as usize))
            }
            What::Constant(value) => assert_eq!((told.op0_kind(), told.immediate32()), (OpKind::Memory, value)),
        }
    });
}
