//! The command surface of Lamina: `cargo xtask`.
fn main() {}
