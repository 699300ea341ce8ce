//! Memory that is backed on first touch: what the run loop does about a touch, and about having nothing left.

use lamina_arch::addr::{Gpa, PAGE_4K};
use lamina_arch::event::Event;

use super::*;
use crate::frames::{STOCK_FULL, STOCK_LOW};
use crate::host::HostMemory;

fn backed(machine: &Fake) -> u64 {
    alive(machine, 0).map_or(0, |vm| vm.memory.backed())
}

#[test]
fn a_touch_backs_a_page_of_zeros_and_the_guest_goes_on() {
    let seen = Notes::new();
    let far = 3 * MIB + 0x123;
    let steps = [
        touch(Gpa(far), true),
        seen.note(move |cpu| cpu.read_memory(far, 4)),
        Step::act(move |cpu| cpu.write_memory(far, &[1, 2, 3, 4])),
        // As another processor's view of the same: nothing is lost.
        touch(Gpa(far), true),
        seen.note(move |cpu| cpu.read_memory(far, 4)),
        power_off(),
    ];
    let (mut machine, world) = Bench::new().vm("a", script(steps)).memory(8 * MIB).lazy().boot::<FakeChipset>();
    let loaded = backed(&machine);
    assert!(loaded < 64 * PAGE_4K, "only what was loaded is backed");
    step_until(&mut machine, |_| seen.taken().len() == 2);
    assert_eq!(seen.taken(), [vec![0; 4], vec![1, 2, 3, 4]]);
    assert_eq!(finish(&mut machine), 0);
    assert_eq!(world.trace(1).advanced, [ENTRY + 2], "nothing but the OUT that ends the VM is done");
    assert_eq!((machine.pool.used(), machine.host.stock().len()), (0, 0), "a VM that has ended keeps memory");
}

#[test]
fn an_event_whose_delivery_touched_memory_is_delivered_again() {
    let event = Event::external(0x31);
    let enabled = Step::act(|cpu| cpu.set_interrupts(true));
    let steps = [enabled, touch(Gpa(2 * MIB), true).interrupting(event), Step::compute(1), power_off()];
    let (mut machine, world) = Bench::new().vm("a", script(steps)).memory(8 * MIB).lazy().boot::<FakeChipset>();
    assert_eq!(finish(&mut machine), 0);
    let delivered: Vec<Event> = world.trace(1).delivered.iter().map(|(_, event)| *event).collect();
    assert_eq!(delivered, [event]);
}

#[test]
fn time_that_nobody_uses_fills_the_stock() {
    let steps = [Step::exit(lamina_arch::exit::Exit::Hlt).with(|cpu| cpu.set_interrupts(true))];
    let (mut machine, _) = Bench::new().vm("a", script(steps)).memory(8 * MIB).lazy().boot::<FakeChipset>();
    assert!(machine.host.stock().len() < STOCK_FULL);
    for _ in 0..STOCK_FULL {
        if machine.host.stock().len() == STOCK_FULL {
            break;
        }
        assert_eq!(machine.step(), None);
    }
    assert_eq!(machine.host.stock().len(), STOCK_FULL);
    for frame in machine.host.stock().frames().to_vec() {
        let mut page = [1; 4096];
        machine.host.read(frame, &mut page);
        assert_eq!(page, [0; 4096], "a frame of the stock is cleared");
    }
}

#[test]
fn a_vm_that_touches_more_than_the_machine_has_is_stopped_and_nobody_else() {
    let mut next = 2 * MIB;
    let greedy = move |_: &mut FakeVcpu| {
        next += PAGE_4K;
        touch(Gpa(next), true)
    };
    let (mut machine, world) = Bench::new()
        .pool(16 * MIB)
        .vm("greedy", Box::new(greedy))
        .memory(512 * MIB)
        .lazy()
        .vm("b", script([Step::compute(20 * SLICE), power_off()]))
        .memory(4 * MIB)
        .boot::<FakeChipset>();
    assert_eq!(finish(&mut machine), 1);
    let lines = world.lines_of("lamina");
    assert!(lines.iter().any(|l| l.starts_with("greedy stopped: the machine has no memory left")), "{lines:?}");
    assert!(lines.iter().any(|l| l == "b stopped: powered off (status 0)"), "{lines:?}");
    assert_eq!(machine.pool.used(), 0);
}

#[test]
fn an_image_that_the_machine_has_no_frames_for_is_refused() {
    let (mut machine, world) =
        Bench::new().pool(STOCK_LOW as u64 * PAGE_4K / 2).vm("a", script([])).lazy().boot::<FakeChipset>();
    assert_eq!(finish(&mut machine), 1);
    let lines = world.lines_of("lamina");
    assert!(lines.iter().any(|l| l.starts_with("a stopped: refused: ") && l.contains("KiB")), "{lines:?}");
    assert_eq!(machine.pool.used(), 0);
}
