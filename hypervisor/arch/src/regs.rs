//! Registers of the guest as the hypervisor sees them.

/// Number of a general-purpose register as instructions encode it (0 = RAX … 15 = R15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Gpr {
    /// RAX.
    Rax = 0,
    /// RCX.
    Rcx = 1,
    /// RDX.
    Rdx = 2,
    /// RBX.
    Rbx = 3,
    /// RSP: lives in the VMCS/VMCB, not in [`Gprs`]; its slot there is not used while the guest runs.
    Rsp = 4,
    /// RBP.
    Rbp = 5,
    /// RSI.
    Rsi = 6,
    /// RDI.
    Rdi = 7,
    /// R8.
    R8 = 8,
    /// R9.
    R9 = 9,
    /// R10.
    R10 = 10,
    /// R11.
    R11 = 11,
    /// R12.
    R12 = 12,
    /// R13.
    R13 = 13,
    /// R14.
    R14 = 14,
    /// R15.
    R15 = 15,
}

impl Gpr {
    /// The register with the encoding `number`; only the low four bits count.
    pub const fn from_encoding(number: u8) -> Gpr {
        const ALL: [Gpr; 16] = [
            Gpr::Rax,
            Gpr::Rcx,
            Gpr::Rdx,
            Gpr::Rbx,
            Gpr::Rsp,
            Gpr::Rbp,
            Gpr::Rsi,
            Gpr::Rdi,
            Gpr::R8,
            Gpr::R9,
            Gpr::R10,
            Gpr::R11,
            Gpr::R12,
            Gpr::R13,
            Gpr::R14,
            Gpr::R15,
        ];
        ALL[(number & 15) as usize]
    }
}

/// The general-purpose registers, in the order of their encodings, as the entry code saves and loads them.
/// Width: 64 bits each. The RSP slot is not used by the entry code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Gprs(pub [u64; 16]);

const _: () = assert!(core::mem::size_of::<Gprs>() == 128);

impl Gprs {
    /// The value of `register`.
    pub const fn get(&self, register: Gpr) -> u64 {
        self.0[register as usize]
    }

    /// Sets all 64 bits of `register`.
    pub const fn set(&mut self, register: Gpr, value: u64) {
        self.0[register as usize] = value;
    }

    /// The low 32 bits of `register`.
    pub const fn get32(&self, register: Gpr) -> u32 {
        (self.0[register as usize] & 0xffff_ffff) as u32
    }

    /// EDX:EAX as one value, as RDMSR, WRMSR and XSETBV use them.
    pub const fn edx_eax(&self) -> u64 {
        (self.get32(Gpr::Rdx) as u64) << 32 | self.get32(Gpr::Rax) as u64
    }

    /// Sets EDX:EAX, clearing the upper halves as the processor does.
    pub const fn set_edx_eax(&mut self, value: u64) {
        self.set(Gpr::Rax, value & 0xffff_ffff);
        self.set(Gpr::Rdx, value >> 32);
    }
}

/// A part of the extended state (SDM vol. 1, "Managing State Using the XSAVE Feature Set"). What a processor has not got
/// reads as 0, and a write to it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtendedRegister {
    /// The x87 registers, and with them MMX's, as FXSAVE64 stores them: bytes 0 to 23 of its area, and 32 to 159 of it
    /// behind them.
    X87,
    /// MXCSR, then MXCSR_MASK, which is only read.
    Mxcsr,
    /// ZMM0 to ZMM31. The low 16 bytes are XMM, the low 32 YMM.
    Zmm(u8),
    /// k0 to k7.
    Mask(u8),
    /// PKRU.
    Pkru,
}

impl ExtendedRegister {
    /// Unit: bytes.
    pub const fn size(self) -> usize {
        match self {
            ExtendedRegister::X87 => 152,
            ExtendedRegister::Mxcsr | ExtendedRegister::Mask(_) => 8,
            ExtendedRegister::Zmm(_) => 64,
            ExtendedRegister::Pkru => 4,
        }
    }
}

/// A register that lives in the VMCS or VMCB, or that the back end switches; read and written through the seam.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SysReg {
    /// Instruction pointer.
    Rip,
    /// Stack pointer.
    Rsp,
    /// Flags.
    Rflags,
    /// CR0 as the guest reads it.
    Cr0,
    /// Page-fault linear address.
    Cr2,
    /// Page-table base.
    Cr3,
    /// CR4 as the guest reads it.
    Cr4,
    /// Debug status.
    Dr6,
    /// Debug control.
    Dr7,
    /// Extended features.
    Efer,
    /// Page attributes.
    Pat,
    /// FS base.
    FsBase,
    /// GS base.
    GsBase,
    /// GS base that SWAPGS exchanges.
    KernelGsBase,
    /// SYSENTER CS.
    SysenterCs,
    /// SYSENTER ESP.
    SysenterEsp,
    /// SYSENTER EIP.
    SysenterEip,
    /// SYSCALL selectors.
    Star,
    /// SYSCALL target in 64-bit mode.
    Lstar,
    /// SYSCALL target in compatibility mode.
    Cstar,
    /// SYSCALL flag mask.
    Fmask,
    /// What RDTSCP and RDPID return.
    TscAux,
    /// Extended control register 0.
    Xcr0,
    /// GDT base.
    GdtBase,
    /// GDT limit.
    GdtLimit,
    /// IDT base.
    IdtBase,
    /// IDT limit.
    IdtLimit,
}
