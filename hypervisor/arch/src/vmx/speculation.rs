//! What Intel's processors ask of a hypervisor by their enumeration (SDM vol. 2, "CPUID—CPU Identification"; SDM vol. 4,
//! "Architectural MSRs", IA32_ARCH_CAPABILITIES; Intel's guidance "Processors Affected: Transient Execution Attacks").
//!
//! A processor that enumerates none of this has old microcode, or is an emulator's: nothing is asked for then.

use crate::speculation::{Acts, Enumerated, Mitigations, Plan, Row};

/// CPUID leaf 7, EBX: RTM.
const RTM: u32 = 1 << 11;
/// CPUID leaf 7, EDX: VERW clears buffers.
const MD_CLEAR: u32 = 1 << 10;
/// CPUID leaf 7, EDX: IBRS and IBPB.
const IBRS_IBPB: u32 = 1 << 26;
/// CPUID leaf 7, EDX: IA32_FLUSH_CMD.
const L1D_FLUSH: u32 = 1 << 28;
/// CPUID leaf 7, subleaf 2, EDX: IA32_SPEC_CTRL.RRSBA_DIS_S, IA32_SPEC_CTRL.BHI_DIS_S.
const RRSBA_CTRL: u32 = 1 << 2;
const BHI_CTRL: u32 = 1 << 4;
/// IA32_ARCH_CAPABILITIES.
const RDCL_NO: u64 = 1 << 0;
const IBRS_ALL: u64 = 1 << 1;
const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
const MDS_NO: u64 = 1 << 5;
const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
const TAA_NO: u64 = 1 << 8;
const RRSBA: u64 = 1 << 19;
const BHI_NO: u64 = 1 << 20;
const PBRSB_NO: u64 = 1 << 24;
const RFDS_NO: u64 = 1 << 27;
const RFDS_CLEAR: u64 = 1 << 28;
/// IA32_SPEC_CTRL.
const IBRS: u64 = 1 << 0;
const RRSBA_DIS_S: u64 = 1 << 6;
const BHI_DIS_S: u64 = 1 << 10;

/// The plan for a processor that says this of itself.
pub fn plan(wanted: Mitigations, of: &Enumerated) -> Plan {
    let has = |bit: u32| of.leaf7_edx & bit != 0;
    let says = |bit: u64| of.capabilities & bit != 0;
    let asked = |when: bool, why| if when { Some(why) } else { None };
    let ibrs = has(IBRS_IBPB);
    let enhanced = ibrs && says(IBRS_ALL);
    // Its microcode is of 2018 or later.
    let told = ibrs || has(MD_CLEAR) || has(L1D_FLUSH);
    let mut control = IBRS;
    if of.leaf7_2_edx & BHI_CTRL != 0 && !says(BHI_NO) {
        control |= BHI_DIS_S;
    }
    if of.leaf7_2_edx & RRSBA_CTRL != 0 && says(RRSBA) {
        control |= RRSBA_DIS_S;
    }
    let clear = [
        (has(MD_CLEAR) && !says(MDS_NO), "MD_CLEAR without MDS_NO"),
        (has(MD_CLEAR) && of.leaf7_ebx & RTM != 0 && !says(TAA_NO), "RTM without TAA_NO"),
        (says(RFDS_CLEAR) && !says(RFDS_NO), "RFDS_CLEAR without RFDS_NO"),
    ];
    let flush = !says(RDCL_NO) && !says(SKIP_L1DFL_VMENTRY);
    let full = matches!(wanted, Mitigations::Full);
    let row = |act, possible, asked| Row { act, asked, possible };
    let rows = [
        row(Acts::SWITCH_BARRIER, ibrs, Some("IBRS and IBPB")),
        row(Acts::EXIT_BARRIER, ibrs, None),
        row(Acts::CONTROL, enhanced, Some("IBRS_ALL")),
        row(Acts::EXIT_IBRS, ibrs && !enhanced, Some("IBRS without IBRS_ALL")),
        row(Acts::EXIT_RETURN, !full, asked(enhanced && !says(PBRSB_NO), "IBRS_ALL without PBRSB_NO")),
        row(Acts::EXIT_RETURNS, true, asked(ibrs && !enhanced, "IBRS without IBRS_ALL")),
        row(Acts::CLEAR_BUFFERS, true, clear.into_iter().find_map(|(when, why)| asked(when, why))),
        row(Acts::FLUSH_L1D, has(L1D_FLUSH) && !full, asked(flush, "L1D_FLUSH without RDCL_NO or SKIP_L1DFL_VMENTRY")),
        row(
            Acts::FLUSH_L1D_ALWAYS,
            has(L1D_FLUSH) && full,
            asked(flush, "L1D_FLUSH without RDCL_NO or SKIP_L1DFL_VMENTRY"),
        ),
        row(Acts::SMALL_PAGES, true, asked(told && !says(IF_PSCHANGE_MC_NO), "no IF_PSCHANGE_MC_NO")),
    ];
    Plan::of(wanted, &rows, control)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    /// Processors with current microcode: put together from Intel's documents, not read out of machines.
    const SKYLAKE: Enumerated =
        Enumerated { leaf7_ebx: RTM, leaf7_edx: MD_CLEAR | IBRS_IBPB | 1 << 27 | L1D_FLUSH | 1 << 31, ..NOTHING };
    const CASCADE_LAKE: Enumerated = Enumerated {
        leaf7_ebx: RTM,
        leaf7_edx: SKYLAKE.leaf7_edx | 1 << 29,
        capabilities: RDCL_NO | IBRS_ALL | SKIP_L1DFL_VMENTRY | MDS_NO | 1 << 7,
        ..NOTHING
    };
    const ICE_LAKE_SERVER: Enumerated = Enumerated {
        leaf7_edx: CASCADE_LAKE.leaf7_edx,
        capabilities: RDCL_NO | IBRS_ALL | SKIP_L1DFL_VMENTRY | MDS_NO | IF_PSCHANGE_MC_NO | 1 << 7 | TAA_NO,
        ..NOTHING
    };
    const SAPPHIRE_RAPIDS: Enumerated = Enumerated {
        leaf7_2_edx: RRSBA_CTRL | BHI_CTRL,
        capabilities: ICE_LAKE_SERVER.capabilities | 0b111 << 13 | RRSBA | PBRSB_NO | 1 << 26 | RFDS_NO,
        ..ICE_LAKE_SERVER
    };
    const GRACEMONT: Enumerated =
        Enumerated { capabilities: SAPPHIRE_RAPIDS.capabilities & !RFDS_NO | RFDS_CLEAR, ..SAPPHIRE_RAPIDS };
    /// Bochs 3.0's `sapphire_rapids`.
    const BOCHS: Enumerated = Enumerated { leaf7_edx: CASCADE_LAKE.leaf7_edx, capabilities: 0x1f, ..NOTHING };
    /// Bochs' `corei7_skylake_x`, QEMU's emulation, and any processor with the microcode of 2017.
    const NOTHING: Enumerated = Enumerated {
        leaf7_ebx: 0,
        leaf7_edx: 0,
        leaf7_2_edx: 0,
        capabilities: 0,
        leaf8_ebx: 0,
        leaf21_eax: 0,
        leaf21_ecx: 0,
    };

    #[test]
    fn each_processor_gets_what_it_asks_for() {
        let enhanced = Acts::SWITCH_BARRIER | Acts::CONTROL;
        let skylake = Acts::SWITCH_BARRIER
            | Acts::EXIT_IBRS
            | Acts::EXIT_RETURNS
            | Acts::CLEAR_BUFFERS
            | Acts::FLUSH_L1D
            | Acts::SMALL_PAGES;
        let all_bits = IBRS | RRSBA_DIS_S | BHI_DIS_S;
        for (name, of, acts, control) in [
            ("nothing", NOTHING, Acts::empty(), 0),
            ("Skylake", SKYLAKE, skylake, 0),
            // Its RTM is what asks for VERW.
            (
                "Cascade Lake",
                CASCADE_LAKE,
                enhanced | Acts::EXIT_RETURN | Acts::CLEAR_BUFFERS | Acts::SMALL_PAGES,
                IBRS,
            ),
            ("Ice Lake", ICE_LAKE_SERVER, enhanced | Acts::EXIT_RETURN, IBRS),
            ("Sapphire Rapids", SAPPHIRE_RAPIDS, enhanced, all_bits),
            ("Gracemont", GRACEMONT, enhanced | Acts::CLEAR_BUFFERS, all_bits),
            ("Bochs", BOCHS, enhanced | Acts::EXIT_RETURN | Acts::CLEAR_BUFFERS | Acts::SMALL_PAGES, IBRS),
        ] {
            let plan = plan(Mitigations::Auto, &of);
            assert_eq!((plan.acts(), plan.control()), (acts, control), "{name}: {plan}");
        }
    }

    #[test]
    fn full_does_what_can_be_done_and_no_more() {
        let anywhere = Acts::EXIT_RETURNS | Acts::CLEAR_BUFFERS | Acts::SMALL_PAGES;
        let barriers = Acts::SWITCH_BARRIER | Acts::EXIT_BARRIER | Acts::FLUSH_L1D_ALWAYS;
        for (of, acts) in [
            (NOTHING, anywhere),
            (SKYLAKE, anywhere | barriers | Acts::EXIT_IBRS),
            (SAPPHIRE_RAPIDS, anywhere | barriers | Acts::CONTROL),
        ] {
            let plan = plan(Mitigations::Full, &of);
            assert_eq!(plan.acts(), acts, "{plan}");
        }
    }

    #[test]
    fn off_does_nothing() {
        for of in [NOTHING, SKYLAKE, SAPPHIRE_RAPIDS] {
            let plan = plan(Mitigations::Off, &of);
            assert_eq!((plan.acts(), plan.control()), (Acts::empty(), 0));
            assert_eq!(plan.to_string(), "mitigations = \"off\": no defences against speculation");
        }
    }

    #[test]
    fn a_line_says_what_and_why() {
        assert_eq!(
            plan(Mitigations::Auto, &ICE_LAKE_SERVER).to_string(),
            "mitigations = \"auto\": IBPB between VMs (IBRS and IBPB), IA32_SPEC_CTRL set for good (IBRS_ALL), \
             one return stuffed after exits (IBRS_ALL without PBRSB_NO)"
        );
        assert_eq!(
            plan(Mitigations::Auto, &NOTHING).to_string(),
            "mitigations = \"auto\": the processor's enumeration asks for no defence against speculation"
        );
        assert_eq!(
            plan(Mitigations::Full, &NOTHING).to_string(),
            "mitigations = \"full\": all returns stuffed after exits (not asked for), VERW before entries (not asked for), \
             nested pages of 4 KiB only (not asked for)"
        );
    }

    /// No MSR is written that is not enumerated, whatever else a processor says.
    #[test]
    fn nothing_is_done_that_faults() {
        for bit in 0..64 {
            let of = Enumerated { capabilities: 1 << bit, leaf7_2_edx: !0, leaf7_ebx: !0, ..NOTHING };
            for wanted in [Mitigations::Auto, Mitigations::Full] {
                let acts = plan(wanted, &of).acts();
                let msrs = Acts::SWITCH_BARRIER
                    | Acts::EXIT_BARRIER
                    | Acts::CONTROL
                    | Acts::EXIT_IBRS
                    | Acts::AUTOMATIC_IBRS
                    | Acts::FLUSH_L1D
                    | Acts::FLUSH_L1D_ALWAYS;
                assert!(!acts.intersects(msrs), "{acts:?}");
            }
        }
    }
}
