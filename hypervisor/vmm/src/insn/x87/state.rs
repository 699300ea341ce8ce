//! The x87 registers as FXSAVE64 lays them out (SDM vol. 1, "x87 FPU Data Types and Registers"; vol. 2, "FXSAVE").

use lamina_arch::regs::ExtendedRegister;

use super::convert::Extended;

/// Offsets of the control word, the status word, the tags and the pointers to the last instruction and its operand.
/// Unit: bytes.
const CONTROL: usize = 0;
const STATUS: usize = 2;
const TAGS: usize = 4;
const INSTRUCTION: usize = 8;
const OPERAND: usize = 16;
/// Offset of ST0, and from one register to the next. Unit: bytes.
const ST: usize = 24;
const STEP: usize = 16;

/// The exceptions: in the status word what has happened, in the control word what is masked.
pub mod exception {
    /// Invalid operation.
    pub const INVALID: u16 = 1;
    /// Denormal operand.
    pub const DENORMAL: u16 = 1 << 1;
    /// Overflow.
    pub const OVERFLOW: u16 = 1 << 3;
    /// Underflow.
    pub const UNDERFLOW: u16 = 1 << 4;
    /// Precision.
    pub const PRECISION: u16 = 1 << 5;
    /// All six.
    pub const ALL: u16 = 0x3f;
}

/// Status word: the invalid operation was the stack's.
const STACK_FAULT: u16 = 1 << 6;
/// Status word: an exception that is not masked, in both of its bits.
const SUMMARY: u16 = 1 << 7 | 1 << 15;
/// Status word, C1: rounded up, or of a stack fault: overflow.
const C1: u16 = 1 << 9;
/// Where the status word has the top of the stack.
const TOP: u16 = 11;
/// The bits of the control word that can be changed, and the one that is always set.
const CONTROL_BITS: u16 = 0x1f3f;
const CONTROL_FIXED: u16 = 0x40;

/// All of it.
#[derive(Clone, Copy)]
pub struct State {
    bytes: [u8; ExtendedRegister::X87.size()],
}

impl State {
    /// What was read from the processor.
    pub const fn new(bytes: [u8; ExtendedRegister::X87.size()]) -> State {
        State { bytes }
    }

    /// What is to be written to it.
    pub const fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn word(&self, at: usize) -> u16 {
        match self.bytes.get(at..) {
            Some(&[low, high, ..]) => u16::from_le_bytes([low, high]),
            _ => 0,
        }
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        if let Some(to) = self.bytes.get_mut(at..at + value.len()) {
            to.copy_from_slice(value);
        }
    }

    /// The control word.
    pub fn control(&self) -> u16 {
        self.word(CONTROL)
    }

    /// Sets the control word: an exception that has happened may not be masked any more.
    pub fn set_control(&mut self, value: u16) {
        self.put(CONTROL, &(value & CONTROL_BITS | CONTROL_FIXED).to_le_bytes());
        self.set_status(self.status());
    }

    /// The status word.
    pub fn status(&self) -> u16 {
        self.word(STATUS)
    }

    fn set_status(&mut self, status: u16) {
        let unmasked = status & !self.control() & exception::ALL != 0;
        let status = status & !SUMMARY | if unmasked { SUMMARY } else { 0 };
        self.put(STATUS, &status.to_le_bytes());
    }

    /// Whether an exception waits that is not masked.
    pub fn waits(&self) -> bool {
        self.status() & SUMMARY != 0
    }

    fn top(&self) -> u16 {
        self.status() >> TOP & 7
    }

    /// The physical number of ST`n`.
    fn physical(&self, n: u16) -> u16 {
        (self.top() + n) & 7
    }

    /// Whether ST`n` holds nothing.
    pub fn is_empty(&self, n: u16) -> bool {
        self.word(TAGS) & 1 << self.physical(n) == 0
    }

    fn set_empty(&mut self, n: u16, empty: bool) {
        let bit = 1 << self.physical(n);
        let tags = self.word(TAGS) & 0xff;
        let tags = if empty { tags & !bit } else { tags | bit };
        self.put(TAGS, &tags.to_le_bytes());
    }

    /// ST0.
    pub fn get(&self) -> Extended {
        let mut bytes = [0; 10];
        if let Some(held) = self.bytes.get(ST..ST + bytes.len()) {
            bytes.copy_from_slice(held);
        }
        Extended::from_bytes(bytes)
    }

    /// Makes room for another register, which becomes ST0. The registers are stored from the top on.
    pub fn push(&mut self, value: Extended) {
        let top = self.top().wrapping_sub(1) & 7;
        self.set_status(self.status() & !(7 << TOP) | top << TOP);
        if let Some(registers) = self.bytes.get_mut(ST..) {
            registers.rotate_right(STEP);
        }
        self.put(ST, &value.to_bytes());
        self.set_empty(0, false);
    }

    /// Drops ST0.
    pub fn pop(&mut self) {
        self.set_empty(0, true);
        let top = (self.top() + 1) & 7;
        self.set_status(self.status() & !(7 << TOP) | top << TOP);
        if let Some(registers) = self.bytes.get_mut(ST..) {
            registers.rotate_left(STEP);
        }
    }

    /// `exceptions` have happened. Whether all of `all` are masked.
    pub fn raise(&mut self, exceptions: u16) -> bool {
        self.set_status(self.status() | exceptions);
        exceptions & !self.control() & exception::ALL == 0
    }

    /// The stack has no room, or (not `overflow`) nothing in it. Whether that is masked.
    pub fn stack_fault(&mut self, overflow: bool) -> bool {
        self.set_rounded_up(overflow);
        self.raise(exception::INVALID | STACK_FAULT)
    }

    /// Sets C1.
    pub fn set_rounded_up(&mut self, up: bool) {
        let status = self.status() & !C1;
        self.set_status(if up { status | C1 } else { status });
    }

    /// Notes where the last instruction is, and its operand. Its opcode is not noted: processors since the Pentium 4 do
    /// that only with an exception that is not masked.
    pub fn note(&mut self, instruction: u64, operand: u64) {
        self.put(INSTRUCTION, &instruction.to_le_bytes());
        self.put(OPERAND, &operand.to_le_bytes());
    }

    /// What every MMX instruction does: the top of the stack is register 0, and no register is empty.
    pub fn enter_mmx(&mut self) {
        let top = usize::from(self.top());
        if let Some(registers) = self.bytes.get_mut(ST..) {
            registers.rotate_right(STEP * top);
        }
        self.set_status(self.status() & !(7 << TOP));
        self.put(TAGS, &[0xff]);
    }

    /// MM`n`, once [`State::enter_mmx`] was called.
    pub fn mmx(&self, n: u8) -> [u8; 8] {
        let at = ST + STEP * usize::from(n & 7);
        let mut value = [0; 8];
        if let Some(held) = self.bytes.get(at..at + value.len()) {
            value.copy_from_slice(held);
        }
        value
    }

    /// Sets MM`n`; its sign and exponent become all ones.
    pub fn set_mmx(&mut self, n: u8, value: [u8; 8]) {
        let at = ST + STEP * usize::from(n & 7);
        self.put(at, &value);
        self.put(at + value.len(), &[0xff; 2]);
    }
}
