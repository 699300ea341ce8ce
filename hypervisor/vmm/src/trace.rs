//! What a guest could see of each exit: recorded by the run loop, written as lines, read again on the host.
//!
//! Owns the [`Record`] and its text. Vendor-neutral: what the hypervisor had to do for itself (the machine's interrupts,
//! ends of slices, windows) is no record, because a guest cannot see it. Recording changes nothing of what the guest
//! sees but the time that its exits take.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

mod long_way;
mod recorder;

pub use long_way::LongWay;
pub use recorder::{Recorder, Written};
pub(crate) use recorder::{exited, handled, registers};

/// Most records that a VM may be asked for: what a run writes to the serial port is read into memory on the host.
pub const RECORDS_MAX: u32 = 1_000_000;

/// The registers that records speak of, by the names that they have in the text: RSP among the general-purpose ones, in
/// the order of their encodings, then RIP, RFLAGS and the control registers as the guest reads them.
pub const REGISTERS: [&str; 23] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "efer",
];

/// The index of RIP in [`REGISTERS`].
pub const RIP: usize = 16;

/// The values of [`REGISTERS`]. Width: 64 bits each.
pub type Registers = [u64; REGISTERS.len()];

/// The instruction that exited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// How it is decoded. Unit: bits; 16, 32 or 64.
    pub bits: u32,
    /// Its bytes, 1 to 15.
    pub bytes: Vec<u8>,
}

/// Memory that was written on the guest's behalf, by the hypervisor or by a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Guest-physical address.
    pub gpa: u64,
    /// Unit: bytes.
    pub length: u64,
    /// Of the bytes, by [`digest`].
    pub digest: u64,
}

/// One exit and what the guest could see of it, or an interrupt that it got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// What happened, without blanks: `cpuid:1`, `in8:3fd`, `interrupt:20`, …
    pub what: String,
    /// RIP at the exit.
    pub rip: u64,
    /// The instruction, where it was not told before for this RIP.
    pub code: Option<Code>,
    /// Memory that was written, in order.
    pub stores: Vec<Store>,
    /// The event that the guest gets, without blanks: kind, vector, error code.
    pub event: Option<String>,
    /// What the guest itself changed since the last entry: registers at the exit that are not as they were then. Index
    /// in [`REGISTERS`], and value.
    pub computed: Vec<(usize, u64)>,
    /// What was changed for it: registers at the next entry that are not as at the exit.
    pub changed: Vec<(usize, u64)>,
}

/// FNV-1a, 64 bits: small, and enough to tell what differs.
pub fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:x}", self.what, self.rip)?;
        if let Some(code) = &self.code {
            write!(f, " code{}=", code.bits)?;
            code.bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        }
        for Store { gpa, length, digest } in &self.stores {
            write!(f, " store={gpa:x}+{length:x}:{digest:x}")?;
        }
        if let Some(event) = &self.event {
            write!(f, " event={event}")?;
        }
        for (all, sign) in [(&self.computed, ""), (&self.changed, "+")] {
            for (register, value) in all {
                write!(f, " {sign}{}={value:x}", REGISTERS.get(*register).unwrap_or(&"?"))?;
            }
        }
        Ok(())
    }
}

impl Record {
    /// Reads what `Display` wrote; `None` where it is something else.
    pub fn parse(text: &str) -> Option<Record> {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let mut words = text.split(' ');
        let what = words.next().filter(|what| !what.is_empty())?;
        let mut record = Record { what: what.into(), rip: hex(words.next()?)?, ..Record::default() };
        for word in words {
            let (key, value) = word.split_once('=')?;
            if let Some(bits) = key.strip_prefix("code") {
                record.code = Some(Code { bits: bits.parse().ok()?, bytes: bytes(value)? });
            } else if key == "store" {
                let (place, digest) = value.split_once(':')?;
                let (gpa, length) = place.split_once('+')?;
                record.stores.push(Store { gpa: hex(gpa)?, length: hex(length)?, digest: hex(digest)? });
            } else if key == "event" {
                record.event = Some(value.into());
            } else {
                let (all, key) = match key.strip_prefix('+') {
                    Some(key) => (&mut record.changed, key),
                    None => (&mut record.computed, key),
                };
                all.push((REGISTERS.iter().position(|name| *name == key)?, hex(value)?));
            }
        }
        Some(record)
    }
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(core::str::from_utf8(pair).ok()?, 16).ok();
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

/// What stands before a record on the hypervisor's own lines.
pub const PREFIX: &str = "trace ";

/// A line of the hypervisor's for one record of the VM `name`.
pub fn line(name: &str, record: &Record) -> String {
    let mut line = String::new();
    // A string takes everything.
    let _ = write!(line, "{PREFIX}{name} {record}");
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    fn full() -> Record {
        Record {
            what: "in8:3fd".into(),
            rip: 0x10_0123,
            code: Some(Code { bits: 64, bytes: vec![0x0f, 0xa2] }),
            stores: vec![
                Store { gpa: 0x1000, length: 16, digest: digest(b"abc") },
                Store { gpa: 0, length: 1, digest: 0 },
            ],
            event: Some("exception:d/0".into()),
            computed: vec![(1, 7)],
            changed: vec![(0, u64::MAX), (RIP, 0x10_0125)],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for record in [full(), Record { what: "hlt".into(), ..Record::default() }] {
            assert_eq!(Record::parse(&record.to_string()), Some(record));
        }
        assert_eq!(full().to_string().split(' ').next_back(), Some("+rip=100125"));
    }

    #[test]
    fn what_is_no_record_is_none() {
        for text in [
            "",
            "hlt",
            "hlt x",
            "hlt 1 rax",
            "hlt 1 rax=",
            "hlt 1 xyz=1",
            "hlt 1 code64=1",
            "hlt 1 code=00",
            "hlt 1 code64=zz",
            "hlt 1 store=1:2",
            "hlt 1 store=1+2",
            " 1",
            "hlt 1  rax=1",
            "hlt 1 code64=\u{e9}",
        ] {
            assert_eq!(Record::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_digest_is_fnv_1a() {
        // Values of the algorithm's authors.
        assert_eq!(digest(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(digest(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
