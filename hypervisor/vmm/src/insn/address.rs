//! From an operand to its place in memory: effective address, segmentation, alignment, pages (SDM vol. 3,
//! "Protected-Mode Memory Management": "Segmentation in IA-32e Mode"; "Protection": "Limit Checking", "Type Checking";
//! vol. 1, "Operand Addressing").

use iced_x86::{CodeSize, Instruction, Register};
use lamina_arch::addr::{Gla, Gpa, PAGE_4K};
use lamina_arch::cr::{Cr0, Cr4, Rflags};
use lamina_arch::event::{GuestFault, vector};
use lamina_arch::exit::Width;
use lamina_arch::regs::SysReg;
use lamina_arch::segment::SegmentName;

use super::{Context, Processor, Purpose};

/// Where up to 32 bytes of linear addresses are, with the rights checked: in one page, or in two.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    at: Gla,
    first: Gpa,
    second: Gpa,
    /// How many bytes are in the first page.
    head: usize,
}

impl Place {
    /// Where its first byte is.
    pub(super) const fn start(&self) -> Gpa {
        self.first
    }
}

/// The fault of an access that a segment does not allow.
pub fn segment_fault(segment: SegmentName) -> GuestFault {
    let vector = if segment == SegmentName::Ss { vector::SS } else { vector::GP };
    GuestFault { vector, error: Some(0), cr2: None }
}

/// The segment register that `register` is.
pub fn segment_name(register: Register) -> Option<SegmentName> {
    Some(match register {
        Register::ES => SegmentName::Es,
        Register::CS => SegmentName::Cs,
        Register::SS => SegmentName::Ss,
        Register::DS => SegmentName::Ds,
        Register::FS => SegmentName::Fs,
        Register::GS => SegmentName::Gs,
        _ => return None,
    })
}

/// Width of the memory operand's effective address.
fn address_width(instruction: &Instruction) -> Width {
    let register = match instruction.memory_base() {
        Register::None => instruction.memory_index(),
        base => base,
    };
    match register {
        Register::None => match (instruction.memory_displ_size(), instruction.code_size()) {
            (2, _) => Width::B2,
            (4, _) => Width::B4,
            (8, _) => Width::B8,
            (_, CodeSize::Code16) => Width::B2,
            (_, CodeSize::Code32) => Width::B4,
            _ => Width::B8,
        },
        Register::RIP => Width::B8,
        Register::EIP => Width::B4,
        register => Width::from_bytes(register.size()).unwrap_or(Width::B8),
    }
}

/// Whether a linear address is canonical.
pub fn is_canonical<P: Processor>(processor: &mut P, address: u64) -> bool {
    let fits = |bits: u32| (address.cast_signed() << (64 - bits) >> (64 - bits)).cast_unsigned() == address;
    fits(48) || fits(57) && processor.read(SysReg::Cr4) & Cr4::LA57.bits() != 0
}

impl<P: Processor> Context<'_, P> {
    pub(super) fn is_64(&self) -> bool {
        self.instruction.code_size() == CodeSize::Code64
    }

    /// Offset of the memory operand in its segment, `bytes` further on.
    pub(super) fn effective_address(&mut self, bytes: i64) -> u64 {
        let instruction = self.instruction;
        let mut address = instruction.memory_displacement64();
        // The displacement of an address relative to the instruction pointer is the sum already.
        if !instruction.is_ip_rel_memory_operand() {
            let (base, index) = (instruction.memory_base(), instruction.memory_index());
            if base != Register::None {
                address = address.wrapping_add(self.register(base));
            }
            if index != Register::None {
                let scale = u64::from(instruction.memory_index_scale());
                address = address.wrapping_add(self.register(index).wrapping_mul(scale));
            }
        }
        address.wrapping_add_signed(bytes) & address_width(instruction).mask()
    }

    /// Segment of the memory operand.
    pub(super) fn data_segment(&self) -> SegmentName {
        let named = segment_name(self.instruction.memory_segment()).unwrap_or(SegmentName::Ds);
        if !self.is_64() || matches!(named, SegmentName::Fs | SegmentName::Gs) {
            return named;
        }
        // The other prefixes are ignored in 64-bit mode, and the default decides between #SS and #GP.
        match self.instruction.memory_base() {
            Register::RSP | Register::RBP | Register::ESP | Register::EBP => SegmentName::Ss,
            _ => SegmentName::Ds,
        }
    }

    /// The linear address of `length` bytes at `offset` in `segment`.
    ///
    /// # Errors
    /// #GP(0) or #SS(0).
    pub(super) fn linear(
        &mut self,
        segment: SegmentName,
        offset: u64,
        length: usize,
        write: bool,
    ) -> Result<Gla, GuestFault> {
        let reach = (length as u64).saturating_sub(1);
        if self.is_64() {
            let base = match segment {
                SegmentName::Fs => self.processor.read(SysReg::FsBase),
                SegmentName::Gs => self.processor.read(SysReg::GsBase),
                _ => 0,
            };
            let at = base.wrapping_add(offset);
            let whole = is_canonical(self.processor, at) && is_canonical(self.processor, at.wrapping_add(reach));
            return if whole { Ok(Gla(at)) } else { Err(segment_fault(segment)) };
        }
        let hidden = self.processor.segment(segment);
        let rights = hidden.rights;
        let mut down = false;
        if self.is_protected() {
            let code = rights.bit(3);
            // Bit 1 is "readable" of code and "writable" of data.
            let denied = if write { code || !rights.bit(1) } else { code && !rights.bit(1) };
            if rights.is_unusable() || denied {
                return Err(segment_fault(segment));
            }
            down = !code && rights.bit(2);
        }
        let limit = u64::from(hidden.limit);
        let last = offset.wrapping_add(reach);
        let inside = if down {
            let top = if rights.is_default32() { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top
        } else {
            // What runs past the end of a segment of 4 GiB wraps, as on processors that allow it.
            last <= limit || limit == 0xffff_ffff
        };
        if inside { Ok(Gla(hidden.base.wrapping_add(offset) & 0xffff_ffff)) } else { Err(segment_fault(segment)) }
    }

    /// Whether segments have rights: in protected mode, but not in virtual-8086 mode.
    pub(super) fn is_protected(&mut self) -> bool {
        self.is_64()
            || self.processor.read(SysReg::Cr0) & Cr0::PE.bits() != 0
                && self.processor.read(SysReg::Rflags) & Rflags::VM.bits() == 0
    }

    /// Current privilege level.
    pub(super) fn cpl(&mut self) -> u8 {
        self.processor.segment(SegmentName::Ss).rights.dpl()
    }

    /// Finds `length` bytes at `offset` in `segment`, for data.
    ///
    /// # Errors
    /// The fault that the guest gets.
    pub(super) fn place(
        &mut self,
        segment: SegmentName,
        offset: u64,
        length: usize,
        write: bool,
    ) -> Result<Place, GuestFault> {
        let at = self.linear(segment, offset, length, write)?;
        if matches!(length, 2 | 4 | 8) && !at.is_aligned(length as u64) && self.checks_alignment() {
            return Err(GuestFault { vector: vector::AC, error: Some(0), cr2: None });
        }
        self.pages(at, length, if write { Purpose::Write } else { Purpose::Read })
    }

    fn checks_alignment(&mut self) -> bool {
        self.processor.read(SysReg::Rflags) & Rflags::AC.bits() != 0
            && self.processor.read(SysReg::Cr0) & Cr0::AM.bits() != 0
            && self.cpl() == 3
    }

    /// Translates `length` bytes from `at`, both pages before either is used.
    ///
    /// # Errors
    /// The page fault that the guest gets.
    pub(super) fn pages(&mut self, at: Gla, length: usize, purpose: Purpose) -> Result<Place, GuestFault> {
        let first = self.processor.translate(at, purpose)?;
        let left = usize::try_from(PAGE_4K - at.offset_in(PAGE_4K)).unwrap_or(0);
        if length <= left {
            return Ok(Place { at, first, second: first, head: length });
        }
        let mut next = Gla(at.0.wrapping_add(left as u64));
        if !self.is_64() {
            next.0 &= 0xffff_ffff;
        }
        Ok(Place { at, first, second: self.processor.translate(next, purpose)?, head: left })
    }

    /// Finds the memory operand, `bytes` further on.
    ///
    /// # Errors
    /// The fault that the guest gets.
    pub(super) fn memory(&mut self, bytes: i64, length: usize, write: bool) -> Result<Place, GuestFault> {
        let offset = self.effective_address(bytes);
        self.place(self.data_segment(), offset, length, write)
    }

    pub(super) fn load_bytes(&mut self, place: Place, data: &mut [u8]) {
        self.processor.accessed(place.at, data.len(), false);
        let (first, second) = data.split_at_mut(place.head.min(data.len()));
        self.processor.load(place.first, first);
        if !second.is_empty() {
            self.processor.load(place.second, second);
        }
    }

    pub(super) fn store_bytes(&mut self, place: Place, data: &[u8]) {
        self.processor.accessed(place.at, data.len(), true);
        let (first, second) = data.split_at(place.head.min(data.len()));
        self.processor.store(place.first, first);
        if !second.is_empty() {
            self.processor.store(place.second, second);
        }
    }

    /// Reads a value, zero-extended.
    pub(super) fn load(&mut self, place: Place, width: Width) -> u64 {
        let mut data = [0; 8];
        self.load_bytes(place, &mut data[..width.bytes()]);
        u64::from_le_bytes(data)
    }

    /// Writes the low bits of `value`.
    pub(super) fn store(&mut self, place: Place, width: Width, value: u64) {
        self.store_bytes(place, &value.to_le_bytes()[..width.bytes()]);
    }
}
