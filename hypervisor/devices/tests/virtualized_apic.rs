//! The run loop and the real devices under a processor that virtualizes the local APIC: a scripted guest that reaches
//! its registers without an exit, and what the hypervisor has to do all the same.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use lamina_arch::exit::Width;
use lamina_arch::msr;
use lamina_arch::regs::Gpr;
use lamina_devices::pc::Pc;
use lamina_vmm::apic::ApicMode;
use lamina_vmm::layout;
use lamina_vmm::machine::fakes::*;
use lamina_vmm::vcpu::Vcpu;

const TIMER: u8 = 0xec;
const UART: u16 = layout::COM1_PORT;
const SPURIOUS: u16 = 0xf0;
const LVT_TIMER: u16 = 0x320;
const INITIAL_COUNT: u16 = 0x380;
const DIVIDE: u16 = 0x3e0;
const BASE: u64 = layout::LAPIC.0 | 0x100;
const ENABLED: u64 = 0x800;
const X2APIC: u64 = 0xc00;

type Next = Box<dyn FnOnce(&mut FakeVcpu) -> Step>;

/// A guest whose steps depend on what the processor is when they come.
fn guest(steps: impl IntoIterator<Item = Next>) -> Program {
    let mut steps: VecDeque<Next> = steps.into_iter().collect();
    Box::new(move |cpu| steps.pop_front().map_or_else(Step::spin, |step| step(cpu)))
}

fn plain(step: Step) -> Next {
    Box::new(move |_| step)
}

fn act(act: impl FnOnce(&mut FakeVcpu) + 'static) -> Next {
    plain(Step::act(act))
}

/// A write to a register in the page.
fn write(offset: u16, value: u32) -> Next {
    Box::new(move |cpu| Step::exit(cpu.write_apic(offset, value)))
}

fn eoi() -> Next {
    Box::new(|cpu| cpu.end_of_interrupt().map_or_else(|| Step::compute(1), Step::exit))
}

fn off() -> Next {
    plain(outp(layout::PM1A_CONTROL_PORT, Width::B2, u32::from(layout::S5_SLP_TYP) << 10 | 1 << 13))
}

fn bench(program: Program) -> Bench {
    Bench::new().vm("a", program).virtualizing_apics()
}

fn run(program: Program) -> World {
    let (status, world) = bench(program).run::<Pc>();
    assert_eq!(status, 0, "{:?}", world.lines());
    world
}

fn vectors(world: &World) -> Vec<u8> {
    world.trace(1).delivered.iter().map(|(_, event)| event.vector).collect()
}

/// A 32-bit write by the instruction `mov [rbx], eax`, which the code of the guest has at every step.
fn store(at: u64, value: u32) -> Next {
    plain(touch(lamina_arch::addr::Gpa(at), true).with(move |cpu| {
        cpu.gprs().set(Gpr::Rbx, at);
        cpu.gprs().set(Gpr::Rax, value.into());
    }))
}

/// Redirection entry `pin` of the I/O APIC.
fn redirect(pin: u32, entry: u32) -> [Next; 4] {
    let select = |register| store(layout::IOAPIC.0, register);
    let window = |value| store(layout::IOAPIC.0 + 0x10, value);
    [select(0x11 + 2 * pin), window(0), select(0x10 + 2 * pin), window(entry)]
}

#[test]
fn a_deadline_is_delivered_by_the_processor_and_its_end_is_no_exit() {
    let mut steps = vec![
        plain(wrmsr(msr::IA32_APIC_BASE, BASE | X2APIC)),
        plain(wrmsr(0x832, 2 << 17 | u64::from(TIMER))),
        plain(sti()),
    ];
    for n in 1..=3 {
        steps.extend([plain(wrmsr(msr::IA32_TSC_DEADLINE, n * 100_000)), plain(hlt()), eoi()]);
    }
    steps.push(off());
    let world = run(guest(steps));
    let trace = world.trace(1);
    assert_eq!(trace.virtual_interrupts, [TIMER; 3]);
    for (n, (tsc, event)) in (1..).zip(&trace.delivered) {
        let guest = tsc.0.wrapping_add_signed(trace.tsc_offset);
        assert!(event.vector == TIMER && guest - n * 100_000 < 1000, "{guest}, not {}", n * 100_000);
    }
    assert!(trace.interrupt_windows.is_empty(), "nobody waits for what the processor delivers");
}

#[test]
fn a_periodic_timer_goes_on_while_its_interrupts_are_taken_without_an_exit() {
    let count = 10_000u32;
    let period = u64::from(count) * HZ / layout::APIC_TIMER_HZ;
    let setup = [
        write(DIVIDE, 0b1011),
        write(LVT_TIMER, 1 << 17 | u32::from(TIMER)),
        write(INITIAL_COUNT, count),
        plain(sti()),
    ];
    let mut setup: VecDeque<Next> = setup.into();
    let mut served = 0;
    let world = run(Box::new(move |cpu| {
        if let Some(step) = setup.pop_front() {
            return step(cpu);
        }
        // It never halts, and never exits.
        if !cpu.delivered.is_empty() {
            cpu.delivered.clear();
            served += 1;
            return cpu.end_of_interrupt().map_or_else(|| Step::compute(1), Step::exit);
        }
        if served < 20 { Step::compute(period / 7) } else { off()(cpu) }
    }));
    let delivered = world.trace(1).delivered;
    assert_eq!(delivered.len(), 20);
    let whole = delivered[19].0.since(delivered[0].0);
    assert!(whole.abs_diff(19 * period) <= period / 2, "{whole} for 19 periods of {period}");
}

#[test]
fn the_end_of_a_level_triggered_interrupt_reaches_the_io_apic() {
    const VECTOR: u8 = 0x51;
    let remote_irr = Rc::new(RefCell::new(Vec::new()));
    let look = |note: &Rc<RefCell<Vec<u64>>>| {
        let note = note.clone();
        [
            store(layout::IOAPIC.0, 0x10 + 2 * u32::from(layout::COM1_IRQ)),
            // mov eax, [rbx]
            plain(touch(layout::IOAPIC + 0x10, false).with(|cpu| cpu.gprs().set(Gpr::Rbx, layout::IOAPIC.0 + 0x10))),
            act(move |cpu| note.borrow_mut().push(cpu.gprs().get(Gpr::Rax) >> 14 & 1)),
        ]
    };
    let mut steps: Vec<Next> = redirect(layout::COM1_IRQ.into(), 1 << 15 | u32::from(VECTOR)).into();
    // The transmitter is empty, which is an interrupt, and stays one until it is asked about or written to.
    steps.extend([plain(outb(UART + 4, 0x0b)), plain(outb(UART + 1, 0x02)), plain(sti()), plain(Step::compute(1))]);
    steps.extend(look(&remote_irr));
    steps.extend([plain(inp(UART + 2, Width::B1)), eoi()]);
    steps.extend(look(&remote_irr));
    // Still asserted at its end, it comes again.
    steps.extend([plain(outb(UART + 1, 0x00)), plain(outb(UART + 1, 0x02)), plain(Step::compute(1)), eoi()]);
    steps.extend([plain(Step::compute(1)), plain(outb(UART + 1, 0x00)), eoi(), plain(Step::compute(1)), off()]);
    let (status, world) = bench(guest(steps)).code(&mixed()).run::<Pc>();
    assert_eq!(status, 0, "{:?}", world.lines());
    assert_eq!(*remote_irr.borrow(), [1, 0]);
    assert_eq!(world.trace(1).virtual_interrupts, [VECTOR; 3]);
}

/// The instructions that the steps of the test above stand for, in their order.
fn mixed() -> Vec<u8> {
    const STORE: [u8; 2] = [0x89, 0x03];
    const LOAD: [u8; 2] = [0x8b, 0x03];
    const PORT: [u8; 2] = [0x90, 0x90];
    [STORE, STORE, STORE, STORE, PORT, PORT, STORE, LOAD, PORT, STORE, LOAD].concat()
}

#[test]
fn the_8259s_interrupts_are_injected_and_go_first() {
    let words = [(0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x21, 0xfe), (0xa1, 0xff)];
    let mut steps: Vec<Next> = words.into_iter().map(|(port, value)| plain(outb(port, value))).collect();
    // Counter 0 runs out while interrupts are off, and one of its own waits too.
    steps.extend([plain(outb(0x43, 0x30)), plain(outb(0x40, 100)), plain(outb(0x40, 0))]);
    steps.extend([
        act(|cpu| cpu.self_ipi(0xf1)),
        plain(Step::compute(HZ / 1000)),
        plain(sti()),
        plain(Step::compute(1)),
    ]);
    steps.extend([plain(cli()), eoi(), off()]);
    let world = run(guest(steps));
    let trace = world.trace(1);
    assert_eq!(vectors(&world), [0x20, 0xf1]);
    assert_eq!(trace.virtual_interrupts, [0xf1]);
    assert_eq!(trace.interrupt_windows, [true, false]);
}

#[test]
fn an_interrupt_that_waits_already_keeps_hlt_from_waiting() {
    let steps = [
        act(|cpu| cpu.self_ipi(0x31)),
        act(|cpu| {
            cpu.set_interrupts(true);
            cpu.shadow = true;
        }),
        plain(hlt().after(0)),
        plain(Step::compute(1)),
        plain(cli()),
        eoi(),
        off(),
    ];
    let world = run(guest(steps));
    assert_eq!(vectors(&world), [0x31]);
    assert!(world.idles().is_empty(), "it never waited");
}

#[test]
fn the_page_is_in_the_guests_memory_in_one_mode_only() {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let look = || {
        let seen = seen.clone();
        act(move |cpu| seen.borrow_mut().push(cpu.apic_page().1))
    };
    let steps = [
        look(),
        plain(wrmsr(msr::IA32_APIC_BASE, BASE | X2APIC)),
        look(),
        plain(wrmsr(0x80f, 0xff)),
        look(),
        plain(wrmsr(msr::IA32_APIC_BASE, BASE)),
        look(),
        plain(wrmsr(msr::IA32_APIC_BASE, BASE | ENABLED)),
        look(),
        // Off by software until here.
        store(layout::LAPIC.0 + u64::from(SPURIOUS), 0x1ff),
        look(),
        write(SPURIOUS, 0xff),
        look(),
        off(),
    ];
    let code = [[0x0f, 0x30].repeat(4), vec![0x89, 0x03]].concat();
    let (status, world) = bench(guest(steps)).code(&code).typed(1, "audit\n").run::<Pc>();
    assert_eq!(status, 0, "{:?}", world.lines());
    use ApicMode::{Off, X2apic, Xapic};
    assert_eq!(*seen.borrow(), [true, false, false, false, false, true, false]);
    assert_eq!(world.trace(1).apic_modes, [Xapic, X2apic, Off, Xapic, Off]);
    assert!(world.trace(1).nested_invalidations >= 4, "each change of the tables is told to the processor");
}

#[test]
fn the_audit_knows_whose_the_page_is_and_a_vm_gives_it_back() {
    let world = {
        let steps = [plain(Step::compute(HZ)), off()];
        let (status, world) = bench(guest(steps)).typed(HZ / 2, "audit\n").run::<Pc>();
        assert_eq!(status, 0, "the audit at the end finds no frame that was not given back: {:?}", world.lines());
        world
    };
    let lines = world.lines_of("lamina");
    assert!(lines.iter().any(|line| line.ends_with(": 0 violations")), "{lines:?}");
}

#[test]
fn whoever_is_emulated_or_recorded_is_not_virtualized() {
    let program =
        || script([Step::compute(1), cli(), outb(layout::STATUS_PORT, 0), Step::exit(lamina_arch::exit::Exit::Hlt)]);
    for bench in [bench(program()).emulated_apic(), bench(program()).traced(10), Bench::new().vm("a", program())] {
        let (status, world) = bench.run::<Pc>();
        assert_eq!(status, 0, "{:?}", world.lines());
        assert!(world.trace(1).apic_modes.is_empty());
    }
}

#[test]
fn a_reset_starts_with_an_apic_as_after_power_on() {
    let steps = [write(SPURIOUS, 0x1aa), act(|cpu| cpu.self_ipi(0x31)), plain(outb(layout::RESET_PORT, 6))];
    let again = [act(|cpu| assert_eq!((cpu.read_apic(SPURIOUS), cpu.read_apic(0x210)), (0x1ff, 0))), off()];
    let (status, world) = bench(guest(steps)).restarted(guest(again)).run::<Pc>();
    assert_eq!(status, 0, "{:?}", world.lines());
}
