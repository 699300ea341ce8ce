//! The guest's own paging, walked in software: from a linear to a guest-physical address with the rights that the
//! access needs (SDM vol. 3, "Paging": "4-Level Paging and 5-Level Paging", "PAE Paging", "32-Bit Paging", "Access
//! Rights").
//!
//! Used for what the processor leaves to us: fetching an instruction that exited, and the memory side of INS and
//! OUTS. Accessed and dirty flags are not set here.

use lamina_arch::addr::{Gla, Gpa};
use lamina_arch::cr::{Cr0, Cr4, Efer};
use lamina_arch::event::GuestFault;

/// The registers that decide how a linear address is translated.
#[derive(Clone, Copy, Debug)]
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
}

impl Access {
    /// An instruction fetch at `cpl`.
    pub const fn fetch(cpl: u8) -> Access {
        Access { write: false, user: cpl == 3, fetch: true }
    }

    /// A data access at `cpl`.
    pub const fn data(cpl: u8, write: bool) -> Access {
        Access { write, user: cpl == 3, fetch: false }
    }
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const PAGE_SIZE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Page-fault error code bits.
mod error {
    pub const PRESENT: u32 = 1;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const FETCH: u32 = 1 << 4;
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

    /// Translates `address` for `access`. `entry` reads `width` bytes (4 or 8) of guest-physical memory, little-endian;
    /// `None` where there is no memory.
    ///
    /// # Errors
    /// The page fault that the processor would raise. A table outside of memory reads as all ones there; here it
    /// counts as not present.
    pub fn translate(
        &self,
        address: Gla,
        access: Access,
        entry: &mut dyn FnMut(Gpa, usize) -> Option<u64>,
    ) -> Result<Gpa, GuestFault> {
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
        let nxe = self.efer.contains(Efer::NXE);
        let (mut writable, mut user, mut no_execute) = (true, true, false);
        for (depth, level) in levels.iter().enumerate() {
            let index = address.0 >> level.shift & ((1 << level.bits) - 1);
            let Some(value) = entry(Gpa(table + index * width as u64), width).filter(|v| v & PRESENT != 0) else {
                return Err(self.fault(address, access, 0));
            };
            // A PDPTE of PAE paging holds no rights.
            if !(pae_root && depth == 0) {
                writable &= value & WRITABLE != 0;
                user &= value & USER != 0;
                no_execute |= width == 8 && nxe && value & NO_EXECUTE != 0;
            }
            let last = level.shift == 12;
            let large = level.large && value & PAGE_SIZE != 0 && (width == 8 || self.cr4.contains(Cr4::PSE));
            if last || large {
                if !self.allowed(access, writable, user, no_execute) {
                    return Err(self.fault(address, access, error::PRESENT));
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

    const fn allowed(&self, access: Access, writable: bool, user: bool, no_execute: bool) -> bool {
        if access.fetch {
            let smep = !access.user && user && self.cr4.contains(Cr4::SMEP);
            return !no_execute && !smep && (user || !access.user);
        }
        if access.user {
            return user && (writable || !access.write);
        }
        let smap = user && self.cr4.contains(Cr4::SMAP) && !self.alignment_check;
        !smap && (!access.write || writable || !self.cr0.contains(Cr0::WP))
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
        }
    }

    fn walk(p: &Paging, table: &[(u64, u64)], address: u64, access: Access) -> Result<Gpa, GuestFault> {
        let memory: HashMap<u64, u64> = table.iter().copied().collect();
        p.translate(Gla(address), access, &mut |gpa, _| Some(memory.get(&gpa.0).copied().unwrap_or(0)))
    }

    const KERNEL_READ: Access = Access { write: false, user: false, fetch: false };
    const KERNEL_WRITE: Access = Access { write: true, user: false, fetch: false };
    const USER_READ: Access = Access { write: false, user: true, fetch: false };
    const KERNEL_FETCH: Access = Access { write: false, user: false, fetch: true };

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
    fn without_paging_an_address_is_itself() {
        let mut p = long();
        p.cr0 = Cr0::PE;
        assert_eq!(walk(&p, &[], 0xfee0_0000, USER_READ), Ok(Gpa(0xfee0_0000)));
    }
}
