//! What AMD's processors ask of a hypervisor by their enumeration (APM vol. 3, "CPUID Fn8000_0008_EBX" and
//! "CPUID Fn8000_0021"; AMD's "Software Techniques for Managing Speculation", "Technical Guidance for Mitigating Branch
//! Type Confusion", "… Transient Scheduler Attacks"). L1TF, MDS and the like are not of these processors.

use crate::speculation::{Acts, Enumerated, Mitigations, Plan, Row};

/// CPUID leaf 0x80000008, EBX: IBPB, IBRS, IBRS may stay set for good, no branch type confusion.
const IBPB: u32 = 1 << 12;
const IBRS: u32 = 1 << 14;
const IBRS_ALWAYS_ON: u32 = 1 << 16;
const BTC_NO: u32 = 1 << 29;
/// CPUID leaf 0x80000021, EAX: VERW clears buffers, automatic IBRS, no speculative return stack overflow.
const VERW_CLEAR: u32 = 1 << 5;
const AUTOMATIC_IBRS: u32 = 1 << 8;
const SRSO_NO: u32 = 1 << 29;
/// CPUID leaf 0x80000021, ECX: no transient scheduler attacks on the store queue, none on the L1 data cache.
const TSA_SQ_NO: u32 = 1 << 1;
const TSA_L1_NO: u32 = 1 << 2;
/// IA32_SPEC_CTRL.
const CONTROL_IBRS: u64 = 1 << 0;

/// The plan for a processor that says this of itself.
pub fn plan(wanted: Mitigations, of: &Enumerated) -> Plan {
    let has = |bit: u32| of.leaf8_ebx & bit != 0;
    let says = |bit: u32| of.leaf21_eax & bit != 0;
    let asked = |when: bool, why| if when { Some(why) } else { None };
    let automatic = says(AUTOMATIC_IBRS);
    let always = has(IBRS) && has(IBRS_ALWAYS_ON) && !automatic;
    let immune = has(BTC_NO) && says(SRSO_NO);
    let full = matches!(wanted, Mitigations::Full);
    // Behind the barrier nothing is left to be restricted.
    let each_exit = has(IBRS) && !automatic && !always && (!has(IBPB) || immune || full);
    let buffers = says(VERW_CLEAR) && of.leaf21_ecx & (TSA_SQ_NO | TSA_L1_NO) != TSA_SQ_NO | TSA_L1_NO;
    let row = |act, possible, asked| Row { act, asked, possible };
    let rows = [
        row(Acts::SWITCH_BARRIER, has(IBPB), Some("IBPB")),
        row(Acts::EXIT_BARRIER, has(IBPB), asked(!immune, "no BTC_NO or no SRSO_NO")),
        row(Acts::CONTROL, always, Some("IBRS that may stay on")),
        row(Acts::EXIT_IBRS, each_exit, Some("IBRS")),
        row(Acts::AUTOMATIC_IBRS, automatic, Some("automatic IBRS")),
        row(Acts::EXIT_RETURNS, true, asked((has(IBPB) || has(IBRS)) && !automatic, "no automatic IBRS")),
        row(Acts::CLEAR_BUFFERS, true, asked(buffers, "VERW_CLEAR without TSA_SQ_NO and TSA_L1_NO")),
    ];
    Plan::of(wanted, &rows, CONTROL_IBRS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Enumerated = Enumerated {
        leaf7_ebx: 0,
        leaf7_edx: 0,
        leaf7_2_edx: 0,
        capabilities: 0,
        leaf8_ebx: 0,
        leaf21_eax: 0,
        leaf21_ecx: 0,
    };
    /// Processors with current microcode: put together from AMD's documents, not read out of machines.
    const ZEN_2: Enumerated = Enumerated { leaf8_ebx: IBPB | IBRS | 1 << 15 | 1 << 18 | 1 << 24, ..NOTHING };
    const ZEN_3: Enumerated = Enumerated { leaf8_ebx: ZEN_2.leaf8_ebx | BTC_NO, leaf21_eax: VERW_CLEAR, ..NOTHING };
    const ZEN_4: Enumerated = Enumerated { leaf21_eax: AUTOMATIC_IBRS | VERW_CLEAR | 1 << 28, ..ZEN_3 };
    const ZEN_5: Enumerated =
        Enumerated { leaf21_eax: AUTOMATIC_IBRS | SRSO_NO, leaf21_ecx: TSA_SQ_NO | TSA_L1_NO, ..ZEN_3 };

    #[test]
    fn each_processor_gets_what_it_asks_for() {
        let barriers = Acts::SWITCH_BARRIER | Acts::EXIT_BARRIER;
        for (name, of, acts) in [
            ("nothing", NOTHING, Acts::empty()),
            ("Zen 2", ZEN_2, barriers | Acts::EXIT_RETURNS),
            ("Zen 3", ZEN_3, barriers | Acts::EXIT_RETURNS | Acts::CLEAR_BUFFERS),
            ("Zen 4", ZEN_4, barriers | Acts::AUTOMATIC_IBRS | Acts::CLEAR_BUFFERS),
            ("Zen 5", ZEN_5, Acts::SWITCH_BARRIER | Acts::AUTOMATIC_IBRS),
        ] {
            let plan = plan(Mitigations::Auto, &of);
            assert_eq!((plan.acts(), plan.control()), (acts, 0), "{name}: {plan}");
            assert_eq!(super::plan(Mitigations::Off, &of).acts(), Acts::empty(), "{name}");
        }
    }

    #[test]
    fn ibrs_is_what_the_processor_prefers_of_it() {
        let of = |ebx| plan(Mitigations::Auto, &Enumerated { leaf8_ebx: ebx, leaf21_eax: SRSO_NO, ..NOTHING });
        let immune = IBPB | IBRS | BTC_NO;
        assert_eq!(of(immune).acts(), Acts::SWITCH_BARRIER | Acts::EXIT_IBRS | Acts::EXIT_RETURNS);
        let always = of(immune | IBRS_ALWAYS_ON);
        assert_eq!(always.acts(), Acts::SWITCH_BARRIER | Acts::CONTROL | Acts::EXIT_RETURNS);
        assert_eq!(always.control(), CONTROL_IBRS);
    }

    #[test]
    fn full_does_what_can_be_done_and_no_more() {
        let anywhere = Acts::EXIT_RETURNS | Acts::CLEAR_BUFFERS;
        let barriers = Acts::SWITCH_BARRIER | Acts::EXIT_BARRIER;
        for (of, acts) in [
            (NOTHING, anywhere),
            (ZEN_2, anywhere | barriers | Acts::EXIT_IBRS),
            (ZEN_5, anywhere | barriers | Acts::AUTOMATIC_IBRS),
        ] {
            let plan = plan(Mitigations::Full, &of);
            assert_eq!(plan.acts(), acts, "{plan}");
        }
    }
}
