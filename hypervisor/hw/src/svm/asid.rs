//! Which address-space identifier (ASID) a guest has.
//!
//! Owns the choice. A processor tells few guests apart, QEMU's emulation 15: the guests beyond share the last identifier,
//! and each of them begins anew, its translations forgotten, whenever it comes in (APM vol. 2, "TLB Control").

/// The identifier of one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asid {
    /// What the VMCB gets; 0 is the host's.
    pub number: u32,
    /// Another guest may have it too: what was kept under it is forgotten before this one runs again.
    pub shared: bool,
}

impl Asid {
    /// The one of the guest `vm`, from 1, on a processor that has `asids` with the host's; `None` where there is none for
    /// guests.
    pub fn of(vm: u16, asids: u32) -> Option<Asid> {
        let last = asids.checked_sub(1).filter(|&last| last > 0)?;
        Some(Asid { number: u32::from(vm).min(last), shared: u32::from(vm) >= last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn who_has_one_alone_is_never_met_by_who_shares() {
        for asids in [2, 3, 16, 0x8000] {
            let all: Vec<Asid> = (1..=64).map(|vm| Asid::of(vm, asids).unwrap()).collect();
            for (i, a) in all.iter().enumerate() {
                assert!((1..asids).contains(&a.number));
                for (j, b) in all.iter().enumerate().filter(|(j, _)| i != *j) {
                    assert!(a.number != b.number || a.shared && b.shared, "{asids} ASIDs: {i} and {j}");
                }
            }
        }
    }

    #[test]
    fn each_has_its_own_as_long_as_there_are_any() {
        assert_eq!(Asid::of(1, 16), Some(Asid { number: 1, shared: false }));
        assert_eq!(Asid::of(14, 16), Some(Asid { number: 14, shared: false }));
        assert_eq!(Asid::of(15, 16), Some(Asid { number: 15, shared: true }));
        assert_eq!(Asid::of(16, 16), Some(Asid { number: 15, shared: true }));
    }

    #[test]
    fn without_any_there_is_none() {
        assert_eq!(Asid::of(1, 0), None);
        assert_eq!(Asid::of(1, 1), None);
    }
}
