//! Linux' boot protocol (Linux, Documentation/arch/x86/boot.rst and zero-page.rst), as far as it is needed here: the
//! 64-bit entry of a kernel that can be moved.

use crate::machine::{self, Physical};

/// The 64-bit entry point, from the start of the code.
pub const ENTRY64: u64 = 0x200;
/// Memory.
pub const E820_RAM: u32 = 1;
/// Not to be touched.
pub const E820_RESERVED: u32 = 2;
/// What is filled in at the jump: 16 hexadecimal digits follow.
const VARIABLE: &[u8] = b"lamina_entry_tsc=";
const DIGITS: usize = 16;

/// The setup header, from and to.
const HEADER: usize = 0x1f1;
const HEADER_MAX: usize = 0x290;
/// Second byte of a short jump: how far behind the next byte the header ends.
const JUMP: usize = 0x201;
const MAGIC: usize = 0x202;
const TYPE_OF_LOADER: usize = 0x210;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE_KERNEL: usize = 0x234;
const INIT_SIZE: usize = 0x260;
/// Of the zero page alone.
const ACPI_RSDP_ADDR: usize = 0x70;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_MAX: usize = 128;
const E820_SIZE: usize = 20;

/// A kernel.
pub struct Kernel<'a> {
    header: &'a [u8],
    /// Its code, which may be put at any multiple of `alignment`.
    pub code: &'a [u8],
    /// Unit: bytes.
    pub alignment: u64,
    /// Memory that it works in from its start on. Unit: bytes.
    pub init_size: u64,
}

impl<'a> Kernel<'a> {
    /// Reads an image; `None` for one that is none, or cannot be moved.
    pub fn parse(image: &'a [u8]) -> Option<Self> {
        let byte = |at: usize| image.get(at).copied().map(usize::from);
        let number = |at: usize| Some(u64::from(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?)));
        if image.get(MAGIC..MAGIC + 4)? != b"HdrS" || byte(RELOCATABLE_KERNEL)? == 0 {
            return None;
        }
        let setup_sectors = match byte(HEADER)? {
            0 => 4,
            sectors => sectors,
        };
        let end = (JUMP + 1 + byte(JUMP)?).min(HEADER_MAX);
        Some(Self {
            header: image.get(HEADER..end)?,
            code: image.get((setup_sectors + 1) * 512..)?,
            alignment: number(KERNEL_ALIGNMENT)?,
            init_size: number(INIT_SIZE)?,
        })
    }
}

/// The zero page being made.
pub struct Zero {
    bytes: [u8; 4096],
}

impl Zero {
    /// With the kernel's own header.
    pub fn of(kernel: &Kernel<'_>) -> Self {
        let mut bytes = [0; 4096];
        bytes[HEADER..HEADER + kernel.header.len()].copy_from_slice(kernel.header);
        // A loader without a number of its own.
        bytes[TYPE_OF_LOADER] = 0xff;
        Self { bytes }
    }

    /// Says where everything is; `None` where that is beyond 4 GiB.
    pub fn place(&mut self, kernel: u64, cmdline: u64, initrd: u64, initrd_length: usize) -> Option<()> {
        let numbers = [
            (CODE32_START, kernel),
            (CMD_LINE_PTR, cmdline),
            (RAMDISK_IMAGE, initrd),
            (RAMDISK_SIZE, initrd_length as u64),
        ];
        for (at, number) in numbers {
            self.bytes[at..at + 4].copy_from_slice(&u32::try_from(number).ok()?.to_le_bytes());
        }
        Some(())
    }

    /// Says where ACPI's root pointer is.
    pub fn rsdp(&mut self, address: u64) {
        self.bytes[ACPI_RSDP_ADDR..ACPI_RSDP_ADDR + 8].copy_from_slice(&address.to_le_bytes());
    }

    /// Adds to the memory map; `None` where it is full.
    pub fn region(&mut self, start: u64, end: u64, kind: u32) -> Option<()> {
        let count = usize::from(self.bytes[E820_ENTRIES]);
        if count >= E820_MAX {
            return None;
        }
        let entry = &mut self.bytes[E820_TABLE + count * E820_SIZE..][..E820_SIZE];
        entry[..8].copy_from_slice(&start.to_le_bytes());
        entry[8..16].copy_from_slice(&(end - start).to_le_bytes());
        entry[16..].copy_from_slice(&kind.to_le_bytes());
        self.bytes[E820_ENTRIES] += 1;
        Some(())
    }

    /// The page.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Where the digits of the variable are in the command line, if it is there with all of them.
pub fn find_variable(cmdline: &[u8]) -> Option<u64> {
    let name = cmdline.windows(VARIABLE.len()).position(|window| window == VARIABLE)?;
    let digits = name + VARIABLE.len();
    cmdline.get(digits..digits + DIGITS)?.iter().all(|digit| *digit == b'0').then_some(digits as u64)
}

/// The jump to the kernel.
pub struct Jump {
    /// Physical address of the first instruction.
    pub entry: u64,
    /// Physical address of the zero page.
    pub zero: u64,
    /// Physical address of the page tables.
    pub tables: u64,
    /// Physical address of the digits that say when.
    pub entry_tsc: Option<u64>,
}

impl Jump {
    /// Jumps. What comes after the TSC is read, writing its digits and switching tables, is some hundred instructions.
    pub fn enter(&self, memory: &Physical) -> ! {
        let tsc = machine::tsc();
        if let Some(at) = self.entry_tsc {
            let mut digits = [0; DIGITS];
            for (index, digit) in digits.iter_mut().rev().enumerate() {
                *digit = b"0123456789abcdef"[usize::from((tsc >> (4 * index) & 0xf) as u8)];
            }
            // It is inside the memory that the command line was written to.
            let _ = memory.write(at, &digits);
        }
        // SAFETY: `prepare` put the kernel, its zero page and tables that map both where these say.
        unsafe { machine::jump(self.entry, self.zero, self.tables) }
    }
}
