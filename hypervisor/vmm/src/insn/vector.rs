//! Moves between memory and the vector registers: MMX, SSE, and AVX up to 256 bits (SDM vol. 1, "Data Movement
//! Instructions" of each extension). Moves between registers never exit; what computes is not here, nor AVX-512.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use lamina_arch::event::GuestFault;
use lamina_arch::regs::VectorRegister;

use super::{Context, Outcome, Processor};

/// Bytes of a YMM register.
const SIZE: usize = 32;

/// What a move does with the bytes of its register.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All that are moved, from the lowest; a load clears the others of an XMM register.
    Whole,
    /// Only the low half of an XMM register; a load keeps the others.
    Low,
    /// Only the high half.
    High,
}

/// What a mnemonic moves, and whether its operand must be aligned.
fn form(instruction: &Instruction) -> Option<(Part, bool)> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => (Part::Whole, true),
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => {
            (Part::Whole, true)
        }
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu | M::Movd | M::Movq | M::Movss | M::Movntq => (Part::Whole, false),
        // The string instruction has the same name.
        M::Movsd if !instruction.is_string_instruction() => (Part::Whole, false),
        M::Vmovups | M::Vmovupd | M::Vmovdqu | M::Vlddqu | M::Vmovd | M::Vmovq | M::Vmovss | M::Vmovsd => {
            (Part::Whole, false)
        }
        M::Movlps | M::Movlpd => (Part::Low, false),
        M::Movhps | M::Movhpd => (Part::High, false),
        _ => return None,
    })
}

/// The register that the instruction moves, with how many of its bytes a VEX load clears behind what it loads.
fn vector_register(register: Register) -> Option<VectorRegister> {
    let number = u8::try_from(register.number()).ok()?;
    if register.is_mm() {
        Some(VectorRegister::Mm(number & 7))
    } else if (register.is_xmm() || register.is_ymm()) && number < 16 {
        Some(VectorRegister::Ymm(number))
    } else {
        None
    }
}

impl<P: Processor> Context<'_, P> {
    /// Whether this is a move that is emulated: one operand a vector register, the other memory.
    pub(super) fn is_vector_move(&self) -> bool {
        form(self.instruction).is_some() && self.instruction.op_count() == 2
    }

    /// A move between a vector register and memory.
    pub(super) fn vector_move(&mut self) -> Outcome {
        let instruction = self.instruction;
        let Some((part, aligned)) = form(instruction) else { return Err(self.unsupported()) };
        let store = instruction.op0_kind() == OpKind::Memory;
        let operand = if store { instruction.op1_register() } else { instruction.op0_register() };
        let memory = if store { instruction.op0_kind() } else { instruction.op1_kind() };
        let (Some(register), OpKind::Memory) = (vector_register(operand), memory) else {
            return Err(self.unsupported());
        };
        let length = instruction.memory_size().size();
        if !matches!(length, 4 | 8 | 16 | SIZE) {
            return Err(self.unsupported());
        }
        let offset = self.effective_address(0);
        if aligned {
            let at = self.linear(self.data_segment(), offset, length, store)?;
            if !at.is_aligned(length as u64) {
                return Err(GuestFault::GP0.into());
            }
        }
        let place = self.memory(0, length, store)?;
        let from = if part == Part::High { 8 } else { 0 };
        let mut value = self.processor.vector(register);
        let Some(moved) = value.get_mut(from..from + length) else { return Err(self.unsupported()) };
        if store {
            let moved = &*moved;
            let mut data = [0; SIZE];
            let data = &mut data[..length];
            data.copy_from_slice(moved);
            self.store_bytes(place, data);
            return Ok(self.advance());
        }
        let mut data = [0; SIZE];
        self.load_bytes(place, &mut data[..length]);
        let vex = matches!(instruction.encoding(), iced_x86::EncodingKind::VEX);
        let kept = match (part, register) {
            // A 256-bit register's upper half belongs to SSE's instructions as little as to MMX's.
            (Part::Whole, VectorRegister::Ymm(_)) if vex => 0..0,
            (Part::Whole, VectorRegister::Ymm(_)) => 16..SIZE,
            (Part::Whole, VectorRegister::Mm(_)) => 0..0,
            (Part::Low | Part::High, _) => 0..SIZE,
        };
        let mut new = [0; SIZE];
        if let (Some(new), Some(old)) = (new.get_mut(kept.clone()), value.get(kept)) {
            new.copy_from_slice(old);
        }
        if let (Some(new), Some(data)) = (new.get_mut(from..from + length), data.get(..length)) {
            new.copy_from_slice(data);
        }
        self.processor.set_vector(register, new);
        Ok(self.advance())
    }
}
