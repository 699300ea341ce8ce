//! The tables as files for firmware, with the script by which it places and links them (QEMU's "BIOS linker/loader",
//! as SeaBIOS and OVMF carry it out).
//!
//! Until it is placed, an address in a file is an offset in the file that it points into; the script has the file's
//! address added, and then the checksums made right.

use alloc::vec::Vec;

use lamina_arch::addr::Gpa;

use super::{Area, Parts, RSDP_CHECKSUMS, RSDP_RSDT, RSDP_XSDT, rsdp};
use crate::chipset::FirmwareFile;

const RSDP_FILE: &str = "etc/acpi/rsdp";
const TABLES_FILE: &str = "etc/acpi/tables";
const SCRIPT_FILE: &str = "etc/table-loader";

/// Room for a file's name in a command, a zero byte behind it included. Unit: bytes.
const NAME_SIZE: usize = 56;
/// Size of every command. Unit: bytes.
const COMMAND_SIZE: usize = 128;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Memory that the map says is taken.
const ZONE_HIGH: u8 = 1;
/// Below 1 MiB, where a guest looks for the RSDP.
const ZONE_F_SEGMENT: u8 = 2;

/// Every table begins at a multiple of this in its file, and so must the file.
const TABLES_ALIGN: u32 = 64;
const RSDP_ALIGN: u32 = 16;
/// Offset of the checksum in every other table.
const CHECKSUM: usize = 9;

struct Script(Vec<u8>);

impl Script {
    fn command(&mut self, kind: u32, names: &[&str], numbers: &[u32], last: Option<u8>) {
        let end = self.0.len() + COMMAND_SIZE;
        self.0.extend_from_slice(&kind.to_le_bytes());
        for name in names {
            let field = self.0.len() + NAME_SIZE;
            self.0.extend_from_slice(name.as_bytes());
            self.0.resize(field, 0);
        }
        numbers.iter().for_each(|number| self.0.extend_from_slice(&number.to_le_bytes()));
        self.0.extend(last);
        self.0.resize(end, 0);
    }

    fn allocate(&mut self, file: &str, align: u32, zone: u8) {
        self.command(ALLOCATE, &[file], &[align], Some(zone));
    }

    /// To the number in `file` the address of [`TABLES_FILE`] is added.
    fn add_pointer(&mut self, file: &str, (offset, width): (usize, u8)) {
        self.command(ADD_POINTER, &[file, TABLES_FILE], &[number(offset)], Some(width));
    }

    fn add_checksum(&mut self, file: &str, at: usize, start: usize, length: usize) {
        self.command(ADD_CHECKSUM, &[file], &[number(at), number(start), number(length)], None);
    }
}

/// Files are small.
fn number(offset: usize) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

/// The files of a PC with these `parts`.
pub fn firmware_files(parts: &Parts<'_>) -> [FirmwareFile; 3] {
    let mut area = Area::new(Gpa(0), 0);
    let rsdp = rsdp(&area.add_all(parts));
    let mut script = Script(Vec::new());
    script.allocate(RSDP_FILE, RSDP_ALIGN, ZONE_F_SEGMENT);
    script.allocate(TABLES_FILE, TABLES_ALIGN, ZONE_HIGH);
    area.pointers.iter().for_each(|&pointer| script.add_pointer(TABLES_FILE, pointer));
    script.add_pointer(RSDP_FILE, RSDP_RSDT);
    script.add_pointer(RSDP_FILE, RSDP_XSDT);
    for &(start, length) in &area.summed {
        script.add_checksum(TABLES_FILE, start + CHECKSUM, start, length);
    }
    for (at, length) in RSDP_CHECKSUMS {
        script.add_checksum(RSDP_FILE, at, 0, length);
    }
    [
        FirmwareFile::new(RSDP_FILE, rsdp),
        FirmwareFile::new(TABLES_FILE, area.bytes),
        FirmwareFile::new(SCRIPT_FILE, script.0),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::string::{String, ToString};

    use super::*;

    const PARTS: Parts<'static> = Parts { apic_ids: &[0], keyboard: true, vga: true, hpet: true };

    fn word(bytes: &[u8], offset: usize) -> usize {
        usize::try_from(u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())).unwrap()
    }

    fn name(bytes: &[u8]) -> String {
        let end = bytes.iter().position(|&byte| byte == 0).expect("a zero byte ends it");
        core::str::from_utf8(&bytes[..end]).unwrap().to_string()
    }

    /// Does what firmware does: places the files at `addresses`, in the order of the script, and links them.
    fn placed(addresses: &[u64]) -> BTreeMap<u64, Vec<u8>> {
        let files = firmware_files(&PARTS);
        let mut contents: BTreeMap<_, _> = files.iter().map(|file| (file.name.clone(), file.bytes.to_vec())).collect();
        let script = contents.remove(SCRIPT_FILE).unwrap();
        assert_eq!(script.len() % COMMAND_SIZE, 0);
        let mut places = BTreeMap::new();
        let mut addresses = addresses.iter();
        for command in script.chunks(COMMAND_SIZE) {
            let file = name(&command[4..60]);
            match word(command, 0) {
                1 => {
                    let address = *addresses.next().unwrap();
                    assert_eq!(address % word(command, 60) as u64, 0);
                    places.insert(file, address);
                }
                2 => {
                    let (offset, width) = (word(command, 116), usize::from(command[120]));
                    let field = &mut contents.get_mut(&file).unwrap()[offset..offset + width];
                    let mut value = [0; 8];
                    value[..width].copy_from_slice(field);
                    let value = u64::from_le_bytes(value) + places[&name(&command[60..116])];
                    field.copy_from_slice(&value.to_le_bytes()[..width]);
                }
                3 => {
                    let (at, start, length) = (word(command, 60), word(command, 64), word(command, 68));
                    let bytes = contents.get_mut(&file).unwrap();
                    let sum = bytes[start..start + length].iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
                    bytes[at] = bytes[at].wrapping_sub(sum);
                }
                other => panic!("command {other}"),
            }
        }
        contents.into_iter().map(|(file, bytes)| (places[&file], bytes)).collect()
    }

    #[test]
    fn placed_and_linked_they_are_the_same_tables_at_another_address() {
        // The tables one page behind their RSDP, which is how the area of a VM without firmware would be, moved.
        let memory = placed(&[0xf_5000, 0x7fe_0000]);
        let (rsdp, tables) = (&memory[&0xf_5000], &memory[&0x7fe_0000]);
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(rsdp)), (&b"RSD PTR "[..], 0, 0));
        let table = |address: usize| {
            let start = address - 0x7fe_0000;
            let bytes = &tables[start..start + word(tables, start + 4)];
            assert!(bytes.starts_with(b"FACS") || sum(bytes) == 0, "{:?}", &bytes[..4]);
            bytes
        };
        let xsdt = table(word(rsdp, 24));
        let listed: Vec<_> = xsdt[36..].chunks(8).map(|entry| table(word(entry, 0))).collect();
        assert_eq!(listed.iter().map(|table| &table[..4]).collect::<Vec<_>>(), [b"FACP", b"APIC", b"MCFG", b"HPET"]);
        let rsdt = table(word(rsdp, 16));
        assert_eq!((&rsdt[..4], word(rsdt, 36)), (&b"RSDT"[..], word(xsdt, 36)));
        let fadt = listed[0];
        assert_eq!(&table(word(fadt, 36))[..4], b"FACS");
        assert_eq!(&table(word(fadt, 40))[..4], b"DSDT");
        assert_eq!(word(fadt, 40), word(fadt, 140));
    }
}
