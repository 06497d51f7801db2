//! Operations and energy of one inference, artificial and spiking (arXiv 2110.05929; 45 nm figures of Horowitz 2014).
//!
//! With M_l the multiply-accumulates of layer l for one image and R_l the spikes that one neuron of its **input** emits
//! over all T timesteps, averaged over neurons and images:
//!
//! ```text
//! E_ANN = 4.6 pJ · Σ_l M_l
//! E_SNN = 4.6 pJ · M_1 [· T unless the first current is computed once] + 0.9 pJ · Σ_{l≥2} R_l · M_l
//! ratio = E_ANN / E_SNN
//! ```
//!
//! The first layer reads an analog image and pays multiply-accumulates. R is summed over time already, so T appears in the
//! formula only there. Not counted, here as in the published figures: membrane updates, memory traffic, the comparison with
//! the threshold, biases, pooling. At the border of a padded convolution a spike has fewer targets than k²·C_out; M_l counts
//! the padding, so the figures are upper bounds there.

use serde::{Deserialize, Serialize};

use crate::MetricsError;

const UJ_PER_PJ: f64 = 1e-6;

/// What a layer with weights is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// A convolution: k²·C_in·C_out·H_out·W_out multiply-accumulates.
    Conv,
    /// A fully connected layer: n_in·n_out multiply-accumulates.
    Linear,
}

/// A layer with weights, in the order of the forward pass; the first one reads the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerOps {
    /// Its name, unique in the network.
    pub name: String,
    /// Convolution or fully connected.
    pub kind: LayerKind,
    /// Multiply-accumulates for one image and one timestep.
    pub macs: u64,
    /// Its outputs that are spiking neurons; 0 for the read-out.
    pub neurons: u64,
    /// How many spikes are averaged into one input: 4 behind a 2×2 average pool, 1 without a pool.
    pub input_pool_area: u64,
}

impl LayerOps {
    /// A convolution of `macs` multiply-accumulates per image with `neurons` spiking outputs, no pool before it.
    pub fn conv(name: impl Into<String>, macs: u64, neurons: u64) -> Self {
        Self {
            name: name.into(),
            kind: LayerKind::Conv,
            macs,
            neurons,
            input_pool_area: 1,
        }
    }

    /// A fully connected layer of `macs` multiply-accumulates per image with `neurons` spiking outputs, no pool before it.
    pub fn linear(name: impl Into<String>, macs: u64, neurons: u64) -> Self {
        Self {
            kind: LayerKind::Linear,
            ..Self::conv(name, macs, neurons)
        }
    }

    /// The same layer, behind an average pool over `area` neurons (4 for 2×2).
    #[must_use]
    pub fn pooled(self, area: u64) -> Self {
        Self {
            input_pool_area: area,
            ..self
        }
    }
}

/// What reached a layer, averaged over the test set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerActivity {
    /// R: spikes per input neuron and image, summed over all timesteps; between 0 and T. Behind an average pool it is the
    /// rate of the neurons before the pool, which is also the mean pooled value: averaging preserves the mean. The first
    /// layer's is not used.
    pub input_spikes_per_neuron: f64,
}

impl LayerActivity {
    /// For the first layer, whose input is the image.
    pub const ANALOG: Self = Self {
        input_spikes_per_neuron: 0.0,
    };

    /// A layer whose input neurons emit `input_spikes_per_neuron` spikes each, over all timesteps.
    #[must_use]
    pub fn new(input_spikes_per_neuron: f64) -> Self {
        Self {
            input_spikes_per_neuron,
        }
    }
}

/// How often the first layer's current is computed for one image. It makes no difference at T = 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstLayer {
    /// Once: the image is the same at every timestep, so its current can be kept. Fewstep's networks do so.
    #[default]
    Once,
    /// At every timestep, as a network that does not keep it.
    EveryTimestep,
}

/// How many additions a layer behind an average pool costs.
///
/// Pooled spikes are fractions (0, ¼, ½, ¾, 1 after 2×2), so the next layer is not strictly made of additions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolConvention {
    /// The published one: R · M whether there is a pool or not. It counts a pooled value of ¼ as a quarter of an addition
    /// for each target, which no machine does; figures by it can be compared with the literature and flatter pooled layers.
    #[default]
    Published,
    /// Strict: "pre-pool spikes, ¼ folded into the weights". Every spike before the pool is one addition for each target.
    /// With N pooled inputs there are R·4·N spikes before a 2×2 pool, each with M/N targets: 4·R·M additions.
    PrePool,
}

/// The choices of an energy report; all are repeated in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnergyOptions {
    /// T, at least 1.
    pub timesteps: u64,
    /// How often the first layer is computed.
    pub first_layer: FirstLayer,
    /// How layers behind an average pool are counted.
    pub pool: PoolConvention,
}

impl EnergyOptions {
    /// T timesteps, first layer once, the published pool convention.
    #[must_use]
    pub fn timesteps(timesteps: u64) -> Self {
        Self {
            timesteps,
            first_layer: FirstLayer::default(),
            pool: PoolConvention::default(),
        }
    }
}

/// Energy of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnergyModel {
    /// One 32-bit floating-point multiply-accumulate, in pJ.
    pub mac_pj: f64,
    /// One 32-bit floating-point addition, in pJ.
    pub ac_pj: f64,
}

impl Default for EnergyModel {
    /// 45 nm: a multiplication 3.7 pJ and an addition 0.9 pJ.
    fn default() -> Self {
        Self {
            mac_pj: 4.6,
            ac_pj: 0.9,
        }
    }
}

/// One layer of an [`EnergyReport`]; everything is per image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerEnergy {
    /// The layer's name.
    pub name: String,
    /// Convolution or fully connected.
    pub kind: LayerKind,
    /// Its spiking outputs.
    pub neurons: u64,
    /// Multiply-accumulates of the artificial network.
    pub ann_macs: u64,
    /// Multiply-accumulates of the spiking network: the first layer's, 0 elsewhere.
    pub snn_macs: u64,
    /// Additions of the spiking network, all timesteps: 0 for the first layer.
    pub snn_accumulates: f64,
    /// Spikes per input neuron over all timesteps; absent for the first layer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub input_spikes_per_neuron: Option<f64>,
    /// Energy of the artificial network, in µJ.
    pub ann_uj: f64,
    /// Energy of the spiking network, in µJ.
    pub snn_uj: f64,
}

/// Operations and energy of one inference, per layer and in total; everything is per image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnergyReport {
    /// T.
    pub timesteps: u64,
    /// How often the first layer was counted.
    pub first_layer: FirstLayer,
    /// How layers behind an average pool were counted.
    pub pool: PoolConvention,
    /// The energies of one operation, `mac_pj` and `ac_pj`.
    #[serde(flatten)]
    pub model: EnergyModel,
    /// The layers in order.
    pub layers: Vec<LayerEnergy>,
    /// Multiply-accumulates of the artificial network.
    pub ann_macs: u64,
    /// Multiply-accumulates of the spiking network.
    pub snn_macs: u64,
    /// Additions of the spiking network.
    pub snn_accumulates: f64,
    /// Energy of the artificial network, in µJ.
    pub ann_uj: f64,
    /// Energy of the spiking network, in µJ.
    pub snn_uj: f64,
    /// `ann_uj / snn_uj`.
    pub ratio: f64,
}

impl EnergyModel {
    /// The report for a network and what it did on the test set; `activity[l]` belongs to `layers[l]`.
    ///
    /// # Errors
    /// [`MetricsError::Empty`] without layers or timesteps; [`MetricsError::Length`] when the lists differ in length;
    /// [`MetricsError::Value`] for energies that are not positive, a first layer without operations, a pool over nothing,
    /// and rates outside 0..=T.
    pub fn report(
        &self,
        layers: &[LayerOps],
        activity: &[LayerActivity],
        options: EnergyOptions,
    ) -> Result<EnergyReport, MetricsError> {
        self.check(layers, activity, options)?;
        let per_layer: Vec<LayerEnergy> = layers
            .iter()
            .zip(activity)
            .enumerate()
            .map(|(index, (layer, activity))| self.layer(index, layer, *activity, options))
            .collect();
        let ann_uj = per_layer.iter().map(|l| l.ann_uj).sum::<f64>();
        let snn_uj = per_layer.iter().map(|l| l.snn_uj).sum::<f64>();
        Ok(EnergyReport {
            timesteps: options.timesteps,
            first_layer: options.first_layer,
            pool: options.pool,
            model: *self,
            ann_macs: per_layer.iter().map(|l| l.ann_macs).sum(),
            snn_macs: per_layer.iter().map(|l| l.snn_macs).sum(),
            snn_accumulates: per_layer.iter().map(|l| l.snn_accumulates).sum(),
            ann_uj,
            snn_uj,
            ratio: ann_uj / snn_uj,
            layers: per_layer,
        })
    }

    fn layer(
        &self,
        index: usize,
        layer: &LayerOps,
        activity: LayerActivity,
        options: EnergyOptions,
    ) -> LayerEnergy {
        let (snn_macs, snn_accumulates, rate) = if index == 0 {
            let times = match options.first_layer {
                FirstLayer::Once => 1,
                FirstLayer::EveryTimestep => options.timesteps,
            };
            (layer.macs.saturating_mul(times), 0.0, None)
        } else {
            let additions_per_spike = match options.pool {
                PoolConvention::Published => 1,
                PoolConvention::PrePool => layer.input_pool_area,
            };
            let rate = activity.input_spikes_per_neuron;
            (
                0,
                rate * layer.macs as f64 * additions_per_spike as f64,
                Some(rate),
            )
        };
        LayerEnergy {
            name: layer.name.clone(),
            kind: layer.kind,
            neurons: layer.neurons,
            ann_macs: layer.macs,
            snn_macs,
            snn_accumulates,
            input_spikes_per_neuron: rate,
            ann_uj: layer.macs as f64 * self.mac_pj * UJ_PER_PJ,
            snn_uj: (snn_macs as f64 * self.mac_pj + snn_accumulates * self.ac_pj) * UJ_PER_PJ,
        }
    }

    fn check(
        &self,
        layers: &[LayerOps],
        activity: &[LayerActivity],
        options: EnergyOptions,
    ) -> Result<(), MetricsError> {
        let value = |what: String, found: f64, expected: String| {
            Err(MetricsError::Value {
                what,
                found,
                expected,
            })
        };
        let Some(first) = layers.first() else {
            return Err(MetricsError::Empty { what: "layers" });
        };
        if options.timesteps == 0 {
            return Err(MetricsError::Empty { what: "timesteps" });
        }
        if activity.len() != layers.len() {
            let (found, expected) = (activity.len(), layers.len());
            return Err(MetricsError::Length {
                what: "activities",
                found,
                expected,
                owner: "the layers",
            });
        }
        for (what, found) in [("mac_pj", self.mac_pj), ("ac_pj", self.ac_pj)] {
            if !found.is_finite() || found <= 0.0 {
                return value(what.into(), found, "a finite energy above 0".into());
            }
        }
        if first.macs == 0 {
            return value(
                format!("macs of layer {}", first.name),
                0.0,
                "at least 1 operation".into(),
            );
        }
        // A rate is a mean in floating point: allow it to pass T by rounding.
        let most = options.timesteps as f64;
        for (layer, activity) in layers.iter().zip(activity) {
            let rate = activity.input_spikes_per_neuron;
            if !(0.0..=most * (1.0 + 1e-6)).contains(&rate) {
                let what = format!("input_spikes_per_neuron of layer {}", layer.name);
                return value(what, rate, format!("between 0 and {most} (the timesteps)"));
            }
            if layer.input_pool_area == 0 {
                return value(
                    format!("input_pool_area of layer {}", layer.name),
                    0.0,
                    "1 or more".into(),
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
