//! `--to events`: for the event-driven engine, `fewstep infer`.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use fewstep_events::{Connection, Dense, Layer, Network as EventNetwork, Precision, Shortcut};
use fewstep_spiking::plan::{Connection as Planned, UnitPlan};
use fewstep_spiking::{Mode, Network, Neuron, Reset, Synapse, Unit};
use tch::Tensor;

use crate::trained::Trained;

/// Writes the model file and says what is in it.
pub(super) fn write(trained: &Trained, precision: Precision, path: &Path) -> Result<String> {
    let Mode::Spiking { timesteps } = trained.mode else {
        bail!(
            "--to events: expected a spiking stage, found the artificial network (it goes --to onnx)"
        )
    };
    let images = &trained.images;
    let experiment = &trained.experiment;
    let mut provenance = vec![
        ("run", experiment.name.clone()),
        ("stage", trained.stage.clone()),
        ("data", images.data.clone()),
        ("architecture", trained.network.plan().name.clone()),
    ];
    if let Some(accuracy) = trained.test_accuracy {
        provenance.push(("test_accuracy", accuracy.to_string()));
    }
    provenance.push(("fewstep", env!("CARGO_PKG_VERSION").into()));
    let network = EventNetwork {
        name: format!("{} {}", experiment.name, trained.stage),
        timesteps: timesteps as usize,
        mean: images.mean.clone(),
        std: images.std.clone(),
        classes: images.classes.clone(),
        provenance: provenance
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
        ..network(&trained.network)?
    };
    network.save(path, precision)?;
    Ok(format!(
        "{} layers, T={timesteps}, {}",
        network.layers.len(),
        match precision {
            Precision::Float32 => "float32",
            Precision::Int8 => "int8",
        }
    ))
}

/// The layers and the reset as plain numbers; the rest is the caller's.
///
/// # Errors
/// Batch norm that is not folded, layers that reset differently, or libtorch refuses.
pub(crate) fn network(network: &Network) -> Result<EventNetwork> {
    let plan = network.plan();
    let pairs = || network.units().iter().zip(&plan.units);
    let mut resets = pairs().filter_map(|(unit, _)| unit.neuron.as_ref().map(Neuron::reset));
    let reset = resets.next().unwrap_or_default();
    if let Some(other) = resets.find(|r| *r != reset) {
        bail!("--to events: expected one reset in all layers, found {reset:?} and {other:?}");
    }
    Ok(EventNetwork {
        name: plan.name.clone(),
        input: plan.input.map(|d| d as usize),
        reset: match reset {
            Reset::Soft => fewstep_events::Reset::Soft,
            Reset::Hard => fewstep_events::Reset::Hard,
            Reset::None => fewstep_events::Reset::None,
        },
        layers: pairs()
            .map(|(unit, planned)| layer(unit, planned))
            .collect::<Result<_>>()?,
        ..EventNetwork::default()
    })
}

fn layer(unit: &Unit, planned: &UnitPlan) -> Result<Layer> {
    let neuron = |tensor: fn(&Neuron) -> &Tensor| match &unit.neuron {
        Some(neuron) => numbers(tensor(neuron)),
        None => Ok(Vec::new()),
    };
    let projection = match (&unit.projection, planned.shortcut.map(|s| s.projection)) {
        (Some(synapse), Some(Some(Planned::Conv { stride, .. }))) => {
            Some((stride as usize, dense(unit, synapse)?))
        }
        _ => None,
    };
    Ok(Layer {
        name: unit.name.clone(),
        connection: match planned.connection {
            Planned::Conv {
                kernel,
                stride,
                padding,
                ..
            } => Connection::Conv {
                kernel: kernel as usize,
                stride: stride as usize,
                padding: padding as usize,
            },
            Planned::Linear { .. } => Connection::Linear,
        },
        outputs: planned.connection.outputs() as usize,
        dense: dense(unit, &unit.synapse)?,
        threshold: neuron(|n| &n.threshold)?,
        leak: neuron(|n| &n.leak)?,
        pool: planned.pool,
        shortcut: planned.shortcut.map(|s| Shortcut {
            from: s.from,
            projection,
        }),
    })
}

fn dense(unit: &Unit, synapse: &Synapse) -> Result<Dense> {
    if synapse.batch_norm.is_some() {
        return Err(anyhow!(
            "--to events: layer `{}` has a batch norm that is not folded",
            unit.name
        ));
    }
    Ok(Dense {
        weight: numbers(&synapse.weight)?,
        bias: synapse.bias.as_ref().map_or(Ok(Vec::new()), numbers)?,
    })
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(Vec::try_from(&tensor.f_flatten(0, -1)?.f_detach()?)?)
}
