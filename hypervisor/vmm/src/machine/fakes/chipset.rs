//! Devices for tests: a console port, a data port, a timer, one memory-mapped register, and triggers for interrupts.

use std::collections::{BTreeSet, VecDeque};

use lamina_arch::addr::Gpa;
use lamina_arch::event::GuestFault;
use lamina_arch::msr;
use lamina_arch::time::Tsc;

use crate::bus::open_bus;
use crate::chipset::{Chipset, ChipsetSetup, Signal};
use crate::layout;

/// Writing transmits a byte, reading takes a received one.
pub const CONSOLE_PORT: u16 = layout::COM1_PORT;
/// Bit 5: the transmitter has room; bit 0: a byte was received.
pub const CONSOLE_STATUS_PORT: u16 = layout::COM1_PORT + 5;
/// Reading gives bytes that count up; what is written is kept.
pub const DATA_PORT: u16 = 0x1f0;
/// Writing a byte raises the interrupt of that vector.
pub const INTERRUPT_PORT: u16 = 0x2f0;
/// Writing a byte raises an NMI after as many thousand ticks.
pub const NMI_PORT: u16 = 0x2f1;
/// Writing a byte masks all interrupts (0), or none.
pub const UNMASKED_PORT: u16 = 0x2f2;
/// Reading panics: a bug of ours.
pub const BUG_PORT: u16 = 0x2f3;
/// The memory-mapped register, 16 bytes.
pub const REGISTER: Gpa = Gpa(0xd000_0000);
/// Vector of the timer behind IA32_TSC_DEADLINE.
pub const TIMER_VECTOR: u8 = 0xec;
/// Vector that a received byte raises.
pub const CONSOLE_VECTOR: u8 = 0x34;

/// Bytes that the console's transmitter and receiver hold, each.
const FIFO: usize = 16;

/// The devices.
#[derive(Debug)]
pub struct FakeChipset {
    /// The latest time seen.
    now: Tsc,
    transmit: VecDeque<u8>,
    receive: VecDeque<u8>,
    counter: u8,
    /// What was written to [`DATA_PORT`]: port offset and bytes.
    pub written: std::vec::Vec<std::vec::Vec<u8>>,
    /// The memory-mapped register.
    pub register: [u8; 16],
    /// Reads and writes of it.
    pub register_accesses: (u32, u32),
    interrupts: BTreeSet<u8>,
    masked: bool,
    nmi: bool,
    nmi_at: Option<Tsc>,
    cr8: u64,
    deadline: Option<Tsc>,
    unclaimed: u64,
}

impl FakeChipset {
    fn pass(&mut self, now: Tsc) {
        assert!(now >= self.now, "a chipset's time runs backwards from {:?} to {now:?}", self.now);
        self.now = now;
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.interrupts.insert(TIMER_VECTOR);
        }
        if self.nmi_at.is_some_and(|at| at <= now) {
            self.nmi_at = None;
            self.nmi = true;
        }
    }

    fn offset(gpa: Gpa, length: usize) -> Option<usize> {
        let offset = usize::try_from(gpa.0.checked_sub(REGISTER.0)?).ok()?;
        (offset + length <= 16).then_some(offset)
    }
}

impl Chipset for FakeChipset {
    fn new(setup: &ChipsetSetup) -> Self {
        FakeChipset {
            now: setup.now,
            transmit: VecDeque::new(),
            receive: VecDeque::new(),
            counter: 0,
            written: std::vec::Vec::new(),
            register: core::array::from_fn(|i| 0xf0 | u8::try_from(i).unwrap_or(0)),
            register_accesses: (0, 0),
            interrupts: BTreeSet::new(),
            masked: false,
            nmi: false,
            nmi_at: None,
            cr8: 0,
            deadline: None,
            unclaimed: 0,
        }
    }

    fn port_read(&mut self, now: Tsc, port: u16, data: &mut [u8]) {
        self.pass(now);
        match port {
            CONSOLE_PORT => data.fill(self.receive.pop_front().unwrap_or(0)),
            CONSOLE_STATUS_PORT => {
                let room = if self.transmit.len() < FIFO { 0x20 } else { 0 };
                data.fill(room | u8::from(!self.receive.is_empty()));
            }
            DATA_PORT => data.iter_mut().for_each(|byte| {
                self.counter = self.counter.wrapping_add(1);
                *byte = self.counter;
            }),
            BUG_PORT => panic!("a device with a bug"),
            _ => {
                self.unclaimed += 1;
                open_bus(data);
            }
        }
    }

    fn port_write(&mut self, now: Tsc, port: u16, data: &[u8]) -> Signal {
        self.pass(now);
        let value = data.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
        match port {
            CONSOLE_PORT => {
                assert!(self.transmit.len() < FIFO, "a guest writes to a transmitter that is busy");
                self.transmit.push_back(data[0]);
            }
            DATA_PORT => self.written.push(data.into()),
            INTERRUPT_PORT => drop(self.interrupts.insert(data[0])),
            NMI_PORT => {
                self.nmi_at = Some(now + u64::from(data[0]) * 1_000);
                self.pass(now);
            }
            UNMASKED_PORT => self.masked = data[0] == 0,
            layout::STATUS_PORT => return Signal::Status(value),
            layout::SHUTDOWN_PORT => return Signal::PowerOff,
            layout::RESET_PORT => return Signal::Reset,
            _ => self.unclaimed += 1,
        }
        Signal::None
    }

    fn mmio_read(&mut self, now: Tsc, gpa: Gpa, data: &mut [u8]) -> bool {
        self.pass(now);
        if let Some(offset) = Self::offset(gpa, data.len()) {
            self.register_accesses.0 += 1;
            data.copy_from_slice(&self.register[offset..offset + data.len()]);
            return true;
        }
        self.unclaimed += 1;
        open_bus(data);
        false
    }

    fn mmio_write(&mut self, now: Tsc, gpa: Gpa, data: &[u8]) -> bool {
        self.pass(now);
        if let Some(offset) = Self::offset(gpa, data.len()) {
            self.register_accesses.1 += 1;
            self.register[offset..offset + data.len()].copy_from_slice(data);
            return true;
        }
        self.unclaimed += 1;
        false
    }

    fn msr_read(&mut self, now: Tsc, index: u32) -> Result<u64, GuestFault> {
        self.pass(now);
        match index {
            msr::IA32_APIC_BASE => Ok(0xfee0_0900),
            msr::IA32_TSC_DEADLINE => Ok(self.deadline.map_or(0, |deadline| deadline.0)),
            _ => Err(GuestFault::GP0),
        }
    }

    fn msr_write(&mut self, now: Tsc, index: u32, value: u64) -> Result<(), GuestFault> {
        self.pass(now);
        if index != msr::IA32_TSC_DEADLINE {
            return Err(GuestFault::GP0);
        }
        self.deadline = (value != 0).then_some(Tsc(value));
        self.pass(now);
        Ok(())
    }

    fn cr8(&self) -> u64 {
        self.cr8
    }

    fn set_cr8(&mut self, value: u64) -> Result<(), GuestFault> {
        if value > 15 {
            return Err(GuestFault::GP0);
        }
        self.cr8 = value;
        Ok(())
    }

    fn interrupt_pending(&self) -> bool {
        !self.masked && !self.interrupts.is_empty()
    }

    fn acknowledge(&mut self) -> Option<u8> {
        if self.masked { None } else { self.interrupts.pop_last() }
    }

    fn nmi_possible(&self) -> bool {
        self.nmi_at.is_some()
    }

    fn take_nmi(&mut self) -> bool {
        core::mem::take(&mut self.nmi)
    }

    fn advance(&mut self, now: Tsc) {
        self.pass(now);
    }

    fn next_deadline(&self) -> Option<Tsc> {
        self.deadline.into_iter().chain(self.nmi_at).min()
    }

    fn take_output(&mut self, now: Tsc, sink: &mut dyn FnMut(u8) -> bool) {
        self.pass(now);
        while let Some(&byte) = self.transmit.front() {
            if !sink(byte) {
                return;
            }
            self.transmit.pop_front();
        }
    }

    fn has_output(&self) -> bool {
        !self.transmit.is_empty()
    }

    fn give_input(&mut self, now: Tsc, bytes: &[u8]) -> usize {
        self.pass(now);
        let count = bytes.len().min(FIFO - self.receive.len());
        self.receive.extend(&bytes[..count]);
        if count != 0 {
            self.interrupts.insert(CONSOLE_VECTOR);
        }
        count
    }

    fn unclaimed(&self) -> u64 {
        self.unclaimed
    }
}
