//! Accuracy, loss and spike rates on a split; energy and latency from them.

use std::time::Instant;

use fewstep_metrics::{EnergyModel, EnergyOptions, EnergyReport, LatencySummary, LayerActivity};
use fewstep_spiking::{Forward, Input, Mode, Monitor, Network, monitor};
use fewstep_torch::Group;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::data::{Batches, Data, Split};
use crate::loss::cross_entropy;
use crate::ranks::{Part, shard};
use crate::{Error, Result};

/// Accuracy and loss on a split.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Share of images whose largest logit is the label's.
    pub accuracy: f64,
    /// Mean cross entropy, without label smoothing.
    pub loss: f64,
    /// Images seen.
    pub images: usize,
}

/// Spike rates of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerRates {
    /// The layer.
    pub layer: String,
    /// Mean spikes per neuron and image, summed over T.
    pub spike_rate: f64,
    /// The same for each timestep.
    pub per_timestep: Vec<f64>,
    /// Channels that never fired, of all channels.
    pub silent_channels: usize,
    /// All channels.
    pub channels: usize,
}

impl From<monitor::LayerActivity> for LayerRates {
    fn from(l: monitor::LayerActivity) -> Self {
        Self {
            layer: l.name,
            spike_rate: l.spike_rate,
            per_timestep: l.spike_rate_per_timestep,
            silent_channels: l.silent_channels,
            channels: l.channels,
        }
    }
}

const BATCH: usize = 250;
/// Images in a batch under `limits.batches`.
const QUICK_BATCH: usize = 4;

/// Runs the network over a split, or the first `limit` batches of it, of which each rank takes its part; all of them learn the same. A
/// monitor must be new.
pub(crate) fn evaluate(
    network: &Network,
    mode: Mode,
    data: &Data,
    split: Split,
    limit: Option<usize>,
    group: &Group,
    mut monitor: Option<&mut Monitor>,
) -> Result<Evaluation> {
    let _guard = tch::no_grad_guard();
    let options = Forward::evaluation(mode);
    // Large images and many timesteps would not fit in memory at once.
    let pixels = network
        .plan()
        .units
        .first()
        .map_or(1, fewstep_spiking::plan::UnitPlan::neurons)
        .max(1);
    let timesteps = if let Mode::Spiking { timesteps } = mode {
        i64::from(timesteps)
    } else {
        1
    };
    let batch = BATCH.min((100_000_000 / (pixels * timesteps)).max(1) as usize);
    // A quick look is for the path, not for the figure.
    let batch = if limit.is_some() {
        batch.min(QUICK_BATCH)
    } else {
        batch
    };
    let loader = data.evaluation(split, batch, shard(group))?;
    let device = network.device();
    // Right answers and loss, which stay on the device, and images.
    let mut sums = Tensor::f_zeros([2], (Kind::Double, device))?;
    let mut images = 0.;
    let batches = limit.unwrap_or(usize::MAX);
    let loaded = Batches::new(&loader, 0, device, None)?;
    for (i, own) in loaded.take(batches).enumerate() {
        let part = Part::new(group, &loader, i, own?, device)?;
        let n = part.share.part.len as f64;
        let seen = images > 0.;
        if n == 0. && (seen || monitor.is_none()) {
            continue;
        }
        let logits = network
            .forward(
                Input::Direct(&part.images),
                &options,
                monitor.as_deref_mut(),
            )?
            .logits;
        if let (true, Some(monitor)) = (n == 0., monitor.as_deref_mut()) {
            // It knows the layers now, which it needs to take part below.
            monitor.forget()?;
            continue;
        }
        let y = &part.labels;
        let correct = logits.f_argmax(-1, false)?.f_eq_tensor(y)?;
        let loss = cross_entropy(&logits, y, 0.)?.f_to_kind(Kind::Double)?;
        let both = [correct.f_sum(Kind::Double)?, loss.f_mul_scalar(n)?];
        let _ = sums.f_add_(&Tensor::f_stack(&both, 0)?)?;
        images += n;
    }
    let sums = sums.f_to_device(tch::Device::Cpu)?;
    let [correct, loss] = [0, 1].map(|i| sums.f_double_value(&[i]));
    let mut sums = [correct?, loss?, images];
    group.sum("the figures of an evaluation", &mut sums)?;
    if let Some(monitor) = monitor {
        monitor.gather(group)?;
    }
    let [correct, loss, images] = sums;
    if images == 0. {
        return Err(Error::Checkpoint(
            "the split to evaluate on is empty".into(),
        ));
    }
    Ok(Evaluation {
        accuracy: correct / images,
        loss: loss / images,
        images: images as usize,
    })
}

/// What the network does on the validation split at this T.
pub(crate) fn probe(
    network: &Network,
    timesteps: u32,
    data: &Data,
    limit: Option<usize>,
    group: &Group,
) -> Result<Monitor> {
    let mut monitor = Monitor::new();
    evaluate(
        network,
        Mode::Spiking { timesteps },
        data,
        Split::Validation,
        limit,
        group,
        Some(&mut monitor),
    )?;
    Ok(monitor)
}

/// Energy from measured spike rates (first layer once, published pool convention; both are repeated in the report).
pub(crate) fn energy(
    network: &Network,
    timesteps: u32,
    rates: &[LayerRates],
) -> Result<EnergyReport> {
    let (layers, activity): (Vec<_>, Vec<_>) = network
        .plan()
        .operations()
        .into_iter()
        .map(|(ops, source)| {
            let activity = match source {
                None => LayerActivity::ANALOG,
                // Sums of many thousand rates may pass T by a rounding error.
                Some(s) => LayerActivity::new(
                    rates
                        .get(s)
                        .map_or(0., |r| r.spike_rate.min(f64::from(timesteps))),
                ),
            };
            (ops, activity)
        })
        .unzip();
    Ok(EnergyModel::default().report(
        &layers,
        &activity,
        EnergyOptions::timesteps(u64::from(timesteps)),
    )?)
}

/// Total spikes over total neurons.
pub(crate) fn mean_rate(network: &Network, rates: &[LayerRates]) -> f64 {
    let neurons: Vec<_> = network
        .plan()
        .units
        .iter()
        .map(|u| u.neurons() as f64)
        .collect();
    let spikes: f64 = rates
        .iter()
        .zip(&neurons)
        .map(|(r, n)| r.spike_rate * n)
        .sum();
    spikes / neurons.iter().take(rates.len()).sum::<f64>().max(1.)
}

/// Wall-clock time of one forward pass of `images` `[N, …]`, per image: at most 30 samples or two seconds, after a warm-up.
pub(crate) fn latency(network: &Network, mode: Mode, images: &Tensor) -> Result<LatencySummary> {
    let _guard = tch::no_grad_guard();
    let options = Forward::evaluation(mode);
    let once = || -> Result<f64> {
        let start = Instant::now();
        // Reading a value waits for a GPU.
        network
            .forward(Input::Direct(images), &options, None)?
            .logits
            .f_sum(Kind::Float)?
            .f_double_value(&[])?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    once()?;
    once()?;
    let start = Instant::now();
    let mut samples = Vec::new();
    while samples.len() < 3 || (samples.len() < 30 && start.elapsed().as_secs_f64() < 2.) {
        samples.push(once()?);
    }
    Ok(LatencySummary::from_ms(&samples)?.per_image(images.size()[0].unsigned_abs() as usize)?)
}
