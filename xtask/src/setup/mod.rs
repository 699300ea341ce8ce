//! Finds out what is missing on this host and gets it.
//!
//! Owns: system packages ([`apt`]), Debian packages unpacked into the cache ([`debian`], [`archive`]), Rust targets and toolchains
//! ([`rust`]), the image builder ([`boot`]) and the emulator's build ([`bochs`]). Each function looks first, cheaply
//! and without the network, and does nothing when nothing is missing; else it says in one line what it gets and why.

pub mod apt;
pub mod archive;
pub mod bochs;
pub mod boot;
pub mod debian;
pub mod deny;
pub mod rust;

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use thiserror::Error;

use crate::report;

/// Something must be installed and cannot be from here.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct CannotInstall(pub String);

/// Holds a directory of the cache for this process until the result is dropped, so that two do not fill it at once.
fn lock(cache: &Path, what: &str) -> Result<File> {
    let path = cache.join(format!("{what}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        report::say(format_args!("waiting for another xtask that sets up {what}"));
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// A short name for a text that must not change unnoticed (FNV-1a, 64 bits): inputs of what is cached.
pub fn fingerprint(parts: &[&[u8]]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        // The length goes in first, so that moving a byte from one part to the next changes the result.
        for byte in (part.len() as u64).to_le_bytes().iter().chain(part.iter()) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::fingerprint;

    #[test]
    fn fingerprints_differ_where_their_parts_do() {
        assert_eq!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"ab", b"c"]));
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
        assert_ne!(fingerprint(&[b"ab"]), fingerprint(&[b"ab", b""]));
    }
}
