use std::path::PathBuf;

use fewstep_metrics::FeatureError;

/// What can go wrong between images and figures. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch, or a file of weights that can't be read.
    #[error(transparent)]
    Torch(#[from] fewstep_torch::Error),
    /// Features that no figure can be made of.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// Weights of another network.
    #[error("{path}: expected the weights of {network}, found others: {reason}", path = path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// The network.
        network: &'static str,
        /// Every tensor that is missing, too many or of another shape.
        reason: String,
    },
    /// Images that a network does not take.
    #[error(
        "images must be [number, height, width, 1 or 3 channels] with at least one pixel, found {found:?}"
    )]
    Images {
        /// Their shape.
        found: Vec<usize>,
    },
    /// A figure that is not taken on this network's features.
    #[error("{metric} is not taken on these features; {network} gives {known}")]
    Metric {
        /// What was asked for.
        metric: &'static str,
        /// What the network's distance is called.
        network: &'static str,
        /// What there is.
        known: String,
    },
    /// Two sets that have no figure in common.
    #[error(
        "the two sets have no figure in common: each lacks the statistics that the other one has"
    )]
    NothingInCommon,
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(error.into())
    }
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;
