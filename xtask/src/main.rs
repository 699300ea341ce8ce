//! `cargo xtask`: see the library of this crate.
fn main() -> std::process::ExitCode {
    xtask::cli::main()
}
