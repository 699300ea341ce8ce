//! String instructions, those with ports too (SDM vol. 1, "String Operations"; vol. 2, "REP/REPE/REPZ/REPNE/REPNZ").

use iced_x86::{Instruction, Mnemonic, OpKind};
use lamina_arch::addr::PAGE_4K;
use lamina_arch::cr::Rflags;
use lamina_arch::exit::{Direction, Width};
use lamina_arch::regs::Gpr;
use lamina_arch::segment::SegmentName;

use super::address::Place;
use super::{Context, Done, Outcome, Processor, Refused, alu};

/// Most iterations that are done at a time, so that interrupts come in between.
pub const ITERATIONS: u32 = 64;

/// Most bytes that an INS takes from a device at once: a block of a CD. Unit: bytes.
const BLOCK: usize = 2048;

#[derive(Clone, Copy, PartialEq)]
enum Operation {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
    Ins,
    Outs,
}

fn operation(instruction: &Instruction) -> Option<(Operation, Width)> {
    use Mnemonic as M;
    // MOVSD and CMPSD are names of vector instructions as well.
    if !instruction.is_string_instruction() {
        return None;
    }
    Some(match instruction.mnemonic() {
        M::Movsb => (Operation::Movs, Width::B1),
        M::Movsw => (Operation::Movs, Width::B2),
        M::Movsd => (Operation::Movs, Width::B4),
        M::Movsq => (Operation::Movs, Width::B8),
        M::Stosb => (Operation::Stos, Width::B1),
        M::Stosw => (Operation::Stos, Width::B2),
        M::Stosd => (Operation::Stos, Width::B4),
        M::Stosq => (Operation::Stos, Width::B8),
        M::Lodsb => (Operation::Lods, Width::B1),
        M::Lodsw => (Operation::Lods, Width::B2),
        M::Lodsd => (Operation::Lods, Width::B4),
        M::Lodsq => (Operation::Lods, Width::B8),
        M::Cmpsb => (Operation::Cmps, Width::B1),
        M::Cmpsw => (Operation::Cmps, Width::B2),
        M::Cmpsd => (Operation::Cmps, Width::B4),
        M::Cmpsq => (Operation::Cmps, Width::B8),
        M::Scasb => (Operation::Scas, Width::B1),
        M::Scasw => (Operation::Scas, Width::B2),
        M::Scasd => (Operation::Scas, Width::B4),
        M::Scasq => (Operation::Scas, Width::B8),
        M::Insb => (Operation::Ins, Width::B1),
        M::Insw => (Operation::Ins, Width::B2),
        M::Insd => (Operation::Ins, Width::B4),
        M::Outsb => (Operation::Outs, Width::B1),
        M::Outsw => (Operation::Outs, Width::B2),
        M::Outsd => (Operation::Outs, Width::B4),
        _ => return None,
    })
}

/// Width of the index registers and the counter.
fn index_width(instruction: &Instruction) -> Option<Width> {
    (0..instruction.op_count()).find_map(|n| match instruction.op_kind(n) {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(Width::B2),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(Width::B4),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(Width::B8),
        _ => None,
    })
}

impl<P: Processor> Context<'_, P> {
    pub(super) fn is_string(&self) -> bool {
        operation(self.instruction).is_some()
    }

    /// All string instructions: up to [`ITERATIONS`], each complete or not at all.
    pub(super) fn string(&mut self) -> Outcome {
        let (Some((operation, width)), Some(index)) = (operation(self.instruction), index_width(self.instruction))
        else {
            return Err(self.unsupported());
        };
        let (while_equal, while_different) = (self.instruction.has_rep_prefix(), self.instruction.has_repne_prefix());
        if !while_equal && !while_different {
            self.element(operation, width, index)?;
            return Ok(self.advance());
        }
        let compares = matches!(operation, Operation::Cmps | Operation::Scas);
        let stepped = self.flags().contains(Rflags::TF);
        let mut count = self.low(Gpr::Rcx, index);
        if operation == Operation::Ins {
            let done = self.ins_block(width, index, count)?;
            if done != 0 {
                count -= done;
                self.set_low(Gpr::Rcx, index, count);
                return Ok(if count == 0 { self.advance() } else { Done::Again });
            }
        }
        for _ in 0..ITERATIONS {
            if count == 0 {
                return Ok(self.advance());
            }
            self.element(operation, width, index)?;
            count -= 1;
            self.set_low(Gpr::Rcx, index, count);
            if compares && self.flags().contains(Rflags::ZF) != while_equal {
                return Ok(self.advance());
            }
            if stepped && count != 0 {
                // A single step traps behind each iteration: RIP is where it was, and that is where it goes.
                return Ok(Done::Jumped);
            }
            if self.processor.must_pause() {
                break;
            }
        }
        Ok(if count == 0 { self.advance() } else { Done::Again })
    }

    /// As many of the `count` iterations of a forward INS as are in one page and the device has ready: how many were
    /// done. This is how software reads disks, a sector at a time.
    fn ins_block(&mut self, width: Width, index: Width, count: u64) -> Result<u64, Refused> {
        if count < 2 || self.flags().contains(Rflags::DF) {
            return Ok(0);
        }
        let port = self.port(Direction::In, width)?;
        let offset = self.low(Gpr::Rdi, index);
        let first = self.place(SegmentName::Es, offset, width.bytes(), true)?;
        let size = width.bytes();
        let in_page = usize::try_from(PAGE_4K - first.start().offset_in(PAGE_4K)).unwrap_or(0);
        let wanted = usize::try_from(count).unwrap_or(usize::MAX);
        let length = wanted.min(BLOCK / size).min(in_page / size) * size;
        // Behind the end of the segment, or of the offsets, an iteration faults or wraps: those are done singly.
        let in_reach = offset.checked_add(length as u64).is_some_and(|end| end <= index.mask());
        if length <= size || !in_reach || self.linear(SegmentName::Es, offset, length, true).is_err() {
            return Ok(0);
        }
        let mut data = [0; BLOCK];
        let done = self.processor.port_read_block(port, width, &mut data[..length]).min(length);
        if done != 0 {
            self.processor.store(first.start(), &data[..done]);
            self.set_low(Gpr::Rdi, index, offset + done as u64);
        }
        Ok((done / size) as u64)
    }

    /// One iteration. Both places are found before either is used.
    fn element(&mut self, operation: Operation, width: Width, index: Width) -> Result<(), Refused> {
        match operation {
            Operation::Movs => {
                let from = self.source(width, index)?;
                let to = self.destination(width, index, true)?;
                let value = self.load(from, width);
                self.store(to, width, value);
            }
            Operation::Stos => {
                let to = self.destination(width, index, true)?;
                let value = self.processor.gpr(Gpr::Rax);
                self.store(to, width, value);
            }
            Operation::Lods => {
                let from = self.source(width, index)?;
                let value = self.load(from, width);
                self.set_low(Gpr::Rax, width, value);
            }
            Operation::Cmps => {
                let from = self.source(width, index)?;
                let to = self.destination(width, index, false)?;
                let (left, right) = (self.load(from, width), self.load(to, width));
                let (_, flags) = alu::sub(left, right, false, width, self.flags());
                self.set_flags(flags);
            }
            Operation::Scas => {
                let to = self.destination(width, index, false)?;
                let (left, right) = (self.low(Gpr::Rax, width), self.load(to, width));
                let (_, flags) = alu::sub(left, right, false, width, self.flags());
                self.set_flags(flags);
            }
            Operation::Ins => {
                let port = self.port(Direction::In, width)?;
                // The fault comes before the device is read, so that nothing of the device's is lost.
                let to = self.destination(width, index, true)?;
                let mut data = [0; 8];
                let data = &mut data[..width.bytes()];
                self.processor.port_read(port, data);
                self.store_bytes(to, data);
            }
            Operation::Outs => {
                let port = self.port(Direction::Out, width)?;
                let from = self.source(width, index)?;
                let mut data = [0; 8];
                let data = &mut data[..width.bytes()];
                self.load_bytes(from, data);
                self.processor.port_write(port, data);
            }
        }
        let backwards = self.flags().contains(Rflags::DF);
        let bytes = width.bytes() as u64;
        let step = if backwards { bytes.wrapping_neg() } else { bytes };
        if matches!(operation, Operation::Movs | Operation::Lods | Operation::Cmps | Operation::Outs) {
            let next = self.low(Gpr::Rsi, index).wrapping_add(step);
            self.set_low(Gpr::Rsi, index, next);
        }
        if !matches!(operation, Operation::Lods | Operation::Outs) {
            let next = self.low(Gpr::Rdi, index).wrapping_add(step);
            self.set_low(Gpr::Rdi, index, next);
        }
        Ok(())
    }

    fn source(&mut self, width: Width, index: Width) -> Result<Place, Refused> {
        let offset = self.low(Gpr::Rsi, index);
        Ok(self.place(self.data_segment(), offset, width.bytes(), false)?)
    }

    fn destination(&mut self, width: Width, index: Width, write: bool) -> Result<Place, Refused> {
        let offset = self.low(Gpr::Rdi, index);
        Ok(self.place(SegmentName::Es, offset, width.bytes(), write)?)
    }

    /// The port in DX. The privilege to use it was checked by the processor, for the instruction that exited only.
    fn port(&mut self, direction: Direction, width: Width) -> Result<u16, Refused> {
        let port = u16::try_from(self.low(Gpr::Rdx, Width::B2)).unwrap_or(0);
        if self.processor.may_use_port(port, direction, width) { Ok(port) } else { Err(Refused::Changed) }
    }
}
