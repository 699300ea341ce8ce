use super::elf::{DATA, TEXT, build64};
use super::*;

const MAGIC: u32 = 0xe852_50d6;

/// A tag of the header.
fn tag(kind: u16, flags: u16, content: &[u32]) -> Vec<u8> {
    let mut tag = [kind, flags].map(u16::to_le_bytes).concat();
    tag.extend((8 + 4 * content.len() as u32).to_le_bytes());
    content.iter().for_each(|word| tag.extend(word.to_le_bytes()));
    tag.resize(tag.len().next_multiple_of(8), 0);
    tag
}

/// A header with these tags and the end tag.
fn header(tags: &[Vec<u8>]) -> Vec<u8> {
    let tags = [tags.concat(), tag(0, 0, &[])].concat();
    let length = 16 + tags.len() as u32;
    let mut header = [MAGIC, 0, length, 0u32.wrapping_sub(MAGIC).wrapping_sub(length)].map(u32::to_le_bytes).concat();
    header.extend(tags);
    header
}

/// A 64-bit ELF file with a header behind it.
fn image(tags: &[Vec<u8>]) -> Vec<u8> {
    let mut image = build64(0x10_0004, &[TEXT, DATA]);
    image.resize(image.len().next_multiple_of(8), 0);
    image.extend(header(tags));
    image
}

/// A file of no format of its own: 16 bytes, the header with an address tag at 2 MiB, 16 bytes.
fn flat(load: u32, load_end: u32, bss_end: u32, entry: Option<u32>, more: &[Vec<u8>]) -> Vec<u8> {
    let mut tags = vec![tag(2, 0, &[0x20_0010, load, load_end, bss_end])];
    tags.extend(entry.map(|entry| tag(3, 0, &[entry])));
    tags.extend_from_slice(more);
    [&b"before the heade"[..], &header(&tags), b"behind the heade"].concat()
}

/// The tags of the information structure: type and content.
fn information(bench: &Bench, at: u64) -> Vec<(u64, Vec<u8>)> {
    assert!(at.is_multiple_of(8));
    let total = bench.number(at, 4);
    assert_eq!(bench.number(at + 4, 4), 0);
    let mut tags = Vec::new();
    let mut next = 8;
    loop {
        let (kind, size) = (bench.number(at + next, 4), bench.number(at + next + 4, 4));
        tags.push((kind, bench.bytes(at + next + 8, size as usize - 8)));
        next = (next + size).next_multiple_of(8);
        if kind == 0 {
            assert_eq!(next, total);
            return tags;
        }
    }
}

fn of_kind(tags: &[(u64, Vec<u8>)], kind: u64) -> Vec<&[u8]> {
    tags.iter().filter(|tag| tag.0 == kind).map(|tag| tag.1.as_slice()).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn a_kernel_starts_as_the_specification_says() {
    let mut bench = Bench::new(32 * MIB);
    let modules = [Module { bytes: &[5; 4097], cmdline: "first" }, Module { bytes: b"2", cmdline: "" }];
    let mut rsdp = [7; 36];
    rsdp[16..20].copy_from_slice(&[0; 4]);
    let args = LoadArgs {
        modules: &modules,
        cmdline: "kernel -v",
        rsdp: Some(Rsdp { at: FIRMWARE_TABLES, bytes: &rsdp }),
        ..LoadArgs::default()
    };
    let image = image(&[tag(1, 0, &[1, 2, 3, 4, 6, 8, 9, 14, 15, 21]), tag(6, 0, &[])]);
    assert_eq!(identify(&image), Ok(ImageKind::Multiboot2));
    let state = bench.load(&image, &args).unwrap();

    assert_eq!((state.mode, state.rip, gpr(&state, Gpr::Rax)), (Mode::Protected32, 0x10_0004, 0x36d7_6289));
    assert!(state.cr0.contains(Cr0::PE) && !state.cr0.contains(Cr0::PG) && state.efer.is_empty());
    let at = gpr(&state, Gpr::Rbx);
    assert!((0x1_0000..0xa_0000).contains(&at));
    let tags = information(&bench, at);
    assert_eq!(of_kind(&tags, 1), [b"kernel -v\0"]);
    assert_eq!(of_kind(&tags, 2), [b"Lamina\0"]);
    let [first, second] = of_kind(&tags, 3)[..] else { panic!("{tags:?}") };
    assert_eq!((words(&first[..8]), &first[8..]), (vec![0x10_4000, 0x10_5001], &b"first\0"[..]));
    assert_eq!((words(&second[..8]), &second[8..]), (vec![0x10_6000, 0x10_6001], &b"\0"[..]));
    assert_eq!(bench.bytes(0x10_4000, 4097), [5; 4097]);
    assert_eq!(bench.bytes(0x10_6000, 1), b"2");
    assert_eq!(words(of_kind(&tags, 4)[0]), [640, 31 * 1024]);
    let low = [0, 0, 0xa_0000, 0, 1, 0];
    let tables = [0xe_0000, 0, 0x2_0000, 0, 2, 0];
    let high = [0x10_0000, 0, 31 << 20, 0, 1, 0];
    let ecam = [0xe000_0000, 0, 0x1000_0000, 0, 2, 0];
    assert_eq!(words(of_kind(&tags, 6)[0]), [&[24, 0][..], &low, &tables, &high, &ecam].concat());
    assert_eq!(of_kind(&tags, 15), [rsdp]);
    for absent in [8, 9, 14, 21] {
        assert!(of_kind(&tags, absent).is_empty(), "{absent}");
    }
}

#[test]
fn an_old_rsdp_is_told_of_where_it_names_a_table() {
    let mut bench = Bench::new(16 * MIB);
    let mut rsdp = [7; 36];
    rsdp[15] = 2;
    let args = LoadArgs { rsdp: Some(Rsdp { at: FIRMWARE_TABLES, bytes: &rsdp }), ..LoadArgs::default() };
    let state = bench.load(&image(&[]), &args).unwrap();
    let tags = information(&bench, gpr(&state, Gpr::Rbx));
    let old = of_kind(&tags, 14)[0];
    assert_eq!((old.len(), old[15], old.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte))), (20, 0, 0));
    assert_eq!(old[..8], rsdp[..8]);
    assert_eq!(of_kind(&tags, 15), [rsdp]);
}

#[test]
fn a_text_screen_is_told_of_by_both_versions() {
    let mut bench = Bench::new(16 * MIB);
    let args = LoadArgs { text_screen: true, ..LoadArgs::default() };
    let state = bench.load(&image(&[tag(4, 0, &[3])]), &args).unwrap();
    let tags = information(&bench, gpr(&state, Gpr::Rbx));
    let [screen] = of_kind(&tags, 8)[..] else { panic!("{tags:?}") };
    assert_eq!((words(&screen[..20]), &screen[20..]), (vec![0xb_8000, 0, 160, 80, 25], &[16u8, 2, 0, 0][..]));

    // Version 1, with a header that must have a table of video modes.
    let mut first = build64(0x10_0004, &[TEXT, DATA]);
    first.resize(first.len().next_multiple_of(4), 0);
    let flags = 7u32;
    first.extend(
        [0x1bad_b002, flags, 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags)].map(u32::to_le_bytes).concat(),
    );
    assert_eq!(check(&first, 16 * MIB, &LoadArgs::default()), Err(LoadError::MultibootFlags(4)));
    let state = bench.load(&first, &args).unwrap();
    let at = gpr(&state, Gpr::Rbx);
    assert_ne!(bench.number(at, 4) & 1 << 12, 0);
    assert_eq!(words(&bench.bytes(at + 88, 20)), [0xb_8000, 0, 160, 80, 25]);
    assert_eq!(bench.bytes(at + 108, 2), [16, 2]);
}

#[test]
fn the_address_tag_goes_before_the_format() {
    let mut bench = Bench::new(16 * MIB);
    let state = bench.load(&flat(0x20_0000, 0, 0x20_1000, Some(0x20_0004), &[]), &LoadArgs::default()).unwrap();
    assert_eq!(state.rip, 0x20_0004);
    assert_eq!(bench.bytes(0x20_0000, 16), b"before the heade");
    // From the first byte of the file, wherever that is.
    let state = bench.load(&flat(u32::MAX, 0, 0, Some(0x20_0008), &[]), &LoadArgs::default()).unwrap();
    assert_eq!(state.rip, 0x20_0008);
    // The header's own place is loaded as the first.
    let state = bench.load(&flat(0x20_0010, 0, 0, Some(0x20_0010), &[]), &LoadArgs::default()).unwrap();
    assert_eq!(state.rip, 0x20_0010);
    assert_eq!(bench.number(0x20_0010, 4), u64::from(MAGIC));

    // An ELF file is entered elsewhere than it says.
    let state = bench.load(&image(&[tag(3, 0, &[0x10_0008])]), &LoadArgs::default()).unwrap();
    assert_eq!(state.rip, 0x10_0008);
}

#[test]
fn an_image_goes_where_it_likes_to_be() {
    let mut bench = Bench::new(16 * MIB);
    let mut place = |lowest: u32, highest: u32, align, preference| {
        let image = image(&[tag(10, 0, &[lowest, highest, align, preference])]);
        let state = bench.load(&image, &LoadArgs::default())?;
        let base = of_kind(&information(&bench, gpr(&state, Gpr::Rbx)), 21).concat();
        let base = u64::from(words(&base)[0]);
        assert_eq!((state.rip, bench.bytes(base, 4)), (base + 4, b"text".to_vec()));
        assert_eq!(bench.bytes(base + 0x2000, 4), b"data");
        Ok::<_, LoadError>(base)
    };
    let end = 16 << 20;
    assert_eq!(place(0, end, 0x1000, 0), Ok(0x10_0000), "as linked");
    assert_eq!(place(0x20_0000, end, 0x1000, 0), Ok(0x20_0000), "not where it was linked to be");
    assert_eq!(place(0x20_0001, end, 0x10_0000, 1), Ok(0x30_0000));
    assert_eq!(place(0, 0x80_0000, 0x1000, 2), Ok(0x7f_c000));
    let no_room = place(0x20_0000, 0x20_2000, 0x1000, 1).unwrap_err();
    assert!(matches!(no_room, LoadError::NoRoom { part: Part::Segment, length: 0x4000, .. }), "{no_room:?}");
    let odd = check(&image(&[tag(10, 0, &[0, end, 3, 0])]), 16 * MIB, &LoadArgs::default());
    assert!(matches!(odd, Err(LoadError::BadField { field: "align", .. })));
}

#[test]
fn what_is_required_and_not_there_is_refused_and_wishes_are_not() {
    let with = |kind, flags, content: &[u32]| {
        check(&image(&[tag(kind, flags, content)]), 16 * MIB, &LoadArgs::default()).map_err(|error| match error {
            LoadError::Multiboot2Tag { kind, .. } => u32::from(kind),
            LoadError::Multiboot2Information(kind) => 1000 + kind,
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(with(5, 0, &[1024, 768, 32]), Err(5));
    assert_eq!(with(5, 1, &[1024, 768, 32]), Ok(()));
    assert_eq!(with(4, 0, &[3]), Err(4), "a console is required");
    assert_eq!((with(4, 0, &[2]), with(4, 1, &[3])), (Ok(()), Ok(())));
    assert_eq!(with(1, 0, &[6, 22]), Err(1022));
    assert_eq!((with(1, 1, &[6, 22]), with(1, 0, &[7, 10, 13])), (Ok(()), Ok(())));
    assert_eq!(with(11, 0, &[]), Err(11));
    assert_eq!(with(11, 1, &[]), Ok(()));
    for efi in [7, 8, 9] {
        assert_eq!(with(efi, 0, &[0x10_0000]), Ok(()), "{efi}");
    }
}

#[test]
fn lies_are_named() {
    let refuse = |image: &[u8]| match check(image, 16 * MIB, &LoadArgs::default()).unwrap_err() {
        LoadError::BadField { field, .. } => field,
        LoadError::Truncated { what, .. } => what,
        LoadError::OutsideMemory { .. } => "outside",
        other => panic!("{other:?}"),
    };
    assert_eq!(refuse(&flat(0x20_0011, 0, 0, Some(0x20_0020), &[])), "load_addr");
    assert_eq!(refuse(&flat(0x1f_ffff, 0, 0, Some(0x20_0020), &[])), "load_addr");
    assert_eq!(refuse(&flat(0x20_0000, 0, 0, None, &[])), "load_addr");
    assert_eq!(refuse(&flat(0x20_0000, 0x1f_0000, 0, Some(0x20_0020), &[])), "load_end_addr");
    assert_eq!(refuse(&flat(0x20_0000, 0x20_1000, 0, Some(0x20_0020), &[])), "the image (by load_end_addr)");
    assert_eq!(refuse(&flat(0x20_0000, 0, 0x20_0001, Some(0x20_0000), &[])), "bss_end_addr");
    assert_eq!(refuse(&flat(0x20_0000, 0, 0, Some(0x30_0000), &[])), "entry_addr");
    assert_eq!(refuse(&flat(0x20_0000, 0, u32::MAX, Some(0x20_0000), &[])), "outside");
    let changed = |at: usize, byte: u8, sum: u8| {
        let mut image = image(&[tag(6, 0, &[])]);
        let header = image.len() - 32;
        image[header + at] = byte;
        image[header + 12] = image[header + 12].wrapping_sub(sum);
        image
    };
    assert_eq!(refuse(&changed(4, 4, 4)), "architecture");
    assert_eq!(refuse(&changed(8, 33, 1)), "the header");
    assert_eq!(refuse(&changed(20, 7, 0)), "size of a tag");
    assert_eq!(refuse(&changed(20, 200, 0)), "a tag of the header");
}

#[test]
fn only_a_right_header_in_the_first_32_kib_counts() {
    for (offset, found) in [(0, true), (32744, true), (32752, false), (4, false)] {
        let mut image = vec![0; 40_000];
        set(&mut image, offset, &header(&[]));
        assert_eq!(identify(&image) == Ok(ImageKind::Multiboot2), found || offset == 32752, "{offset}");
        // The head alone is found there, but must end there, too.
        if offset == 32752 {
            let error = check(&image, 16 * MIB, &LoadArgs::default()).unwrap_err();
            assert!(matches!(error, LoadError::BadField { field: "header_length", .. }), "{error:?}");
        }
    }
}

/// An ELF file with three sections: none, a table of symbols and one of strings.
fn with_sections() -> Vec<u8> {
    let mut image = image(&[]);
    let symbols = image.len() as u64;
    image.extend([0xaa; 48]);
    let strings = image.len() as u64;
    image.extend(b"\0.symtab\0.strtab\0");
    image.resize(image.len().next_multiple_of(8), 0);
    let headers = image.len() as u64;
    image.extend([0; 64]);
    for (name, kind, offset, size) in [(1u32, 2u32, symbols, 48u64), (9, 3, strings, 17)] {
        image.extend([name, kind].map(u32::to_le_bytes).concat());
        image.extend([0, 0, offset, size].map(u64::to_le_bytes).concat());
        image.extend([2u32, 0].map(u32::to_le_bytes).concat());
        image.extend([8u64, 24].map(u64::to_le_bytes).concat());
    }
    set(&mut image, 40, &headers.to_le_bytes());
    set(&mut image, 58, &[64, 0, 3, 0, 2, 0]);
    image
}

#[test]
fn tables_of_symbols_come_along() {
    let mut bench = Bench::new(16 * MIB);
    let modules = [Module { bytes: &[1; 100], cmdline: "" }];
    let args = LoadArgs { modules: &modules, ..LoadArgs::default() };
    let state = bench.load(&with_sections(), &args).unwrap();
    let tags = information(&bench, gpr(&state, Gpr::Rbx));
    let [sections] = of_kind(&tags, 9)[..] else { panic!("{tags:?}") };
    assert_eq!(words(&sections[..12]), [3, 64, 2]);
    assert_eq!(sections.len(), 12 + 3 * 64);
    let address = |index: usize| u64::from_le_bytes(sections[12 + index * 64 + 16..][..8].try_into().unwrap());
    assert_eq!(address(0), 0);
    assert_eq!(bench.bytes(address(1), 48), [0xaa; 48]);
    assert_eq!(bench.bytes(address(2), 17), b"\0.symtab\0.strtab\0");
}

#[test]
fn malformed_images_are_survived() {
    let modules = [Module { bytes: b"abc", cmdline: "x" }];
    let args = LoadArgs { modules: &modules, ..LoadArgs::default() };
    let images = [
        image(&[tag(1, 0, &[1]), tag(3, 0, &[0x10_0004]), tag(10, 0, &[0, 1 << 24, 4096, 2])]),
        flat(0x20_0000, 0, 0x20_1000, Some(0x20_0004), &[tag(10, 0, &[0, 1 << 24, 4096, 1])]),
        with_sections(),
    ];
    for image in images {
        for length in 0..image.len() {
            check_plan(&image[..length], 16 * MIB, &args).unwrap();
        }
        let fields: Vec<_> = (0..image.len() / 4).map(|word| (word * 4, 4)).collect();
        survives_lies(&image, &fields, 16 * MIB, &args);
        survives_lies(&image, &fields, 6 * PAGE_1G, &args);
    }
}

proptest! {
    #[test]
    fn random_tags_do_no_harm(
        tags in prop::collection::vec((0u16..12, 0u16..2, prop::collection::vec(any::<u32>(), 0..5)), 0..6),
        memory in 0u64..8,
    ) {
        let tags: Vec<_> = tags.iter().map(|(kind, flags, content)| tag(*kind, *flags, content)).collect();
        check_plan(&image(&tags), memory * PAGE_1G, &LoadArgs::default())?;
        check_plan(&flat(0x20_0000, 0, 0, Some(0x20_0004), &tags), 16 * MIB, &LoadArgs::default())?;
    }

    #[test]
    fn random_changes_do_no_harm(changes in mutations(200), memory in 0u64..8) {
        check_plan(&mutate(&with_sections(), &changes), memory * PAGE_1G, &LoadArgs::default())?;
    }
}
