//! The CPU model `host`: what CPUID tells a guest.
//!
//! Owns the policy: an allow-list over what the machine's processor has. Only what works in a guest is shown; a bit
//! that nobody listed is 0. The answers are computed once, when the VM is made: no exit executes CPUID. SDM vol. 2,
//! "CPUID—CPU Identification".

use alloc::boxed::Box;
use alloc::vec::Vec;
use lamina_arch::cr::Cr4;
use lamina_arch::hypercall;
use lamina_arch::time::Frequency;

use crate::layout;
use crate::msr::{MISC_LIMIT_CPUID, MISC_XD_DISABLE, Speculation};

/// EAX, EBX, ECX, EDX.
pub type Answer = [u32; 4];

/// Highest basic leaf shown. Leaf 0x16 (frequencies) is not: it would claim a rate that nobody measured.
const MAX_BASIC: u32 = 0x15;
const MAX_EXTENDED: u32 = 0x8000_0008;
const MAX_HYPERVISOR: u32 = hypercall::LEAF_TIMING;

/// Leaf 1, ECX: SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C,
/// RDRAND. Added without asking the processor: x2APIC, TSC-deadline (both emulated), hypervisor.
const LEAF1_ECX: u32 = 1
    | 1 << 1
    | 1 << 9
    | 1 << 12
    | 1 << 13
    | 1 << 17
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 25
    | 1 << 26
    | 1 << 28
    | 1 << 29
    | 1 << 30;
const LEAF1_ECX_EMULATED: u32 = 1 << 21 | 1 << 24 | 1 << 31;
/// Leaf 1, ECX bit 27: mirrors CR4.OSXSAVE.
const OSXSAVE: u32 = 1 << 27;
/// Leaf 1, EDX bit 9: there is a local APIC, and it is on.
const APIC: u32 = 1 << 9;
/// Leaf 1, ECX bit 26.
const XSAVE: u32 = 1 << 26;
/// Leaf 1, EDX: FPU, VME, DE, PSE, TSC, MSR, PAE, MCE, CX8, SEP, PGE, MCA, CMOV, PAT, PSE-36, CLFSH, MMX, FXSR, SSE,
/// SSE2. Added without asking: APIC, MTRR (both emulated).
const LEAF1_EDX: u32 =
    0x1ff | 1 << 11 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 19 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26;
const LEAF1_EDX_EMULATED: u32 = 1 << 9 | 1 << 12;
/// Leaf 7.0, EBX: FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, INVPCID, AVX512F, AVX512DQ, RDSEED, ADX, SMAP, AVX512_IFMA,
/// CLFLUSHOPT, CLWB, AVX512CD, SHA, AVX512BW, AVX512VL. Added without asking: TSC_ADJUST (emulated).
const LEAF7_EBX: u32 = 1
    | 1 << 3
    | 1 << 5
    | 1 << 7
    | 1 << 8
    | 1 << 9
    | 1 << 10
    | 1 << 16
    | 1 << 17
    | 1 << 18
    | 1 << 19
    | 1 << 20
    | 1 << 21
    | 1 << 23
    | 1 << 24
    | 1 << 28
    | 1 << 29
    | 1 << 30
    | 1 << 31;
const LEAF7_EBX_EMULATED: u32 = 1 << 1;
/// The AVX-512 bits of leaf 7.0 EBX, which need their state components.
const LEAF7_EBX_AVX512: u32 = 1 << 16 | 1 << 17 | 1 << 21 | 1 << 28 | 1 << 30 | 1 << 31;
/// Leaf 7.0, ECX: AVX512_VBMI, UMIP, PKU, AVX512_VBMI2, GFNI, VAES, VPCLMULQDQ, AVX512_VNNI, AVX512_BITALG,
/// AVX512_VPOPCNTDQ, LA57, RDPID.
const LEAF7_ECX: u32 =
    1 << 1 | 1 << 2 | PKU | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14 | LA57 | 1 << 22;
/// Of those, protection keys; the next bit mirrors CR4.PKE.
const PKU: u32 = 1 << 3;
const OSPKE: u32 = 1 << 4;
/// And five levels of paging.
const LA57: u32 = 1 << 16;
/// Widths of linear addresses with four and with five levels. Unit: bits.
const LINEAR_BITS: (u32, u32) = (48, 57);
const LEAF7_ECX_AVX512: u32 = 1 << 1 | 1 << 6 | 1 << 11 | 1 << 12 | 1 << 14;
/// Leaf 7.0, EDX: fast short REP MOV, MD_CLEAR, IBRS and IBPB, STIBP, IA32_ARCH_CAPABILITIES, SSBD.
const LEAF7_EDX: u32 = 1 << 4 | 1 << 10 | 1 << 26 | 1 << 27 | 1 << 29 | 1 << 31;
/// Leaf 0xd.1, EAX: XSAVEOPT, XSAVEC, XGETBV with ECX = 1. Not XSAVES.
const LEAFD1_EAX: u32 = 0b111;
/// Leaf 0x80000001, ECX: LAHF/SAHF in 64-bit mode, LZCNT, PREFETCHW.
const EXT1_ECX: u32 = 1 | 1 << 5 | 1 << 8;
/// Leaf 0x80000001, EDX: SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
const EXT1_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
/// Of those, NX.
const EXECUTE_DISABLE: u32 = 1 << 20;
/// Leaf 0x80000008, EBX: IBPB, IBRS, STIBP, how these are best used (bits 19:16), SSBD, SSB_NO, PSFD.
const EXT8_EBX: u32 = 1 << 12 | 0b11_1111 << 14 | 1 << 24 | 1 << 26 | 1 << 28;
/// Leaf 0x80000007, EDX bit 8: invariant TSC.
const INVARIANT_TSC: u32 = 1 << 8;

/// State components that may be enabled in XCR0: x87, SSE, AVX, the three of AVX-512, and PKRU.
const XCR0_ALLOWED: u64 = 0b1110_0111 | XCR0_PKRU;
const XCR0_PKRU: u64 = 1 << 9;
const XCR0_AVX512: u64 = 0b1110_0000;

/// The state components that are switched between VMs, and may be shown, of those that the processor has (the low half of
/// CPUID leaf 0xd): AVX-512's three together with AVX, or none of them.
pub const fn switched_components(supported: u64) -> u64 {
    let allowed = supported & XCR0_ALLOWED;
    if allowed & XCR0_AVX512 != XCR0_AVX512 || allowed & 0b100 == 0 { allowed & !XCR0_AVX512 } else { allowed }
}

/// What the policy is computed from besides the processor.
#[derive(Clone, Copy, Debug)]
pub struct ModelInput {
    /// Rate of the TSC, measured.
    pub tsc: Frequency,
    /// Local APIC ID of the virtual processor.
    pub apic_id: u32,
    /// What the hypercall leaf names: [`hypercall::INSTRUCTION_VMCALL`] or [`hypercall::INSTRUCTION_VMMCALL`].
    pub hypercall_instruction: u32,
    /// Linear addresses may have 57 bits where the processor has them.
    pub wide_addresses: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    leaf: u32,
    subleaf: u32,
    answer: Answer,
}

/// All answers of one virtual processor.
#[derive(Clone, Debug)]
pub struct Cpuid {
    /// Sorted by leaf, then subleaf.
    entries: Vec<Entry>,
    /// What [`Cpuid::plain`] answers.
    plain: Box<[Option<Answer>; 4 * PLAIN_LEAVES as usize]>,
    /// Leaf 1, without OSXSAVE.
    features: Answer,
    /// Components that XCR0 may enable.
    xcr0: u64,
    /// CR4 bits that may be set.
    cr4: Cr4,
    /// The execute-disable bit of leaf 0x80000001, EDX, as the processor has it.
    execute_disable: u32,
}

/// Leaves whose answer depends on ECX.
/// Leaves of each of the four groups that [`Cpuid::plain`] has at hand, and its logarithm.
const PLAIN_LEAVES: u32 = 1 << PLAIN_BITS;
const PLAIN_BITS: u32 = 5;

const fn is_indexed(leaf: u32) -> bool {
    matches!(leaf, 4 | 7 | 0xb | 0xd)
}

impl Cpuid {
    /// The model `host` over what `processor` (leaf, subleaf) answers.
    pub fn host(processor: &dyn Fn(u32, u32) -> Answer, input: &ModelInput) -> Cpuid {
        let mut model = Cpuid {
            entries: Vec::new(),
            plain: Box::new([None; 4 * PLAIN_LEAVES as usize]),
            features: [0; 4],
            xcr0: 0,
            cr4: Cr4::empty(),
            execute_disable: 0,
        };
        let [max, vendor @ ..] = processor(0, 0);
        let has = |leaf: u32| leaf <= max;
        model.push(0, 0, [MAX_BASIC, vendor[0], vendor[1], vendor[2]]);

        let host1 = processor(1, 0);
        let xsave = host1[2] & XSAVE != 0 && has(0xd);
        model.xcr0 = if xsave { switched_components(processor(0xd, 0)[0].into()) } else { 0 };
        let mut ecx1 = host1[2] & LEAF1_ECX | LEAF1_ECX_EMULATED;
        if model.xcr0 & 0b100 == 0 {
            ecx1 &= !(1 << 12 | 1 << 28 | 1 << 29);
        }
        if !xsave {
            ecx1 &= !XSAVE;
        }
        let ebx1 = host1[1] & 0xff00 | 1 << 16 | input.apic_id << 24;
        model.push(1, 0, [host1[0], ebx1, ecx1, host1[3] & LEAF1_EDX | LEAF1_EDX_EMULATED]);
        model.push_caches(processor, has(2), has(4));
        // Leaf 6: ARAT. The emulated timer never stops, whatever the machine's own does.
        model.push(6, 0, [1 << 2, 0, 0, 0]);

        let host7 = if has(7) { processor(7, 0) } else { [0; 4] };
        let mut leaf7 = [0, host7[1] & LEAF7_EBX | LEAF7_EBX_EMULATED, host7[2] & LEAF7_ECX, host7[3] & LEAF7_EDX];
        if model.xcr0 & XCR0_AVX512 == 0 {
            leaf7[1] &= !LEAF7_EBX_AVX512;
            leaf7[2] &= !LEAF7_ECX_AVX512;
        }
        if model.xcr0 & 0b100 == 0 {
            leaf7[1] &= !(1 << 5);
            leaf7[2] &= !(1 << 9 | 1 << 10);
        }
        if model.xcr0 & XCR0_PKRU == 0 {
            leaf7[2] &= !PKU;
        }
        if !input.wide_addresses {
            leaf7[2] &= !LA57;
        }
        let linear_bits = if leaf7[2] & LA57 == 0 { LINEAR_BITS.0 } else { LINEAR_BITS.1 };
        model.push(7, 0, leaf7);
        // Leaf 0xb: one thread in one core.
        model.push(0xb, 0, [0, 1, 1 << 8, input.apic_id]);
        model.push(0xb, 1, [0, 1, 2 << 8 | 1, input.apic_id]);
        model.push(0xb, 2, [0, 0, 2, input.apic_id]);
        if xsave {
            model.push_xsave(processor);
        }
        model.push_rates(input);
        model.push_extended(processor, linear_bits);
        model.entries.sort_by_key(|e| (e.leaf, e.subleaf));
        model.cr4 = model.derive_cr4();
        model.index();
        model
    }

    fn push(&mut self, leaf: u32, subleaf: u32, answer: Answer) {
        self.entries.push(Entry { leaf, subleaf, answer });
    }

    /// Leaves 2 and 4: the machine's caches, as seen by one processor.
    fn push_caches(&mut self, processor: &dyn Fn(u32, u32) -> Answer, leaf2: bool, leaf4: bool) {
        if leaf2 {
            self.push(2, 0, processor(2, 0));
        }
        if !leaf4 {
            return;
        }
        for subleaf in 0..8 {
            let [eax, rest @ ..] = processor(4, subleaf);
            if eax & 0x1f == 0 {
                break;
            }
            // Bits 31:14 count processors and cores: one of each.
            self.push(4, subleaf, [eax & 0x3fff, rest[0], rest[1], rest[2]]);
        }
    }

    /// Leaf 0xd: sizes and offsets of the components that are allowed.
    fn push_xsave(&mut self, processor: &dyn Fn(u32, u32) -> Answer) {
        let xcr0 = (self.xcr0 & 0xffff_ffff) as u32;
        let mut max_size = 576;
        for component in 2..32 {
            if xcr0 & 1 << component == 0 {
                continue;
            }
            let [size, offset, flags, _] = processor(0xd, component);
            max_size = max_size.max(size.saturating_add(offset));
            self.push(0xd, component, [size, offset, flags & 0b10, 0]);
        }
        self.push(0xd, 0, [xcr0, 576, max_size, 0]);
        self.push(0xd, 1, [processor(0xd, 1)[0] & LEAFD1_EAX, 0, 0, 0]);
    }

    /// Leaf 0x15 and the hypervisor's leaves: rates that were measured.
    fn push_rates(&mut self, input: &ModelInput) {
        let crystal = layout::APIC_TIMER_HZ;
        let (numerator, denominator) = ratio(input.tsc.hz(), crystal);
        self.push(0x15, 0, [denominator, numerator, low32(crystal), 0]);
        let word = |i: usize| {
            let s = &hypercall::SIGNATURE;
            u32::from_le_bytes([s[i], s[i + 1], s[i + 2], s[i + 3]])
        };
        self.push(hypercall::LEAF_SIGNATURE, 0, [MAX_HYPERVISOR, word(0), word(4), word(8)]);
        self.push(hypercall::LEAF_INTERFACE, 0, [hypercall::VERSION, input.hypercall_instruction, 0, 0]);
        self.push(hypercall::LEAF_TIMING, 0, [low32(input.tsc.hz() / 1000), low32(crystal / 1000), 0, 0]);
    }

    fn push_extended(&mut self, processor: &dyn Fn(u32, u32) -> Answer, linear_bits: u32) {
        let [max, vendor @ ..] = processor(0x8000_0000, 0);
        self.push(0x8000_0000, 0, [MAX_EXTENDED, vendor[0], vendor[1], vendor[2]]);
        let [eax, _, ecx, edx] = processor(0x8000_0001, 0);
        self.push(0x8000_0001, 0, [eax, 0, ecx & EXT1_ECX, edx & EXT1_EDX]);
        self.execute_disable = edx & EXECUTE_DISABLE;
        for leaf in 0x8000_0002..=0x8000_0006 {
            if leaf <= max {
                self.push(leaf, 0, processor(leaf, 0));
            }
        }
        // The TSC that guests see never stops and never changes its rate: the calibration would have failed else.
        self.push(0x8000_0007, 0, [0, 0, 0, INVARIANT_TSC]);
        let [widths, ebx, ..] = if max >= 0x8000_0008 { processor(0x8000_0008, 0) } else { [0x3024, 0, 0, 0] };
        self.push(0x8000_0008, 0, [widths & 0xff | linear_bits << 8, ebx & EXT8_EBX, 0, 0]);
    }

    /// The CR4 bits whose features are shown.
    fn derive_cr4(&self) -> Cr4 {
        let [_, _, ecx1, edx1] = self.at(1, 0);
        let [_, ebx7, ecx7, _] = self.at(7, 0);
        let mut cr4 = Cr4::empty();
        let rules: [(bool, Cr4); 18] = [
            (edx1 & 1 << 1 != 0, Cr4::VME | Cr4::PVI),
            (edx1 & 1 << 4 != 0, Cr4::TSD),
            (edx1 & 1 << 2 != 0, Cr4::DE),
            (edx1 & 1 << 3 != 0, Cr4::PSE),
            (edx1 & 1 << 6 != 0, Cr4::PAE),
            (edx1 & 1 << 7 != 0, Cr4::MCE),
            (edx1 & 1 << 13 != 0, Cr4::PGE),
            (true, Cr4::PCE),
            (edx1 & 1 << 24 != 0, Cr4::OSFXSR),
            (edx1 & 1 << 25 != 0, Cr4::OSXMMEXCPT),
            (ecx7 & 1 << 2 != 0, Cr4::UMIP),
            (ebx7 & 1 != 0, Cr4::FSGSBASE),
            (ecx1 & 1 << 17 != 0, Cr4::PCIDE),
            (ecx1 & XSAVE != 0, Cr4::OSXSAVE),
            (ebx7 & 1 << 7 != 0, Cr4::SMEP),
            (ebx7 & 1 << 20 != 0, Cr4::SMAP),
            (ecx7 & PKU != 0, Cr4::PKE),
            (ecx7 & LA57 != 0, Cr4::LA57),
        ];
        for (shown, bits) in rules {
            if shown {
                cr4 |= bits;
            }
        }
        cr4
    }

    fn at(&self, leaf: u32, subleaf: u32) -> Answer {
        match self.entries.binary_search_by_key(&(leaf, subleaf), |e| (e.leaf, e.subleaf)) {
            Ok(found) => self.entries[found].answer,
            Err(_) => [0; 4],
        }
    }

    /// The answer of a leaf without subleaves that depends on no register, where there is one at hand.
    #[inline]
    pub fn plain(&self, leaf: u32) -> Option<&Answer> {
        // Bits 31 and 30 tell basic, hypervisor's and extended leaves apart.
        if leaf & 0x3fff_ffff >= PLAIN_LEAVES {
            return None;
        }
        self.plain[(leaf >> 30 << PLAIN_BITS | leaf & (PLAIN_LEAVES - 1)) as usize].as_ref()
    }

    /// Whether leaf 1 shows a local APIC: not while it is switched off (SDM vol. 3, "Enabling or Disabling the Local
    /// APIC").
    pub const fn show_apic(&mut self, on: bool) {
        self.features[3] = self.features[3] & !APIC | if on { APIC } else { 0 };
    }

    /// Follows IA32_MISC_ENABLE: as many leaves as it allows, and no execute-disable bit where it takes that away.
    pub fn follow_misc_enable(&mut self, value: u64) {
        const LIMITED: u32 = 2;
        let execute_disable = if value & MISC_XD_DISABLE == 0 { self.execute_disable } else { 0 };
        for entry in &mut self.entries {
            match entry.leaf {
                0 => entry.answer[0] = if value & MISC_LIMIT_CPUID == 0 { MAX_BASIC } else { LIMITED },
                0x8000_0001 => entry.answer[3] = entry.answer[3] & !EXECUTE_DISABLE | execute_disable,
                _ => {}
            }
        }
        let features = self.features;
        self.index();
        // Whether it shows the local APIC is not for us to change.
        self.features = features;
    }

    /// Leaf 1, given the guest's CR4.
    #[inline]
    pub const fn features(&self, cr4: u64) -> Answer {
        let [eax, ebx, ecx, edx] = self.features;
        [eax, ebx, if cr4 & Cr4::OSXSAVE.bits() != 0 { ecx | OSXSAVE } else { ecx }, edx]
    }

    /// Puts the answers of [`Cpuid::plain`] in place.
    fn index(&mut self) {
        for index in 0..4 * PLAIN_LEAVES {
            let leaf = index >> PLAIN_BITS << 30 | index & (PLAIN_LEAVES - 1);
            let is_plain = leaf != 1 && !is_indexed(leaf) && self.entries.iter().any(|e| e.leaf == leaf);
            self.plain[index as usize] = is_plain.then(|| self.answer(leaf, 0, 0, 0));
        }
        self.features = self.at(1, 0);
    }

    /// What CPUID answers, given the guest's CR4 and XCR0. A basic or extended leaf beyond the highest gets the data
    /// of the highest basic leaf, as on Intel's processors; other gaps are 0.
    pub fn answer(&self, leaf: u32, subleaf: u32, cr4: u64, xcr0: u64) -> Answer {
        let leaf = match leaf {
            0..=MAX_BASIC | hypercall::LEAF_SIGNATURE..=MAX_HYPERVISOR | 0x8000_0000..=MAX_EXTENDED => leaf,
            hypercall::LEAF_SIGNATURE..=0x4fff_ffff => return [0; 4],
            _ => MAX_BASIC,
        };
        let mut answer = self.at(leaf, if is_indexed(leaf) { subleaf } else { 0 });
        match (leaf, subleaf) {
            (1, _) => answer = self.features(cr4),
            (7, 0) if cr4 & Cr4::PKE.bits() != 0 => answer[2] |= OSPKE,
            (0xb, 3..) => answer[2] = subleaf & 0xff,
            (0xb, _) => {}
            (0xd, 0) => answer[1] = self.xsave_size(xcr0, false),
            (0xd, 1) => answer[1] = self.xsave_size(xcr0, true),
            _ => {}
        }
        answer
    }

    /// Bytes that XSAVE (`compacted`: XSAVEC) writes for the components in `xcr0`.
    fn xsave_size(&self, xcr0: u64, compacted: bool) -> u32 {
        let mut end: u32 = 576;
        for component in 2..32 {
            if xcr0 & self.xcr0 & 1 << component == 0 {
                continue;
            }
            let [size, offset, flags, _] = self.at(0xd, component);
            end = if !compacted {
                end.max(offset.saturating_add(size))
            } else if flags & 0b10 != 0 {
                end.next_multiple_of(64).saturating_add(size)
            } else {
                end.saturating_add(size)
            };
        }
        end
    }

    /// The components that XSETBV may enable in XCR0.
    pub const fn xcr0_allowed(&self) -> u64 {
        self.xcr0
    }

    /// The CR4 bits that the guest may set.
    pub const fn cr4_allowed(&self) -> Cr4 {
        self.cr4
    }

    /// The MSRs that control speculation, as far as they are shown; `capabilities` is the processor's
    /// IA32_ARCH_CAPABILITIES.
    pub fn speculation(&self, capabilities: u64) -> Speculation {
        Speculation::shown(self.at(7, 0)[3], self.at(0x8000_0008, 0)[1], capabilities)
    }

    /// The guest's physical-address width. Unit: bits.
    pub fn physical_bits(&self) -> u32 {
        // At hand without a search: asked for at accesses to devices.
        self.plain(0x8000_0008).map_or(0, |answer| answer[0] & 0xff)
    }

    /// The guest's linear-address width. Unit: bits.
    pub fn linear_bits(&self) -> u32 {
        self.plain(0x8000_0008).map_or(LINEAR_BITS.0, |answer| answer[0] >> 8 & 0xff)
    }
}

const fn low32(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// `tsc / crystal` as numerator and denominator of 32 bits, exact where that is possible.
fn ratio(tsc: u64, crystal: u64) -> (u32, u32) {
    let (mut a, mut b) = (tsc, crystal);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    let divisor = a.max(1);
    let (mut numerator, mut denominator) = (tsc / divisor, crystal / divisor);
    while numerator > u64::from(u32::MAX) {
        numerator >>= 1;
        denominator >>= 1;
    }
    (low32(numerator), low32(denominator.max(1)))
}

#[cfg(test)]
mod tests;
