//! Why a configuration is refused.

use thiserror::Error;

/// A configuration that is refused; every message names the file, and where there is one the key and its value.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {reason}")]
    Unreadable {
        /// The file.
        file: String,
        /// The operating system's words.
        reason: String,
    },
    /// The text is no TOML.
    #[error("{file}: {reason}")]
    Syntax {
        /// The file.
        file: String,
        /// The parser's words, with line and column.
        reason: String,
    },
    /// A key that must be there is not.
    #[error("{file}: {key} is missing: {reason}")]
    Missing {
        /// The file.
        file: String,
        /// The key and the table it belongs to.
        key: String,
        /// What it should hold.
        reason: String,
    },
    /// A key, or its value, is refused.
    #[error("{file}: {key} = {value}: {reason}")]
    Refused {
        /// The file.
        file: String,
        /// The key and the table it is in.
        key: String,
        /// The value, in TOML's notation.
        value: String,
        /// Why.
        reason: String,
    },
}
