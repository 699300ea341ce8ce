//! Where things are: the workspace, and the cache that survives `cargo clean`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the checkout that this program was built from.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("."))
}

/// The cache for what is slow to make or to fetch: `LAMINA_CACHE`, else `lamina` in `XDG_CACHE_HOME`, else in
/// `~/.cache`. It is created when missing.
///
/// # Errors
/// There is no home directory, or the directory cannot be created.
pub fn cache() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("LAMINA_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|directory| directory.join("lamina")))
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache/lamina")))
        .context("no home directory for the cache: set LAMINA_CACHE")?;
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot create the cache {}", cache.display()))?;
    // Programs are run from here with other working directories.
    std::path::absolute(&cache).with_context(|| format!("cannot use the cache {}", cache.display()))
}

/// The first program of this name in `PATH`; `/sbin` and its like are searched too.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}
