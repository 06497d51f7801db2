//! The schedule: what will happen, as data.

mod performance;
mod validate;

use fewstep_spiking::{NeuronOptions, Plan, zoo};
use fewstep_torch::{LearningRate, OptimiserConfig, Precision};
use serde::{Deserialize, Serialize};

use crate::{Distillation, Result};

pub use performance::Performance;

/// The network's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkOptions {
    /// `vgg5` … `vgg16`, `vgg16-imagenet`, `resnet12`, `resnet20`, `resnet34`, or a VGG as a layer string such as `"32 A 64 A"`.
    pub architecture: String,
    /// Widths of the fully connected layers of a VGG; the published ones are 4096 and 4096.
    pub hidden: Vec<i64>,
    /// Multiplies every channel count and hidden width.
    pub width: f64,
    /// Batch norm behind each convolution of the artificial network; folded before spikes begin.
    pub batch_norm: bool,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            architecture: "vgg16".into(),
            hidden: zoo::PUBLISHED_HIDDEN.into(),
            width: 1.,
            batch_norm: true,
        }
    }
}

impl NetworkOptions {
    /// The plan for images of this shape.
    ///
    /// # Errors
    /// An unknown architecture, or one that does not fit the images.
    pub fn plan(&self, input: [i64; 3], classes: i64) -> Result<Plan> {
        Ok(zoo::by_name(
            &self.architecture,
            input,
            &self.hidden,
            classes,
            self.width,
            self.batch_norm,
        )?)
    }
}

/// How one phase is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    /// Epochs.
    pub epochs: u32,
    /// Images in a batch.
    pub batch_size: usize,
    /// Batches whose mean gradient makes one step, for batches that do not fit in memory.
    pub accumulate: usize,
    /// The optimiser.
    pub optimiser: OptimiserConfig,
    /// The base learning rate.
    pub learning_rate: f64,
    /// Its course over the phase.
    pub schedule: LearningRate,
    /// Weight decay, on weights only: never on biases, batch norm, thresholds or leaks.
    pub weight_decay: f64,
    /// Probability that an activation is dropped.
    pub dropout: f64,
    /// Label smoothing of the cross entropy.
    pub label_smoothing: f64,
    /// The number format of the forward pass while training; every evaluation is in float32.
    pub precision: Precision,
}

impl Default for Training {
    /// The published artificial network: SGD 0.01 with momentum 0.9, weight decay 5e-4, batch 64, 300 epochs, rate divided by 5 at 45, 70
    /// and 90 %, dropout 0.2.
    fn default() -> Self {
        Self {
            epochs: 300,
            batch_size: 64,
            accumulate: 1,
            optimiser: OptimiserConfig::Sgd {
                momentum: 0.9,
                nesterov: false,
            },
            learning_rate: 1e-2,
            schedule: LearningRate::MultiStep {
                milestones: vec![0.45, 0.7, 0.9],
                factor: 5.,
            },
            weight_decay: 5e-4,
            dropout: 0.2,
            label_smoothing: 0.,
            precision: Precision::Float32,
        }
    }
}

/// The two published settings of threshold calibration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CalibrationPreset {
    /// IIR-SNN: 90th percentile, scale 1, 500 timesteps.
    #[default]
    IirSnn,
    /// DIET-SNN: 99.7th percentile, scale 0.3, 100 timesteps.
    DietSnn,
}

/// Threshold calibration; what is not given comes from the preset.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Calibration {
    /// The published setting to start from.
    pub preset: CalibrationPreset,
    /// Percentile of a layer's current that becomes its threshold, 0 to 100.
    pub percentile: Option<f64>,
    /// Factor on all thresholds once they are found.
    pub scale: Option<f64>,
    /// Timesteps over which the maximum is taken.
    pub timesteps: Option<u32>,
    /// Images of the one (augmented, shuffled) training batch that is used.
    pub images: Option<usize>,
    /// Also calibrate the neurons of residual blocks, which the published code leaves at `neuron.threshold`.
    pub residual: bool,
}

impl Calibration {
    /// Percentile, 0 to 100.
    pub fn percentile(&self) -> f64 {
        self.percentile.unwrap_or(match self.preset {
            CalibrationPreset::IirSnn => 90.,
            CalibrationPreset::DietSnn => 99.7,
        })
    }

    /// Factor on all thresholds.
    pub fn scale(&self) -> f64 {
        self.scale.unwrap_or(match self.preset {
            CalibrationPreset::IirSnn => 1.,
            CalibrationPreset::DietSnn => 0.3,
        })
    }

    /// Timesteps.
    pub fn timesteps(&self) -> u32 {
        self.timesteps.unwrap_or(match self.preset {
            CalibrationPreset::IirSnn => 500,
            CalibrationPreset::DietSnn => 100,
        })
    }

    /// Images.
    pub fn images(&self) -> usize {
        self.images.unwrap_or(512)
    }
}

/// Epochs of the stages: one number for all, or one for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Epochs {
    /// The same for every stage.
    Same(u32),
    /// One number a stage.
    Each(Vec<u32>),
}

/// The spiking stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Snn {
    /// T of each stage, descending.
    pub timesteps: Vec<u32>,
    /// Epochs of each stage.
    pub epochs: Epochs,
    /// Images in a batch.
    pub batch_size: usize,
    /// Batches whose mean gradient makes one step, for batches that do not fit in memory.
    pub accumulate: usize,
    /// The optimiser; fresh in every stage.
    pub optimiser: OptimiserConfig,
    /// The base learning rate; back at its start in every stage.
    pub learning_rate: f64,
    /// Its course over a stage.
    pub schedule: LearningRate,
    /// Factor on the learning rate of thresholds and leaks.
    pub threshold_lr_factor: f64,
    /// Weight decay, on weights only.
    pub weight_decay: f64,
    /// Probability that a spike is dropped; one mask for all timesteps.
    pub dropout: f64,
    /// Label smoothing of the cross entropy.
    pub label_smoothing: f64,
    /// The number format of the forward pass while training; every evaluation is in float32.
    pub precision: Precision,
    /// Learn from the artificial network's logits as well.
    pub distillation: Option<Distillation>,
    /// Weight of a penalty on the accumulates, as a share of the dense MACs: it buys energy. The best epoch is still the one of highest
    /// validation accuracy; later epochs win ties.
    pub rate_penalty: f64,
}

impl Default for Snn {
    /// The published stages: T 5 to 1, Adam with AMSGrad at 1e-4, batch 64, 500 epochs, rate divided by 5 at 60, 80 and 90 %, dropout 0.2.
    fn default() -> Self {
        Self {
            timesteps: vec![5, 4, 3, 2, 1],
            epochs: Epochs::Same(500),
            batch_size: 64,
            accumulate: 1,
            optimiser: OptimiserConfig::Adam {
                betas: [0.9, 0.999],
                eps: 1e-8,
                amsgrad: true,
                decoupled: false,
            },
            learning_rate: 1e-4,
            schedule: LearningRate::MultiStep {
                milestones: vec![0.6, 0.8, 0.9],
                factor: 5.,
            },
            threshold_lr_factor: 1.,
            weight_decay: 0.,
            dropout: 0.2,
            label_smoothing: 0.,
            precision: Precision::Float32,
            distillation: None,
            rate_penalty: 0.,
        }
    }
}

/// An ablation: straight to T = 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// From the artificial network with the thresholds that were calibrated for many timesteps.
    Carried,
    /// From the artificial network with thresholds calibrated at T = 1.
    Calibrated,
    /// From fresh weights and `neuron.threshold`.
    Scratch,
}

impl Arm {
    /// As in configs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Carried => "carried",
            Self::Calibrated => "calibrated",
            Self::Scratch => "scratch",
        }
    }
}

/// Which ablations to train.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Direct {
    /// The arms.
    pub arms: Vec<Arm>,
    /// Epochs of each. Default: as many as all stages together, so that no arm can say it was trained less.
    pub epochs: Option<u32>,
}

/// Limits for a quick look.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Run one epoch of this many batches in every phase, and evaluate on as many. Calibration then looks at 16 images and 5
    /// timesteps, and a dead layer is only a warning.
    pub batches: Option<usize>,
}

/// All of it. The defaults are the published hyperparameters for VGG16 with batch norm on CIFAR-10.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Seed of weights, order, augmentation and dropout.
    pub seed: u64,
    /// The network's shape.
    pub network: NetworkOptions,
    /// The neurons.
    pub neuron: NeuronOptions,
    /// The artificial network's training.
    pub ann: Training,
    /// Threshold calibration.
    pub calibration: Calibration,
    /// The spiking stages.
    pub snn: Snn,
    /// Ablations.
    pub direct: Direct,
    /// Speed.
    pub performance: Performance,
    /// Limits for a quick look.
    pub limits: Limits,
}

/// What a phase trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseKind {
    /// The artificial network.
    Ann,
    /// A stage at T timesteps.
    Stage(u32),
    /// An ablation at T = 1.
    Direct(Arm),
}

/// One phase, with everything resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct PhasePlan {
    /// Its place in the run, from 0; seeds derive from it.
    pub number: u64,
    /// What it trains.
    pub kind: PhaseKind,
    /// `ann`, `t5`, …, `direct-carried`.
    pub name: String,
    /// Epochs that are run: those of `training`, or one under `limits.batches`. The learning rate follows `training.epochs` all the same.
    pub run_epochs: u32,
    /// How.
    pub training: Training,
    /// Factor on the learning rate of thresholds and leaks.
    pub threshold_lr_factor: f64,
    /// Learn from the artificial network's logits as well.
    pub distillation: Option<Distillation>,
    /// Weight of the penalty on accumulates.
    pub rate_penalty: f64,
}

impl Recipe {
    /// The phases in order: the artificial network, the stages, the ablations.
    ///
    /// # Errors
    /// As [`Recipe::validate`].
    pub fn phases(&self) -> Result<Vec<PhasePlan>> {
        self.validate()?;
        let limited = |epochs: u32| match self.limits.batches {
            Some(_) => 1,
            None => epochs,
        };
        let mut phases = vec![PhasePlan {
            number: 0,
            kind: PhaseKind::Ann,
            name: "ann".into(),
            run_epochs: limited(self.ann.epochs),
            training: self.ann.clone(),
            threshold_lr_factor: 1.,
            distillation: None,
            rate_penalty: 0.,
        }];
        let snn = &self.snn;
        let mut push = |kind, name, epochs| {
            let training = Training {
                epochs,
                batch_size: snn.batch_size,
                accumulate: snn.accumulate,
                optimiser: snn.optimiser,
                learning_rate: snn.learning_rate,
                schedule: snn.schedule.clone(),
                weight_decay: snn.weight_decay,
                dropout: snn.dropout,
                label_smoothing: snn.label_smoothing,
                precision: snn.precision,
            };
            phases.push(PhasePlan {
                number: phases.len() as u64,
                kind,
                name,
                run_epochs: limited(epochs),
                training,
                threshold_lr_factor: snn.threshold_lr_factor,
                distillation: snn.distillation,
                rate_penalty: snn.rate_penalty,
            });
        };
        let each: Vec<u32> = match &snn.epochs {
            Epochs::Same(n) => vec![*n; snn.timesteps.len()],
            Epochs::Each(list) => list.clone(),
        };
        for (&t, &epochs) in snn.timesteps.iter().zip(&each) {
            push(PhaseKind::Stage(t), format!("t{t}"), epochs);
        }
        for &arm in &self.direct.arms {
            push(
                PhaseKind::Direct(arm),
                format!("direct-{}", arm.name()),
                self.direct
                    .epochs
                    .unwrap_or_else(|| each.iter().fold(0, |sum, e| sum.saturating_add(*e))),
            );
        }
        Ok(phases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_published_schedule_from_five_timesteps_to_one() {
        let phases = Recipe::default().phases().unwrap();
        let names: Vec<_> = phases.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["ann", "t5", "t4", "t3", "t2", "t1"]);
        assert!(
            phases[1..]
                .iter()
                .all(|p| p.training.learning_rate == 1e-4 && p.training.epochs == 500)
        );
    }

    #[test]
    fn an_arm_gets_as_many_epochs_as_all_stages_unless_told_otherwise() {
        let mut r = Recipe {
            direct: Direct {
                arms: vec![Arm::Carried],
                epochs: None,
            },
            ..Recipe::default()
        };
        r.snn.epochs = Epochs::Each(vec![5, 4, 3, 2, 1]);
        assert_eq!(r.phases().unwrap()[6].training.epochs, 15);
        r.limits.batches = Some(20);
        assert!(r.phases().unwrap().iter().all(|p| p.run_epochs == 1));
        // The learning rate does not know of the limit.
        assert_eq!(r.phases().unwrap()[6].training.epochs, 15);
    }

    #[test]
    fn impossible_values_are_refused_by_key() {
        let e = |change: &dyn Fn(&mut Recipe)| {
            let mut r = Recipe::default();
            change(&mut r);
            r.validate().unwrap_err().to_string()
        };
        assert_eq!(
            e(&|r| r.snn.timesteps = vec![5, 5, 1]),
            "snn.timesteps: expected a descending list of numbers from 1 up, found [5, 5, 1]"
        );
        assert_eq!(
            e(&|r| r.snn.epochs = Epochs::Each(vec![1])),
            "snn.epochs: expected 5 numbers of at least 1, one a stage, found [1]"
        );
        assert_eq!(
            e(&|r| r.ann.dropout = 1.),
            "ann.dropout: expected a number from 0 to below 1, found 1"
        );
        assert_eq!(
            e(&|r| r.snn.learning_rate = f64::NAN),
            "snn.learning_rate: expected a number above 0, found NaN"
        );
        assert_eq!(
            e(&|r| r.performance.read_loss_every = Some(0)),
            "performance.read_loss_every: expected a number above 0, found 0"
        );
        assert_eq!(
            e(&|r| r.calibration.percentile = Some(101.)),
            "calibration.percentile: expected 0 to 100, found 101"
        );
    }
}
