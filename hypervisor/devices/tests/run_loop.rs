//! The run loop with the real devices: a scripted guest programs the PC as an operating system does, and sees what
//! comes of it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use lamina_arch::exit::{Direction, Exit, IoExit, StringIo, Width};
use lamina_arch::msr;
use lamina_arch::regs::Gpr;
use lamina_devices::pc::Pc;
use lamina_vmm::layout;
use lamina_vmm::machine::fakes::*;
use lamina_vmm::vcpu::Vcpu;

const PIT_HZ: u64 = 1_193_182;
const UART: u16 = layout::COM1_PORT;

/// Initializes the 8259 pair: vectors 0x20 and 0x28, everything masked but `unmasked` (of the first one).
fn pics(unmasked: u8) -> Vec<Step> {
    let words = [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 0x04),
        (0x21, 0x01),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 0x02),
        (0xa1, 0x01),
        (0x21, !unmasked),
        (0xa1, 0xff),
    ];
    words.into_iter().map(|(port, value)| outb(port, value)).collect()
}

/// End of interrupt at the first 8259.
fn end_of_interrupt() -> Step {
    outb(0x20, 0x20)
}

/// Counter 0 of the PIT as a rate generator of `count`.
fn pit(count: u16) -> [Step; 3] {
    let [low, high] = count.to_le_bytes();
    [outb(0x43, 0x34), outb(0x40, low), outb(0x40, high)]
}

/// A guest that does `steps`, and then, `ticks` times, sleeps until an interrupt and ends it; then it powers off.
fn ticker(steps: Vec<Step>, ticks: u32) -> Program {
    let mut steps: VecDeque<Step> = steps.into();
    for _ in 0..ticks {
        steps.extend([hlt(), end_of_interrupt()]);
    }
    steps.extend([cli(), acpi_off()]);
    script(steps)
}

/// ACPI S5: SLP_TYP and SLP_EN in PM1 control.
fn acpi_off() -> Step {
    outp(layout::PM1A_CONTROL_PORT, Width::B2, u32::from(layout::S5_SLP_TYP) << 10 | 1 << 13)
}

fn run_one(program: Program) -> World {
    let (status, world) = Bench::new().vm("a", program).run::<Pc>();
    assert_eq!(status, 0, "{:?}", world.lines());
    world
}

#[test]
fn a_timer_that_is_faster_than_its_service_leaves_the_guest_time() {
    let steps: Vec<Step> = pics(0).into_iter().chain(pit(2)).chain([Step::compute(HZ / 100), acpi_off()]).collect();
    let world = run_one(script(steps));
    let entries = world.trace(1).deadlines.len();
    assert!(entries < 600, "{entries} entries in 10 ms");
}

#[test]
fn the_pit_interrupts_through_the_8259_at_its_rate() {
    let count = 1193;
    let steps: Vec<Step> = pics(1 << 0).into_iter().chain(pit(count)).chain([sti()]).collect();
    let world = run_one(ticker(steps, 50));
    let delivered = world.trace(1).delivered;
    assert_eq!(delivered.len(), 50);
    assert!(delivered.iter().all(|(_, event)| event.vector == 0x20));
    let period = u64::from(count) * HZ / PIT_HZ;
    for pair in delivered.windows(2) {
        let apart = pair[1].0.since(pair[0].0);
        assert!(apart.abs_diff(period) <= HZ / PIT_HZ + 1, "{apart}, not {period}");
    }
    assert_eq!(world.lines()[0], "[lamina] a stopped: powered off (status 0)");
}

#[test]
fn beside_a_hog_no_tick_of_a_slow_timer_is_lost() {
    // 100 Hz, half of a hog's slice: each tick is served before the next one comes.
    let steps: Vec<Step> = pics(1 << 0).into_iter().chain(pit(11_932)).chain([sti()]).collect();
    let (status, world) =
        Bench::new().vm("hog", script([])).vm("ticker", ticker(steps, 100)).typed(3 * HZ, "stop hog\n").run::<Pc>();
    assert_eq!(status, 0);
    let delivered = world.trace(2).delivered;
    let elapsed = delivered[99].0.since(delivered[0].0);
    let expected = 99 * 11_932 * HZ / PIT_HZ;
    assert!(elapsed.abs_diff(expected) <= HZ / 200, "{elapsed}, not {expected}");
}

#[test]
fn the_uart_prints_when_polled() {
    let text = "Lamina\r\nthrough a 16550\r\n";
    let mut left: VecDeque<u8> = text.bytes().collect();
    let mut polled = false;
    let world = run_one(Box::new(move |cpu| {
        if !std::mem::replace(&mut polled, true) {
            return inp(UART + 5, Width::B1).after(1_000);
        }
        if cpu.gprs().get(Gpr::Rax) & 0x20 != 0 {
            polled = false;
            return left.pop_front().map_or_else(acpi_off, |byte| outb(UART, byte));
        }
        inp(UART + 5, Width::B1).after(1_000)
    }));
    assert_eq!(world.lines_of("a"), ["Lamina", "through a 16550"]);
}

/// A guest that serves the UART's interrupt like a driver and gives back each line it receives, in capitals.
fn shouter() -> Program {
    let mut steps: VecDeque<Step> = pics(1 << 4).into();
    // FIFOs on, OUT2 (which lets the interrupt out), interrupts for received data.
    steps.extend([outb(UART + 2, 0x07), outb(UART + 4, 0x0b), outb(UART + 1, 0x01), sti()]);
    let mut phase = 0;
    Box::new(move |cpu| {
        if let Some(step) = steps.pop_front() {
            return step;
        }
        let value = cpu.gprs().get(Gpr::Rax).to_le_bytes()[0];
        phase = match phase {
            // Asleep; then the line status tells whether there is a byte.
            0 => 1,
            1 => 2,
            2 if value & 1 != 0 => 3,
            2 => 0,
            _ => {
                steps.push_back(inp(UART + 5, Width::B1));
                phase = 2;
                return outb(UART, value.to_ascii_uppercase());
            }
        };
        match phase {
            1 => hlt(),
            2 => inp(UART + 5, Width::B1),
            3 => inp(UART, Width::B1),
            _ => end_of_interrupt(),
        }
    })
}

#[test]
fn the_uarts_interrupt_brings_what_is_typed() {
    let (status, world) = Bench::new()
        .vm("a", shouter())
        .typed(HZ, "attach a\n")
        .typed(HZ + 1_000, "a line of more than sixteen bytes, all at once\n")
        .typed(2 * HZ, "x\n")
        .typed(3 * HZ, "\x01dstop a\n")
        .run::<Pc>();
    assert_eq!(status, 0);
    assert_eq!(world.lines_of("a"), ["A LINE OF MORE THAN SIXTEEN BYTES, ALL AT ONCE", "X"]);
    assert!(world.trace(1).delivered.iter().all(|(_, event)| event.vector == 0x24));
}

#[test]
fn the_local_apic_fires_at_the_guests_deadline_after_the_guest_moved_its_clock() {
    const VECTOR: u8 = 0xec;
    let fired = Rc::new(RefCell::new(Vec::new()));
    let seen = fired.clone();
    let world = run_one(script([
        // x2APIC mode; the APIC on; the timer in TSC-deadline mode.
        wrmsr(msr::IA32_APIC_BASE, 0xfee0_0d00),
        wrmsr(0x80f, 0x1ff),
        wrmsr(0x832, 1 << 18 | u64::from(VECTOR)),
        sti(),
        wrmsr(msr::IA32_TIME_STAMP_COUNTER, 1 << 40),
        wrmsr(msr::IA32_TSC_DEADLINE, (1 << 40) + 50_000),
        // Nearer by 10000.
        wrmsr(msr::IA32_TIME_STAMP_COUNTER, (1 << 40) + 10_000),
        hlt(),
        Step::act(move |cpu| seen.borrow_mut().push((cpu.tsc(), cpu.delivered.clone()))),
        wrmsr(0x80b, 0),
        cli(),
        acpi_off(),
    ]));
    let fired = fired.borrow();
    let (tsc, events) = &fired[0];
    assert_eq!(events.iter().map(|event| event.vector).collect::<Vec<_>>(), [VECTOR]);
    assert_eq!(*tsc, (1 << 40) + 50_000);
    assert!(world.idles().iter().any(|idle| idle.until == Some(idle.woke)));
}

#[test]
fn the_local_apics_registers_are_reached_by_instructions() {
    // mov [rbx], eax · mov eax, [rbx] · or dword [rbx], 0x100 · mov ecx, [rbx]
    let code = [0x89, 0x03, 0x8b, 0x03, 0x81, 0x0b, 0, 1, 0, 0, 0x8b, 0x0b];
    let spurious = layout::LAPIC + 0xf0;
    let at = |value: u64| {
        move |cpu: &mut FakeVcpu| {
            cpu.gprs().set(Gpr::Rbx, layout::LAPIC.0 + 0xf0);
            cpu.gprs().set(Gpr::Rax, value);
        }
    };
    let seen = Rc::new(RefCell::new(Vec::new()));
    let note = seen.clone();
    let steps = [
        touch(spurious, true).with(at(0xff)),
        touch(spurious, false).with(at(u64::MAX)),
        touch(spurious, true),
        touch(spurious, false),
        Step::act(move |cpu| note.borrow_mut().extend([cpu.gprs().get(Gpr::Rax), cpu.gprs().get(Gpr::Rcx)])),
        acpi_off(),
    ];
    let (status, _) = Bench::new().vm("a", script(steps)).code(&code).run::<Pc>();
    assert_eq!(status, 0);
    assert_eq!(*seen.borrow(), [0xff, 0x1ff]);
}

#[test]
fn a_guest_ends_by_each_of_the_ways_that_a_pc_has() {
    // `rep outsb` of the shutdown string, from memory.
    let string = StringIo { rep: true, address_width: Width::B8, linear: Some(lamina_arch::addr::Gla(0x4_8000)) };
    let io = IoExit { port: layout::SHUTDOWN_PORT, width: Width::B1, direction: Direction::Out, string: Some(string) };
    let shutdown = Step::exit(Exit::Io(io)).with(|cpu| {
        cpu.write_memory(0x4_8000, b"Shutdown");
        cpu.gprs().set(Gpr::Rcx, 8);
        cpu.gprs().set(Gpr::Rsi, 0x4_8000);
        cpu.gprs().set(Gpr::Rdx, layout::SHUTDOWN_PORT.into());
    });
    let (status, world) = Bench::new().vm("a", script([shutdown])).code(&[0xf3, 0x6e]).run::<Pc>();
    assert_eq!(status, 0);
    assert_eq!(world.lines()[0], "[lamina] a stopped: powered off (status 0)");

    let (status, world) = Bench::new().vm("a", script([outb(layout::STATUS_PORT, 7), acpi_off()])).run::<Pc>();
    assert_eq!((status, world.lines()[0].as_str()), (1, "[lamina] a stopped: powered off (status 7)"));

    for (port, value) in [(layout::RESET_PORT, 6), (0x64, 0xfe)] {
        let bench = Bench::new().vm("a", script([outb(port, value)])).restarted(script([acpi_off()]));
        let (status, world) = bench.run::<Pc>();
        assert_eq!((status, world.lines()[0].as_str()), (0, "[lamina] a reset"), "port {port:#x}");
    }
}
