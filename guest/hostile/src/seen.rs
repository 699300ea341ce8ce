//! What a case saw.

use core::fmt;

use guest_rt::trap::Fault;

use crate::engine::Ran;

/// What a case saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The instructions ran to their end.
    Completes,
    /// An exception.
    Fault(Fault),
    /// Everything was as the architecture says.
    Behaves,
    /// Something was not: what, what was there, and what should have been.
    Deviates(&'static str, u64, u64),
    /// The processor does not have what the case needs.
    Lacking(&'static str),
}

/// Mnemonics of the exceptions by vector.
const NAMES: [&str; 22] = [
    "DE", "DB", "NMI", "BP", "OF", "BR", "UD", "NM", "DF", "9", "TS", "NP", "SS", "GP", "PF", "15", "MF", "AC", "MC",
    "XM", "VE", "CP",
];
/// Those with an error code.
const WITH_ERROR: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21;

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Seen::Completes => write!(f, "completes"),
            Seen::Fault(fault) => {
                write!(f, "#{}", NAMES.get(usize::from(fault.vector)).unwrap_or(&"?"))?;
                if WITH_ERROR.checked_shr(fault.vector.into()).unwrap_or(0) & 1 != 0 {
                    write!(f, "({:#x})", fault.error)?;
                }
                Ok(())
            }
            Seen::Behaves => write!(f, "behaves"),
            Seen::Deviates(what, found, wanted) => write!(f, "deviates: {what} is {found:#x}, not {wanted:#x}"),
            Seen::Lacking(what) => write!(f, "lacks {what}"),
        }
    }
}

impl From<Ran> for Seen {
    fn from(ran: Ran) -> Seen {
        ran.fault.map_or(Seen::Completes, Seen::Fault)
    }
}

impl<T> From<Result<T, Fault>> for Seen {
    fn from(result: Result<T, Fault>) -> Seen {
        result.map_or_else(Seen::Fault, |_| Seen::Completes)
    }
}

/// What a check of several things says.
pub type Checked = Result<(), Seen>;

/// `Behaves`, or the first thing that does not.
pub fn all(checks: impl FnOnce() -> Checked) -> Seen {
    checks().err().unwrap_or(Seen::Behaves)
}

/// One check of several.
pub fn expect(what: &'static str, found: u64, wanted: u64) -> Checked {
    if found == wanted { Ok(()) } else { Err(Seen::Deviates(what, found, wanted)) }
}

/// One check of several: instructions ended so.
pub fn expect_end(ran: &Ran, wanted: Seen) -> Checked {
    let seen = Seen::from(*ran);
    if seen == wanted { Ok(()) } else { Err(seen) }
}

/// #GP(0).
pub const GP0: Fault = Fault { vector: 13, error: 0 };
/// #UD.
pub const UD: Fault = Fault { vector: 6, error: 0 };

/// One check of a sweep: it worked, or was refused with #GP(0), and nothing else.
pub fn works_or_gp0(item: u64, fault: Option<Fault>) -> Checked {
    match fault {
        None | Some(GP0) => Ok(()),
        Some(other) => Err(Seen::Deviates("vector and item", u64::from(other.vector), item)),
    }
}
