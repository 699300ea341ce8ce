//! Segment attributes of the VMCB (APM vol. 2, "VMCB Layout, State Save Area"): the descriptor's bits 47:40 and 55:52 in
//! twelve bits. A segment that is not usable is one that is not present.

use crate::segment::AccessRights;

/// Bit 7: present.
const PRESENT: u16 = 1 << 7;

/// Attributes as the VMCB has them.
pub const fn attributes(rights: AccessRights) -> u16 {
    if rights.is_unusable() {
        return 0;
    }
    ((rights.0 & 0xff | rights.0 >> 4 & 0xf00) & 0xfff) as u16
}

/// The rights that `attributes` give.
pub const fn rights(attributes: u16) -> AccessRights {
    let low = attributes as u32 & 0xff;
    let high = (attributes as u32 & 0xf00) << 4;
    let unusable = if attributes & PRESENT == 0 { AccessRights::UNUSABLE.0 } else { 0 };
    AccessRights(low | high | unusable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_survive_the_round_trip() {
        let all = [
            AccessRights::CODE64,
            AccessRights::CODE32,
            AccessRights::DATA32,
            AccessRights::TSS_BUSY,
            AccessRights::LDT,
            AccessRights(0xf3),
        ];
        for given in all {
            assert_eq!(rights(attributes(given)), given);
        }
        assert!(rights(attributes(AccessRights::UNUSABLE)).is_unusable());
    }

    #[test]
    fn attributes_are_those_of_the_manual() {
        // L is bit 9, D bit 10, G bit 11.
        assert_eq!(attributes(AccessRights::CODE64), 0xa9b);
        assert_eq!(attributes(AccessRights::CODE32), 0xc9b);
        assert_eq!(attributes(AccessRights::TSS_BUSY), 0x8b);
    }
}
