/// What can go wrong in diffusion. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// From libtorch or its border.
    #[error(transparent)]
    Torch(#[from] fewstep_torch::Error),
    /// From the data set.
    #[error(transparent)]
    Data(#[from] fewstep_datasets::Error),
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
    /// What a `validate` found wrong.
    #[error("{option}: {reason}")]
    Setting {
        /// The option's name.
        option: &'static str,
        /// A clause that says what was expected and found.
        reason: String,
    },
    /// A tensor of another shape than it must have.
    #[error("{what}: expected {expected}, found {found:?}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// The shape that fits.
        expected: String,
        /// The shape given.
        found: Vec<i64>,
    },
    /// A file that is not what it should be.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// Whoever watches asked to stop, or could not write down what was seen.
    #[error("{0}")]
    Stopped(String),
    /// The loss is not a number.
    #[error("the loss is {loss} at step {step}: lower the learning rate or the gradient clip")]
    Diverged {
        /// The training step, from 1.
        step: u64,
        /// The loss.
        loss: f64,
    },
}

impl Error {
    /// Whether there was not enough memory, so that smaller batches may help.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Torch(e) if e.is_out_of_memory())
    }

    /// What a `validate` returns, as an error.
    pub(crate) fn setting((option, reason): (&'static str, String)) -> Self {
        Self::Setting { option, reason }
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
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        Self::Torch(e.into())
    }
}
