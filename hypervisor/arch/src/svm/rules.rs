//! Why VMRUN refuses a VMCB: the checks that it makes, made again in software (APM vol. 2, "Canonicalization and
//! Consistency Checks" under "Basic Operation" of VMRUN, "Event Injection", "Enabling Nested Paging").
//!
//! Owns one sentence for each rule and reports every rule that a VMCB breaks, not only the first. Pure and total, and it
//! reads no memory.

use super::event::{self, kind};
use super::features::Capabilities;
use super::intercept::Second;
use super::vmcb::{self, Field, Value, Vmcb};
use crate::cr::{Cr0, Cr4, Efer};
use crate::event::vector;

/// One rule that a VMCB breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field's name, as in [`vmcb`].
    pub field: &'static str,
    /// The field's value.
    pub value: u64,
    /// What must hold, in one sentence.
    pub rule: &'static str,
    /// Title of the manual's section.
    pub section: &'static str,
}

/// The bits of CR4 that some processor has.
const CR4_KNOWN: Cr4 = Cr4::VME
    .union(Cr4::PVI)
    .union(Cr4::TSD)
    .union(Cr4::DE)
    .union(Cr4::PSE)
    .union(Cr4::PAE)
    .union(Cr4::MCE)
    .union(Cr4::PGE)
    .union(Cr4::PCE)
    .union(Cr4::OSFXSR)
    .union(Cr4::OSXMMEXCPT)
    .union(Cr4::UMIP)
    .union(Cr4::LA57)
    .union(Cr4::FSGSBASE)
    .union(Cr4::PCIDE)
    .union(Cr4::OSXSAVE)
    .union(Cr4::SMEP)
    .union(Cr4::SMAP)
    .union(Cr4::PKE)
    .union(Cr4::CET);
/// The bits of EFER that some processor has: those of [`Efer`], and LMSLE, FFXSR, TCE, MCOMMIT, INTWB, UAIE, AIBRSE.
const EFER_KNOWN: u64 = Efer::all().bits() | 0b111 << 13 | 0b11 << 17 | 0b11 << 20;
/// Size of the I/O permission map. Unit: bytes.
const IOPM_SIZE: u64 = 12 << 10;
/// Size of the MSR permission map. Unit: bytes.
const MSRPM_SIZE: u64 = 8 << 10;

const CONSISTENCY: &str = "Canonicalization and Consistency Checks";
const INJECTION: &str = "Event Injection";
const NESTED: &str = "Nested Paging";

struct Checker<'a> {
    vmcb: &'a Vmcb,
    report: &'a mut dyn FnMut(Violation),
    section: &'static str,
}

impl Checker<'_> {
    /// Reports `rule` as broken by `field` unless it `holds`.
    fn rule<T: Value, A>(&mut self, field: Field<T, A>, holds: bool, rule: &'static str) {
        if !holds {
            let name = vmcb::ALL.iter().find(|(_, offset, _)| *offset == field.offset());
            (self.report)(Violation {
                field: name.map_or("a field without a name", |(name, ..)| name),
                value: self.vmcb.read(field).into(),
                rule,
                section: self.section,
            });
        }
    }
}

/// Checks `vmcb` against a processor with `capabilities` and reports each broken rule. Several may have one cause.
pub fn check(vmcb: &Vmcb, capabilities: &Capabilities, report: &mut dyn FnMut(Violation)) {
    let mut checker = Checker { vmcb, report, section: CONSISTENCY };
    registers(&mut checker, capabilities);
    controls(&mut checker, capabilities);
    checker.section = INJECTION;
    injection(&mut checker);
    checker.section = NESTED;
    nested(&mut checker, capabilities);
}

fn registers(c: &mut Checker<'_>, capabilities: &Capabilities) {
    let efer = Efer::from_bits_retain(c.vmcb.read(vmcb::EFER));
    let cr0 = Cr0::from_bits_retain(c.vmcb.read(vmcb::CR0));
    let cr4 = Cr4::from_bits_retain(c.vmcb.read(vmcb::CR4));
    c.rule(vmcb::EFER, efer.contains(Efer::SVME), "EFER.SVME is 1.");
    c.rule(vmcb::EFER, efer.bits() & !EFER_KNOWN == 0, "The reserved bits of EFER are 0.");
    c.rule(vmcb::CR0, cr0.contains(Cr0::CD) || !cr0.contains(Cr0::NW), "CR0.NW is 0 where CR0.CD is 0.");
    c.rule(vmcb::CR0, cr0.bits() >> 32 == 0, "Bits 63:32 of CR0 are 0.");
    let reserved = if efer.contains(Efer::LMA) { capabilities.beyond_physical() } else { 0 };
    c.rule(vmcb::CR3, c.vmcb.read(vmcb::CR3) & reserved == 0, "CR3 has no bit beyond the physical-address width.");
    c.rule(vmcb::CR4, CR4_KNOWN.contains(cr4), "The reserved bits of CR4 are 0.");
    c.rule(vmcb::DR6, c.vmcb.read(vmcb::DR6) >> 32 == 0, "Bits 63:32 of DR6 are 0.");
    c.rule(vmcb::DR7, c.vmcb.read(vmcb::DR7) >> 32 == 0, "Bits 63:32 of DR7 are 0.");
    if efer.contains(Efer::LME) && cr0.contains(Cr0::PG) {
        c.rule(vmcb::CR4, cr4.contains(Cr4::PAE), "CR4.PAE is 1 where EFER.LME and CR0.PG are.");
        c.rule(vmcb::CR0, cr0.contains(Cr0::PE), "CR0.PE is 1 where EFER.LME and CR0.PG are.");
        let code = super::segment::rights(c.vmcb.read(vmcb::CS_ATTRIBUTES));
        let both = code.is_long() && code.is_default32();
        c.rule(vmcb::CS_ATTRIBUTES, !(cr4.contains(Cr4::PAE) && both), "In long mode, L and D of CS are not both 1.");
    }
    let protected = cr0.contains(Cr0::WP) || !cr4.contains(Cr4::CET);
    c.rule(vmcb::CR4, protected, "CR4.CET is 0 where CR0.WP is 0.");
}

fn controls(c: &mut Checker<'_>, capabilities: &Capabilities) {
    let second = Second::from_bits_retain(c.vmcb.read(vmcb::SECOND_INTERCEPTS));
    c.rule(vmcb::SECOND_INTERCEPTS, second.contains(Second::VMRUN), "VMRUN is intercepted.");
    for (field, size) in [(vmcb::IOPM_BASE_PA, IOPM_SIZE), (vmcb::MSRPM_BASE_PA, MSRPM_SIZE)] {
        let last = (c.vmcb.read(field) & !0xfff).saturating_add(size - 1);
        let holds = last & capabilities.beyond_physical() == 0;
        c.rule(field, holds, "The permission map lies within the physical address space.");
    }
    let asid = c.vmcb.read(vmcb::GUEST_ASID);
    c.rule(vmcb::GUEST_ASID, asid != 0, "The ASID is not 0, which is the host's.");
    c.rule(vmcb::GUEST_ASID, asid == 0 || asid < capabilities.asids, "The ASID is one that the processor has.");
}

fn injection(c: &mut Checker<'_>) {
    let field = c.vmcb.read(vmcb::EVENTINJ);
    if field & event::VALID == 0 {
        return;
    }
    let number = (field & 0xff) as u8;
    let type_code = field >> 8 & 7;
    let known = matches!(type_code, kind::INTERRUPT | kind::NMI | kind::EXCEPTION | kind::SOFTWARE_INTERRUPT);
    c.rule(vmcb::EVENTINJ, known, "The type of an injected event is 0, 2, 3 or 4.");
    let holds = type_code != kind::EXCEPTION || (number < 32 && number != vector::NMI);
    c.rule(vmcb::EVENTINJ, holds, "An injected exception has a vector of an exception: 0 to 31 and not 2.");
}

fn nested(c: &mut Checker<'_>, capabilities: &Capabilities) {
    if c.vmcb.read(vmcb::NESTED_CONTROL) & vmcb::NESTED_PAGING == 0 {
        return;
    }
    let root = c.vmcb.read(vmcb::NESTED_CR3);
    c.rule(
        vmcb::NESTED_CR3,
        root & capabilities.beyond_physical() == 0,
        "nCR3 lies within the physical address space.",
    );
    let types = c.vmcb.read(vmcb::G_PAT).to_le_bytes();
    let holds = types.iter().all(|t| matches!(t, 0 | 1 | 4..=7));
    c.rule(vmcb::G_PAT, holds, "Each byte of the guest's PAT is a memory type: 0, 1, 4, 5, 6 or 7.");
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;
    use crate::segment::AccessRights;
    use crate::svm::segment::attributes;

    const CPU: Capabilities = Capabilities::of([1, 16, 0, 1], 40);

    /// A guest in 64-bit mode that every processor accepts.
    fn sound() -> Vmcb {
        let mut v = Vmcb::new();
        v.write(vmcb::EFER, (Efer::SVME | Efer::LME | Efer::LMA).bits());
        v.write(vmcb::CR0, (Cr0::PE | Cr0::PG | Cr0::WP | Cr0::ET).bits());
        v.write(vmcb::CR4, (Cr4::PAE | Cr4::OSXSAVE).bits());
        v.write(vmcb::CR3, 0x1000);
        v.write(vmcb::DR6, 0xffff_0ff0);
        v.write(vmcb::DR7, 0x400);
        v.write(vmcb::CS_ATTRIBUTES, attributes(AccessRights::CODE64));
        v.write(vmcb::SECOND_INTERCEPTS, 1);
        v.write(vmcb::IOPM_BASE_PA, 0x10_0000);
        v.write(vmcb::MSRPM_BASE_PA, 0x10_3000);
        v.write(vmcb::GUEST_ASID, 1);
        v.write(vmcb::NESTED_CONTROL, 1);
        v.write(vmcb::NESTED_CR3, 0x20_0000);
        v.write(vmcb::G_PAT, 0x0007_0406_0007_0406);
        v
    }

    fn broken(change: impl Fn(&mut Vmcb)) -> Vec<(&'static str, &'static str)> {
        let mut vmcb = sound();
        change(&mut vmcb);
        let mut found = Vec::new();
        check(&vmcb, &CPU, &mut |v| {
            assert!(!v.section.is_empty() && v.rule.ends_with('.'));
            found.push((v.field, v.rule));
        });
        found
    }

    #[test]
    fn a_sound_guest_breaks_no_rule() {
        assert_eq!(broken(|_| {}), []);
        assert_eq!(broken(|v| v.write(vmcb::EVENTINJ, 0x8000_0030)), []);
        assert_eq!(broken(|v| v.write(vmcb::EVENTINJ, 0xff_ffff)), []);
        // As after reset: caches off, real mode.
        let reset = |v: &mut Vmcb| {
            v.write(vmcb::EFER, Efer::SVME.bits());
            v.write(vmcb::CR0, 0x6000_0010);
            v.write(vmcb::CR4, 0);
            // Outside long mode only the low half of CR3 counts.
            v.write(vmcb::CR3, 1 << 41);
        };
        assert_eq!(broken(reset), []);
    }

    #[test]
    fn each_rule_is_found_by_its_field() {
        type Change = fn(&mut Vmcb);
        let cases: [(&str, &str, Change); 21] = [
            ("EFER", "SVME", |v| v.write(vmcb::EFER, (Efer::LME | Efer::LMA).bits())),
            ("EFER", "reserved", |v| v.write(vmcb::EFER, v.read(vmcb::EFER) | 1 << 16)),
            ("CR0", "NW", |v| v.write(vmcb::CR0, v.read(vmcb::CR0) | Cr0::NW.bits())),
            ("CR0", "63:32", |v| v.write(vmcb::CR0, v.read(vmcb::CR0) | 1 << 32)),
            ("CR0", "PE", |v| v.write(vmcb::CR0, v.read(vmcb::CR0) & !1)),
            ("CR3", "physical", |v| v.write(vmcb::CR3, 1 << 40)),
            ("CR4", "reserved", |v| v.write(vmcb::CR4, v.read(vmcb::CR4) | Cr4::VMXE.bits())),
            ("CR4", "PAE", |v| v.write(vmcb::CR4, 0)),
            ("CR4", "CET", |v| {
                v.write(vmcb::CR4, v.read(vmcb::CR4) | Cr4::CET.bits());
                v.write(vmcb::CR0, v.read(vmcb::CR0) & !Cr0::WP.bits());
            }),
            ("DR6", "63:32", |v| v.write(vmcb::DR6, 1 << 32)),
            ("DR7", "63:32", |v| v.write(vmcb::DR7, 1 << 63)),
            ("CS_ATTRIBUTES", "L and D", |v| v.write(vmcb::CS_ATTRIBUTES, 0xe9b)),
            ("SECOND_INTERCEPTS", "VMRUN", |v| v.write(vmcb::SECOND_INTERCEPTS, 2)),
            ("IOPM_BASE_PA", "physical", |v| v.write(vmcb::IOPM_BASE_PA, (1 << 40) - 0x2000)),
            ("MSRPM_BASE_PA", "physical", |v| v.write(vmcb::MSRPM_BASE_PA, (1 << 40) - 0x1000)),
            ("GUEST_ASID", "not 0", |v| v.write(vmcb::GUEST_ASID, 0)),
            ("GUEST_ASID", "processor", |v| v.write(vmcb::GUEST_ASID, 16)),
            ("EVENTINJ", "type", |v| v.write(vmcb::EVENTINJ, 0x8000_0120)),
            ("EVENTINJ", "exception", |v| v.write(vmcb::EVENTINJ, 0x8000_0302)),
            ("NESTED_CR3", "physical", |v| v.write(vmcb::NESTED_CR3, 1 << 51)),
            ("G_PAT", "memory type", |v| v.write(vmcb::G_PAT, 2)),
        ];
        for (field, words, change) in cases {
            let found = broken(change);
            assert_eq!(found.len(), 1, "{field}: {found:?}");
            assert_eq!(found[0].0, field);
            assert!(found[0].1.contains(words), "{words}: {found:?}");
        }
    }

    #[test]
    fn the_last_bytes_of_the_address_space_may_hold_the_maps() {
        assert_eq!(broken(|v| v.write(vmcb::IOPM_BASE_PA, (1 << 40) - 0x3000)), []);
        assert_eq!(broken(|v| v.write(vmcb::MSRPM_BASE_PA, (1 << 40) - 0x2000)), []);
    }
}
