//! The ACPI tables of a VM (ACPI Specification 6.5, "ACPI Software Programming Model").
//!
//! Owns what firmware would leave in memory for the guest to find: RSDP, XSDT, FADT, FACS, MADT, MCFG and DSDT, in the
//! reserved area at [`FIRMWARE_TABLES`], RSDP first, so that a guest that looks for it (on 16-byte boundaries from
//! 0xe0000 on) finds it at once. Firmware gets the same tables as files, with a script that says how to place them
//! (`firmware`). Describes the PC that [`crate::layout`] lays out; has no state and no devices.
//!
//! The PC is in ACPI mode from the start (SMI_CMD is 0), so a guest has nothing to switch on.

use alloc::vec;
use alloc::vec::Vec;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use lamina_arch::addr::Gpa;

use crate::host::HostMemory;
use crate::layout::{
    ECAM, FIRMWARE_TABLES, FIRMWARE_TABLES_SIZE, HPET, HPET_BLOCK_ID, IOAPIC, LAPIC, PIT_GSI, PIT_IRQ, PM_TIMER_PORT,
    PM1A_CONTROL_PORT, PM1A_EVENT_PORT, RESET_PORT, SCI_IRQ,
};
use crate::memory::{GuestMemory, NotMemory};

mod dsdt;
mod firmware;

pub use firmware::firmware_files;

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
/// FADT, IAPC_BOOT_ARCH: there is a keyboard controller.
const KEYBOARD_CONTROLLER: u16 = 1 << 1;
/// FADT, IAPC_BOOT_ARCH: do not look for a VGA.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// FADT: offset of the century in CMOS.
const CMOS_CENTURY: u8 = 0x32;
/// DSDT revision: integers have 64 bits from 2 on.
const DSDT_REVISION: u8 = 2;
/// RSDP: the addresses of RSDT and XSDT, offset and width.
const RSDP_RSDT: (usize, u8) = (16, 4);
const RSDP_XSDT: (usize, u8) = (24, 8);
/// RSDP: its two checksums, each with the length that it is for; the second is for the first one, too.
const RSDP_CHECKSUMS: [(usize, usize); 2] = [(8, 20), (32, 36)];
/// RSDT revision.
const RSDT_REVISION: u8 = 1;
/// HPET table revision.
const HPET_TABLE_REVISION: u8 = 1;
/// HPET table: what a periodic timer needs between two interrupts so that none is lost. Unit: ticks of its counter.
const HPET_LEAST_TICK: u16 = 1000;
/// Size of the header that all tables but the FACS begin with. Unit: bytes.
const SDT_HEADER: usize = 36;
/// FADT: FIRMWARE_CTRL, DSDT and X_DSDT, offset and width.
const FADT_POINTERS: [(usize, u8); 3] = [(36, 4), (40, 4), (140, 8)];
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

/// The parts of a PC that not every VM has, or not so many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    /// Local APIC IDs of the processors, the boot processor first.
    pub apic_ids: &'a [u8],
    /// Somebody may type on a keyboard. Where nobody does, none is told of: a guest that looks for one there takes its
    /// time.
    pub keyboard: bool,
    /// There is a VGA display adapter.
    pub vga: bool,
    /// There is a high precision event timer.
    pub hpet: bool,
}

/// Bytes for guest memory at [`FIRMWARE_TABLES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// They end before [`SMBIOS`](crate::layout::SMBIOS).
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
    /// Where its first byte will be.
    base: Gpa,
    bytes: Vec<u8>,
    /// Every address in the bytes: offset and width.
    pointers: Vec<(usize, u8)>,
    /// Every table with a checksum: offset and length.
    summed: Vec<(usize, usize)>,
}

impl Area {
    fn new(base: Gpa, reserved: usize) -> Area {
        Area { base, bytes: vec![0; reserved], pointers: Vec::new(), summed: Vec::new() }
    }

    /// Puts `table`, with addresses at these offsets and of these widths in it, at the next multiple of `align`, and
    /// returns its address.
    fn add(&mut self, table: &[u8], align: usize, pointers: &[(usize, u8)]) -> Gpa {
        self.bytes.resize(self.bytes.len().next_multiple_of(align), 0);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(table);
        self.pointers.extend(pointers.iter().map(|&(offset, width)| (start + offset, width)));
        // The FACS alone has none.
        if !table.starts_with(b"FACS") {
            self.summed.push((start, table.len()));
        }
        self.base + start as u64
    }

    /// Puts all tables of a PC with these `parts` there.
    fn add_all(&mut self, parts: &Parts<'_>) -> Roots {
        let facs = self.add(&to_bytes(&FACS::new()), 64, &[]);
        let dsdt = self.add(dsdt::build(parts.keyboard), 16, &[]);
        let mut listed = vec![self.add(&fadt(facs, dsdt, parts), 16, &FADT_POINTERS)];
        listed.push(self.add(&madt(parts.apic_ids), 16, &[]));
        listed.push(self.add(&mcfg(), 16, &[]));
        if parts.hpet {
            listed.push(self.add(&hpet(), 16, &[]));
        }
        let mut rsdt = Sdt::new(*b"RSDT", 36, RSDT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        for table in &listed {
            rsdt.append_slice(&low32(*table).to_le_bytes());
            xsdt.add_entry(table.0);
        }
        let entries =
            |width: u8| -> Vec<_> { (0..listed.len()).map(|n| (SDT_HEADER + usize::from(width) * n, width)).collect() };
        let rsdt = self.add(rsdt.as_slice(), 16, &entries(4));
        Roots { rsdt, xsdt: self.add(&to_bytes(&xsdt), 16, &entries(8)) }
    }
}

/// The two lists of tables. The old one is for who was written before ACPI 2.0, or as if: GRUB's `halt`.
struct Roots {
    rsdt: Gpa,
    xsdt: Gpa,
}

/// The pointer to the lists, with its checksums (ACPI Specification 6.5, "Root System Description Pointer (RSDP)").
fn rsdp(roots: &Roots) -> Vec<u8> {
    let mut bytes = to_bytes(&Rsdp::new(OEM_ID, roots.xsdt.0));
    for (place, byte) in bytes.iter_mut().skip(RSDP_RSDT.0).zip(low32(roots.rsdt).to_le_bytes()) {
        *place = byte;
    }
    for (at, length) in RSDP_CHECKSUMS {
        let sum = bytes.iter().take(length).fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        if let Some(place) = bytes.get_mut(at) {
            *place = place.wrapping_sub(sum);
        }
    }
    bytes
}

const _: () = assert!(FIRMWARE_TABLES.0 + FIRMWARE_TABLES_SIZE <= 1 << 32, "addresses must fit the 32-bit fields");

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The tables of a PC with these `parts`.
pub fn build(parts: &Parts<'_>) -> Tables {
    let rsdp_size = Rsdp::len();
    let mut area = Area::new(FIRMWARE_TABLES, rsdp_size);
    let rsdp = rsdp(&area.add_all(parts));
    let mut bytes = area.bytes;
    bytes.splice(..rsdp_size, rsdp);
    Tables { bytes, rsdp: FIRMWARE_TABLES }
}

/// The low 32 bits of an address in the area, which has no others.
fn low32(address: Gpa) -> u32 {
    let [a, b, c, d, ..] = address.0.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Fixed hardware.
fn fadt(facs: Gpa, dsdt: Gpa, parts: &Parts<'_>) -> Vec<u8> {
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
    let keyboard = if parts.keyboard { KEYBOARD_CONTROLLER } else { 0 };
    let screen = if parts.vga { 0 } else { VGA_NOT_PRESENT };
    fadt.iapc_boot_arch = (LEGACY_DEVICES | keyboard | screen).into();
    fadt.reset_reg = port(RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    to_bytes(&fadt.finalize())
}

/// Where the high precision event timer is (IA-PC HPET Specification 1.0a, "The HPET Description Table").
fn hpet() -> Vec<u8> {
    let mut hpet = Sdt::new(*b"HPET", 36, HPET_TABLE_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    hpet.append_slice(&HPET_BLOCK_ID.to_le_bytes());
    hpet.append_slice(&to_bytes(&GAS::new(AddressSpace::SystemMemory, 64, 0, AccessSize::Undefined, HPET.0)));
    // Its number, the least tick of a periodic timer, page protection (none).
    hpet.append_slice(&[0]);
    hpet.append_slice(&HPET_LEAST_TICK.to_le_bytes());
    hpet.append_slice(&[0]);
    hpet.as_slice().to_vec()
}

/// Where PCI's configuration space is in memory (PCI Firmware Specification 3.3, "MCFG Table Description"). A 440FX has it
/// nowhere; here it is, because a guest may as well have the simpler way.
fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(ECAM.0, 0, 0, 0xff);
    to_bytes(&mcfg)
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
    use crate::layout::SMBIOS;

    const PLAIN: Parts<'static> = Parts { apic_ids: &[0], keyboard: false, vga: false, hpet: false };

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
        let tables = build(&PLAIN);
        let xsdt = table(&tables, number(&tables.bytes, 24, 8), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 3 * 8);
        let mcfg = table(&tables, number(&xsdt, 52, 8), b"MCFG");
        assert_eq!((mcfg.len(), number(&mcfg, 44, 8), &mcfg[52..56]), (60, 0xe000_0000, &[0, 0, 0, 255][..]));
        let fadt = table(&tables, number(&xsdt, 36, 8), b"FACP");
        let madt = table(&tables, number(&xsdt, 44, 8), b"APIC");
        (tables, fadt, madt)
    }

    #[test]
    fn the_root_pointer_is_found_by_looking() {
        let (tables, ..) = all();
        assert!(FIRMWARE_TABLES.0 + tables.bytes.len() as u64 <= SMBIOS.0);
        assert_eq!(&tables.bytes[..8], b"RSD PTR ");
        assert!(sums_to_zero(&tables.bytes[..20]) && sums_to_zero(&tables.bytes[..36]));
        assert_eq!(tables.bytes[15], 2, "revision");
        let [rsdt, xsdt] = [
            table(&tables, number(&tables.bytes, 16, 4), b"RSDT"),
            table(&tables, number(&tables.bytes, 24, 8), b"XSDT"),
        ];
        let listed =
            |list: &[u8], width| -> Vec<_> { list[36..].chunks(width).map(|entry| number(entry, 0, width)).collect() };
        assert_eq!(listed(&rsdt, 4), listed(&xsdt, 8));
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
    fn what_a_vm_has_beyond_is_told() {
        let (_, fadt, _) = all();
        assert_eq!(number(&fadt, 109, 2), 0b101, "ISA devices, no keyboard, no VGA");
        let tables = build(&Parts { keyboard: true, vga: true, hpet: true, ..PLAIN });
        let xsdt = table(&tables, number(&tables.bytes, 24, 8), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 4 * 8);
        assert_eq!(number(&table(&tables, number(&xsdt, 36, 8), b"FACP"), 109, 2), 0b011);
        let hpet = table(&tables, number(&xsdt, 60, 8), b"HPET");
        assert_eq!((hpet.len(), hpet[40], number(&hpet, 44, 8)), (56, 0, 0xfed0_0000));
        let keyboard = 0x41d0_0303_u32.to_be_bytes();
        let tells = |dsdt: &[u8]| dsdt.windows(4).any(|window| window == keyboard);
        assert_eq!((tells(dsdt::build(true)), tells(dsdt::build(false))), (true, false));
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
        let dsdt = dsdt::build(false);
        assert!(sums_to_zero(dsdt));
        let holds = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
        // Name (_S5, Package {5, 5, 0, 0})
        assert!(holds(b"\x08\\_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00"));
        // EISA IDs are big-endian numbers.
        for id in [0x41d0_0a03u32, 0x41d0_0501, 0x41d0_0b00, 0x41d0_0c02] {
            assert!(holds(&id.to_be_bytes()), "{id:x}");
        }
    }
}
