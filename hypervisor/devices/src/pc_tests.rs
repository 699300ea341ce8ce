use super::*;
use alloc::vec;
use lamina_arch::msr;
use lamina_arch::time::Frequency;
use lamina_vmm::chipset::FirmwareFile;

const HZ: u64 = 1_000_000_000;

fn setup() -> ChipsetSetup {
    ChipsetSetup {
        tsc: Frequency::from_hz(HZ),
        now: Tsc(0),
        unix_seconds: 1_700_000_000,
        memory: 256 << 20,
        apic_id: 0,
        extras: Extras::default(),
    }
}

/// Everything that a PC may have.
fn all_extras() -> Extras {
    let files = vec![FirmwareFile::number("etc/sercon-port", 0x3f8)];
    let image: Vec<u8> = (0..8 * 2048usize).map(|n| (n / 2048).to_le_bytes()[0]).collect();
    Extras { firmware: Some(files), vga: true, hpet: true, cdrom: Some(image.leak()), debug_port: true }
}

fn pc() -> Pc {
    Pc::new(&setup())
}

/// A PC and a time, with the accesses as a program writes them.
struct Rig {
    pc: Pc,
    now: u64,
}

impl Rig {
    fn new() -> Rig {
        Rig { pc: pc(), now: 0 }
    }

    fn with_everything() -> Rig {
        Rig { pc: Pc::new(&ChipsetSetup { extras: all_extras(), ..setup() }), now: 0 }
    }

    fn outb(&mut self, port: u16, value: u8) -> Signal {
        self.pc.port_write(Tsc(self.now), port, &[value])
    }

    fn inb(&mut self, port: u16) -> u8 {
        let mut data = [0];
        self.pc.port_read(Tsc(self.now), port, &mut data);
        data[0]
    }

    fn quiet(&mut self, writes: &[(u16, u8)]) {
        for &(port, value) in writes {
            assert_eq!(self.outb(port, value), Signal::None);
        }
    }

    fn lapic_write(&mut self, offset: u64, value: u32) {
        assert!(self.pc.mmio_write(Tsc(self.now), layout::LAPIC + offset, &value.to_le_bytes()));
    }

    fn lapic_read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        assert!(self.pc.mmio_read(Tsc(self.now), layout::LAPIC + offset, &mut data));
        u32::from_le_bytes(data)
    }

    fn ioapic_write(&mut self, index: u8, value: u32) {
        assert!(self.pc.mmio_write(Tsc(self.now), layout::IOAPIC, &[index, 0, 0, 0]));
        assert!(self.pc.mmio_write(Tsc(self.now), layout::IOAPIC + 0x10, &value.to_le_bytes()));
    }

    fn advance_to(&mut self, now: u64) {
        self.now = now;
        self.pc.advance(Tsc(now));
    }

    /// The 8259s as Linux programs them: vectors from 0x30, everything masked but `unmasked`.
    fn program_pics(&mut self, unmasked: u16) {
        let [low, high] = (!unmasked).to_le_bytes();
        self.quiet(&[(0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, 0x01), (0x21, low)]);
        self.quiet(&[(0xa0, 0x11), (0xa1, 0x38), (0xa1, 0x02), (0xa1, 0x01), (0xa1, high)]);
    }

    /// The timer's counter 0 as a rate generator of `count`.
    fn program_pit(&mut self, count: u16) {
        let [low, high] = count.to_le_bytes();
        self.quiet(&[(0x43, 0x34), (0x40, low), (0x40, high)]);
    }
}

#[test]
fn the_maps_have_no_overlap() {
    for extras in [Extras::default(), all_extras()] {
        assert!(ports::map(&extras).is_ok());
        assert!(memory_map(&extras).is_ok());
    }
}

#[test]
fn timer_interrupts_through_the_8259_in_virtual_wire_mode() {
    let mut rig = Rig::new();
    rig.program_pics(1 << 0);
    rig.program_pit(11_932);
    let deadline = rig.pc.next_deadline().unwrap();
    // 11932 counts and the one that loads them.
    assert!((10_000_500..10_001_500).contains(&deadline.0), "{deadline:?}");
    rig.advance_to(deadline.0 - 1);
    assert!(!rig.pc.interrupt_pending());
    rig.advance_to(deadline.0);
    assert!(rig.pc.interrupt_pending());
    assert_eq!(rig.pc.acknowledge(), Some(0x30));
    assert!(!rig.pc.interrupt_pending());
    assert_eq!(rig.pc.acknowledge(), None);
    // In service: the next one waits for the EOI.
    rig.advance_to(deadline.0 + 20_000_000);
    assert!(!rig.pc.interrupt_pending());
    rig.quiet(&[(0x20, 0x20)]);
    assert!(rig.pc.interrupt_pending());
    assert_eq!(rig.pc.acknowledge(), Some(0x30));
    rig.quiet(&[(0x20, 0x20)]);
    assert!(!rig.pc.interrupt_pending(), "two ticks that were missed are one");
}

#[test]
fn timer_interrupts_through_the_ioapic_pin_2() {
    let mut rig = Rig::new();
    rig.program_pics(0);
    rig.ioapic_write(0x10 + 2 * 2, 0x31);
    rig.program_pit(1000);
    rig.advance_to(rig.pc.next_deadline().unwrap().0);
    assert_eq!(rig.pc.acknowledge(), Some(0x31));
    assert_eq!(rig.lapic_read(0x110), 1 << 17, "in service");
    rig.lapic_write(0xb0, 0);
    assert_eq!(rig.lapic_read(0x110), 0);
}

#[test]
fn lapic_timer_periodic_and_its_task_priority() {
    let mut rig = Rig::new();
    rig.lapic_write(0x3e0, 0b1011);
    rig.lapic_write(0x320, 1 << 17 | 0xec);
    // 25 MHz: 1 ms.
    rig.lapic_write(0x380, 25_000);
    assert_eq!(rig.pc.next_deadline(), Some(Tsc(1_000_000)));
    rig.pc.set_cr8(0xe).unwrap();
    rig.advance_to(1_000_000);
    assert!(!rig.pc.interrupt_pending(), "class 14 does not pass a task priority of 14");
    assert_eq!(rig.pc.next_deadline(), None, "one waits already");
    rig.pc.set_cr8(0xd).unwrap();
    assert!(rig.pc.interrupt_pending());
    rig.advance_to(3_500_000);
    assert_eq!(rig.pc.acknowledge(), Some(0xec));
    assert_eq!(rig.pc.next_deadline(), Some(Tsc(4_000_000)), "those of 2 and 3 ms have merged");
    rig.lapic_write(0xb0, 0);
    assert!(!rig.pc.interrupt_pending());
    assert_eq!(rig.pc.set_cr8(16), Err(GuestFault::GP0));
}

#[test]
fn the_8259_goes_first_and_ignores_the_task_priority() {
    let mut rig = Rig::new();
    rig.program_pics(1 << 0);
    rig.lapic_write(0x320, 0xec);
    rig.lapic_write(0x380, 1);
    rig.program_pit(100);
    rig.advance_to(1_000_000);
    rig.pc.set_cr8(15).unwrap();
    assert!(rig.pc.interrupt_pending());
    assert_eq!(rig.pc.acknowledge(), Some(0x30));
    assert_eq!(rig.pc.acknowledge(), None);
    rig.pc.set_cr8(0).unwrap();
    assert_eq!(rig.pc.acknowledge(), Some(0xec));
}

#[test]
fn the_ways_of_the_8259s_output() {
    let mut rig = Rig::new();
    rig.program_pics(1 << 0);
    rig.program_pit(100);
    rig.advance_to(1_000_000);
    assert!(rig.pc.interrupt_pending());
    rig.lapic_write(0x350, 1 << 16 | 0x700);
    assert!(!rig.pc.interrupt_pending(), "LINT0 masked");
    rig.ioapic_write(0x10, 0x700);
    assert!(rig.pc.interrupt_pending(), "pin 0 of the I/O APIC passes ExtINT");
    rig.ioapic_write(0x10, 1 << 16);
    assert!(!rig.pc.interrupt_pending());
    rig.pc.msr_write(Tsc(rig.now), msr::IA32_APIC_BASE, 0xfee0_0100).unwrap();
    assert!(rig.pc.interrupt_pending(), "no local APIC in between");
    assert_eq!(rig.pc.acknowledge(), Some(0x30));
    let mut data = [0; 4];
    assert!(!rig.pc.mmio_read(Tsc(rig.now), layout::LAPIC + 0x30, &mut data));
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn the_local_apic_answers_where_it_was_moved_to_and_not_where_it_was() {
    let mut rig = Rig::new();
    let mut data = [0; 4];
    // Its new place may be a device's: it goes before that.
    for at in [Gpa(0xfed4_0000), layout::IOAPIC] {
        rig.pc.msr_write(Tsc(0), msr::IA32_APIC_BASE, at.0 | 0x900).unwrap();
        assert!(rig.pc.mmio_read(Tsc(0), at + 0x30, &mut data));
        assert_eq!(data, [0x14, 0, 5, 0]);
        assert!(!rig.pc.mmio_read(Tsc(0), layout::LAPIC + 0x30, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert!(rig.pc.mmio_write(Tsc(0), at + 0x80, &[0x20, 0, 0, 0]));
        assert_eq!(rig.pc.cr8(), 2);
    }
}

#[test]
fn a_level_triggered_sci_comes_again_until_it_is_cleared() {
    let mut rig = Rig::new();
    rig.ioapic_write(0x10 + 2 * 9, 0x8000 | 0x50);
    assert_eq!(rig.pc.port_write(Tsc(0), 0x602, &[1, 0]), Signal::None);
    rig.advance_to(rig.pc.next_deadline().unwrap().0);
    assert_eq!(rig.pc.acknowledge(), Some(0x50));
    assert!(!rig.pc.interrupt_pending());
    rig.lapic_write(0xb0, 0);
    assert_eq!(rig.pc.acknowledge(), Some(0x50), "still active at the EOI");
    assert_eq!(rig.pc.port_write(Tsc(rig.now), 0x600, &[1, 0]), Signal::None);
    rig.lapic_write(0xb0, 0);
    assert!(!rig.pc.interrupt_pending());
}

#[test]
fn in_x2apic_mode_the_registers_leave_memory_and_the_eoi_reaches_the_ioapic() {
    let mut rig = Rig::new();
    rig.ioapic_write(0x10 + 2 * 9, 0x8000 | 0x50);
    rig.pc.msr_write(Tsc(0), msr::IA32_APIC_BASE, 0xfee0_0d00).unwrap();
    assert!(!rig.pc.mmio_write(Tsc(0), layout::LAPIC + 0xb0, &[0; 4]));
    assert_eq!(rig.pc.port_write(Tsc(0), 0x602, &[1, 0]), Signal::None);
    rig.advance_to(rig.pc.next_deadline().unwrap().0);
    assert_eq!(rig.pc.acknowledge(), Some(0x50));
    assert!(!rig.pc.interrupt_pending());
    rig.pc.msr_write(Tsc(rig.now), 0x80b, 0).unwrap();
    assert_eq!(rig.pc.acknowledge(), Some(0x50));
    // The deadline MSR moves the cached deadline both ways.
    rig.pc.msr_write(Tsc(rig.now), 0x832, 0x4_00ec).unwrap();
    rig.pc.msr_write(Tsc(rig.now), msr::IA32_TSC_DEADLINE, rig.now + 500).unwrap();
    assert_eq!(rig.pc.next_deadline(), Some(Tsc(rig.now + 500)));
    rig.advance_to(rig.now + 500);
    assert_eq!(rig.pc.acknowledge(), Some(0xec));
    assert_eq!(rig.pc.next_deadline(), None);
    assert_eq!(rig.pc.msr_read(Tsc(rig.now), msr::IA32_TSC_DEADLINE), Ok(0));
}

#[test]
fn a_level_interrupt_refused_by_a_disabled_lapic_comes_when_it_is_enabled() {
    let mut rig = Rig::new();
    rig.lapic_write(0xf0, 0xff);
    rig.ioapic_write(0x10 + 2 * 9, 0x8000 | 0x50);
    assert_eq!(rig.pc.port_write(Tsc(0), 0x602, &[1, 0]), Signal::None);
    rig.advance_to(rig.pc.next_deadline().unwrap().0);
    assert!(!rig.pc.interrupt_pending());
    rig.lapic_write(0xf0, 0x1ff);
    assert_eq!(rig.pc.acknowledge(), Some(0x50));
}

#[test]
fn the_serial_port_interrupts_and_its_output_waits_for_the_sink() {
    let mut rig = Rig::new();
    rig.program_pics(1 << 4);
    rig.quiet(&[(0x3fc, 0x0b), (0x3f9, 0x02)]);
    assert_eq!(rig.pc.acknowledge(), Some(0x34), "enabled while the transmitter is empty");
    rig.quiet(&[(0x20, 0x20)]);
    assert_eq!(rig.inb(0x3fa), 0x02);
    rig.quiet(&[(0x3f8, b'x')]);
    assert!(rig.pc.has_output());
    rig.pc.take_output(Tsc(0), &mut |_| false);
    assert_eq!(rig.inb(0x3fd), 0x00, "busy");
    let mut out = Vec::new();
    rig.pc.take_output(Tsc(0), &mut |byte| {
        out.push(byte);
        true
    });
    assert_eq!(out, b"x");
    assert!(!rig.pc.has_output());
    assert_eq!(rig.pc.acknowledge(), Some(0x34));
}

#[test]
fn clock_and_keyboard_interrupt_on_lines_8_and_1() {
    let mut rig = Rig::new();
    rig.program_pics(1 << 8 | 1 << 2 | 1 << 1);
    rig.quiet(&[(0x70, 0x0b), (0x71, 0x12)]);
    assert_eq!(rig.pc.next_deadline(), Some(Tsc(HZ)), "the next second");
    rig.advance_to(HZ);
    assert_eq!(rig.pc.acknowledge(), Some(0x38));
    rig.quiet(&[(0xa0, 0x20), (0x20, 0x20), (0x70, 0x0c)]);
    assert_eq!(rig.inb(0x71), 0xd0);
    assert_eq!(rig.pc.next_deadline(), Some(Tsc(2 * HZ)));
    rig.quiet(&[(0x64, 0x60), (0x60, 0x01), (0x60, 0xf2)]);
    assert_eq!(rig.pc.acknowledge(), Some(0x31));
    assert_eq!(rig.inb(0x60), 0xfa);
    assert!(!rig.pc.interrupt_pending(), "in service");
    rig.quiet(&[(0x20, 0x20)]);
    assert_eq!(rig.pc.acknowledge(), Some(0x31), "each byte of an answer is an edge");
    assert_eq!((rig.inb(0x60), rig.inb(0x60)), (0xab, 0x83));
}

#[test]
fn a_key_that_is_typed_interrupts_with_its_make_and_break_codes() {
    let mut rig = Rig::new();
    rig.program_pics(1 << 1);
    assert_eq!(rig.outb(0x64, 0x60), Signal::None);
    assert_eq!(rig.outb(0x60, 0x65), Signal::None);
    assert!(rig.pc.type_key(Tsc(0), Key::Char('x')));
    for code in [0x2d, 0xad] {
        assert_eq!(rig.pc.acknowledge(), Some(0x31));
        assert_eq!(rig.inb(0x60), code);
        rig.quiet(&[(0x20, 0x20)]);
    }
    assert!(!rig.pc.interrupt_pending());
}

#[test]
fn received_bytes_interrupt() {
    let mut rig = Rig::new();
    rig.program_pics(1 << 4);
    rig.quiet(&[(0x3fc, 0x0b), (0x3f9, 0x01), (0x3fa, 0x81)]);
    assert_eq!(rig.pc.give_input(Tsc(0), b"ls\n"), 3);
    assert!(!rig.pc.interrupt_pending(), "below the trigger level of 8");
    rig.advance_to(rig.pc.next_deadline().unwrap().0);
    assert_eq!(rig.pc.acknowledge(), Some(0x34));
    assert_eq!(rig.inb(0x3fa), 0xcc);
    assert_eq!([rig.inb(0x3f8), rig.inb(0x3f8), rig.inb(0x3f8)], *b"ls\n");
    assert_eq!(rig.inb(0x3fa), 0xc1);
}

#[test]
fn ports_that_end_or_reset() {
    let mut rig = Rig::new();
    let s5 = (0x2001 | u16::from(layout::S5_SLP_TYP) << 10).to_le_bytes();
    assert_eq!(rig.pc.port_write(Tsc(0), 0x604, &s5), Signal::PowerOff);
    assert_eq!(rig.outb(0x64, 0xfe), Signal::Reset);
    assert_eq!(rig.outb(0x92, 0x03), Signal::Reset);
    assert_eq!(rig.outb(0xf4, 7), Signal::Status(7));
    assert_eq!(rig.pc.port_write(Tsc(0), 0xf4, &0x1234_5678u32.to_le_bytes()), Signal::Status(0x1234_5678));
}

#[test]
fn only_the_whole_string_shuts_down() {
    let mut rig = Rig::new();
    for byte in *b"ShutdowShSShutdow" {
        assert_eq!(rig.outb(0x8900, byte), Signal::None);
    }
    assert_eq!(rig.outb(0x8900, b'n'), Signal::PowerOff);
    assert_eq!(rig.outb(0x8900, b'n'), Signal::None);
}

#[test]
fn reset_control_shares_its_port_with_pcis_address() {
    let mut rig = Rig::new();
    let now = Tsc(0);
    assert_eq!(rig.pc.port_write(now, 0xcf8, &0x8000_0604u32.to_le_bytes()), Signal::None, "bits 15:8 are 6");
    let mut data = [0; 4];
    rig.pc.port_read(now, 0xcf8, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x8000_0604);
    assert_eq!(rig.outb(0xcf9, 0x02), Signal::None);
    assert_eq!(rig.inb(0xcf9), 0x02);
    assert_eq!(rig.outb(0xcf9, 0x06), Signal::Reset);
    assert_eq!(rig.outb(0xcf9, 0x06), Signal::None, "no rising edge");
    rig.pc.port_read(now, 0xcf8, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x8000_0604, "the address is untouched");
    assert_eq!(rig.inb(0xcf8), 0xff);
}

#[test]
fn wide_accesses_to_narrow_devices_are_several_narrow_ones() {
    let mut rig = Rig::new();
    let mut data = [0; 2];
    assert_eq!(rig.pc.port_write(Tsc(0), 0x3fe, &[0, 0x5a]), Signal::None);
    rig.pc.port_read(Tsc(0), 0x3fe, &mut data);
    assert_eq!(data, [0xb0, 0x5a]);
    assert_eq!(rig.pc.port_write(Tsc(0), 0x70, &[0x0f, 0x99]), Signal::None);
    assert_eq!(rig.inb(0x71), 0x99);
    rig.pc.port_read(Tsc(0), 0x3ff, &mut data);
    assert_eq!(data, [0x5a, 0xff]);
}

#[test]
fn a_peek_reads_what_a_read_reads_and_changes_nothing() {
    let mut pc = pc();
    let mut peeked = 0;
    // Between two looks, time passes and both counters and the serial port are at work.
    let _ = pc.port_write(Tsc(10), 0x43, &[0x34]);
    let _ = pc.port_write(Tsc(11), 0x40, &[0x10]);
    let _ = pc.port_write(Tsc(12), 0x40, &[0x27]);
    let _ = pc.port_write(Tsc(13), 0x3f8, b"x");
    for (now, port) in (1_000u64..).step_by(7).map(Tsc).zip(0..=u16::MAX) {
        let mut read = pc.clone();
        let Some(value) = pc.port_peek(now, port) else { continue };
        let mut data = [0];
        read.port_read(now, port, &mut data);
        assert_eq!(data, [value], "{port:#x}");
        assert_eq!(
            (pc.next_deadline(), pc.interrupt_pending(), pc.has_output(), pc.unclaimed()),
            (read.next_deadline(), read.interrupt_pending(), read.has_output(), read.unclaimed()),
            "{port:#x}"
        );
        peeked += 1;
    }
    assert!(peeked >= 6, "{peeked}");
    // A timer that is due has to be served first.
    let due = pc.next_deadline().unwrap();
    assert_eq!(pc.port_peek(due, 0x61), None);
    // So does a poll command, whose answer acknowledges, and an overrun that a read clears.
    let _ = pc.port_write(Tsc(1_000_000), 0x20, &[0x0c]);
    assert_eq!(pc.port_peek(Tsc(1_000_000), 0x21), None);
}

#[test]
fn what_nobody_answers_is_all_ones_and_counted() {
    let mut rig = Rig::new();
    let mut data = [0; 4];
    rig.pc.port_read(Tsc(0), 0x2f8, &mut data);
    assert_eq!(data, [0xff; 4]);
    assert_eq!(rig.outb(0xe9, 0), Signal::None);
    assert!(!rig.pc.mmio_write(Tsc(0), Gpa(0xfed0_0000), &[0; 4]));
    assert_eq!(rig.pc.unclaimed(), 3);
    assert_eq!(rig.outb(0x80, 0x42), Signal::None);
    assert_eq!(rig.inb(0x80), 0x42);
    assert_eq!(rig.pc.unclaimed(), 3);
}

#[test]
fn an_nmi_through_the_interrupt_command_register_is_taken_once() {
    let mut rig = Rig::new();
    assert!(!rig.pc.take_nmi());
    rig.lapic_write(0x300, 0x400);
    assert!(rig.pc.take_nmi());
    assert!(!rig.pc.take_nmi());
}

#[path = "pc_extras_tests.rs"]
mod extras;
#[path = "pc_random_tests.rs"]
mod random;

#[test]
fn a_pci_interrupt_goes_where_it_is_routed() {
    let mut rig = Rig::new();
    rig.program_pics(!0);
    assert_eq!(rig.inb(0x4d1) & 0x0c, 0x0c, "interrupts 10 and 11 are level-triggered");
    // INTA# of slot 3 is line 2, which is interrupt 11; of slot 2 line 1, interrupt 10.
    rig.pc.set_intx(3, 0, true);
    assert_eq!(rig.pc.acknowledge(), Some(0x3b));
    rig.quiet(&[(0xa0, 0x20), (0x20, 0x20)]);
    rig.pc.set_intx(2, 0, true);
    assert_eq!(rig.pc.acknowledge(), Some(0x3a), "goes before 11");
    rig.pc.set_intx(2, 0, false);
    rig.quiet(&[(0xa0, 0x20), (0x20, 0x20)]);
    assert_eq!(rig.pc.acknowledge(), Some(0x3b), "still asserted");
    rig.quiet(&[(0xa0, 0x20), (0x20, 0x20)]);
    // A second device on the line (INTB# of slot 2) holds it when the first lets go.
    rig.pc.set_intx(2, 1, true);
    rig.pc.set_intx(3, 0, false);
    assert!(rig.pc.interrupt_pending());
    // Routed elsewhere while it is asserted.
    let _ = rig.pc.port_write(Tsc(0), 0xcf8, &0x8000_0860u32.to_le_bytes());
    let _ = rig.pc.port_write(Tsc(0), 0xcfe, &[5]);
    assert_eq!(rig.pc.acknowledge(), Some(0x35));
    rig.quiet(&[(0x20, 0x20)]);
    let _ = rig.pc.mmio_write(Tsc(0), Gpa(layout::ECAM.0 + 0x8062), &[0x80]);
    assert!(!rig.pc.interrupt_pending(), "disconnected");
}

#[test]
fn pci_interrupts_have_pins_of_their_own() {
    let mut rig = Rig::new();
    let ioapic = |rig: &mut Rig, index: u32, value: u32| {
        assert!(rig.pc.mmio_write(Tsc(0), layout::IOAPIC, &index.to_le_bytes()));
        assert!(rig.pc.mmio_write(Tsc(0), Gpa(layout::IOAPIC.0 + 0x10), &value.to_le_bytes()));
    };
    assert!(rig.pc.mmio_write(Tsc(0), Gpa(layout::LAPIC.0 + 0xf0), &0x1ffu32.to_le_bytes()));
    // Pin 18, vector 0x61: level-triggered, active low.
    ioapic(&mut rig, 0x10 + 2 * 18, 0xa061);
    assert!(!rig.pc.interrupt_pending(), "a line that nobody asserts is high");
    rig.pc.set_intx(3, 0, true);
    assert_eq!(rig.pc.acknowledge(), Some(0x61));
    rig.pc.set_intx(3, 0, false);
    assert!(rig.pc.mmio_write(Tsc(0), Gpa(layout::LAPIC.0 + 0xb0), &[0; 4]));
    assert!(!rig.pc.interrupt_pending());
}
