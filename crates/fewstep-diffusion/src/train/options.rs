//! How a DiT is trained.

use fewstep_datasets::Augment;
use fewstep_torch::options::expect;
use fewstep_torch::{LearningRate, OptimiserConfig, Precision};
use serde::{Deserialize, Serialize};

use crate::noise::BetaSchedule;

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Mean squared error of the noise; a learned variance is left untrained.
    #[default]
    Mse,
    /// The same plus the variational bound for the learned variance, in bits per dimension, with the mean held fixed: what the
    /// official DiT trains with (IDDPM, arXiv 2102.09672).
    Hybrid,
}

/// How a DiT is trained. Defaults are the published values where there are any.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// Optimiser steps.
    pub steps: u32,
    /// Images a step.
    pub batch_size: usize,
    /// The optimiser. Default: AdamW.
    pub optimiser: OptimiserConfig,
    /// Base learning rate.
    pub learning_rate: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// The learning rate over the steps (its "epochs" are steps).
    pub schedule: LearningRate,
    /// Largest norm of all gradients together; larger ones are scaled down to it.
    pub gradient_clip: Option<f64>,
    /// Decay of the moving average; it warms up as (1 + step) / (10 + step).
    pub ema: f64,
    /// What is minimised.
    pub loss: Loss,
    /// The noise schedule over 1000 timesteps.
    pub noise: BetaSchedule,
    /// Augmentation of training images.
    pub augment: Augment,
    /// The number format of the forward pass while training; the validation loss is in float32.
    pub precision: Precision,
    /// Steps from one look at the loss to the next. A look waits for the device; a loss that is no number is found that much later.
    /// Default: 1, on CUDA 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_loss_every: Option<usize>,
    /// Keep the training images on the device as bytes, and augment them there. Default: false, on CUDA true where they take up to 2 GiB and
    /// are not randomly resized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_on_device: Option<bool>,
    /// Steps between checkpoints.
    pub checkpoint_every: u32,
    /// Validation images that the loss is measured on at each checkpoint.
    pub validation_images: usize,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            steps: 400_000,
            batch_size: 256,
            optimiser: OptimiserConfig::Adam {
                betas: [0.9, 0.999],
                eps: 1e-8,
                amsgrad: false,
                decoupled: true,
            },
            learning_rate: 1e-4,
            weight_decay: 0.,
            schedule: LearningRate::Constant,
            gradient_clip: None,
            ema: 0.9999,
            loss: Loss::Mse,
            noise: BetaSchedule::default(),
            augment: Augment::default(),
            precision: Precision::Float32,
            read_loss_every: None,
            data_on_device: None,
            checkpoint_every: 1000,
            validation_images: 512,
        }
    }
}

impl TrainOptions {
    /// # Errors
    /// The option that is out of range, and a clause that says what was expected and found.
    pub fn validate(&self) -> std::result::Result<(), (&'static str, String)> {
        expect(self.steps > 0, "steps", "at least 1", &self.steps)?;
        expect(
            (1..=1 << 20).contains(&self.batch_size),
            "batch_size",
            "1 to 1048576",
            &self.batch_size,
        )?;
        self.optimiser.validate()?;
        let positive = |v: f64| v > 0. && v.is_finite();
        expect(
            positive(self.learning_rate),
            "learning_rate",
            "a number above 0",
            &self.learning_rate,
        )?;
        expect(
            self.weight_decay >= 0. && self.weight_decay.is_finite(),
            "weight_decay",
            "a number from 0",
            &self.weight_decay,
        )?;
        self.schedule.validate(self.steps)?;
        expect(
            self.gradient_clip.is_none_or(positive),
            "gradient_clip",
            "a number above 0",
            &self.gradient_clip,
        )?;
        expect(
            (0. ..1.).contains(&self.ema),
            "ema",
            "0 to below 1",
            &self.ema,
        )?;
        expect(
            self.read_loss_every != Some(0),
            "read_loss_every",
            "at least 1",
            &self.read_loss_every,
        )?;
        expect(
            self.data_on_device != Some(true) || self.augment.random_resized_crop.is_none(),
            "data_on_device",
            "false with augment.random_resized_crop, which is done on the CPU alone",
            &true,
        )?;
        expect(
            self.checkpoint_every > 0,
            "checkpoint_every",
            "at least 1",
            &self.checkpoint_every,
        )
    }

    /// The learning rate of step `step`, from 1.
    pub(super) fn rate(&self, step: u32) -> f64 {
        self.learning_rate * self.schedule.factor(f64::from(step - 1), self.steps)
    }

    /// Whether all is written down after `step` steps.
    pub(super) fn is_checkpoint(&self, step: u32) -> bool {
        step.is_multiple_of(self.checkpoint_every) || step == self.steps
    }
}
