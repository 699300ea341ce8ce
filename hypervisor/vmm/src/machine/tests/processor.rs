//! MSRs, CPUID, control registers and XCR0.

use lamina_arch::cr::{Cr0, Cr4, Efer, Rflags};
use lamina_arch::event::{Event, vector};
use lamina_arch::exit::{CrAccess, CrExit, Exit};
use lamina_arch::hypercall as abi;
use lamina_arch::instruction::Instructions;
use lamina_arch::msr;
use lamina_arch::regs::{Gpr, SysReg};
use lamina_arch::segment::{AccessRights, Segment, SegmentName};

use super::*;
use crate::vcpu::Vcpu;

/// What an instruction did: RIP from the entry, and the fault, if it faulted.
type Done = (u64, Option<Event>);

const GP: Done = (0, Some(Event::exception(vector::GP, Some(0))));

/// Does `step` after `before`, with RIP at the entry, and gives what it did and what `look` sees.
fn after<T: Clone + 'static>(
    before: impl FnOnce(&mut FakeVcpu) + 'static,
    step: Step,
    look: impl FnOnce(&mut FakeVcpu) -> T + 'static,
) -> (Done, T, World) {
    let notes = Notes::new();
    let world = run_one([
        Step::act(before),
        step,
        notes.note(|cpu| ((cpu.read(SysReg::Rip) - ENTRY, cpu.delivered.pop()), look(cpu))),
    ]);
    let (done, seen) = notes.taken()[0].clone();
    (done, seen, world)
}

fn read(register: SysReg) -> impl FnOnce(&mut FakeVcpu) -> u64 {
    move |cpu| cpu.read(register)
}

#[test]
fn an_msr_that_is_not_emulated_faults_and_is_counted() {
    for index in [msr::IA32_FEATURE_CONTROL, msr::IA32_VMX_BASIC, 0x1234_5678, msr::X2APIC_FIRST + 0xff] {
        let regs = |cpu: &mut FakeVcpu| (cpu.gprs().get(Gpr::Rax), cpu.gprs().get(Gpr::Rdx));
        let fill = |cpu: &mut FakeVcpu| {
            cpu.gprs().set(Gpr::Rax, 1);
            cpu.gprs().set(Gpr::Rdx, 2);
        };
        let (done, seen, _) = after(fill, rdmsr(index), regs);
        assert_eq!((done, seen), (GP, (1, 2)), "{index:#x}");
        let (done, _, _) = after(|_| {}, wrmsr(index, 0), |_| ());
        assert_eq!(done, GP, "{index:#x}");
    }
    let steps = [rdmsr(0x1234), wrmsr(0x1234, 0), rdmsr(msr::IA32_MTRRCAP)];
    let (mut machine, _) = Bench::new().vm("a", script(steps)).boot::<FakeChipset>();
    assert_eq!(machine.step(), None);
    assert_eq!(alive(&machine, 0).unwrap().refused_msrs.count(), 2);
}

#[test]
fn what_is_executed_again_has_the_resume_flag() {
    let flags = |cpu: &mut FakeVcpu| cpu.read(SysReg::Rflags) & Rflags::RF.bits();
    assert_eq!(after(|_| {}, rdmsr(0x1234), flags).1, Rflags::RF.bits(), "#GP");
    assert_eq!(after(|_| {}, Step::exit(Exit::Undefined), flags).1, Rflags::RF.bits(), "#UD");
    assert_eq!(after(|_| {}, cpuid(0, 0), flags).1, 0);
    // A debug exception leaves it to its handler.
    assert_eq!(after(|_| {}, Step::exit(Exit::Debug { dr6: 1 }), flags).1, 0, "#DB");
}

#[test]
fn speculation_is_the_guests_to_control() {
    let notes = Notes::new();
    let world = run_one([
        wrmsr(msr::IA32_SPEC_CTRL, 0b101),
        wrmsr(msr::IA32_PRED_CMD, 1),
        // No such bits: nothing reaches the processor.
        wrmsr(msr::IA32_SPEC_CTRL, 1 << 63),
        wrmsr(msr::IA32_PRED_CMD, 2),
        rdmsr(msr::IA32_SPEC_CTRL),
        notes.note(|cpu| cpu.gprs().get(Gpr::Rax)),
    ]);
    assert_eq!(world.trace(1).speculation, [Some(0b101), None]);
    assert_eq!(notes.taken(), [0b101]);
}

#[test]
fn msrs_that_are_emulated_keep_what_is_written_and_fill_edx_and_eax() {
    let steps = || wrmsr(msr::IA32_MTRR_PHYSMASK0 + 2, 0x7f_8000_0800);
    let notes = Notes::new();
    run_one([
        steps(),
        rdmsr(msr::IA32_MTRR_PHYSMASK0 + 2).with(|cpu| {
            cpu.gprs().set(Gpr::Rax, u64::MAX);
            cpu.gprs().set(Gpr::Rdx, u64::MAX);
        }),
        notes.note(|cpu| (cpu.gprs().get(Gpr::Rdx), cpu.gprs().get(Gpr::Rax), cpu.read(SysReg::Rip))),
        rdmsr(msr::IA32_APIC_BASE),
        notes.note(|cpu| (cpu.gprs().get(Gpr::Rdx), cpu.gprs().get(Gpr::Rax), cpu.read(SysReg::Rip))),
    ]);
    assert_eq!(notes.taken(), [(0x7f, 0x8000_0800, ENTRY + 4), (0, 0xfee0_0900, ENTRY + 6)]);
}

#[test]
fn efer_is_written_as_the_manual_allows() {
    let efer = Efer::LME | Efer::LMA;
    let (done, seen, world) =
        after(|_| {}, wrmsr(msr::IA32_EFER, (efer | Efer::SCE | Efer::NXE).bits()), read(SysReg::Efer));
    assert_eq!((done, seen), ((2, None), (efer | Efer::SCE | Efer::NXE).bits()));
    assert_eq!(world.trace(1).linear_invalidations, 1, "NX changes what paging allows");
    // Long mode cannot be left so, and there is no bit 12.
    for bad in [0, efer.bits() | 1 << 12] {
        let (done, seen, _) = after(|_| {}, wrmsr(msr::IA32_EFER, bad), read(SysReg::Efer));
        assert_eq!((done, seen), (GP, efer.bits()));
    }
}

#[test]
fn cpuid_answers_in_four_registers_and_clears_their_upper_halves() {
    let look = |cpu: &mut FakeVcpu| [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|r| cpu.gprs().get(r));
    let fill = |cpu: &mut FakeVcpu| cpu.gprs().0 = [u64::MAX; 16];
    let (done, seen, _) = after(fill, cpuid(abi::LEAF_SIGNATURE, 0), look);
    let mut name = Vec::new();
    seen[1..].iter().for_each(|word| name.extend_from_slice(&u32::try_from(*word).unwrap().to_le_bytes()));
    assert_eq!((done, seen[0], name.as_slice()), ((2, None), u64::from(abi::LEAF_TIMING), &b"LaminaLamina"[..]));
    let (_, seen, _) = after(fill, cpuid(abi::LEAF_INTERFACE, 0), look);
    assert_eq!(seen, [1, 1, 0, 0], "version 1, VMCALL");
    let (_, seen, _) = after(fill, cpuid(abi::LEAF_TIMING, 0), look);
    assert_eq!(seen, [HZ / 1000, crate::layout::APIC_TIMER_HZ / 1000, 0, 0]);
}

#[test]
fn cpuid_follows_cr4_and_xcr0() {
    let ecx = |cpu: &mut FakeVcpu| cpu.gprs().get(Gpr::Rcx) >> 27 & 1;
    assert_eq!(after(|_| {}, cpuid(1, 0), ecx).1, 0);
    let on = |cpu: &mut FakeVcpu| cpu.write(SysReg::Cr4, (Cr4::PAE | Cr4::OSXSAVE).bits());
    assert_eq!(after(on, cpuid(1, 0), ecx).1, 1, "OSXSAVE");
    let size = |cpu: &mut FakeVcpu| cpu.gprs().get(Gpr::Rbx);
    for (xcr0, bytes) in [(1, 576), (7, 832), (0xe7, 2688)] {
        let set = move |cpu: &mut FakeVcpu| cpu.write(SysReg::Xcr0, xcr0);
        assert_eq!(after(set, cpuid(0xd, 0), size).1, bytes, "{xcr0:#x}");
    }
}

#[test]
fn cr4_that_may_be_changed_without_an_exit_is_what_cpuid_shows() {
    let world = run_one([]);
    assert_eq!(world.trace(1).hidden, Some(Instructions::empty()), "the model shows all that there is");
    let allowed = world.trace(1).allowed_cr4.unwrap();
    assert!(allowed.contains(Cr4::PAE | Cr4::PGE | Cr4::OSXSAVE | Cr4::SMEP | Cr4::FSGSBASE));
    assert!(!allowed.intersects(Cr4::VMXE | Cr4::SMXE | Cr4::LA57 | Cr4::CET));
}

const LONG: Cr0 = Cr0::PE.union(Cr0::ET).union(Cr0::NE).union(Cr0::PG);

/// A guest in protected mode without paging, as if started by Multiboot.
fn protected(cpu: &mut FakeVcpu) {
    cpu.write(SysReg::Efer, 0);
    cpu.write(SysReg::Cr0, (Cr0::PE | Cr0::ET | Cr0::NE).bits());
    cpu.write(SysReg::Cr4, 0);
    code(cpu, AccessRights::CODE32);
}

fn code(cpu: &mut FakeVcpu, rights: AccessRights) {
    let cs = Segment { rights, ..cpu.segment(SegmentName::Cs) };
    cpu.set_segment(SegmentName::Cs, cs);
}

fn set(registers: &'static [(SysReg, u64)]) -> impl FnOnce(&mut FakeVcpu) {
    move |cpu| {
        protected(cpu);
        registers.iter().for_each(|&(register, value)| cpu.write(register, value));
    }
}

#[test]
fn cr0_refuses_what_the_manual_refuses() {
    // In 64-bit mode: upper half, paging without protection, NW without CD, and to turn paging off.
    let refused = [1 << 32 | LONG.bits(), (LONG - Cr0::PE).bits(), (LONG | Cr0::NW).bits(), (LONG - Cr0::PG).bits()];
    for value in refused {
        let (done, cr0, _) = after(|_| {}, mov_to_cr(0, value), read(SysReg::Cr0));
        assert_eq!((done, cr0), (GP, LONG.bits()), "{value:#x}");
    }
    // Long mode without PAE, and long mode entered from a 64-bit code segment.
    let (done, ..) = after(set(&[(SysReg::Efer, 1 << 8)]), mov_to_cr(0, LONG.bits()), |_| ());
    assert_eq!(done, GP);
    let in64 = |cpu: &mut FakeVcpu| {
        protected(cpu);
        cpu.write(SysReg::Efer, Efer::LME.bits());
        cpu.write(SysReg::Cr4, Cr4::PAE.bits());
        code(cpu, AccessRights::CODE64);
    };
    assert_eq!(after(in64, mov_to_cr(0, LONG.bits()), |_| ()).0, GP);
    // Paging off while PCIDs are on.
    let pcid = |cpu: &mut FakeVcpu| {
        code(cpu, AccessRights::CODE32);
        cpu.write(SysReg::Cr4, (Cr4::PAE | Cr4::PCIDE).bits());
    };
    assert_eq!(after(pcid, mov_to_cr(0, (LONG - Cr0::PG).bits()), |_| ()).0, GP);
}

#[test]
fn paging_enters_and_leaves_long_mode() {
    let efer = |cpu: &mut FakeVcpu| (cpu.read(SysReg::Cr0), cpu.read(SysReg::Efer));
    let enter = set(&[(SysReg::Efer, 1 << 8), (SysReg::Cr4, 1 << 5)]);
    let (done, seen, world) = after(enter, mov_to_cr(0, LONG.bits()), efer);
    assert_eq!((done, seen), ((3, None), (LONG.bits(), (Efer::LME | Efer::LMA).bits())));
    assert_eq!(world.trace(1).linear_invalidations, 1);
    assert_eq!(world.trace(1).pdptes.len(), 0, "long mode has no PDPTE registers");
    let leave = |cpu: &mut FakeVcpu| code(cpu, AccessRights::CODE32);
    let (done, seen, _) = after(leave, mov_to_cr(0, (LONG - Cr0::PG).bits()), efer);
    assert_eq!((done, seen), ((3, None), ((LONG - Cr0::PG).bits(), Efer::LME.bits())));
}

#[test]
fn et_stays_and_reserved_bits_of_cr0_stay_clear() {
    let (_, cr0, _) = after(|_| {}, mov_to_cr(0, ((LONG - Cr0::ET) | Cr0::WP).bits() | 1 << 10), read(SysReg::Cr0));
    assert_eq!(cr0, (LONG | Cr0::WP).bits());
}

#[test]
fn clts_and_lmsw() {
    let ts = |cpu: &mut FakeVcpu| cpu.write(SysReg::Cr0, (LONG | Cr0::TS).bits());
    let clts = Step::exit(Exit::Cr(CrExit { access: Some(CrAccess::Clts) }));
    let (done, cr0, _) = after(ts, clts, read(SysReg::Cr0));
    assert_eq!((done, cr0), ((2, None), LONG.bits()));
    let lmsw = |value| Step::exit(Exit::Cr(CrExit { access: Some(CrAccess::Lmsw { value }) }));
    // It reaches the low four bits, and cannot clear PE.
    let (_, cr0, _) = after(ts, lmsw(0xfff2), read(SysReg::Cr0));
    assert_eq!(cr0, (LONG | Cr0::MP).bits());
    let real = |cpu: &mut FakeVcpu| {
        protected(cpu);
        cpu.write(SysReg::Cr0, Cr0::ET.bits());
    };
    assert_eq!(after(real, lmsw(1), read(SysReg::Cr0)).1, (Cr0::PE | Cr0::ET).bits());
}

#[test]
fn cr4_refuses_what_the_manual_refuses() {
    // VMX is not shown, reserved bits, and long mode without PAE.
    for value in [Cr4::PAE.bits() | Cr4::VMXE.bits(), Cr4::PAE.bits() | 1 << 40, 0, Cr4::PGE.bits()] {
        let (done, cr4, _) = after(|_| {}, mov_to_cr(4, value), read(SysReg::Cr4));
        assert_eq!((done, cr4), (GP, Cr4::PAE.bits()), "{value:#x}");
    }
    let pcid = (Cr4::PAE | Cr4::PCIDE).bits();
    // PCIDs: only in long mode, and with CR3 bits 11:0 clear.
    assert_eq!(after(set(&[]), mov_to_cr(4, pcid), |_| ()).0, GP);
    let dirty = |cpu: &mut FakeVcpu| {
        let cr3 = cpu.read(SysReg::Cr3);
        cpu.write(SysReg::Cr3, cr3 | 8);
    };
    assert_eq!(after(dirty, mov_to_cr(4, pcid), |_| ()).0, GP);
    let (done, cr4, world) = after(|_| {}, mov_to_cr(4, pcid), read(SysReg::Cr4));
    assert_eq!((done, cr4, world.trace(1).linear_invalidations), ((3, None), pcid, 1));
}

/// Four page-directory-pointer-table entries at 0x8020, and paging with PAE about to go on.
fn pae(entries: [u64; 4]) -> impl FnOnce(&mut FakeVcpu) {
    move |cpu| {
        protected(cpu);
        cpu.write(SysReg::Cr3, 0x8020);
        cpu.write(SysReg::Cr4, Cr4::PAE.bits());
        cpu.write_memory(0x8020, &entries.map(u64::to_le_bytes).concat());
    }
}

#[test]
fn pae_paging_loads_its_four_entries() {
    let entries = [0x9001, 0, 0x7f_ffff_f001, 0xe18];
    let (done, cr0, world) = after(pae(entries), mov_to_cr(0, LONG.bits()), read(SysReg::Cr0));
    // The last one is not present, so its bits do not matter.
    assert_eq!((done, cr0), ((3, None), LONG.bits()));
    assert_eq!(world.trace(1).pdptes, [entries]);
    // Loaded again when CR4 changes in a way that paging cares about, and only then.
    let on = move |cpu: &mut FakeVcpu| {
        pae(entries)(cpu);
        cpu.write(SysReg::Cr0, LONG.bits());
    };
    let (_, _, world) = after(on, mov_to_cr(4, (Cr4::PAE | Cr4::PGE).bits()), |_| ());
    assert_eq!(world.trace(1).pdptes, [entries]);
    let (_, _, world) = after(on, mov_to_cr(4, (Cr4::PAE | Cr4::OSFXSR).bits()), |_| ());
    assert_eq!(world.trace(1).pdptes.len(), 0);
}

#[test]
fn a_reserved_bit_in_an_entry_of_pae_paging_faults() {
    // Bits 2:1, 8:5, and everything from the physical address width (39 here) on.
    for bit in [1, 2, 5, 6, 7, 8, 39, 51, 52, 63] {
        let (done, cr0, world) = after(pae([0, 0, 1 << bit | 0x9001, 0]), mov_to_cr(0, LONG.bits()), read(SysReg::Cr0));
        assert_eq!((done, cr0), (GP, (LONG - Cr0::PG).bits()), "bit {bit}");
        assert_eq!(world.trace(1).pdptes.len(), 0);
    }
    // Where there is no memory, all bits read as ones.
    let nowhere = |cpu: &mut FakeVcpu| {
        pae([0; 4])(cpu);
        cpu.write(SysReg::Cr3, 0xc000_0000);
    };
    assert_eq!(after(nowhere, mov_to_cr(0, LONG.bits()), |_| ()).0, GP);
}

#[test]
fn cr3_and_cr8_move_both_ways_and_rsp_is_a_register_too() {
    let access = |access| Step::exit(Exit::Cr(CrExit { access: Some(access) }));
    let (done, cr3, _) = after(|_| {}, mov_to_cr(3, 0x8000), read(SysReg::Cr3));
    assert_eq!((done, cr3), ((3, None), 0x8000));
    let from_rsp = access(CrAccess::Write { cr: 3, source: Gpr::Rsp });
    assert_eq!(after(|cpu| cpu.write(SysReg::Rsp, 0x7000), from_rsp, read(SysReg::Cr3)).1, 0x7000);
    let to_rsp = access(CrAccess::Read { cr: 3, target: Gpr::Rsp });
    assert_eq!(after(|cpu| cpu.write(SysReg::Cr3, 0x6000), to_rsp, read(SysReg::Rsp)).1, 0x6000);
    let notes = Notes::new();
    run_one([
        mov_to_cr(8, 9),
        access(CrAccess::Read { cr: 8, target: Gpr::R15 }),
        notes.note(|cpu| cpu.gprs().get(Gpr::R15)),
    ]);
    assert_eq!(notes.taken(), [9]);
    assert_eq!(after(|_| {}, mov_to_cr(8, 16), |_| ()).0, GP);
}

#[test]
fn cr3_refuses_its_reserved_bits_in_long_mode() {
    for value in [0x8000 | 1 << 52, 0x8000 | 1 << 62, 0x8000 | 1 << 63] {
        let (done, cr3, _) = after(|cpu| cpu.write(SysReg::Cr3, 0x6000), mov_to_cr(3, value), read(SysReg::Cr3));
        assert_eq!((done, cr3), (GP, 0x6000), "{value:#x}");
    }
    // With process-context identifiers bit 63 is an instruction to the processor; outside long mode there are 32 bits.
    let identifiers = |cpu: &mut FakeVcpu| {
        let cr4 = cpu.read(SysReg::Cr4);
        cpu.write(SysReg::Cr4, cr4 | Cr4::PCIDE.bits());
    };
    let (done, cr3, _) = after(identifiers, mov_to_cr(3, 0x8005 | 1 << 63), read(SysReg::Cr3));
    assert_eq!((done, cr3), ((3, None), 0x8005));
    let (done, cr3, _) = after(protected, mov_to_cr(3, 0x8000 | 1 << 62), read(SysReg::Cr3));
    assert_eq!((done, cr3), ((3, None), 0x8000));
}

#[test]
fn xsetbv_enables_what_builds_on_what_is_enabled() {
    let xsetbv = |register: u64, value: u64| {
        Step::exit(Exit::Xsetbv).length(3).with(move |cpu| {
            cpu.gprs().set(Gpr::Rcx, register);
            cpu.gprs().set_edx_eax(value);
        })
    };
    for good in [1, 3, 7, 0xe7, 0x203] {
        let (done, xcr0, _) = after(|_| {}, xsetbv(0, good), read(SysReg::Xcr0));
        assert_eq!((done, xcr0), ((3, None), good));
    }
    // No x87, AVX without SSE, a part of AVX-512, MPX, processor trace, what does not exist, another register.
    for (register, bad) in [(0, 0), (0, 2), (0, 5), (0, 0x67), (0, 0x1f), (0, 0x103), (0, 1 << 63 | 1), (1, 1)] {
        let before = |cpu: &mut FakeVcpu| cpu.write(SysReg::Xcr0, 1);
        let (done, xcr0, _) = after(before, xsetbv(register, bad), read(SysReg::Xcr0));
        assert_eq!((done, xcr0), (GP, 1), "{bad:#x}");
    }
    // At privilege level 3.
    let user = |cpu: &mut FakeVcpu| {
        cpu.write(SysReg::Xcr0, 1);
        let ss = Segment { selector: 3, base: 0, limit: u32::MAX, rights: AccessRights(0xc0f3) };
        cpu.set_segment(SegmentName::Ss, ss);
    };
    let (done, xcr0, _) = after(user, xsetbv(0, 3), read(SysReg::Xcr0));
    assert_eq!((done, xcr0), (GP, 1));
}

#[test]
fn a_debug_exception_tells_of_itself_in_dr6() {
    const BS: u64 = 1 << 14;
    let before = |cpu: &mut FakeVcpu| {
        cpu.write(SysReg::Dr6, 0xffff_0ff1);
        cpu.write(SysReg::Dr7, 1 << 13 | 0x400);
    };
    let look = |cpu: &mut FakeVcpu| (cpu.read(SysReg::Dr6), cpu.read(SysReg::Dr7));
    let (done, seen, _) = after(before, Step::exit(Exit::Debug { dr6: BS | 2 }), look);
    assert_eq!(done, (0, Some(Event::exception(vector::DB, None))));
    assert_eq!(seen, (0xffff_0ff2 | BS, 0x400), "the old breakpoint is forgotten, and general detect is off");
}
