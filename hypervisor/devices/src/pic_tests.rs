use super::*;
use Which::{Master, Slave};
use proptest::prelude::*;

/// Both chips initialized with vectors from 0x20 and 0x28 and nothing masked; ICW4 of the master as given.
fn pic_with(icw4: u8) -> Pic {
    let mut pic = Pic::new(0);
    for (which, base, cascade, icw4) in [(Master, 0x20, 0x04, icw4), (Slave, 0x28, 0x02, 0x01)] {
        pic.write(which, false, 0x11);
        for value in [base, cascade, icw4, 0x00] {
            pic.write(which, true, value);
        }
    }
    pic
}

fn pic() -> Pic {
    pic_with(0x01)
}

fn pulse(pic: &mut Pic, irq: u8) {
    pic.set_line(irq, false);
    pic.set_line(irq, true);
    pic.set_line(irq, false);
}

fn irr(pic: &mut Pic, which: Which) -> u8 {
    pic.write(which, false, 0x0a);
    pic.read(which, false)
}

fn isr(pic: &mut Pic, which: Which) -> u8 {
    pic.write(which, false, 0x0b);
    pic.read(which, false)
}

fn eoi(pic: &mut Pic, which: Which) {
    pic.write(which, false, 0x20);
}

#[test]
fn the_mask_register_reads_back_and_masks() {
    let mut pic = pic();
    pic.write(Master, true, 0xfb);
    assert_eq!(pic.read(Master, true), 0xfb);
    pulse(&mut pic, 0);
    assert!(!pic.intr());
    pic.write(Master, true, 0xfa);
    assert!(pic.intr(), "requested while masked");
}

#[test]
fn after_power_on_everything_is_masked_with_the_vectors_of_firmware() {
    let mut pic = Pic::new(0);
    pulse(&mut pic, 0);
    pulse(&mut pic, 8);
    assert!(!pic.intr());
    pic.write(Master, true, 0x00);
    assert_eq!(pic.acknowledge(), 0x08);
    pic.write(Slave, true, 0x00);
    eoi(&mut pic, Master);
    assert_eq!(pic.acknowledge(), 0x70);
}

#[test]
fn request_service_and_end() {
    let mut pic = pic();
    pulse(&mut pic, 3);
    assert_eq!((irr(&mut pic, Master), isr(&mut pic, Master)), (0x08, 0x00));
    assert_eq!(pic.acknowledge(), 0x23);
    assert_eq!((irr(&mut pic, Master), isr(&mut pic, Master)), (0x00, 0x08));
    assert!(!pic.intr());
    eoi(&mut pic, Master);
    assert_eq!(isr(&mut pic, Master), 0x00);
}

#[test]
fn fully_nested_a_lower_number_interrupts_a_higher_one_only() {
    let mut pic = pic();
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x24);
    pulse(&mut pic, 4);
    pulse(&mut pic, 5);
    assert!(!pic.intr());
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x21);
    assert_eq!(isr(&mut pic, Master), 0x12);
    eoi(&mut pic, Master);
    assert_eq!(isr(&mut pic, Master), 0x10, "the non-specific EOI ends the more important one");
    eoi(&mut pic, Master);
    assert_eq!(pic.acknowledge(), 0x24);
}

#[test]
fn the_slave_comes_through_input_2() {
    let mut pic = pic();
    pulse(&mut pic, 12);
    pulse(&mut pic, 3);
    assert_eq!(irr(&mut pic, Master), 0x0c);
    assert_eq!(pic.acknowledge(), 0x2c);
    assert_eq!((isr(&mut pic, Master), isr(&mut pic, Slave)), (0x04, 0x10));
    eoi(&mut pic, Slave);
    assert!(!pic.intr(), "input 2 is still in service");
    eoi(&mut pic, Master);
    assert_eq!(pic.acknowledge(), 0x23);
}

#[test]
fn a_second_request_of_the_slave_needs_no_edge_on_the_cascade() {
    let mut pic = pic();
    pulse(&mut pic, 8);
    pulse(&mut pic, 14);
    assert_eq!(pic.acknowledge(), 0x28);
    eoi(&mut pic, Slave);
    eoi(&mut pic, Master);
    assert_eq!(pic.acknowledge(), 0x2e);
}

#[test]
fn special_fully_nested_mode_lets_a_more_important_slave_interrupt_through() {
    for (icw4, through) in [(0x01, false), (0x11, true)] {
        let mut pic = pic_with(icw4);
        pulse(&mut pic, 12);
        assert_eq!(pic.acknowledge(), 0x2c);
        pulse(&mut pic, 9);
        assert_eq!(pic.intr(), through);
        if through {
            assert_eq!(pic.acknowledge(), 0x29);
        }
        pulse(&mut pic, 3);
        assert!(!pic.intr(), "less important than the slave");
        pulse(&mut pic, 1);
        assert!(pic.intr());
    }
}

#[test]
fn an_edge_counts_once_and_a_level_as_long_as_it_lasts() {
    let mut pic = pic();
    pic.set_line(5, true);
    assert_eq!(pic.acknowledge(), 0x25);
    eoi(&mut pic, Master);
    assert!(!pic.intr(), "no new edge");
    pic.write_elcr(Master, 0x20);
    assert!(pic.intr());
    assert_eq!(pic.acknowledge(), 0x25);
    eoi(&mut pic, Master);
    assert!(pic.intr());
    pic.set_line(5, false);
    assert!(!pic.intr());
}

#[test]
fn a_level_that_falls_before_the_acknowledge_gives_the_spurious_interrupt() {
    let mut pic = pic();
    pic.write_elcr(Master, 0x20);
    pic.set_line(5, true);
    pic.set_line(5, false);
    assert_eq!(pic.acknowledge(), 0x27);
    assert_eq!(isr(&mut pic, Master), 0x00, "in service nothing");
}

#[test]
fn elcr_keeps_the_fixed_inputs_edge_triggered() {
    let mut pic = Pic::new(0xffff);
    assert_eq!((pic.read_elcr(Master), pic.read_elcr(Slave)), (0xf8, 0xde));
    pic.write_elcr(Master, 0x0f);
    pic.write_elcr(Slave, 0x21);
    assert_eq!((pic.read_elcr(Master), pic.read_elcr(Slave)), (0x08, 0x00));
}

#[test]
fn initialization_forgets_masks_requests_and_service() {
    let mut pic = pic();
    pulse(&mut pic, 3);
    pic.acknowledge();
    pic.set_line(4, true);
    pic.write(Master, true, 0xff);
    pic.write(Master, false, 0x11);
    for value in [0x40, 0x04, 0x01] {
        pic.write(Master, true, value);
    }
    assert_eq!(pic.read(Master, true), 0x00);
    assert_eq!((irr(&mut pic, Master), isr(&mut pic, Master)), (0x00, 0x00));
    assert!(!pic.intr(), "a line that was high needs a new edge");
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x44);
}

#[test]
fn a_single_chip_without_icw4_takes_two_words() {
    let mut pic = pic();
    pic.write(Master, false, 0x12);
    pic.write(Master, true, 0x50);
    pic.write(Master, true, 0x7f);
    assert_eq!(pic.read(Master, true), 0x7f);
}

#[test]
fn automatic_eoi_leaves_nothing_in_service_and_may_rotate() {
    let mut pic = pic_with(0x03);
    pulse(&mut pic, 2 + 1);
    assert_eq!(pic.acknowledge(), 0x23);
    assert_eq!(isr(&mut pic, Master), 0x00);
    pic.write(Master, false, 0x80);
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x23);
    pulse(&mut pic, 3);
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x24, "3 has become the least important");
    pic.write(Master, false, 0x00);
    assert_eq!(pic.acknowledge(), 0x23);
    pulse(&mut pic, 4);
    pulse(&mut pic, 5);
    assert_eq!(pic.acknowledge(), 0x25, "rotation is off again; 4 was the last to rotate");
}

#[test]
fn rotation_on_eoi_and_by_command() {
    let mut pic = pic();
    pulse(&mut pic, 4);
    pic.acknowledge();
    pic.write(Master, false, 0xa0);
    pulse(&mut pic, 4);
    pulse(&mut pic, 7);
    assert_eq!(pic.acknowledge(), 0x27);
    // Specific: end 7 and put it last.
    pic.write(Master, false, 0xe7);
    assert_eq!(isr(&mut pic, Master), 0x00);
    assert_eq!(pic.acknowledge(), 0x24);
    pic.write(Master, false, 0x64);
    assert_eq!(isr(&mut pic, Master), 0x00);
    // Set priority: 3 is last, 4 first.
    pic.write(Master, false, 0xc3);
    pulse(&mut pic, 0);
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x24);
}

#[test]
fn special_mask_mode_lets_everything_but_the_masked_through() {
    let mut pic = pic();
    pulse(&mut pic, 1);
    pic.acknowledge();
    pic.write(Master, true, 0x02);
    pulse(&mut pic, 6);
    assert!(!pic.intr());
    pic.write(Master, false, 0x68);
    assert_eq!(pic.acknowledge(), 0x26);
    assert_eq!(isr(&mut pic, Master), 0x42);
    eoi(&mut pic, Master);
    assert_eq!(isr(&mut pic, Master), 0x02, "the non-specific EOI passes the masked one by");
    eoi(&mut pic, Master);
    assert_eq!(isr(&mut pic, Master), 0x02);
    pic.write(Master, false, 0x48);
    pulse(&mut pic, 6);
    assert!(!pic.intr());
}

#[test]
fn poll_acknowledges() {
    let mut pic = pic();
    pulse(&mut pic, 5);
    pic.write(Master, false, 0x0c);
    assert_eq!(pic.read(Master, false), 0x85);
    assert_eq!(isr(&mut pic, Master), 0x20);
    pic.write(Master, false, 0x0c);
    assert_eq!(pic.read(Master, false), 0x00);
}

proptest! {
    #[test]
    fn no_sequence_panics_and_a_request_is_never_spurious(
        steps in prop::collection::vec((0u8..8, any::<u8>(), any::<bool>()), 0..300)
    ) {
        let mut pic = pic();
        for (what, value, flag) in steps {
            let which = if value & 0x80 == 0 { Master } else { Slave };
            match what {
                0 | 1 => pic.set_line(value % 18, flag),
                2 => pic.write(which, flag, value.rotate_left(3)),
                3 => pic.write(which, false, 0x20),
                4 => pic.write_elcr(which, value),
                5 => {
                    pic.read(which, flag);
                }
                _ => {
                    let requested = pic.intr();
                    let in_service = pic.master.isr;
                    pic.acknowledge();
                    if !requested {
                        prop_assert_eq!(pic.master.isr, in_service);
                    } else if !pic.master.auto_eoi {
                        prop_assert!(pic.master.isr & !in_service != 0 || pic.master.special_fully_nested
                            || pic.master.special_mask);
                    }
                }
            }
            prop_assert_eq!(pic.master.latched & 4 != 0, pic.slave.request().is_some());
        }
    }
}
