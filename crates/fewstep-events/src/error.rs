//! What can go wrong.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One clear sentence for each thing that can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file can't be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not a model, is damaged, or is of another version.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file, or `<memory>`.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A network that can't be.
    #[error("layer `{layer}`: {reason}")]
    Layer {
        /// Its name.
        layer: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// Another thing about the network.
    #[error("network: {0}")]
    Network(String),
    /// An image of another size.
    #[error("expected {expected} for each image, found {found}")]
    Image {
        /// How many of what.
        expected: String,
        /// What there is.
        found: String,
    },
    /// An option out of range.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// Its name.
        option: &'static str,
        /// Its range.
        expected: &'static str,
        /// Its value.
        found: String,
    },
    /// There is not enough memory.
    #[error("not enough memory for {0}")]
    Memory(String),
}
