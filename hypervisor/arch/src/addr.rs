//! Address types. A guest's address and the machine's are different types and never turn into pointers here.

use core::fmt;
use core::ops::{Add, Sub};

/// Size of a small page. Unit: bytes.
pub const PAGE_4K: u64 = 4 << 10;
/// Size of a large page. Unit: bytes.
pub const PAGE_2M: u64 = 2 << 20;
/// Size of a huge page. Unit: bytes.
pub const PAGE_1G: u64 = 1 << 30;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The offset of the address within an aligned block of `size` bytes (a power of two).
            pub const fn offset_in(self, size: u64) -> u64 {
                self.0 & (size - 1)
            }

            /// Whether the address is a multiple of `size` (a power of two).
            pub const fn is_aligned(self, size: u64) -> bool {
                self.offset_in(size) == 0
            }

            /// The start of the aligned block of `size` bytes (a power of two) that holds the address.
            pub const fn align_down(self, size: u64) -> Self {
                Self(self.0 & !(size - 1))
            }

            /// The address `bytes` further on, or `None` where that would wrap.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        impl Add<u64> for $name {
            type Output = Self;
            fn add(self, bytes: u64) -> Self {
                Self(self.0 + bytes)
            }
        }

        impl Sub<$name> for $name {
            type Output = u64;
            fn sub(self, other: Self) -> u64 {
                self.0 - other.0
            }
        }
    };
}

address! {
    /// Guest-physical address: an allegation of the guest's. Unit: bytes.
    Gpa
}
address! {
    /// Host-physical address: a place in the machine's memory. Unit: bytes.
    Hpa
}
address! {
    /// Guest-linear address: after segmentation, before the guest's paging. Unit: bytes.
    Gla
}

impl Gla {
    /// Whether all bits from the highest of `width` bits up are the same, as linear addresses of that width have it (SDM
    /// vol. 1, "Canonical Addressing"). Unit of `width`: bits, from 1 to 64.
    pub const fn is_canonical(self, width: u32) -> bool {
        let sign = self.0.cast_signed() >> (width - 1);
        sign == 0 || sign == -1
    }
}
