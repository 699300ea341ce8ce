//! What can be told of firmware and of a CD's image before anything runs them.
//!
//! Owns the checks that the host and the hypervisor both make. Never says that an image works: only whoever runs it
//! finds out.

use core::fmt;

use lamina_arch::addr::PAGE_4K;

use crate::memory::ROM_MAX;

/// Size of a CD's blocks. Unit: bytes.
const CD_BLOCK: u64 = 2048;
/// Where an ISO 9660 volume says that it is one (ECMA-119, "Volume Descriptors": sector 16, "Standard Identifier").
const ISO_IDENTIFIER: core::ops::Range<usize> = 0x8001..0x8006;
/// The most blocks that the commands of a drive can count.
const CD_BLOCKS_MAX: u64 = u32::MAX as u64;
/// First bytes of an option ROM; the next one is its length in blocks of 512 bytes.
const OPTION_ROM_SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// Unit of an option ROM's length. Unit: bytes.
const OPTION_ROM_BLOCK: usize = 512;
/// Room for a VGA BIOS: 0xc0000 to 0xcffff. Unit: bytes.
const VGA_BIOS_MAX: usize = 64 << 10;

/// What is wrong with a ROM or a CD's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediumError {
    /// There is nothing in it.
    Empty,
    /// Firmware of this length has no place. Unit: bytes.
    FirmwareSize(u64),
    /// A CD's image is not a whole number of blocks. Unit: bytes.
    CdSize(u64),
    /// A CD's image has more blocks than a drive can count. Unit: bytes.
    CdTooLarge(u64),
    /// A CD's image holds no ISO 9660 volume.
    NoVolume,
    /// A VGA BIOS does not start like one, or is not as long as it says.
    NoOptionRom,
    /// A VGA BIOS of this length has no place. Unit: bytes.
    VgaBiosSize(u64),
}

impl fmt::Display for MediumError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MediumError::Empty => write!(f, "it is empty"),
            MediumError::FirmwareSize(length) => {
                let most = ROM_MAX >> 20;
                write!(f, "firmware of {length} bytes: must be a multiple of {PAGE_4K}, and {most} MiB at most")
            }
            MediumError::CdSize(length) => {
                write!(f, "{length} bytes are no image of a CD: not a multiple of {CD_BLOCK}, the size of a block")
            }
            MediumError::CdTooLarge(length) => write!(f, "{length} bytes are more than any CD has"),
            MediumError::NoVolume => write!(f, "no image of a CD: there is no ISO 9660 volume in it"),
            MediumError::NoOptionRom => {
                write!(f, "no VGA BIOS: it does not start with 55 aa and its length in units of {OPTION_ROM_BLOCK}")
            }
            MediumError::VgaBiosSize(length) => {
                write!(f, "a VGA BIOS of {length} bytes: {} KiB is the most", VGA_BIOS_MAX >> 10)
            }
        }
    }
}

impl core::error::Error for MediumError {}

/// Checks a ROM that a VM is to start in: it fits below 4 GiB, in whole pages.
///
/// # Errors
/// [`MediumError`].
pub fn check_firmware(rom: &[u8]) -> Result<(), MediumError> {
    match rom.len() as u64 {
        0 => Err(MediumError::Empty),
        length if !length.is_multiple_of(PAGE_4K) || length > ROM_MAX => Err(MediumError::FirmwareSize(length)),
        _ => Ok(()),
    }
}

/// Checks the image of a CD.
///
/// # Errors
/// [`MediumError`].
pub fn check_cdrom(image: &[u8]) -> Result<(), MediumError> {
    match image.len() as u64 {
        0 => Err(MediumError::Empty),
        length if !length.is_multiple_of(CD_BLOCK) => Err(MediumError::CdSize(length)),
        length if length / CD_BLOCK > CD_BLOCKS_MAX => Err(MediumError::CdTooLarge(length)),
        _ if image.get(ISO_IDENTIFIER) != Some(b"CD001") => Err(MediumError::NoVolume),
        _ => Ok(()),
    }
}

/// Checks a VGA BIOS. Its checksum is its firmware's business.
///
/// # Errors
/// [`MediumError`].
pub fn check_vga_bios(rom: &[u8]) -> Result<(), MediumError> {
    match *rom {
        [] => Err(MediumError::Empty),
        _ if rom.len() > VGA_BIOS_MAX => Err(MediumError::VgaBiosSize(rom.len() as u64)),
        [a, b, blocks, ..]
            if [a, b] == OPTION_ROM_SIGNATURE && blocks != 0 && usize::from(blocks) * OPTION_ROM_BLOCK <= rom.len() =>
        {
            Ok(())
        }
        _ => Err(MediumError::NoOptionRom),
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    #[test]
    fn firmware_is_whole_pages_in_its_window() {
        let check = |length: usize| check_firmware(&vec![0; length]);
        assert_eq!(check(0), Err(MediumError::Empty));
        for length in [4096, 128 << 10, 256 << 10, 16 << 20] {
            assert_eq!(check(length), Ok(()));
        }
        for length in [1, 4095, (256 << 10) + 1, (16 << 20) + 4096] {
            assert_eq!(check(length), Err(MediumError::FirmwareSize(length as u64)));
        }
    }

    #[test]
    fn a_cd_is_whole_blocks_with_a_volume() {
        let mut image = vec![0; 0x9000];
        assert_eq!(check_cdrom(&[]), Err(MediumError::Empty));
        assert_eq!(check_cdrom(&image), Err(MediumError::NoVolume));
        assert_eq!(check_cdrom(&image[..0x8000]), Err(MediumError::NoVolume), "it ends before a volume would be");
        image[ISO_IDENTIFIER].copy_from_slice(b"CD001");
        assert_eq!(check_cdrom(&image), Ok(()));
        assert_eq!(check_cdrom(&image[..0x8fff]), Err(MediumError::CdSize(0x8fff)));
    }

    #[test]
    fn a_vga_bios_says_how_long_it_is() {
        let mut rom = vec![0; 1024];
        assert_eq!(check_vga_bios(&[]), Err(MediumError::Empty));
        assert_eq!(check_vga_bios(&rom), Err(MediumError::NoOptionRom));
        rom[..3].copy_from_slice(&[0x55, 0xaa, 2]);
        assert_eq!(check_vga_bios(&rom), Ok(()));
        assert_eq!(check_vga_bios(&rom[..2]), Err(MediumError::NoOptionRom));
        rom[2] = 3;
        assert_eq!(check_vga_bios(&rom), Err(MediumError::NoOptionRom), "longer than there is");
        rom[2] = 0;
        assert_eq!(check_vga_bios(&rom), Err(MediumError::NoOptionRom));
        rom.resize((64 << 10) + 512, 0);
        assert_eq!(check_vga_bios(&rom), Err(MediumError::VgaBiosSize(rom.len() as u64)));
    }
}
