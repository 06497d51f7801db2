//! Thresholds from currents. Front to back, with the layers before already spiking: a layer's threshold is the largest, over timesteps, of
//! a percentile of its current over a batch.

use fewstep_spiking::{Input, Network};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Calibration, Error, Result};

/// What calibration gave one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibrated {
    /// The layer.
    pub layer: String,
    /// Its threshold (the mean over channels where there is one for each).
    pub threshold: f64,
}

/// A threshold that comes out at or below zero becomes this, as in the published code.
const FALLBACK: f64 = 0.1;
/// Timesteps fed at a time; membrane potentials are carried over, so the number changes memory and nothing else.
const CHUNK: u32 = 10;

/// The `p`-th percentile over all elements: the k-th smallest, k = 1 + round(p/100 · (n − 1)). Of `[C, n]` with `per_row`, one a row.
///
/// # Errors
/// libtorch refuses.
pub fn percentile(x: &Tensor, p: f64, per_row: bool) -> Result<Tensor> {
    let flat = if per_row {
        x.f_flatten(1, -1)?
    } else {
        x.f_flatten(0, -1)?.f_unsqueeze(0)?
    };
    let n = flat.size()[1];
    if n == 0 {
        return Err(Error::Checkpoint(
            "there is no percentile of nothing".into(),
        ));
    }
    // Half to even, as Python's round in the published code.
    let k = 1 + (p / 100. * (n - 1) as f64).round_ties_even() as i64;
    Ok(flat.f_kthvalue(k.clamp(1, n), 1, false)?.0)
}

/// Sets the thresholds of a network that has neurons, from one batch `images` `[N, C, H, W]`, with all leaks at 1 meanwhile.
///
/// `timesteps` overrides the setting's (the `calibrated` arm uses 1).
///
/// # Errors
/// The network has no neurons, or the images do not fit.
pub fn calibrate(
    network: &mut Network,
    images: &Tensor,
    setting: &Calibration,
    timesteps: u32,
) -> Result<Vec<Calibrated>> {
    let _guard = tch::no_grad_guard();
    let layers: Vec<usize> = (0..network.units().len())
        .filter(|&i| network.units()[i].neuron.is_some())
        .filter(|&i| setting.residual || !network.plan().units[i].name.starts_with("stage"))
        .collect();
    let leaks: Vec<Tensor> = network
        .units()
        .iter()
        .filter_map(|u| u.neuron.as_ref())
        .map(|n| n.leak.copy())
        .collect();
    for neuron in network
        .units_mut()
        .iter_mut()
        .filter_map(|u| u.neuron.as_mut())
    {
        let _ = neuron.leak.f_fill_(1.)?;
    }
    let mut found = Vec::new();
    for i in layers {
        let per_channel = network.units()[i]
            .neuron
            .as_ref()
            .is_some_and(|n| n.threshold.numel() > 1);
        let mut largest: Option<Tensor> = None;
        let mut state = Vec::new();
        // The first layer's current is the image's at every timestep.
        let needed = if i == 0 { 1 } else { timesteps };
        let mut done = 0;
        while done < needed {
            let chunk = CHUNK.min(needed - done);
            let current = network.current(Input::Direct(images), chunk, i, &mut state)?;
            for t in 0..current.size()[0] {
                let now = current.f_get(t)?;
                let now = if per_channel {
                    now.f_transpose(0, 1)?.f_contiguous()?
                } else {
                    now
                };
                let value = percentile(&now, setting.percentile(), per_channel)?;
                largest = Some(match largest {
                    Some(m) => m.f_maximum(&value)?,
                    None => value,
                });
            }
            done += chunk;
        }
        let name = network.units()[i].name.clone();
        if let (Some(neuron), Some(value)) = (network.units_mut()[i].neuron.as_mut(), largest) {
            let value = value.f_where_self(&value.f_gt(0.)?, &value.f_full_like(FALLBACK)?)?;
            neuron.threshold.f_copy_(&value)?;
            found.push(Calibrated {
                layer: name,
                threshold: 0.,
            });
        }
    }
    for unit in network.units_mut() {
        if let (Some(neuron), Some(f)) = (
            unit.neuron.as_mut(),
            found.iter_mut().find(|f| f.layer == unit.name),
        ) {
            let _ = neuron.threshold.f_mul_scalar_(setting.scale())?;
            f.threshold = neuron
                .threshold
                .f_mean(tch::Kind::Float)?
                .f_double_value(&[])?;
        }
    }
    let neurons = network
        .units_mut()
        .iter_mut()
        .filter_map(|u| u.neuron.as_mut());
    for (neuron, leak) in neurons.zip(&leaks) {
        neuron.leak.f_copy_(leak)?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewstep_spiking::{Forward, Monitor, NeuronOptions, zoo};
    use tch::{Device, Kind};

    fn network(per_channel: bool) -> Network {
        tch::manual_seed(0);
        let plan = zoo::vgg("8 A 16 16", [3, 8, 8], &[16], 4, 1., false).unwrap();
        let mut n = Network::new(plan, Device::Cpu).unwrap();
        n.add_neurons(&NeuronOptions {
            per_channel,
            ..NeuronOptions::default()
        })
        .unwrap();
        n
    }

    #[test]
    fn the_percentile_is_the_one_of_the_published_code() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/parity/spiking.safetensors");
        let all = fewstep_torch::Checkpoint::load(&path)
            .unwrap()
            .section("percentile/");
        for p in ["90", "99.7"] {
            let found = percentile(&all["input"], p.parse().unwrap(), false).unwrap();
            assert_eq!(found, all[&format!("p={p}")].view([1]), "{p}");
        }
    }

    #[test]
    fn calibrated_at_one_timestep_each_layer_fires_for_one_tenth_of_its_neurons() {
        for per_channel in [false, true] {
            let mut n = network(per_channel);
            let x = Tensor::rand([32, 3, 8, 8], (Kind::Float, Device::Cpu));
            let setting = Calibration {
                timesteps: Some(1),
                ..Calibration::default()
            };
            assert_eq!(calibrate(&mut n, &x, &setting, 1).unwrap().len(), 4);
            let mut m = Monitor::new();
            n.forward(Input::Direct(&x), &Forward::spiking(1), Some(&mut m))
                .unwrap();
            for l in m.layers().unwrap() {
                // The last layer's currents take few values, so ties keep it a little below.
                assert!(
                    (0.06..=0.1).contains(&l.spike_rate),
                    "{}: {}",
                    l.name,
                    l.spike_rate
                );
            }
        }
    }

    #[test]
    fn the_scale_is_applied_once_all_thresholds_are_found() {
        let x = Tensor::rand([16, 3, 8, 8], (Kind::Float, Device::Cpu));
        // One network for both: tests that run beside this one draw from libtorch's generator as well.
        let mut n = network(false);
        let mut run = |scale| {
            let setting = Calibration {
                scale: Some(scale),
                ..Calibration::default()
            };
            calibrate(&mut n, &x, &setting, 25).unwrap()
        };
        for (a, b) in run(1.).iter().zip(&run(0.5)) {
            assert!((a.threshold * 0.5 - b.threshold).abs() < 1e-6);
        }
    }
}
