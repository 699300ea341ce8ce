//! VMCSs that a processor accepts, and what is told about them.

extern crate std;

mod cases;

use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::vmx::capabilities::SKYLAKE_X;
use crate::vmx::controls::adjust;

/// A VMCS in which every field is there, beside the processor that is to enter it.
#[derive(Clone)]
struct Machine {
    fields: [u64; field::ALL.len()],
    capabilities: Capabilities,
}

fn index(name: &str) -> usize {
    field::ALL.iter().position(|(other, _)| *other == name).expect(name)
}

impl Reader for Machine {
    fn raw(&self, encoding: u32) -> u64 {
        let index = field::ALL.iter().position(|(_, other)| *other == encoding).expect("a known field");
        self.fields[index]
    }
}

impl Machine {
    fn get(&self, name: &str) -> u64 {
        self.fields[index(name)]
    }

    fn set(&mut self, name: &str, value: u64) {
        self.fields[index(name)] = value;
    }

    fn with(mut self, values: &[(&str, u64)]) -> Machine {
        for (name, value) in values {
            self.set(name, *value);
        }
        self
    }

    fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        check(self, &self.capabilities, &mut |violation| found.push(violation));
        found
    }
}

/// Controls, host state, and what is the same for all guests.
fn common() -> Machine {
    let c = SKYLAKE_X;
    let pin = PinBased::EXTERNAL_INTERRUPT_EXITING
        | PinBased::NMI_EXITING
        | PinBased::VIRTUAL_NMIS
        | PinBased::PREEMPTION_TIMER;
    let processor = ProcessorBased::HLT_EXITING
        | ProcessorBased::USE_TSC_OFFSETTING
        | ProcessorBased::USE_IO_BITMAPS
        | ProcessorBased::USE_MSR_BITMAPS
        | ProcessorBased::ACTIVATE_SECONDARY_CONTROLS;
    let secondary = Secondary::ENABLE_EPT
        | Secondary::ENABLE_VPID
        | Secondary::UNRESTRICTED_GUEST
        | Secondary::ENABLE_RDTSCP
        | Secondary::ENABLE_INVPCID;
    let exit = ExitControls::HOST_ADDRESS_SPACE_SIZE
        | ExitControls::ACKNOWLEDGE_INTERRUPT
        | ExitControls::SAVE_PAT
        | ExitControls::LOAD_PAT
        | ExitControls::SAVE_EFER
        | ExitControls::LOAD_EFER
        | ExitControls::SAVE_PREEMPTION_TIMER;
    let entry = EntryControls::LOAD_DEBUG_CONTROLS | EntryControls::LOAD_PAT | EntryControls::LOAD_EFER;
    let control = |capability, bits| u64::from(adjust(capability, bits, 0).unwrap());
    Machine { fields: [0; field::ALL.len()], capabilities: c }.with(&[
        ("PIN_BASED_CONTROLS", control(c.pin_controls(), pin.bits())),
        ("PROCESSOR_BASED_CONTROLS", control(c.processor_controls(), processor.bits())),
        ("SECONDARY_CONTROLS", control(c.secondary_controls(), secondary.bits())),
        ("EXIT_CONTROLS", control(c.exit_controls(), exit.bits())),
        ("ENTRY_CONTROLS", control(c.entry_controls(), entry.bits())),
        ("VIRTUAL_PROCESSOR_ID", 1),
        ("IO_BITMAP_A", 0x10_1000),
        ("IO_BITMAP_B", 0x10_2000),
        ("MSR_BITMAP", 0x10_3000),
        ("EPT_POINTER", 0x10_405e),
        ("VMCS_LINK_POINTER", u64::MAX),
        ("HOST_CR0", 0x8005_0033),
        ("HOST_CR3", 0x10_0000),
        ("HOST_CR4", 0x26a0),
        ("HOST_CS_SELECTOR", 0x08),
        ("HOST_SS_SELECTOR", 0x10),
        ("HOST_TR_SELECTOR", 0x18),
        ("HOST_TR_BASE", 0xffff_8000_0001_0000),
        ("HOST_GDTR_BASE", 0xffff_8000_0002_0000),
        ("HOST_IDTR_BASE", 0xffff_8000_0003_0000),
        ("HOST_GS_BASE", 0xffff_ffff_ffff_f000),
        ("HOST_RIP", 0xffff_8000_0004_0000),
        ("HOST_RSP", 0xffff_8000_0005_0000),
        ("HOST_PAT", 0x0007_0406_0007_0406),
        ("HOST_EFER", 0xd01),
        ("GUEST_PAT", 0x0007_0406_0007_0406),
        ("GUEST_DR7", 0x400),
        ("GUEST_RFLAGS", 2),
        ("GUEST_TR_ACCESS_RIGHTS", 0x8b),
        ("GUEST_TR_LIMIT", 0x67),
        ("GUEST_LDTR_ACCESS_RIGHTS", 1 << 16),
    ])
}

/// Gives `names` one limit and one value of access rights.
fn segments(mut machine: Machine, names: &[&str], limit: u64, rights: u64) -> Machine {
    for name in names {
        machine.set(&std::format!("GUEST_{name}_LIMIT"), limit);
        machine.set(&std::format!("GUEST_{name}_ACCESS_RIGHTS"), rights);
    }
    machine
}

fn long() -> Machine {
    let m = segments(common(), &["SS", "DS", "ES"], 0xffff_ffff, 0xc093);
    let m = segments(m, &["CS"], 0xffff_ffff, 0xa09b);
    let m = segments(m, &["FS", "GS"], 0, 1 << 16);
    let entry = m.get("ENTRY_CONTROLS") | u64::from(EntryControls::IA32E_MODE_GUEST.bits());
    m.with(&[
        ("ENTRY_CONTROLS", entry),
        ("GUEST_CR0", 0x8005_0033),
        ("GUEST_CR3", 0x1000),
        ("GUEST_CR4", 0x2620),
        ("GUEST_EFER", 0xd01),
        ("GUEST_CS_SELECTOR", 0x10),
        ("GUEST_SS_SELECTOR", 0x18),
        ("GUEST_GS_BASE", 0xffff_8880_0000_0000),
        ("GUEST_RIP", 0xffff_ffff_8100_0000),
    ])
}

/// 32-bit protected mode without paging, which takes an unrestricted guest.
fn protected() -> Machine {
    let m = segments(common(), &["SS", "DS", "ES", "FS", "GS"], 0xffff_ffff, 0xc093);
    segments(m, &["CS"], 0xffff_ffff, 0xc09b).with(&[
        ("GUEST_CR0", 0x33),
        ("GUEST_CR4", 0x2000),
        ("GUEST_CS_SELECTOR", 0x10),
        ("GUEST_SS_SELECTOR", 0x18),
        ("GUEST_RIP", 0x10_0000),
    ])
}

/// 32-bit PAE paging, the PDPTEs in the VMCS.
fn pae() -> Machine {
    protected().with(&[
        ("GUEST_CR0", 0x8000_0033),
        ("GUEST_CR4", 0x2020),
        ("GUEST_PDPTE0", 0x2001),
        ("GUEST_PDPTE1", 0x1e6),
    ])
}

/// 32-bit paging in a guest that is not unrestricted.
fn restricted() -> Machine {
    let m = protected().with(&[("GUEST_CR0", 0x8000_0033)]);
    let secondary = m.get("SECONDARY_CONTROLS") & !u64::from(Secondary::UNRESTRICTED_GUEST.bits());
    m.with(&[("SECONDARY_CONTROLS", secondary)])
}

/// As after a reset.
fn real() -> Machine {
    let m = segments(common(), &["SS", "DS", "ES", "FS", "GS"], 0xffff, 0x93);
    segments(m, &["CS"], 0xffff, 0x9b).with(&[
        ("GUEST_CR0", 0x6000_0030),
        ("GUEST_CR4", 0x2000),
        ("GUEST_CS_SELECTOR", 0xf000),
        ("GUEST_CS_BASE", 0xffff_0000),
        ("GUEST_LDTR_ACCESS_RIGHTS", 0x82),
        ("GUEST_LDTR_LIMIT", 0xffff),
        ("GUEST_RIP", 0xfff0),
    ])
}

fn virtual_8086() -> Machine {
    let m = segments(protected(), &["CS", "SS", "DS", "ES", "FS", "GS"], 0xffff, 0xf3);
    m.with(&[
        ("GUEST_RFLAGS", 0x2_3202),
        ("GUEST_CS_SELECTOR", 0x1234),
        ("GUEST_CS_BASE", 0x1_2340),
        ("GUEST_SS_SELECTOR", 0xffff),
        ("GUEST_SS_BASE", 0xf_fff0),
        ("GUEST_RIP", 0x100),
    ])
}

/// `machine` on a processor with every feature that a rule knows.
fn with_everything(mut machine: Machine) -> Machine {
    let all = 0xffff_ffff_0000_0000;
    let c = &mut machine.capabilities;
    c.true_pin |= all;
    c.true_processor |= all;
    c.true_exit |= all;
    c.true_entry |= all;
    c.secondary |= all;
    c.tertiary = 0xf;
    c.secondary_exit = 1;
    c.cr4_fixed1 |= 0x1ff_3fff;
    c.ept_vpid |= EVERY_EPT_FORMAT;
    c.vmfunc = 1;
    machine
}

/// Five levels, uncached tables, accessed and dirty flags, supervisor shadow stacks.
const EVERY_EPT_FORMAT: u64 = 1 << 7 | 1 << 8 | 1 << 21 | 1 << 23;

#[test]
fn guests_of_every_mode_are_accepted() {
    for (name, machine) in [
        ("64-bit", long()),
        ("protected mode", protected()),
        ("PAE", pae()),
        ("paging, not unrestricted", restricted()),
        ("real mode", real()),
        ("virtual-8086 mode", virtual_8086()),
    ] {
        assert_eq!(machine.violations(), [], "{name}");
        assert_eq!(with_everything(machine).violations(), [], "{name} with every feature");
    }
}

#[test]
fn events_that_may_be_injected_are_accepted() {
    let interruptible = [("GUEST_RFLAGS", 0x202)];
    for (machine, information, length) in [
        (long().with(&interruptible), 0x8000_0020, 0),
        (long(), 0x8000_0202, 0),
        (long(), 0x8000_0b0e, 0),
        (long(), 0x8000_0306, 0),
        (long(), 0x8000_0480, 2),
        (long(), 0x8000_0503, 15),
        // Skylake-X may inject software events without a length, and real mode has no error codes.
        (long(), 0x8000_0603, 0),
        (real(), 0x8000_030d, 0),
        (long().with(&[("GUEST_ACTIVITY", 1)]).with(&interruptible), 0x8000_0020, 0),
        (long().with(&[("GUEST_ACTIVITY", 1)]), 0x8000_0301, 0),
        (long().with(&[("GUEST_ACTIVITY", 2)]), 0x8000_0312, 0),
        (with_everything(long()), 0x8000_0700, 0),
    ] {
        let machine =
            machine.with(&[("ENTRY_INTERRUPTION_INFORMATION", information), ("ENTRY_INSTRUCTION_LENGTH", length)]);
        assert_eq!(machine.violations(), [], "{information:#x}");
    }
}

#[test]
fn capabilities_change_what_may_be_injected() {
    let software = |length| {
        let mut m = long().with(&[("ENTRY_INTERRUPTION_INFORMATION", 0x8000_0480)]);
        m.set("ENTRY_INSTRUCTION_LENGTH", length);
        m.capabilities.misc &= !(1 << 30);
        m.violations().len()
    };
    assert_eq!((software(0), software(1)), (1, 0));
    for information in [0x8000_0b06, 0x8000_030d] {
        let mut m = long().with(&[("ENTRY_INTERRUPTION_INFORMATION", information)]);
        assert_eq!(m.violations().len(), 1, "{information:#x}");
        m.capabilities.basic |= 1 << 56;
        assert_eq!(m.violations(), [], "{information:#x} where any vector may have an error code");
    }
}

#[test]
fn a_violation_says_what_where_and_why() {
    let found = long().with(&[("GUEST_RFLAGS", 0x8000)]).violations();
    assert_eq!(
        found,
        [Violation {
            field: "GUEST_RFLAGS",
            value: 0x8000,
            rule: "RFLAGS bits 63:22, 15, 5 and 3 are 0 and bit 1 is 1.",
            section: "Checks on Guest RIP, RFLAGS, and SSP",
        }]
    );
}

#[test]
fn narrow_fields_ignore_what_vmread_leaves_above_them() {
    let mut m = long();
    m.set("HOST_CS_SELECTOR", 0xdead_0000_0008);
    m.set("GUEST_ACTIVITY", 0xdead_0000_0000);
    assert_eq!(m.violations(), []);
}

#[test]
fn canonical_and_uniform_differ_by_one_bit() {
    assert!(is_canonical(0x7fff_ffff_ffff, 48) && !is_canonical(0x8000_0000_0000, 48));
    assert!(is_canonical(0xffff_8000_0000_0000, 48) && !is_canonical(0xffff_7fff_ffff_ffff, 48));
    assert!(is_canonical(0x8000_0000_0000, 57) && is_canonical(u64::MAX >> 1, 0));
    // The first byte past the lower half is no address, yet RIP may hold it: the fetch faults in the guest.
    assert_eq!(long().with(&[("GUEST_RIP", 0x8000_0000_0000)]).violations(), []);
    assert_eq!(long().with(&[("GUEST_RIP", 0x1_0000_0000_0000)]).violations().len(), 1);
}

#[test]
fn an_area_of_msrs_may_end_where_memory_does() {
    let end = 1 << SKYLAKE_X.physical_address_width;
    let m = long().with(&[("EXIT_MSR_LOAD_COUNT", 2), ("EXIT_MSR_LOAD_ADDRESS", end - 32)]);
    assert_eq!(m.violations(), []);
    let m = long().with(&[("EXIT_MSR_LOAD_COUNT", 0xffff_ffff), ("EXIT_MSR_LOAD_ADDRESS", !15)]);
    assert_eq!(m.violations().len(), 1);
}

#[test]
fn old_processors_take_vmx_structures_below_4_gib_only() {
    let mut m = long().with(&[("MSR_BITMAP", 0x1_0000_0000)]);
    assert_eq!(m.violations(), []);
    m.capabilities.basic |= 1 << 48;
    assert_eq!(m.violations().iter().map(|v| v.field).collect::<Vec<_>>(), ["MSR_BITMAP"]);
}

#[test]
fn linear_address_masking_lends_cr3_two_bits() {
    let mut m = long().with(&[("GUEST_CR3", 3 << 61)]);
    assert_eq!(m.violations().len(), 1);
    m.capabilities.cr4_fixed1 |= 1 << 28;
    assert_eq!(m.violations(), []);
}

#[test]
fn failures_have_words() {
    for number in [0..=13, 15..=20, 22..=26, 28..=28].into_iter().flatten() {
        assert!(!instruction_error(number).contains("does not define"), "{number}");
    }
    for number in [14, 21, 27, 29, u32::MAX] {
        assert!(instruction_error(number).contains("does not define"), "{number}");
    }
    assert!(entry_failure(33, 0).contains("guest state"));
    assert!(entry_failure(33, 2).contains("PDPTE"));
    assert!(entry_failure(33, 3).contains("NMI"));
    assert!(entry_failure(33, 4).contains("link pointer"));
    assert!(entry_failure(34, 7).contains("MSR"));
    assert!(entry_failure(41, 0).contains("machine check"));
    assert!(entry_failure(48, 0).contains("not the reason"));
}

/// A reader in which any field that Skylake-X does not have is a bug of the caller's.
struct OnlySkylakeX<'a>(&'a [u64]);

impl Reader for OnlySkylakeX<'_> {
    fn raw(&self, encoding: u32) -> u64 {
        const MISSING: [&str; 14] = [
            "POSTED_INTERRUPT_VECTOR",
            "POSTED_INTERRUPT_DESCRIPTOR",
            "GUEST_UINV",
            "TERTIARY_CONTROLS",
            "SECONDARY_EXIT_CONTROLS",
            "SUB_PAGE_PERMISSION_TABLE",
            "GUEST_BNDCFGS",
            "GUEST_RTIT_CTL",
            "GUEST_PKRS",
            "HOST_PKRS",
            "GUEST_S_CET",
            "GUEST_SSP",
            "HOST_S_CET",
            "HOST_SSP",
        ];
        let index = field::ALL.iter().position(|(_, other)| *other == encoding).expect("a known field");
        assert!(!MISSING.contains(&field::ALL[index].0), "{} is not there", field::ALL[index].0);
        self.0[index]
    }
}

/// A value for every field, out of a few random ones.
fn scramble(seed: [u64; 16], mix: u64) -> [u64; field::ALL.len()] {
    core::array::from_fn(|i| {
        let amount = u32::from(mix.to_le_bytes()[i % 8]) & 63;
        seed[i % 16].rotate_left(amount) ^ mix
    })
}

prop_compose! {
    /// A processor that says anything at all.
    fn any_capabilities()(v: [u64; 14], width: (u8, u8)) -> Capabilities {
        Capabilities {
            basic: v[0], pin: v[1], processor: v[2], exit: v[3], entry: v[4], true_pin: v[5],
            true_processor: v[6], true_exit: v[7], true_entry: v[8], secondary: v[9], misc: v[10],
            cr0_fixed0: v[11], cr4_fixed1: v[12], ept_vpid: v[13], vmfunc: v[0], tertiary: v[1],
            secondary_exit: v[2], cr0_fixed1: v[3], cr4_fixed0: v[4],
            physical_address_width: width.0, linear_address_width: width.1,
        }
    }
}

proptest! {
    #[test]
    fn checking_is_total(seed: [u64; 16], mix: u64, capabilities in any_capabilities()) {
        let machine = Machine { fields: scramble(seed, mix), capabilities };
        let mut count = 0;
        check(&machine, &capabilities, &mut |_| count += 1);
        prop_assert!(count > 0, "random values cannot be a VMCS");
    }

    #[test]
    fn fields_that_the_processor_lacks_are_not_read(seed: [u64; 16], mix: u64) {
        check(&OnlySkylakeX(&scramble(seed, mix)), &SKYLAKE_X, &mut |_| ());
    }

    #[test]
    fn words_for_any_number(number: u32, basic: u16, qualification: u64) {
        prop_assert!(!instruction_error(number).is_empty());
        prop_assert!(!entry_failure(basic, qualification).is_empty());
    }
}
