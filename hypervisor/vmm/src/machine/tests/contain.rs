//! Bugs of ours in work for one VM: that VM ends, and nobody else notices.

use lamina_arch::exit::Width;

use super::*;
use crate::host::Host;
use crate::layout;

/// A VM with a bug in a device that it reaches after `steps`, and one that prints afterwards and powers off.
fn two(steps: impl IntoIterator<Item = Step>) -> Bench {
    let steps: Vec<Step> = steps.into_iter().chain([inp(BUG_PORT, Width::B1)]).collect();
    let after = [Step::compute(4 * SLICE)].into_iter().chain(print("alive\n")).chain([power_off()]);
    Bench::new().vm("a", script(steps)).vm("b", script(after.collect::<Vec<_>>()))
}

#[test]
fn a_bug_in_work_for_a_vm_ends_that_vm_alone_and_is_the_machines_status() {
    let (status, world) = two(print("begun\n")).run::<FakeChipset>();
    assert_eq!(
        world.text(),
        "[a] begun\r\n[lamina] a stopped: a bug of the hypervisor's: a device with a bug (status 0)\r\n[b] alive\r\n\
         [lamina] b stopped: powered off (status 0)\r\n[lamina] all virtual machines have stopped\r\n\
         [lamina] exit 101\r\n"
    );
    assert_eq!(status, 101);
}

#[test]
fn what_the_guest_recorded_and_had_not_ended_as_a_line_is_shown() {
    let (_, world) = two([outb(layout::STATUS_PORT, 7)].into_iter().chain(print("half"))).run::<FakeChipset>();
    assert_eq!(
        world.lines()[..2],
        ["[a] half", "[lamina] a stopped: a bug of the hypervisor's: a device with a bug (status 7)"]
    );
}

#[test]
fn the_frames_go_back_and_the_audit_agrees() {
    for lazy in [false, true] {
        let bench = Bench::new().vm("a", script([inp(BUG_PORT, Width::B1)])).memory(4 * MIB);
        let bench = if lazy { bench.lazy() } else { bench };
        let bench = bench.vm("b", script([])).typed(4 * SLICE, "vms\nstop b\nvms\naudit\nquit\n");
        let (status, world) = bench.run::<FakeChipset>();
        let lines = world.lines_of("lamina");
        assert!(lines.iter().any(|line| line.starts_with("32 MiB of 32 MiB of guest memory free")), "{lines:?}");
        assert!(lines.iter().any(|line| line.ends_with(": 0 violations")), "{lines:?}");
        assert_eq!(status, 101, "whatever the console asked for");
    }
}

#[test]
fn where_the_living_do_not_agree_the_frames_are_nobodys_any_more() {
    let (mut machine, world) = Bench::new()
        .vm("a", script([]))
        .vm("b", script([Step::compute(2 * SLICE), inp(BUG_PORT, Width::B1)]))
        .typed(2, "plant freed-frame\n")
        .typed(20 * SLICE, "audit\nquit\n")
        .boot::<FakeChipset>();
    let before = machine.pool.used();
    let mut status = None;
    while status.is_none() {
        if !FakeHost::survive(&mut || status = machine.step()) {
            machine.contain();
        }
    }
    assert_eq!(machine.pool.used(), before - 4096, "what was planted is free, and nothing else");
    let lines = world.lines_of("lamina");
    assert!(
        lines.iter().any(|line| line.starts_with("b: ") && line.ends_with(" frames are kept out of use")),
        "{lines:?}"
    );
    let violations: Vec<_> = lines.iter().filter(|line| line.starts_with("audit: ")).collect();
    assert!(violations.iter().all(|line| !line.contains("nobody has them")), "{violations:?}");
    assert_eq!(status, Some(101));
}

#[test]
#[should_panic(expected = "left in the middle of a change")]
fn what_all_share_and_is_not_whole_is_the_end_of_the_machine() {
    let (mut machine, _) = two([]).boot::<FakeChipset>();
    machine.pool.leave_open();
    machine.run();
}

#[test]
#[should_panic(expected = "a device with a bug")]
fn a_bug_in_nobodys_work_is_the_end_of_the_machine() {
    // The VM is made before the run loop is there to survive it.
    let (mut machine, _) = two([]).boot::<FakeChipset>();
    finish(&mut machine);
}
