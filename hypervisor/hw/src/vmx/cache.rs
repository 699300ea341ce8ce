//! The registers of the VMCS that handlers ask for: read once per exit, written back once per entry.

use lamina_arch::vmx::field::{self, Field, Natural, ReadWrite};

use super::vmcs::Current;

/// A cached field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Slot {
    /// GUEST_RIP.
    Rip,
    /// GUEST_RSP.
    Rsp,
    /// GUEST_RFLAGS.
    Rflags,
    /// GUEST_CR0.
    Cr0,
    /// CR0_READ_SHADOW.
    Cr0Shadow,
    /// GUEST_CR3.
    Cr3,
    /// GUEST_CR4.
    Cr4,
    /// CR4_READ_SHADOW.
    Cr4Shadow,
}

const FIELDS: [Field<Natural, ReadWrite>; 8] = [
    field::GUEST_RIP,
    field::GUEST_RSP,
    field::GUEST_RFLAGS,
    field::GUEST_CR0,
    field::CR0_READ_SHADOW,
    field::GUEST_CR3,
    field::GUEST_CR4,
    field::CR4_READ_SHADOW,
];

/// Values of [`Slot`]s, with what is known of them.
#[derive(Debug, Default)]
pub struct Cache {
    values: [u64; FIELDS.len()],
    /// Bit n: slot n is as in the VMCS, or dirty.
    valid: u8,
    /// Bit n: slot n is to be written to the VMCS.
    dirty: u8,
}

impl Cache {
    /// Reads a slot, from the VMCS if need be.
    pub fn read(&mut self, slot: Slot, vmcs: &Current<'_>) -> u64 {
        let (index, bit) = (slot as usize, 1 << slot as u8);
        if self.valid & bit == 0 {
            self.values[index] = vmcs.read(FIELDS[index]);
            self.valid |= bit;
        }
        self.values[index]
    }

    /// Writes a slot; the VMCS gets it from [`Cache::write_back`].
    pub const fn write(&mut self, slot: Slot, value: u64) {
        let bit = 1 << slot as u8;
        self.values[slot as usize] = value;
        self.valid |= bit;
        self.dirty |= bit;
    }

    /// Writes what is dirty.
    pub fn write_back(&mut self, vmcs: &mut Current<'_>) {
        let mut dirty = self.dirty;
        while dirty != 0 {
            let index = dirty.trailing_zeros() as usize;
            vmcs.write(FIELDS[index], self.values[index]);
            dirty &= dirty - 1;
        }
        self.dirty = 0;
    }

    /// The guest has run: nothing is known any more.
    pub const fn forget(&mut self) {
        self.valid = 0;
    }
}
