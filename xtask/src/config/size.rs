//! Sizes as people write them: `"256M"`, `"1G"`, `"64K"`, `"4096"`.

/// Reads a size. Unit of the result: bytes. `None` if the text is no size or does not fit in 64 bits.
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Writes a size with the largest unit that divides it.
pub fn format(bytes: u64) -> String {
    for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse("256M"), Some(256 << 20));
        assert_eq!(parse("1G"), Some(1 << 30));
        assert_eq!(parse("64KiB"), Some(64 << 10));
        assert_eq!(parse("4096"), Some(4096));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "-1M", "1.5G", "1X", "1 M", "0x10", "99999999999999999999", "99999999999G"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn written_sizes_read_back() {
        for bytes in [1, 4096, 5 << 20, 3 << 30, (1 << 20) + 4096, 0] {
            assert_eq!(parse(&format(bytes)), Some(bytes));
        }
    }
}
