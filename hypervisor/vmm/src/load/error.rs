//! Why an image cannot be loaded.

use core::fmt;

use lamina_arch::addr::Gpa;

use super::ImageKind;
use crate::memory::NotMemory;

/// A part of what is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The kernel of a bzImage, with the memory that it needs before it reads the memory map.
    Kernel,
    /// A segment of an ELF image, or the image that Multiboot's address fields describe.
    Segment,
    /// The initial ramdisk.
    Initrd,
    /// A Multiboot module.
    Module,
    /// The command line.
    CommandLine,
    /// What the loader makes: page tables, descriptor table, information for the guest.
    BootData,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Kernel => "the kernel",
            Part::Segment => "a segment",
            Part::Initrd => "the initrd",
            Part::Module => "a module",
            Part::CommandLine => "the command line",
            Part::BootData => "the boot data",
        })
    }
}

/// Why an image cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// No bzImage, no Multiboot header, no 64-bit ELF file.
    UnknownFormat,
    /// The image ends within something that it must have.
    Truncated {
        /// What.
        what: &'static str,
        /// Where it would end. Unit: bytes.
        needed: u64,
        /// Where the image ends. Unit: bytes.
        length: u64,
    },
    /// A field of a header holds what it must not.
    BadField {
        /// Name of the field, as its specification spells it.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// What is wrong with that.
        reason: &'static str,
    },
    /// The kernel speaks an older boot protocol than 2.10; the version's two bytes.
    OldBootProtocol(u16),
    /// A Multiboot image requires what this loader does not do; the flags of that.
    MultibootFlags(u32),
    /// A Multiboot 2 image requires what this loader has not got.
    Multiboot2Tag {
        /// Type of the header's tag.
        kind: u16,
        /// What it stands for.
        wants: &'static str,
    },
    /// A Multiboot 2 image requires information of a type that the specification does not know.
    Multiboot2Information(u32),
    /// Too many segments.
    TooManySegments {
        /// How many the image has.
        count: u64,
        /// How many are allowed.
        limit: u64,
    },
    /// A part would lie where the VM has no memory.
    OutsideMemory {
        /// Which.
        part: Part,
        /// Where.
        start: Gpa,
        /// Unit: bytes.
        length: u64,
    },
    /// Two parts would lie over each other.
    Overlap {
        /// The later one.
        part: Part,
        /// Where.
        start: Gpa,
        /// Unit: bytes.
        length: u64,
    },
    /// There is no place for a part.
    NoRoom {
        /// Which.
        part: Part,
        /// Unit: bytes.
        length: u64,
        /// It must end here at the latest.
        below: Gpa,
    },
    /// The command line is longer than the kernel allows.
    CommandLineTooLong {
        /// Unit: bytes.
        length: u64,
        /// Unit: bytes.
        limit: u64,
    },
    /// A command line holds a zero byte.
    ZeroInCommandLine,
    /// A part is given that the format has no use for.
    NotForThisFormat {
        /// Which.
        part: Part,
        /// What the image is.
        kind: ImageKind,
    },
    /// The plan and the memory disagree: a bug of ours.
    NotMemory(NotMemory),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::UnknownFormat => {
                write!(f, "neither a bzImage nor a Multiboot image nor a 64-bit ELF file")
            }
            LoadError::Truncated { what, needed, length } => {
                write!(f, "{what} would end at byte {needed}, but the image ends at {length}")
            }
            LoadError::BadField { field, value, reason } => write!(f, "{field} is {value:#x}: {reason}"),
            LoadError::OldBootProtocol(version) => {
                write!(f, "boot protocol {}.{:02} is older than 2.10", version >> 8, version & 0xff)
            }
            LoadError::MultibootFlags(flags) => {
                write!(f, "requires Multiboot features that this machine has not got: flags {flags:#x}")
            }
            LoadError::Multiboot2Tag { kind, wants } => write!(f, "requires {wants} (Multiboot 2 header tag {kind})"),
            LoadError::Multiboot2Information(kind) => {
                write!(f, "requires unknown information: Multiboot 2 type {kind}")
            }
            LoadError::TooManySegments { count, limit } => write!(f, "{count} segments are more than {limit}"),
            LoadError::OutsideMemory { part, start, length } => {
                write!(f, "{part} ({length:#x} bytes at {start:#x}) is not in the memory of the VM")
            }
            LoadError::Overlap { part, start, length } => {
                write!(f, "{part} ({length:#x} bytes at {start:#x}) lies over another part")
            }
            LoadError::NoRoom { part, length, below } => {
                write!(f, "no room for {part} ({length:#x} bytes below {below:#x}) in the memory of the VM")
            }
            LoadError::CommandLineTooLong { length, limit } => {
                write!(f, "the command line has {length} bytes, the kernel takes {limit}")
            }
            LoadError::ZeroInCommandLine => write!(f, "a command line holds a zero byte"),
            LoadError::NotForThisFormat { part, kind } => {
                let kind = match kind {
                    ImageKind::BzImage => "a bzImage",
                    ImageKind::Multiboot | ImageKind::Multiboot2 => "a Multiboot image",
                    ImageKind::Elf64 => "a plain ELF file",
                };
                write!(f, "{part} is given, but {kind} takes none")
            }
            LoadError::NotMemory(not_memory) => not_memory.fmt(f),
        }
    }
}
