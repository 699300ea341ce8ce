use super::*;
use crate::load::bzimage::plan as plan_bzimage;

const CODE: usize = 0x800;

/// A kernel with one setup sector, as Debian's are in its other numbers.
pub fn image() -> Vec<u8> {
    let mut image = vec![0; 1024];
    image.extend((0..CODE).map(|i| (i % 251) as u8));
    set(&mut image, 0x1f1, &[1]);
    set(&mut image, 0x1f4, &(CODE as u32 / 16).to_le_bytes());
    set(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    set(&mut image, 0x202, b"HdrS");
    set(&mut image, 0x206, &0x20fu16.to_le_bytes());
    set(&mut image, 0x211, &[1]);
    set(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    set(&mut image, 0x230, &0x20_0000u32.to_le_bytes());
    set(&mut image, 0x234, &[1, 21]);
    set(&mut image, 0x236, &0x7fu16.to_le_bytes());
    set(&mut image, 0x238, &2047u32.to_le_bytes());
    set(&mut image, 0x248, &0x300u32.to_le_bytes());
    set(&mut image, 0x24c, &0x400u32.to_le_bytes());
    set(&mut image, 0x258, &0x100_0000u64.to_le_bytes());
    set(&mut image, 0x260, &0x2a_0000u32.to_le_bytes());
    image
}

/// Offset and width of every field that the loader reads.
const FIELDS: [(usize, usize); 17] = [
    (0x1f1, 1),
    (0x1f4, 4),
    (0x1fe, 2),
    (0x201, 1),
    (0x202, 4),
    (0x206, 2),
    (0x211, 1),
    (0x22c, 4),
    (0x230, 4),
    (0x234, 1),
    (0x236, 2),
    (0x238, 4),
    (0x248, 4),
    (0x24c, 4),
    (0x258, 8),
    (0x260, 4),
    (0x264, 4),
];

#[test]
fn the_kernel_starts_as_the_protocol_says() {
    let mut bench = Bench::new(64 * MIB);
    let initrd: Vec<u8> = (0..5000).map(|i| (i % 241) as u8).collect();
    let args = LoadArgs {
        initrd: Some(&initrd),
        cmdline: "console=ttyS0",
        rsdp: Some(Rsdp { at: FIRMWARE_TABLES, bytes: &[0; 36] }),
        ..LoadArgs::default()
    };
    let image = image();
    assert_eq!(identify(&image), Ok(ImageKind::BzImage));
    let state = bench.load(&image, &args).unwrap();

    assert_eq!(state.mode, Mode::Long64);
    assert_eq!(state.rip, 0x100_0200);
    assert_eq!(bench.bytes(0x100_0000, CODE), &image[1024..]);
    assert!(state.cr0.contains(Cr0::PE | Cr0::PG) && state.cr4 == Cr4::PAE && state.efer == Efer::LME | Efer::LMA);
    assert_eq!((state.code.selector, state.data.selector), (0x10, 0x18));
    // The descriptors in memory are those in the hidden parts.
    assert_eq!(bench.number(state.gdt.base + 0x10, 8), 0x00af_9b00_0000_ffff);
    assert_eq!(bench.number(state.gdt.base + 0x18, 8), 0x00cf_9300_0000_ffff);
    for at in [0, 0x1234_5678, PAGE_2M - 1, 4 * PAGE_1G - 1] {
        assert_eq!(bench.linear(state.cr3, at), Some(at));
    }
    assert_eq!(bench.linear(state.cr3, 4 * PAGE_1G), None);

    let zero_page = gpr(&state, Gpr::Rsi);
    assert_eq!(bench.bytes(zero_page + 0x202, 4), b"HdrS");
    assert_eq!(bench.number(zero_page + 0x206, 2), 0x20f);
    assert_eq!(bench.number(zero_page + 0x210, 1), 0xff);
    assert_eq!(bench.number(zero_page + 0x1ef, 1), 0, "the sentinel must be clear");
    assert_eq!(bench.number(zero_page + 0x70, 8), FIRMWARE_TABLES.0);
    assert_eq!(bench.c_string(bench.number(zero_page + 0x228, 4)), "console=ttyS0");
    let initrd_at = bench.number(zero_page + 0x218, 4);
    assert_eq!(initrd_at, 64 * MIB - 0x2000);
    assert_eq!(bench.number(zero_page + 0x21c, 4), 5000);
    assert_eq!(bench.bytes(initrd_at, 5000), initrd);
    let map: Vec<_> = (0..bench.number(zero_page + 0x1e8, 1))
        .map(|i| zero_page + 0x2d0 + i * 20)
        .map(|at| (bench.number(at, 8), bench.number(at + 8, 8), bench.number(at + 16, 4)))
        .collect();
    let ecam = (0xe000_0000, 0x1000_0000, 2);
    assert_eq!(map, [(0, 0xa_0000, 1), (0xe_0000, 0x2_0000, 2), (0x10_0000, 63 * MIB, 1), ecam]);
}

#[test]
fn a_kernel_without_64_bit_entry_starts_at_its_32_bit_one() {
    let mut bench = Bench::new(64 * MIB);
    for (version, xloadflags) in [(0x20fu16, 4), (0x20b, 1)] {
        let mut image = image();
        set(&mut image, 0x206, &version.to_le_bytes());
        set(&mut image, 0x236, &[xloadflags]);
        let state = bench.load(&image, &LoadArgs { cmdline: "quiet", ..LoadArgs::default() }).unwrap();
        assert_eq!((state.mode, state.rip), (Mode::Protected32, 0x100_0000));
        assert!(state.cr0.contains(Cr0::PE) && !state.cr0.contains(Cr0::PG));
        assert!(state.cr4.is_empty() && state.efer.is_empty());
        assert_eq!((state.code.selector, state.data.selector), (0x10, 0x18));
        assert_eq!(bench.number(state.gdt.base + 0x10, 8), 0x00cf_9b00_0000_ffff);
        assert_eq!(bench.number(state.gdt.base + 0x18, 8), 0x00cf_9300_0000_ffff);
        // EBP, EDI and EBX must be 0: only ESI is named.
        let &[(Gpr::Rsi, zero_page)] = state.gprs.as_slice() else { panic!("{:?}", state.gprs) };
        assert_eq!(bench.number(zero_page + 0x214, 4), 0x100_0000);
        assert_eq!(bench.c_string(bench.number(zero_page + 0x228, 4)), "quiet");
    }
    // Short enough to have no 64-bit entry point, and good without one.
    let mut image = image();
    set(&mut image, 0x236, &[4]);
    set(&mut image, 0x1f4, &[0x20, 0, 0, 0]);
    set(&mut image, 0x248, &[0; 8]);
    assert_eq!(check(&image, 64 * MIB, &LoadArgs::default()), Ok(()));
    // Beyond 4 GiB, where only 64-bit code could be.
    set(&mut image, 0x258, &(5 * PAGE_1G).to_le_bytes());
    let error = check(&image, 8 * PAGE_1G, &LoadArgs::default()).unwrap_err();
    assert!(matches!(error, LoadError::BadField { field: "pref_address", .. }), "{error}");
}

#[test]
fn the_initrd_stays_below_its_limit_and_the_hole() {
    let mut image = image();
    let initrd = [7; 0x1800];
    let args = LoadArgs { initrd: Some(&initrd), ..LoadArgs::default() };
    let place = |image: &[u8], memory| {
        let plan = plan_bzimage(image, Space::new(memory), &args).unwrap();
        plan.pieces.iter().find(|(_, piece)| piece.bytes() == initrd).unwrap().0
    };
    assert_eq!(place(&image, 2 * PAGE_1G), Gpa(0x7fff_e000));
    assert_eq!(place(&image, 8 * PAGE_1G), Gpa(0x7fff_e000));
    set(&mut image, 0x22c, &0xffff_ffffu32.to_le_bytes());
    assert_eq!(place(&image, 8 * PAGE_1G), Gpa(0xbfff_e000));
    set(&mut image, 0x22c, &0x37ff_ffffu32.to_le_bytes());
    assert_eq!(place(&image, 2 * PAGE_1G), Gpa(0x37ff_e000));
    set(&mut image, 0x22c, &0xfffu32.to_le_bytes());
    let error = LoadError::NoRoom { part: Part::Initrd, length: 0x1800, below: Gpa(0x1000) };
    assert_eq!(check(&image, 2 * PAGE_1G, &args), Err(error));
}

#[test]
fn an_initrd_that_does_not_fit_is_refused() {
    let initrd = vec![1; 16 * MIB as usize];
    let args = LoadArgs { initrd: Some(&initrd), ..LoadArgs::default() };
    let error = LoadError::NoRoom { part: Part::Initrd, length: 16 * MIB, below: Gpa(0x8000_0000) };
    assert_eq!(check(&image(), 20 * MIB, &args), Err(error));
    assert_eq!(check(&image(), 36 * MIB, &args), Ok(()));
}

#[test]
fn lies_are_named() {
    let lie = |offset, bytes: &[u8]| {
        let mut image = image();
        set(&mut image, offset, bytes);
        check(&image, 64 * MIB, &LoadArgs::default()).unwrap_err()
    };
    let field = |error| match error {
        LoadError::BadField { field, .. } => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(lie(0x206, &0x209u16.to_le_bytes()), LoadError::OldBootProtocol(0x209));
    assert_eq!(field(lie(0x201, &[0x61])), "jump");
    assert_eq!(field(lie(0x1f4, &[0x20, 0, 0, 0])), "syssize");
    assert_eq!(field(lie(0x260, &[0, 7, 0, 0])), "init_size");
    assert_eq!(field(lie(0x230, &[0, 0, 0x30, 0])), "kernel_alignment");
    assert_eq!(field(lie(0x258, &[0, 0, 1, 0])), "pref_address");
    assert_eq!(field(lie(0x258, &[0xff; 8])), "pref_address");
    let truncated = |what, needed, length| LoadError::Truncated { what, needed, length };
    assert_eq!(lie(0x1f1, &[64]), truncated("the kernel (by syssize)", 65 * 512 + 0x7f1, 1024 + 0x800));
    assert_eq!(lie(0x1f4, &[0x81]), truncated("the kernel (by syssize)", 1024 + 0x801, 1024 + 0x800));
    assert_eq!(lie(0x24c, &[1, 5, 0, 0]), truncated("the payload", 1024 + 0x801, 1024 + 0x800));
    let outside = |start, length| LoadError::OutsideMemory { part: Part::Kernel, start: Gpa(start), length };
    assert_eq!(lie(0x260, &[0, 0, 0, 0x10]), outside(0x100_0000, 0x1000_0000));
    assert_eq!(lie(0x258, &[0, 0, 0, 4]), outside(64 * MIB, 0x2a_0000));
}

#[test]
fn a_signature_behind_the_kernel_is_not_loaded() {
    let mut bench = Bench::new(64 * MIB);
    let mut signed = image();
    signed.extend([0xee; 100]);
    bench.load(&signed, &LoadArgs::default()).unwrap();
    assert_eq!(bench.bytes(0x100_0000 + CODE as u64, 100), [0; 100]);
}

#[test]
fn the_kernel_says_how_long_a_command_line_may_be() {
    let line = "x".repeat(2047);
    let with = |cmdline| check(&image(), 64 * MIB, &LoadArgs { cmdline, ..LoadArgs::default() });
    assert_eq!(with(&line), Ok(()));
    let line = "x".repeat(2048);
    assert_eq!(with(&line), Err(LoadError::CommandLineTooLong { length: 2048, limit: 2047 }));
}

#[test]
fn modules_are_for_multiboot() {
    let modules = [Module { bytes: &[], cmdline: "" }];
    let args = LoadArgs { modules: &modules, ..LoadArgs::default() };
    let error = LoadError::NotForThisFormat { part: Part::Module, kind: ImageKind::BzImage };
    assert_eq!(check(&image(), 64 * MIB, &args), Err(error));
}

#[test]
fn malformed_images_are_survived() {
    let args = LoadArgs { initrd: Some(&[1, 2, 3]), ..LoadArgs::default() };
    // The last paragraph may lack its padding.
    let image = image();
    refuses_every_prefix(&image[..image.len() - 15], 64 * MIB, &args);
    survives_lies(&image, &FIELDS, 64 * MIB, &args);
    survives_lies(&image, &FIELDS, 6 * PAGE_1G, &args);
    survives_lies(&image, &FIELDS, 0x8_0000, &args);
}

proptest! {
    #[test]
    fn random_changes_do_no_harm(changes in mutations(0x8a), memory in 0u64..8) {
        let changes: Vec<_> = changes.into_iter().map(|(offset, byte)| (0x1f1 + offset, byte)).collect();
        let args = LoadArgs { initrd: Some(&[9; 5000]), cmdline: "quiet", ..LoadArgs::default() };
        check_plan(&mutate(&image(), &changes), memory * PAGE_1G / 2, &args)?;
    }
}
