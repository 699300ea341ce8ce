//! How VMs end: what the console says, what the machine's status is, and that nobody else notices.

use lamina_arch::addr::Gpa;
use lamina_arch::cr::Rflags;
use lamina_arch::event::{Event, vector};
use lamina_arch::exit::{Exit, NestedFault, Width};
use lamina_arch::hypercall as abi;
use lamina_arch::regs::{Gpr, SysReg};

use super::*;
use crate::config::Blob;
use crate::layout;
use crate::vcpu::{EntryFailure, Vcpu};

#[test]
fn a_guest_prints_and_powers_off() {
    let world = run_one(print("hello\nworld\n"));
    assert_eq!(
        world.text(),
        "[a] hello\r\n[a] world\r\n[lamina] a stopped: powered off (status 0)\r\n\
         [lamina] all virtual machines have stopped\r\n[lamina] exit 0\r\n"
    );
}

#[test]
fn a_line_without_an_end_is_shown_at_the_vms_end() {
    let world = run_one(print("oops"));
    assert_eq!(world.lines()[0], "[a] oops");
}

#[test]
fn a_partial_line_is_shown_after_fifty_milliseconds() {
    let steps = print("login: ").into_iter().chain([Step::compute(HZ)]).collect::<Vec<_>>();
    let (mut machine, world) = Bench::new().vm("a", script(steps)).boot::<FakeChipset>();
    step_until(&mut machine, |_| world.text().contains("login"));
    let silence = HZ / 20;
    let late = world.now().0 - silence;
    assert!(late < 5_000, "{late} ticks late");
}

#[test]
fn a_status_other_than_0_is_the_machines_failure() {
    let (status, world) =
        Bench::new().vm("a", script([outb(layout::STATUS_PORT, 3), power_off()])).run::<FakeChipset>();
    assert_eq!(status, 1);
    assert_eq!(world.lines()[0], "[lamina] a stopped: powered off (status 3)");
    assert_eq!(world.lines().last().unwrap(), "[lamina] exit 1");
}

#[test]
fn the_guest_goes_on_after_it_recorded_a_status_and_the_last_one_counts() {
    let steps = [outp(layout::STATUS_PORT, Width::B4, 0xdead_beef), outb(layout::STATUS_PORT, 0)];
    let world = run_one(steps.into_iter().chain(print("on\n")));
    assert_eq!(world.lines()[0], "[a] on");
}

#[test]
fn exit_by_hypercall_has_its_status() {
    let (status, world) = Bench::new().vm("a", script([hypercall(abi::EXIT, 7 << 32, 0)])).run::<FakeChipset>();
    assert_eq!((status, world.lines()[0].as_str()), (0, "[lamina] a stopped: exited (status 0)"));
    let (status, world) = Bench::new().vm("a", script([hypercall(abi::EXIT, 9, 0)])).run::<FakeChipset>();
    assert_eq!((status, world.lines()[0].as_str()), (1, "[lamina] a stopped: exited (status 9)"));
}

#[test]
fn cli_hlt_is_an_orderly_end() {
    let (status, world) = Bench::new().vm("a", script([hlt()])).run::<FakeChipset>();
    assert_eq!((status, world.lines()[0].as_str()), (0, "[lamina] a stopped: halted with interrupts off (status 0)"));
}

#[test]
fn a_halt_that_is_stepped_over_ends_at_once() {
    // With interrupts off, nothing but the trap behind it can.
    let steps = [hlt().with(|cpu| cpu.write(SysReg::Rflags, Rflags::TF.bits()))];
    let world = run_one(steps.into_iter().chain(print("stepped\n")));
    assert_eq!(world.lines()[0], "[a] stepped");
}

#[test]
fn reasons_name_what_happened_and_where() {
    let at = "0x100000";
    assert_eq!(reason_of(Step::exit(Exit::TripleFault)), format!("triple fault at rip {at} (status 0)"));
    assert_eq!(
        reason_of(Step::exit(Exit::Unknown { reason: 0x39, qualification: 5 })),
        format!("unknown exit reason 0x39, qualification 0x5, rip {at} (status 0)")
    );
    assert_eq!(
        reason_of(Step::exit(Exit::NestedMisconfiguration { gpa: Gpa(0x1234) })),
        "nested table misconfigured at 0x1234 (status 0)"
    );
    assert_eq!(
        reason_of(Step::refused(EntryFailure {
            error: "VM-instruction error 7".into(),
            broken_rules: vec!["CR0.PG without CR0.PE".into(), "RFLAGS bit 1 is 0".into()],
        })),
        "VM entry failed: VM-instruction error 7; CR0.PG without CR0.PE; RFLAGS bit 1 is 0 (status 0)"
    );
}

#[test]
fn an_access_outside_of_memory_ends_the_vm() {
    let beyond = Gpa(64 * MIB);
    let at = "0x4000000, rip 0x100000 (status 0)";
    assert_eq!(reason_of(touch(beyond, false)), format!("read outside its memory at {at}"));
    assert_eq!(reason_of(touch(beyond, true)), format!("write outside its memory at {at}"));
    let fault = |fetch: bool, table_walk, gpa| {
        Step::exit(Exit::NestedFault(NestedFault { gpa, read: !fetch, write: false, fetch, table_walk, linear: None }))
    };
    assert_eq!(reason_of(fault(true, false, beyond)), format!("instruction fetch outside its memory at {at}"));
    // To run code or to keep page tables in a device is not done in software either.
    let device = "0xd0000000, rip 0x100000 (status 0)";
    assert_eq!(reason_of(fault(true, false, REGISTER)), format!("instruction fetch outside its memory at {device}"));
    assert_eq!(reason_of(fault(false, true, REGISTER)), format!("read outside its memory at {device}"));
    // And so are stacks and descriptor tables there, which the processor reads to deliver an event.
    let delivering = touch(REGISTER, false).interrupting(Event::exception(vector::PF, Some(0)));
    assert_eq!(reason_of(delivering), format!("read outside its memory at {device}"));
}

#[test]
fn a_multiboot_image_finds_an_open_bus_outside_of_memory() {
    // MOV EAX, [RDI], behind a Multiboot 1 header that an ELF file has between its program header and its code.
    let mut code = [0x90; 32];
    code[..4].copy_from_slice(&[0x8b, 0x07, 0x90, 0x90]);
    let header = [0x1bad_b002_u32, 0, 0u32.wrapping_sub(0x1bad_b002)];
    for (place, word) in code[8..].chunks_mut(4).zip(header) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    let notes = Notes::new();
    let beyond = 64 * MIB;
    let steps = [
        touch(Gpa(beyond), false).with(move |cpu| cpu.gprs().set(Gpr::Rdi, beyond)),
        notes.note(|cpu| (cpu.gprs().get(Gpr::Rax), cpu.read(SysReg::Rip) - ENTRY)),
        power_off(),
    ];
    let (_, world) = Bench::new().vm("a", script(steps)).code(&code).run::<FakeChipset>();
    assert_eq!(notes.taken(), [(0xffff_ffff, 2)], "{}", world.text());
}

#[test]
fn an_instruction_that_is_not_emulated_ends_the_vm_with_its_bytes() {
    // FXSAVE [RDI]; the bytes behind it are none of its own.
    let code = [0x0f, 0xae, 0x07, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    let (_, world) = Bench::new().vm("a", script([touch(REGISTER, true)])).code(&code).run::<FakeChipset>();
    assert_eq!(
        world.lines()[0],
        "[lamina] a stopped: FXSAVE on a device is not emulated at rip 0x100000, bytes 0f ae 07 (status 0)"
    );
}

#[test]
fn the_death_of_one_leaves_the_other_alone() {
    let deaths: [fn() -> Step; 4] = [
        || Step::exit(Exit::TripleFault),
        || Step::exit(Exit::Unknown { reason: 99, qualification: 0 }),
        || Step::refused(EntryFailure { error: "no".into(), broken_rules: vec![] }),
        || touch(Gpa(64 * MIB), true),
    ];
    for death in deaths {
        let marker = Step::act(|cpu| cpu.write_memory(0x4_8000, b"mine"));
        let check = Step::act(|cpu| {
            assert_eq!(cpu.read_memory(0x4_8000, 4), b"mine");
            assert_eq!(cpu.read(SysReg::Rip), ENTRY + 2 * 7);
        });
        let mut steps = vec![marker];
        steps.extend(print("before\n"));
        steps.extend([Step::compute(4 * SLICE), check]);
        steps.extend(print("after\n"));
        steps.push(power_off());
        let dies = script([Step::compute(100), death()]);
        let (mut machine, world) = Bench::new().vm("dies", dies).vm("lives", script(steps)).boot::<FakeChipset>();
        let both = machine.pool.used();
        step_until(&mut machine, |m| alive(m, 0).is_none());
        assert_eq!(machine.pool.used() * 2, both, "the dead VM's memory is free again");
        assert_eq!(finish(&mut machine), 1, "a VM that dies is the machine's failure");
        assert_eq!(machine.pool.used(), 0);
        assert_eq!(world.lines_of("lives"), ["before", "after"]);
        assert!(world.lines_of("lamina").contains(&"lives stopped: powered off (status 0)".into()));
        assert_eq!(world.trace(1).nested_invalidations, 1, "translations are forgotten before frames are given on");
    }
}

#[test]
fn a_vm_that_cannot_start_is_refused_and_the_others_start() {
    let idle = || script([]);
    let beyond = Blob { offset: 1 << 30, length: 1 };
    let (status, world) = Bench::new()
        .vm("huge", idle())
        .memory(64 * MIB)
        .vm("odd", idle())
        .memory(3 * 4096 + 1)
        .vm("garbage", idle())
        .image(b"not a kernel".to_vec())
        .vm("cut", idle())
        .image(elf_image(&[0; 64])[..100].to_vec())
        .vm("nowhere", idle())
        .initrd(beyond)
        .vm("novcpu", idle())
        .without_vcpu()
        .vm("good", script(print("here\n").into_iter().chain([power_off()]).collect::<Vec<_>>()))
        .vm("good", idle())
        .run::<FakeChipset>();
    assert_eq!(status, 1);
    let lines = world.lines_of("lamina");
    let expected = [
        ("huge stopped: refused: ", "65536 KiB of memory are wanted and 32768 KiB are free"),
        ("odd stopped: refused: ", "memory"),
        ("garbage stopped: refused: ", "neither a bzImage nor a Multiboot image nor a 64-bit ELF file"),
        ("cut stopped: refused: ", "the ELF header is 0x64"),
        ("nowhere stopped: refused: ", "initrd"),
        ("novcpu stopped: refused: ", "no vCPU can be had"),
        ("vm-7 stopped: refused: ", "good"),
        ("good stopped: ", "powered off"),
    ];
    assert!(lines.len() > expected.len(), "{lines:?}");
    for (line, (start, part)) in lines.iter().zip(expected) {
        assert!(line.starts_with(start) && line.contains(part), "{line}");
    }
    assert_eq!(world.lines_of("good"), ["here"]);
}

#[test]
fn a_vm_that_is_refused_takes_nothing() {
    let bench = Bench::new().vm("a", script([])).image(b"x".to_vec()).vm("b", script([])).without_vcpu();
    let (machine, _) = bench.boot::<FakeChipset>();
    assert_eq!(machine.pool.used(), 0);
}

#[test]
fn reset_starts_the_pristine_image() {
    let notes = Notes::new();
    let look = |notes: &Notes<_>| {
        notes.note(|cpu| (cpu.read_memory(ENTRY, 4), cpu.read_memory(0x9_0000, 1), cpu.read(SysReg::Rip)))
    };
    let first = script([
        look(&notes),
        outb(layout::STATUS_PORT, 5),
        Step::act(|cpu| {
            cpu.write_memory(ENTRY, b"dirt");
            cpu.write_memory(0x9_0000, b"x");
            cpu.write(SysReg::Cr2, 0x1234);
        }),
        sti(),
        outb(INTERRUPT_PORT, 0x40),
        outb(layout::RESET_PORT, 6),
    ]);
    let second = script([look(&notes), cli(), Step::compute(10), power_off()]);
    let (status, world) = Bench::new().vm("a", first).code(&[1, 2, 3, 4]).restarted(second).run::<FakeChipset>();
    assert_eq!(status, 0, "the status before the reset is forgotten");
    let pristine = (vec![1, 2, 3, 4], vec![0], ENTRY);
    assert_eq!(notes.taken(), [pristine.clone(), pristine]);
    assert_eq!(world.lines()[..2], ["[lamina] a reset", "[lamina] a stopped: powered off (status 0)"]);
}

#[test]
fn an_interactive_machine_goes_on_without_vms_until_quit() {
    let (status, world) = Bench::new()
        .interactive()
        .vm("a", script([Step::exit(Exit::TripleFault)]))
        .typed(HZ, "quit\r")
        .run::<FakeChipset>();
    assert_eq!(status, 0);
    assert!(world.now().0 >= HZ);
    assert!(world.text().contains("all virtual machines have stopped"), "{}", world.text());
    assert!(world.text().ends_with("[lamina] exit 0\r\n"), "{}", world.text());
}

#[test]
fn lines_of_the_hypervisors_log_come_in_between() {
    let say = Step::act(|cpu| cpu.world().log("something happened"));
    let world = run_one([say, Step::compute(2 * SLICE)]);
    assert_eq!(world.lines()[0], "[lamina] something happened");
}
