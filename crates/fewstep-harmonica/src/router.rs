//! The router: a logit for each call and sub-module; its sigmoid is how much of the sub-module is computed, against how much
//! comes from the cache. It depends on no input, and both halves of guidance share it.

pub mod published;

use std::path::{Path, PathBuf};

use fewstep_diffusion::random::{self, Use};
use fewstep_torch::Checkpoint;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use crate::{CachePlan, Conditions, Error, MAX_ORDER, Result};

/// Trained logits stay within ± this. The first executed row has it, and is never trained.
pub const LOGIT_LIMIT: f32 = 5.;

/// Places of [`Use::Learning`] that are taken; training takes others.
pub(crate) const PLACE_OF_ROUTERS: u64 = 0;
pub(crate) const PLACE_OF_RANDOM_PLANS: u64 = 1;

/// Where the trainable rows start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RouterInit {
    /// Normally distributed logits, clamped. Default and as published: mean 0, standard deviation 1.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation, from 0.
        std: f64,
    },
    /// One logit everywhere, from −5 to 5.
    Constant {
        /// The logit.
        logit: f64,
    },
    /// From a cache plan: `logit` where it computes, −`logit` where it reuses.
    Plan {
        /// Its file.
        path: PathBuf,
        /// Above 0, to 5.
        logit: f64,
    },
}

impl Default for RouterInit {
    fn default() -> Self {
        Self::Normal { mean: 0., std: 1. }
    }
}

/// T × N logits with what they were trained for. Row 0 is the last call of the model, row T−1 the first.
#[derive(Debug, Clone, PartialEq)]
pub struct Router {
    made_for: Conditions,
    threshold: f64,
    order: u8,
    training: serde_json::Value,
    logits: Vec<Vec<f32>>,
}

impl Router {
    /// An untrained router that will be trained for `threshold`.
    ///
    /// # Errors
    /// Conditions, threshold or initialisation out of range.
    pub fn new(
        made_for: &Conditions,
        threshold: f64,
        init: &RouterInit,
        seed: u64,
    ) -> Result<Self> {
        made_for.validate()?;
        let (steps, modules) = (made_for.steps(), made_for.modules());
        let limit = f64::from(LOGIT_LIMIT);
        let numbers = match init {
            &RouterInit::Normal { mean, std } => {
                if !(mean.is_finite() && std.is_finite() && std >= 0.) {
                    return Err(Error::option(
                        "init",
                        "a finite mean and a standard deviation from 0",
                        format!("mean {mean} and standard deviation {std}"),
                    ));
                }
                let mut rng = random::generator(seed, Use::Learning, &[PLACE_OF_ROUTERS]);
                random::normal(&mut rng, &[steps as i64, modules as i64])? * std + mean
            }
            RouterInit::Plan { path, logit } => {
                if !(*logit > 0. && *logit <= limit) {
                    return Err(Error::option("init", "a logit above 0, to 5", logit));
                }
                let plan = CachePlan::load(path)?;
                plan.check_fits(made_for, &path.display().to_string())?;
                let sign = |reused: &bool| if *reused { -1f32 } else { 1. };
                let signs: Vec<f32> = (0..steps).flat_map(|row| plan.row(row)).map(sign).collect();
                Tensor::f_from_slice(&signs)?.f_view([steps as i64, modules as i64])? * *logit
            }
            &RouterInit::Constant { logit } => {
                if !(-limit..=limit).contains(&logit) {
                    return Err(Error::option("init", "a logit from -5 to 5", logit));
                }
                Tensor::f_full(
                    [steps as i64, modules as i64],
                    logit,
                    (Kind::Float, tch::Device::Cpu),
                )?
            }
        };
        let mut logits = Vec::<Vec<f32>>::try_from(numbers)?;
        for logit in logits.iter_mut().flatten() {
            *logit = logit.clamp(-LOGIT_LIMIT, LOGIT_LIMIT);
        }
        logits[steps - 1].fill(LOGIT_LIMIT);
        Self::from_logits(made_for, threshold, logits)
    }

    /// From logits as they are, the first executed row included.
    ///
    /// # Errors
    /// Not T rows of N finite numbers, or a threshold that is not between 0 and 1.
    pub fn from_logits(
        made_for: &Conditions,
        threshold: f64,
        logits: Vec<Vec<f32>>,
    ) -> Result<Self> {
        made_for.validate()?;
        if !(threshold > 0. && threshold < 1.) {
            return Err(Error::option("threshold", "above 0 and below 1", threshold));
        }
        let (steps, modules) = (made_for.steps(), made_for.modules());
        if logits.len() != steps {
            let expected = format!("{steps} rows, one for each timestep");
            return Err(Error::option("logits", expected, logits.len()));
        }
        for (row, values) in logits.iter().enumerate() {
            check_row(row, values, modules)?;
        }
        Ok(Self {
            made_for: made_for.clone(),
            threshold,
            order: 0,
            training: serde_json::Value::Null,
            logits,
        })
    }

    /// What it was made for.
    pub fn made_for(&self) -> &Conditions {
        &self.made_for
    }

    /// The threshold that it was trained for.
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// Order of the forecast that stands for a reused output.
    pub fn order(&self) -> u8 {
        self.order
    }

    /// The same logits with forecasts of another order on reuse.
    ///
    /// # Errors
    /// An order above [`MAX_ORDER`].
    pub fn with_order(mut self, order: u8) -> Result<Self> {
        if order > MAX_ORDER {
            return Err(Error::option("order", format!("0 to {MAX_ORDER}"), order));
        }
        self.order = order;
        Ok(self)
    }

    /// T.
    pub fn steps(&self) -> usize {
        self.logits.len()
    }

    /// How it came to be; whoever trains a router says it here.
    pub fn training(&self) -> &serde_json::Value {
        &self.training
    }

    /// Sets [`training`](Self::training).
    #[must_use]
    pub fn with_training(mut self, training: serde_json::Value) -> Self {
        self.training = training;
        self
    }

    /// All rows.
    pub fn logits(&self) -> &[Vec<f32>] {
        &self.logits
    }

    /// Replaces a row that is trained, clamped to ±[`LOGIT_LIMIT`].
    ///
    /// # Errors
    /// The first executed row or none of the rows, another length than N, or a value that is not a finite number.
    pub fn set_row(&mut self, row: usize, values: &[f32]) -> Result<()> {
        if row + 1 >= self.steps() {
            let expected = format!(
                "below {}, for the first executed row is fixed",
                self.steps() - 1
            );
            return Err(Error::option("row", expected, row));
        }
        check_row(row, values, self.made_for.modules())?;
        self.logits[row] = values
            .iter()
            .map(|v| v.clamp(-LOGIT_LIMIT, LOGIT_LIMIT))
            .collect();
        Ok(())
    }

    /// The sigmoid of each logit.
    pub fn probabilities(&self) -> Vec<Vec<f64>> {
        let sigmoid = |&x: &f32| 1. / (1. + f64::from(-x).exp());
        self.logits
            .iter()
            .map(|row| row.iter().map(sigmoid).collect())
            .collect()
    }

    /// 16 hexadecimal digits of a SHA-256 of the logits, by which plans name their router.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for logit in self.logits.iter().flatten() {
            hash.update(logit.to_le_bytes());
        }
        if self.order > 0 {
            hash.update([self.order]);
        }
        hash.finalize()[..8]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    }

    /// Whether it may be used in `job` at `threshold`; `what` names it in the error.
    ///
    /// # Errors
    /// Names what differs.
    pub fn check_fits(&self, job: &Conditions, threshold: f64, what: &str) -> Result<()> {
        self.made_for.check_fits(job, what)?;
        if threshold != self.threshold {
            return Err(Error::Mismatch {
                what: what.into(),
                reason: format!("threshold: made for {}, found {threshold}", self.threshold),
            });
        }
        Ok(())
    }

    /// Writes safetensors: one tensor `logits` `[T, N]`, and strings `made_for` (JSON), `threshold`, `training` (JSON) and, with
    /// forecasts, `order`.
    ///
    /// # Errors
    /// The file can't be written; what stood there before stays.
    pub fn save(&self, path: &Path) -> Result<()> {
        let shape = [self.steps() as i64, self.made_for.modules() as i64];
        let logits = Tensor::f_from_slice(&self.logits.concat())?.f_view(shape)?;
        let made_for = serde_json::to_string(&self.made_for)
            .map_err(|e| Error::file(path, format!("made_for: {e}")))?;
        let file = Checkpoint::new()
            .with("logits", &logits)
            .with_string("made_for", made_for)
            .with_string("threshold", self.threshold.to_string())
            .with_string("training", self.training.to_string());
        let file = match self.order {
            0 => file,
            order => file.with_string("order", order.to_string()),
        };
        Ok(file.save(path)?)
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// No such file, or no router: the entry, what was expected and what was found.
    pub fn load(path: &Path) -> Result<Self> {
        let file = Checkpoint::load(path)?;
        let entry = |key: &str| {
            file.string(key).ok_or_else(|| {
                Error::file(
                    path,
                    format!("expected a router saved by fewstep, found no entry `{key}`"),
                )
            })
        };
        let unreadable =
            |key: &str, e: &dyn std::fmt::Display| Error::file(path, format!("entry `{key}`: {e}"));
        let made_for: Conditions =
            serde_json::from_str(entry("made_for")?).map_err(|e| unreadable("made_for", &e))?;
        let threshold = entry("threshold")?;
        let threshold: f64 = threshold.parse().map_err(|_| {
            unreadable(
                "threshold",
                &format!("expected a number, found `{threshold}`"),
            )
        })?;
        let training =
            serde_json::from_str(entry("training")?).map_err(|e| unreadable("training", &e))?;
        let logits = file
            .section("logits")
            .remove("")
            .ok_or_else(|| Error::file(path, "expected a tensor `logits`, found none"))?;
        if logits.dim() != 2 || logits.kind() != Kind::Float {
            let found = format!("{:?} of {:?}", logits.size(), logits.kind());
            let reason = format!("logits: expected [T, N] of Float, found {found}");
            return Err(Error::file(path, reason));
        }
        let order = file.string("order").unwrap_or("0");
        let order: u8 = order.parse().map_err(|_| {
            unreadable(
                "order",
                &format!("expected 0 to {MAX_ORDER}, found `{order}`"),
            )
        })?;
        let router = Self::from_logits(&made_for, threshold, Vec::<Vec<f32>>::try_from(logits)?)
            .and_then(|router| router.with_order(order))
            .map_err(|e| Error::file(path, e.to_string()))?;
        Ok(router.with_training(training))
    }
}

fn check_row(row: usize, values: &[f32], modules: usize) -> Result<()> {
    if values.len() != modules {
        let expected = format!("{modules} in row {row}, one for each sub-module");
        return Err(Error::option("logits", expected, values.len()));
    }
    match values.iter().find(|v| !v.is_finite()) {
        Some(v) => Err(Error::option(
            "logits",
            format!("finite numbers in row {row}"),
            v,
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
