//! Accuracy, operation counts, energy and latency of artificial and spiking networks, and how good generated samples are
//! by their features: Fréchet distance, Inception Score, kernel distance, precision and recall. No libtorch.
//!
//! Everything here takes plain numbers and slices and gives back plain structs that serialise with units in their key names.
//! The crate knows nothing of tensors, networks, files or the runners: whoever has a network describes it as a list of
//! [`LayerOps`] and what it did on the test set as a list of [`LayerActivity`].
//!
//! ```
//! use fewstep_metrics::{EnergyModel, EnergyOptions, LayerActivity, LayerOps};
//!
//! let layers = [
//!     LayerOps::conv("conv1", 1_769_472, 65_536),
//!     LayerOps::conv("conv2", 37_748_736, 65_536),
//!     LayerOps::linear("fc", 163_840, 0).pooled(4), // read-out behind a 2×2 average pool
//! ];
//! let activity = [LayerActivity::ANALOG, LayerActivity::new(0.12), LayerActivity::new(0.08)];
//! let report = EnergyModel::default().report(&layers, &activity, EnergyOptions::timesteps(1))?;
//! assert!(report.ratio > 10.0);
//! # Ok::<(), fewstep_metrics::MetricsError>(())
//! ```

mod accuracy;
mod energy;
mod error;
mod features;
mod frechet;
mod inception_score;
mod kernel_distance;
mod latency;
mod precision_recall;

pub use accuracy::{ConfusionMatrix, Logits};
pub use energy::{
    EnergyModel, EnergyOptions, EnergyReport, FirstLayer, LayerActivity, LayerEnergy, LayerKind,
    LayerOps, PoolConvention,
};
pub use error::MetricsError;
pub use features::{FeatureError, FeatureRows};
pub use frechet::{FeatureStatistics, frechet_distance};
pub use inception_score::{InceptionScore, Score, Splits};
pub use kernel_distance::{KernelDistance, KernelOptions, kernel_distance};
pub use latency::{LatencyReport, LatencySummary};
pub use precision_recall::{PrecisionRecall, precision_recall};
