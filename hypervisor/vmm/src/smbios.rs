//! The SMBIOS tables of a VM without firmware (DMTF DSP0134, *System Management BIOS Reference Specification*, 3.7): what
//! the machine calls itself. Firmware makes its own.
//!
//! Owns the entry point, which guests look for on 16-byte boundaries from 0xf0000 on, and the structures behind it: BIOS,
//! system, enclosure, and the end. What a guest learns better from ACPI or CPUID (processors, memory) is not told twice.

use alloc::vec::Vec;

use crate::layout::SMBIOS;

/// "SMBIOS 2.1 (32-bit) Entry Point": its length, and where the part begins that has a checksum of its own.
const ENTRY_LENGTH: u8 = 0x1f;
const INTERMEDIATE: usize = 0x10;
/// Offsets of the two checksums.
const CHECKSUM: usize = 4;
const INTERMEDIATE_CHECKSUM: usize = 0x15;
/// The version of the specification, in both forms that the entry point has it in.
const VERSION: [u8; 2] = [2, 8];
const VERSION_BCD: u8 = 0x28;
/// The structures begin here, behind the entry point.
const TABLE_OFFSET: usize = 0x20;

const MAKER: &str = "Lamina";
const PRODUCT: &str = "Lamina PC";
/// Kernels take a PC without a date, or of the last century, for one with faults that are long gone.
const RELEASE_DATE: &str = "11/01/2026";

/// BIOS characteristics: none of them is told.
const CHARACTERISTICS: u64 = 1 << 3;
/// BIOS characteristics, second extension byte: the table describes a virtual machine.
const IS_VIRTUAL: u8 = 1 << 4;
/// Embedded controller's release, and ROM size in the older field: there is none.
const NO_CONTROLLER: u8 = 0xff;
/// Wake-up type: power switch.
const POWER_SWITCH: u8 = 6;
/// Enclosure: other; boot-up, power and thermal state: safe; security: none.
const OTHER: u8 = 1;
const SAFE: u8 = 3;
const NO_SECURITY: u8 = 3;

/// Structures being collected.
struct Table {
    bytes: Vec<u8>,
    count: u8,
    /// Size of the largest one. Unit: bytes.
    largest: usize,
}

impl Table {
    /// Adds a structure: type, the fields behind its header, and its strings, which fields name by number from 1 on.
    fn add(&mut self, kind: u8, fields: &[u8], strings: &[&str]) {
        const HEADER: u8 = 4;
        let start = self.bytes.len();
        let length = u8::try_from(fields.len()).unwrap_or(u8::MAX).saturating_add(HEADER);
        self.bytes.extend([kind, length, self.count, 0]);
        self.bytes.extend_from_slice(fields);
        for string in strings {
            self.bytes.extend_from_slice(string.as_bytes());
            self.bytes.push(0);
        }
        // Without strings there are two zero bytes all the same.
        self.bytes.extend(if strings.is_empty() { &[0, 0][..] } else { &[0][..] });
        self.count += 1;
        self.largest = self.largest.max(self.bytes.len() - start);
    }
}

/// Bytes for guest memory at [`SMBIOS`].
pub fn build() -> Vec<u8> {
    let mut table = Table { bytes: Vec::new(), count: 0, largest: 0 };
    let mut bios = Vec::from([1, 2, 0, 0, 3, 0]);
    bios.extend(CHARACTERISTICS.to_le_bytes());
    bios.extend([0, IS_VIRTUAL, 0, 1, NO_CONTROLLER, NO_CONTROLLER]);
    table.add(0, &bios, &[MAKER, env!("CARGO_PKG_VERSION"), RELEASE_DATE]);
    // Maker, product, version, serial number; a UUID of zeros, which is none; wake-up type; SKU, family.
    let mut system = Vec::from([1, 2, 0, 0]);
    system.extend([0; 16]);
    system.extend([POWER_SWITCH, 0, 0]);
    table.add(1, &system, &[MAKER, PRODUCT]);
    table.add(3, &[1, OTHER, 0, 0, 0, SAFE, SAFE, SAFE, NO_SECURITY], &[MAKER]);
    table.add(127, &[], &[]);

    let short = |number: usize| u16::try_from(number).unwrap_or(u16::MAX).to_le_bytes();
    let mut bytes = Vec::from(*b"_SM_");
    bytes.extend([0, ENTRY_LENGTH, VERSION[0], VERSION[1]]);
    bytes.extend(short(table.largest));
    // Entry point revision, and what it formats: nothing.
    bytes.extend([0; 6]);
    bytes.extend(*b"_DMI_\0");
    bytes.extend(short(table.bytes.len()));
    let address = SMBIOS.0 + TABLE_OFFSET as u64;
    bytes.extend(address.to_le_bytes().into_iter().take(4));
    bytes.extend([table.count, 0, VERSION_BCD]);
    for (from, checksum) in [(INTERMEDIATE, INTERMEDIATE_CHECKSUM), (0, CHECKSUM)] {
        let sum = bytes.iter().skip(from).fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        if let Some(place) = bytes.get_mut(checksum) {
            *place = place.wrapping_sub(sum);
        }
    }
    bytes.resize(TABLE_OFFSET, 0);
    bytes.extend(table.bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    fn number(bytes: &[u8], at: usize, width: usize) -> usize {
        bytes[at..at + width].iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
    }

    /// Type, fields behind the header and strings of each structure.
    fn structures(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        let mut found = Vec::new();
        while let [kind, length, ..] = *bytes {
            let (whole, mut rest) = bytes.split_at(usize::from(length));
            let mut strings = Vec::new();
            while rest[0] != 0 {
                let end = rest.iter().position(|&byte| byte == 0).unwrap();
                strings.push(String::from_utf8(rest[..end].to_vec()).unwrap());
                rest = &rest[end + 1..];
            }
            bytes = &rest[if strings.is_empty() { 2 } else { 1 }..];
            found.push((kind, whole[4..].to_vec(), strings));
        }
        found
    }

    #[test]
    fn the_entry_point_leads_to_structures_that_end() {
        let bytes = build();
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        assert_eq!((&bytes[..4], &bytes[16..21], bytes[5]), (&b"_SM_"[..], &b"_DMI_"[..], 31));
        assert_eq!((sum(&bytes[..31]), sum(&bytes[16..31])), (0, 0));
        let (length, address) = (number(&bytes, 0x16, 2), number(&bytes, 0x18, 4));
        let start = address - 0xf_0000;
        assert_eq!(start + length, bytes.len());
        let found = structures(&bytes[start..]);
        assert_eq!(found.iter().map(|(kind, ..)| *kind).collect::<Vec<_>>(), [0, 1, 3, 127]);
        assert_eq!(found.iter().map(|(_, fields, _)| fields.len()).collect::<Vec<_>>(), [0x14, 0x17, 9, 0]);
        assert_eq!(number(&bytes, 0x1c, 2), found.len());
        assert_eq!(found[0].2, ["Lamina", env!("CARGO_PKG_VERSION"), "11/01/2026"]);
        // Fields that name strings: a number is that of a string, or 0.
        assert_eq!((&found[0].1[..2], found[0].1[4], &found[1].1[..4]), (&[1, 2][..], 3, &[1, 2, 0, 0][..]));
    }
}
