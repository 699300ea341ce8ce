//! Who runs when: timers, HLT, time slices, fairness.

use lamina_arch::exit::Exit;
use lamina_arch::hypercall as abi;
use lamina_arch::msr::IA32_TSC_DEADLINE;
use lamina_arch::time::Tsc;

use super::*;

/// Arms the timer for `ticks` from now.
fn arm(ticks: u64) -> Step {
    wrmsr_with(IA32_TSC_DEADLINE, move |cpu| cpu.tsc() + ticks)
}

/// A guest that sleeps `naps` times for `ticks`, notes how late it woke each time, and powers off.
fn sleeper(naps: u32, ticks: u64, late: &Notes<u64>) -> Program {
    let late = late.clone();
    let (mut left, mut phase, mut due) = (naps, 0, 0);
    Box::new(move |cpu| {
        phase += 1;
        match phase {
            1 => sti(),
            2 => {
                due = cpu.now().0 + 1 + ticks;
                arm(ticks)
            }
            3 => hlt(),
            _ => {
                assert_eq!(cpu.delivered.pop().map(|event| event.vector), Some(TIMER_VECTOR));
                late.push(cpu.now().0 - due);
                left -= 1;
                phase = 1;
                if left == 0 { power_off() } else { Step::compute(10) }
            }
        }
    })
}

#[test]
fn hlt_waits_for_the_timer_to_the_tick() {
    let deadline = Notes::new();
    let world = run_one([
        sti(),
        arm(123_456),
        deadline.note(|cpu| cpu.now() + 123_456),
        hlt(),
        Step::act(|cpu| assert_eq!(cpu.delivered[0].vector, TIMER_VECTOR)),
    ]);
    let deadline = deadline.taken()[0];
    assert_eq!(world.trace(1).delivered.iter().map(|d| d.0).collect::<Vec<_>>(), [deadline]);
    let idles = world.idles();
    assert_eq!(idles.iter().map(|idle| (idle.until, idle.woke)).collect::<Vec<_>>(), [(Some(deadline), deadline)]);
    assert_eq!(world.trace(1).deadlines.len(), 3, "a guest that waits is not entered");
}

#[test]
fn a_timer_interrupts_a_guest_that_computes_to_the_tick() {
    let deadline = Notes::new();
    let world =
        run_one([sti(), arm(3 * SLICE + 7), deadline.note(|cpu| cpu.now() + 3 * SLICE + 7), Step::compute(5 * SLICE)]);
    assert_eq!(world.trace(1).delivered.iter().map(|d| d.0).collect::<Vec<_>>(), [deadline.taken()[0]]);
    assert!(world.idles().is_empty());
}

#[test]
fn hlt_with_an_interrupt_waiting_does_not_wait() {
    let world = run_one([outb(INTERRUPT_PORT, 0x41), hlt().with(|cpu| cpu.set_interrupts(true)), cli()]);
    assert_eq!(world.trace(1).delivered.len(), 1);
    assert!(world.idles().is_empty());
}

#[test]
fn hlt_with_an_interrupt_waiting_keeps_the_slice() {
    let loads = Notes::new();
    let first = script([
        outb(INTERRUPT_PORT, 0x41),
        hlt().with(|cpu| cpu.set_interrupts(true)),
        loads.note(|cpu| (cpu.delivered.len(), cpu.world().trace(2).loads)),
        cli(),
        power_off(),
    ]);
    let bench = Bench::new().vm("a", first).vm("hog", script([])).typed(HZ, "stop hog\n");
    assert_eq!(bench.run::<FakeChipset>().0, 0);
    assert_eq!(loads.taken(), [(1, 0)], "the interrupt came before the other VM did");
}

#[test]
fn a_guest_that_halts_for_ever_with_interrupts_on_leaves_the_processor_to_the_console() {
    let program = script([sti(), hlt()]);
    let (status, world) = Bench::new().vm("a", program).typed(5 * HZ, "stop a\n").run::<FakeChipset>();
    assert_eq!((status, world.lines()[0].as_str()), (0, "[lamina] a stopped: stopped from the console (status 0)"));
    assert_eq!(world.idles()[0].until, None);
    assert_eq!(world.idles()[0].woke, Tsc(5 * HZ));
}

#[test]
fn a_sleeper_beside_a_hog_wakes_within_a_slice() {
    let late = Notes::new();
    let (mut machine, world) =
        Bench::new().vm("hog", script([])).vm("sleeper", sleeper(200, SLICE / 5, &late)).boot::<FakeChipset>();
    let start = world.now().0;
    step_until(&mut machine, |m| alive(m, 1).is_none());
    let late = late.taken();
    assert_eq!(late.len(), 200);
    let worst = late.iter().max().unwrap();
    assert!(*worst <= SLICE, "woke {worst} ticks late");
    assert!(world.idles().is_empty(), "nobody idles beside a hog");
    // What the sleeper leaves is the hog's.
    let elapsed = world.now().0 - start;
    assert!(machine.scheduler.ran(0) * 100 >= elapsed * 99, "{} of {elapsed}", machine.scheduler.ran(0));
}

#[test]
fn sleepers_alone_wake_without_delay() {
    let late = Notes::new();
    let (status, _) =
        Bench::new().vm("a", sleeper(50, 777, &late)).vm("b", sleeper(50, 100_003, &late)).run::<FakeChipset>();
    assert_eq!(status, 0);
    let late = late.taken();
    assert_eq!(late.len(), 100);
    // Where both are due at once, one waits for the few ticks that the other runs.
    assert!(late.iter().all(|&ticks| ticks <= 20), "{late:?}");
    assert!(late.iter().filter(|&&ticks| ticks == 0).count() >= 90, "{late:?}");
}

#[test]
fn a_running_guest_is_left_when_anothers_timer_is_due() {
    let late = Notes::new();
    let (mut machine, world) =
        Bench::new().vm("sleeper", sleeper(1, 1_000, &late)).vm("hog", script([])).boot::<FakeChipset>();
    step_until(&mut machine, |m| alive(m, 0).is_none());
    let first = world.trace(2).deadlines[0];
    let due = world.trace(1).delivered[0].0.0 - late.taken()[0];
    assert_eq!(first, Tsc(due), "the hog may run until the sleeper is due");
}

#[test]
fn shares_follow_weights_and_the_processor_is_never_left_idle() {
    let (mut machine, world) =
        Bench::new().vm("a", script([])).vm("b", script([])).vm("c", script([])).weight(200).boot::<FakeChipset>();
    let start = world.now().0;
    step_until(&mut machine, |_| world.now().0 - start >= 400 * SLICE);
    let ran: Vec<u64> = (0..3).map(|vm| machine.scheduler.ran(vm)).collect();
    for (got, expected) in ran.iter().zip([100, 100, 200]) {
        assert!(got.abs_diff(expected * SLICE) <= SLICE, "{ran:?}");
    }
    assert_eq!(ran.iter().sum::<u64>(), world.now().0 - start);
}

#[test]
fn a_guest_that_exits_all_the_time_is_charged_like_one_that_computes() {
    let chatty: Program = Box::new(|_| cpuid(0, 0).after(1_000));
    let (mut machine, world) = Bench::new().vm("chatty", chatty).vm("hog", script([])).boot::<FakeChipset>();
    let start = world.now().0;
    step_until(&mut machine, |_| world.now().0 - start >= 100 * SLICE);
    let (chatty, hog) = (machine.scheduler.ran(0), machine.scheduler.ran(1));
    assert!(chatty.abs_diff(hog) <= SLICE + 1_000, "{chatty} {hog}");
}

#[test]
fn a_guest_that_yields_all_the_time_pays_for_the_rounds_that_it_causes() {
    let yields: Program = Box::new(|_| hypercall(abi::YIELD, 0, 0).after(10_000));
    let (mut machine, world) = Bench::new().vm("yields", yields).vm("hog", script([])).boot::<FakeChipset>();
    world.set_overhead(30_000);
    let start = world.now().0;
    step_until(&mut machine, |_| world.now().0 - start >= 50 * SLICE);
    let (elapsed, hog) = (world.now().0 - start, machine.scheduler.ran(1));
    assert!(hog + 2 * SLICE >= elapsed / 2, "{hog} of {elapsed}");
    assert!(machine.scheduler.ran(0) + hog + SLICE >= elapsed, "all of it was charged to somebody");
}

#[test]
fn yield_and_pause_give_the_rest_of_the_slice_away() {
    for give_up in [|| hypercall(abi::YIELD, 0, 0), || Step::exit(Exit::Pause)] {
        let order = Notes::new();
        let turns = |name: char| -> Vec<Step> {
            let mut steps = Vec::new();
            for _ in 0..5 {
                steps.extend([order.note(move |_| name), give_up().after(100)]);
            }
            steps.push(power_off());
            steps
        };
        let (_, world) = Bench::new().vm("a", script(turns('a'))).vm("b", script(turns('b'))).run::<FakeChipset>();
        assert_eq!(order.taken().iter().collect::<String>(), "ababababab");
        assert!(world.now().0 < 10 * SLICE, "nobody waits for the end of a slice");
    }
}

#[test]
fn a_vcpu_that_runs_alone_is_loaded_once() {
    let alone = run_one([Step::compute(20 * SLICE), cpuid(0, 0), Step::compute(20 * SLICE)]);
    assert_eq!((alone.trace(1).loads, alone.trace(1).unloads), (1, 1));
    let ten = |_| script([Step::compute(10 * SLICE), power_off()]);
    let (_, both) = Bench::new().vm("a", ten(0)).vm("b", ten(1)).run::<FakeChipset>();
    for id in [1, 2] {
        let trace = both.trace(id);
        assert!((9..=11).contains(&trace.loads), "one load for each slice: {}", trace.loads);
        assert_eq!(trace.loads, trace.unloads);
    }
}
