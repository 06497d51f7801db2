/// What can go wrong while training. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// From the network.
    #[error(transparent)]
    Spiking(#[from] fewstep_spiking::Error),
    /// From libtorch's border: checkpoints, optimisers.
    #[error(transparent)]
    Torch(#[from] fewstep_torch::Error),
    /// From the data.
    #[error(transparent)]
    Data(#[from] fewstep_datasets::Error),
    /// From a metric.
    #[error(transparent)]
    Metrics(#[from] fewstep_metrics::MetricsError),
    /// A recipe that can't be followed; `key` is the option's place in a config.
    #[error("{key}: {reason}")]
    Recipe {
        /// The option, as `snn.timesteps`.
        key: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// The loss is no longer a number.
    #[error(
        "stage {stage}: the loss is {loss} in epoch {epoch}, batch {batch}: {place}; lower the learning rate"
    )]
    NotFinite {
        /// `ann`, `t5`, …
        stage: String,
        /// What the loss was.
        loss: f64,
        /// From 1.
        epoch: u32,
        /// From 1.
        batch: usize,
        /// The layer where it begins.
        place: String,
    },
    /// A step does not fit in memory.
    #[error(
        "stage {stage}: {what}; lower {section}.batch_size and raise {section}.accumulate by the same factor, which makes steps of as many images"
    )]
    OutOfMemory {
        /// `ann`, `t5`, …
        stage: String,
        /// What was asked for, and what there is.
        what: String,
        /// Of the config.
        section: &'static str,
    },
    /// An epoch's last step left weights that give no number.
    #[error(
        "stage {stage}: after epoch {epoch} {place}, the validation loss is {loss}; lower the learning rate"
    )]
    NotFiniteAfter {
        /// `ann`, `t5`, …
        stage: String,
        /// From 1.
        epoch: u32,
        /// On the validation split.
        loss: f64,
        /// The parameter or layer where it begins.
        place: String,
    },
    /// A layer that no input makes fire.
    #[error(
        "stage {stage}: layer `{layer}` is dead, none of its neurons fires for any validation image, so nothing behind it can learn; \
         lower the thresholds (calibration.percentile, calibration.scale)"
    )]
    Dead {
        /// `t5`, …
        stage: String,
        /// The layer.
        layer: String,
    },
    /// A checkpoint folder that belongs to something else or is damaged.
    #[error("{0}")]
    Checkpoint(String),
    /// The observer could not record something (a full disk, say).
    #[error("{0}")]
    Observer(Box<dyn std::error::Error + Send + Sync>),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether there was not enough memory.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Torch(e) | Self::Spiking(fewstep_spiking::Error::Torch(e)) => {
                e.is_out_of_memory()
            }
            _ => false,
        }
    }
}

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        Self::Torch(e.into())
    }
}
