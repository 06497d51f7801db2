//! What a recipe may not say.

use std::collections::HashSet;

use super::{Epochs, Recipe};
use crate::{Error, Result};

impl Recipe {
    /// # Errors
    /// The first value that is impossible, with its key.
    pub fn validate(&self) -> Result<()> {
        let wrong = |key: &str, reason: String| {
            Err(Error::Recipe {
                key: key.into(),
                reason,
            })
        };
        self.neuron.validate().map_err(|e| match e {
            fewstep_spiking::Error::Option {
                option,
                expected,
                found,
            } => Error::Recipe {
                key: format!("neuron.{option}"),
                reason: format!("expected {expected}, found {found}"),
            },
            other => Error::Spiking(other),
        })?;
        let snn = &self.snn;
        if snn.timesteps.is_empty()
            || snn.timesteps.contains(&0)
            || snn.timesteps.windows(2).any(|w| w[0] <= w[1])
        {
            return wrong(
                "snn.timesteps",
                format!(
                    "expected a descending list of numbers from 1 up, found {:?}",
                    snn.timesteps
                ),
            );
        }
        if let Epochs::Each(list) = &snn.epochs
            && (list.len() != snn.timesteps.len() || list.contains(&0))
        {
            let expected = format!(
                "expected {} numbers of at least 1, one a stage",
                snn.timesteps.len()
            );
            return wrong("snn.epochs", format!("{expected}, found {list:?}"));
        }
        let positive = [
            ("ann.epochs", f64::from(self.ann.epochs)),
            ("ann.batch_size", self.ann.batch_size as f64),
            ("ann.accumulate", self.ann.accumulate as f64),
            ("ann.learning_rate", self.ann.learning_rate),
            (
                "snn.epochs",
                if let Epochs::Same(n) = snn.epochs {
                    f64::from(n)
                } else {
                    1.
                },
            ),
            ("snn.batch_size", snn.batch_size as f64),
            ("snn.accumulate", snn.accumulate as f64),
            ("snn.learning_rate", snn.learning_rate),
            ("snn.threshold_lr_factor", snn.threshold_lr_factor),
            ("direct.epochs", self.direct.epochs.map_or(1., f64::from)),
            (
                "performance.read_loss_every",
                self.performance.read_loss_every.map_or(1., |n| n as f64),
            ),
            (
                "limits.batches",
                self.limits.batches.map_or(1., |b| b as f64),
            ),
            ("calibration.scale", self.calibration.scale()),
            (
                "calibration.timesteps",
                f64::from(self.calibration.timesteps()),
            ),
            ("calibration.images", self.calibration.images() as f64),
            (
                "snn.distillation.temperature",
                snn.distillation.map_or(1., |d| d.temperature),
            ),
        ];
        if let Some((key, v)) = positive.iter().find(|(_, v)| !(v.is_finite() && *v > 0.)) {
            return wrong(key, format!("expected a number above 0, found {v}"));
        }
        let shares = [
            ("ann.dropout", self.ann.dropout),
            ("ann.label_smoothing", self.ann.label_smoothing),
            ("snn.dropout", snn.dropout),
            ("snn.label_smoothing", snn.label_smoothing),
        ];
        if let Some((key, v)) = shares.iter().find(|(_, v)| !(0. ..1.).contains(v)) {
            return wrong(
                key,
                format!("expected a number from 0 to below 1, found {v}"),
            );
        }
        let not_negative = [
            ("ann.weight_decay", self.ann.weight_decay),
            ("snn.weight_decay", snn.weight_decay),
            ("snn.rate_penalty", snn.rate_penalty),
            (
                "snn.distillation.weight",
                snn.distillation.map_or(0., |d| d.weight),
            ),
        ];
        if let Some((key, v)) = not_negative
            .iter()
            .find(|(_, v)| !(v.is_finite() && *v >= 0.))
        {
            return wrong(key, format!("expected a number of at least 0, found {v}"));
        }
        if !(0. ..=100.).contains(&self.calibration.percentile()) {
            return wrong(
                "calibration.percentile",
                format!("expected 0 to 100, found {}", self.calibration.percentile()),
            );
        }
        let phases = [
            (
                "ann",
                self.ann.optimiser,
                &self.ann.schedule,
                self.ann.epochs,
            ),
            ("snn", snn.optimiser, &snn.schedule, u32::MAX),
        ];
        for (section, optimiser, schedule, epochs) in phases {
            let found = optimiser.validate().map_err(|e| ("optimiser", e));
            if let Err((part, (key, reason))) =
                found.and_then(|()| schedule.validate(epochs).map_err(|e| ("schedule", e)))
            {
                return wrong(&format!("{section}.{part}.{key}"), reason);
            }
        }
        let mut seen = HashSet::new();
        if let Some(arm) = self.direct.arms.iter().find(|a| !seen.insert(**a)) {
            return wrong(
                "direct.arms",
                format!("`{}` stands there twice", arm.name()),
            );
        }
        Ok(())
    }
}
