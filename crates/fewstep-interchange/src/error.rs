use std::path::PathBuf;

/// What can go wrong between formats. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// From the network.
    #[error(transparent)]
    Spiking(#[from] fewstep_spiking::Error),
    /// From libtorch, or a file that can't be written.
    #[error(transparent)]
    Torch(#[from] fewstep_torch::Error),
    /// A file that is not what it should be.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A node of a NIR graph that Fewstep has no layer for, or that is damaged.
    #[error("node `{node}`: {reason}")]
    Node {
        /// Its name in the graph.
        node: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// A NIR graph that is at fault as a whole.
    #[error("graph: {0}")]
    Graph(String),
    /// A network that the format can't hold.
    #[error("{0}")]
    Unsupported(String),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        Self::Torch(e.into())
    }
}
