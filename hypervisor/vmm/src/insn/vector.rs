//! Moves between memory and the vector registers: MMX, SSE, AVX and AVX-512 with its masks (SDM vol. 1, "Data Movement
//! Instructions" of each extension; vol. 2, "Intel AVX-512 Encoding": "Opmask Encoding", "Memory Fault Suppression").
//! Moves between registers never exit; what computes is not here.

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};
use lamina_arch::event::GuestFault;
use lamina_arch::regs::ExtendedRegister;

use super::address::Place;
use super::{Context, Outcome, Processor, Refused};

/// Bytes of a ZMM register.
const SIZE: usize = 64;
/// Bytes of an XMM register.
const XMM: usize = 16;
/// Most parts that a mask leaves of an operand: every other byte.
const PARTS: usize = SIZE / 2;

/// Bytes of an operand, from and to, and where they are.
type PartOf = (usize, usize, Place);

/// What a move does with the bytes of its register.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All that are moved, from the lowest.
    Whole,
    /// Only the low half of an XMM register; a load keeps the other, or takes it from its second operand.
    Low,
    /// Only the high half.
    High,
}

/// What a mnemonic moves, whether its operand must be aligned, and how large the elements are that a mask tells of.
fn form(instruction: &Instruction) -> Option<(Part, bool, usize)> {
    use Mnemonic as M;
    let (part, aligned) = match instruction.mnemonic() {
        M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => (Part::Whole, true),
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => {
            (Part::Whole, true)
        }
        M::Vmovdqa32 | M::Vmovdqa64 => (Part::Whole, true),
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu | M::Movd | M::Movq | M::Movss | M::Movntq => (Part::Whole, false),
        // The string instruction has the same name.
        M::Movsd if !instruction.is_string_instruction() => (Part::Whole, false),
        M::Vmovups | M::Vmovupd | M::Vmovdqu | M::Vlddqu | M::Vmovd | M::Vmovq | M::Vmovss | M::Vmovsd => {
            (Part::Whole, false)
        }
        M::Vmovdqu8 | M::Vmovdqu16 | M::Vmovdqu32 | M::Vmovdqu64 => (Part::Whole, false),
        M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd => (Part::Low, false),
        M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd => (Part::High, false),
        _ => return None,
    };
    let element = match instruction.mnemonic() {
        M::Vmovdqu8 => 1,
        M::Vmovdqu16 => 2,
        M::Vmovapd | M::Vmovupd | M::Vmovsd | M::Vmovdqa64 | M::Vmovdqu64 => 8,
        _ => 4,
    };
    Some((part, aligned, element))
}

/// A register that is moved.
#[derive(Clone, Copy)]
enum Moved {
    Mmx(u8),
    Zmm(u8),
}

fn moved(register: Register) -> Option<Moved> {
    let number = u8::try_from(register.number()).ok()?;
    if register.is_mm() {
        Some(Moved::Mmx(number))
    } else if register.is_vector_register() && number < 32 {
        Some(Moved::Zmm(number))
    } else {
        None
    }
}

impl<P: Processor> Context<'_, P> {
    /// Whether this is a move that is emulated: one operand memory, the others vector registers.
    pub(super) fn is_vector_move(&self) -> bool {
        let operands = match form(self.instruction) {
            Some((Part::Whole, ..)) => 2..=2,
            Some(_) => 2..=3,
            None => return false,
        };
        operands.contains(&self.instruction.op_count())
    }

    fn moved(&mut self, register: Moved) -> [u8; SIZE] {
        let mut value = [0; SIZE];
        match register {
            Moved::Mmx(n) => {
                let mut state = self.x87_state();
                state.enter_mmx();
                self.set_x87_state(&state);
                value[..8].copy_from_slice(&state.mmx(n));
            }
            Moved::Zmm(n) => self.processor.extended(ExtendedRegister::Zmm(n), &mut value),
        }
        value
    }

    fn set_moved(&mut self, register: Moved, value: &[u8; SIZE]) {
        match register {
            Moved::Mmx(n) => {
                let mut state = self.x87_state();
                state.enter_mmx();
                let [a, b, c, d, e, f, g, h, ..] = *value;
                state.set_mmx(n, [a, b, c, d, e, f, g, h]);
                self.set_x87_state(&state);
            }
            Moved::Zmm(n) => self.processor.set_extended(ExtendedRegister::Zmm(n), value),
        }
    }

    fn mask(&mut self, register: Register) -> u64 {
        let mut value = [0; 8];
        let number = u8::try_from(register.number()).unwrap_or(0);
        self.processor.extended(ExtendedRegister::Mask(number), &mut value);
        u64::from_le_bytes(value)
    }

    /// A move between a vector register and memory.
    pub(super) fn vector_move(&mut self) -> Outcome {
        let instruction = self.instruction;
        let Some((part, aligned, element)) = form(instruction) else { return Err(self.unsupported()) };
        let store = instruction.op0_kind() == OpKind::Memory;
        let memory = if store { 0 } else { instruction.op_count() - 1 };
        let register = moved(if store { instruction.op1_register() } else { instruction.op0_register() });
        let (Some(register), OpKind::Memory) = (register, instruction.op_kind(memory)) else {
            return Err(self.unsupported());
        };
        let length = instruction.memory_size().size();
        if !matches!(length, 4 | 8 | XMM | 32 | SIZE) {
            return Err(self.unsupported());
        }
        let masked = instruction.op_mask() != Register::None;
        // One bit for each byte.
        let all = u64::MAX >> (SIZE - length);
        let enabled = if masked { bytes_of(self.mask(instruction.op_mask()), element) & all } else { all };
        if aligned {
            let offset = self.effective_address(0);
            let at = self.linear(self.data_segment(), offset, length, store)?;
            if !at.is_aligned(length as u64) {
                return Err(GuestFault::GP0.into());
            }
        }
        let places = self.places(enabled, length, store)?;
        let from = if part == Part::High { 8 } else { 0 };
        let old = self.moved(register);
        if store {
            let Some(data) = old.get(from..) else { return Err(self.unsupported()) };
            for (start, end, place) in places.into_iter().flatten() {
                if let Some(data) = data.get(start..end) {
                    self.store_bytes(place, data);
                }
            }
            return Ok(self.advance());
        }
        // What the load leaves of the register: AVX clears what is behind the operand, SSE knows nothing of what is behind
        // an XMM register.
        let legacy = instruction.encoding() == EncodingKind::Legacy;
        let mut new = match (part, register) {
            (Part::Whole, Moved::Mmx(_)) => [0; SIZE],
            (Part::Whole, Moved::Zmm(_)) => {
                let mut new = if legacy { old } else { [0; SIZE] };
                new[..XMM].fill(0);
                new
            }
            (_, _) if legacy => old,
            _ => match moved(instruction.op1_register()) {
                Some(other) => {
                    let mut new = self.moved(other);
                    new[XMM..].fill(0);
                    new
                }
                None => return Err(self.unsupported()),
            },
        };
        if masked && !instruction.zeroing_masking() {
            new[..length].copy_from_slice(&old[..length]);
        }
        for (start, end, place) in places.into_iter().flatten() {
            if let Some(data) = new.get_mut(from + start..from + end) {
                self.load_bytes(place, data);
            }
        }
        self.set_moved(register, &new);
        Ok(self.advance())
    }

    /// The places of the bytes of the memory operand that `enabled` has a bit for: from, to, where. What a mask leaves
    /// out is not accessed, and does not fault.
    fn places(&mut self, enabled: u64, length: usize, write: bool) -> Result<[Option<PartOf>; PARTS], Refused> {
        let mut places = [None; PARTS];
        let mut start = 0;
        for slot in &mut places {
            let left = enabled.checked_shr(start).unwrap_or(0);
            if left == 0 {
                break;
            }
            let first = start + left.trailing_zeros();
            let end = first + (enabled >> first).trailing_ones();
            let (from, to) = (first as usize, (end as usize).min(length));
            let place = self.memory(i64::from(first), to - from, write)?;
            *slot = Some((from, to, place));
            start = end;
        }
        Ok(places)
    }

    /// KMOV from and to memory. A load clears what is behind the operand.
    pub(super) fn mask_move(&mut self) -> Outcome {
        let instruction = self.instruction;
        let width = instruction.memory_size().size();
        let store = instruction.op0_kind() == OpKind::Memory;
        let register = if store { instruction.op1_register() } else { instruction.op0_register() };
        if !register.is_k() || !matches!(width, 1 | 2 | 4 | 8) {
            return Err(self.unsupported());
        }
        let place = self.memory(0, width, store)?;
        if store {
            let value = self.mask(register).to_le_bytes();
            self.store_bytes(place, &value[..width]);
        } else {
            let mut value = [0; 8];
            self.load_bytes(place, &mut value[..width]);
            let number = u8::try_from(register.number()).unwrap_or(0);
            self.processor.set_extended(ExtendedRegister::Mask(number), &value);
        }
        Ok(self.advance())
    }

    /// LDMXCSR and STMXCSR.
    pub(super) fn mxcsr_move(&mut self) -> Outcome {
        /// What can be set where the processor does not tell.
        const DEFAULT_MASK: u32 = 0xffbf;
        let store = matches!(self.instruction.mnemonic(), Mnemonic::Stmxcsr | Mnemonic::Vstmxcsr);
        let place = self.memory(0, 4, store)?;
        let mut held = [0; ExtendedRegister::Mxcsr.size()];
        self.processor.extended(ExtendedRegister::Mxcsr, &mut held);
        let (register, mask) = held.split_at_mut(4);
        if store {
            self.store_bytes(place, register);
            return Ok(self.advance());
        }
        self.load_bytes(place, register);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0u32, |value, &byte| value << 8 | u32::from(byte));
        let allowed = match number(mask) {
            0 => DEFAULT_MASK,
            mask => mask,
        };
        if number(register) & !allowed != 0 {
            return Err(GuestFault::GP0.into());
        }
        self.processor.set_extended(ExtendedRegister::Mxcsr, &held);
        Ok(self.advance())
    }
}

/// A mask of elements of `size` bytes as one of bytes.
fn bytes_of(mask: u64, size: usize) -> u64 {
    let one = u64::MAX >> (SIZE - size);
    (0..SIZE / size).filter(|n| mask >> n & 1 != 0).fold(0, |bytes, n| bytes | one << (n * size))
}
