//! The keyboard controller (Intel 8042 as in the IBM AT, "Keyboard Controller") with a keyboard plugged in and no mouse,
//! and the fast A20 port 0x92.
//!
//! Owns the command byte, the output port, the output buffer, the level of the keyboard's interrupt line, and the
//! keyboard. Answers every command at once, so that no guest waits for one, but presses keys no faster than firmware can
//! take them. The A20 gate is remembered, and has no
//! effect: no guest here depends on address 1 MiB wrapping to 0.

use crate::keyboard::Keyboard;
use lamina_arch::time::{Frequency, Tsc};
use lamina_vmm::chipset::{Key, Signal};
use lamina_vmm::fault::{self, Site};

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
/// Clear where the keyboard lock is on.
const STATUS_UNLOCKED: u8 = 1 << 4;
/// Command byte: interrupt 1 when a byte of the keyboard's waits.
const COMMAND_KEYBOARD_IRQ: u8 = 1 << 0;
/// Command byte: the self-test has passed.
const COMMAND_SYSTEM: u8 = 1 << 2;
const COMMAND_KEYBOARD_OFF: u8 = 1 << 4;
const COMMAND_AUX_OFF: u8 = 1 << 5;
/// Command byte: scan codes are translated to set 1.
const COMMAND_TRANSLATE: u8 = 1 << 6;
/// Output port: the processor's reset line, active low.
const OUTPUT_NO_RESET: u8 = 1 << 0;
/// Output port, and port 0x92: the A20 gate.
const A20: u8 = 1 << 1;
/// Output port, bits as they stand: no reset, A20 open, both clocks idle.
const OUTPUT_IDLE: u8 = 0xcc | OUTPUT_NO_RESET | A20;

/// Time from one key to the next: fast for a person, and slow enough that a program fetches one before the BIOS' own buffer
/// of 15 keys is full, although the BIOS reads every code at once. Unit: nanoseconds.
const KEY_PAUSE_NS: u64 = 20_000_000;

/// A command that waits for its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    None,
    CommandByte,
    OutputPort,
    /// To be given back as if the keyboard had sent it (0xd2) or, there being no such port, the mouse (0xd3).
    Echo,
    /// For the mouse, which is not there.
    Ignored,
}

/// A byte in the output buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Keyboard(u8),
    Controller(u8),
}

/// The controller.
#[derive(Clone, Debug, PartialEq)]
pub struct I8042 {
    command_byte: u8,
    output_port: u8,
    /// A byte that waits.
    output: Option<Output>,
    /// A byte of the keyboard's that had to make room for an answer of the controller's.
    held: Option<u8>,
    last_output: u8,
    keyboard: Keyboard,
    /// Time from one key to the next. Unit: ticks.
    key_pause: u64,
    /// The latest time seen, and when the next key may be pressed.
    now: Tsc,
    next_key: Tsc,
    /// The last write was a command.
    command_last: bool,
    parameter: Parameter,
}

impl I8042 {
    /// The controller as firmware leaves it for a loader that brings its own driver: tested, keyboard and mouse port
    /// off, A20 open. `tsc`: the rate of the counter that times are given in.
    pub const fn new(tsc: Frequency) -> I8042 {
        I8042 {
            command_byte: COMMAND_SYSTEM | COMMAND_KEYBOARD_OFF | COMMAND_AUX_OFF | COMMAND_TRANSLATE,
            output_port: OUTPUT_IDLE,
            output: None,
            held: None,
            last_output: 0,
            keyboard: Keyboard::new(),
            key_pause: tsc.ticks_in_ns(KEY_PAUSE_NS),
            now: Tsc(0),
            next_key: Tsc(0),
            command_last: false,
            parameter: Parameter::None,
        }
    }

    /// It is `now`: presses the next key if that is due.
    pub fn advance(&mut self, now: Tsc) {
        self.now = self.now.max(now);
        self.fill();
    }

    /// When [`I8042::advance`] is to press a key; `None` where none waits, or another is to be read first.
    pub fn next_deadline(&self) -> Option<Tsc> {
        let waits = self.output.is_none() && self.keyboard_on() && self.keyboard.is_ready();
        waits.then_some(self.next_key)
    }

    /// Reads port 0x60.
    pub fn read_data(&mut self) -> u8 {
        fault::point(Site::KeyboardRead);
        if let Some(Output::Keyboard(byte) | Output::Controller(byte)) = self.output.take() {
            self.last_output = byte;
        }
        self.fill();
        self.last_output
    }

    /// Reads port 0x64.
    pub const fn read_status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED;
        if self.command_byte & COMMAND_SYSTEM != 0 {
            status |= STATUS_SYSTEM;
        }
        if self.command_last {
            status |= STATUS_COMMAND;
        }
        if self.output.is_some() { status | STATUS_OUTPUT_FULL } else { status }
    }

    /// Writes port 0x60.
    pub fn write_data(&mut self, value: u8) -> Signal {
        self.command_last = false;
        match core::mem::replace(&mut self.parameter, Parameter::None) {
            Parameter::CommandByte => self.command_byte = value,
            Parameter::OutputPort => {
                self.output_port = value;
                if value & OUTPUT_NO_RESET == 0 {
                    return Signal::Reset;
                }
            }
            Parameter::Echo => self.answer(value),
            Parameter::Ignored => {}
            Parameter::None => {
                // A byte for the keyboard switches its port on.
                self.command_byte &= !COMMAND_KEYBOARD_OFF;
                self.keyboard.receive(value);
            }
        }
        self.fill();
        Signal::None
    }

    /// Writes port 0x64.
    pub fn write_command(&mut self, value: u8) -> Signal {
        self.command_last = true;
        self.parameter = Parameter::None;
        match value {
            0x20 => self.answer(self.command_byte),
            0x60 => self.parameter = Parameter::CommandByte,
            0xa7 => self.command_byte |= COMMAND_AUX_OFF,
            0xa8 => self.command_byte &= !COMMAND_AUX_OFF,
            // The mouse port's clock is stuck low: there is none.
            0xa9 => self.answer(0x01),
            0xaa => {
                self.command_byte |= COMMAND_SYSTEM;
                self.answer(0x55);
            }
            0xab => self.answer(0x00),
            0xad => self.command_byte |= COMMAND_KEYBOARD_OFF,
            0xae => self.command_byte &= !COMMAND_KEYBOARD_OFF,
            // The input port: no manufacturing jumper, keyboard not locked.
            0xc0 => self.answer(0xa0),
            0xd0 => self.answer(self.output_port),
            0xd1 => self.parameter = Parameter::OutputPort,
            0xd2 | 0xd3 => self.parameter = Parameter::Echo,
            0xd4 => self.parameter = Parameter::Ignored,
            0xdd => self.output_port &= !A20,
            0xdf => self.output_port |= A20,
            // Pulses the output port's low bits that are 0 in the command; bit 0 is the reset line.
            0xf0..=0xff if value & OUTPUT_NO_RESET == 0 => return Signal::Reset,
            _ => {}
        }
        self.fill();
        Signal::None
    }

    /// Reads port 0x92.
    pub const fn read_fast_a20(&self) -> u8 {
        self.output_port & A20
    }

    /// Writes port 0x92: bit 1 is the A20 gate, bit 0 resets.
    pub fn write_fast_a20(&mut self, value: u8) -> Signal {
        self.output_port = self.output_port & !A20 | value & A20;
        if value & 1 != 0 { Signal::Reset } else { Signal::None }
    }

    /// The level of the keyboard's interrupt line (1).
    pub const fn irq(&self) -> bool {
        self.output.is_some() && self.command_byte & COMMAND_KEYBOARD_IRQ != 0
    }

    /// Has `key` pressed and released when its turn comes; false where that cannot be.
    pub fn type_key(&mut self, key: Key) -> bool {
        let typed = self.keyboard.type_key(key);
        self.fill();
        typed
    }

    /// An answer of the controller's is what is read next.
    fn answer(&mut self, byte: u8) {
        if let Some(Output::Keyboard(earlier)) = self.output {
            self.held = Some(earlier);
        }
        self.output = Some(Output::Controller(byte));
    }

    /// Takes the keyboard's next byte, if there is room and its port is on.
    fn fill(&mut self) {
        if self.output.is_none() {
            let next = self.held.take().or_else(|| self.next_of_keyboard());
            self.output = next.map(Output::Keyboard);
        }
    }

    fn next_of_keyboard(&mut self) -> Option<u8> {
        if !self.keyboard_on() {
            return None;
        }
        let translate = self.command_byte & COMMAND_TRANSLATE != 0;
        self.keyboard.send(translate).or_else(|| {
            if !self.keyboard.is_ready() || self.now < self.next_key {
                return None;
            }
            self.next_key = self.now + self.key_pause;
            self.keyboard.press();
            self.keyboard.send(translate)
        })
    }

    const fn keyboard_on(&self) -> bool {
        self.command_byte & COMMAND_KEYBOARD_OFF == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TSC: Frequency = Frequency::from_hz(1_000_000_000);
    const PAUSE: u64 = KEY_PAUSE_NS;

    fn command(controller: &mut I8042, value: u8) -> u8 {
        assert_eq!(controller.write_command(value), Signal::None);
        assert_eq!(controller.read_status() & STATUS_OUTPUT_FULL, STATUS_OUTPUT_FULL);
        controller.read_data()
    }

    #[test]
    fn nothing_waits_at_first_and_the_status_is_not_open_bus() {
        let controller = I8042::new(TSC);
        assert_eq!(controller.read_status(), STATUS_UNLOCKED | STATUS_SYSTEM);
        assert!(!controller.irq());
    }

    #[test]
    fn self_test_and_interface_tests() {
        let mut controller = I8042::new(TSC);
        assert_eq!(command(&mut controller, 0xaa), 0x55);
        assert_eq!(command(&mut controller, 0xab), 0x00);
        assert_eq!(command(&mut controller, 0xa9), 0x01);
        assert_eq!(controller.read_status() & STATUS_OUTPUT_FULL, 0);
        assert_eq!(controller.read_data(), 0x01, "the data port keeps its last byte");
    }

    #[test]
    fn the_command_byte_reads_back_and_follows_the_enable_commands() {
        let mut controller = I8042::new(TSC);
        assert_eq!(controller.write_command(0x60), Signal::None);
        assert_eq!(controller.write_data(0x47), Signal::None);
        assert_eq!(command(&mut controller, 0x20), 0x47);
        for (value, expected) in [(0xad, 0x57), (0xa7, 0x77), (0xae, 0x67), (0xa8, 0x47)] {
            assert_eq!(controller.write_command(value), Signal::None);
            assert_eq!(command(&mut controller, 0x20), expected);
        }
    }

    #[test]
    fn the_keyboard_answers_through_the_controller_and_interrupts_if_allowed() {
        let mut controller = I8042::new(TSC);
        assert_eq!(controller.write_data(0xf2), Signal::None);
        assert_eq!(controller.read_status() & STATUS_OUTPUT_FULL, STATUS_OUTPUT_FULL);
        assert!(!controller.irq());
        assert_eq!(controller.write_command(0x60), Signal::None);
        assert_eq!(controller.write_data(COMMAND_KEYBOARD_IRQ), Signal::None);
        assert!(controller.irq());
        assert_eq!([controller.read_data(), controller.read_data(), controller.read_data()], [0xfa, 0xab, 0x83]);
        assert!(!controller.irq());
        assert_eq!(controller.read_status() & STATUS_OUTPUT_FULL, 0);
    }

    #[test]
    fn keys_wait_while_the_port_is_off_and_are_translated_if_asked() {
        let mut controller = I8042::new(TSC);
        assert!(controller.type_key(Key::Char('a')));
        assert_eq!(controller.read_status() & STATUS_OUTPUT_FULL, 0);
        assert_eq!(controller.write_command(0xae), Signal::None);
        assert_eq!([controller.read_data(), controller.read_data()], [0x1e, 0x9e]);
        assert_eq!(controller.write_command(0x60), Signal::None);
        assert_eq!(controller.write_data(0), Signal::None);
        controller.advance(Tsc(PAUSE));
        assert!(controller.type_key(Key::Char('a')));
        assert_eq!([controller.read_data(), controller.read_data(), controller.read_data()], [0x1c, 0xf0, 0x1c]);
    }

    #[test]
    fn keys_come_one_after_the_other_whether_they_are_read_early_or_late() {
        let mut controller = I8042::new(TSC);
        let waits = |controller: &I8042| controller.read_status() & STATUS_OUTPUT_FULL != 0;
        assert_eq!(controller.write_command(0xae), Signal::None);
        controller.advance(Tsc(5));
        assert!("abc".chars().all(|key| controller.type_key(Key::Char(key))));
        assert_eq!(controller.next_deadline(), None, "the first is there already");
        assert_eq!([controller.read_data(), controller.read_data()], [0x1e, 0x9e]);
        assert_eq!((waits(&controller), controller.next_deadline()), (false, Some(Tsc(5 + PAUSE))));
        controller.advance(Tsc(4 + PAUSE));
        assert!(!waits(&controller));
        controller.advance(Tsc(5 + PAUSE));
        assert!(waits(&controller) && controller.next_deadline().is_none());
        // Nobody reads for long; the third still comes after the second.
        controller.advance(Tsc(10 * PAUSE));
        assert_eq!([controller.read_data(), controller.read_data()], [0x30, 0xb0]);
        assert_eq!([controller.read_data(), controller.read_data()], [0x2e, 0xae]);
        assert_eq!(controller.next_deadline(), None);
    }

    #[test]
    fn an_answer_of_the_controllers_goes_before_a_key_that_waits_and_loses_none() {
        let mut controller = I8042::new(TSC);
        assert_eq!(controller.write_command(0xae), Signal::None);
        assert!(controller.type_key(Key::Char('a')));
        assert_eq!(command(&mut controller, 0xab), 0x00);
        assert_eq!([controller.read_data(), controller.read_data()], [0x1e, 0x9e]);
    }

    #[test]
    fn the_mouse_loop_is_answered_as_from_the_keyboard() {
        let mut controller = I8042::new(TSC);
        assert_eq!(controller.write_command(0xd3), Signal::None);
        assert_eq!(controller.write_data(0x5a), Signal::None);
        assert_eq!(controller.read_status() & 0x21, STATUS_OUTPUT_FULL, "bit 5 would say that a mouse port answered");
        assert_eq!(controller.read_data(), 0x5a);
    }

    #[test]
    fn resets() {
        assert_eq!(I8042::new(TSC).write_command(0xfe), Signal::Reset);
        assert_eq!(I8042::new(TSC).write_command(0xff), Signal::None);
        assert_eq!(I8042::new(TSC).write_fast_a20(1), Signal::Reset);
        let mut controller = I8042::new(TSC);
        assert_eq!(controller.write_command(0xd1), Signal::None);
        assert_eq!(controller.write_data(0xfe), Signal::Reset);
    }

    #[test]
    fn a20_is_one_gate_with_three_handles() {
        let mut controller = I8042::new(TSC);
        assert_eq!(controller.read_fast_a20(), A20);
        assert_eq!(controller.write_command(0xd1), Signal::None);
        assert_eq!(controller.write_data(0xdd), Signal::None);
        assert_eq!(controller.read_fast_a20(), 0);
        assert_eq!(controller.write_fast_a20(A20), Signal::None);
        assert_eq!(command(&mut controller, 0xd0), 0xdf);
        assert_eq!(controller.write_command(0xdd), Signal::None);
        assert_eq!(controller.read_fast_a20(), 0);
    }

    proptest! {
        #[test]
        fn whatever_waits_is_gone_after_some_reads(writes in prop::collection::vec(any::<(u8, u8)>(), 0..50)) {
            let mut controller = I8042::new(TSC);
            for (port, value) in writes {
                let _ = match port % 4 {
                    0 => controller.write_data(value),
                    1 => controller.write_command(value),
                    2 => controller.write_fast_a20(value),
                    _ => {
                        controller.type_key(Key::Char(char::from(value)));
                        Signal::None
                    }
                };
                prop_assert_ne!(controller.read_status(), 0xff, "would look like open bus");
                if controller.irq() {
                    prop_assert_eq!(controller.read_status() & STATUS_OUTPUT_FULL, STATUS_OUTPUT_FULL);
                }
            }
            for n in 0..600 {
                controller.advance(Tsc(n * PAUSE));
                controller.read_data();
            }
            prop_assert_eq!(controller.read_status() & STATUS_OUTPUT_FULL, 0);
            prop_assert!(!controller.irq());
        }
    }
}
