//! The ACPI tables of a VM (ACPI Specification 6.5, "ACPI Software Programming Model").
//!
//! Owns what firmware would leave in memory for the guest to find: RSDP, XSDT, FADT, FACS, MADT and DSDT, in the
//! reserved area at [`FIRMWARE_TABLES`], RSDP first, so that a guest that looks for it (on 16-byte boundaries from
//! 0xe0000 on) finds it at once. Describes the PC that [`crate::layout`] lays out; has no state and no devices.
//!
//! The PC is in ACPI mode from the start (SMI_CMD is 0), so a guest has nothing to switch on.

use alloc::vec;
use alloc::vec::Vec;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use lamina_arch::addr::Gpa;

use crate::host::HostMemory;
use crate::layout::{
    FIRMWARE_TABLES, FIRMWARE_TABLES_SIZE, IOAPIC, LAPIC, PIT_GSI, PIT_IRQ, PM_TIMER_PORT, PM1A_CONTROL_PORT,
    PM1A_EVENT_PORT, RESET_PORT, SCI_IRQ,
};
use crate::memory::{GuestMemory, NotMemory};

mod dsdt;

const OEM_ID: [u8; 6] = *b"LAMINA";
const OEM_TABLE_ID: [u8; 8] = *b"LAMINAPC";
const OEM_REVISION: u32 = 1;

/// What is written to [`RESET_PORT`] to reset the PC.
const RESET_VALUE: u8 = 6;
/// FADT, P_LVL2_LAT and P_LVL3_LAT: more than 100 and 1000 µs say that there is no such state.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;
/// FADT, IAPC_BOOT_ARCH: there are devices at ISA addresses.
const LEGACY_DEVICES: u16 = 1 << 0;
/// FADT, IAPC_BOOT_ARCH: do not look for a VGA.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// FADT: offset of the century in CMOS.
const CMOS_CENTURY: u8 = 0x32;
/// DSDT revision: integers have 64 bits from 2 on.
const DSDT_REVISION: u8 = 2;
/// MADT revision of ACPI 6.5.
const MADT_REVISION: u8 = 6;
/// MADT, flags: there is a pair of 8259s, too.
const PCAT_COMPAT: u32 = 1 << 0;
/// MADT, MPS INTI flags: active high, level-triggered.
const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
/// MADT: all processors.
const ALL_PROCESSORS: u8 = 0xff;
/// What the I/O APIC's ID register holds after reset.
const IOAPIC_ID: u8 = 0;

/// Bytes for guest memory at [`FIRMWARE_TABLES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// At most [`FIRMWARE_TABLES_SIZE`] of them.
    pub bytes: Vec<u8>,
    /// Address of the RSDP.
    pub rsdp: Gpa,
}

impl Tables {
    /// The RSDP, which comes first.
    pub fn rsdp_bytes(&self) -> &[u8] {
        self.bytes.get(..Rsdp::len()).unwrap_or_default()
    }

    /// Puts the tables where the guest finds them.
    ///
    /// # Errors
    /// [`NotMemory`] where the VM has no memory at [`FIRMWARE_TABLES`].
    pub fn write(&self, memory: &mut GuestMemory, host: &mut impl HostMemory) -> Result<(), NotMemory> {
        memory.write(host, FIRMWARE_TABLES, &self.bytes)
    }
}

/// Tables on their way into one piece of memory.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Puts `table` at the next multiple of `align` and returns its address.
    fn add(&mut self, table: &[u8], align: usize) -> Gpa {
        self.bytes.resize(self.bytes.len().next_multiple_of(align), 0);
        let at = FIRMWARE_TABLES + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        at
    }
}

const _: () = assert!(FIRMWARE_TABLES.0 + FIRMWARE_TABLES_SIZE <= 1 << 32, "addresses must fit the 32-bit fields");

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The tables of a PC whose processors have the local APIC IDs `apic_ids`, the boot processor first.
pub fn build(apic_ids: &[u8]) -> Tables {
    let rsdp_size = Rsdp::len();
    let mut area = Area { bytes: vec![0; rsdp_size] };
    let facs = area.add(&to_bytes(&FACS::new()), 64);
    let dsdt = area.add(&dsdt::build(), 16);
    let fadt = area.add(&fadt(facs, dsdt), 16);
    let madt = area.add(&madt(apic_ids), 16);
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt.0);
    xsdt.add_entry(madt.0);
    let xsdt = area.add(&to_bytes(&xsdt), 16);
    let rsdp = to_bytes(&Rsdp::new(OEM_ID, xsdt.0));
    let mut bytes = area.bytes;
    bytes.splice(..rsdp_size, rsdp);
    Tables { bytes, rsdp: FIRMWARE_TABLES }
}

/// The low 32 bits of an address in the area, which has no others.
fn low32(address: Gpa) -> u32 {
    let [a, b, c, d, ..] = address.0.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Fixed hardware. No keyboard controller is told of: nothing is plugged into ours, and a guest that looks for a
/// keyboard there waits for answers that do not come.
fn fadt(facs: Gpa, dsdt: Gpa) -> Vec<u8> {
    let port = |port: u16, bits, access| GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(low32(facs))
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    // Both, and the same: the builder's own setters clear the other one.
    fadt.dsdt = low32(dsdt).into();
    fadt.x_dsdt = dsdt.0.into();
    fadt.sci_int = u16::from(SCI_IRQ).into();
    fadt.pm1a_evt_blk = u32::from(PM1A_EVENT_PORT).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(PM1A_EVENT_PORT, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(PM1A_CONTROL_PORT).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(PM1A_CONTROL_PORT, 16, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(PM_TIMER_PORT).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = port(PM_TIMER_PORT, 32, AccessSize::DwordAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = CMOS_CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    fadt.reset_reg = port(RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    to_bytes(&fadt.finalize())
}

/// Interrupt controllers and how the ISA interrupts reach them.
fn madt(apic_ids: &[u8]) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", 36, MADT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let lapic = low32(LAPIC).to_le_bytes();
    madt.append_slice(&lapic);
    madt.append_slice(&PCAT_COMPAT.to_le_bytes());
    for (uid, &apic_id) in (0u8..).zip(apic_ids) {
        // Processor Local APIC: UID, APIC ID, flags (enabled).
        madt.append_slice(&[0, 8, uid, apic_id, 1, 0, 0, 0]);
    }
    // I/O APIC: ID, reserved, address, first GSI.
    madt.append_slice(&[1, 12, IOAPIC_ID, 0]);
    madt.append_slice(&low32(IOAPIC).to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    for (irq, gsi, flags) in [(PIT_IRQ, PIT_GSI, 0), (SCI_IRQ, SCI_IRQ, ACTIVE_HIGH_LEVEL)] {
        // Interrupt Source Override: bus (ISA), source, GSI, flags (0 is what the bus does by itself).
        madt.append_slice(&[2, 10, 0, irq, gsi, 0, 0, 0]);
        madt.append_slice(&flags.to_le_bytes());
    }
    // Local APIC NMI: processors, flags, LINT1.
    madt.append_slice(&[4, 6, ALL_PROCESSORS, 0, 0, 1]);
    madt.as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number at `offset`, little-endian.
    fn number(bytes: &[u8], offset: usize, width: usize) -> u64 {
        bytes[offset..offset + width].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn sums_to_zero(bytes: &[u8]) -> bool {
        bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
    }

    /// The table at `address`, its length and checksum right.
    fn table(tables: &Tables, address: u64, signature: &[u8]) -> Vec<u8> {
        let start = usize::try_from(address - FIRMWARE_TABLES.0).unwrap();
        let length = usize::try_from(number(&tables.bytes, start + 4, 4)).unwrap();
        let bytes = tables.bytes[start..start + length].to_vec();
        assert_eq!(&bytes[..4], signature);
        assert!(signature == b"FACS" || sums_to_zero(&bytes), "checksum of {signature:?}");
        bytes
    }

    fn all() -> (Tables, Vec<u8>, Vec<u8>) {
        let tables = build(&[0]);
        let xsdt = table(&tables, number(&tables.bytes, 24, 8), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 2 * 8);
        let fadt = table(&tables, number(&xsdt, 36, 8), b"FACP");
        let madt = table(&tables, number(&xsdt, 44, 8), b"APIC");
        (tables, fadt, madt)
    }

    #[test]
    fn the_root_pointer_is_found_by_looking() {
        let (tables, ..) = all();
        assert!(tables.bytes.len() as u64 <= FIRMWARE_TABLES_SIZE);
        assert_eq!(&tables.bytes[..8], b"RSD PTR ");
        assert!(sums_to_zero(&tables.bytes[..20]) && sums_to_zero(&tables.bytes[..36]));
        assert_eq!((tables.bytes[15], number(&tables.bytes, 16, 4)), (2, 0), "revision, no RSDT");
        assert!(tables.rsdp.is_aligned(16));
    }

    #[test]
    fn the_fadt_tells_of_the_layout() {
        let (tables, fadt, _) = all();
        assert_eq!(fadt.len(), 276);
        let facs = number(&fadt, 36, 4);
        assert_eq!((facs % 64, table(&tables, facs, b"FACS").len()), (0, 64));
        let dsdt = number(&fadt, 40, 4);
        assert_eq!(number(&fadt, 140, 8), dsdt);
        table(&tables, dsdt, b"DSDT");
        assert_eq!(number(&fadt, 46, 2), 9);
        assert_eq!(fadt[48..56], [0; 8], "no way to switch modes: always in ACPI mode");
        let gas = |offset| (number(&fadt, offset, 4), number(&fadt, offset + 4, 8));
        assert_eq!((number(&fadt, 56, 4), fadt[88], gas(148)), (0x600, 4, (0x0200_2001, 0x600)));
        assert_eq!((number(&fadt, 64, 4), fadt[89], gas(172)), (0x604, 2, (0x0200_1001, 0x604)));
        assert_eq!((number(&fadt, 76, 4), fadt[91], gas(208)), (0x608, 4, (0x0300_2001, 0x608)));
        assert_eq!((gas(116), fadt[128]), ((0x0100_0801, 0xcf9), 6));
        assert_eq!(number(&fadt, 112, 4), 0b101_0110_0101);
    }

    #[test]
    fn the_madt_tells_of_the_interrupt_controllers() {
        let madt = madt(&[0, 3]);
        assert!(sums_to_zero(&madt));
        assert_eq!((number(&madt, 36, 4), number(&madt, 40, 4)), (0xfee0_0000, 1));
        let mut entries = Vec::new();
        let mut rest = &madt[44..];
        while let [_, length, ..] = rest {
            let (entry, next) = rest.split_at(usize::from(*length));
            entries.push(entry);
            rest = next;
        }
        assert!(rest.is_empty());
        let expected: [&[u8]; 6] = [
            &[0, 8, 0, 0, 1, 0, 0, 0],
            &[0, 8, 1, 3, 1, 0, 0, 0],
            &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
            &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
            &[2, 10, 0, 9, 9, 0, 0, 0, 13, 0],
            &[4, 6, 0xff, 0, 0, 1],
        ];
        assert_eq!(entries, expected);
    }

    #[test]
    fn the_dsdt_names_what_a_guest_looks_for() {
        let dsdt = dsdt::build();
        assert!(sums_to_zero(&dsdt));
        let holds = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
        // Name (_S5, Package {5, 5, 0, 0})
        assert!(holds(b"\x08\\_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00"));
        // EISA IDs are big-endian numbers.
        for id in [0x41d0_0a03u32, 0x41d0_0501, 0x41d0_0b00, 0x41d0_0c02] {
            assert!(holds(&id.to_be_bytes()), "{id:x}");
        }
    }
}
