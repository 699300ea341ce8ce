//! Plain 64-bit ELF files: the format of guest programs that know no boot protocol.
//!
//! Segments go to their physical addresses (`p_paddr`). The program starts in 64-bit mode at `e_entry`, interrupts
//! off, the first 4 GiB mapped to themselves, with
//!
//! - RDI: address of the command line, which a zero byte ends,
//! - RSI: 0,
//! - RDX: size of the VM's memory (unit: bytes),
//! - RSP: top of a stack of 16 KiB, a multiple of 16,
//!
//! and all other general-purpose registers 0. The ACPI root pointer is found by looking for it, as on a PC.

use alloc::vec;
use alloc::vec::Vec;

use ::elf::abi::EM_X86_64;
use lamina_arch::addr::PAGE_4K;
use lamina_arch::regs::Gpr;

use super::program::Program;
use super::space::Space;
use super::state::MAPPED_END;
use super::{BOOT_DATA_FLOOR, InitialState, LoadArgs, LoadError, Part, Piece, Plan, c_string};

/// Unit: bytes.
const STACK_SIZE: u64 = 4 * PAGE_4K;

/// How to start the program.
///
/// # Errors
/// [`LoadError`].
pub fn plan<'a>(image: &'a [u8], mut space: Space, args: &LoadArgs<'a>) -> Result<Plan<'a>, LoadError> {
    let program = Program::parse_elf(image, &[EM_X86_64])?;
    let mut pieces = Vec::new();
    program.place(&mut space, &mut pieces)?;
    let entry = program.entry(MAPPED_END)?;
    let length = args.cmdline.len() as u64 + 1;
    let cmdline = space.take_lowest(Part::CommandLine, length, PAGE_4K, BOOT_DATA_FLOOR)?;
    pieces.push((cmdline, Piece::Made(c_string(args.cmdline))));
    let stack = space.take_lowest(Part::BootData, STACK_SIZE, PAGE_4K, BOOT_DATA_FLOOR)?;
    let gprs = vec![(Gpr::Rdi, cmdline.0), (Gpr::Rsi, 0), (Gpr::Rdx, space.memory())];
    let state = InitialState::long64(entry, (stack + STACK_SIZE).0, gprs, &mut space, &mut pieces)?;
    Ok(Plan { pieces, state })
}
