//! Writes `docs/guide/hostile.md` from the table of the hostile suite.
#![forbid(unsafe_code)]

fn main() -> std::io::Result<()> {
    std::fs::write(lamina_tests::hostile::path(), lamina_tests::hostile::page())
}
