//! `cargo xtask` as a user calls it, for what it refuses.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xtask::paths;

/// Where `cargo xtask test` says which program it is.
pub const PROGRAM: &str = "LAMINA_XTASK";

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status; `None` after a signal.
    pub status: Option<i32>,
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
}

pub(crate) fn xtask(arguments: &[&str], directory: &Path, limit: Duration) -> Result<Outcome> {
    let mut command = match std::env::var_os(PROGRAM).filter(|program| !program.is_empty()) {
        Some(program) => Command::new(program),
        None => {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            let manifest = paths::workspace().join("Cargo.toml");
            cargo.args(["run", "--quiet", "--package", "xtask", "--manifest-path"]).arg(manifest).arg("--");
            cargo
        }
    };
    command.args(arguments).current_dir(directory);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let (output, errors) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > limit {
            drop(child.kill());
            drop(child.wait());
            bail!("`xtask {}` did not come to its end", arguments.join(" "));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
    Ok(Outcome { status: status.code(), output: text(output), errors: text(errors) })
}

/// `cargo test` with these arguments, in the workspace.
///
/// # Errors
/// It cannot be started.
pub fn cargo_test(arguments: &[&str]) -> Result<Outcome> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.arg("test").args(arguments).current_dir(paths::workspace()).stdin(Stdio::null()).env("RUST_BACKTRACE", "0");
    let output = command.output().context("cannot start cargo")?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Outcome { status: output.status.code(), output: text(output.stdout), errors: text(output.stderr) })
}

/// Reads to the end beside everything else, so that neither pipe fills up.
fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth showing.
            drop(pipe.read_to_end(&mut bytes));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
