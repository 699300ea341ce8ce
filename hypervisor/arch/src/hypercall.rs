//! The para-virtual interface: what a guest that knows Lamina may ask, by name and number.
//!
//! A guest finds it through CPUID: leaf [`LEAF_SIGNATURE`] gives the highest hypervisor leaf in EAX and
//! [`SIGNATURE`] in EBX, ECX, EDX; leaf [`LEAF_INTERFACE`] gives the version in EAX, the instruction to use in EBX
//! ([`INSTRUCTION_VMCALL`] or [`INSTRUCTION_VMMCALL`]), and a feature mask (0 so far) in ECX; leaf [`LEAF_TIMING`]
//! gives the TSC's rate in EAX and the local APIC timer's in EBX (unit: kHz).
//!
//! A call: number in RAX, arguments in RDI, RSI, RDX, all 64 bits wide; the result in RAX, negative for an error (the
//! numbers are Linux's); no other register changes. Calls but [`NOP`] are allowed at CPL 0 only; elsewhere the result is
//! [`EPERM`]. Outside 64-bit mode the upper halves of the registers are ignored.

/// Highest leaf and signature.
pub const LEAF_SIGNATURE: u32 = 0x4000_0000;
/// Interface version, instruction, features.
pub const LEAF_INTERFACE: u32 = 0x4000_0001;
/// TSC and local APIC timer rates.
pub const LEAF_TIMING: u32 = 0x4000_0010;
/// EBX, ECX, EDX of [`LEAF_SIGNATURE`], as bytes in memory order.
pub const SIGNATURE: [u8; 12] = *b"LaminaLamina";
/// Version of this interface.
pub const VERSION: u32 = 1;
/// The instruction is VMCALL.
pub const INSTRUCTION_VMCALL: u32 = 1;
/// The instruction is VMMCALL.
pub const INSTRUCTION_VMMCALL: u32 = 2;

/// Does nothing; the result is 0.
pub const NOP: u64 = 0;
/// Writes RSI bytes (at most [`CONSOLE_WRITE_MAX`]) from guest-physical address RDI to the console. The result is the
/// number of bytes taken, from the front; it is less than asked, perhaps 0, while the console is busy.
pub const CONSOLE_WRITE: u64 = 1;
/// Gives up the rest of the time slice. The result is 0.
pub const YIELD: u64 = 2;
/// The result is the time since the VM started. Unit: nanoseconds.
pub const CLOCK: u64 = 3;
/// Ends the VM with the status in RDI (low 32 bits). Does not return.
pub const EXIT: u64 = 4;
/// In builds of the hypervisor that count, and [`ENOSYS`] in all others: how often it has executed VMREAD (bits 11:0),
/// VMWRITE (23:12), RDMSR (35:24), WRMSR (47:36), and INVEPT or INVVPID (59:48). Each counts up to 4095 and begins anew.
pub const COUNTS: u64 = 5;

/// Most bytes that one [`CONSOLE_WRITE`] may give.
pub const CONSOLE_WRITE_MAX: u64 = 4096;

/// Not allowed at this privilege level.
pub const EPERM: i64 = -1;
/// The address is not in guest memory.
pub const EFAULT: i64 = -14;
/// An argument is out of range.
pub const EINVAL: i64 = -22;
/// No such call.
pub const ENOSYS: i64 = -38;
