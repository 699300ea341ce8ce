//! Segment registers with their hidden parts.

/// Name of a segment register; the numbers are those of instruction encodings for the first six.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SegmentName {
    /// ES.
    Es = 0,
    /// CS.
    Cs = 1,
    /// SS.
    Ss = 2,
    /// DS.
    Ds = 3,
    /// FS.
    Fs = 4,
    /// GS.
    Gs = 5,
    /// Local descriptor table register.
    Ldtr = 6,
    /// Task register.
    Tr = 7,
}

/// Access rights of a segment, in the VMCS's format (SDM vol. 3, "Guest Register State", table "Format of Access
/// Rights"): type 0:3, S 4, DPL 5:6, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct AccessRights(pub u32);

impl AccessRights {
    /// A segment register that holds no usable segment.
    pub const UNUSABLE: AccessRights = AccessRights(1 << 16);
    /// 64-bit code, present, DPL 0, accessed.
    pub const CODE64: AccessRights = AccessRights(0xa09b);
    /// Flat 32-bit code, present, DPL 0, accessed, 4 KiB granularity.
    pub const CODE32: AccessRights = AccessRights(0xc09b);
    /// Flat 32-bit data, writable, present, DPL 0, accessed, 4 KiB granularity.
    pub const DATA32: AccessRights = AccessRights(0xc093);
    /// Busy 32/64-bit TSS, present.
    pub const TSS_BUSY: AccessRights = AccessRights(0x008b);
    /// Local descriptor table, present.
    pub const LDT: AccessRights = AccessRights(0x0082);

    /// Whether bit `n` is set.
    pub const fn bit(self, n: u32) -> bool {
        self.0 & 1 << n != 0
    }

    /// Whether the segment is unusable.
    pub const fn is_unusable(self) -> bool {
        self.bit(16)
    }

    /// The type field, 4 bits.
    pub const fn kind(self) -> u32 {
        self.0 & 0xf
    }

    /// Descriptor privilege level, 0 to 3.
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }

    /// L: a 64-bit code segment.
    pub const fn is_long(self) -> bool {
        self.bit(13)
    }

    /// D/B: default operand size of 32 bits.
    pub const fn is_default32(self) -> bool {
        self.bit(14)
    }
}

/// One segment register with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Base address. Unit: bytes.
    pub base: u64,
    /// Limit, after the granularity was applied. Unit: bytes.
    pub limit: u32,
    /// Access rights.
    pub rights: AccessRights,
}
