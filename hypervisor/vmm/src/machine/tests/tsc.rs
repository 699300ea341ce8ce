//! The guest's TSC, what it adds to it, and the deadline that is counted in it.

use lamina_arch::msr::{IA32_TIME_STAMP_COUNTER, IA32_TSC_ADJUST, IA32_TSC_DEADLINE};

use super::*;
use crate::vcpu::Vcpu;

fn value(notes: &Notes<u64>) -> Step {
    notes.note(|cpu| cpu.gprs().edx_eax())
}

#[test]
fn the_tsc_starts_at_0_and_rdmsr_agrees_with_rdtsc() {
    let notes = Notes::new();
    run_one([
        rdmsr(IA32_TIME_STAMP_COUNTER).after(77),
        value(&notes),
        notes.note(|cpu| cpu.tsc()),
        wrmsr(IA32_TIME_STAMP_COUNTER, 5_000),
        rdmsr(IA32_TIME_STAMP_COUNTER).after(100),
        value(&notes),
        notes.note(|cpu| cpu.tsc()),
    ]);
    assert_eq!(notes.taken(), [77, 77, 5_100, 5_100]);
}

#[test]
fn writing_the_tsc_shows_in_tsc_adjust_and_the_other_way_round() {
    let notes = Notes::new();
    run_one([
        rdmsr(IA32_TSC_ADJUST),
        value(&notes),
        wrmsr(IA32_TIME_STAMP_COUNTER, 1_000_000).after(999),
        rdmsr(IA32_TSC_ADJUST),
        value(&notes),
        // Two's complement: back by 1000.
        wrmsr(IA32_TSC_ADJUST, 1000u64.wrapping_neg()),
        notes.note(|cpu| cpu.tsc()),
        rdmsr(IA32_TSC_ADJUST),
        value(&notes),
        wrmsr(IA32_TSC_ADJUST, 0),
        notes.note(|cpu| cpu.tsc()),
    ]);
    // The guest's clock showed 1000 when it wrote 1000000.
    assert_eq!(notes.taken(), [0, 999_000, 2u64.wrapping_sub(1000).wrapping_add(1000), 1000u64.wrapping_neg(), 1_004]);
}

/// When the timer interrupted, as the guest's TSC, after `before` and arming it for what `deadline` gives.
fn fires(before: Vec<Step>, deadline: u64, after: Vec<Step>) -> Vec<u64> {
    let notes = Notes::new();
    let mut steps = vec![sti()];
    steps.extend(before);
    steps.push(wrmsr(IA32_TSC_DEADLINE, deadline));
    steps.extend(after);
    // Looks every ten ticks, which is as exact as it gets.
    for _ in 0..1_000 {
        let notes = notes.clone();
        steps.push(Step::compute(10).with(move |cpu| {
            if cpu.delivered.pop().is_some() {
                notes.push(cpu.tsc());
            }
        }));
    }
    run_one(steps);
    notes.taken()
}

fn near(times: &[u64], expected: u64) {
    assert!(matches!(times, [time] if time.wrapping_sub(expected) <= 10), "{times:?}, not {expected}");
}

#[test]
fn the_deadline_is_counted_in_the_guests_tsc() {
    near(&fires(vec![], 3_000, vec![]), 3_000);
    near(&fires(vec![wrmsr(IA32_TIME_STAMP_COUNTER, 1 << 40)], (1 << 40) + 3_000, vec![]), (1 << 40) + 3_000);
    let back = wrmsr(IA32_TIME_STAMP_COUNTER, 0).after(100_000);
    near(&fires(vec![back], 3_000, vec![]), 3_000);
}

#[test]
fn a_deadline_that_is_past_fires_at_once() {
    let ahead = || vec![wrmsr(IA32_TIME_STAMP_COUNTER, 1 << 40)];
    near(&fires(vec![Step::compute(5_000)], 3_000, vec![]), 5_001);
    near(&fires(ahead(), 3_000, vec![]), (1 << 40) + 1);
    near(&fires(ahead(), 1, vec![]), (1 << 40) + 1);
}

#[test]
fn a_deadline_of_0_disarms_and_one_far_away_never_comes() {
    assert_eq!(fires(vec![], 3_000, vec![wrmsr(IA32_TSC_DEADLINE, 0)]), []);
    assert_eq!(fires(vec![], u64::MAX, vec![]), []);
    assert_eq!(fires(vec![wrmsr(IA32_TIME_STAMP_COUNTER, 0).after(50_000)], u64::MAX, vec![]), []);
}

#[test]
fn a_deadline_stays_where_it_is_when_the_guest_moves_its_clock() {
    let to = |tsc| vec![wrmsr(IA32_TIME_STAMP_COUNTER, tsc)];
    near(&fires(vec![], 3_000, to(1_000)), 3_000);
    near(&fires(vec![Step::compute(2_000)], 4_000, to(0)), 4_000);
    near(&fires(vec![], 3_000, to(1 << 40)), 1 << 40);
    near(&fires(vec![], 6_000, vec![wrmsr(IA32_TSC_ADJUST, 2_000)]), 6_000);
}

#[test]
fn the_deadline_reads_back_until_it_is_over() {
    let notes = Notes::new();
    run_one([
        wrmsr(IA32_TIME_STAMP_COUNTER, 1 << 40),
        wrmsr(IA32_TSC_DEADLINE, (1 << 40) + 500),
        rdmsr(IA32_TSC_DEADLINE),
        value(&notes),
        wrmsr(IA32_TIME_STAMP_COUNTER, 100),
        rdmsr(IA32_TSC_DEADLINE),
        value(&notes),
        wrmsr(IA32_TIME_STAMP_COUNTER, (1 << 40) + 490),
        rdmsr(IA32_TSC_DEADLINE).after(100),
        value(&notes),
    ]);
    assert_eq!(notes.taken(), [(1 << 40) + 500, (1 << 40) + 500, 0]);
}
