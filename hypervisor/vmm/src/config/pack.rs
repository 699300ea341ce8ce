//! Bundles as bytes: packed on the host, unpacked in the hypervisor.

use alloc::vec::Vec;
use core::fmt;

use super::{BLOB_ALIGN, Blob, Bundle, MAGIC};

/// Magic, length of the description, checksum. Unit: bytes.
const HEADER_SIZE: usize = 16;

/// Bytes that are no bundle, or a description that cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleError {
    /// Shorter than a header. Unit: bytes.
    NoHeader(usize),
    /// Other first bytes: no bundle, or one of another version.
    Magic([u8; 8]),
    /// What is behind the header is not what was packed.
    Damaged {
        /// The CRC-32 that the header says.
        packed: u32,
        /// The one of what is there.
        found: u32,
    },
    /// The description would end behind the bundle. Unit: bytes, both.
    Truncated {
        /// What the header says.
        description: u64,
        /// What there is behind the header.
        available: u64,
    },
    /// The description cannot be decoded or encoded.
    Description,
    /// The description is too long for the header. Unit: bytes.
    TooLong(usize),
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BundleError::NoHeader(length) => write!(f, "{length} bytes hold no header"),
            BundleError::Magic(found) => {
                write!(f, "it starts with {}, not with {}", found.escape_ascii(), MAGIC.escape_ascii())
            }
            BundleError::Damaged { packed, found } => {
                write!(f, "it is damaged: its checksum is {found:#010x}, not {packed:#010x}")
            }
            BundleError::Truncated { description, available } => {
                write!(f, "its description of {description} bytes is cut off after {available}")
            }
            BundleError::Description => write!(f, "its description cannot be decoded"),
            BundleError::TooLong(length) => write!(f, "a description of {length} bytes is too long"),
        }
    }
}

impl core::error::Error for BundleError {}

/// What a bundle begins with.
struct Header {
    /// Of the description. Unit: bytes.
    length: u32,
    /// Of all that follows the header.
    checksum: u32,
}

impl Header {
    fn of(bytes: &[u8]) -> Result<Header, BundleError> {
        let header = bytes.first_chunk::<HEADER_SIZE>().ok_or(BundleError::NoHeader(bytes.len()))?;
        let [m0, m1, m2, m3, m4, m5, m6, m7, l0, l1, l2, l3, c0, c1, c2, c3] = *header;
        let magic = [m0, m1, m2, m3, m4, m5, m6, m7];
        if magic != MAGIC {
            return Err(BundleError::Magic(magic));
        }
        Ok(Header { length: u32::from_le_bytes([l0, l1, l2, l3]), checksum: u32::from_le_bytes([c0, c1, c2, c3]) })
    }
}

/// Whether all that follows the header of the bundle `bytes` is as it was packed: firmware may give less of a file than it
/// says.
///
/// # Errors
/// [`BundleError::Damaged`], and what is wrong with the header.
pub fn check(bytes: &[u8]) -> Result<(), BundleError> {
    let Header { checksum: packed, .. } = Header::of(bytes)?;
    let found = crc32fast::hash(&bytes[HEADER_SIZE..]);
    if found == packed { Ok(()) } else { Err(BundleError::Damaged { packed, found }) }
}

/// Writes the checksum of what follows the header of the bundle `bytes`; nothing where there is no header.
pub fn seal(bytes: &mut [u8]) {
    if let Some((header, rest)) = bytes.split_first_chunk_mut::<HEADER_SIZE>() {
        header[HEADER_SIZE - 4..].copy_from_slice(&crc32fast::hash(rest).to_le_bytes());
    }
}

/// The description in the bundle `bytes`. What it says of each VM is still to be checked, by [`super::validate`].
///
/// # Errors
/// [`BundleError`].
pub fn parse(bytes: &[u8]) -> Result<Bundle, BundleError> {
    let Header { length, .. } = Header::of(bytes)?;
    let rest = &bytes[HEADER_SIZE..];
    let description = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let description =
        description.ok_or(BundleError::Truncated { description: u64::from(length), available: rest.len() as u64 })?;
    match postcard::take_from_bytes(description) {
        Ok((bundle, [])) => Ok(bundle),
        _ => Err(BundleError::Description),
    }
}

/// The bytes of `blob` in the bundle `bytes`; `None` where not all of it is inside.
pub fn blob_bytes(bytes: &[u8], blob: Blob) -> Option<&[u8]> {
    let start = usize::try_from(blob.offset).ok()?;
    let end = start.checked_add(usize::try_from(blob.length).ok()?)?;
    bytes.get(start..end)
}

/// Packs `images` with the description that `describe` makes of where they are, in the same order.
///
/// # Errors
/// [`BundleError::Description`], [`BundleError::TooLong`].
pub fn encode(images: &[&[u8]], describe: impl Fn(&[Blob]) -> Bundle) -> Result<Vec<u8>, BundleError> {
    // Where the images start depends on the length of the description, which depends on where the images start,
    // because small numbers are encoded shorter. So room is made until it fits.
    let mut room = BLOB_ALIGN;
    loop {
        let mut next = room;
        let mut blobs = Vec::with_capacity(images.len());
        for image in images {
            let length = image.len() as u64;
            blobs.push(Blob { offset: next, length });
            next = (next + length).next_multiple_of(BLOB_ALIGN);
        }
        let description = postcard::to_allocvec(&describe(&blobs)).map_err(|_| BundleError::Description)?;
        let length = u32::try_from(description.len()).map_err(|_| BundleError::TooLong(description.len()))?;
        if (HEADER_SIZE + description.len()) as u64 > room {
            room += BLOB_ALIGN;
            continue;
        }
        let mut bytes = Vec::from(MAGIC);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        bytes.extend_from_slice(&description);
        for (image, blob) in images.iter().zip(&blobs) {
            // Offsets into bytes that are in memory.
            let offset = usize::try_from(blob.offset).map_err(|_| BundleError::TooLong(bytes.len()))?;
            bytes.resize(offset, 0);
            bytes.extend_from_slice(image);
        }
        seal(&mut bytes);
        return Ok(bytes);
    }
}
