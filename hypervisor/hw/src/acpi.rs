//! The host's ACPI tables (ACPI specification, "Root System Description Pointer (RSDP)" to "Extended System Description
//! Table (XSDT)"), as far as the hypervisor needs them.
//!
//! Owns the walk from the RSDP to a table, and the collection of what is wanted of all tables: they can be read while the
//! loader's page tables are current and not later. What a table means is told by the modules that use it. Firmware can be
//! wrong: every length is checked, and what makes no sense is left out.

use lamina_arch::addr::Hpa;

use crate::hpet;
use crate::madt::Madt;
use crate::memory::{DIRECT_MAP_SIZE, direct};
use crate::pm_timer::PmTimer;

/// Header of a table: signature, length, …
pub(crate) const HEADER: usize = 36;
/// Longest table that is believed. Unit: bytes.
const LONGEST: u32 = 1 << 20;
/// Address space of a generic address: memory.
const SPACE_MEMORY: u8 = 0;
/// Address space of a generic address: I/O ports.
const SPACE_IO: u8 = 1;

/// What the tables say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acpi {
    /// Processors and I/O APICs. Where there is no MADT: a PC as they usually are.
    pub madt: Madt,
    /// Where the registers of the HPET are.
    pub hpet: Option<Hpa>,
    /// The ACPI PM timer.
    pub pm_timer: Option<PmTimer>,
    /// Firmware asks for x2APIC mode to be left off.
    pub x2apic_opt_out: bool,
}

/// Reads the tables that `rsdp` leads to.
///
/// # Safety
/// All of physical memory below `mapped` is mapped in the direct map: as the loader maps it, firmware's areas included.
pub unsafe fn read(rsdp: Option<Hpa>, mapped: Hpa) -> Acpi {
    let end = mapped.0.min(DIRECT_MAP_SIZE);
    let bytes = |at: u64, length: u32| -> Option<&'static [u8]> {
        if at == 0 || at.checked_add(u64::from(length))? > end {
            return None;
        }
        // SAFETY: the caller promises that everything below `mapped` is mapped; firmware's tables do not change.
        Some(unsafe { core::slice::from_raw_parts(direct(Hpa(at)), usize::try_from(length).ok()?) })
    };
    collect(&Tables { memory: &bytes, rsdp: rsdp.map_or(0, |at| at.0) })
}

fn collect(tables: &Tables<'_, '_>) -> Acpi {
    Acpi {
        madt: Madt::of(tables.find(*b"APIC")),
        hpet: tables.find(*b"HPET").and_then(hpet::address),
        pm_timer: tables.find(*b"FACP").and_then(PmTimer::of_fadt),
        x2apic_opt_out: tables.find(*b"DMAR").is_some_and(x2apic_opt_out),
    }
}

/// What a DMAR table says of x2APIC mode: bit 1 of its flags is X2APIC_OPT_OUT (Intel Virtualization Technology for
/// Directed I/O, "DMA Remapping Reporting Structure").
fn x2apic_opt_out(dmar: &[u8]) -> bool {
    dmar.get(37).is_some_and(|flags| flags & 2 != 0)
}

/// The tables in physical memory.
struct Tables<'f, 'm> {
    /// So many bytes of memory from an address on, or `None` where they cannot be read.
    memory: &'f dyn Fn(u64, u32) -> Option<&'m [u8]>,
    rsdp: u64,
}

impl<'m> Tables<'_, 'm> {
    fn bytes(&self, at: u64, length: u32) -> Option<&'m [u8]> {
        (self.memory)(at, length)
    }

    /// A whole table, by the length in its header.
    fn table(&self, at: u64) -> Option<&'m [u8]> {
        let length = u32_at(self.bytes(at, 8)?, 4)?;
        if length > LONGEST { None } else { self.bytes(at, length).filter(|table| table.len() >= HEADER) }
    }

    /// The first table with this signature, header included.
    fn find(&self, signature: [u8; 4]) -> Option<&'m [u8]> {
        let root = self.bytes(self.rsdp, 20).filter(|root| root.starts_with(b"RSD PTR "))?;
        // Revision 2 has the 64-bit table beside the 32-bit one.
        let xsdt = if root[15] >= 2 { u64_at(self.bytes(self.rsdp, 36)?, 24).filter(|&at| at != 0) } else { None };
        let (list, width) = match xsdt {
            Some(at) => (self.table(at)?, 8),
            None => (self.table(u64::from(u32_at(root, 16)?))?, 4),
        };
        let entries = list[HEADER..].chunks_exact(width);
        let addresses = entries.filter_map(|e| if width == 8 { u64_at(e, 0) } else { u32_at(e, 0).map(u64::from) });
        addresses.filter_map(|at| self.table(at)).find(|table| table.starts_with(&signature))
    }
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let low = u32_at(bytes, offset)?;
    let high = u32_at(bytes, offset.checked_add(4)?)?;
    Some(u64::from(high) << 32 | u64::from(low))
}

/// The address of a generic address structure at `offset` (ACPI specification, "Generic Address Structure"), where it is
/// in the address space `space` and not 0, which stands for nothing.
fn generic_address(table: &[u8], offset: usize, space: u8) -> Option<u64> {
    let address = u64_at(table, offset.checked_add(4)?)?;
    (*table.get(offset)? == space && address != 0).then_some(address)
}

/// The same, of registers in memory.
pub(crate) fn memory_address(table: &[u8], offset: usize) -> Option<Hpa> {
    generic_address(table, offset, SPACE_MEMORY).map(Hpa)
}

/// The same, of an I/O port.
pub(crate) fn port(table: &[u8], offset: usize) -> Option<u16> {
    generic_address(table, offset, SPACE_IO).and_then(|port| u16::try_from(port).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    const RSDP: u64 = 0x100;
    const RSDT: u64 = 0x200;
    const XSDT: u64 = 0x300;
    const TABLES: u64 = 0x400;

    fn put(memory: &mut [u8], at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap();
        memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut table = vec![0; HEADER];
        table.extend_from_slice(body);
        let length = u32::try_from(table.len()).unwrap();
        table[..4].copy_from_slice(signature);
        table[4..8].copy_from_slice(&length.to_le_bytes());
        table
    }

    /// Memory whose RSDP of `revision` leads to `tables`, by the XSDT too where it has one; the RSDT of revision 2 is
    /// empty, so that it shows which one was read.
    fn memory(revision: u8, tables: &[Vec<u8>]) -> Vec<u8> {
        let mut memory = vec![0; 0x2000];
        let (mut narrow, mut wide) = (Vec::new(), Vec::new());
        for (at, table) in (TABLES..).step_by(0x200).zip(tables) {
            put(&mut memory, at, table);
            narrow.extend(u32::try_from(at).unwrap().to_le_bytes());
            wide.extend(at.to_le_bytes());
        }
        put(&mut memory, RSDP, b"RSD PTR ");
        put(&mut memory, RSDP + 15, &[revision]);
        put(&mut memory, RSDP + 16, &u32::try_from(RSDT).unwrap().to_le_bytes());
        put(&mut memory, RSDP + 24, &XSDT.to_le_bytes());
        put(&mut memory, RSDT, &table(b"RSDT", if revision < 2 { &narrow } else { &[] }));
        put(&mut memory, XSDT, &table(b"XSDT", &wide));
        memory
    }

    fn read(memory: &[u8], rsdp: u64) -> Acpi {
        let bytes = |at: u64, length: u32| {
            let at = usize::try_from(at).ok()?;
            memory.get(at..at.checked_add(usize::try_from(length).ok()?)?)
        };
        collect(&Tables { memory: &bytes, rsdp })
    }

    fn nothing() -> Acpi {
        Acpi { madt: Madt::of(None), hpet: None, pm_timer: None, x2apic_opt_out: false }
    }

    fn hpet_table(space: u8, address: u64) -> Vec<u8> {
        let mut body = vec![1, 0xa2, 0x86, 0x80, space, 64, 0, 0];
        body.extend(address.to_le_bytes());
        body.extend([0, 0, 0, 0]);
        table(b"HPET", &body)
    }

    #[test]
    fn tables_are_found_by_their_signature_by_either_root() {
        let tables =
            [table(b"SSDT", &[0; 9]), table(b"DMAR", &[38, 2]), hpet_table(0, 0xfed0_0000), hpet_table(0, 0xbad0_0000)];
        for revision in [0, 2] {
            let acpi = read(&memory(revision, &tables), RSDP);
            let expected = Acpi { hpet: Some(Hpa(0xfed0_0000)), x2apic_opt_out: true, ..nothing() };
            assert_eq!(acpi, expected, "revision {revision}");
        }
    }

    #[test]
    fn only_the_flag_that_says_so_keeps_x2apic_mode_off() {
        for (flags, opt_out) in [(0, false), (1, false), (2, true), (3, true), (4, false)] {
            assert_eq!(read(&memory(2, &[table(b"DMAR", &[38, flags])]), RSDP).x2apic_opt_out, opt_out, "{flags}");
        }
        assert!(!read(&memory(2, &[table(b"DMAR", &[38])]), RSDP).x2apic_opt_out, "it has no flags");
    }

    #[test]
    fn an_hpet_in_no_memory_is_none() {
        for (space, address) in [(1, 0xfed0_0000), (0, 0)] {
            assert_eq!(read(&memory(2, &[hpet_table(space, address)]), RSDP).hpet, None);
        }
    }

    #[test]
    fn what_leads_nowhere_or_is_cut_off_is_left_out() {
        let good = memory(2, &[hpet_table(0, 0xfed0_0000)]);
        for rsdp in [0, 0x1ff9, 0x2000, u64::MAX] {
            assert_eq!(read(&good, rsdp), nothing(), "{rsdp:#x}");
        }
        let lengths = [0, 7, 35, 36, 40, 44, 51, LONGEST, LONGEST + 1, u32::MAX];
        for (at, length) in [TABLES, XSDT].into_iter().flat_map(|at| lengths.map(|length| (at, length))) {
            let mut bad = good.clone();
            put(&mut bad, at + 4, &length.to_le_bytes());
            let acpi = read(&bad, RSDP);
            // A list that ends behind its first entry is as good as the right one.
            let enough = at == XSDT && [44, 51].contains(&length);
            assert_eq!(acpi == nothing(), !enough, "{at:#x} {length}: {acpi:?}");
        }
        let mut far = good;
        put(&mut far, XSDT + 36, &u64::MAX.to_le_bytes());
        assert_eq!(read(&far, RSDP), nothing());
    }
}
