//! The instruction emulator: instructions that exited and must be finished in software.
//!
//! Decoding is `iced-x86`'s ([`fetch()`]); executing is ours, over a [`Processor`]: its registers, its segments, its
//! memory by linear address with the privilege of the access, devices included. An instruction first finds the place
//! of every operand, which is where segment, canonical, alignment and page faults come up; only then does it read,
//! compute and write. So an instruction that faults has changed nothing, and where an operand's place is at fault, no
//! device has noticed it. Of a repeated string instruction this holds for each iteration, as on a processor.
//!
//! What is not here is refused by name, never guessed: far transfers through gates, IRET to another task and to
//! virtual-8086 mode, and of the x87 and the vector instructions all but moves. Owns no state, never moves RIP past an
//! instruction, never injects.

mod address;
mod alu;
mod arithmetic;
mod bits;
mod control;
mod data;
mod descriptor;
mod exchange;
mod far;
mod fetch;
mod multiply;
mod operand;
mod segment;
mod shift;
mod stack;
mod string;
mod system;
pub mod task;
#[cfg(test)]
mod tests;
mod vector;
mod x87;

use crate::fault::{self, Site};
use iced_x86::{Instruction, Mnemonic};
use lamina_arch::addr::{Gla, Gpa};
use lamina_arch::event::GuestFault;
use lamina_arch::exit::{Direction, Width};
use lamina_arch::regs::{ExtendedRegister, Gpr, SysReg};
use lamina_arch::segment::{Segment, SegmentName};

pub use control::control_access;
pub use fetch::{Fetched, fetch};

/// Longest instruction. Unit: bytes.
pub const MAX_LENGTH: usize = 15;

/// What an access by linear address is for: decides which rights it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Data read with the current privilege.
    Read,
    /// Data write, or read and write, with the current privilege.
    Write,
    /// Instruction fetch with the current privilege.
    Fetch,
    /// Read of a descriptor: as a supervisor, whatever the current privilege.
    SystemRead,
    /// Write of a descriptor's accessed flag: as a supervisor.
    SystemWrite,
}

/// What an instruction works on.
pub trait Processor {
    /// All 64 bits of a general-purpose register, RSP too.
    fn gpr(&mut self, register: Gpr) -> u64;

    /// Sets all 64 bits of a general-purpose register, RSP too.
    fn set_gpr(&mut self, register: Gpr, value: u64);

    /// Reads a register.
    fn read(&mut self, register: SysReg) -> u64;

    /// Writes RIP, RFLAGS, the table registers, or in CR0 one of MP, EM, TS, and PE where it becomes set; in a task switch
    /// DR7 too.
    fn write(&mut self, register: SysReg, value: u64);

    /// CR3 becomes `cr3`, outside of long mode, as a task switch does it.
    ///
    /// # Errors
    /// The fault that the guest gets where PAE's page-directory pointers have reserved bits set.
    fn switch_tables(&mut self, cr3: u64) -> Result<(), GuestFault>;

    /// Reads a register of the extended state into `value`, which has its size.
    fn extended(&mut self, register: ExtendedRegister, value: &mut [u8]);

    /// Writes a register of the extended state.
    fn set_extended(&mut self, register: ExtendedRegister, value: &[u8]);

    /// Reads a segment register with its hidden part.
    fn segment(&mut self, name: SegmentName) -> Segment;

    /// Writes a segment register with its hidden part.
    fn set_segment(&mut self, name: SegmentName, segment: Segment);

    /// Where the byte at `at` is. The answer holds up to the end of its 4 KiB page.
    ///
    /// # Errors
    /// The page fault that the guest gets.
    fn translate(&mut self, at: Gla, purpose: Purpose) -> Result<Gpa, GuestFault>;

    /// Reads up to 64 bytes within a page: memory, a device, or open bus.
    fn load(&mut self, from: Gpa, data: &mut [u8]);

    /// Writes up to 64 bytes within a page, or a block that a device gave: memory, a device, or open bus.
    fn store(&mut self, to: Gpa, data: &[u8]);

    /// The instruction has read or written `length` bytes at `at`, a part of its operands: breakpoints are of linear
    /// addresses.
    fn accessed(&mut self, at: Gla, length: usize, write: bool) {
        let _ = (at, length, write);
    }

    /// NMIs are no longer blocked: what IRET does.
    fn unblock_nmi(&mut self);

    /// Whether the processor has checked that the guest may make this access to a port: whether this is what exited.
    fn may_use_port(&mut self, port: u16, direction: Direction, width: Width) -> bool;

    /// IN.
    fn port_read(&mut self, port: u16, data: &mut [u8]);

    /// Several INs of `width` bytes from the same port, where nobody can tell them from that: how many bytes of `data`
    /// were filled, a multiple of `width`.
    fn port_read_block(&mut self, port: u16, width: Width, data: &mut [u8]) -> usize {
        let _ = (port, width, data);
        0
    }

    /// OUT.
    fn port_write(&mut self, port: u16, data: &[u8]);

    /// Whether a repeated string instruction is to stop after this iteration because something else must happen first.
    fn must_pause(&mut self) -> bool;
}

/// What is left to do after an instruction was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Go past it: its length. Unit: bytes.
    Advance(u8),
    /// Go past it, and keep interrupts off for one more instruction: its length. Unit: bytes.
    AdvanceIntoShadow(u8),
    /// RIP was set.
    Jumped,
    /// A repeated string instruction with iterations left: enter the guest at the same place.
    Again,
}

/// Why an instruction was not executed. Nothing was changed, but for complete iterations of a string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The guest's fault: it gets this exception.
    Fault(GuestFault),
    /// This instruction, or this form of it, is not emulated.
    Unsupported(Mnemonic),
    /// The bytes are no instruction that the decoder knows.
    Undecodable,
    /// This is not the instruction that exited: the guest has changed its code since. Enter it again.
    Changed,
}

impl From<GuestFault> for Refused {
    fn from(fault: GuestFault) -> Refused {
        Refused::Fault(fault)
    }
}

type Outcome = Result<Done, Refused>;

/// The length of an instruction. Unit: bytes, at most [`MAX_LENGTH`].
pub fn length(instruction: &Instruction) -> u8 {
    u8::try_from(instruction.len()).unwrap_or(0)
}

/// One instruction at work.
struct Context<'a, P> {
    processor: &'a mut P,
    instruction: &'a Instruction,
}

/// Executes `instruction`, which was fetched at RIP.
///
/// # Errors
/// [`Refused`].
pub fn execute<P: Processor>(processor: &mut P, instruction: &Instruction) -> Outcome {
    fault::point(Site::Execute);
    fault::point(Site::HangEmulator);
    Context { processor, instruction }.execute()
}

impl<P: Processor> Context<'_, P> {
    fn execute(&mut self) -> Outcome {
        use Mnemonic as M;
        match self.instruction.mnemonic() {
            M::Mov | M::Movdiri => self.mov(),
            M::Movzx => self.movzx(),
            M::Movsx | M::Movsxd => self.movsx(),
            M::Movnti => self.mov(),
            M::Movbe => self.movbe(),
            M::Xlatb => self.xlat(),
            M::Add | M::Adc | M::Sub | M::Sbb | M::Cmp | M::And | M::Or | M::Xor | M::Test => self.two_operands(),
            M::Inc | M::Dec | M::Neg | M::Not => self.one_operand(),
            M::Sal | M::Shl | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr => self.shift(),
            M::Shld | M::Shrd => self.double_shift(),
            M::Mul => self.mul(),
            M::Imul => self.imul(),
            M::Div | M::Idiv => self.div(),
            M::Bt | M::Bts | M::Btr | M::Btc => self.bit_test(),
            M::Bsf | M::Bsr => self.bit_scan(),
            M::Popcnt => self.popcnt(),
            M::Xchg => self.xchg(),
            M::Xadd => self.xadd(),
            M::Cmpxchg => self.cmpxchg(),
            M::Cmpxchg8b | M::Cmpxchg16b => self.cmpxchg_pair(),
            M::Tzcnt | M::Lzcnt => self.zero_count(),
            M::Blsi | M::Blsmsk | M::Blsr => self.lowest_bit(),
            M::Andn | M::Bextr | M::Bzhi | M::Pdep | M::Pext => self.three_operands(),
            M::Rorx | M::Sarx | M::Shrx | M::Shlx => self.three_operands(),
            M::Mulx => self.mulx(),
            M::Adcx | M::Adox => self.add_with_one_flag(),
            M::Crc32 => self.crc32(),
            M::Push => self.push(),
            M::Pop => self.pop(),
            M::Pushf | M::Pushfd | M::Pushfq => self.pushf(),
            M::Popf | M::Popfd | M::Popfq => self.popf(),
            M::Pusha | M::Pushad => self.pusha(),
            M::Popa | M::Popad => self.popa(),
            M::Enter => self.enter(),
            M::Leave => self.leave(),
            M::Call => self.call(),
            M::Jmp => self.jmp(),
            M::Ret => self.ret(),
            M::Retf => self.far_ret(),
            M::Iret | M::Iretd | M::Iretq => self.iret(),
            M::Lds | M::Les | M::Lss | M::Lfs | M::Lgs => self.load_far_pointer(),
            M::Sldt | M::Str | M::Smsw => self.store_word(),
            M::Lmsw => self.lmsw(),
            M::Sgdt | M::Sidt => self.store_table(),
            M::Lgdt | M::Lidt => self.load_table(),
            M::Lldt | M::Ltr => self.load_system(),
            M::Verr | M::Verw => self.verify(),
            M::Lar | M::Lsl => self.load_rights_or_limit(),
            M::Arpl => self.arpl(),
            M::Bound => self.bound(),
            M::Clflush | M::Clflushopt | M::Clwb => self.cache_line(),
            M::Nop => Ok(self.advance()),
            M::Fld | M::Fst | M::Fstp | M::Fild | M::Fist | M::Fistp | M::Fisttp | M::Fbld | M::Fbstp => self.x87(),
            M::Fldcw | M::Fnstcw | M::Fnstsw => self.x87(),
            M::Kmovb | M::Kmovw | M::Kmovd | M::Kmovq => self.mask_move(),
            M::Ldmxcsr | M::Stmxcsr | M::Vldmxcsr | M::Vstmxcsr => self.mxcsr_move(),
            _ if self.is_string() => self.string(),
            _ if self.is_vector_move() => self.vector_move(),
            _ => self.conditional(),
        }
    }

    /// The instruction is done.
    fn advance(&self) -> Done {
        Done::Advance(length(self.instruction))
    }

    fn unsupported(&self) -> Refused {
        Refused::Unsupported(self.instruction.mnemonic())
    }
}
