use super::super::{Base, Effect, Lapic, Message, register};
use super::*;
use crate::ioapic::DeliveryMode;
use lamina_arch::msr;
use lamina_arch::time::Frequency;
use proptest::prelude::*;

const TSC: Frequency = Frequency::from_hz(lamina_vmm::layout::APIC_TIMER_HZ);
const NOW: Tsc = Tsc(1_000_000);
const BASE: u64 = 0xfee0_0000;

fn given() -> (Lapic, Arc<ApicPage>) {
    let mut lapic = Lapic::new(3, TSC);
    let page = lapic.virtualize();
    assert_eq!(lapic.take_change(), Some(ApicMode::Xapic));
    (lapic, page)
}

/// The guest writes by itself.
fn write(lapic: &mut Lapic, page: &ApicPage, offset: u16, value: u32) -> Effect {
    page.write(offset.into(), value);
    lapic.written(NOW, offset)
}

fn fixed(vector: u8, level: bool) -> Message {
    Message { pin: 0, vector, mode: DeliveryMode::Fixed, logical: false, level, destination: 3 }
}

#[test]
fn the_page_shows_what_the_registers_are_after_a_write() {
    let (mut lapic, page) = given();
    for (offset, value, shown) in [
        (0x20, 0xffff_ffff, 3 << 24),
        (0xd0, 0xffff_ffff, 0xff00_0000),
        (0xe0, 0, 0x0fff_ffff),
        (0x320, u32::MAX, 0x7_00ff),
        (0x350, u32::MAX, 0x1_a7ff),
        // In TSC-deadline mode the initial count takes nothing.
        (0x320, 2 << 17 | 0x31, 2 << 17 | 0x31),
        (0x380, 5000, 0),
        (0x320, 0x31, 0x31),
        (0x380, 5000, 5000),
        (0x3e0, u32::MAX, 0b1011),
        (0x280, u32::MAX, 0),
        (0x300, 0xfff0_0031, 0x31),
    ] {
        assert_eq!(
            write(&mut lapic, &page, offset, value),
            if offset & !0x30 == 0xc0 { Effect::Accepting } else { Effect::None }
        );
        assert_eq!(page.read(offset.into()), shown, "{offset:#x}");
    }
}

#[test]
fn what_is_requested_here_is_the_processors_to_deliver() {
    let (mut lapic, page) = given();
    assert!(!lapic.has_changed());
    assert!(lapic.accept(&fixed(0x41, true)));
    assert_eq!(lapic.take_change(), Some(ApicMode::Xapic));
    assert_eq!((page.interrupt_status(), page.level_triggered()), (0x41, [0, 2, 0, 0]));
    assert_eq!(lapic.deliverable(), Some(0x41), "it would wake a processor that has halted");
    // The processor delivers it.
    page.write(0x220, 0);
    page.write(0x120, 2);
    assert_eq!((lapic.deliverable(), lapic.take_change()), (None, None));
    // And another of its own, which is in service with it.
    page.write(0x260, 1 << 5);
    assert_eq!(lapic.deliverable(), Some(0xc5));
    // An end that the processor has seen, and one that was finished in software.
    assert_eq!((lapic.ended(0x41), lapic.ended(0xc5)), (Effect::Eoi(0x41), Effect::None));
    assert_eq!(lapic.write(NOW, 0xb0, &[0; 4]), Effect::Eoi(0x41));
    assert_eq!((page.read(0x120), lapic.take_change()), (0, Some(ApicMode::Xapic)));
}

#[test]
fn an_interrupt_to_itself_that_the_processor_leaves_is_sent_here() {
    let (mut lapic, page) = given();
    // All including self, fixed; then an NMI; then a vector that is none.
    let _ = write(&mut lapic, &page, 0x300, 0x8_0061);
    assert_eq!(page.interrupt_status(), 0x61);
    let _ = write(&mut lapic, &page, 0x300, 0x8_0400);
    assert!(lapic.take_nmi());
    let _ = write(&mut lapic, &page, 0x300, 0x4_0005);
    let _ = write(&mut lapic, &page, 0x280, 0);
    assert_eq!(page.read(0x280), 1 << 5, "send illegal vector");
}

#[test]
fn a_timer_that_waits_in_the_page_is_due_again_all_the_same() {
    let (mut lapic, page) = given();
    let _ = write(&mut lapic, &page, 0x3e0, 0b1011);
    let _ = write(&mut lapic, &page, 0x320, 1 << 17 | 0x31);
    let _ = write(&mut lapic, &page, 0x380, 1000);
    lapic.advance(NOW + 1000);
    assert_eq!((page.interrupt_status(), lapic.next_deadline()), (0x31, Some(NOW + 2000)));
}

#[test]
fn the_mode_follows_base_and_software_enable() {
    let (mut lapic, page) = given();
    let base = |bits: u64| BASE | 0x100 | bits;
    let mut change = |index: u32, value| {
        let _ = lapic.write_msr(NOW, index, value).unwrap();
        lapic.take_change()
    };
    assert_eq!(change(msr::IA32_APIC_BASE, base(0xc00)), Some(ApicMode::X2apic));
    assert_eq!((page.read(0x20), page.read(0xd0)), (3, 1 << 3));
    assert_eq!(change(0x80f, 0xff), Some(ApicMode::Off));
    assert_eq!(change(0x80f, 0x1ff), Some(ApicMode::X2apic));
    assert_eq!(change(0x830, 5 << 32 | 0x31), None);
    assert_eq!((page.read(0x300), page.read(0x304), page.read(0x310)), (0x31, 5, 0));
    assert_eq!(change(msr::IA32_APIC_BASE, base(0)), Some(ApicMode::Off));
    assert_eq!(change(msr::IA32_APIC_BASE, base(0x800)), None, "it comes back disabled by software");
    assert_eq!((lapic.base, page.read(0x304)), (Base::BSP | Base::EN, 0));
    let _ = lapic.write(NOW, 0xf0, &[0xff, 1, 0, 0]);
    assert_eq!(lapic.take_change(), Some(ApicMode::Xapic));
    // Moved away and back again.
    assert!(lapic.write_msr(NOW, msr::IA32_APIC_BASE, 0xfed4_0900).is_ok());
    assert_eq!(lapic.take_change(), Some(ApicMode::Off));
    assert!(lapic.write_msr(NOW, msr::IA32_APIC_BASE, base(0x800)).is_ok());
    assert_eq!(lapic.take_change(), Some(ApicMode::Xapic));
    // Its registers are still those that the processor was given.
    assert_eq!((page.read(0xf0), page.read(0x20)), (0x1ff, 3 << 24));
}

#[test]
fn one_that_nobody_was_given_changes_nothing_for_anybody() {
    let mut lapic = Lapic::new(3, TSC);
    assert!(lapic.accept(&fixed(0x41, false)));
    let _ = lapic.write(NOW, 0xf0, &[0xff, 1, 0, 0]);
    assert!(!lapic.has_changed() && !lapic.is_virtualized());
}

/// Registers that the processor reads in the page by itself, in both modes.
fn is_shown(number: u32) -> bool {
    matches!(number, 0x2 | 0x3 | 0x8 | 0xd | 0xf | 0x10..=0x28 | 0x30 | 0x32..=0x38 | 0x3e)
}

proptest! {
    #[test]
    fn what_the_guest_reads_by_itself_is_what_a_read_gives(
        writes in prop::collection::vec((0u16..0x40, any::<u32>(), 0u8..8), 1..40),
        x2apic: bool,
    ) {
        let (mut lapic, page) = given();
        if x2apic {
            let _ = lapic.write_msr(NOW, msr::IA32_APIC_BASE, BASE | 0xd00).unwrap();
        }
        let mut now = NOW;
        for (number, value, order) in writes {
            now = now + (1 << (3 * order));
            lapic.advance(now);
            // Half of them without bits that may be reserved.
            let value = if order & 1 == 0 { value } else { value & 0xff };
            // Without disabling it, which nobody reads by himself then.
            let value = if number == 0xf { value | 0x100 } else { value };
            if x2apic {
                let _ = lapic.write_msr(now, 0x800 + u32::from(number), value.into());
            } else if matches!(number, 0x2 | 0xd..=0xf | 0x28 | 0x30 | 0x32..=0x38 | 0x3e) {
                page.write(usize::from(number) * 16, value);
                let _ = lapic.written(now, number * 16);
            } else {
                let _ = lapic.write(now, u64::from(number) * 16, &value.to_le_bytes());
            }
            prop_assert!(lapic.is_virtualized());
            for number in (0..0x40).filter(|&number| is_shown(number)) {
                let shown = u64::from(page.read(number as usize * 16)) | u64::from(page.read(number as usize * 16 + 4)) << 32;
                let read = if x2apic {
                    lapic.read_msr(now, 0x800 + number).unwrap()
                } else {
                    let mut data = [0; 4];
                    lapic.read(now, u64::from(number) * 16, &mut data);
                    u32::from_le_bytes(data).into()
                };
                prop_assert_eq!(shown, read, "register {:#x}", number);
            }
            if !x2apic {
                for number in [register::DFR, register::ICR_HIGH] {
                    let mut data = [0; 4];
                    lapic.read(now, u64::from(number) * 16, &mut data);
                    prop_assert_eq!(page.read(number as usize * 16), u32::from_le_bytes(data));
                }
            }
        }
    }
}
