//! Networks in other programs' formats: [NIR](nir) in and out, [ONNX](onnx) out.
//!
//! Batch norm must be folded first. Every writer writes aside and renames: half a file is never found. This crate knows nothing of
//! configs, runs and terminals; what a caller wants to say about a network travels as [`Notes`].
//!
//! ```
//! use fewstep_interchange::{Notes, nir, onnx};
//! use fewstep_spiking::{Network, NeuronOptions, zoo};
//! use tch::Device;
//!
//! let folder = std::env::temp_dir().join(format!("fewstep-interchange-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! let plan = zoo::vgg("8 A 16", [3, 8, 8], &[], 10, 1.0, false)?;
//! let mut network = Network::new(plan, Device::Cpu)?;
//! network.add_neurons(&NeuronOptions::default())?;
//!
//! nir::export(&network, 1, &Notes::new(), &folder.join("net.nir"))?;
//! let again = nir::import(&folder.join("net.nir"), &nir::ImportOptions::default(), Device::Cpu)?;
//! assert_eq!(again.network.plan().units, network.plan().units);
//! onnx::export_snn(&again.network, &again.notes, &folder.join("net.onnx"))?;
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod checkpoint;
mod error;
pub mod nir;
pub mod onnx;

use std::collections::BTreeMap;

use fewstep_spiking::Network;

pub use error::{Error, Result};

/// What is said about a network beside its weights: where it comes from, how images are normalised. Goes into the file's metadata.
pub type Notes = BTreeMap<String, String>;

/// A network that was read from a file.
#[derive(Debug)]
pub struct Imported {
    /// The network, with neurons.
    pub network: Network,
    /// T that it is meant for.
    pub timesteps: u32,
    /// What the file says about it.
    pub notes: Notes,
}

/// The values of a tensor on the CPU, row by row.
fn values(tensor: &tch::Tensor) -> Result<Vec<f32>> {
    let flat = tensor
        .f_detach()?
        .f_to_device(tch::Device::Cpu)?
        .f_to_kind(tch::Kind::Float)?
        .f_contiguous()?
        .f_view([-1])?;
    Ok(Vec::<f32>::try_from(flat)?)
}

/// Formats hold folded weights only.
fn expect_folded(network: &Network) -> Result<()> {
    match network
        .units()
        .iter()
        .find(|u| u.synapse.batch_norm.is_some())
    {
        Some(unit) => Err(Error::Unsupported(format!(
            "layer `{}`: expected batch norm folded into its weights, found it beside them",
            unit.name
        ))),
        None => Ok(()),
    }
}
