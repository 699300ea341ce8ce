//! How interrupts, NMIs and exceptions reach the guest. The fake processor itself fails a test that injects what the
//! guest cannot take, or two events at once.

use lamina_arch::event::{Event, EventKind, vector};
use lamina_arch::exit::Exit;
use lamina_arch::msr::IA32_TSC_DEADLINE;
use lamina_arch::regs::SysReg;

use super::*;
use crate::vcpu::Vcpu;

/// Vectors delivered, in order.
fn vectors(world: &World) -> Vec<u8> {
    world.trace(1).delivered.iter().map(|delivered| delivered.1.vector).collect()
}

/// What a guest sees when it looks: how many events it got so far.
fn count() -> impl FnOnce(&mut FakeVcpu) -> usize {
    |cpu| cpu.delivered.len()
}

#[test]
fn an_interrupt_is_injected_at_once_where_it_can_be_taken() {
    let seen = Notes::new();
    let world = run_one([sti(), outb(INTERRUPT_PORT, 0x41), seen.note(count())]);
    assert_eq!(seen.taken(), [1]);
    assert_eq!(world.trace(1).delivered[0].1, Event::external(0x41));
    assert!(world.trace(1).interrupt_windows.is_empty());
    assert_eq!(world.trace(1).runs, 1, "the run loop is not asked");
}

#[test]
fn an_interrupt_waits_for_the_window_while_interrupts_are_off() {
    let seen = Notes::new();
    let world = run_one([
        outb(INTERRUPT_PORT, 0x41),
        cpuid(0, 0),
        Step::compute(2 * SLICE),
        seen.note(count()),
        sti(),
        Step::compute(1),
        seen.note(count()),
    ]);
    assert_eq!(seen.taken(), [0, 1]);
    assert_eq!(world.trace(1).interrupt_windows, [true, false]);
    let ends = 2;
    assert_eq!(world.trace(1).runs, 1 + ends, "only for the ends of slices");
}

#[test]
fn a_timer_that_is_due_interrupts_without_the_run_loop() {
    let world = run_one([sti(), wrmsr_with(IA32_TSC_DEADLINE, |cpu| cpu.tsc() + SLICE / 4), Step::compute(SLICE / 2)]);
    assert_eq!(vectors(&world), [TIMER_VECTOR]);
    assert_eq!(world.trace(1).runs, 1);
}

#[test]
fn an_interrupt_waits_for_the_end_of_the_shadow() {
    let world = run_one([
        sti(),
        wrmsr_with(IA32_TSC_DEADLINE, |cpu| cpu.tsc() + 1_000),
        Step::compute(1_000).with(|cpu| cpu.shadow = true),
        Step::compute(50),
    ]);
    let trace = world.trace(1);
    assert_eq!(trace.interrupt_windows, [true, false]);
    assert_eq!(vectors(&world), [TIMER_VECTOR]);
    let due = trace.deadlines.iter().find(|&&deadline| deadline <= trace.delivered[0].0).unwrap();
    assert_eq!(trace.delivered[0].0.since(*due), 1, "one instruction later");
}

#[test]
fn of_two_interrupts_the_second_follows_through_the_window() {
    let world =
        run_one([outb(INTERRUPT_PORT, 0x41), outb(INTERRUPT_PORT, 0x52), sti(), Step::compute(10), Step::compute(10)]);
    assert_eq!(vectors(&world), [0x52, 0x41]);
    assert_eq!(world.trace(1).interrupt_windows, [true, false, true, false]);
}

#[test]
fn the_window_is_given_up_when_the_interrupt_goes_away() {
    let seen = Notes::new();
    let world = run_one([
        outb(INTERRUPT_PORT, 0x41),
        outb(UNMASKED_PORT, 0),
        seen.note(|cpu| cpu.world().trace(1).interrupt_windows),
        sti(),
        Step::compute(100),
    ]);
    assert_eq!(seen.taken(), [[true, false]], "before the guest opens it");
    assert_eq!(vectors(&world), []);
}

#[test]
fn an_nmi_needs_no_interrupt_flag_and_blocks_the_next_until_iret() {
    let seen = Notes::new();
    let world = run_one([
        outb(NMI_PORT, 0),
        seen.note(count()),
        outb(NMI_PORT, 0),
        Step::compute(100),
        seen.note(count()),
        Step::act(|cpu| cpu.nmi_blocked = false),
        Step::compute(1),
        seen.note(count()),
    ]);
    assert_eq!(seen.taken(), [1, 1, 2]);
    assert!(world.trace(1).delivered.iter().all(|d| d.1.kind == EventKind::Nmi && d.1.vector == 2));
    assert_eq!(world.trace(1).nmi_windows, [true, false]);
}

#[test]
fn an_nmi_waits_for_the_end_of_the_shadow() {
    let late = Notes::new();
    let open = |cpu: &mut FakeVcpu| {
        cpu.nmi_blocked = false;
        cpu.shadow = true;
    };
    let world = run_one([
        outb(NMI_PORT, 0),
        outb(NMI_PORT, 0),
        Step::exit(Exit::SliceEnd).with(open),
        late.note(|cpu| cpu.now()),
        Step::compute(10),
    ]);
    assert_eq!(vectors(&world), [2, 2]);
    assert_eq!(world.trace(1).delivered[1].0, late.taken()[0] + 1);
}

#[test]
fn an_nmi_goes_before_an_interrupt() {
    let world = run_one([
        outb(INTERRUPT_PORT, 0x41),
        outb(NMI_PORT, 0).with(|cpu| cpu.set_interrupts(true)),
        Step::compute(10),
    ]);
    assert_eq!(vectors(&world), [2, 0x41]);
}

#[test]
fn an_nmi_and_an_interrupt_at_once_make_two_entries() {
    // The window is not open yet when both come up: the NMI takes the entry, the interrupt has to ask for a window.
    let world = run_one([
        sti(),
        wrmsr_with(IA32_TSC_DEADLINE, |cpu| cpu.tsc() + 5),
        outb(NMI_PORT, 0).after(10),
        Step::compute(10),
    ]);
    assert_eq!(vectors(&world), [TIMER_VECTOR, 2]);
    let world = run_one([outb(NMI_PORT, 0), outb(INTERRUPT_PORT, 0x41), sti(), Step::compute(10)]);
    assert_eq!(vectors(&world), [2, 0x41]);
}

#[test]
fn an_nmi_wakes_a_guest_that_sleeps() {
    let world = run_one([sti(), outb(NMI_PORT, 7), hlt(), cli()]);
    assert_eq!(vectors(&world), [2]);
    assert_eq!(world.idles().last().map(|idle| idle.woke), Some(world.trace(1).delivered[0].0));
}

#[test]
fn an_nmi_that_waits_keeps_a_guest_from_being_taken_for_dead() {
    let world =
        run_one([outb(NMI_PORT, 0), outb(NMI_PORT, 0), hlt().with(|cpu| cpu.nmi_blocked = false), Step::compute(1)]);
    assert_eq!(vectors(&world), [2, 2]);
}

#[test]
fn an_event_whose_delivery_was_interrupted_is_delivered_again() {
    let events = [
        Event::external(0x77),
        Event::exception(vector::PF, Some(2)),
        Event { kind: EventKind::SoftwareInterrupt, vector: 0x80, error: None, length: 2 },
    ];
    for event in events {
        for exit in [Exit::SliceEnd, Exit::HostNmi, Exit::InterruptWindow] {
            let world = run_one([sti(), Step::exit(exit).interrupting(event), Step::compute(1)]);
            assert_eq!(world.trace(1).delivered.iter().map(|d| d.1).collect::<Vec<_>>(), [event], "{exit:?}");
            let rip = world.trace(1).advanced.first().copied();
            // Only the OUT that ends the VM is.
            assert_eq!(rip, Some(ENTRY + 2), "the instruction is not skipped");
        }
    }
}

#[test]
fn an_event_that_is_delivered_again_goes_before_an_interrupt_and_an_nmi() {
    let again = || Step::exit(Exit::SliceEnd).interrupting(Event::exception(vector::GP, Some(8)));
    // The timer is due in the very moment of the exit.
    let arm = wrmsr_with(IA32_TSC_DEADLINE, |cpu| cpu.tsc() + 10);
    let world = run_one([sti(), arm, again().after(10), Step::compute(10)]);
    assert_eq!(vectors(&world), [vector::GP, TIMER_VECTOR]);
    let nmi = || outb(NMI_PORT, 0);
    let world = run_one([nmi(), nmi(), again().with(|cpu| cpu.nmi_blocked = false), Step::compute(10)]);
    assert_eq!(vectors(&world), [2, vector::GP, 2]);
}

#[test]
fn faults_do_not_move_rip() {
    let seen = Notes::new();
    let look = || seen.note(|cpu| (cpu.delivered.pop(), cpu.read(SysReg::Rip)));
    let exits = [Exit::Undefined, Exit::Forbidden, Exit::Exception(Event::exception(vector::AC, Some(0)))];
    run_one(exits.into_iter().flat_map(|exit| [Step::exit(exit), look()]));
    let expected = [
        Event::exception(vector::UD, None),
        Event::exception(vector::GP, Some(0)),
        Event::exception(vector::AC, Some(0)),
    ];
    assert_eq!(seen.taken(), expected.map(|event| (Some(event), ENTRY)));
}

#[test]
fn a_fault_in_delivering_a_fault_is_a_double_fault_and_then_the_end() {
    let general = Exit::Exception(Event::exception(vector::GP, Some(0)));
    let during = |event| Step::exit(general).interrupting(event);
    let world = run_one([during(Event::exception(vector::PF, Some(0)))]);
    assert_eq!(world.trace(1).delivered[0].1, Event::exception(vector::DF, Some(0)));
    let world = run_one([sti(), during(Event::external(0x30))]);
    assert_eq!(vectors(&world), [vector::GP]);
    let reason = reason_of(during(Event::exception(vector::DF, Some(0))));
    assert_eq!(reason, "triple fault at rip 0x100000 (status 0)");
}

#[test]
fn interrupts_of_the_machines_are_handled_and_the_guest_goes_on() {
    let program = script([Step::compute(10 * SLICE), power_off()]);
    let (status, world) = Bench::new().vm("a", program).typed(SLICE / 2, "vms\n").run::<FakeChipset>();
    assert_eq!(status, 0);
    assert!(world.lines()[0].contains("NAME"), "what was typed is served before the slice ends: {:?}", world.lines());
    let world = run_one([Step::exit(Exit::HostNmi)]);
    assert_eq!(world.nmis(), 1);
    // Only past the OUT that ends the VM.
    assert_eq!(world.trace(1).advanced, [ENTRY + 2]);
}

#[test]
fn interrupts_and_refused_msrs_are_counted() {
    let (mut machine, _) =
        Bench::new().vm("a", script([sti(), outb(INTERRUPT_PORT, 0x41), rdmsr(0x123)])).boot::<FakeChipset>();
    for _ in 0..3 {
        assert_eq!(machine.step(), None);
    }
    let vm = alive(&machine, 0).unwrap();
    assert_eq!((vm.counters.interrupts, vm.refused_msrs.count()), (1, 1));
}

#[test]
fn with_interrupts_off_an_nmi_alone_wakes() {
    // An interrupt comes first, and does not wake it.
    let world =
        run_one([wrmsr_with(IA32_TSC_DEADLINE, |cpu| cpu.tsc() + 500), outb(NMI_PORT, 7), hlt(), Step::compute(1)]);
    assert_eq!(vectors(&world), [2]);
}
