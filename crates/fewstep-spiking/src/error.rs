/// What can go wrong in a spiking network. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// From libtorch or its border.
    #[error(transparent)]
    Torch(#[from] fewstep_torch::Error),
    /// An architecture that can't be built.
    #[error("architecture: {0}")]
    Plan(String),
    /// An option out of its range.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// Its name.
        option: &'static str,
        /// The valid range.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// An input of another shape than the network was planned for.
    #[error("input: expected {expected}, found {found:?}")]
    Input {
        /// The shape that fits.
        expected: String,
        /// The shape given.
        found: Vec<i64>,
    },
    /// Something was asked of the network that its present state lacks.
    #[error("{0}")]
    State(String),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        Self::Torch(e.into())
    }
}
