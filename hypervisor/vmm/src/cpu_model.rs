//! CPU models by name: which features a guest is shown at most.
//!
//! Owns the ceilings, one for each name, and the rule that applies them: a model is what the machine's processor has and
//! the ceiling allows, and [`crate::cpuid`] makes one policy of it as of any other processor. So a model never shows
//! what is not there, and whatever depends on a feature (control bits, XCR0, sizes of areas) follows from what is shown.
//! Maker, family, model number, name and caches stay the processor's own: errata and MSRs go by them.

use lamina_arch::instruction::Instructions;

use crate::cpuid::Answer;

/// Features of the leaves that tell of them: a bit that is clear is not shown.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// What a configuration calls it.
    pub name: &'static str,
    leaf1_ecx: u32,
    leaf7: [u32; 3],
    /// State components that may be enabled in XCR0.
    xcr0: u32,
    /// Leaf 0xd.1, EAX: forms of XSAVE.
    xsave: u32,
    extended_ecx: u32,
}

const fn bits(numbers: &[u32]) -> u32 {
    let (mut all, mut n) = (0, 0);
    while n < numbers.len() {
        all |= 1 << numbers[n];
        n += 1;
    }
    all
}

/// Leaf 1, ECX: SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT.
const BASELINE_ECX: u32 = bits(&[0, 9, 13, 19, 20, 23]);
/// Beside those: PCLMULQDQ, FMA, PCID, MOVBE, AES, XSAVE, AVX, F16C, RDRAND.
const HASWELL_ECX: u32 = BASELINE_ECX | bits(&[1, 12, 17, 22, 25, 26, 28, 29, 30]);
/// Leaf 7, EBX: FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, INVPCID.
const HASWELL_7: u32 = bits(&[0, 3, 5, 7, 8, 9, 10]);
/// Beside those: RDSEED, ADX, SMAP, CLFLUSHOPT.
const SKYLAKE_7: u32 = HASWELL_7 | bits(&[18, 19, 20, 23]);
/// Beside those: CLWB, AVX512F, AVX512DQ, AVX512CD, AVX512BW, AVX512VL.
const SKYLAKE_SERVER_7: u32 = SKYLAKE_7 | bits(&[24, 16, 17, 28, 30, 31]);

/// Leaf 7, EDX, of all of them: MD_CLEAR, IBRS and IBPB, STIBP, IA32_ARCH_CAPABILITIES, SSBD: what a guest needs for its own
/// defence came by microcode to processors that were there already.
const SPECULATION: u32 = bits(&[10, 26, 27, 29, 31]);

/// The models.
pub const MODELS: [Model; 5] = [
    Model { name: "host", leaf1_ecx: !0, leaf7: [!0; 3], xcr0: !0, xsave: !0, extended_ecx: !0 },
    // What every x86-64 processor since 2009 has ("x86-64-v2" in the psABI): no XSAVE, so no AVX.
    Model {
        name: "baseline",
        leaf1_ecx: BASELINE_ECX,
        leaf7: [0, 0, SPECULATION],
        xcr0: 0,
        xsave: 0,
        extended_ecx: bits(&[0]),
    },
    Model {
        name: "haswell",
        leaf1_ecx: HASWELL_ECX,
        leaf7: [HASWELL_7, 0, SPECULATION],
        xcr0: 0b111,
        xsave: 0b1,
        extended_ecx: bits(&[0, 5]),
    },
    Model {
        name: "skylake",
        leaf1_ecx: HASWELL_ECX,
        leaf7: [SKYLAKE_7, 0, SPECULATION],
        xcr0: 0b111,
        xsave: 0b111,
        extended_ecx: bits(&[0, 5, 8]),
    },
    Model {
        name: "skylake-server",
        leaf1_ecx: HASWELL_ECX,
        leaf7: [SKYLAKE_SERVER_7, 0, SPECULATION],
        xcr0: 0b1110_0111,
        xsave: 0b111,
        extended_ecx: bits(&[0, 5, 8]),
    },
];

impl Model {
    /// The model of this name.
    pub fn by_name(name: &str) -> Option<&'static Model> {
        MODELS.iter().find(|model| model.name == name)
    }

    /// The instructions that the machine's `processor` has and this model does not show, of those that can be taken away.
    pub fn hidden(&self, processor: &dyn Fn(u32, u32) -> Answer) -> Instructions {
        let [max, ..] = processor(0, 0);
        let missing = |leaf, register: usize, bit: u32| {
            let all = if leaf <= max { processor(leaf, 0) } else { [0; 4] };
            (all[register] & !self.limit(leaf, 0, all)[register]) >> bit & 1 != 0
        };
        let mut hidden = Instructions::empty();
        hidden.set(Instructions::RDRAND, missing(1, 2, 30));
        hidden.set(Instructions::INVPCID, missing(7, 1, 10));
        hidden.set(Instructions::RDSEED, missing(7, 1, 18));
        hidden
    }

    /// What this model leaves of `answer`, the processor's to `leaf` and `subleaf`.
    pub const fn limit(&self, leaf: u32, subleaf: u32, answer: Answer) -> Answer {
        let [eax, ebx, ecx, edx] = answer;
        match (leaf, subleaf) {
            (1, _) => [eax, ebx, ecx & self.leaf1_ecx, edx],
            (7, 0) => [eax, ebx & self.leaf7[0], ecx & self.leaf7[1], edx & self.leaf7[2]],
            (0xd, 0) => [eax & self.xcr0, ebx, ecx, edx],
            (0xd, 1) => [eax & self.xsave, ebx, ecx, edx],
            (0x8000_0001, _) => [eax, ebx, ecx & self.extended_ecx, edx],
            _ => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::{Cpuid, ModelInput};
    use lamina_arch::cr::Cr4;
    use lamina_arch::time::Frequency;
    use proptest::prelude::*;

    const INPUT: ModelInput = ModelInput {
        tsc: Frequency::from_hz(1_000_000_000),
        apic_id: 0,
        hypercall_instruction: 1,
        wide_addresses: true,
    };

    fn shown(model: &Model, processor: &dyn Fn(u32, u32) -> Answer) -> Cpuid {
        Cpuid::host(&|leaf, subleaf| model.limit(leaf, subleaf, processor(leaf, subleaf)), &INPUT)
    }

    /// A processor whose feature bits are `features`, and whose sizes make sense.
    fn processor(features: [u32; 8]) -> impl Fn(u32, u32) -> Answer {
        move |leaf, subleaf| match (leaf, subleaf) {
            (0, _) => [0x20, 1, 2, 3],
            (1, _) => [0x50654, 0, features[0], features[1]],
            (7, 0) => [0, features[2], features[3], features[4]],
            (0xd, 0) => [features[5] | 1, 576, 2696, 0],
            (0xd, 1) => [features[6], 0, 0, 0],
            (0xd, 2) => [256, 576, 0, 0],
            (0xd, 5) => [64, 1088, 0, 0],
            (0xd, 6) => [512, 1152, 0b10, 0],
            (0xd, 7) => [1024, 1664, 0b10, 0],
            (0x8000_0000, _) => [0x8000_0008, 1, 2, 3],
            (0x8000_0001, _) => [0, 0, features[7], !0],
            (0x8000_0008, _) => [0x3027, 0, 0, 0],
            _ => [0; 4],
        }
    }

    #[test]
    fn names_are_found_and_others_are_not() {
        for model in &MODELS {
            assert_eq!(Model::by_name(model.name).map(|found| found.name), Some(model.name));
        }
        assert!(Model::by_name("486").is_none() && Model::by_name("").is_none());
    }

    #[test]
    fn what_tells_the_models_apart() {
        let everything = processor([!0; 8]);
        let of = |name| shown(Model::by_name(name).expect("a model"), &everything);
        let has = |m: &Cpuid, leaf, register: usize, bit: u32| m.answer(leaf, 0, 0, 0)[register] >> bit & 1 != 0;
        let baseline = of("baseline");
        assert!(!has(&baseline, 1, 2, 26) && !has(&baseline, 1, 2, 28) && has(&baseline, 1, 2, 20));
        assert_eq!((baseline.xcr0_allowed(), baseline.cr4_allowed().contains(Cr4::OSXSAVE)), (0, false));
        let haswell = of("haswell");
        assert!(has(&haswell, 7, 1, 5) && !has(&haswell, 7, 1, 20) && haswell.xcr0_allowed() == 7);
        assert!(!haswell.cr4_allowed().contains(Cr4::SMAP) && haswell.cr4_allowed().contains(Cr4::SMEP));
        assert!(has(&of("skylake"), 7, 1, 20) && !has(&of("skylake"), 7, 1, 16));
        assert!(has(&of("skylake-server"), 7, 1, 16) && of("skylake-server").xcr0_allowed() == 0xe7);
    }

    #[test]
    fn what_is_not_shown_and_can_be_taken_away_is() {
        let all = Instructions::all();
        for (name, hidden) in [
            ("host", Instructions::empty()),
            ("baseline", all),
            ("haswell", Instructions::RDSEED),
            ("skylake", Instructions::empty()),
        ] {
            let model = Model::by_name(name).expect("a model");
            assert_eq!(model.hidden(&processor([!0; 8])), hidden, "{name}");
            assert_eq!(model.hidden(&processor([0; 8])), Instructions::empty(), "what is not there needs nothing");
            assert_eq!(model.hidden(&|_, _| [1, 0, 0, 0]), Instructions::empty(), "there is no leaf 7");
        }
    }

    proptest! {
        /// Whatever the processor has: no model shows what it has not, and control bits and state follow what is shown.
        #[test]
        fn every_model_is_consistent(features: [u32; 8], which in 0..MODELS.len()) {
            let machine = processor(features);
            let (host, model) = (shown(&MODELS[0], &machine), shown(&MODELS[which], &machine));
            for leaf in [1, 7, 0x8000_0001] {
                let (all, some) = (host.answer(leaf, 0, 0, 0), model.answer(leaf, 0, 0, 0));
                for register in 1..4 {
                    prop_assert_eq!(some[register] & !all[register], 0, "leaf {:#x}, register {}", leaf, register);
                }
            }
            let bit = |leaf, register: usize, n: u32| model.answer(leaf, 0, 0, 0)[register] >> n & 1 != 0;
            let (cr4, xcr0) = (model.cr4_allowed(), model.xcr0_allowed());
            prop_assert_eq!(cr4.contains(Cr4::OSXSAVE), bit(1, 2, 26));
            prop_assert_eq!(cr4.contains(Cr4::PCIDE), bit(1, 2, 17));
            prop_assert_eq!(cr4.contains(Cr4::SMEP), bit(7, 1, 7));
            prop_assert_eq!(cr4.contains(Cr4::SMAP), bit(7, 1, 20));
            prop_assert_eq!(cr4.contains(Cr4::FSGSBASE), bit(7, 1, 0));
            prop_assert_eq!(cr4.contains(Cr4::UMIP), bit(7, 2, 2));
            prop_assert_eq!(cr4.contains(Cr4::PKE), bit(7, 2, 3));
            prop_assert_eq!(cr4.contains(Cr4::LA57), bit(7, 2, 16));
            prop_assert_eq!(model.linear_bits(), if bit(7, 2, 16) { 57 } else { 48 });
            prop_assert!(xcr0 & 1 << 9 != 0 || !bit(7, 2, 3), "keys without their state");
            prop_assert!(bit(1, 2, 26) || xcr0 == 0, "components without XSAVE");
            prop_assert!(xcr0 & 0b100 != 0 || !bit(1, 2, 28) && !bit(7, 1, 5), "AVX without its state");
            prop_assert!(xcr0 & 0xe0 == 0xe0 || !bit(7, 1, 16), "AVX-512 without its state");
            prop_assert!(matches!(xcr0 & 0xe0, 0 | 0xe0), "AVX-512 in parts");
        }
    }
}
