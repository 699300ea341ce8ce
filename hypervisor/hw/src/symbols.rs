//! Names of the hypervisor's own functions, for backtraces: the symbol table of its image, which the loader leaves in
//! memory as it was on disk ("Tool Interface Standard: Executable and Linking Format", "Symbol Table").
//!
//! Read only when a bug is reported, so it trusts nothing: a damaged table gives no name, never a second fault.

use spin::Once;

const SECTION_HEADER_OFFSET: usize = 0x28;
const SECTION_HEADER_SIZE: usize = 0x3a;
const SECTION_HEADER_COUNT: usize = 0x3c;
const SECTION_KIND: usize = 0x04;
const SECTION_OFFSET: usize = 0x18;
const SECTION_SIZE: usize = 0x20;
const SECTION_LINK: usize = 0x28;
/// Kind of a section that holds the symbol table.
const SYMTAB: u64 = 2;
const SYMBOL: usize = 24;
/// Type of a symbol that names a function.
const FUNCTION: u8 = 2;

struct Image {
    file: &'static [u8],
    /// Where address 0 of the file was loaded.
    base: u64,
}

static IMAGE: Once<Image> = Once::new();

/// Tells where the image's file is, and at which address its address 0 was loaded.
pub fn init(file: &'static [u8], base: u64) {
    IMAGE.call_once(|| Image { file, base });
}

/// A function of the hypervisor's and an offset into it. Unit of the offset: bytes.
pub struct Symbol {
    /// The name, demangled when displayed.
    pub name: rustc_demangle::Demangle<'static>,
    /// From the function's start.
    pub offset: u64,
}

/// The function that holds `address`.
pub fn find(address: u64) -> Option<Symbol> {
    let image = IMAGE.get()?;
    let address = address.checked_sub(image.base)?;
    let sections = image.word(SECTION_HEADER_OFFSET, 8)?;
    let (size, count) = (image.word(SECTION_HEADER_SIZE, 2)?, image.word(SECTION_HEADER_COUNT, 2)?);
    let section = |index: usize, field: usize| image.word(sections.checked_add(size * index)?.checked_add(field)?, 8);
    let kind = |index: usize| Some(section(index, SECTION_KIND)? & 0xffff_ffff);
    let symtab = (0..count).find(|&index| kind(index).is_some_and(|k| k as u64 == SYMTAB))?;
    let names = section(symtab, SECTION_LINK)? & 0xffff_ffff;
    let names = section(names, SECTION_OFFSET)?;
    let start = section(symtab, SECTION_OFFSET)?;
    let symbols = image.file.get(start..start.checked_add(section(symtab, SECTION_SIZE)?)?)?;
    for symbol in symbols.chunks_exact(SYMBOL) {
        let (value, length) = (number(&symbol[8..16]), number(&symbol[16..24]));
        if symbol[4] & 15 == FUNCTION && address.checked_sub(value).is_some_and(|offset| offset < length) {
            let name = image.file.get(names.checked_add(index(number(&symbol[..4])))?..)?;
            let end = name.iter().take(4096).position(|&byte| byte == 0)?;
            let name = core::str::from_utf8(&name[..end]).ok()?;
            return Some(Symbol { name: rustc_demangle::demangle(name), offset: address - value });
        }
    }
    None
}

impl Image {
    fn word(&self, at: usize, width: usize) -> Option<usize> {
        Some(index(number(self.file.get(at..at.checked_add(width)?)?)))
    }
}

/// A little-endian number of at most 8 bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
