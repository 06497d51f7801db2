//! What can go wrong.

use std::io;
use std::path::{Path, PathBuf};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder that no run has written.
    #[error("{path}: expected a run folder with config.toml, found {found}")]
    NoRun {
        /// The folder.
        path: PathBuf,
        /// What is there instead.
        found: &'static str,
    },
    /// A file that cannot be read.
    #[error("{path}: expected {expected}, found {found}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// What is, with its place.
        found: String,
    },
    /// A file that leads out of the folder it is in.
    #[error("{path}: expected a file inside {folder}, found a link that leads out of it")]
    Outside {
        /// The file.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
    },
    /// The dashboard cannot listen.
    #[error("port {port} of this machine: {source}")]
    Port {
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The file system fails.
    #[error("{path} could not be {what}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: `read`.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The server failed.
    #[error("the dashboard stopped: {0}")]
    Server(io::Error),
}

impl Error {
    /// For `map_err`.
    pub(crate) fn io(path: &Path, what: &'static str) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            path: path.clone(),
            what,
            source,
        }
    }
}
