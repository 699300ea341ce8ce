use super::*;

/// One program header, in the words of the 64-bit format.
#[derive(Clone, Copy)]
pub struct Segment {
    pub kind: u32,
    pub virtual_address: u64,
    pub physical_address: u64,
    pub bytes: &'static [u8],
    pub memory_size: u64,
}

pub const TEXT: Segment = Segment {
    kind: 1,
    virtual_address: 0x10_0000,
    physical_address: 0x10_0000,
    bytes: b"text and more text",
    memory_size: 18,
};
pub const DATA: Segment =
    Segment { kind: 1, virtual_address: 0x10_2000, physical_address: 0x10_2000, bytes: b"data", memory_size: 0x2000 };
const NOTE: Segment = Segment { kind: 4, virtual_address: 0, physical_address: 0, bytes: b"note", memory_size: 4 };

/// A 64-bit ELF file: header, program headers, then the segments' bytes.
pub fn build64(entry: u64, segments: &[Segment]) -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2u16, 62].map(u16::to_le_bytes).concat());
    image.extend(1u32.to_le_bytes());
    image.extend([entry, 64, 0].map(u64::to_le_bytes).concat());
    image.extend(0u32.to_le_bytes());
    image.extend([64, 56, segments.len() as u16, 64, 0, 0].map(u16::to_le_bytes).concat());
    let mut offset = 64 + 56 * segments.len() as u64;
    for segment in segments {
        image.extend([segment.kind, 7].map(u32::to_le_bytes).concat());
        let length = segment.bytes.len() as u64;
        let (linear, physical) = (segment.virtual_address, segment.physical_address);
        image.extend([offset, linear, physical, length, segment.memory_size, 1].map(u64::to_le_bytes).concat());
        offset += length;
    }
    segments.iter().for_each(|segment| image.extend(segment.bytes));
    image
}

/// A small program.
pub fn image() -> Vec<u8> {
    build64(0x10_0004, &[TEXT, NOTE, DATA])
}

/// Offset and width of every field of the header and the first program header.
pub const FIELDS: [(usize, usize); 21] = [
    (0, 4),
    (4, 1),
    (5, 1),
    (16, 2),
    (18, 2),
    (24, 8),
    (32, 8),
    (40, 8),
    (52, 2),
    (54, 2),
    (56, 2),
    (58, 2),
    (60, 2),
    (62, 2),
    (64, 4),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 8),
    (104, 8),
    (112, 8),
];

#[test]
fn the_program_starts_as_documented() {
    let mut bench = Bench::new(16 * MIB);
    let args = LoadArgs { cmdline: "one two", ..LoadArgs::default() };
    let state = bench.load(&image(), &args).unwrap();
    assert_eq!(identify(&image()), Ok(ImageKind::Elf64));
    assert_eq!((state.mode, state.rip), (Mode::Long64, 0x10_0004));
    assert_eq!(bench.bytes(0x10_0000, 20), b"text and more text\0\0");
    assert_eq!(bench.bytes(0x10_2000, 6), b"data\0\0");
    assert_eq!(bench.c_string(gpr(&state, Gpr::Rdi)), "one two");
    assert_eq!((gpr(&state, Gpr::Rsi), gpr(&state, Gpr::Rdx)), (0, 16 * MIB));
    assert!(state.rsp.is_multiple_of(16) && bench.memory.is_memory(Gpa(state.rsp - 0x4000), 0x4000));
    assert_eq!(bench.linear(state.cr3, 0x10_0004), Some(0x10_0004));
}

#[test]
fn boot_data_goes_where_the_program_is_not() {
    // A program that fills low memory from the first page that boot data would have.
    let low = Segment { virtual_address: 0x1000, physical_address: 0x1000, memory_size: 0x4_0000, ..TEXT };
    let mut bench = Bench::new(16 * MIB);
    let state = bench.load(&build64(0x1000, &[low]), &LoadArgs::default()).unwrap();
    assert!(state.cr3 >= 0x4_1000 && state.gdt.base >= 0x4_1000 && gpr(&state, Gpr::Rdi) >= 0x4_1000);
    assert_eq!(bench.bytes(0x1000, 18), TEXT.bytes);
}

#[test]
fn a_virtual_entry_point_is_translated() {
    let high = Segment { virtual_address: 0xffff_ffff_8010_0000, ..TEXT };
    let mut bench = Bench::new(16 * MIB);
    let state = bench.load(&build64(0xffff_ffff_8010_0003, &[high]), &LoadArgs::default()).unwrap();
    assert_eq!(state.rip, 0x10_0003);
}

#[test]
fn lies_are_named() {
    let refuse =
        |entry, segments: &[Segment]| check(&build64(entry, segments), 16 * MIB, &LoadArgs::default()).unwrap_err();
    let at = |physical_address, memory_size| Segment { physical_address, memory_size, ..TEXT };
    let outside = |start, length| LoadError::OutsideMemory { part: Part::Segment, start: Gpa(start), length };
    assert_eq!(refuse(0x10_0000, &[at(16 * MIB - 17, 18)]), outside(16 * MIB - 17, 18));
    assert_eq!(refuse(0x10_0000, &[at(0x9_fff0, 18)]), outside(0x9_fff0, 18));
    assert_eq!(refuse(0x10_0000, &[at(0xe_0000, 18)]), outside(0xe_0000, 18));
    assert_eq!(refuse(0x10_0000, &[at(0x10_0000, u64::MAX)]), outside(0x10_0000, u64::MAX));
    assert_eq!(refuse(0x10_0000, &[at(u64::MAX, 18)]), outside(u64::MAX, 18));
    let overlap = LoadError::Overlap { part: Part::Segment, start: Gpa(0x10_0011), length: 18 };
    assert_eq!(refuse(0x10_0000, &[TEXT, at(0x10_0011, 18)]), overlap);
    let field = |error| match error {
        LoadError::BadField { field, .. } => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(refuse(0x10_0000, &[at(0x10_0000, 17)])), "p_filesz");
    assert_eq!(field(refuse(0x10_0000 + 18, &[TEXT])), "e_entry");
    assert_eq!(field(refuse(0, &[NOTE])), "e_phnum");
    assert_eq!(refuse(0, &[TEXT; 65]), LoadError::TooManySegments { count: 65, limit: 64 });
    let mut other = image();
    set(&mut other, 18, &[183]);
    assert_eq!(field(check(&other, 16 * MIB, &LoadArgs::default()).unwrap_err()), "e_machine");
    let args = LoadArgs { initrd: Some(&[]), ..LoadArgs::default() };
    let error = LoadError::NotForThisFormat { part: Part::Initrd, kind: ImageKind::Elf64 };
    assert_eq!(check(&image(), 16 * MIB, &args), Err(error));
}

#[test]
fn malformed_images_are_survived() {
    refuses_every_prefix(&image(), 16 * MIB, &LoadArgs::default());
    survives_lies(&image(), &FIELDS, 16 * MIB, &LoadArgs::default());
    survives_lies(&image(), &FIELDS, 6 * PAGE_1G, &LoadArgs::default());
}

proptest! {
    #[test]
    fn random_changes_do_no_harm(changes in mutations(64 + 3 * 56), memory in 0u64..8) {
        check_plan(&mutate(&image(), &changes), memory * PAGE_1G, &LoadArgs::default())?;
    }
}
