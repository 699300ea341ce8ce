//! The guest's own paging, walked in software: from a linear to a guest-physical address with the rights that the
//! access needs (SDM vol. 3, "Paging": "4-Level Paging and 5-Level Paging", "PAE Paging", "32-Bit Paging", "Access
//! Rights").
//!
//! Used for what the processor leaves to us: fetching an instruction that exited, and its operands in memory. Accessed
//! and dirty flags are set as the processor sets them. The page-directory pointers of PAE paging are read from memory
//! each time, not kept from the last load of CR3.

use lamina_arch::addr::{Gla, Gpa};
use lamina_arch::cr::{Cr0, Cr4, Efer};
use lamina_arch::event::GuestFault;

/// The registers that decide how a linear address is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// CR0 as the guest reads it.
    pub cr0: Cr0,
    /// CR3.
    pub cr3: u64,
    /// CR4 as the guest reads it.
    pub cr4: Cr4,
    /// IA32_EFER.
    pub efer: Efer,
    /// RFLAGS.AC: lifts SMAP.
    pub alignment_check: bool,
    /// PKRU, where CR4.PKE and IA32_EFER.LMA are set: of each key two bits, no data access and no write.
    pub pkru: Option<u32>,
    /// Physical-address width: what lies above it in an entry is reserved. Unit: bits, 32 to 52.
    pub physical_bits: u32,
}

/// The guest's paging structures.
pub trait Tables {
    /// Reads an entry of `width` bytes (4 or 8), little-endian; `None` where there is no memory: it is all ones then.
    fn entry(&mut self, at: Gpa, width: usize) -> Option<u64>;

    /// Sets `flags` (accessed, dirty: bits of the first byte) in the entry at `at`.
    fn mark(&mut self, at: Gpa, flags: u8);
}

/// What kind of access is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// A write (else a read or a fetch).
    pub write: bool,
    /// At CPL 3.
    pub user: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// By the processor itself, to a descriptor: RFLAGS.AC does not lift SMAP.
    pub implicit: bool,
}

impl Access {
    /// An instruction fetch at `cpl`.
    pub const fn fetch(cpl: u8) -> Access {
        Access { write: false, user: cpl == 3, fetch: true, implicit: false }
    }

    /// A data access at `cpl`.
    pub const fn data(cpl: u8, write: bool) -> Access {
        Access { write, user: cpl == 3, fetch: false, implicit: false }
    }

    /// An access to a descriptor, whatever the privilege.
    pub const fn system(write: bool) -> Access {
        Access { write, user: false, fetch: false, implicit: true }
    }
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u8 = 1 << 5;
const DIRTY: u8 = 1 << 6;
const PAGE_SIZE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Page-fault error code bits.
mod error {
    pub const PRESENT: u32 = 1;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
    pub const KEY: u32 = 1 << 5;
}

struct Level {
    shift: u32,
    bits: u32,
    /// A page-size bit here maps a page.
    large: bool,
}

const LONG: [Level; 5] = [
    Level { shift: 48, bits: 9, large: false },
    Level { shift: 39, bits: 9, large: false },
    Level { shift: 30, bits: 9, large: true },
    Level { shift: 21, bits: 9, large: true },
    Level { shift: 12, bits: 9, large: false },
];
const PAE: [Level; 3] = [
    Level { shift: 30, bits: 2, large: false },
    Level { shift: 21, bits: 9, large: true },
    Level { shift: 12, bits: 9, large: false },
];
const LEGACY: [Level; 2] = [Level { shift: 22, bits: 10, large: true }, Level { shift: 12, bits: 10, large: false }];

impl Paging {
    const fn is_on(&self) -> bool {
        self.cr0.contains(Cr0::PG)
    }

    /// Translates `address` for `access`, and marks the entries that it used.
    ///
    /// # Errors
    /// The page fault that the processor would raise, with nothing marked. A table outside of memory reads as all ones.
    pub fn translate(&self, address: Gla, access: Access, tables: &mut impl Tables) -> Result<Gpa, GuestFault> {
        if !self.is_on() {
            return Ok(Gpa(address.0 & 0xffff_ffff));
        }
        let long = self.efer.contains(Efer::LMA);
        let (levels, width): (&[Level], usize) = if long {
            (if self.cr4.contains(Cr4::LA57) { &LONG } else { &LONG[1..] }, 8)
        } else if self.cr4.contains(Cr4::PAE) {
            (&PAE, 8)
        } else {
            (&LEGACY, 4)
        };
        let pae_root = levels.len() == 3;
        let mut table = match (long, pae_root) {
            (true, _) => self.cr3 & ADDRESS,
            (false, true) => self.cr3 & 0xffff_ffe0,
            (false, false) => self.cr3 & 0xffff_f000,
        };
        let (mut writable, mut user, mut no_execute) = (true, true, false);
        // Entries to be marked: where, and what they held.
        let mut used = [(Gpa(0), 0); LONG.len()];
        for (depth, level) in levels.iter().enumerate() {
            let index = address.0 >> level.shift & ((1 << level.bits) - 1);
            let at = Gpa(table + index * width as u64);
            let value = tables.entry(at, width).unwrap_or(u64::MAX >> (64 - 8 * width));
            if value & PRESENT == 0 {
                return Err(self.fault(address, access, 0));
            }
            let large = level.large && value & PAGE_SIZE != 0 && (width == 8 || self.cr4.contains(Cr4::PSE));
            // A PDPTE of PAE paging holds no rights and no flags, and its reserved bits were checked when it was loaded.
            if !(pae_root && depth == 0) {
                if value & self.reserved(level, width, large) != 0 {
                    return Err(self.fault(address, access, error::PRESENT | error::RESERVED));
                }
                writable &= value & WRITABLE != 0;
                user &= value & USER != 0;
                no_execute |= width == 8 && value & NO_EXECUTE != 0;
                used[depth] = (at, value);
            }
            if level.shift == 12 || large {
                let key = if self.denied(access, user, value) { error::KEY } else { 0 };
                if key != 0 || !self.allowed(access, writable, user, no_execute) {
                    return Err(self.fault(address, access, error::PRESENT | key));
                }
                for (here, &(at, value)) in used.iter().enumerate().take(depth + 1) {
                    let dirty = if access.write && here == depth { DIRTY } else { 0 };
                    let wanted = ACCESSED | dirty;
                    if value != 0 && value & u64::from(wanted) != u64::from(wanted) {
                        tables.mark(at, wanted);
                    }
                }
                let size = 1u64 << level.shift;
                let base = if width == 4 {
                    // PSE-36: bits 20:13 of a 4 MiB page's entry are bits 39:32 of its address.
                    let high = if large { (value >> 13 & 0xff) << 32 } else { 0 };
                    (value & 0xffff_f000) & !(size - 1) | high
                } else {
                    value & ADDRESS & !(size - 1)
                };
                return Ok(Gpa(base | address.0 & (size - 1)));
            }
            table = if width == 4 { value & 0xffff_f000 } else { value & ADDRESS };
        }
        Err(self.fault(address, access, 0))
    }

    /// The bits that must be clear in a present entry of `level`.
    const fn reserved(&self, level: &Level, width: usize, large: bool) -> u64 {
        if width == 4 {
            // PSE-36 uses bits 20:13 of a 4 MiB page's entry, as far as there are such addresses.
            let above = if self.physical_bits >= 40 { 0 } else { 0xff & !((1 << (self.physical_bits - 32)) - 1) };
            return if large { 1 << 21 | above << 13 } else { 0 };
        }
        let mut bits = ADDRESS & !((1 << self.physical_bits) - 1);
        if !self.efer.contains(Efer::NXE) {
            bits |= NO_EXECUTE;
        }
        if !self.efer.contains(Efer::LMA) {
            bits |= 0x7ff0_0000_0000_0000;
        }
        if large {
            // Below the address there is the PAT bit, 12, and then nothing.
            bits |= ((1 << level.shift) - 1) & !0x1fff;
        } else if !level.large && level.shift != 12 {
            bits |= PAGE_SIZE;
        }
        bits
    }

    const fn allowed(&self, access: Access, writable: bool, user: bool, no_execute: bool) -> bool {
        if access.fetch {
            let smep = !access.user && user && self.cr4.contains(Cr4::SMEP);
            return !no_execute && !smep && (user || !access.user);
        }
        if access.user {
            return user && (writable || !access.write);
        }
        let smap = user && self.cr4.contains(Cr4::SMAP) && (access.implicit || !self.alignment_check);
        !smap && (!access.write || writable || !self.cr0.contains(Cr0::WP))
    }

    /// Whether the protection key in the entry of a page keeps this access out, whatever the rights say (SDM vol. 3,
    /// "Protection Keys").
    const fn denied(&self, access: Access, user: bool, entry: u64) -> bool {
        let Some(pkru) = self.pkru else { return false };
        let rights = pkru >> ((entry >> 59 & 0xf) * 2);
        let write = access.write && (access.user || self.cr0.contains(Cr0::WP));
        user && !access.fetch && (rights & 1 != 0 || write && rights & 2 != 0)
    }

    const fn fault(&self, address: Gla, access: Access, present: u32) -> GuestFault {
        let mut code = present;
        if access.write {
            code |= error::WRITE;
        }
        if access.user {
            code |= error::USER;
        }
        if access.fetch && (self.efer.contains(Efer::NXE) || self.cr4.contains(Cr4::SMEP)) {
            code |= error::FETCH;
        }
        GuestFault::page_fault(address.0, code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn long() -> Paging {
        Paging {
            cr0: Cr0::PE | Cr0::PG | Cr0::WP,
            cr3: 0x1000,
            cr4: Cr4::PAE | Cr4::SMEP | Cr4::SMAP,
            efer: Efer::LME | Efer::LMA | Efer::NXE,
            alignment_check: false,
            pkru: None,
            physical_bits: 40,
        }
    }

    #[derive(Default)]
    struct Memory(HashMap<u64, u64>, Vec<(u64, u8)>);

    impl Tables for Memory {
        fn entry(&mut self, at: Gpa, _: usize) -> Option<u64> {
            Some(self.0.get(&at.0).copied().unwrap_or(0))
        }

        fn mark(&mut self, at: Gpa, flags: u8) {
            self.1.push((at.0, flags));
        }
    }

    fn walk(p: &Paging, table: &[(u64, u64)], address: u64, access: Access) -> Result<Gpa, GuestFault> {
        let mut memory = Memory(table.iter().copied().collect(), Vec::new());
        let answer = p.translate(Gla(address), access, &mut memory);
        assert!(answer.is_ok() || memory.1.is_empty(), "a walk that fails marks nothing");
        answer
    }

    fn marked(p: &Paging, table: &[(u64, u64)], address: u64, access: Access) -> Vec<(u64, u8)> {
        let mut memory = Memory(table.iter().copied().collect(), Vec::new());
        p.translate(Gla(address), access, &mut memory).expect("the walk succeeds");
        memory.1
    }

    const KERNEL_READ: Access = Access { write: false, user: false, fetch: false, implicit: false };
    const KERNEL_WRITE: Access = Access { write: true, user: false, fetch: false, implicit: false };
    const USER_READ: Access = Access { write: false, user: true, fetch: false, implicit: false };
    const KERNEL_FETCH: Access = Access { write: false, user: false, fetch: true, implicit: false };

    #[test]
    fn four_levels_and_each_page_size() {
        let table = [
            (0x1000, 0x2003),
            (0x2000, 0x3003),
            (0x2008, 0x4000_0083),
            (0x3000, 0x4003),
            (0x3008, 0x60_0083),
            (0x4008, 0x9003),
        ];
        assert_eq!(walk(&long(), &table, 0x1234, KERNEL_READ), Ok(Gpa(0x9234)));
        assert_eq!(walk(&long(), &table, 0x20_1234, KERNEL_READ), Ok(Gpa(0x60_1234)));
        assert_eq!(walk(&long(), &table, 0x4000_1234, KERNEL_READ), Ok(Gpa(0x4000_1234)));
        assert_eq!(walk(&long(), &table, 0, KERNEL_READ), Err(GuestFault::page_fault(0, 0)));
    }

    #[test]
    fn rights_are_the_and_of_all_levels() {
        // Writable and user at the leaf only.
        let table = [(0x1000, 0x2001), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, 0x9007)];
        assert_eq!(walk(&long(), &table, 0, KERNEL_WRITE), Err(GuestFault::page_fault(0, 3)));
        assert_eq!(walk(&long(), &table, 0, USER_READ), Err(GuestFault::page_fault(0, 5)));
        let mut off = long();
        off.cr0 = Cr0::PE | Cr0::PG;
        assert_eq!(walk(&off, &table, 0, KERNEL_WRITE), Ok(Gpa(0x9000)));
    }

    #[test]
    fn smep_smap_and_no_execute() {
        let table = [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, 0x9007)];
        assert_eq!(walk(&long(), &table, 0, KERNEL_FETCH), Err(GuestFault::page_fault(0, 0x11)));
        assert_eq!(walk(&long(), &table, 0, KERNEL_READ), Err(GuestFault::page_fault(0, 1)));
        let mut lifted = long();
        lifted.alignment_check = true;
        assert_eq!(walk(&lifted, &table, 0, KERNEL_READ), Ok(Gpa(0x9000)));
        let nx = [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x4000, 0x9003 | NO_EXECUTE)];
        assert_eq!(walk(&long(), &nx, 0, KERNEL_FETCH), Err(GuestFault::page_fault(0, 0x11)));
        assert_eq!(walk(&long(), &nx, 0, KERNEL_READ), Ok(Gpa(0x9000)));
    }

    #[test]
    fn protection_keys_keep_data_accesses_to_user_pages_out() {
        const USER_WRITE: Access = Access { write: true, ..USER_READ };
        let keyed = |user: u64| {
            let user = user << 2;
            [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, 3 << 59 | 0x9003 | user)]
        };
        let with = |pkru: u32, wp: bool| {
            let mut paging =
                Paging { pkru: Some(pkru << 6), alignment_check: true, cr4: Cr4::PAE | Cr4::PKE, ..long() };
            paging.cr0.set(Cr0::WP, wp);
            paging
        };
        let denied = |code| Err(GuestFault::page_fault(0, code));
        let page = Ok(Gpa(0x9000));
        for (pkru, wp, access, expected) in [
            (0, true, USER_WRITE, page),
            (1, true, USER_READ, denied(0x25)),
            (1, true, KERNEL_READ, denied(0x21)),
            (1, true, KERNEL_FETCH, page),
            (2, true, USER_READ, page),
            (2, true, USER_WRITE, denied(0x27)),
            (2, true, KERNEL_WRITE, denied(0x23)),
            (2, false, KERNEL_WRITE, page),
        ] {
            assert_eq!(walk(&with(pkru, wp), &keyed(1), 0, access), expected, "{pkru} {wp} {access:?}");
        }
        // A supervisor's page has no key, and neither has any where the keys are off.
        assert_eq!(walk(&with(3, true), &keyed(0), 0, KERNEL_WRITE), page);
        assert_eq!(walk(&Paging { pkru: None, ..with(3, true) }, &keyed(1), 0, USER_WRITE), page);
    }

    #[test]
    fn pae_and_legacy_paging() {
        let mut p = long();
        p.efer = Efer::NXE;
        p.cr3 = 0x1020;
        let table = [(0x1038, 0x2001), (0x2000, 0x4003), (0x4008, 0x9003)];
        assert_eq!(walk(&p, &table, 0xc000_1004, KERNEL_WRITE), Ok(Gpa(0x9004)));
        p.cr4 = Cr4::PSE;
        p.cr3 = 0x1000;
        let table = [(0x1000, 0x2003), (0x1004, 0x0080_2083), (0x2004, 0x9003)];
        assert_eq!(walk(&p, &table, 0x1004, KERNEL_WRITE), Ok(Gpa(0x9004)));
        assert_eq!(walk(&p, &table, 0x40_0010, KERNEL_WRITE), Ok(Gpa(0x1_0080_0010)));
    }

    #[test]
    fn entries_are_marked_as_the_processor_marks_them() {
        let table = [(0x1000, 0x2003), (0x2000, 0x3023), (0x3000, 0x4003), (0x4000, 0x9003), (0x4008, 0x9063)];
        let read = [(0x1000, ACCESSED), (0x3000, ACCESSED), (0x4000, ACCESSED)];
        assert_eq!(marked(&long(), &table, 0, KERNEL_READ), read);
        let write = [(0x1000, ACCESSED), (0x3000, ACCESSED), (0x4000, ACCESSED | DIRTY)];
        assert_eq!(marked(&long(), &table, 0, KERNEL_WRITE), write);
        assert_eq!(marked(&long(), &table, 0x1000, KERNEL_WRITE), read[..2]);
        let mut pae = long();
        pae.efer = Efer::NXE;
        let table = [(0x1000, 0x2001), (0x2000, 0x4003), (0x4000, 0x9003)];
        assert_eq!(marked(&pae, &table, 0, KERNEL_READ), [(0x2000, ACCESSED), (0x4000, ACCESSED)]);
    }

    #[test]
    fn reserved_bits_fault() {
        let good = [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x4000, 0x9003), (0x2008, 0x4000_1083)];
        assert!(walk(&long(), &good, 0, KERNEL_READ).is_ok());
        assert_eq!(walk(&long(), &good, 0x4000_0000, KERNEL_READ), Ok(Gpa(0x4000_0000)));
        let cases = [
            // Above the physical-address width; a page-size bit in a PML4E; an unaligned 2 MiB page; 1 GiB page.
            (0x4000, 0x100_0000_9003, 0),
            (0x1000, 0x2083, 0),
            (0x3008, 0x60_2083, 0x20_0000),
            (0x2008, 0x4020_0083, 0x4000_0000),
        ];
        for (at, value, address) in cases {
            let mut table: HashMap<u64, u64> = good.into_iter().collect();
            table.insert(at, value);
            let table: Vec<_> = table.into_iter().collect();
            let fault = Err(GuestFault::page_fault(address, 9));
            assert_eq!(walk(&long(), &table, address, KERNEL_READ), fault, "{value:#x}");
        }
        let mut without = long();
        without.efer = Efer::LME | Efer::LMA;
        let table = [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x4000, 0x9003 | NO_EXECUTE)];
        assert_eq!(walk(&without, &table, 0, KERNEL_WRITE), Err(GuestFault::page_fault(0, 11)));
        let mut legacy = long();
        legacy.efer = Efer::NXE;
        legacy.cr4 = Cr4::PSE;
        assert_eq!(walk(&legacy, &[(0x1000, 0x60_0083)], 0, KERNEL_READ), Err(GuestFault::page_fault(0, 9)));
    }

    #[test]
    fn smap_holds_for_what_the_processor_does_by_itself() {
        let table = [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, 0x9007)];
        let mut lifted = long();
        lifted.alignment_check = true;
        assert!(walk(&lifted, &table, 0, Access::data(0, true)).is_ok());
        assert_eq!(walk(&lifted, &table, 0, Access::system(true)), Err(GuestFault::page_fault(0, 3)));
    }

    #[test]
    fn without_paging_an_address_is_itself() {
        let mut p = long();
        p.cr0 = Cr0::PE;
        assert_eq!(walk(&p, &[], 0xfee0_0000, USER_READ), Ok(Gpa(0xfee0_0000)));
    }
}
