//! NIR, the Neuromorphic Intermediate Representation (Pedersen et al. 2024, <https://neuroir.org>): a graph of layers and neurons in an
//! HDF5 file that snnTorch, Norse, Lava, SpiNNaker and others read and write.
//!
//! # Neurons
//!
//! NIR writes neurons as differential equations, Fewstep as one step (`m[t] = λ·u[t−1] + x[t]`, a spike where m > θ). One Euler step of
//! NIR's `LIF`, τ·v̇ = (v_leak − v) + R·I, over Δt is v ← (1 − Δt/τ)·v + R·Δt/τ·I for v_leak = 0, so that
//!
//! | Fewstep | NIR | back |
//! | --- | --- | --- |
//! | leak λ < 1 | `LIF` with τ = Δt / (1 − λ), R = τ / Δt, v_leak = 0 | λ = 1 − Δt/τ |
//! | leak λ = 1 | `IF` with R = 1 (a step's current is added as it is) | λ = 1 |
//! | threshold θ | v_threshold, one value a neuron | θ / gain, gain = R·Δt/τ or R |
//!
//! with Δt = 10⁻⁴ as in snnTorch. λ as it was trained lies beside τ, in the node's metadata `leak`, and is taken back from there where it
//! agrees with τ: the round trip is exact. Where some channels of a layer have λ = 1 and others less, the layer is a `LIF` and those
//! channels have the largest λ below 1 for other readers.
//!
//! NIR knows one reset, to v_reset (0 here). Fewstep's `soft` and `none` are in the graph's metadata `reset`; a reader that does not look
//! there resets hard, which makes no difference at T = 1. A file without that entry has NIR's hard reset.
//!
//! # Graph
//!
//! `Conv2d`, `Linear` or `Affine` into a neuron, `AvgPool2d` (2×2) behind it, `Flatten` before the first fully connected layer. A shortcut
//! is a second edge into the neuron, from an earlier neuron (or pool) or through a `Conv2d` of its own: NIR adds what enters a node.
//! The read-out is a `Linear` or `Affine` into `Output`; logits are its outputs summed over T, so its bias is 1/T of Fewstep's, which is
//! added once. A file whose `Output` follows neurons gets an identity as read-out: logits are spike counts. The image enters at every
//! timestep (direct encoding).
//!
//! The graph's metadata, strings: `reset`, `surrogate` (JSON), `timesteps`, `dt`, `encoding`, `readout`, `architecture`, and the caller's
//! notes.

mod from_graph;
mod graph;
mod hdf5;
#[cfg(test)]
pub(crate) mod tests;
mod to_graph;

use std::path::Path;

use fewstep_spiking::{Network, Reset};
use tch::Device;

use crate::{Imported, Notes, Result};

/// Δt where a file says nothing else, in seconds: snnTorch's.
const DT: f64 = 1e-4;
/// Keys of the metadata that are Fewstep's own and no notes.
const OWN: [&str; 7] = [
    "reset",
    "surrogate",
    "timesteps",
    "dt",
    "encoding",
    "readout",
    "architecture",
];

/// What a file may leave out. What is given here goes before what the file says.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ImportOptions {
    /// T. Without it what the file says, or 1.
    pub timesteps: Option<u32>,
    /// The reset. Without it what the file says, or NIR's hard one.
    pub reset: Option<Reset>,
    /// Δt in seconds. Without it what the file says, or 10⁻⁴.
    pub dt: Option<f64>,
}

/// Writes a spiking network that runs over `timesteps` as a `.nir` file.
///
/// # Errors
/// The network has no neurons or its batch norm is not folded; the file can't be written.
pub fn export(network: &Network, timesteps: u32, notes: &Notes, path: &Path) -> Result<()> {
    hdf5::write(&to_graph::graph(network, timesteps, notes)?, path)
}

/// Reads a `.nir` file.
///
/// # Errors
/// Names the node that Fewstep has no layer for, that lies on a cycle, or whose shapes do not fit.
pub fn import(path: &Path, options: &ImportOptions, device: Device) -> Result<Imported> {
    from_graph::network(&hdf5::read(path)?, options, device)
}
