//! `method = "dit"` as a struct.

use fewstep_datasets::ImageShape;
use fewstep_diffusion::train::TrainOptions;
use fewstep_diffusion::{Convention, DitConfig, Guidance, SamplerOptions};
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
