//! Configs of the two diffusion methods.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fewstep_datasets::ImageShape;
use fewstep_diffusion::train::TrainOptions;
use fewstep_diffusion::{BetaSchedule, Convention, DitConfig, Guidance, SamplerOptions};
use fewstep_harmonica::learn::LearnOptions;
use fewstep_torch::DeviceChoice;
use serde::{Deserialize, Serialize};

use super::{DataSection, Method};

/// `method = "dit"`: trains a DiT on images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DitExperiment {
    /// Name of the run folder.
    pub name: String,
    /// `dit`.
    pub method: Method,
    /// Seed of weights, order, noise and dropped labels.
    #[serde(default)]
    pub seed: u64,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    #[serde(default)]
    pub device: DeviceChoice,
    /// Threads of libtorch. Default: what libtorch finds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// The images.
    pub data: DataSection,
    /// The model's shape.
    pub model: DitSection,
    /// The training.
    #[serde(default)]
    pub training: TrainOptions,
    /// How the samples of the finished model are made.
    #[serde(default)]
    pub sampler: SamplerOptions,
    /// Their guidance.
    #[serde(default)]
    pub guidance: Guidance,
    /// How many.
    #[serde(default = "samples")]
    pub samples: u64,
    /// In what the finished weights are stored.
    #[serde(default)]
    pub precision: Precision,
}

fn samples() -> u64 {
    100
}

/// In what finished weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32 bits.
    #[default]
    Float32,
    /// 16 bits: half the file.
    Float16,
}

/// A DiT's shape, but for what the images decide (size, channels, classes).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DitSection {
    /// Height and width of a patch.
    pub patch: i64,
    /// Blocks.
    pub depth: i64,
    /// Width of a token.
    pub width: i64,
    /// Attention heads.
    pub heads: i64,
    /// Width of the MLP over that of a token.
    #[serde(default = "mlp_ratio")]
    pub mlp_ratio: f64,
    /// Share of labels dropped in training.
    #[serde(default = "class_dropout")]
    pub class_dropout: f64,
    /// Whether the model predicts a variance as well.
    #[serde(default)]
    pub learned_variance: bool,
}

fn mlp_ratio() -> f64 {
    4.
}

fn class_dropout() -> f64 {
    0.1
}

impl DitSection {
    /// The whole shape, for these images.
    pub fn config(&self, shape: ImageShape, classes: usize) -> DitConfig {
        DitConfig {
            input_size: shape.height as i64,
            channels: shape.channels as i64,
            patch: self.patch,
            depth: self.depth,
            width: self.width,
            heads: self.heads,
            mlp_ratio: self.mlp_ratio,
            classes: classes as i64,
            class_dropout: self.class_dropout,
            learned_variance: self.learned_variance,
            convention: Convention::Original,
        }
    }
}

/// `method = "harmonica"`: learns routers and compares policies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HarmonicaExperiment {
    /// Name of the run folder.
    pub name: String,
    /// `harmonica`.
    pub method: Method,
    /// Seed of the routers, and of the noise that they are judged on.
    #[serde(default)]
    pub seed: u64,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    #[serde(default)]
    pub device: DeviceChoice,
    /// Threads of libtorch. Default: what libtorch finds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// The model.
    pub model: ModelSection,
    /// Images that the model was trained on: for `fd`, and for Learning-to-Cache, the one method that needs images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataSection>,
    /// The sampler.
    #[serde(default)]
    pub sampler: SamplerOptions,
    /// The guidance.
    #[serde(default)]
    pub guidance: Guidance,
    /// Routers to learn, by name. `harmonica` and `l2c` are the published methods.
    #[serde(default)]
    pub routers: BTreeMap<String, LearnOptions>,
    /// How policies are compared.
    #[serde(default)]
    pub evaluation: Evaluation,
}

/// A trained DiT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A checkpoint in any layout that fewstep reads, or `digits`, the small one that fewstep carries.
    pub checkpoint: String,
    /// Whose conventions the model follows.
    #[serde(default)]
    pub convention: Convention,
    /// The noise schedule that it was trained with.
    #[serde(default)]
    pub noise: BetaSchedule,
}

/// How policies are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluation {
    /// Images sampled with each policy, from the same noise.
    pub images: u64,
    /// Images in a batch.
    pub batch_size: u64,
    /// MAC savings (%) at which plans that can be made for any saving are compared, beside those of the learned routers.
    pub mac_savings_percent: Vec<f64>,
    /// Whole-step intervals of FORA.
    pub intervals: Vec<usize>,
    /// More plans: tables written by hand or by an earlier run, or windowed intervals.
    pub policies: Vec<Policy>,
    /// A classifier whose features `fd` is measured on: a checkpoint of an IIR-SNN run's artificial network, or `digits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classifier: Option<String>,
    /// Times that each policy's sampling is repeated for its latency; the median counts.
    pub repeats: usize,
}

impl Default for Evaluation {
    fn default() -> Self {
        Self {
            images: 64,
            batch_size: 64,
            mac_savings_percent: vec![],
            intervals: vec![2, 3],
            policies: vec![],
            classifier: None,
            repeats: 3,
        }
    }
}

/// A plan of the comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Policy {
    /// A saved plan.
    Table {
        /// The file.
        path: PathBuf,
    },
    /// Every `interval`-th step computed between two executed steps, every step outside.
    Interval {
        /// The first executed step of the window, from 0.
        from: usize,
        /// The first after it.
        to: usize,
        /// The distance between computed steps.
        interval: usize,
    },
}
