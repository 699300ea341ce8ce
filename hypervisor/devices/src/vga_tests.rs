use super::*;
use alloc::vec;
use proptest::prelude::*;

const HZ: u64 = 1_000_000_000;
/// Offset of the text window from 0xa0000.
const TEXT: u64 = 0x1_8000;

fn vga() -> Vga {
    Vga::new(Frequency::from_hz(HZ), Tsc(0))
}

fn set_register(vga: &mut Vga, port: u16, index: u8, value: u8) {
    assert!(vga.write(port, index));
    assert!(vga.write(port + 1, value));
}

fn get_register(vga: &mut Vga, port: u16, index: u8) -> u8 {
    assert!(vga.write(port, index));
    vga.read(Tsc(0), port + 1).unwrap()
}

fn print(vga: &mut Vga, at: u64, text: &str) {
    for (n, byte) in (0..).zip(text.bytes()) {
        assert!(vga.write_memory(TEXT + 2 * (at + n), byte));
        assert!(vga.write_memory(TEXT + 2 * (at + n) + 1, 0x1f));
    }
}

#[test]
fn it_starts_in_mode_3_with_an_empty_screen() {
    let mut vga = vga();
    assert_eq!(vga.screen(), Some(vec![String::new(); 25]));
    assert!(vga.window_is_text());
    assert_eq!((vga.read_memory(TEXT), vga.read_memory(TEXT + 1)), (Some(b' '), Some(0x07)));
    assert_eq!(vga.read_memory(0), None, "the window at 0xa0000 is closed");
    assert_eq!(vga.read_memory(TEXT - 1), None);
}

#[test]
fn what_is_written_to_the_text_window_reads_back_and_shows() {
    let mut vga = vga();
    print(&mut vga, 0, "Hello, world!");
    print(&mut vga, 24 * 80 + 78, "\u{1}");
    assert!(vga.write_memory(TEXT + 2 * 80, 0xdb));
    assert_eq!((vga.read_memory(TEXT + 2), vga.read_memory(TEXT + 3)), (Some(b'e'), Some(0x1f)));
    let screen = vga.screen().unwrap();
    assert_eq!((screen[0].as_str(), screen[1].as_str()), ("Hello, world!", "█"));
    assert_eq!(screen[24].chars().count(), 79);
    assert!(screen[24].ends_with('☺'));
}

#[test]
fn the_start_address_scrolls_and_the_character_height_makes_rows() {
    let mut vga = vga();
    print(&mut vga, 80, "second");
    set_register(&mut vga, 0x3d4, 0x0d, 80);
    assert_eq!(vga.screen().unwrap()[0], "second");
    // Eight lines for each row of characters: 50 rows.
    set_register(&mut vga, 0x3d4, 0x09, 0x47);
    assert_eq!(vga.screen().unwrap().len(), 50);
}

#[test]
fn a_font_goes_to_plane_2_as_the_bios_loads_it_and_leaves_the_text_alone() {
    let mut vga = vga();
    print(&mut vga, 0, "text");
    for (port, index, value) in [(0x3c4, 2, 4), (0x3c4, 4, 6), (0x3ce, 5, 0), (0x3ce, 6, 4), (0x3ce, 4, 2)] {
        set_register(&mut vga, port, index, value);
    }
    assert!(!vga.window_is_text());
    assert_eq!(vga.read_memory(TEXT), None);
    for n in 0..16 {
        assert!(vga.write_memory(32 * 65 + n, 0x80 | n.to_le_bytes()[0]));
    }
    assert_eq!(vga.read_memory(32 * 65 + 5), Some(0x85));
    for (port, index, value) in [(0x3c4, 2, 3), (0x3c4, 4, 2), (0x3ce, 5, 0x10), (0x3ce, 6, 0x0e), (0x3ce, 4, 0)] {
        set_register(&mut vga, port, index, value);
    }
    assert!(vga.window_is_text());
    assert_eq!(vga.screen().unwrap()[0], "text");
}

#[test]
fn chain_4_is_256_colours_one_byte_each() {
    let mut vga = vga();
    for (port, index, value) in [(0x3c4, 2, 0xf), (0x3c4, 4, 0x0e), (0x3ce, 5, 0x40), (0x3ce, 6, 0x05)] {
        set_register(&mut vga, port, index, value);
    }
    for n in 0..64_000u64 {
        assert!(vga.write_memory(n, (n % 251).to_le_bytes()[0]));
    }
    assert!((0..64_000u64).all(|n| vga.read_memory(n) == Some((n % 251).to_le_bytes()[0])));
    assert_eq!(vga.screen(), None, "graphics");
}

/// Mode 12h: four planes, one bit each of every pixel.
fn planar() -> Vga {
    let mut vga = vga();
    for (port, index, value) in [(0x3c4, 2, 0xf), (0x3c4, 4, 0x06), (0x3ce, 5, 0x00), (0x3ce, 6, 0x05)] {
        set_register(&mut vga, port, index, value);
    }
    vga
}

/// The byte of each plane at `offset`.
fn planes(vga: &mut Vga, offset: u64) -> [u8; 4] {
    let mode = get_register(vga, 0x3ce, 5);
    set_register(vga, 0x3ce, 5, mode & !0x08);
    [0, 1, 2, 3].map(|plane| {
        set_register(vga, 0x3ce, 4, plane);
        vga.read_memory(offset).unwrap()
    })
}

#[test]
fn write_modes_of_the_planes() {
    let mut vga = planar();
    assert!(vga.write_memory(0, 0x00));
    // Mode 0, a map mask.
    set_register(&mut vga, 0x3c4, 2, 0b0101);
    assert!(vga.write_memory(0, 0xcc));
    assert_eq!(planes(&mut vga, 0), [0xcc, 0, 0xcc, 0]);
    // Set/reset for planes 0 and 1 only, a bit mask that keeps the latches' low half.
    set_register(&mut vga, 0x3c4, 2, 0xf);
    set_register(&mut vga, 0x3ce, 0, 0b0010);
    set_register(&mut vga, 0x3ce, 1, 0b0011);
    set_register(&mut vga, 0x3ce, 8, 0xf0);
    assert!(vga.write_memory(0, 0xaa));
    assert_eq!(planes(&mut vga, 0), [0x0c, 0xf0, 0xac, 0xa0]);
    // Mode 1: the latches.
    set_register(&mut vga, 0x3ce, 5, 1);
    assert!(vga.write_memory(7, 0x00));
    assert_eq!(planes(&mut vga, 7), [0x0c, 0xf0, 0xac, 0xa0]);
    // Mode 2: a colour, exclusive-or with the latches.
    set_register(&mut vga, 0x3ce, 5, 2);
    set_register(&mut vga, 0x3ce, 8, 0xff);
    set_register(&mut vga, 0x3ce, 3, 0x18);
    assert!(vga.write_memory(7, 0b1001));
    assert_eq!(planes(&mut vga, 7), [0xf3, 0xf0, 0xac, 0x5f]);
    // Mode 3: set/reset through a rotated mask.
    set_register(&mut vga, 0x3ce, 5, 3);
    set_register(&mut vga, 0x3ce, 3, 0x04);
    assert!(vga.write_memory(7, 0xf0));
    assert_eq!(planes(&mut vga, 7), [0xf0, 0xff, 0xa0, 0x50]);
}

#[test]
fn reading_compares_colours() {
    let mut vga = planar();
    set_register(&mut vga, 0x3ce, 8, 0xff);
    for (mask, value) in [(1, 0b1100), (2, 0b1010), (4, 0), (8, 0)] {
        set_register(&mut vga, 0x3c4, 2, mask);
        assert!(vga.write_memory(0, value));
    }
    set_register(&mut vga, 0x3ce, 5, 0x08);
    set_register(&mut vga, 0x3ce, 2, 0b0011);
    set_register(&mut vga, 0x3ce, 7, 0b1111);
    assert_eq!(vga.read_memory(0), Some(0b1000));
    set_register(&mut vga, 0x3ce, 7, 0b0001);
    assert_eq!(vga.read_memory(0), Some(0b1100), "the others do not matter");
}

#[test]
fn the_attribute_controllers_index_and_data_share_a_port() {
    let mut vga = vga();
    assert!(vga.read(Tsc(0), 0x3da).is_some());
    assert!(vga.write(0x3c0, 0x10));
    assert!(vga.write(0x3c0, 0x01));
    assert_eq!((vga.read(Tsc(0), 0x3c0), vga.read(Tsc(0), 0x3c1)), (Some(0x10), Some(0x01)));
    // Reading the input status makes the next write an index again.
    assert!(vga.write(0x3c0, 0x11));
    assert!(vga.read(Tsc(0), 0x3da).is_some());
    assert!(vga.write(0x3c0, 0x03));
    assert!(vga.write(0x3c0, 0x2a));
    assert_eq!(vga.read(Tsc(0), 0x3c1), Some(0x2a));
    // While the palette is shown, it is not the processor's.
    assert!(vga.write(0x3c0, 0x23));
    assert!(vga.write(0x3c0, 0x00));
    assert_eq!(vga.read(Tsc(0), 0x3c1), Some(0x2a));
}

#[test]
fn the_palettes_index_counts_by_three() {
    let mut vga = vga();
    assert!(vga.write(0x3c8, 254));
    for value in [1, 2, 3, 4, 5, 0xff, 7] {
        assert!(vga.write(0x3c9, value));
    }
    assert!(vga.write(0x3c7, 254));
    assert_eq!(vga.read(Tsc(0), 0x3c7), Some(3));
    let read: Vec<u8> = (0..7).map(|_| vga.read(Tsc(0), 0x3c9).unwrap()).collect();
    assert_eq!(read, [1, 2, 3, 4, 5, 0x3f, 7]);
}

#[test]
fn the_crt_controller_moves_with_the_colour_bit_and_protects_its_timing() {
    let mut vga = vga();
    assert_eq!(get_register(&mut vga, 0x3d4, 0), 0x5f);
    set_register(&mut vga, 0x3d4, 0, 0);
    set_register(&mut vga, 0x3d4, 7, 0xff);
    assert_eq!((get_register(&mut vga, 0x3d4, 0), get_register(&mut vga, 0x3d4, 7)), (0x5f, 0x1f));
    set_register(&mut vga, 0x3d4, 0x11, 0x0e);
    set_register(&mut vga, 0x3d4, 0, 0x2d);
    assert_eq!(get_register(&mut vga, 0x3d4, 0), 0x2d);
    assert_eq!(vga.read(Tsc(0), 0x3b4), None);
    assert!(vga.write(0x3c2, 0x66));
    assert_eq!((vga.read(Tsc(0), 0x3d4), vga.read(Tsc(0), 0x3da)), (None, None));
    assert_eq!(get_register(&mut vga, 0x3b4, 0), 0x2d);
    assert_eq!(vga.read(Tsc(0), 0x3cc), Some(0x66));
}

#[test]
fn the_retrace_comes_70_times_a_second() {
    let mut vga = vga();
    let mut retraces = 0;
    let mut before = 0;
    for microsecond in 0..1_000_000u64 {
        let status = vga.read(Tsc(microsecond * 1000), 0x3da).unwrap() & INPUT_RETRACE;
        retraces += u32::from(status > before);
        before = status;
    }
    assert_eq!(retraces, 70);
}

proptest! {
    #[test]
    fn no_access_panics(accesses in prop::collection::vec(
        (0u8..5, 0x3b0u16..0x3e0, any::<u8>(), 0u64..0x2_0010, any::<u64>()), 0..300)) {
        let mut vga = vga();
        for (what, port, value, offset, now) in accesses {
            match what {
                0 => { vga.read(Tsc(now), port); }
                1 | 2 => { vga.write(port, value); }
                3 => { vga.read_memory(offset); }
                _ => { vga.write_memory(offset, value); }
            }
        }
        vga.window_is_text();
        if let Some(lines) = vga.screen() {
            prop_assert!(lines.len() <= 60 && lines.iter().all(|line| line.chars().count() <= 132));
        }
    }
}
