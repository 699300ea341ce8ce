//! Whatever a guest does, in any order.

use lamina_arch::msr;
use lamina_arch::time::Frequency;
use proptest::prelude::*;

use super::{HZ, all_extras};
use crate::pc::*;

#[derive(Clone, Debug)]
enum Op {
    In(u16, usize),
    Out(u16, usize, u32),
    MmioRead(u64, usize),
    MmioWrite(u64, usize, u64),
    Rdmsr(u32),
    Wrmsr(u32, u64),
    Cr8(u64),
    Acknowledge,
    Nmi,
    Output(u8),
    Input(u8),
    Key(char),
    Dma(bool),
    Sleep(u64),
    ToDeadline,
}

fn any_op() -> impl Strategy<Value = Op> {
    let port = prop_oneof![
        4 => prop::sample::select(vec![
            0x20u16, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0x3f8, 0x3f9,
            0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x4d0, 0x4d1, 0x600, 0x602, 0x604, 0x605, 0x608, 0xcf8, 0xcf9, 0xcfc, 0xcff,
            0xf4, 0x8900, 0x510, 0x511, 0x514, 0x518, 0x170, 0x174, 0x176, 0x177, 0x376, 0x1f7, 0x3c0, 0x3c4, 0x3c5,
            0x3ce, 0x3cf, 0x3d4, 0x3d5, 0x3da, 0xc000, 0xc004,
        ]),
        1 => any::<u16>(),
    ];
    let width = prop::sample::select(vec![1usize, 2, 4]);
    let wide = prop::sample::select(vec![1usize, 2, 4, 8]);
    let value = prop_oneof![any::<u32>(), 0u32..256, Just(0)];
    let gpa = prop_oneof![
        4 => (0u64..0x40).prop_map(|n| layout::LAPIC.0 + n * 16),
        2 => prop::sample::select(vec![layout::IOAPIC.0, layout::IOAPIC.0 + 0x10]),
        1 => (0u64..0x1000).prop_map(|n| layout::LAPIC.0 + n),
        1 => (0u64..0x1000).prop_map(|n| layout::IOAPIC.0 + n),
        3 => (0u64..0x30).prop_map(|n| layout::HPET.0 + n * 8),
        1 => (0u64..0x1000).prop_map(|n| layout::HPET.0 + n),
        1 => (0u64..0x2_0000).prop_map(|n| layout::VGA_WINDOW.0 + n),
        1 => any::<u64>(),
    ];
    let long = prop_oneof![any::<u64>(), 0u64..256, (0u64..0x80_0000), Just(0), Just(u64::MAX)];
    let number = prop_oneof![
        4 => 0x800u32..0x840,
        1 => Just(msr::IA32_APIC_BASE),
        1 => Just(msr::IA32_TSC_DEADLINE),
        1 => any::<u32>(),
    ];
    let base = prop::sample::select(vec![0xfee0_0100u64, 0xfee0_0900, 0xfee0_0d00, 0xfee0_0500]);
    prop_oneof![
        6 => (port.clone(), width.clone()).prop_map(|(p, w)| Op::In(p, w)),
        12 => (port, width, value).prop_map(|(p, w, v)| Op::Out(p, w, v)),
        4 => (gpa.clone(), wide.clone()).prop_map(|(g, w)| Op::MmioRead(g, w)),
        8 => (gpa, wide, long.clone()).prop_map(|(g, w, v)| Op::MmioWrite(g, w, v)),
        3 => number.clone().prop_map(Op::Rdmsr),
        6 => (number, long.clone()).prop_map(|(n, v)| Op::Wrmsr(n, v)),
        2 => base.prop_map(|v| Op::Wrmsr(msr::IA32_APIC_BASE, v)),
        1 => (0u64..20).prop_map(Op::Cr8),
        4 => Just(Op::Acknowledge),
        1 => Just(Op::Nmi),
        1 => any::<u8>().prop_map(Op::Output),
        1 => any::<u8>().prop_map(Op::Input),
        1 => any::<char>().prop_map(Op::Key),
        1 => any::<bool>().prop_map(Op::Dma),
        4 => prop_oneof![0u64..1_000_000, 0u64..1_000_000_000_000, any::<u64>()].prop_map(Op::Sleep),
        4 => Just(Op::ToDeadline),
    ]
}

/// What the cached answers must be, asked of the devices themselves.
fn check_caches(pc: &Pc) {
    let waits = pc.lapic.deliverable().is_some() || (pc.pic.intr() && pc.extint_passes());
    assert_eq!(pc.interrupt_pending(), waits);
    let deadlines = [
        pc.pit.next_deadline(),
        pc.rtc.next_deadline(),
        pc.pm.next_deadline(),
        pc.uart.next_deadline(),
        pc.lapic.next_deadline(),
        pc.hpet.as_ref().and_then(Hpet::next_deadline),
    ];
    let earliest = deadlines.into_iter().flatten().min().filter(|tsc| tsc.0 != timers::NEVER);
    // The cache may be too early (an interrupt that waits makes a deadline superfluous), never too late.
    if let Some(earliest) = earliest {
        assert!(pc.next_deadline().is_some_and(|cached| cached <= earliest), "{:?} {earliest:?}", pc.next_deadline());
    }
    let rtc = match &pc.hpet {
        Some(hpet) if hpet.replaces_legacy() => hpet.level(1),
        _ => pc.rtc.irq(),
    };
    let ide = |which| pc.ide.as_ref().is_some_and(|ide| ide.irq(which));
    let levels = [
        (1, pc.i8042.irq()),
        (4, pc.uart.irq()),
        (8, rtc),
        (9, pc.pm.sci()),
        (14, ide(ide::Which::Primary)),
        (15, ide(ide::Which::Secondary)),
    ];
    for (irq, level) in levels {
        assert_eq!(pc.lines >> irq & 1 != 0, level, "interrupt line {irq}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_a_guest_does_panics(ops in prop::collection::vec(any_op(), 0..200), hz in prop_oneof![
        Just(HZ), 1u64..100, any::<u64>()
    ], start in prop_oneof![Just(0u64), any::<u64>()], memory in any::<u64>(), unix_seconds in any::<u64>(),
       everything in any::<bool>()) {
        let setup = ChipsetSetup {
            tsc: Frequency::from_hz(hz), now: Tsc(start), memory, unix_seconds, apic_id: 0,
            extras: if everything { all_extras() } else { Extras::default() },
        };
        let mut pc = Pc::new(&setup);
        let mut now = Tsc(start);
        for op in ops {
            match op {
                Op::In(port, width) => pc.port_read(now, port, &mut [0; 4][..width]),
                Op::Out(port, width, value) => {
                    let _ = pc.port_write(now, port, &value.to_le_bytes()[..width]);
                }
                Op::MmioRead(gpa, width) => {
                    pc.mmio_read(now, Gpa(gpa), &mut [0; 8][..width]);
                }
                Op::MmioWrite(gpa, width, value) => {
                    pc.mmio_write(now, Gpa(gpa), &value.to_le_bytes()[..width]);
                }
                Op::Rdmsr(number) => {
                    let _ = pc.msr_read(now, number);
                }
                Op::Wrmsr(number, value) => {
                    let _ = pc.msr_write(now, number, value);
                }
                Op::Cr8(value) => prop_assert_eq!(pc.set_cr8(value).is_ok(), value < 16),
                Op::Acknowledge => {
                    let pending = pc.interrupt_pending();
                    prop_assert_eq!(pc.acknowledge().is_some(), pending);
                }
                Op::Nmi => {
                    pc.take_nmi();
                }
                Op::Output(mut room) => pc.take_output(now, &mut |_| {
                    room = room.saturating_sub(1);
                    room > 0
                }),
                Op::Input(count) => {
                    prop_assert!(pc.give_input(now, &[b'a'; 256][..usize::from(count)]) <= 16);
                }
                Op::Key(key) => {
                    pc.type_key(now, Key::Char(key));
                }
                Op::Dma(works) => {
                    let mut data = [0; TRANSFER_MAX];
                    if let Some(request) = pc.dma_request(&mut data) {
                        prop_assert!(request.length <= TRANSFER_MAX);
                        pc.dma_complete(works.then_some(&data[..request.length]));
                    }
                }
                Op::Sleep(ticks) => {
                    now = now + ticks;
                    pc.advance(now);
                }
                Op::ToDeadline => if let Some(deadline) = pc.next_deadline() {
                    now = now.max(deadline);
                    pc.advance(now);
                }
            }
            check_caches(&pc);
            // A deadline lies ahead, else a run loop would spin; except at the end of time.
            if let Some(deadline) = pc.next_deadline() {
                prop_assert!(deadline > pc.now || now.0 > u64::MAX / 2, "{:?} {:?}", deadline, pc.now);
            }
        }
    }
}
