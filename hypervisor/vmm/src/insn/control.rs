//! Accesses to control registers, described for a processor that does not describe them. Executing them is not the
//! emulator's: their meaning is the virtual machine's.

use iced_x86::{Instruction, Mnemonic};
use lamina_arch::exit::{CrAccess, Width};
use lamina_arch::regs::Gpr;

use super::{Context, Processor, Refused};

/// What `instruction`, which was fetched at RIP, does with a control register.
///
/// # Errors
/// [`Refused`]: it is no such instruction; the fault of LMSW's operand in memory.
pub fn control_access<P: Processor>(processor: &mut P, instruction: &Instruction) -> Result<CrAccess, Refused> {
    let mut context = Context { processor, instruction };
    let (first, second) = (instruction.op0_register(), instruction.op1_register());
    let gpr = |register: iced_x86::Register| Gpr::from_encoding(u8::try_from(register.number()).unwrap_or(0));
    // Only these registers' accesses exit.
    let cr = |register: iced_x86::Register| {
        u8::try_from(register.number()).ok().filter(|cr| matches!(cr, 0 | 3 | 4 | 8)).ok_or(Refused::Changed)
    };
    match instruction.mnemonic() {
        Mnemonic::Mov if first.is_cr() => Ok(CrAccess::Write { cr: cr(first)?, source: gpr(second) }),
        Mnemonic::Mov if second.is_cr() => Ok(CrAccess::Read { cr: cr(second)?, target: gpr(first) }),
        Mnemonic::Clts => Ok(CrAccess::Clts),
        Mnemonic::Lmsw => {
            let width = Width::B2;
            let operand = match instruction.op0_kind() {
                // In memory it has 16 bits whatever the operand size; a register's upper half is ignored.
                iced_x86::OpKind::Memory => context.operand(0, width, false)?,
                _ => super::operand::Operand::Register(first),
            };
            let value = context.get(operand, width) & width.mask();
            Ok(CrAccess::Lmsw { value: u16::try_from(value).unwrap_or(0) })
        }
        _ => Err(Refused::Changed),
    }
}
