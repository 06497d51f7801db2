//! IIR-SNN (arXiv 2110.05929): iterative initialisation and retraining. An artificial network is trained and its batch norm folded, its
//! activations become spiking neurons with calibrated thresholds, and the network is trained at T₀ timesteps; then T is lowered,
//! each stage starting from the best weights, thresholds and leaks of the last, until one timestep is enough.
//!
//! [`Recipe`] is what will happen, as data; [`run`] makes it happen and can be killed at any moment. This crate knows nothing of
//! configs, plots or terminals: it reports to an [`Observer`].
//!
//! ```no_run
//! use fewstep_iir::{Data, Recipe, Silent};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let data = Data::open(&fewstep_datasets::DataSpec::new("digits", None), 0.15, 0)?;
//! let recipe = Recipe::default();
//! let group = fewstep_torch::Group::alone(); // or of several processes, which then train one network together
//! let report = fewstep_iir::run(&recipe, &data, std::path::Path::new("checkpoints"), tch::Device::Cpu, &group, &mut Silent)?;
//! for stage in &report.stages {
//!     println!("T={} {:.2} %", stage.timesteps, 100. * stage.test_accuracy);
//! }
//! # Ok(()) }
//! ```

mod calibrate;
mod data;
mod error;
mod evaluate;
mod fold;
mod loss;
mod observer;
mod phase;
mod pipeline;
mod ranks;
mod resident;
mod schedule;

pub use calibrate::{Calibrated, calibrate, percentile};
pub use data::{Data, DataOptions};
pub use error::{Error, Result};
pub use evaluate::{Evaluation, LayerRates};
pub use fold::fold_batch_norm;
pub use loss::{Distillation, distillation};
pub use observer::{Event, Observer, Silent};
pub use phase::epochs_done;
pub use pipeline::{AnnResult, Report, StageResult, run};
pub use schedule::{
    Arm, Calibration, CalibrationPreset, Direct, Epochs, Limits, NetworkOptions, Performance,
    PhaseKind, PhasePlan, Recipe, Snn, Training,
};
