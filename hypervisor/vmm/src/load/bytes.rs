//! Little-endian fields in bytes that somebody else made.

use super::LoadError;

/// The `N` bytes of `image` at `offset`; `what` names them in the error.
///
/// # Errors
/// [`LoadError::Truncated`].
pub fn array_at<const N: usize>(image: &[u8], offset: usize, what: &'static str) -> Result<[u8; N], LoadError> {
    let found = image.get(offset..).and_then(|rest| rest.first_chunk::<N>());
    found.copied().ok_or(LoadError::Truncated {
        what,
        needed: (offset as u64).saturating_add(N as u64),
        length: image.len() as u64,
    })
}

/// The byte of `image` at `offset`.
///
/// # Errors
/// [`LoadError::Truncated`].
pub fn u8_at(image: &[u8], offset: usize, what: &'static str) -> Result<u8, LoadError> {
    array_at::<1>(image, offset, what).map(|[byte]| byte)
}

/// The 16-bit field of `image` at `offset`.
///
/// # Errors
/// [`LoadError::Truncated`].
pub fn u16_at(image: &[u8], offset: usize, what: &'static str) -> Result<u16, LoadError> {
    array_at(image, offset, what).map(u16::from_le_bytes)
}

/// The 32-bit field of `image` at `offset`.
///
/// # Errors
/// [`LoadError::Truncated`].
pub fn u32_at(image: &[u8], offset: usize, what: &'static str) -> Result<u32, LoadError> {
    array_at(image, offset, what).map(u32::from_le_bytes)
}

/// The 64-bit field of `image` at `offset`.
///
/// # Errors
/// [`LoadError::Truncated`].
pub fn u64_at(image: &[u8], offset: usize, what: &'static str) -> Result<u64, LoadError> {
    array_at(image, offset, what).map(u64::from_le_bytes)
}

/// The `length` bytes of `image` from `offset`.
///
/// # Errors
/// [`LoadError::Truncated`].
pub fn slice_at<'a>(image: &'a [u8], offset: u64, length: u64, what: &'static str) -> Result<&'a [u8], LoadError> {
    let end = offset.saturating_add(length);
    let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
    range.and_then(|(start, end)| image.get(start..end)).ok_or(LoadError::Truncated {
        what,
        needed: end,
        length: image.len() as u64,
    })
}

/// The low 32 bits of `value` as a field.
pub fn low32(value: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = value.to_le_bytes();
    [a, b, c, d]
}

/// Puts `field` into `bytes` at `offset`, where there is room for it.
pub fn put(bytes: &mut [u8], offset: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(offset..).and_then(|rest| rest.get_mut(..field.len())) {
        place.copy_from_slice(field);
    }
}
