//! Trying what a processor may refuse.
//!
//! Each function executes one instruction and says which exception it raised, if any. Where a register was written all
//! the same, its former value is back before the function returns.

use core::arch::asm;
use core::cell::UnsafeCell;

use crate::trap::{self, Fault, RECOVERY};

/// Executes instructions with the exception that they may raise awaited: it goes on behind them then. Interrupts are
/// out, so the exception is theirs. The other operands are those of `asm!`; the instructions must not use the stack.
macro_rules! attempt {
    ([$($instruction:expr),+] $($operands:tt)*) => {{
        asm!(
            "lea {resume}, [rip + 77f]",
            "mov [rip + {recovery}], {resume}",
            $($instruction,)+
            "77:",
            "mov qword ptr [rip + {recovery}], 0",
            resume = out(reg) _,
            recovery = sym RECOVERY,
            $($operands)*
        );
        match trap::caught() {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }};
}

/// What goes to EAX of EDX:EAX.
const fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// What goes to EDX of EDX:EAX.
const fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

/// Room for what the instructions below store.
#[repr(C, align(64))]
struct Scratch(UnsafeCell<[u8; 4096]>);

// SAFETY: instructions write here, nothing reads it; one processor.
unsafe impl Sync for Scratch {}

static SCRATCH: Scratch = Scratch(UnsafeCell::new([0; 4096]));

/// RDMSR.
///
/// # Errors
/// The exception that it raised.
pub fn rdmsr(msr: u32) -> Result<u64, Fault> {
    let (low, high): (u32, u32);
    // SAFETY: reading an MSR changes nothing of the program's.
    unsafe { attempt!(["rdmsr"] in("ecx") msr, inout("eax") 0 => low, inout("edx") 0 => high,) }?;
    Ok(u64::from(high) << 32 | u64::from(low))
}

/// WRMSR of `value`, then of what was there before.
///
/// # Errors
/// The exception that the first write raised.
pub fn wrmsr(msr: u32, value: u64) -> Result<(), Fault> {
    let before = rdmsr(msr).unwrap_or(0);
    let write = |value: u64| {
        // SAFETY: the value stays for a few instructions, none of which depends on an MSR that this program leaves
        // off its stack and segments; then the former one is back.
        unsafe { attempt!(["wrmsr"] in("ecx") msr, in("eax") low(value), in("edx") high(value),) }
    };
    write(value)?;
    // A write-only MSR has nothing to go back to, and refuses nothing that counts here.
    let _ = write(before);
    Ok(())
}

macro_rules! control_register {
    ($(#[$doc:meta])* $name:ident, $register:literal) => {
        $(#[$doc])*
        /// Given the value now, `change` makes the one to write; the former is back at once.
        ///
        /// # Errors
        /// The exception that the write raised.
        pub fn $name(change: impl Fn(u64) -> u64) -> Result<(), Fault> {
            let before: u64;
            // SAFETY: reads a register.
            unsafe { asm!(concat!("mov {}, ", $register), out(reg) before, options(nomem, nostack, preserves_flags)) };
            // SAFETY: the next instruction writes the former value, whether the first write went through or not.
            unsafe {
                attempt!(
                    [concat!("mov ", $register, ", {new}")]
                    new = in(reg) change(before),
                )
                .inspect(|()| asm!(concat!("mov ", $register, ", {}"), in(reg) before, options(nostack)))
            }
        }
    };
}

control_register!(
    /// MOV to CR0.
    cr0,
    "cr0"
);
control_register!(
    /// MOV to CR4.
    cr4,
    "cr4"
);
control_register!(
    /// MOV to CR8.
    cr8,
    "cr8"
);
control_register!(
    /// MOV to DR7.
    dr7,
    "dr7"
);

/// XSETBV of register `index`, then of what was there before. CR4.OSXSAVE must be set, or it is #UD.
///
/// # Errors
/// The exception that the first write raised.
pub fn xsetbv(index: u32, value: u64) -> Result<(), Fault> {
    let before = xgetbv().unwrap_or(1);
    let write = |index: u32, value: u64| {
        // SAFETY: this program is built without any use of extended state.
        unsafe { attempt!(["xsetbv"] in("ecx") index, in("eax") low(value), in("edx") high(value),) }
    };
    write(index, value)?;
    write(0, before)
}

/// XGETBV of XCR0.
///
/// # Errors
/// The exception that it raised.
pub fn xgetbv() -> Result<u64, Fault> {
    let (low, high): (u32, u32);
    // SAFETY: reads a register.
    unsafe { attempt!(["xgetbv"] in("ecx") 0, inout("eax") 0 => low, inout("edx") 0 => high,) }?;
    Ok(u64::from(high) << 32 | u64::from(low))
}

/// Reads 8 bytes at a linear address.
///
/// # Errors
/// The exception that it raised.
pub fn read_memory(address: u64) -> Result<u64, Fault> {
    let value: u64;
    // SAFETY: a read that the compiler knows nothing of; no device of the machine writes to memory for one.
    unsafe { attempt!(["mov {value}, [{address}]"] value = inout(reg) 0u64 => value, address = in(reg) address,) }?;
    Ok(value)
}

macro_rules! instruction {
    ($($(#[$doc:meta])* $name:ident: [$($text:literal),+] { $($operands:tt)* })+) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// The exception that it raised.
        pub fn $name() -> Result<(), Fault> {
            let scratch = SCRATCH.0.get();
            // SAFETY: writes to the scratch area and the named registers at most.
            unsafe { attempt!([$($text),+] in("rdi") scratch, $($operands)*) }
        }
    )+};
}

instruction! {
    /// UD2.
    ud2: ["ud2"] {}
    /// INT3.
    int3: ["int3"] {}
    /// DIV by 0.
    divide_by_zero: ["div ecx"] { in("ecx") 0, inout("eax") 1 => _, inout("edx") 0 => _, }
    /// RDTSCP.
    rdtscp: ["rdtscp"] { out("eax") _, out("ecx") _, out("edx") _, }
    /// RDPID.
    rdpid: ["rdpid rax"] { out("rax") _, }
    /// RDRAND.
    rdrand: ["rdrand eax"] { out("eax") _, }
    /// RDSEED.
    rdseed: ["rdseed eax"] { out("eax") _, }
    /// RDPMC of counter 0.
    rdpmc: ["rdpmc"] { in("ecx") 0, out("eax") _, out("edx") _, }
    /// INVPCID of everything.
    invpcid: ["invpcid rax, [rdi]"] { in("rax") 3, }
    /// MONITOR.
    monitor: ["mov rax, rdi", "monitor"] { out("rax") _, in("ecx") 0, in("edx") 0, }
    /// TPAUSE until a time that has passed.
    tpause: ["tpause ecx"] { in("ecx") 0, in("eax") 0, in("edx") 0, }
    /// XSAVES of nothing.
    xsaves: ["xsaves [rdi]"] { in("eax") 0, in("edx") 0, }
    /// XSAVE of nothing.
    xsave: ["xsave [rdi]"] { in("eax") 0, in("edx") 0, }
    /// RDFSBASE.
    rdfsbase: ["rdfsbase rax"] { out("rax") _, }
    /// CLAC.
    clac: ["clac"] {}
    /// SWAPGS, twice.
    swapgs: ["swapgs", "swapgs"] {}
    /// VMXON with an address that holds no region.
    vmxon: ["vmxon qword ptr [rdi]"] {}
    /// VMXOFF.
    vmxoff: ["vmxoff"] {}
    /// VMCALL of the call that does nothing.
    vmcall: ["vmcall"] { inout("rax") 0u64 => _, }
    /// VMMCALL of the call that does nothing.
    vmmcall: ["vmmcall"] { inout("rax") 0u64 => _, }
    /// VMRUN with an address that is aligned and holds nothing.
    vmrun: ["xor eax, eax", "vmrun rax"] { out("rax") _, }
    /// STGI.
    stgi: ["stgi"] {}
    /// GETSEC of the leaf for capabilities.
    getsec: ["getsec"] { inout("eax") 0 => _, inout("rcx") 0u64 => _, in("edx") 0, }
    /// WBINVD.
    wbinvd: ["wbinvd"] {}
}
