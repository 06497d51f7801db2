//! A config file as a struct.

mod dit;
mod harmonica;

use std::path::PathBuf;

use fewstep_datasets::{Augment, DataSpec, FolderOptions};
use fewstep_iir::{
    Calibration, DataOptions, Direct, Limits, NetworkOptions, Performance, Recipe, Snn, Training,
};
use fewstep_spiking::NeuronOptions;
use fewstep_torch::DeviceChoice;
use serde::{Deserialize, Serialize};

pub use dit::{DitExperiment, DitSection, Precision};
pub use harmonica::{Evaluation, HarmonicaExperiment, ModelSection, Policy};

/// What a config describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// IIR-SNN: artificial network, conversion, stages down to one timestep.
    #[default]
    IirSnn,
    /// Trains a diffusion transformer on images: [`DitExperiment`].
    Dit,
    /// Learns what a diffusion transformer may skip, and compares ways to skip: [`HarmonicaExperiment`].
    Harmonica,
}

/// The one key that is read before it is known what the others are.
#[derive(Debug, Deserialize)]
pub(crate) struct MethodOnly {
    #[serde(default)]
    pub(crate) method: Method,
}

/// An IIR-SNN experiment. Whatever a config leaves out has the published value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Name of the run folder.
    pub name: String,
    /// The method.
    #[serde(default)]
    pub method: Method,
    /// Seed of the split, weights, order, augmentation and dropout.
    #[serde(default)]
    pub seed: u64,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    #[serde(default)]
    pub device: DeviceChoice,
    /// Threads of libtorch. Default: what libtorch finds. Another number can give other bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// The data set.
    pub data: DataSection,
    /// The network's shape.
    #[serde(default)]
    pub network: NetworkOptions,
    /// The neurons.
    #[serde(default)]
    pub neuron: NeuronOptions,
    /// The artificial network's training.
    #[serde(default)]
    pub ann: Training,
    /// Threshold calibration.
    #[serde(default)]
    pub calibration: Calibration,
    /// The spiking stages.
    #[serde(default)]
    pub snn: Snn,
    /// Ablations.
    #[serde(default)]
    pub direct: Direct,
    /// Speed.
    #[serde(default)]
    pub performance: Performance,
    /// Limits for a quick look.
    #[serde(default)]
    pub limits: Limits,
}

/// Which data, and how it is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// `digits`, `cifar10`, `cifar100`, `mnist`, `fashion-mnist`, `cifar10-jpeg`, `imagenet`, `idx`, `folder` or `synthetic:…`.
    pub name: String,
    /// Where it is. Default: below `$FEWSTEP_DATA` or `./data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// How an image folder is read.
    #[serde(default)]
    pub folder: FolderOptions,
    /// Under `limits.batches` only: noise of this shape (`synthetic:CxHxW:classes:images`) where the data is not there. The summary says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stand_in: Option<String>,
    /// Part of the training split that becomes the validation split.
    #[serde(default = "validation_fraction")]
    pub validation_fraction: f64,
    /// Use only this many training images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_images: Option<usize>,
    /// Use only this many test images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_images: Option<usize>,
    /// Augmentation of training images.
    #[serde(default)]
    pub augment: Augment,
}

fn validation_fraction() -> f64 {
    DataOptions::default().validation_fraction
}

impl DataSection {
    /// What to open.
    pub fn spec(&self) -> DataSpec {
        DataSpec {
            name: self.name.clone(),
            path: self.path.clone(),
            folder: self.folder,
        }
    }

    /// How to use it.
    pub fn options(&self) -> DataOptions {
        DataOptions {
            validation_fraction: self.validation_fraction,
            train_images: self.train_images,
            test_images: self.test_images,
            augment: self.augment,
        }
    }
}

impl Experiment {
    /// The part that `fewstep-iir` follows.
    pub fn recipe(&self) -> Recipe {
        Recipe {
            seed: self.seed,
            network: self.network.clone(),
            neuron: self.neuron,
            ann: self.ann.clone(),
            calibration: self.calibration.clone(),
            snn: self.snn.clone(),
            direct: self.direct.clone(),
            performance: self.performance,
            limits: self.limits.clone(),
        }
    }
}
