//! Runs spiking networks of one timestep (and of a few) where their saving is real: on a CPU, by adding a weight row where a spike is.
//!
//! No libtorch, no Python: a model file, a few calls.
//!
//! ```
//! use fewstep_events::{Connection, Dense, Images, Layer, Model, Network, Options, Precision};
//!
//! // Two pixels, two neurons, two classes; `fewstep export RUN --to events` writes such a network from a training run.
//! let layer = |name: &str, weight, threshold: &[f32]| Layer {
//!     name: name.into(),
//!     connection: Connection::Linear,
//!     outputs: 2,
//!     dense: Dense { weight, bias: vec![] },
//!     threshold: threshold.into(),
//!     leak: vec![1.; threshold.len()],
//!     pool: false,
//!     shortcut: None,
//! };
//! let network = Network {
//!     name: "left or right".into(),
//!     input: [1, 1, 2],
//!     mean: vec![0.],
//!     std: vec![1.],
//!     layers: vec![
//!         layer("hidden", vec![1., -1., -1., 1.], &[0.5]),
//!         layer("readout", vec![1., 0., 0., 1.], &[]),
//!     ],
//!     ..Network::default()
//! };
//! let model = Model::from_network(&network, Precision::Float32)?;
//! assert_eq!(model.run(&[255, 0])?.class(), 0);
//!
//! let mut session = model.session(Options::default())?;
//! let mut scores = [0.; 4];
//! session.run(Images::Pixels(&[255, 0, 0, 255]), &mut scores)?;
//! assert_eq!(scores, [1., 0., 0., 1.]);
//! # Ok::<(), fewstep_events::Error>(())
//! ```

mod bytes;
#[cfg(feature = "cli")]
pub mod cli;
mod counts;
mod error;
mod file;
mod kernel;
mod model;
mod network;
mod session;

pub use counts::LayerCounts;
pub use error::{Error, Result};
pub use kernel::Instructions;
pub use model::{Model, Scores, best};
pub use network::{Connection, Dense, Layer, Network, Precision, Reset, Shortcut};
pub use session::{Images, Options, Session};

#[cfg(test)]
mod tests;
