//! Text on a machine's screen, read back by the font that Lamina draws with.

use std::collections::HashMap;

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

const ROW: usize = RasterHeight::Size16.val();
const COLUMN: usize = get_raster_width(FontWeight::Regular, RasterHeight::Size16);

/// The lines of text in a picture (a PPM file's bytes), from the top, without spaces at their ends; what is no character
/// of the font in its place reads as `\u{fffd}`. `None` where these bytes are no such file.
pub fn text(picture: &[u8]) -> Option<Vec<String>> {
    let mut fields = picture.splitn(4, u8::is_ascii_whitespace);
    let (magic, width, height, rest) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<usize>().ok();
    let (width, height) = (number(width)?, number(height)?);
    let pixels = rest.strip_prefix(b"255\n").filter(|pixels| magic == b"P6" && pixels.len() == width * height * 3)?;
    let glyphs: HashMap<Vec<u8>, char> = (' '..='~')
        .filter_map(|character| {
            let raster = get_raster(character, FontWeight::Regular, RasterHeight::Size16)?;
            Some((raster.pixels().to_vec(), character))
        })
        .collect();
    let character = |row: usize, column: usize| {
        let at = |y: usize, x: usize| pixels[((row * ROW + y) * width + column * COLUMN + x) * 3];
        let cell: Vec<u8> = (0..ROW).flat_map(|y| (0..COLUMN).map(move |x| at(y, x))).collect();
        glyphs.get(&cell).copied().unwrap_or('\u{fffd}')
    };
    let line = |row| (0..width / COLUMN).map(|column| character(row, column)).collect::<String>().trim_end().to_owned();
    Some((0..height / ROW).map(line).collect())
}
