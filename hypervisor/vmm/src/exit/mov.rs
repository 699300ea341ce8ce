//! The MOVs by which most registers of devices are reached, told from their bytes: four bytes to or from memory, in
//! 64-bit code, without any prefix but REX.
//!
//! Owns the decoding of these few forms and nothing of what they do. Every other instruction is the emulator's, which
//! does these just the same, only slower.

use lamina_arch::regs::Gpr;

/// Bytes that one of these instructions has at most: REX, opcode, ModRM, SIB, displacement, immediate.
pub const LONGEST: usize = 12;

/// What is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Memory to the low half of a register; the upper half is cleared.
    Load(Gpr),
    /// The low half of a register to memory.
    Store(Gpr),
    /// A constant to memory.
    Constant(u32),
}

/// A MOV of four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mov {
    /// What is moved.
    pub what: What,
    base: Option<Gpr>,
    /// The register, and how far it is shifted. Unit: bits.
    index: Option<(Gpr, u8)>,
    displacement: u64,
    /// The instruction's length. Unit: bytes.
    pub length: u8,
}

impl Mov {
    /// The linear address that it goes to, where `register` tells what the registers hold. DS, ES and SS have no base in
    /// 64-bit code.
    pub fn address(&self, mut register: impl FnMut(Gpr) -> u64) -> u64 {
        let base = self.base.map_or(0, &mut register);
        let index = self.index.map_or(0, |(index, shift)| register(index) << shift);
        base.wrapping_add(index).wrapping_add(self.displacement)
    }
}

/// Bytes that are taken one after another.
struct Bytes<'a>(core::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn byte(&mut self) -> Option<u8> {
        self.0.next().copied()
    }

    fn doubleword(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes([self.byte()?, self.byte()?, self.byte()?, self.byte()?]))
    }
}

/// The MOV that `bytes` begin with (SDM vol. 2, "MOV—Move" and "ModR/M and SIB Bytes"); `None` where it is anything else.
pub fn decode(bytes: &[u8]) -> Option<Mov> {
    let mut left = Bytes(bytes.iter());
    let first = left.byte()?;
    // REX without W.
    let (rex, opcode) = if first & 0xf8 == 0x40 { (first, left.byte()?) } else { (0, first) };
    if !matches!(opcode, 0x89 | 0x8b | 0xc7) {
        return None;
    }
    let modrm = left.byte()?;
    let (mode, middle, low) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
    let extended = |number: u8, bit: u8| Gpr::from_encoding(number | (rex >> bit & 1) << 3);
    let (mut base, mut index) = (None, None);
    let mut width = mode;
    match (mode, low) {
        // A register; relative to RIP.
        (3, _) | (0, 5) => return None,
        (_, 4) => {
            let sib = left.byte()?;
            let register = extended(sib >> 3 & 7, 1);
            if register != Gpr::Rsp {
                index = Some((register, sib >> 6));
            }
            if mode == 0 && sib & 7 == 5 {
                width = 2;
            } else {
                base = Some(extended(sib & 7, 0));
            }
        }
        _ => base = Some(extended(low, 0)),
    }
    let displacement = match width {
        0 => 0,
        1 => i64::from(left.byte()?.cast_signed()),
        _ => i64::from(left.doubleword()?.cast_signed()),
    };
    let what = match opcode {
        0x89 => What::Store(extended(middle, 2)),
        0x8b => What::Load(extended(middle, 2)),
        _ if middle == 0 => What::Constant(left.doubleword()?),
        _ => return None,
    };
    let length = u8::try_from(bytes.len() - left.0.len()).ok()?;
    Some(Mov { what, base, index, displacement: displacement.cast_unsigned(), length })
}
