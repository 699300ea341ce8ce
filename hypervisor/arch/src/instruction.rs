//! Instructions that a processor can take away from a guest, though no bit of a control register does.

use bitflags::bitflags;

bitflags! {
    /// Instructions without a control bit of their own that a vendor can make #UD in a guest.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Instructions: u8 {
        /// INVPCID.
        const INVPCID = 1 << 0;
        /// RDRAND.
        const RDRAND = 1 << 1;
        /// RDSEED.
        const RDSEED = 1 << 2;
    }
}
