//! Loaders: from an image's bytes to a VM that can start.
//!
//! Owns the formats, where images and boot data go in guest memory, and the processor's state at the entry. An image is
//! an allegation: every length and address in it is checked before anything is written, and a lie is a [`LoadError`]
//! that names it. A loader is a pure function from bytes to a plan; one place carries plans out, so [`check`] on the
//! host and [`load`] in the hypervisor cannot disagree.

use alloc::vec::Vec;

use lamina_arch::addr::Gpa;

use crate::host::HostMemory;
use crate::memory::GuestMemory;

mod bytes;
mod bzimage;
mod elf;
mod error;
mod multiboot;
mod multiboot1;
mod multiboot2;
mod program;
mod space;
mod state;

pub use error::{LoadError, Part};
pub use state::{InitialState, Mode, Table};

use space::Space;

/// Format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// A Linux kernel, or what boots like one.
    BzImage,
    /// Multiboot 1: an ELF file, or anything with the address fields in its header.
    Multiboot,
    /// Multiboot 2: an ELF file, or anything with an address tag in its header.
    Multiboot2,
    /// A plain 64-bit ELF file.
    Elf64,
}

/// A Multiboot module.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// Its content.
    pub bytes: &'a [u8],
    /// Its command line, without a zero byte.
    pub cmdline: &'a str,
}

/// What an image is started with.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadArgs<'a> {
    /// The initial ramdisk: bzImage only.
    pub initrd: Option<&'a [u8]>,
    /// Modules: Multiboot only.
    pub modules: &'a [Module<'a>],
    /// The command line, without a zero byte.
    pub cmdline: &'a str,
    /// The ACPI root pointer, where the VM has one.
    pub rsdp: Option<Rsdp<'a>>,
    /// The VM has a screen in text mode, 80 columns and 25 lines, as the BIOS of a PC leaves it.
    pub text_screen: bool,
}

/// An ACPI root pointer in guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Rsdp<'a> {
    /// Where it is.
    pub at: Gpa,
    /// What is there.
    pub bytes: &'a [u8],
}

/// What to do to start an image.
#[derive(Clone, Debug)]
struct Plan<'a> {
    /// What to write where, all of it in memory, none of it over another.
    pieces: Vec<(Gpa, Piece<'a>)>,
    state: InitialState,
}

/// Bytes for guest memory.
#[derive(Clone, Debug)]
enum Piece<'a> {
    /// A part of an image, or another input.
    Given(&'a [u8]),
    /// Made by the loader.
    Made(Vec<u8>),
}

impl Piece<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Given(bytes) => bytes,
            Piece::Made(bytes) => bytes,
        }
    }
}

/// Finds out what `image` is. Whether it is a good one, [`check`] tells. An image with the headers of both versions of
/// Multiboot gets the information of the second, which tells more.
///
/// # Errors
/// [`LoadError::UnknownFormat`].
pub fn identify(image: &[u8]) -> Result<ImageKind, LoadError> {
    if bzimage::is_bzimage(image) {
        Ok(ImageKind::BzImage)
    } else if multiboot2::find_header(image).is_some() {
        Ok(ImageKind::Multiboot2)
    } else if multiboot1::find_header(image).is_some() {
        Ok(ImageKind::Multiboot)
    } else if program::is_elf64(image) {
        Ok(ImageKind::Elf64)
    } else {
        Err(LoadError::UnknownFormat)
    }
}

fn plan<'a>(image: &'a [u8], memory: u64, args: &LoadArgs<'a>) -> Result<Plan<'a>, LoadError> {
    let command_lines = core::iter::once(args.cmdline).chain(args.modules.iter().map(|module| module.cmdline));
    if command_lines.into_iter().any(|line| line.contains('\0')) {
        return Err(LoadError::ZeroInCommandLine);
    }
    let kind = identify(image)?;
    if args.initrd.is_some() && kind != ImageKind::BzImage {
        return Err(LoadError::NotForThisFormat { part: Part::Initrd, kind });
    }
    if !args.modules.is_empty() && ![ImageKind::Multiboot, ImageKind::Multiboot2].contains(&kind) {
        return Err(LoadError::NotForThisFormat { part: Part::Module, kind });
    }
    let space = Space::new(memory);
    match kind {
        ImageKind::BzImage => bzimage::plan(image, space, args),
        ImageKind::Multiboot => multiboot1::plan(image, space, args),
        ImageKind::Multiboot2 => multiboot2::plan(image, space, args),
        ImageKind::Elf64 => elf::plan(image, space, args),
    }
}

/// Whether [`load`] would succeed in a VM with `memory` bytes.
///
/// # Errors
/// What [`load`] would say.
pub fn check(image: &[u8], memory: u64, args: &LoadArgs<'_>) -> Result<(), LoadError> {
    plan(image, memory, args).map(|_| ())
}

/// Loads `image` into memory that is clear, and says in which state the boot processor starts.
///
/// # Errors
/// [`LoadError`]; guest memory is unchanged then.
pub fn load(
    image: &[u8],
    args: &LoadArgs<'_>,
    memory: &mut GuestMemory,
    host: &mut impl HostMemory,
) -> Result<InitialState, LoadError> {
    let plan = plan(image, memory.size(), args)?;
    for (gpa, piece) in &plan.pieces {
        memory.write(host, *gpa, piece.bytes()).map_err(LoadError::NotMemory)?;
    }
    Ok(plan.state)
}

/// `line` with the zero byte that ends it.
fn c_string(line: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(line.len() + 1);
    bytes.extend_from_slice(line.as_bytes());
    bytes.push(0);
    bytes
}

/// The lowest address for boot data. Page 0 stays free, because a pointer to it would be null; and so do the first
/// 64 KiB, where kernels put the 16-bit code that starts their other processors, before they have read any of this.
const BOOT_DATA_FLOOR: Gpa = Gpa(0x1_0000);

#[cfg(test)]
mod tests;
