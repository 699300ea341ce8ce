//! Memory-mapped registers: instructions as they stand in guest memory, decoded and finished in software.

use lamina_arch::addr::{Gla, Gpa};
use lamina_arch::cr::{Cr0, Rflags};
use lamina_arch::event::{Event, vector};
use lamina_arch::exit::{Exit, NestedFault};
use lamina_arch::regs::{Gpr, SysReg};
use lamina_arch::segment::{AccessRights, Segment, SegmentName};
use proptest::prelude::*;

use super::*;
use crate::chipset::Chipset;
use crate::layout::SHUTDOWN_PORT;
use crate::vcpu::Vcpu;

/// What the register holds at first.
const FIRST: u64 = 0xf7f6_f5f4_f3f2_f1f0;
const RAX: u64 = 0x1122_3344_5566_7788;

/// A guest after an instruction.
#[derive(Clone, Debug, PartialEq)]
struct After {
    gprs: [u64; 16],
    rsp: u64,
    /// From the entry.
    rip: u64,
    flags: Rflags,
    register: u64,
    /// Reads and writes of the register.
    accesses: (u32, u32),
    unclaimed: u64,
}

impl After {
    fn get(&self, register: Gpr) -> u64 {
        self.gprs[register as usize]
    }
}

/// Runs `code`, which exits on each of `gpas` in turn, after `before`; `None` where the VM was stopped.
fn emulate(code: &[u8], gpas: &[u64], before: impl FnOnce(&mut FakeVcpu) + 'static) -> Option<After> {
    let touches = gpas.iter().map(|&gpa| touch(Gpa(gpa), false)).collect();
    emulate_exits(code, touches, before)
}

/// As [`emulate`], with the exits as they are.
fn emulate_exits(code: &[u8], exits: Vec<Step>, before: impl FnOnce(&mut FakeVcpu) + 'static) -> Option<After> {
    let set = Step::act(|cpu| {
        cpu.gprs().0 = core::array::from_fn(|i| 0xee00_0000_0000_0000 | i as u64);
        cpu.gprs().set(Gpr::Rax, RAX);
        cpu.gprs().set(Gpr::Rbx, REGISTER.0);
        cpu.gprs().set(Gpr::Rdi, REGISTER.0);
        before(cpu);
    });
    let notes = Notes::new();
    let look = notes.note(|cpu| {
        let (rsp, rip, flags) = (cpu.read(SysReg::Rsp), cpu.read(SysReg::Rip), cpu.read(SysReg::Rflags));
        (cpu.gprs().0, rsp, rip, flags)
    });
    let steps: Vec<Step> = [set].into_iter().chain(exits).chain([look]).collect();
    let (mut machine, _) = Bench::new().vm("a", script(steps)).code(code).boot::<FakeChipset>();
    assert_eq!(machine.step(), None);
    let vm = alive(&machine, 0)?;
    let chipset = &vm.chipset;
    let (gprs, rsp, rip, flags) = notes.taken()[0];
    Some(After {
        gprs,
        rsp,
        rip: rip.wrapping_sub(ENTRY),
        flags: Rflags::from_bits_retain(flags),
        register: u64::from_le_bytes(chipset.register[..8].try_into().unwrap()),
        accesses: chipset.register_accesses,
        unclaimed: chipset.unclaimed(),
    })
}

fn one(code: &[u8]) -> After {
    let after = emulate(code, &[REGISTER.0], |_| {}).expect("it is emulated");
    assert_eq!(after.rip, code.len() as u64, "{code:02x?}");
    after
}

#[test]
fn stores_of_each_width_change_no_more_than_that() {
    let cases: [(&[u8], u64); 12] = [
        (&[0x88, 0x03], 0xf7f6_f5f4_f3f2_f188),                         // mov [rbx], al
        (&[0x88, 0x23], 0xf7f6_f5f4_f3f2_f177),                         // mov [rbx], ah
        (&[0x66, 0x89, 0x03], 0xf7f6_f5f4_f3f2_7788),                   // mov [rbx], ax
        (&[0x89, 0x03], 0xf7f6_f5f4_5566_7788),                         // mov [rbx], eax
        (&[0x48, 0x89, 0x03], RAX),                                     // mov [rbx], rax
        (&[0x44, 0x89, 0x0b], 0xf7f6_f5f4_0000_0009),                   // mov [rbx], r9d
        (&[0x40, 0x88, 0x33], 0xf7f6_f5f4_f3f2_f106),                   // mov [rbx], sil
        (&[0xc6, 0x03, 0x7f], 0xf7f6_f5f4_f3f2_f17f),                   // mov byte [rbx], 0x7f
        (&[0x66, 0xc7, 0x03, 0x34, 0x12], 0xf7f6_f5f4_f3f2_1234),       // mov word [rbx], 0x1234
        (&[0xc7, 0x03, 0x78, 0x56, 0x34, 0x12], 0xf7f6_f5f4_1234_5678), // mov dword [rbx], 0x12345678
        (&[0x48, 0xc7, 0x03, 0, 0, 0, 0x80], 0xffff_ffff_8000_0000),    // mov qword [rbx], -0x80000000
        (&[0x48, 0xa3, 0, 0, 0, 0xd0, 0, 0, 0, 0], RAX),                // mov [0xd0000000], rax
    ];
    for (code, expected) in cases {
        let after = one(code);
        assert_eq!(after.register, expected, "{code:02x?}");
        assert_eq!(after.accesses, (0, 1), "{code:02x?}: a write reads nothing");
        assert_eq!(after.get(Gpr::Rax), RAX);
    }
}

#[test]
fn loads_of_each_width_keep_or_clear_the_rest_of_the_register() {
    let upper = RAX & !0xffff;
    let cases: [(&[u8], Gpr, u64); 18] = [
        (&[0x8a, 0x03], Gpr::Rax, RAX & !0xff | 0xf0),          // mov al, [rbx]
        (&[0x8a, 0x23], Gpr::Rax, upper | 0xf088),              // mov ah, [rbx]
        (&[0x8a, 0x2b], Gpr::Rcx, 0xee00_0000_0000_f001),       // mov ch, [rbx]
        (&[0x66, 0x8b, 0x03], Gpr::Rax, upper | 0xf1f0),        // mov ax, [rbx]
        (&[0x8b, 0x03], Gpr::Rax, 0xf3f2_f1f0),                 // mov eax, [rbx]
        (&[0x48, 0x8b, 0x03], Gpr::Rax, FIRST),                 // mov rax, [rbx]
        (&[0x44, 0x8b, 0x3b], Gpr::R15, 0xf3f2_f1f0),           // mov r15d, [rbx]
        (&[0x40, 0x8a, 0x33], Gpr::Rsi, 0xee00_0000_0000_00f0), // mov sil, [rbx]
        (&[0xa0, 0, 0, 0, 0xd0, 0, 0, 0, 0], Gpr::Rax, RAX & !0xff | 0xf0), // mov al, [0xd0000000]
        (&[0x0f, 0xb6, 0x03], Gpr::Rax, 0xf0),                  // movzx eax, byte [rbx]
        (&[0x66, 0x0f, 0xb6, 0x03], Gpr::Rax, upper | 0x00f0),  // movzx ax, byte [rbx]
        (&[0x48, 0x0f, 0xb6, 0x03], Gpr::Rax, 0xf0),            // movzx rax, byte [rbx]
        (&[0x0f, 0xb7, 0x03], Gpr::Rax, 0xf1f0),                // movzx eax, word [rbx]
        (&[0x0f, 0xbe, 0x03], Gpr::Rax, 0xffff_fff0),           // movsx eax, byte [rbx]
        (&[0x66, 0x0f, 0xbe, 0x03], Gpr::Rax, upper | 0xfff0),  // movsx ax, byte [rbx]
        (&[0x48, 0x0f, 0xbf, 0x03], Gpr::Rax, 0xffff_ffff_ffff_f1f0), // movsx rax, word [rbx]
        (&[0x48, 0x63, 0x03], Gpr::Rax, 0xffff_ffff_f3f2_f1f0), // movsxd rax, dword [rbx]
        (&[0x66, 0x0f, 0xbe, 0x2b], Gpr::Rbp, 0xee00_0000_0000_fff0), // movsx bp, byte [rbx]
    ];
    for (code, register, expected) in cases {
        let after = one(code);
        assert_eq!(after.get(register), expected, "{code:02x?}");
        assert_eq!((after.accesses, after.register), ((1, 0), FIRST), "{code:02x?}");
    }
    // mov rsp, [rbx]: RSP is not among the others.
    assert_eq!(one(&[0x48, 0x8b, 0x23]).rsp, FIRST);
}

#[test]
fn xchg_reads_once_and_writes_once() {
    let cases: [(&[u8], u64, u64); 4] = [
        (&[0x86, 0x03], RAX & !0xff | 0xf0, 0xf7f6_f5f4_f3f2_f188), // xchg [rbx], al
        (&[0x86, 0x23], RAX & !0xff00 | 0xf000, 0xf7f6_f5f4_f3f2_f177), // xchg [rbx], ah
        (&[0x87, 0x03], 0xf3f2_f1f0, 0xf7f6_f5f4_5566_7788),        // xchg [rbx], eax
        (&[0x48, 0x87, 0x03], FIRST, RAX),                          // xchg [rbx], rax
    ];
    for (code, rax, register) in cases {
        let after = one(code);
        assert_eq!((after.get(Gpr::Rax), after.register, after.accesses), (rax, register, (1, 1)), "{code:02x?}");
        assert_eq!(after.flags, Rflags::FIXED, "no flag changes");
    }
}

#[test]
fn arithmetic_goes_both_ways() {
    let cases: [(&[u8], u64, u64); 9] = [
        (&[0x21, 0x03], RAX, 0xf7f6_f5f4_5162_7180),         // and [rbx], eax
        (&[0x23, 0x03], 0x5162_7180, FIRST),                 // and eax, [rbx]
        (&[0x80, 0x0b, 0x0f], RAX, 0xf7f6_f5f4_f3f2_f1ff),   // or byte [rbx], 0x0f
        (&[0x83, 0x0b, 0x80], RAX, 0xf7f6_f5f4_ffff_fff0),   // or dword [rbx], -0x80
        (&[0xf0, 0x09, 0x03], RAX, 0xf7f6_f5f4_f7f6_f7f8),   // lock or [rbx], eax
        (&[0x30, 0x23], RAX, 0xf7f6_f5f4_f3f2_f187),         // xor [rbx], ah
        (&[0x48, 0x01, 0x03], RAX, RAX.wrapping_add(FIRST)), // add [rbx], rax
        (&[0x2b, 0x03], 0x5566_7788u32.wrapping_sub(0xf3f2_f1f0) as u64, FIRST), // sub eax, [rbx]
        (&[0x66, 0x29, 0x03], RAX, 0xf7f6_f5f4_f3f2_7a68),   // sub [rbx], ax
    ];
    for (code, rax, register) in cases {
        let after = one(code);
        assert_eq!((after.get(Gpr::Rax), after.register), (rax, register), "{code:02x?}");
    }
}

#[test]
fn comparisons_write_nothing_but_flags() {
    let cases: [(&[u8], Rflags); 5] = [
        (&[0xf7, 0x03, 0, 0, 0, 1], Rflags::PF), // test dword [rbx], 0x01000000
        (&[0xf7, 0x03, 0, 0, 1, 0], Rflags::ZF.union(Rflags::PF)), // test dword [rbx], 0x00010000
        (&[0x84, 0x03], Rflags::SF),             // test [rbx], al: 0x80
        (&[0x80, 0x3b, 0xf0], Rflags::ZF.union(Rflags::PF)), // cmp byte [rbx], 0xf0
        (&[0x3a, 0x03], Rflags::CF.union(Rflags::SF)), // cmp al, [rbx]: 0x88 - 0xf0 is 0x98, with a borrow
    ];
    for (code, flags) in cases {
        let after = one(code);
        assert_eq!(after.flags - Rflags::FIXED, flags, "{code:02x?}");
        assert_eq!((after.register, after.get(Gpr::Rax), after.accesses), (FIRST, RAX, (1, 0)), "{code:02x?}");
    }
}

#[test]
fn stos_writes_one_element_and_moves_rdi() {
    let cases: [(&[u8], u64, u64); 4] = [
        (&[0xaa], 1, 0xf7f6_f5f4_f3f2_f188),
        (&[0x66, 0xab], 2, 0xf7f6_f5f4_f3f2_7788),
        (&[0xab], 4, 0xf7f6_f5f4_5566_7788),
        (&[0x48, 0xab], 8, RAX),
    ];
    for (code, bytes, register) in cases {
        let after = one(code);
        assert_eq!((after.register, after.get(Gpr::Rdi)), (register, REGISTER.0 + bytes));
        let back = |cpu: &mut FakeVcpu| cpu.write(SysReg::Rflags, (Rflags::FIXED | Rflags::DF).bits());
        let after = emulate(code, &[REGISTER.0], back).unwrap();
        assert_eq!((after.register, after.get(Gpr::Rdi)), (register, REGISTER.0 - bytes));
    }
    // With 32-bit addresses EDI moves, and the upper half is cleared.
    let high = |cpu: &mut FakeVcpu| cpu.gprs().set(Gpr::Rdi, 7 << 32 | REGISTER.0);
    let after = emulate(&[0x67, 0xaa], &[REGISTER.0], high).unwrap();
    assert_eq!(after.get(Gpr::Rdi), REGISTER.0 + 1);
}

#[test]
fn rep_stos_is_done_as_far_as_interrupts_allow() {
    let count = |count| move |cpu: &mut FakeVcpu| cpu.gprs().set(Gpr::Rcx, count);
    let at = REGISTER.0;
    let three = emulate(&[0xf3, 0x66, 0xab], &[at], count(3)).unwrap();
    assert_eq!((three.rip, three.get(Gpr::Rcx), three.get(Gpr::Rdi)), (3, 0, at + 6));
    assert_eq!((three.register, three.accesses), (0xf7f6_7788_7788_7788, (0, 3)));
    let part = emulate(&[0xf3, 0xab], &[at], count(100)).unwrap();
    assert_eq!((part.rip, part.get(Gpr::Rcx), part.get(Gpr::Rdi)), (0, 36, at + 256), "some are left");
    let whole = emulate(&[0xf3, 0xab], &[at, at + 256], count(100)).unwrap();
    assert_eq!((whole.rip, whole.get(Gpr::Rcx), whole.get(Gpr::Rdi)), (2, 0, at + 400));
    let none = emulate(&[0xf3, 0xaa], &[at], count(0)).unwrap();
    assert_eq!((none.rip, none.accesses, none.get(Gpr::Rdi)), (2, (0, 0), at));
}

#[test]
fn where_no_device_is_reads_give_ones_and_writes_go_nowhere() {
    for gpa in [0xc000_0000, 0xd000_0010, 0xffff_fff0, 0xb_8000, 0xa_0000] {
        let there = move |cpu: &mut FakeVcpu| cpu.gprs().set(Gpr::Rbx, gpa);
        let read = emulate(&[0x8b, 0x03], &[gpa], there).unwrap();
        assert_eq!((read.get(Gpr::Rax), read.unclaimed), (0xffff_ffff, 1), "{gpa:#x}");
        let write = emulate(&[0x89, 0x03], &[gpa], there).unwrap();
        assert_eq!((write.register, write.unclaimed), (FIRST, 1), "{gpa:#x}");
    }
}

#[test]
fn what_is_not_emulated_ends_the_vm() {
    let cases: [&[u8]; 4] = [
        &[0x0f, 0x58, 0x03], // addps xmm0, [rbx]
        &[0xd8, 0x03],       // fadd dword [rbx]
        &[0x0f, 0x01, 0x3b], // invlpg [rbx]
        &[0x06],             // no instruction in 64-bit mode
    ];
    for code in cases {
        assert!(emulate(code, &[REGISTER.0], |_| {}).is_none(), "{code:02x?}");
    }
}

#[test]
fn what_has_changed_since_the_exit_is_done_as_it_stands_there() {
    // mov ebx, eax: touches no memory at all.
    assert_eq!(one(&[0x89, 0xc3]).get(Gpr::Rbx), RAX & 0xffff_ffff);
    // A port that no exit was for is left alone.
    let port = |cpu: &mut FakeVcpu| cpu.gprs().set(Gpr::Rdx, SHUTDOWN_PORT.into());
    let after = emulate(&[0x6e], &[REGISTER.0], port).expect("it is not powered off");
    assert_eq!(after.rip, 0);
}

#[test]
fn both_operands_are_found_by_the_guests_own_addresses() {
    // movsd from memory to the register, and back.
    let set = |cpu: &mut FakeVcpu| {
        cpu.write_memory(0x4_8000, b"abcd");
        cpu.gprs().set(Gpr::Rsi, 0x4_8000);
    };
    let after = emulate(&[0xa5], &[REGISTER.0], set).unwrap();
    assert_eq!((after.register, after.accesses), (0xf7f6_f5f4_6463_6261, (0, 1)));
    let back = |cpu: &mut FakeVcpu| {
        cpu.gprs().set(Gpr::Rsi, REGISTER.0);
        cpu.gprs().set(Gpr::Rdi, 0x4_8000);
    };
    let after = emulate(&[0xa5, 0x8b, 0x03], &[REGISTER.0], back).unwrap();
    assert_eq!((after.accesses, after.rip), ((1, 0), 1));
    // push qword [rbx], onto a stack in memory; jmp qword [rbx].
    let stack = |cpu: &mut FakeVcpu| cpu.write(SysReg::Rsp, 0x4_8000);
    let after = emulate(&[0xff, 0x33], &[REGISTER.0], stack).unwrap();
    assert_eq!((after.rsp, after.accesses), (0x4_7ff8, (1, 0)));
    // An access that runs out of the device, beyond what a PC has a bus for, is none of the guest's fault.
    let beyond = |cpu: &mut FakeVcpu| cpu.gprs().set(Gpr::Rdi, 64 * MIB);
    assert!(emulate(&[0xaa], &[REGISTER.0], beyond).is_none());
}

#[test]
fn a_jump_through_a_register_sets_rip() {
    let aim = Step::act(|cpu| {
        cpu.gprs().set(Gpr::Rax, 0x1234_5678);
        cpu.gprs().set(Gpr::Rbx, REGISTER.0);
        cpu.shadow = true;
    });
    let notes = Notes::new();
    let jumped = notes.note(|cpu| (cpu.read(SysReg::Rip), cpu.shadow));
    // mov [rbx], rax; jmp [rbx].
    run_with(&[0x48, 0x89, 0x03, 0xff, 0x23], [aim, touch(REGISTER, true), touch(REGISTER, false), jumped]);
    assert_eq!(notes.taken(), [(0x1234_5678, false)]);
}

#[test]
fn what_the_processor_translated_is_not_translated_again() {
    // The guest's tables have changed since; the write goes where the processor was going.
    let exit = |linear| {
        let fault = NestedFault {
            gpa: REGISTER + 4,
            read: false,
            write: true,
            fetch: false,
            table_walk: false,
            linear: Some(Gla(linear)),
        };
        Step::exit(Exit::NestedFault(fault))
    };
    for (linear, register) in [(0x7004, 0xdead_beef), (0x7008, 0xf7f6_f5f4), (0x8004, 0xf7f6_f5f4)] {
        let set = Step::act(|cpu| {
            cpu.gprs().set(Gpr::Rax, 0xdead_beef);
            cpu.gprs().set(Gpr::Rbx, 0x7004);
        });
        let (mut machine, _) =
            Bench::new().vm("a", script([set, exit(linear)])).code(&[0x89, 0x03]).boot::<FakeChipset>();
        assert_eq!(machine.step(), None);
        let found = alive(&machine, 0).unwrap().chipset.register;
        assert_eq!(u32::from_le_bytes(found[4..8].try_into().unwrap()), register, "{linear:#x}");
    }
}

/// Page tables that map linear page 1 to 0x30000 and page 2 to 0x50000, if `second`.
fn paging(cpu: &mut FakeVcpu, second: bool) {
    for (table, next) in [(0x2_0000, 0x2_1000), (0x2_1000, 0x2_2000), (0x2_2000, 0x2_3000u64)] {
        cpu.write_memory(table, &(next | 3).to_le_bytes());
    }
    // The device is in a page of 1 GiB.
    cpu.write_memory(0x2_1018, &0xc000_0083u64.to_le_bytes());
    cpu.write_memory(0x2_3008, &0x3_0003u64.to_le_bytes());
    cpu.write_memory(0x2_3010, &(0x5_0002u64 | u64::from(second)).to_le_bytes());
    cpu.write(SysReg::Cr3, 0x2_0000);
}

#[test]
fn an_instruction_is_fetched_through_the_guests_own_paging_and_across_pages() {
    // mov dword [rbx], 0x12345678, with its last four bytes on the next page.
    let place = |second: bool| {
        move |cpu: &mut FakeVcpu| {
            paging(cpu, second);
            cpu.write_memory(0x3_0ffe, &[0xc7, 0x03]);
            cpu.write_memory(0x5_0000, &[0x78, 0x56, 0x34, 0x12]);
            cpu.write(SysReg::Rip, 0x1ffe);
        }
    };
    let after = emulate(&[0xf4], &[REGISTER.0], place(true)).unwrap();
    assert_eq!(after.register & 0xffff_ffff, 0x1234_5678);
    assert_eq!(after.rip.wrapping_add(ENTRY), 0x2004);
    // The second page is not there: a page fault of the guest's.
    let notes = Notes::new();
    let look = notes.note(|cpu| (cpu.read(SysReg::Rip), cpu.read(SysReg::Cr2), cpu.delivered.clone()));
    run_one([Step::act(place(false)), touch(REGISTER, true), look]);
    assert_eq!(notes.taken(), [(0x1ffe, 0x2000, vec![Event::exception(vector::PF, Some(0))])]);
}

#[test]
fn pages_that_are_used_are_marked() {
    // movsb from the device to the page at 0x30000.
    let set = Step::act(|cpu| {
        paging(cpu, true);
        cpu.write_memory(0x3_0ff0, &[0xa4]);
        cpu.write(SysReg::Rip, 0x1ff0);
        cpu.gprs().set(Gpr::Rsi, REGISTER.0);
        cpu.gprs().set(Gpr::Rdi, 0x2000);
    });
    let notes = Notes::new();
    let entry = |cpu: &mut FakeVcpu, at| u64::from_le_bytes(cpu.read_memory(at, 8).try_into().unwrap());
    let look = notes.note(move |cpu| {
        let entries = [0x2_0000, 0x2_1000, 0x2_1018, 0x2_3008, 0x2_3010].map(|at| entry(cpu, at));
        (cpu.read_memory(0x5_0000, 1), entries)
    });
    run_one([set, touch(REGISTER, false), look]);
    let (moved, entries) = notes.taken()[0].clone();
    assert_eq!(moved, [0xf0]);
    assert_eq!(entries, [0x2_1023, 0x2_2023, 0xc000_00a3, 0x3_0023, 0x5_0063]);
}

#[test]
fn code_of_32_and_of_16_bits() {
    let segment = |cpu: &mut FakeVcpu, base: u64, rights: AccessRights| {
        cpu.write(SysReg::Efer, 0);
        cpu.write(SysReg::Cr0, (Cr0::PE | Cr0::ET).bits());
        cpu.set_segment(SegmentName::Cs, Segment { selector: 8, base, limit: u32::MAX, rights });
        // SS:BP+DI is the device, where BP is 5 and DI is 0.
        let stack = cpu.segment(SegmentName::Ss);
        cpu.set_segment(SegmentName::Ss, Segment { base: REGISTER.0 - 5, ..stack });
        cpu.write(SysReg::Rip, ENTRY - base);
    };
    // 89 03 is mov [ebx], eax, and mov [bp+di], ax in 16 bits.
    let code32 = move |cpu: &mut FakeVcpu| segment(cpu, 0, AccessRights::CODE32);
    let after = emulate(&[0x89, 0x03], &[REGISTER.0], code32).unwrap();
    assert_eq!((after.register, after.rip), (0xf7f6_f5f4_5566_7788, 2));
    let code16 = move |cpu: &mut FakeVcpu| segment(cpu, ENTRY - 0x10, AccessRights(0x9b));
    let after = emulate(&[0x89, 0x03], &[REGISTER.0], code16).unwrap();
    assert_eq!((after.register, after.rip.wrapping_add(ENTRY)), (0xf7f6_f5f4_f3f2_7788, 0x12));
    // inc eax / REX: 40 88 23 is two instructions in 32 bits.
    let after = emulate(&[0x40, 0x88, 0x23], &[REGISTER.0], code32).unwrap();
    assert_eq!((after.rip, after.get(Gpr::Rax), after.register), (1, 0x5566_7789, FIRST));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever stands there: it is emulated, or the VM is stopped, and nothing panics.
    #[test]
    fn any_bytes_are_emulated_or_refused(code in proptest::collection::vec(any::<u8>(), 1..16), offset in 0u64..32) {
        if let Some(after) = emulate(&code, &[REGISTER.0 + offset], |_| {}) {
            // A string instruction makes so many iterations at most, with two accesses each.
            prop_assert!(after.accesses.0 + after.accesses.1 <= 128);
        }
    }
}

/// An access to the first bytes of the register, of which the processor tells the linear address.
fn told(offset: u64, write: bool) -> Step {
    let (gpa, linear) = (REGISTER + offset, Some(Gla(REGISTER.0 + offset)));
    let fault = NestedFault { gpa, read: !write, write, fetch: false, table_walk: false, linear };
    Step::exit(Exit::NestedFault(fault))
}

proptest! {
    /// The processor tells where it was going, and simple MOVs are done without the general decoder; or it does not, and
    /// they are done with it.
    #[test]
    fn a_simple_mov_does_what_the_general_decoder_does(
        rex in prop_oneof![Just(None), (0x40u8..0x50).prop_map(Some)],
        opcode in prop_oneof![Just(0x89u8), Just(0x8b), Just(0xc7), Just(0x8a), Just(0x01)],
        modrm in any::<u8>(),
        sib in any::<u8>(),
        rest in any::<[u8; 8]>(),
        write in any::<bool>(),
        offset in 0u64..8,
        aim in any::<bool>(),
    ) {
        let mut code: Vec<u8> = rex.into_iter().chain([opcode, modrm]).collect();
        if modrm & 7 == 4 {
            code.push(sib);
        }
        code.extend(rest);
        let displacement = match (modrm >> 6, sib & 7) {
            (0, 5) if modrm & 7 == 4 => i64::from(i32::from_le_bytes(rest[..4].try_into().unwrap())),
            (1, _) => i64::from(rest[0].cast_signed()),
            (2, _) => i64::from(i32::from_le_bytes(rest[..4].try_into().unwrap())),
            _ => 0,
        };
        let rex = rex.unwrap_or(0);
        // The base takes the access where it is to go, with an index of its own; without a base the index does.
        let indexed = modrm & 7 == 4;
        let base = Gpr::from_encoding(if indexed { sib & 7 } else { modrm & 7 } | (rex & 1) << 3);
        let index = Gpr::from_encoding(sib >> 3 & 7 | (rex >> 1 & 1) << 3);
        let set = move |cpu: &mut FakeVcpu| {
            let goal = (REGISTER.0 + offset).wrapping_sub(displacement.cast_unsigned());
            let mut put = |register, value| match register {
                Gpr::Rsp => cpu.write(SysReg::Rsp, value),
                _ => cpu.gprs().set(register, value),
            };
            if aim {
                let scaled = indexed && index != Gpr::Rsp && index != base;
                if scaled {
                    put(index, 0x10);
                }
                put(base, goal.wrapping_sub(if scaled { 0x10 << (sib >> 6) } else { 0 }));
            }
        };
        let whole = || vec![told(offset, write)];
        let bare = || vec![touch(REGISTER + offset, write)];
        prop_assert_eq!(emulate_exits(&code, whole(), set), emulate_exits(&code, bare(), set), "{:02x?}", code);
    }
}

#[test]
fn a_simple_mov_is_fetched_and_found_each_time() {
    let eax = |cpu: &mut FakeVcpu| cpu.gprs().set(Gpr::Rax, 0x0102_0304);
    let go = |code: &[u8], write| emulate_exits(code, vec![told(0, write)], eax).unwrap();
    let stored = go(&[0x89, 0x03], true);
    assert_eq!((stored.register, stored.accesses, stored.rip), (0xf7f6_f5f4_0102_0304, (0, 1), 2));
    let constant = go(&[0xc7, 0x43, 0, 5, 0, 0, 0], true);
    assert_eq!((constant.register, constant.accesses, constant.rip), (0xf7f6_f5f4_0000_0005, (0, 1), 7));
    let loaded = go(&[0x44, 0x8b, 0x03], false);
    assert_eq!((loaded.get(Gpr::R8), loaded.accesses, loaded.rip), (0xf3f2_f1f0, (1, 0), 3));
}
