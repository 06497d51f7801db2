//! How a router is trained.

use fewstep_torch::Precision;
use fewstep_torch::options::expect;
use serde::{Deserialize, Serialize};

use crate::{MAX_ORDER, RouterInit};

/// How a router is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Training {
    /// Step-wise Denoising Training: whole trajectories of the cached student, no images.
    #[default]
    Sdt,
    /// Learning-to-Cache: single pairs of steps from noised images; only even rows learn.
    L2c,
}

/// How much a step's error counts: the Image-Error Proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    /// As the published code: the change of x0 when caching is turned on row by row, first executed row first.
    #[default]
    Telescoping,
    /// As the paper: the change of x0 when caching is turned off at this row alone.
    LeaveOneOut,
    /// Every step counts the same.
    None,
}

/// How the squared difference of two x0 becomes one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Mean over batch, channels and pixels, as the published code.
    #[default]
    Mean,
    /// Sum, as the paper's Frobenius norm. `beta` must grow by the number of elements.
    Sum,
}

/// What the penalty counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Penalty {
    /// Sub-modules, as published.
    #[default]
    Count,
    /// Their multiply-accumulate operations, scaled to a mean of 1.
    Macs,
}

/// What stands for a sub-module's output while training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mix {
    /// `(1 − r)·cached + r·computed`, as published.
    #[default]
    Soft,
    /// What sampling will use (computed where r is above the threshold, else cached), with the gradient of the soft mix.
    StraightThrough,
}

/// Which channels of the output the error between teacher and student is taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorOn {
    /// All, a learned variance included, as published.
    #[default]
    Output,
    /// Those that the sampler's mean depends on. The same thing for a model without learned variance.
    Prediction,
}

/// How a router is learned. Defaults are those of the published command where there are any.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LearnOptions {
    /// The training.
    pub training: Training,
    /// Trajectories of T steps each; for Learning-to-Cache, T/2 pairs of steps count as one.
    pub trajectories: u32,
    /// Latents in a batch (guidance doubles them).
    pub batch_size: i64,
    /// AdamW's learning rate, constant.
    pub learning_rate: f64,
    /// Weight of the penalty; with a target, its first value.
    pub beta: f64,
    /// Share of MACs to save. With each trajectory `beta` grows where less is saved and falls where more is (dual ascent, in the
    /// logarithm). Not published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_mac_saving: Option<f64>,
    /// Order of the forecast that stands for a reused output, in training as in sampling; 0 is plain reuse, as published.
    pub order: u8,
    /// r above it means compute.
    pub threshold: f64,
    /// The weight of each step's error.
    pub proxy: Proxy,
    /// Of the proxy.
    pub reduction: Reduction,
    /// Iterations (denoising steps) between refreshes of the proxy; it is refreshed where a trajectory begins.
    pub refresh_every: u32,
    /// Scale the proxy to a mean of 1, so that `beta` means the same for every model. Not published.
    pub normalise: bool,
    /// What the penalty counts.
    pub penalty: Penalty,
    /// What the student mixes.
    pub mix: Mix,
    /// Which channels its error is taken on.
    pub error_on: ErrorOn,
    /// float32 or TF32, of everything that learning computes.
    pub precision: Precision,
    /// Compute blocks again on the way back instead of keeping what they computed, so that only the tokens in front of each block and one
    /// block's own memory are held. The router is the same up to rounding. For Step-wise Denoising Training.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recompute: bool,
    /// Initial logits.
    pub init: RouterInit,
    /// Trajectories between checkpoints and evaluations.
    pub checkpoint_every: u32,
    /// Latents that an evaluation samples.
    pub evaluate_on: i64,
}

impl Default for LearnOptions {
    fn default() -> Self {
        Self {
            training: Training::Sdt,
            trajectories: 2000,
            batch_size: 8,
            learning_rate: 0.01,
            beta: 7e-8,
            target_mac_saving: None,
            order: 0,
            threshold: 0.1,
            proxy: Proxy::Telescoping,
            reduction: Reduction::Mean,
            refresh_every: 500,
            normalise: false,
            penalty: Penalty::Count,
            mix: Mix::Soft,
            error_on: ErrorOn::Output,
            precision: Precision::Float32,
            recompute: false,
            init: RouterInit::default(),
            checkpoint_every: 50,
            evaluate_on: 16,
        }
    }
}

/// A share of MACs to save.
pub(crate) fn expect_saving(target: f64) -> std::result::Result<(), (&'static str, String)> {
    expect(
        target > 0. && target < 1.,
        "target_mac_saving",
        "a number between 0 and 1",
        &target,
    )
}

impl LearnOptions {
    /// # Errors
    /// The option that is out of range, and a clause that says what was expected and found.
    pub fn validate(&self) -> std::result::Result<(), (&'static str, String)> {
        let counts = [
            ("trajectories", i64::from(self.trajectories)),
            ("batch_size", self.batch_size),
            ("refresh_every", i64::from(self.refresh_every)),
            ("checkpoint_every", i64::from(self.checkpoint_every)),
            ("evaluate_on", self.evaluate_on),
        ];
        for (key, value) in counts {
            expect(value > 0, key, "at least 1", &value)?;
        }
        expect(
            self.learning_rate > 0. && self.learning_rate.is_finite(),
            "learning_rate",
            "a number above 0",
            &self.learning_rate,
        )?;
        expect(
            self.beta >= 0. && self.beta.is_finite(),
            "beta",
            "a number from 0",
            &self.beta,
        )?;
        if let Some(target) = self.target_mac_saving {
            expect_saving(target)?;
            expect(
                self.beta > 0.,
                "beta",
                "a number above 0, which a target can scale",
                &self.beta,
            )?;
        }
        expect(
            self.precision != Precision::Bfloat16,
            "precision",
            "float32 or tf32",
            &self.precision.name(),
        )?;
        let orders = format!("0 to {MAX_ORDER}");
        expect(self.order <= MAX_ORDER, "order", &orders, &self.order)?;
        let l2c = self.training == Training::L2c;
        expect(
            !l2c || self.order == 0,
            "order",
            "0, for l2c learns from pairs of steps",
            &self.order,
        )?;
        expect(
            !(l2c && self.recompute),
            "recompute",
            "false, for l2c has no way of its own to compute blocks again",
            &self.recompute,
        )?;
        expect(
            self.threshold > 0. && self.threshold < 1.,
            "threshold",
            "a number between 0 and 1",
            &self.threshold,
        )
    }
}
