use super::*;
use lamina_arch::event::GuestFault;
use lamina_arch::msr;
use proptest::prelude::*;

/// One TSC tick is one tick of the timer's input.
const TSC: Frequency = Frequency::from_hz(lamina_vmm::layout::APIC_TIMER_HZ);
const NOW: Tsc = Tsc(1_000_000);
const BASE: u64 = 0xfee0_0000;
const X2APIC: u64 = BASE | 0xd00;

fn lapic() -> Lapic {
    Lapic::new(3, TSC)
}

fn x2apic() -> Lapic {
    let mut lapic = lapic();
    assert_eq!(lapic.write_msr(NOW, msr::IA32_APIC_BASE, X2APIC), Ok(Effect::Accepting));
    lapic
}

fn read_at(lapic: &mut Lapic, now: Tsc, offset: u64) -> u32 {
    let mut data = [0; 4];
    lapic.read(now, offset, &mut data);
    u32::from_le_bytes(data)
}

fn read(lapic: &mut Lapic, offset: u64) -> u32 {
    read_at(lapic, NOW, offset)
}

fn write_at(lapic: &mut Lapic, now: Tsc, offset: u64, value: u32) -> Effect {
    lapic.write(now, offset, &value.to_le_bytes())
}

fn write(lapic: &mut Lapic, offset: u64, value: u32) {
    let _ = write_at(lapic, NOW, offset, value);
}

fn fixed(vector: u8, level: bool) -> Message {
    Message { pin: 0, vector, mode: DeliveryMode::Fixed, logical: false, level, destination: 3 }
}

/// Latches the errors and reads them.
fn errors(lapic: &mut Lapic) -> u32 {
    write(lapic, 0x280, 0);
    read(lapic, 0x280)
}

#[test]
fn registers_as_firmware_leaves_them() {
    let mut lapic = lapic();
    assert_eq!(read(&mut lapic, 0x20), 3 << 24);
    assert_eq!(read(&mut lapic, 0x30), 0x0005_0014);
    assert_eq!(read(&mut lapic, 0x80), 0);
    assert_eq!(read(&mut lapic, 0xd0), 0);
    assert_eq!(read(&mut lapic, 0xe0), 0xffff_ffff);
    assert_eq!(read(&mut lapic, 0xf0), 0x1ff);
    assert_eq!(
        [0x320, 0x330, 0x340, 0x350, 0x360, 0x370].map(|offset| read(&mut lapic, offset)),
        [0x1_0000, 0x1_0000, 0x1_0000, 0x700, 0x400, 0x1_0000]
    );
    assert_eq!(lapic.read_msr(NOW, msr::IA32_APIC_BASE), Ok(BASE | 0x900));
    assert!(lapic.passes_extint());
}

#[test]
fn accesses_of_other_widths() {
    let mut lapic = lapic();
    let mut wide = [0xff; 8];
    lapic.read(NOW, 0x30, &mut wide);
    assert_eq!(wide, [0x14, 0, 0x05, 0, 0, 0, 0, 0]);
    let mut byte = [0];
    lapic.read(NOW, 0x32, &mut byte);
    assert_eq!(byte, [0x05]);
    assert_eq!(lapic.write(NOW, 0x80, &[0x20]), Effect::None);
    assert_eq!(lapic.write(NOW, 0x84, &[0x20, 0, 0, 0]), Effect::None);
    assert_eq!(read(&mut lapic, 0x80), 0);
    assert_eq!(lapic.write(NOW, 0x80, &[0x20, 0, 0, 0, 1, 1, 1, 1]), Effect::None);
    assert_eq!(read(&mut lapic, 0x80), 0x20);
}

#[test]
fn acceptance_delivery_and_eoi() {
    let mut lapic = lapic();
    assert!(lapic.accept(&fixed(0x41, false)));
    assert!(lapic.accept(&fixed(0x83, true)));
    assert_eq!((read(&mut lapic, 0x220), read(&mut lapic, 0x240)), (0x0000_0002, 0x0000_0008));
    assert_eq!(lapic.deliverable(), Some(0x83));
    assert_eq!(lapic.acknowledge(NOW), Some(0x83));
    assert_eq!((read(&mut lapic, 0x240), read(&mut lapic, 0x140)), (0, 0x0000_0008));
    assert_eq!(read(&mut lapic, 0xa0), 0x80, "processor priority");
    assert_eq!(lapic.deliverable(), None);
    assert_eq!(read(&mut lapic, 0x1c0), 0x0000_0008, "level-triggered");
    assert_eq!(write_at(&mut lapic, NOW, 0xb0, 0), Effect::Eoi(0x83));
    assert_eq!(lapic.acknowledge(NOW), Some(0x41));
    assert_eq!(write_at(&mut lapic, NOW, 0xb0, 0), Effect::None);
    assert_eq!(write_at(&mut lapic, NOW, 0xb0, 0), Effect::None, "nothing in service");
}

#[test]
fn priorities_compare_by_class() {
    let mut lapic = lapic();
    assert!(lapic.accept(&fixed(0x45, false)));
    assert_eq!(lapic.acknowledge(NOW), Some(0x45));
    assert!(lapic.accept(&fixed(0x4f, false)));
    assert_eq!(lapic.deliverable(), None, "of the same class");
    assert!(lapic.accept(&fixed(0x50, false)));
    assert_eq!(lapic.acknowledge(NOW), Some(0x50));
    write(&mut lapic, 0xb0, 0);
    write(&mut lapic, 0xb0, 0);
    assert_eq!(lapic.deliverable(), Some(0x4f));
}

#[test]
fn task_and_processor_priority() {
    let mut lapic = lapic();
    write(&mut lapic, 0x80, 0x37);
    assert_eq!((read(&mut lapic, 0xa0), lapic.cr8()), (0x37, 3));
    assert!(lapic.accept(&fixed(0x31, false)));
    assert_eq!(lapic.deliverable(), None);
    assert_eq!(lapic.set_cr8(2), Ok(()));
    assert_eq!(read(&mut lapic, 0x80), 0x20);
    assert_eq!(lapic.acknowledge(NOW), Some(0x31));
    assert_eq!(read(&mut lapic, 0xa0), 0x30);
    assert_eq!(lapic.set_cr8(16), Err(GuestFault::GP0));
    assert_eq!(lapic.set_cr8(u64::MAX), Err(GuestFault::GP0));
}

#[test]
fn software_disabling_masks_the_lvt_and_refuses_messages() {
    let mut lapic = lapic();
    assert!(lapic.accept(&fixed(0x61, false)));
    write(&mut lapic, 0xf0, 0xff);
    assert_eq!(read(&mut lapic, 0x350), 0x1_0700);
    write(&mut lapic, 0x350, 0x700);
    assert_eq!(read(&mut lapic, 0x350), 0x1_0700, "the mask cannot be cleared");
    assert!(!lapic.passes_extint());
    assert!(!lapic.accept(&fixed(0x60, false)));
    assert_eq!(lapic.deliverable(), Some(0x61), "what was requested stays");
    assert_eq!(write_at(&mut lapic, NOW, 0xf0, 0x1ff), Effect::Accepting);
    assert_eq!(read(&mut lapic, 0x350), 0x1_0700);
}

#[test]
fn physical_and_logical_destinations() {
    let to = |destination, logical| Message { destination, logical, ..fixed(0x60, false) };
    let mut lapic = lapic();
    assert!(lapic.accept(&to(3, false)));
    assert!(!lapic.accept(&to(4, false)));
    assert!(lapic.accept(&to(0xff, false)));
    // Flat: a bit each.
    write(&mut lapic, 0xd0, 0x04ff_ffff);
    assert_eq!(read(&mut lapic, 0xd0), 0x0400_0000);
    assert!(lapic.accept(&to(0x06, true)));
    assert!(!lapic.accept(&to(0x03, true)));
    // Clusters.
    write(&mut lapic, 0xe0, 0);
    assert_eq!(read(&mut lapic, 0xe0), 0x0fff_ffff);
    write(&mut lapic, 0xd0, 0x2400_0000);
    assert!(lapic.accept(&to(0x2c, true)));
    assert!(!lapic.accept(&to(0x1c, true)));
    assert!(!lapic.accept(&to(0x23, true)));
    assert!(lapic.accept(&to(0xf4, true)));
}

#[test]
fn interprocessor_interrupts_to_self() {
    for command in [0x0004_0055u32, 0x0008_0055] {
        let mut lapic = lapic();
        write(&mut lapic, 0x300, command);
        assert_eq!(lapic.acknowledge(NOW), Some(0x55), "{command:#x}");
    }
    let mut lapic = lapic();
    write(&mut lapic, 0x300, 0x000c_0055);
    write(&mut lapic, 0x310, 0x0400_0000);
    write(&mut lapic, 0x300, 0x0055);
    assert_eq!(lapic.deliverable(), None, "others");
    write(&mut lapic, 0x310, 0x0300_0000);
    write(&mut lapic, 0x300, 0x4055);
    assert_eq!(lapic.acknowledge(NOW), Some(0x55));
    assert_eq!((read(&mut lapic, 0x300), read(&mut lapic, 0x310)), (0x4055, 0x0300_0000));
    write(&mut lapic, 0x300, 0x0004_0400);
    assert!(!lapic.take_nmi(), "the shorthand is for fixed interrupts");
    write(&mut lapic, 0x300, 0x0000_0400);
    assert!(lapic.take_nmi());
    assert!(!lapic.take_nmi());
}

#[test]
fn errors_are_latched_by_writing_and_may_interrupt() {
    let mut lapic = lapic();
    write(&mut lapic, 0x370, 0xfe);
    read(&mut lapic, 0x90);
    assert_eq!(read(&mut lapic, 0x280), 0, "not before a write");
    assert_eq!(lapic.acknowledge(NOW), Some(0xfe));
    assert_eq!(errors(&mut lapic), 0x80);
    assert_eq!(errors(&mut lapic), 0);
    write(&mut lapic, 0x3f0, 0);
    assert_eq!(errors(&mut lapic), 0x80, "self-IPI is the x2APIC's");
    write(&mut lapic, 0x300, 0x0004_000f);
    assert_eq!(errors(&mut lapic), 0x20);
    assert!(lapic.accept(&fixed(0x0f, false)));
    assert_eq!(errors(&mut lapic), 0x40);
    // An error entry with an illegal vector of its own does not go round in circles.
    write(&mut lapic, 0x370, 0x01);
    read(&mut lapic, 0x90);
    assert_eq!(errors(&mut lapic), 0xc0);
}

#[test]
fn lint0_passes_the_8259_or_interrupts_by_itself() {
    let mut lapic = lapic();
    lapic.set_lint0(true);
    assert_eq!(lapic.deliverable(), None);
    lapic.set_lint0(false);
    write(&mut lapic, 0x350, 0x0045);
    assert!(!lapic.passes_extint());
    lapic.set_lint0(true);
    lapic.set_lint0(true);
    assert_eq!(lapic.acknowledge(NOW), Some(0x45));
    write(&mut lapic, 0xb0, 0);
    assert_eq!(lapic.deliverable(), None);
    lapic.set_lint0(false);
    write(&mut lapic, 0x350, 0x0400);
    lapic.set_lint0(true);
    assert!(lapic.take_nmi());
}

#[test]
fn a_one_shot_count() {
    let mut lapic = lapic();
    write(&mut lapic, 0x320, 0x40);
    write(&mut lapic, 0x3e0, 0b1011);
    write(&mut lapic, 0x380, 1000);
    assert_eq!(lapic.next_deadline(), Some(NOW + 1000));
    assert_eq!(read_at(&mut lapic, NOW + 1, 0x390), 999);
    assert_eq!(read_at(&mut lapic, NOW + 999, 0x390), 1);
    lapic.advance(NOW + 999);
    assert_eq!(lapic.deliverable(), None);
    lapic.advance(NOW + 1000);
    assert_eq!(lapic.deliverable(), Some(0x40));
    assert_eq!(read_at(&mut lapic, NOW + 1001, 0x390), 0);
    assert_eq!(read(&mut lapic, 0x380), 1000);
    assert_eq!(lapic.acknowledge(NOW + 1001), Some(0x40));
    assert_eq!(lapic.next_deadline(), None);
}

#[test]
fn the_divider() {
    for (code, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        let mut lapic = lapic();
        write(&mut lapic, 0x320, 0x40);
        write(&mut lapic, 0x3e0, code);
        assert_eq!(read(&mut lapic, 0x3e0), code);
        write(&mut lapic, 0x380, 100);
        assert_eq!(lapic.next_deadline(), Some(NOW + 100 * divisor), "{code}");
        assert_eq!(read_at(&mut lapic, NOW + 10 * divisor, 0x390), 90);
    }
    // What is left goes on at the new rate.
    let mut lapic = lapic();
    write(&mut lapic, 0x320, 0x2_0040);
    write(&mut lapic, 0x3e0, 0);
    write(&mut lapic, 0x380, 100);
    let _ = write_at(&mut lapic, NOW + 100, 0x3e0, 1);
    assert_eq!(lapic.next_deadline(), Some(NOW + 100 + 50 * 4));
    lapic.advance(NOW + 300);
    assert_eq!(lapic.acknowledge(NOW + 300), Some(0x40));
    assert_eq!(lapic.next_deadline(), Some(NOW + 300 + 100 * 4));
}

#[test]
fn a_periodic_count_stays_in_step_and_merges_what_was_missed() {
    let mut lapic = lapic();
    write(&mut lapic, 0x3e0, 0b1011);
    write(&mut lapic, 0x320, 0x2_0040);
    write(&mut lapic, 0x380, 100);
    assert_eq!(lapic.next_deadline(), Some(NOW + 100));
    lapic.advance(NOW + 130);
    assert_eq!(read_at(&mut lapic, NOW + 130, 0x390), 70);
    assert_eq!(lapic.next_deadline(), None, "an interrupt waits already");
    assert_eq!(lapic.acknowledge(NOW + 130), Some(0x40));
    assert_eq!(lapic.next_deadline(), Some(NOW + 200));
    lapic.advance(NOW + 777);
    assert_eq!(lapic.acknowledge(NOW + 790), None, "the first is in service");
    write(&mut lapic, 0xb0, 0);
    assert_eq!(lapic.acknowledge(NOW + 790), Some(0x40));
    assert_eq!(lapic.next_deadline(), Some(NOW + 800));
    // A count of 0 stops it.
    let _ = write_at(&mut lapic, NOW + 795, 0x380, 0);
    assert_eq!(lapic.next_deadline(), None);
}

#[test]
fn a_masked_timer_counts_without_interrupting() {
    let mut lapic = lapic();
    write(&mut lapic, 0x3e0, 0b1011);
    write(&mut lapic, 0x380, 100);
    assert_eq!(lapic.next_deadline(), None);
    assert_eq!(read_at(&mut lapic, NOW + 60, 0x390), 40);
    let _ = write_at(&mut lapic, NOW + 150, 0x320, 0x40);
    lapic.advance(NOW + 200);
    assert_eq!(lapic.deliverable(), None, "it expired while masked");
}

#[test]
fn tsc_deadline() {
    let mut lapic = lapic();
    let set = |lapic: &mut Lapic, now: Tsc, value| lapic.write_msr(now, msr::IA32_TSC_DEADLINE, value);
    assert_eq!(set(&mut lapic, NOW, NOW.0 + 50), Ok(Effect::None));
    assert_eq!(lapic.read_msr(NOW, msr::IA32_TSC_DEADLINE), Ok(0), "ignored in the other modes");
    write(&mut lapic, 0x380, 100);
    write(&mut lapic, 0x320, 0x4_0040);
    assert_eq!(read(&mut lapic, 0x390), 0, "the change of mode stops the count");
    write(&mut lapic, 0x380, 100);
    assert_eq!((read(&mut lapic, 0x390), lapic.next_deadline()), (0, None), "which is ignored in this one");
    assert_eq!(set(&mut lapic, NOW, NOW.0 + 50), Ok(Effect::None));
    assert_eq!(lapic.next_deadline(), Some(NOW + 50));
    assert_eq!(lapic.read_msr(NOW, msr::IA32_TSC_DEADLINE), Ok(NOW.0 + 50));
    lapic.advance(NOW + 49);
    assert_eq!(lapic.deliverable(), None);
    lapic.advance(NOW + 50);
    assert_eq!(lapic.acknowledge(NOW + 50), Some(0x40));
    write(&mut lapic, 0xb0, 0);
    assert_eq!(lapic.read_msr(NOW + 50, msr::IA32_TSC_DEADLINE), Ok(0));
    // In the past: at once. 0 disarms. Changing the mode disarms.
    assert_eq!(set(&mut lapic, NOW + 60, 1), Ok(Effect::None));
    assert_eq!(lapic.acknowledge(NOW + 60), Some(0x40));
    assert_eq!(set(&mut lapic, NOW + 60, NOW.0 + 100), Ok(Effect::None));
    assert_eq!(set(&mut lapic, NOW + 60, 0), Ok(Effect::None));
    assert_eq!(lapic.next_deadline(), None);
    assert_eq!(set(&mut lapic, NOW + 60, NOW.0 + 100), Ok(Effect::None));
    let _ = write_at(&mut lapic, NOW + 60, 0x320, 0x40);
    assert_eq!(lapic.read_msr(NOW + 60, msr::IA32_TSC_DEADLINE), Ok(0));
}

/// SDM vol. 3, "x2APIC State Transitions".
#[test]
fn transitions_of_apic_base() {
    let (disabled, xapic, x2apic, invalid) = (BASE | 0x100, BASE | 0x900, BASE | 0xd00, BASE | 0x500);
    for (path, last) in [
        (&[xapic][..], Ok(())),
        (&[x2apic], Ok(())),
        (&[disabled], Ok(())),
        (&[invalid], Err(())),
        (&[x2apic, xapic], Err(())),
        (&[x2apic, disabled], Ok(())),
        (&[x2apic, x2apic], Ok(())),
        (&[x2apic, disabled, xapic], Ok(())),
        (&[disabled, x2apic], Err(())),
        (&[disabled, xapic, x2apic], Ok(())),
        (&[disabled, invalid], Err(())),
    ] {
        let mut lapic = lapic();
        let mut result = Ok(());
        for &value in path {
            assert_eq!(result, Ok(()));
            result = lapic.write_msr(NOW, msr::IA32_APIC_BASE, value).map(|_| ()).map_err(|_| ());
            if result.is_ok() {
                assert_eq!(lapic.read_msr(NOW, msr::IA32_APIC_BASE), Ok(value));
            }
        }
        assert_eq!(result, last, "{path:x?}");
    }
}

#[test]
fn apic_base_refuses_reserved_bits_and_where_memory_may_be() {
    let mut lapic = lapic();
    for value in [BASE | 0x901, BASE | 0xb00, 0x1_fee0_0900, 1 << 46 | BASE | 0x900, 0x900, 0xbfff_f900] {
        assert_eq!(lapic.write_msr(NOW, msr::IA32_APIC_BASE, value), Err(GuestFault::GP0), "{value:#x}");
    }
    assert_eq!(lapic.read_msr(NOW, msr::IA32_APIC_BASE), Ok(BASE | 0x900));
}

#[test]
fn the_registers_go_where_apic_base_says() {
    let mut lapic = lapic();
    assert_eq!(lapic.offset_of(layout::LAPIC + 0x30), Some(0x30));
    for value in [0xfed4_0900, 0xc000_0900, 0xffff_f900] {
        assert!(lapic.write_msr(NOW, msr::IA32_APIC_BASE, value).is_ok());
        assert_eq!(lapic.apic_base(), value);
        let page = Gpa(value & !0xfff);
        assert_eq!((lapic.offset_of(page), lapic.offset_of(page + 0xfff)), (Some(0), Some(0xfff)));
        assert_eq!([page + PAGE_4K, Gpa(page.0 - 1), layout::LAPIC].map(|at| lapic.offset_of(at)), [None; 3]);
    }
    assert!(lapic.write_msr(NOW, msr::IA32_APIC_BASE, BASE | 0x900).is_ok());
    assert_eq!(lapic.offset_of(layout::LAPIC + 0x80), Some(0x80));
}

#[test]
fn disabling_resets() {
    let mut lapic = lapic();
    assert!(lapic.accept(&fixed(0x60, false)));
    write(&mut lapic, 0x80, 0x50);
    assert!(lapic.write_msr(NOW, msr::IA32_APIC_BASE, BASE | 0x100).is_ok());
    assert!(lapic.passes_extint());
    assert!(!lapic.accept(&fixed(0x60, false)));
    assert_eq!(lapic.offset_of(layout::LAPIC), None);
    assert_eq!((lapic.deliverable(), lapic.next_deadline()), (None, None));
    assert!(lapic.write_msr(NOW, msr::IA32_APIC_BASE, BASE | 0x900).is_ok());
    assert_eq!((read(&mut lapic, 0x80), read(&mut lapic, 0xf0), read(&mut lapic, 0x350)), (0, 0xff, 0x1_0000));
}

#[test]
fn x2apic_registers_are_msrs_and_no_longer_in_memory() {
    let mut lapic = lapic();
    assert_eq!(lapic.read_msr(NOW, 0x802), Err(GuestFault::GP0), "not before the change of mode");
    assert_eq!(lapic.write_msr(NOW, 0x80b, 0), Err(GuestFault::GP0));
    let mut lapic = x2apic();
    assert_eq!(lapic.offset_of(layout::LAPIC), None);
    assert_eq!(lapic.read_msr(NOW, 0x802), Ok(3));
    assert_eq!(lapic.read_msr(NOW, 0x803), Ok(0x0005_0014));
    assert_eq!(lapic.read_msr(NOW, 0x80d), Ok(0x0000_0008), "cluster 0, bit 3");
    assert_eq!(lapic.write_msr(NOW, 0x808, 0x20), Ok(Effect::None));
    assert_eq!(lapic.read_msr(NOW, 0x808), Ok(0x20));
    assert_eq!(lapic.read_msr(NOW, 0x80a), Ok(0x20));
}

/// SDM vol. 3, "x2APIC Register Address Space".
#[test]
fn x2apic_faults_by_register() {
    let readable = |number| x2apic().read_msr(NOW, number).is_ok();
    let writable = |number| x2apic().write_msr(NOW, number, 0).is_ok();
    for number in 0x800..=0x8ffu32 {
        let (read, write) = match number {
            0x802 | 0x803 | 0x80a | 0x80d | 0x810..=0x827 | 0x839 => (true, false),
            0x80b | 0x83f => (false, true),
            0x808 | 0x80f | 0x828 | 0x830 | 0x832..=0x838 | 0x83e => (true, true),
            _ => (false, false),
        };
        assert_eq!((readable(number), writable(number)), (read, write), "{number:#x}");
    }
}

#[test]
fn x2apic_faults_by_reserved_bit() {
    for (number, allowed) in [
        (0x808, 0xffu64),
        (0x80b, 0),
        (0x80f, 0x3ff),
        (0x828, 0),
        (0x830, 0xffff_ffff_000c_cfff),
        (0x832, 0x7_50ff),
        (0x835, 0x1_f7ff),
        (0x837, 0x1_50ff),
        (0x838, 0xffff_ffff),
        (0x83e, 0xb),
        (0x83f, 0xff),
    ] {
        for bit in 0..64 {
            let result = x2apic().write_msr(NOW, number, 1 << bit);
            assert_eq!(result.is_ok(), allowed & 1 << bit != 0, "{number:#x} bit {bit}");
        }
    }
}

#[test]
fn x2apic_interprocessor_interrupts() {
    let mut lapic = x2apic();
    assert_eq!(lapic.write_msr(NOW, 0x83f, 0x77), Ok(Effect::None));
    assert_eq!(lapic.acknowledge(NOW), Some(0x77));
    for (command, arrives) in [
        (0x0000_0003_0000_0091u64, true),
        (0x0000_0004_0000_0091, false),
        (0xffff_ffff_0000_0091, true),
        (0x0000_000c_0000_0891, true),
        (0x0000_0004_0000_0891, false),
        (0x0001_0008_0000_0891, false),
    ] {
        let mut lapic = x2apic();
        assert_eq!(lapic.write_msr(NOW, 0x830, command), Ok(Effect::None));
        assert_eq!(lapic.deliverable().is_some(), arrives, "{command:#x}");
        assert_eq!(lapic.read_msr(NOW, 0x830), Ok(command));
    }
}

#[test]
fn x2apic_takes_messages_with_eight_bit_destinations() {
    let mut lapic = x2apic();
    assert!(lapic.accept(&Message { destination: 0xff, ..fixed(0x60, false) }));
    assert!(lapic.accept(&Message { destination: 0x08, logical: true, ..fixed(0x60, false) }));
    assert!(!lapic.accept(&Message { destination: 0x04, logical: true, ..fixed(0x60, false) }));
}

proptest! {
    #[test]
    fn the_timer_expires_as_often_as_a_counter_would(
        count in 1u32..40, divide in 0u32..12, waits in prop::collection::vec(0u64..300, 1..30), hz in 1u64..5
    ) {
        // A TSC of a whole multiple of the input's rate.
        let mut lapic = Lapic::new(0, Frequency::from_hz(hz * lamina_vmm::layout::APIC_TIMER_HZ));
        let divide = divide & 0b1011;
        let divisor = [2, 4, 8, 16, 32, 64, 128, 1][((divide >> 1 & 4) | (divide & 3)) as usize];
        write(&mut lapic, 0x3e0, divide);
        write(&mut lapic, 0x320, 0x2_0040);
        write(&mut lapic, 0x380, count);
        let period = u64::from(count) * divisor * hz;
        let mut elapsed = 0;
        for wait in waits {
            let before = elapsed / period;
            elapsed += wait;
            lapic.advance(NOW + elapsed);
            let left = period - elapsed % period;
            prop_assert_eq!(u64::from(read_at(&mut lapic, NOW + elapsed, 0x390)), left.div_ceil(divisor * hz));
            let expired = elapsed / period > before;
            prop_assert_eq!(lapic.acknowledge(NOW + elapsed), expired.then_some(0x40));
            write(&mut lapic, 0xb0, 0);
            prop_assert_eq!(lapic.next_deadline(), Some(NOW + (elapsed / period + 1) * period));
        }
    }
}

/// One access of a guest's, or a step of time.
#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, usize, u64),
    Rdmsr(u32),
    Wrmsr(u32, u64),
    Message(u8, u8, u64, bool),
    Acknowledge,
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let offset = prop_oneof![3 => (0u64..0x40).prop_map(|n| n * 16), 1 => any::<u64>()];
    let width = prop::sample::select(vec![1usize, 2, 4, 8]);
    let number = prop_oneof![4 => 0x800u32..0x840, 1 => Just(msr::IA32_TSC_DEADLINE), 1 => any::<u32>()];
    let value =
        prop_oneof![any::<u64>(), any::<u32>().prop_map(u64::from), 0u64..0x200, Just(0x4_0040), Just(0x2_0040)];
    let base = prop::sample::select(vec![BASE | 0x100, BASE | 0x900, BASE | 0xd00]);
    prop_oneof![
        2 => (offset.clone(), width.clone()).prop_map(|(offset, width)| Step::Read(offset, width)),
        4 => (offset, width, value.clone()).prop_map(|(offset, width, value)| Step::Write(offset, width, value)),
        2 => number.clone().prop_map(Step::Rdmsr),
        4 => (number, value).prop_map(|(number, value)| Step::Wrmsr(number, value)),
        1 => base.prop_map(|value| Step::Wrmsr(msr::IA32_APIC_BASE, value)),
        2 => any::<(u8, u8, u64, bool)>().prop_map(|(vector, to, mode, flag)| Step::Message(vector, to, mode, flag)),
        3 => Just(Step::Acknowledge),
        2 => prop_oneof![0u64..1000, any::<u64>()].prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn no_access_panics_and_priorities_hold(steps in prop::collection::vec(any_step(), 0..200),
                                            hz in prop_oneof![any::<u64>(), Just(1), Just(1_000_000_000)]) {
        let mut lapic = Lapic::new(3, Frequency::from_hz(hz));
        let mut now = Tsc(0);
        for step in steps {
            match step {
                Step::Read(offset, width) => lapic.read(now, offset, &mut [0; 8][..width]),
                Step::Write(offset, width, value) => {
                    let _ = lapic.write(now, offset, &value.to_le_bytes()[..width]);
                }
                Step::Rdmsr(number) => {
                    let _ = lapic.read_msr(now, number);
                }
                Step::Wrmsr(number, value) => {
                    let _ = lapic.write_msr(now, number, value);
                }
                Step::Message(vector, destination, mode, flag) => {
                    let mode = DeliveryMode::from_bits(mode);
                    lapic.accept(&Message { pin: 0, vector, mode, logical: flag, level: flag, destination });
                    lapic.set_lint0(flag);
                }
                Step::Acknowledge => {
                    let before = lapic.ppr() >> 4;
                    if let Some(vector) = lapic.acknowledge(now) {
                        prop_assert!(vector >= 16 && vector >> 4 > before);
                        prop_assert_eq!(lapic.ppr(), vector & 0xf0);
                    }
                }
                Step::Wait(ticks) => now = now + ticks,
            }
            lapic.advance(now);
            lapic.take_nmi();
            if let Some(deadline) = lapic.next_deadline() {
                prop_assert!(deadline > now || now.0 > u64::MAX / 2);
            }
        }
    }
}
