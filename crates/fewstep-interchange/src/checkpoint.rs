//! A network in one file of our own: its tensors, its plan, its neurons. What an import writes and later commands open.

use std::collections::BTreeMap;
use std::path::Path;

use fewstep_spiking::{Network, Neuron, NeuronOptions, Plan, Reset, Surrogate};
use fewstep_torch::Checkpoint;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::{Error, Imported, Notes, Result};

const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    plan: Plan,
    reset: Reset,
    surrogate: Surrogate,
    timesteps: u32,
    notes: Notes,
}

/// Writes a spiking network as a safetensors file, whole or not at all.
///
/// # Errors
/// The network has no neurons, or the file can't be written.
pub fn save(network: &Network, timesteps: u32, notes: &Notes, path: &Path) -> Result<()> {
    let neuron = first_neuron(network)?;
    let header = Header {
        format: FORMAT,
        plan: network.plan().clone(),
        reset: neuron.reset(),
        surrogate: neuron.surrogate(),
        timesteps,
        notes: notes.clone(),
    };
    let header = serde_json::to_string(&header).map_err(|e| Error::Unsupported(e.to_string()))?;
    Ok(Checkpoint::new()
        .with_all("", network.tensors())
        .with_string("network", header)
        .save(path)?)
}

/// Reads what [`save`] wrote.
///
/// # Errors
/// The file is absent, damaged, or not such a file.
pub fn load(path: &Path, device: Device) -> Result<Imported> {
    let file = Checkpoint::load(path)?;
    let at_fault = |reason: String| Error::File {
        path: path.into(),
        reason,
    };
    let text = file.string("network").ok_or_else(|| {
        at_fault("expected the file of an imported network, found no entry `network`".into())
    })?;
    let header: Header = serde_json::from_str(text)
        .map_err(|e| at_fault(format!("its entry `network` can't be read: {e}")))?;
    if header.format != FORMAT {
        return Err(at_fault(format!(
            "expected format {FORMAT}, found {}",
            header.format
        )));
    }
    let mut units = header.plan.units.iter().enumerate();
    if let Some((_, unit)) = units.find(|(i, u)| u.shortcut.is_some_and(|s| s.from >= *i)) {
        let name = &unit.name;
        return Err(at_fault(format!(
            "expected the shortcut of layer `{name}` to come from an earlier layer, found a later one"
        )));
    }
    let network = assemble(
        header.plan,
        header.reset,
        header.surrogate,
        &file.section(""),
        &path.display().to_string(),
        device,
    )?;
    Ok(Imported {
        network,
        timesteps: header.timesteps,
        notes: header.notes,
    })
}

/// A spiking network from its plan and tensors; a layer whose threshold has one element for each channel gets such neurons.
pub(crate) fn assemble(
    plan: Plan,
    reset: Reset,
    surrogate: Surrogate,
    tensors: &BTreeMap<String, Tensor>,
    what: &str,
    device: Device,
) -> Result<Network> {
    let mut network = Network::new(plan, device)?;
    let planned = network.plan().units.clone();
    for (unit, planned) in network.units_mut().iter_mut().zip(&planned) {
        if planned.active {
            let threshold = tensors.get(&format!("{}.threshold", unit.name));
            let options = NeuronOptions {
                reset,
                surrogate,
                per_channel: threshold.is_some_and(|t| t.numel() > 1),
                ..NeuronOptions::default()
            };
            unit.neuron = Some(Neuron::new(&options, planned.connection.outputs(), device)?);
        }
    }
    network.load(tensors, what)?;
    Ok(network)
}

/// All neurons of a network have one reset and one surrogate: those of the first.
pub(crate) fn first_neuron(network: &Network) -> Result<&Neuron> {
    network
        .units()
        .iter()
        .find_map(|u| u.neuron.as_ref())
        .ok_or_else(|| {
            Error::Unsupported("expected a spiking network, found one without neurons".into())
        })
}
