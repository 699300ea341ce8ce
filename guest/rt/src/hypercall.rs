//! Calls to Lamina, as `lamina_arch::hypercall` defines them.

use core::arch::asm;
use lamina_arch::hypercall as abi;

use crate::cpu;

/// Lamina, found.
#[derive(Clone, Copy, Debug)]
pub struct Lamina {
    vmmcall: bool,
    version: u32,
}

/// An error number of the interface's, negative as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error(pub i64);

impl Lamina {
    /// Looks for Lamina; `None` where the program runs on something else.
    pub fn find() -> Option<Lamina> {
        // CPUID.01H:ECX[31]: the bit that tells of a hypervisor.
        if !cpu::has(1, 0, 2, 31) {
            return None;
        }
        let [highest, ebx, ecx, edx] = cpu::cpuid(abi::LEAF_SIGNATURE, 0);
        let mut signature = [0; 12];
        for (part, register) in signature.chunks_exact_mut(4).zip([ebx, ecx, edx]) {
            part.copy_from_slice(&register.to_le_bytes());
        }
        if signature != abi::SIGNATURE || highest < abi::LEAF_INTERFACE {
            return None;
        }
        let [version, instruction, ..] = cpu::cpuid(abi::LEAF_INTERFACE, 0);
        let vmmcall = match instruction {
            abi::INSTRUCTION_VMCALL => false,
            abi::INSTRUCTION_VMMCALL => true,
            _ => return None,
        };
        Some(Lamina { vmmcall, version })
    }

    /// Version of the interface.
    pub fn version(self) -> u32 {
        self.version
    }

    /// Rates of the time-stamp counter and of the local APIC's timer. Unit: kHz.
    pub fn timing(self) -> [u32; 2] {
        let [tsc, apic, ..] = cpu::cpuid(abi::LEAF_TIMING, 0);
        [tsc, apic]
    }

    /// Does nothing.
    ///
    /// # Errors
    /// None is known.
    pub fn nop(self) -> Result<u64, Error> {
        self.harmless(abi::NOP, 0, 0)
    }

    /// Writes `bytes` to the console, all of them, yielding while it is busy.
    ///
    /// # Errors
    /// As Lamina gives them.
    pub fn console_write(self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let length = (bytes.len() as u64).min(abi::CONSOLE_WRITE_MAX);
            // Memory is mapped one to one: the pointer is the guest-physical address.
            let taken = self.harmless(abi::CONSOLE_WRITE, bytes.as_ptr() as u64, length)?;
            bytes = bytes.get(usize::try_from(taken).unwrap_or(usize::MAX)..).unwrap_or(&[]);
            if taken < length {
                self.yield_now()?;
            }
        }
        Ok(())
    }

    /// Gives up the rest of the time slice.
    ///
    /// # Errors
    /// None is known.
    pub fn yield_now(self) -> Result<(), Error> {
        self.harmless(abi::YIELD, 0, 0).map(drop)
    }

    /// The time since the VM started. Unit: nanoseconds.
    ///
    /// # Errors
    /// None is known.
    pub fn clock(self) -> Result<u64, Error> {
        self.harmless(abi::CLOCK, 0, 0)
    }

    /// What [`Lamina::counts`] counts up to before it begins anew.
    pub const COUNTS_MASK: u64 = 0xfff;

    /// How often the hypervisor has executed VMREAD, VMWRITE, RDMSR, WRMSR, and INVEPT or INVVPID.
    ///
    /// # Errors
    /// As Lamina gives them: it counts in builds for that only.
    pub fn counts(self) -> Result<[u64; 5], Error> {
        let packed = self.harmless(abi::COUNTS, 0, 0)?;
        Ok([0, 12, 24, 36, 48].map(|shift| packed >> shift & Self::COUNTS_MASK))
    }

    /// Ends the VM.
    pub fn exit(self, status: u32) -> ! {
        let _ = self.harmless(abi::EXIT, status.into(), 0);
        cpu::halt_forever()
    }

    /// Any call; with none that the interface knows can Lamina be made to write to the program's memory.
    ///
    /// # Errors
    /// As Lamina gives them.
    pub fn harmless(self, number: u64, first: u64, second: u64) -> Result<u64, Error> {
        let mut result = number;
        // SAFETY: no call of the interface writes to memory or changes a register besides RAX.
        unsafe {
            if self.vmmcall {
                asm!("vmmcall", inout("rax") result, in("rdi") first, in("rsi") second, in("rdx") 0, options(nostack));
            } else {
                asm!("vmcall", inout("rax") result, in("rdi") first, in("rsi") second, in("rdx") 0, options(nostack));
            }
        }
        let signed = result.cast_signed();
        if signed < 0 { Err(Error(signed)) } else { Ok(result) }
    }

    /// Whether the instruction is VMMCALL (AMD's), not VMCALL.
    pub fn uses_vmmcall(self) -> bool {
        self.vmmcall
    }
}
