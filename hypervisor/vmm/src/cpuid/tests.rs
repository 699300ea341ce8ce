//! The model over processors that claim everything, or nearly.

use super::*;

/// A processor that claims everything in every leaf.
fn claims_all(leaf: u32, subleaf: u32) -> Answer {
    match (leaf, subleaf) {
        (0, _) => [0x20, 1, 2, 3],
        (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
        (0x8000_0008, _) => [0x3027, 0, 0, 0],
        (4, 3..) => [0; 4],
        (0xd, 2) => [256, 576, 0, 0],
        (0xd, 5) => [64, 1088, 0, 0],
        (0xd, 6) => [512, 1152, 0b10, 0],
        (0xd, 7) => [1024, 1664, 0b10, 0],
        (0xd, 9) => [8, 2688, 0, 0],
        _ => [u32::MAX; 4],
    }
}

fn model() -> Cpuid {
    let input =
        ModelInput { tsc: Frequency::from_hz(99_999_000), apic_id: 0, hypercall_instruction: 1, wide_addresses: true };
    Cpuid::host(&claims_all, &input)
}

#[test]
fn shows_nothing_that_does_not_work() {
    let m = model();
    let [_, _, ecx, edx] = m.answer(1, 0, 0, 0);
    for (bit, name) in [(3, "MONITOR"), (5, "VMX"), (6, "SMX"), (15, "PDCM"), (18, "DCA"), (27, "OSXSAVE")] {
        assert_eq!(ecx & 1 << bit, 0, "{name}");
    }
    for (bit, name) in [(21, "DS"), (22, "ACPI"), (28, "HTT"), (29, "TM"), (31, "PBE")] {
        assert_eq!(edx & 1 << bit, 0, "{name}");
    }
    let [max, ebx, ecx, edx] = m.answer(7, 0, 0, 0);
    assert_eq!(max, 0);
    for (bit, name) in [(2, "SGX"), (4, "HLE"), (11, "RTM"), (12, "RDT"), (14, "MPX"), (25, "PT")] {
        assert_eq!(ebx & 1 << bit, 0, "{name}");
    }
    for (bit, name) in [(4, "OSPKE"), (5, "WAITPKG"), (7, "CET"), (13, "TME"), (31, "PKS")] {
        assert_eq!(ecx & 1 << bit, 0, "{name}");
    }
    assert_eq!(edx, 1 << 4 | 1 << 10 | 1 << 26 | 1 << 27 | 1 << 29 | 1 << 31, "no L1D_FLUSH, no UINTR, no AMX");
    assert_eq!(m.answer(0xd, 1, 0, 0)[0] & 1 << 3, 0, "XSAVES");
    assert_eq!(m.answer(0xa, 0, 0, 0), [0; 4], "no performance counters");
    assert_eq!(m.answer(0x8000_0001, 0, 0, 0)[2] & 1 << 2, 0, "SVM");
}

#[test]
fn osxsave_and_sizes_follow_the_registers() {
    let m = model();
    assert_ne!(m.answer(1, 0, Cr4::OSXSAVE.bits(), 0)[2] & OSXSAVE, 0);
    assert_eq!(m.answer(0xd, 0, 0, 1)[1], 576);
    assert_eq!(m.answer(0xd, 0, 0, 7)[1], 832);
    assert_eq!(m.answer(0xd, 0, 0, 0xe7)[1], 2688);
    assert_eq!(m.answer(0xd, 0, 0, 1)[2], 2696);
    assert_eq!(m.answer(7, 0, Cr4::PKE.bits(), 0)[2] & (PKU | OSPKE), PKU | OSPKE);
    assert_eq!(m.answer(0xd, 1, 0, 0xe7)[1], 832 + 64 + 512 + 1024);
    assert_eq!(m.answer(0xd, 8, 0, 0xe7), [0; 4]);
}

#[test]
fn misc_enable_takes_leaves_and_execute_disable_away_and_gives_them_back() {
    let mut m = model();
    m.show_apic(false);
    let seen = |m: &Cpuid| {
        let (leaf, plain) = (m.answer(0x8000_0001, 0, 0, 0)[3], m.plain(0x8000_0001).map(|answer| answer[3]));
        assert_eq!(Some(leaf), plain);
        assert_eq!(m.features(0)[3] & APIC, 0, "nobody has switched it on");
        (m.plain(0).map(|answer| answer[0]), leaf & EXECUTE_DISABLE != 0)
    };
    assert_eq!(seen(&m), (Some(MAX_BASIC), true));
    m.follow_misc_enable(MISC_LIMIT_CPUID | MISC_XD_DISABLE);
    assert_eq!(seen(&m), (Some(2), false));
    m.follow_misc_enable(1);
    assert_eq!(seen(&m), (Some(MAX_BASIC), true));
}

#[test]
fn an_apic_that_is_off_is_not_shown() {
    let mut m = model();
    let shown = |m: &Cpuid| m.features(0)[3] & APIC != 0;
    assert!(shown(&m));
    m.show_apic(false);
    assert!(!shown(&m));
    m.show_apic(true);
    assert!(shown(&m));
}

#[test]
fn rates_are_the_measured_ones() {
    let m = model();
    let [denominator, numerator, crystal, _] = m.answer(0x15, 0, 0, 0);
    assert_eq!(u64::from(crystal) * u64::from(numerator) / u64::from(denominator), 99_999_000);
    assert_eq!(m.answer(hypercall::LEAF_TIMING, 0, 0, 0)[0], 99_999);
    assert_eq!(m.answer(0x16, 0, 0, 0), m.answer(0x15, 0, 0, 0));
}

#[test]
fn a_ratio_always_fits() {
    for tsc in [1, 99_999_999, 3_000_000_019, u64::MAX] {
        let (n, d) = ratio(tsc, 25_000_000);
        assert!(n > 0 && d > 0, "{tsc}");
    }
}

#[test]
fn the_signature_is_readable_and_the_range_ends() {
    let m = model();
    let [max, b, c, d] = m.answer(0x4000_0000, 0, 0, 0);
    assert_eq!(max, 0x4000_0010);
    let text: Vec<u8> = [b, c, d].iter().flat_map(|w| w.to_le_bytes()).collect();
    assert_eq!(text, b"LaminaLamina");
    assert_eq!(m.answer(0x4000_0100, 0, 0, 0), [0; 4]);
    assert_eq!(m.answer(0x8fff_ffff, 0, 0, 0), m.answer(0x15, 0, 0, 0));
}

#[test]
fn without_avx_512_state_none_of_it_is_shown() {
    let processor = |l, s| if (l, s) == (0xd, 0) { [0b111, 0, 0, 0] } else { claims_all(l, s) };
    let input =
        ModelInput { tsc: Frequency::from_hz(1_000_000), apic_id: 0, hypercall_instruction: 1, wide_addresses: true };
    let m = Cpuid::host(&processor, &input);
    assert_eq!(m.answer(7, 0, 0, 0)[1] & LEAF7_EBX_AVX512, 0);
    assert_eq!(m.xcr0_allowed(), 7);
}

#[test]
fn cr4_allows_what_is_shown_and_no_more() {
    let cr4 = model().cr4_allowed();
    assert!(cr4.contains(Cr4::PAE | Cr4::SMEP | Cr4::SMAP | Cr4::OSXSAVE | Cr4::PCIDE | Cr4::FSGSBASE | Cr4::PKE));
    assert!(!cr4.intersects(Cr4::VMXE | Cr4::SMXE | Cr4::CET));
}

#[test]
fn five_levels_are_shown_where_the_registers_hold_the_addresses() {
    let of = |processor: &dyn Fn(u32, u32) -> Answer, wide_addresses| {
        let input =
            ModelInput { tsc: Frequency::from_hz(1_000_000), apic_id: 0, hypercall_instruction: 1, wide_addresses };
        let m = Cpuid::host(processor, &input);
        let shown = m.answer(7, 0, 0, 0)[2] & LA57 != 0;
        assert_eq!(shown, m.cr4_allowed().contains(Cr4::LA57));
        assert_eq!(m.answer(0x8000_0008, 0, 0, 0)[0] >> 8, m.linear_bits());
        (shown, m.linear_bits())
    };
    let without = |l, s| if (l, s) == (7, 0) { [0, !0, !LA57, !0] } else { claims_all(l, s) };
    assert_eq!(of(&claims_all, true), (true, 57));
    assert_eq!(of(&claims_all, false), (false, 48));
    assert_eq!(of(&without, true), (false, 48));
}
