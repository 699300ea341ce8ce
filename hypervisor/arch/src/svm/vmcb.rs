//! The VMCB: its fields, typed by width and access, and the clean bits that belong to them (APM vol. 2, appendix "VMCB
//! Layout", and "VMCB Clean Bits").
//!
//! A write through [`Vmcb::write`] takes back the clean bit of the field's group, so a processor never uses its own old
//! copy of what software has changed. A read-only field has no way to be written.

use core::marker::PhantomData;

use bitflags::bitflags;

use crate::segment::SegmentName;

bitflags! {
    /// Clean bits: what the processor may take from its own copy of the VMCB.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Clean: u32 {
        /// Intercepts, TSC offset, pause filter.
        const INTERCEPTS = 1 << 0;
        /// Addresses of the permission maps.
        const PERMISSION_MAPS = 1 << 1;
        /// ASID.
        const ASID = 1 << 2;
        /// Virtual interrupts.
        const VIRTUAL_INTERRUPTS = 1 << 3;
        /// Nested paging: its control, the root, the guest's PAT.
        const NESTED_PAGING = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CONTROL_REGISTERS = 1 << 5;
        /// DR6, DR7.
        const DEBUG_REGISTERS = 1 << 6;
        /// GDT and IDT.
        const DESCRIPTOR_TABLES = 1 << 7;
        /// CS, DS, SS, ES and the CPL.
        const SEGMENTS = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// DEBUGCTL and last-branch records.
        const LAST_BRANCH = 1 << 10;
    }
}

impl Clean {
    /// In no group: the processor reads it at every VMRUN, or VMLOAD does.
    pub const ALWAYS_READ: Clean = Clean::empty();
}

/// A field's value in the VMCB's bytes, which are little-endian.
pub trait Value: Copy + Into<u64> {
    /// Unit: bytes.
    const SIZE: usize;
    /// The value in the first bytes of `bytes`.
    fn load(bytes: &[u8]) -> Self;
    /// Puts the value into the first bytes of `bytes`.
    fn store(self, bytes: &mut [u8]);
}

macro_rules! value {
    ($($type:ty),*) => {
        $(impl Value for $type {
            const SIZE: usize = size_of::<$type>();
            fn load(bytes: &[u8]) -> $type {
                bytes.first_chunk().map_or(0, |chunk| <$type>::from_le_bytes(*chunk))
            }
            fn store(self, bytes: &mut [u8]) {
                if let Some(chunk) = bytes.first_chunk_mut() {
                    *chunk = self.to_le_bytes();
                }
            }
        })*
    };
}
value!(u8, u16, u32, u64);

/// A field that software may write.
#[derive(Clone, Copy, Debug)]
pub struct ReadWrite;
/// A field that only the processor writes.
#[derive(Clone, Copy, Debug)]
pub struct ReadOnly;

/// One field of the VMCB with values of type `T` and access `A`.
#[derive(Debug)]
pub struct Field<T, A> {
    offset: u16,
    clean: Clean,
    kind: PhantomData<(T, A)>,
}

impl<T, A> Clone for Field<T, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T, A> Copy for Field<T, A> {}

impl<T: Value, A> Field<T, A> {
    /// The field at `offset`; at compile time, refuses one that is not aligned or not inside the VMCB.
    const fn new(offset: u16, clean: Clean) -> Self {
        assert!((offset as usize).is_multiple_of(T::SIZE), "the field is not aligned");
        assert!(offset as usize + T::SIZE <= VMCB_SIZE, "the field is beyond the end");
        Field { offset, clean, kind: PhantomData }
    }

    /// Where it is in the VMCB. Unit: bytes.
    pub const fn offset(self) -> usize {
        self.offset as usize
    }
}

/// Unit: bytes.
const VMCB_SIZE: usize = 4096;
/// Where the state save area begins.
const SAVE: u16 = 0x400;

/// A virtual machine control block. The address of one is that of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct Vmcb([u8; VMCB_SIZE]);

const _: () = assert!(size_of::<Vmcb>() == 4096 && align_of::<Vmcb>() == 4096);

impl Vmcb {
    /// All zero, nothing clean.
    pub const fn new() -> Vmcb {
        Vmcb([0; VMCB_SIZE])
    }

    /// Reads a field.
    #[inline]
    pub fn read<T: Value, A>(&self, field: Field<T, A>) -> T {
        T::load(self.0.get(field.offset()..).unwrap_or(&[]))
    }

    /// Writes a field; the processor will read its group again.
    #[inline]
    pub fn write<T: Value>(&mut self, field: Field<T, ReadWrite>, value: T) {
        self.put(field, value);
        if !field.clean.is_empty() {
            let clean = self.read(CLEAN_BITS) & !field.clean.bits();
            self.put(CLEAN_BITS, clean);
        }
    }

    /// The processor has run this VMCB: it knows everything that is not written from here on.
    #[inline]
    pub fn set_clean(&mut self) {
        self.put(CLEAN_BITS, Clean::all().bits());
    }

    /// What is clean.
    pub fn clean(&self) -> Clean {
        Clean::from_bits_truncate(self.read(CLEAN_BITS))
    }

    fn put<T: Value, A>(&mut self, field: Field<T, A>, value: T) {
        if let Some(bytes) = self.0.get_mut(field.offset()..) {
            value.store(bytes);
        }
    }
}

impl Default for Vmcb {
    fn default() -> Self {
        Self::new()
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $type:ident $access:ident $clean:ident = $offset:expr;)*) => {
        $($(#[$doc])* pub const $name: Field<$type, $access> = Field::new($offset, Clean::$clean);)*

        /// Name, offset and size (unit: bytes) of every field here, for reports.
        pub const ALL: &[(&str, usize, usize)] = &[$((stringify!($name), $offset as usize, size_of::<$type>())),*];

        /// The clean bit of every field, in the same order.
        #[cfg(test)]
        const CLEAN_OF_ALL: &[Clean] = &[$(Clean::$clean),*];
    };
}

fields! {
    /// Intercepts of control-register reads, a bit for each.
    CR_READ_INTERCEPTS: u16 ReadWrite INTERCEPTS = 0x000;
    /// Intercepts of control-register writes, a bit for each.
    CR_WRITE_INTERCEPTS: u16 ReadWrite INTERCEPTS = 0x002;
    /// Intercepts of exceptions, a bit for each vector.
    EXCEPTION_INTERCEPTS: u32 ReadWrite INTERCEPTS = 0x008;
    /// The first intercept vector.
    FIRST_INTERCEPTS: u32 ReadWrite INTERCEPTS = 0x00c;
    /// The second intercept vector.
    SECOND_INTERCEPTS: u32 ReadWrite INTERCEPTS = 0x010;
    /// The third intercept vector.
    THIRD_INTERCEPTS: u32 ReadWrite INTERCEPTS = 0x014;
    /// Physical address of the I/O permission map, 12 KiB.
    IOPM_BASE_PA: u64 ReadWrite PERMISSION_MAPS = 0x040;
    /// Physical address of the MSR permission map, 8 KiB.
    MSRPM_BASE_PA: u64 ReadWrite PERMISSION_MAPS = 0x048;
    /// What the guest's TSC is ahead of the machine's.
    TSC_OFFSET: u64 ReadWrite INTERCEPTS = 0x050;
    /// Address-space identifier of the guest.
    GUEST_ASID: u32 ReadWrite ASID = 0x058;
    /// Which translations VMRUN forgets: see [`tlb_control`].
    TLB_CONTROL: u8 ReadWrite ALWAYS_READ = 0x05c;
    /// Virtual interrupts: see [`interrupt_control`].
    INTERRUPT_CONTROL: u32 ReadWrite VIRTUAL_INTERRUPTS = 0x060;
    /// Vector of the virtual interrupt.
    INTERRUPT_VECTOR: u32 ReadWrite VIRTUAL_INTERRUPTS = 0x064;
    /// Bit 0: the guest is in an interrupt shadow.
    INTERRUPT_STATE: u64 ReadWrite ALWAYS_READ = 0x068;
    /// Why the guest exited.
    EXITCODE: u64 ReadOnly ALWAYS_READ = 0x070;
    /// What the exit code says of it, first part.
    EXITINFO1: u64 ReadOnly ALWAYS_READ = 0x078;
    /// What the exit code says of it, second part.
    EXITINFO2: u64 ReadOnly ALWAYS_READ = 0x080;
    /// The event whose delivery the exit interrupted.
    EXITINTINFO: u64 ReadOnly ALWAYS_READ = 0x088;
    /// Bit 0: nested paging.
    NESTED_CONTROL: u64 ReadWrite NESTED_PAGING = 0x090;
    /// The event to inject.
    EVENTINJ: u64 ReadWrite ALWAYS_READ = 0x0a8;
    /// Physical address of the nested tables' root.
    NESTED_CR3: u64 ReadWrite NESTED_PAGING = 0x0b0;
    /// Clean bits: written by [`Vmcb::write`] and [`Vmcb::set_clean`].
    CLEAN_BITS: u32 ReadOnly ALWAYS_READ = 0x0c0;
    /// Where the instruction after the one that exited is.
    NEXT_RIP: u64 ReadOnly ALWAYS_READ = 0x0c8;

    /// ES selector.
    ES_SELECTOR: u16 ReadWrite SEGMENTS = SAVE;
    /// ES attributes.
    ES_ATTRIBUTES: u16 ReadWrite SEGMENTS = SAVE + 0x002;
    /// ES limit.
    ES_LIMIT: u32 ReadWrite SEGMENTS = SAVE + 0x004;
    /// ES base.
    ES_BASE: u64 ReadWrite SEGMENTS = SAVE + 0x008;
    /// CS selector.
    CS_SELECTOR: u16 ReadWrite SEGMENTS = SAVE + 0x010;
    /// CS attributes.
    CS_ATTRIBUTES: u16 ReadWrite SEGMENTS = SAVE + 0x012;
    /// CS limit.
    CS_LIMIT: u32 ReadWrite SEGMENTS = SAVE + 0x014;
    /// CS base.
    CS_BASE: u64 ReadWrite SEGMENTS = SAVE + 0x018;
    /// SS selector.
    SS_SELECTOR: u16 ReadWrite SEGMENTS = SAVE + 0x020;
    /// SS attributes.
    SS_ATTRIBUTES: u16 ReadWrite SEGMENTS = SAVE + 0x022;
    /// SS limit.
    SS_LIMIT: u32 ReadWrite SEGMENTS = SAVE + 0x024;
    /// SS base.
    SS_BASE: u64 ReadWrite SEGMENTS = SAVE + 0x028;
    /// DS selector.
    DS_SELECTOR: u16 ReadWrite SEGMENTS = SAVE + 0x030;
    /// DS attributes.
    DS_ATTRIBUTES: u16 ReadWrite SEGMENTS = SAVE + 0x032;
    /// DS limit.
    DS_LIMIT: u32 ReadWrite SEGMENTS = SAVE + 0x034;
    /// DS base.
    DS_BASE: u64 ReadWrite SEGMENTS = SAVE + 0x038;
    /// FS selector.
    FS_SELECTOR: u16 ReadWrite ALWAYS_READ = SAVE + 0x040;
    /// FS attributes.
    FS_ATTRIBUTES: u16 ReadWrite ALWAYS_READ = SAVE + 0x042;
    /// FS limit.
    FS_LIMIT: u32 ReadWrite ALWAYS_READ = SAVE + 0x044;
    /// FS base.
    FS_BASE: u64 ReadWrite ALWAYS_READ = SAVE + 0x048;
    /// GS selector.
    GS_SELECTOR: u16 ReadWrite ALWAYS_READ = SAVE + 0x050;
    /// GS attributes.
    GS_ATTRIBUTES: u16 ReadWrite ALWAYS_READ = SAVE + 0x052;
    /// GS limit.
    GS_LIMIT: u32 ReadWrite ALWAYS_READ = SAVE + 0x054;
    /// GS base.
    GS_BASE: u64 ReadWrite ALWAYS_READ = SAVE + 0x058;
    /// GDT limit.
    GDTR_LIMIT: u32 ReadWrite DESCRIPTOR_TABLES = SAVE + 0x064;
    /// GDT base.
    GDTR_BASE: u64 ReadWrite DESCRIPTOR_TABLES = SAVE + 0x068;
    /// LDTR selector.
    LDTR_SELECTOR: u16 ReadWrite ALWAYS_READ = SAVE + 0x070;
    /// LDTR attributes.
    LDTR_ATTRIBUTES: u16 ReadWrite ALWAYS_READ = SAVE + 0x072;
    /// LDTR limit.
    LDTR_LIMIT: u32 ReadWrite ALWAYS_READ = SAVE + 0x074;
    /// LDTR base.
    LDTR_BASE: u64 ReadWrite ALWAYS_READ = SAVE + 0x078;
    /// IDT limit.
    IDTR_LIMIT: u32 ReadWrite DESCRIPTOR_TABLES = SAVE + 0x084;
    /// IDT base.
    IDTR_BASE: u64 ReadWrite DESCRIPTOR_TABLES = SAVE + 0x088;
    /// TR selector.
    TR_SELECTOR: u16 ReadWrite ALWAYS_READ = SAVE + 0x090;
    /// TR attributes.
    TR_ATTRIBUTES: u16 ReadWrite ALWAYS_READ = SAVE + 0x092;
    /// TR limit.
    TR_LIMIT: u32 ReadWrite ALWAYS_READ = SAVE + 0x094;
    /// TR base.
    TR_BASE: u64 ReadWrite ALWAYS_READ = SAVE + 0x098;
    /// Current privilege level.
    CPL: u8 ReadWrite SEGMENTS = SAVE + 0x0cb;
    /// EFER.
    EFER: u64 ReadWrite CONTROL_REGISTERS = SAVE + 0x0d0;
    /// CR4.
    CR4: u64 ReadWrite CONTROL_REGISTERS = SAVE + 0x148;
    /// CR3.
    CR3: u64 ReadWrite CONTROL_REGISTERS = SAVE + 0x150;
    /// CR0.
    CR0: u64 ReadWrite CONTROL_REGISTERS = SAVE + 0x158;
    /// DR7.
    DR7: u64 ReadWrite DEBUG_REGISTERS = SAVE + 0x160;
    /// DR6.
    DR6: u64 ReadWrite DEBUG_REGISTERS = SAVE + 0x168;
    /// RFLAGS.
    RFLAGS: u64 ReadWrite ALWAYS_READ = SAVE + 0x170;
    /// RIP.
    RIP: u64 ReadWrite ALWAYS_READ = SAVE + 0x178;
    /// RSP.
    RSP: u64 ReadWrite ALWAYS_READ = SAVE + 0x1d8;
    /// RAX.
    RAX: u64 ReadWrite ALWAYS_READ = SAVE + 0x1f8;
    /// STAR.
    STAR: u64 ReadWrite ALWAYS_READ = SAVE + 0x200;
    /// LSTAR.
    LSTAR: u64 ReadWrite ALWAYS_READ = SAVE + 0x208;
    /// CSTAR.
    CSTAR: u64 ReadWrite ALWAYS_READ = SAVE + 0x210;
    /// SFMASK.
    SFMASK: u64 ReadWrite ALWAYS_READ = SAVE + 0x218;
    /// KernelGSbase.
    KERNEL_GS_BASE: u64 ReadWrite ALWAYS_READ = SAVE + 0x220;
    /// SYSENTER_CS.
    SYSENTER_CS: u64 ReadWrite ALWAYS_READ = SAVE + 0x228;
    /// SYSENTER_ESP.
    SYSENTER_ESP: u64 ReadWrite ALWAYS_READ = SAVE + 0x230;
    /// SYSENTER_EIP.
    SYSENTER_EIP: u64 ReadWrite ALWAYS_READ = SAVE + 0x238;
    /// CR2.
    CR2: u64 ReadWrite CR2 = SAVE + 0x240;
    /// The guest's PAT, under nested paging.
    G_PAT: u64 ReadWrite NESTED_PAGING = SAVE + 0x268;
}

/// Values of [`TLB_CONTROL`].
pub mod tlb_control {
    /// Nothing.
    pub const NOTHING: u8 = 0;
    /// Every translation of every guest's and the host's.
    pub const FLUSH_ALL: u8 = 1;
    /// Every translation of this guest's.
    pub const FLUSH_GUEST: u8 = 3;
}

/// Bits of [`INTERRUPT_CONTROL`].
pub mod interrupt_control {
    /// A virtual interrupt is pending.
    pub const V_IRQ: u32 = 1 << 8;
    /// Its priority, bits 19:16: the highest.
    pub const V_INTR_PRIO_HIGHEST: u32 = 0xf << 16;
    /// The guest's task priority does not hold it back.
    pub const V_IGN_TPR: u32 = 1 << 20;
    /// The guest's RFLAGS.IF masks virtual interrupts only; the host's masks physical ones.
    pub const V_INTR_MASKING: u32 = 1 << 24;
}

/// Bit 0 of [`INTERRUPT_STATE`].
pub const INTERRUPT_SHADOW: u64 = 1;
/// Bit 0 of [`NESTED_CONTROL`].
pub const NESTED_PAGING: u64 = 1;

/// Selector, attributes, limit and base.
pub type SegmentFields = (Field<u16, ReadWrite>, Field<u16, ReadWrite>, Field<u32, ReadWrite>, Field<u64, ReadWrite>);

/// The fields of a segment register.
pub const fn segment(name: SegmentName) -> SegmentFields {
    match name {
        SegmentName::Es => (ES_SELECTOR, ES_ATTRIBUTES, ES_LIMIT, ES_BASE),
        SegmentName::Cs => (CS_SELECTOR, CS_ATTRIBUTES, CS_LIMIT, CS_BASE),
        SegmentName::Ss => (SS_SELECTOR, SS_ATTRIBUTES, SS_LIMIT, SS_BASE),
        SegmentName::Ds => (DS_SELECTOR, DS_ATTRIBUTES, DS_LIMIT, DS_BASE),
        SegmentName::Fs => (FS_SELECTOR, FS_ATTRIBUTES, FS_LIMIT, FS_BASE),
        SegmentName::Gs => (GS_SELECTOR, GS_ATTRIBUTES, GS_LIMIT, GS_BASE),
        SegmentName::Ldtr => (LDTR_SELECTOR, LDTR_ATTRIBUTES, LDTR_LIMIT, LDTR_BASE),
        SegmentName::Tr => (TR_SELECTOR, TR_ATTRIBUTES, TR_LIMIT, TR_BASE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_fields_overlap() {
        for (i, (name, start, size)) in ALL.iter().enumerate() {
            for (other, from, length) in &ALL[i + 1..] {
                assert!(start + size <= *from || from + length <= *start, "{name} and {other}");
            }
        }
    }

    #[test]
    fn a_write_takes_back_the_clean_bit_of_its_group_and_no_other() {
        type Change = fn(&mut Vmcb);
        let groups: [(Change, Clean); 13] = [
            (|v| v.write(FIRST_INTERCEPTS, 1), Clean::INTERCEPTS),
            (|v| v.write(TSC_OFFSET, 1), Clean::INTERCEPTS),
            (|v| v.write(MSRPM_BASE_PA, 0x1000), Clean::PERMISSION_MAPS),
            (|v| v.write(GUEST_ASID, 1), Clean::ASID),
            (|v| v.write(INTERRUPT_CONTROL, 1), Clean::VIRTUAL_INTERRUPTS),
            (|v| v.write(NESTED_CR3, 0x1000), Clean::NESTED_PAGING),
            (|v| v.write(G_PAT, 6), Clean::NESTED_PAGING),
            (|v| v.write(EFER, 1), Clean::CONTROL_REGISTERS),
            (|v| v.write(DR7, 0x400), Clean::DEBUG_REGISTERS),
            (|v| v.write(IDTR_LIMIT, 1), Clean::DESCRIPTOR_TABLES),
            (|v| v.write(CPL, 3), Clean::SEGMENTS),
            (|v| v.write(CR2, 1), Clean::CR2),
            (|v| v.write(RIP, 1), Clean::empty()),
        ];
        for (write, group) in groups {
            let mut vmcb = Vmcb::new();
            vmcb.set_clean();
            write(&mut vmcb);
            assert_eq!(vmcb.clean(), Clean::all() - group);
        }
        assert_eq!(Vmcb::new().clean(), Clean::empty());
    }

    #[test]
    fn every_field_is_in_the_group_that_the_manual_has_it_in() {
        // APM vol. 2, "VMCB Clean Field", by offsets.
        let expected = |offset: usize| match offset {
            // Intercepts, TSC offset.
            0x000..=0x014 | 0x050 => Clean::INTERCEPTS,
            0x040 | 0x048 => Clean::PERMISSION_MAPS,
            0x058 => Clean::ASID,
            // V_TPR, V_IRQ, V_INTR_PRIO, V_IGN_TPR, V_INTR_MASKING, V_INTR_VECTOR.
            0x060 | 0x064 => Clean::VIRTUAL_INTERRUPTS,
            // Nested paging, nested CR3, G_PAT.
            0x090 | 0x0b0 | 0x668 => Clean::NESTED_PAGING,
            // EFER, CR4, CR3, CR0.
            0x4d0 | 0x548 | 0x550 | 0x558 => Clean::CONTROL_REGISTERS,
            // DR7, DR6.
            0x560 | 0x568 => Clean::DEBUG_REGISTERS,
            // GDTR and IDTR.
            0x464 | 0x468 | 0x484 | 0x488 => Clean::DESCRIPTOR_TABLES,
            // ES, CS, SS, DS, CPL.
            0x400..=0x43f | 0x4cb => Clean::SEGMENTS,
            0x640 => Clean::CR2,
            _ => Clean::empty(),
        };
        assert_eq!(CLEAN_OF_ALL.len(), ALL.len());
        for ((name, offset, _), clean) in ALL.iter().zip(CLEAN_OF_ALL) {
            assert_eq!(*clean, expected(*offset), "{name}");
        }
    }

    #[test]
    fn values_are_where_the_manual_has_them() {
        let mut vmcb = Vmcb::new();
        vmcb.write(GUEST_ASID, 0x0403_0201);
        vmcb.write(RAX, 0x1122_3344_5566_7788);
        assert_eq!(vmcb.0[0x58..0x5c], [1, 2, 3, 4]);
        assert_eq!(vmcb.0[0x5f8], 0x88);
        assert_eq!((vmcb.read(GUEST_ASID), vmcb.read(RAX)), (0x0403_0201, 0x1122_3344_5566_7788));
        for (name, offset) in [(SegmentName::Es, 0x400), (SegmentName::Gs, 0x450), (SegmentName::Tr, 0x490)] {
            let (selector, attributes, limit, base) = segment(name);
            let offsets = [selector.offset(), attributes.offset(), limit.offset(), base.offset()];
            assert_eq!(offsets, [offset, offset + 2, offset + 4, offset + 8]);
        }
    }
}
