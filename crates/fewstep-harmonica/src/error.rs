use std::path::{Path, PathBuf};

/// What can go wrong with plans, routers and their training. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// From the model or the sampler.
    #[error(transparent)]
    Diffusion(#[from] fewstep_diffusion::Error),
    /// From libtorch or its border.
    #[error(transparent)]
    Torch(#[from] fewstep_torch::Error),
    /// An option out of its range.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// Its name.
        option: &'static str,
        /// The valid range.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A value that makes no sense.
    #[error("{key}: {reason}")]
    Invalid {
        /// Where it stands.
        key: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// A file that is not what it should be.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The line or key, what was expected and what was found.
        reason: String,
    },
    /// The loss is not a number.
    #[error("the loss is {loss} in trajectory {trajectory}: lower the learning rate")]
    Diverged {
        /// The trajectory, from 1.
        trajectory: u32,
        /// The loss.
        loss: f64,
    },
    /// Whoever watches asked to stop, or could not write down what was seen.
    #[error("{0}")]
    Stopped(String),
    /// A plan or router that was made for something else.
    #[error("{what} does not fit: {reason}")]
    Mismatch {
        /// Which one.
        what: String,
        /// Everything that differs.
        reason: String,
    },
}

impl Error {
    /// Whether there was not enough memory, so that smaller batches may help.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Diffusion(e) => e.is_out_of_memory(),
            Self::Torch(e) => e.is_out_of_memory(),
            _ => false,
        }
    }

    pub(crate) fn option(
        option: &'static str,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> Self {
        Self::Option {
            option,
            expected: expected.into(),
            found: found.to_string(),
        }
    }

    pub(crate) fn file(path: &Path, reason: impl Into<String>) -> Self {
        Self::File {
            path: path.into(),
            reason: reason.into(),
        }
    }
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        Self::Torch(e.into())
    }
}
