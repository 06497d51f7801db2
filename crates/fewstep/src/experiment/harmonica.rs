//! `method = "harmonica"` as a struct.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fewstep_diffusion::{BetaSchedule, Convention, Guidance, SamplerOptions};
use fewstep_harmonica::learn::LearnOptions;
use fewstep_torch::DeviceChoice;
use serde::{Deserialize, Serialize};

use super::{DataSection, Method};

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
