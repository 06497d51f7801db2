//! Spiking networks on libtorch: neurons with an explicit reset, surrogate gradients, encoders, the VGG and ResNet of the IIR-SNN
//! paper as one plan that runs as an artificial or as a spiking network, monitors, and operation counts.
//!
//! State is owned by a call: [`Network::forward`] starts from a membrane potential of zero and nothing leaks from batch to batch.
//! This crate knows nothing of stages, data sets or files.
//!
//! ```
//! use fewstep_spiking::{Forward, Input, Network, NeuronOptions, zoo};
//! use tch::{Device, Kind, Tensor};
//!
//! let plan = zoo::vgg("16 A 32 A", [3, 16, 16], &[64], 10, 1.0, false)?;
//! println!("{} parameters, {} MACs", plan.parameters(), plan.macs());
//! let mut network = Network::new(plan, Device::Cpu)?;
//! network.add_neurons(&NeuronOptions::default())?;
//! let images = Tensor::f_rand([4, 3, 16, 16], (Kind::Float, Device::Cpu))?;
//! let out = network.forward(Input::Direct(&images), &Forward::spiking(5), None)?;
//! assert_eq!(out.logits.size(), [4, 10]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod encode;
mod error;
pub mod monitor;
mod network;
mod neuron;
pub mod plan;
mod surrogate;
pub mod zoo;

pub use error::{Error, Result};
pub use monitor::Monitor;
pub use network::{
    BatchNorm, Forward, Input, MemoryFormat, Mode, Network, Output, Share, Synapse, Unit,
};
pub use neuron::{LeakOptions, Neuron, NeuronOptions, Reset};
pub use plan::Plan;
pub use surrogate::Surrogate;
