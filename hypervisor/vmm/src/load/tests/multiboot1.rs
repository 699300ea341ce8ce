use super::elf::{DATA, FIELDS, TEXT, build64};
use super::*;

fn header(flags: u32) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    [magic, flags, 0u32.wrapping_sub(magic).wrapping_sub(flags)].map(u32::to_le_bytes).concat()
}

/// A 64-bit ELF file with a header behind it.
fn image() -> Vec<u8> {
    let mut image = build64(0x10_0004, &[TEXT, DATA]);
    image.resize(image.len().next_multiple_of(4), 0);
    image.extend(header(3));
    image
}

/// A file of no format of its own: 16 bytes, a header with address fields, 16 bytes.
fn flat(addresses: [u32; 5]) -> Vec<u8> {
    let mut image = b"before the header".to_vec();
    image.truncate(16);
    image.extend(header(1 << 16));
    image.extend(addresses.map(u32::to_le_bytes).concat());
    image.extend(b"behind the header");
    image
}

const FLAT: [u32; 5] = [0x20_0010, 0x20_0000, 0x20_0040, 0x20_1000, 0x20_0004];

/// A 32-bit ELF file with one segment that holds all of the file, and a header.
fn image32() -> Vec<u8> {
    let mut image = b"\x7fELF\x01\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2u16, 3].map(u16::to_le_bytes).concat());
    image.extend([1u32, 0x10_0060, 52, 0, 0].map(u32::to_le_bytes).concat());
    image.extend([52u16, 32, 1, 40, 0, 0].map(u16::to_le_bytes).concat());
    image.extend([1u32, 0, 0xc010_0000, 0x10_0000, 0x70, 0x3000, 7, 1].map(u32::to_le_bytes).concat());
    image.extend(header(3));
    image.resize(0x70, 0x90);
    image
}

#[test]
fn a_kernel_of_32_bits_starts_as_the_specification_says() {
    let mut bench = Bench::new(32 * MIB);
    let modules = [Module { bytes: &[5; 4097], cmdline: "first" }, Module { bytes: b"2", cmdline: "" }];
    let args = LoadArgs { modules: &modules, cmdline: "kernel -v", ..LoadArgs::default() };
    let state = bench.load(&image32(), &args).unwrap();
    assert_eq!(identify(&image32()), Ok(ImageKind::Multiboot));

    assert_eq!((state.mode, state.rip), (Mode::Protected32, 0x10_0060));
    assert!(state.cr0.contains(Cr0::PE) && !state.cr0.contains(Cr0::PG) && state.efer.is_empty());
    assert_eq!(gpr(&state, Gpr::Rax), 0x2bad_b002);
    assert!(state.code.rights.is_default32() && !state.code.rights.is_long());
    assert_eq!((state.code.base, state.code.limit), (0, u32::MAX));
    assert_eq!(bench.number(state.gdt.base + u64::from(state.code.selector), 8), 0x00cf_9b00_0000_ffff);

    let info = gpr(&state, Gpr::Rbx);
    assert!((0x1_0000..0xa_0000).contains(&info));
    assert_eq!(bench.number(info, 4), 0b10_0100_1101);
    assert_eq!((bench.number(info + 4, 4), bench.number(info + 8, 4)), (640, 31 * 1024));
    assert_eq!(bench.c_string(bench.number(info + 16, 4)), "kernel -v");
    assert_eq!(bench.c_string(bench.number(info + 64, 4)), "Lamina");
    assert_eq!(bench.number(info + 20, 4), 2);
    let list = bench.number(info + 24, 4);
    let module = |n: u64| {
        let [start, end, line] = [0, 4, 8].map(|offset| bench.number(list + 16 * n + offset, 4));
        (start, bench.bytes(start, (end - start) as usize), bench.c_string(line))
    };
    assert_eq!(module(0), (0x10_3000, vec![5; 4097], "first".into()));
    assert_eq!(module(1), (0x10_5000, b"2".to_vec(), String::new()));
    let (map, length) = (bench.number(info + 48, 4), bench.number(info + 44, 4));
    assert_eq!(length, 4 * 24);
    let entry = |n: u64| [(0, 4), (4, 8), (12, 8), (20, 4)].map(|(at, width)| bench.number(map + 24 * n + at, width));
    assert_eq!(entry(0), [20, 0, 0xa_0000, 1]);
    assert_eq!(entry(1), [20, 0xe_0000, 0x2_0000, 2]);
    assert_eq!(entry(2), [20, 0x10_0000, 31 * MIB, 1]);
    assert_eq!(entry(3), [20, 0xe000_0000, 0x1000_0000, 2]);
}

#[test]
fn an_image_may_be_where_real_mode_reaches_it() {
    let mut image = image32();
    set(&mut image, 24, &0x4060u32.to_le_bytes());
    set(&mut image, 60, &[0x4000u32, 0x4000].map(u32::to_le_bytes).concat());
    let mut bench = Bench::new(4 * MIB);
    let modules = [Module { bytes: b"NR_CPUS=1\n", cmdline: "env" }];
    let args = LoadArgs { modules: &modules, ..LoadArgs::default() };
    let state = bench.load(&image, &args).unwrap();
    assert_eq!((state.mode, state.rip), (Mode::Protected32, 0x4060));
    assert_eq!(bench.bytes(0x4060, 4), [0x90; 4]);
    // What the loader leaves is beyond all that the image may use before it has read it.
    let info = gpr(&state, Gpr::Rbx);
    assert!(info >= 0x1_0000 && state.gdt.base >= 0x1_0000);
    let module = bench.number(bench.number(info + 24, 4), 4);
    assert_eq!((module, bench.bytes(module, 10)), (MIB, b"NR_CPUS=1\n".to_vec()));
}

#[test]
fn a_virtual_entry_point_is_translated() {
    let mut image = image32();
    set(&mut image, 24, &0xc010_0060u32.to_le_bytes());
    assert_eq!(Bench::new(16 * MIB).load(&image, &LoadArgs::default()).unwrap().rip, 0x10_0060);
}

#[test]
fn the_address_fields_go_before_the_format() {
    let mut bench = Bench::new(16 * MIB);
    let state = bench.load(&flat(FLAT), &LoadArgs::default()).unwrap();
    assert_eq!(state.rip, 0x20_0004);
    assert_eq!(bench.bytes(0x20_0000, 16), b"before the heade");
    assert_eq!(bench.bytes(0x20_0030, 18), b"behind the heade\0\0");

    // Without an end, all of the file.
    let state = bench.load(&flat([0x20_0014, 0x20_0004, 0, 0, 0x20_0004]), &LoadArgs::default()).unwrap();
    assert_eq!(state.rip, 0x20_0004);
    assert_eq!(bench.bytes(0x20_0034, 18), b"behind the header\0");
}

#[test]
fn lies_are_named() {
    let refuse = |addresses| match check(&flat(addresses), 16 * MIB, &LoadArgs::default()).unwrap_err() {
        LoadError::BadField { field, .. } => field,
        LoadError::Truncated { what, .. } => what,
        LoadError::OutsideMemory { .. } => "outside",
        other => panic!("{other:?}"),
    };
    let [header_addr, load, load_end, bss_end, entry] = FLAT;
    assert_eq!(refuse([header_addr, header_addr + 1, load_end, bss_end, entry]), "load_addr");
    assert_eq!(refuse([header_addr, load - 1, load_end, bss_end, entry]), "load_addr");
    assert_eq!(refuse([header_addr, load, load - 1, bss_end, entry]), "load_end_addr");
    assert_eq!(refuse([header_addr, load, 0x20_0042, bss_end, entry]), "the image (by load_end_addr)");
    assert_eq!(refuse([header_addr, load, load_end, load_end - 1, entry]), "bss_end_addr");
    assert_eq!(refuse([header_addr, load, load_end, bss_end, bss_end]), "entry_addr");
    assert_eq!(refuse([header_addr, load, load_end, u32::MAX, entry]), "outside");
}

#[test]
fn only_a_right_header_in_the_first_8_kib_counts() {
    for (offset, found) in [(0, true), (8180, true), (8184, false), (8192, false), (6, false)] {
        let mut image = vec![0; 10_000];
        set(&mut image, offset, &header(0));
        assert_eq!(identify(&image) == Ok(ImageKind::Multiboot), found, "{offset}");
    }
    let mut wrong = vec![0; 100];
    set(&mut wrong, 0, &header(0));
    wrong[8] ^= 1;
    assert_eq!(identify(&wrong), Err(LoadError::UnknownFormat));
}

#[test]
fn unknown_requirements_are_refused_and_unknown_wishes_are_not() {
    let mut image = image();
    let at = image.len() - 12;
    set(&mut image, at, &header(0x8007));
    assert_eq!(check(&image, 16 * MIB, &LoadArgs::default()), Err(LoadError::MultibootFlags(0x8004)));
    set(&mut image, at, &header(0xfffe_0003));
    assert_eq!(check(&image, 16 * MIB, &LoadArgs::default()), Ok(()));
}

#[test]
fn a_module_that_does_not_fit_is_refused() {
    let bytes = vec![0; 16 * MIB as usize];
    let modules = [Module { bytes: &bytes, cmdline: "" }];
    let args = LoadArgs { modules: &modules, ..LoadArgs::default() };
    let error = check(&image(), 16 * MIB, &args).unwrap_err();
    assert!(matches!(error, LoadError::NoRoom { part: Part::Module, length, .. } if length == 16 * MIB));
}

#[test]
fn malformed_images_are_survived() {
    let modules = [Module { bytes: b"abc", cmdline: "x" }];
    let args = LoadArgs { modules: &modules, ..LoadArgs::default() };
    for image in [image(), image32(), flat(FLAT)] {
        for length in 0..image.len() {
            check_plan(&image[..length], 16 * MIB, &args).unwrap();
        }
    }
    refuses_every_prefix(&image(), 16 * MIB, &args);
    survives_lies(&image(), &FIELDS, 16 * MIB, &args);
    let addresses: Vec<_> = (0..5).map(|n| (28 + 4 * n, 4)).collect();
    survives_lies(&flat(FLAT), &addresses, 16 * MIB, &args);
    survives_lies(&flat(FLAT), &addresses, 6 * PAGE_1G, &args);
}

proptest! {
    #[test]
    fn random_changes_do_no_harm(changes in mutations(52 + 32), memory in 0u64..8) {
        check_plan(&mutate(&image32(), &changes), memory * PAGE_1G, &LoadArgs::default())?;
    }

    #[test]
    fn random_addresses_do_no_harm(addresses in any::<[u32; 5]>(), near in any::<[u8; 5]>(), memory in 0u64..8) {
        check_plan(&flat(addresses), memory * PAGE_1G, &LoadArgs::default())?;
        let near = core::array::from_fn(|i| 0x20_0000 + u32::from(near[i]));
        check_plan(&flat(near), 16 * MIB, &LoadArgs::default())?;
    }
}
