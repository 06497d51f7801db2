//! What can go wrong with a run folder.

use std::io;
use std::path::{Path, PathBuf};

/// One sentence each, naming the folder or the file.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A whole file could not be written.
    #[error(transparent)]
    File(#[from] fewstep_torch::Error),
    /// The report could not be made from what is in the folder.
    #[error(transparent)]
    Report(#[from] fewstep_report::Error),
    /// The run's name would not be one folder inside of the root.
    #[error(
        "the run name {name:?} must be letters, digits, `-`, `_` and `.`, and must not begin with `.`"
    )]
    Name {
        /// The name that was asked for.
        name: String,
    },
    /// Somebody else's run, or an earlier one, is in the folder.
    #[error(
        "{} already holds {state} run; {}replace it by --force, or choose another name",
        path.display(), if *state == "an unfinished" { "go on with it by --resume, " } else { "" }
    )]
    Exists {
        /// The run folder.
        path: PathBuf,
        /// "a finished" or "an unfinished".
        state: &'static str,
    },
    /// A second process on one folder.
    #[error("{} is in use by another process; wait for its end or choose another name", path.display())]
    Locked {
        /// The run folder.
        path: PathBuf,
    },
    /// Files of a run whose config is gone, so that nobody can say what they belong to.
    #[error("{} holds files of a run but no config.toml, so it cannot be resumed; replace it by --force", path.display())]
    NoConfig {
        /// The run folder.
        path: PathBuf,
    },
    /// The config of the run to be resumed is another one.
    #[error(
        "cannot resume {}: `{key}` was {old} when the run began and is {new} now; set it back, or choose another name",
        path.display()
    )]
    ConfigChanged {
        /// The run's config.toml.
        path: PathBuf,
        /// The first key that differs.
        key: String,
        /// Its value in the run's config.toml, or "not set".
        old: String,
        /// Its value now, or "not set".
        new: String,
    },
    /// The config of the run to be resumed is damaged.
    #[error("cannot resume: {} is not valid TOML: {message}", path.display())]
    BadConfig {
        /// The run's config.toml.
        path: PathBuf,
        /// The parser's reason.
        message: String,
    },
    /// A line of the event log is not a JSON object.
    #[error("{}:{line}: expected a JSON object on the line, found something else: {message}", path.display())]
    BadEvent {
        /// The events.jsonl.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The parser's reason.
        message: String,
    },
    /// The config has something that TOML has no form for.
    #[error("the resolved config cannot be written as TOML: {0}")]
    ConfigToToml(#[source] toml::ser::Error),
    /// A summary that JSON has no form for.
    #[error("the summary cannot be written as JSON: {0}")]
    ToJson(#[source] serde_json::Error),
    /// The file system failed: no space, no permission, …
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl RunError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }
}
