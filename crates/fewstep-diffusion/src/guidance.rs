//! Classifier-free guidance (arXiv 2207.12598) as the official DiT does it: one batch `[conditional; unconditional]`.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::dit::{Convention, Dit, Reuse};
use crate::sampler::{Call, Denoiser};
use crate::{Error, Result};

/// How the conditional and unconditional predictions are mixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guidance {
    /// `unconditional + scale · (conditional − unconditional)`; 1 is no guidance, and the unconditional half is not computed.
    pub scale: f64,
    /// How many prediction channels are guided, from the first. Default: 3, as published; diffusers' convention guides all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<i64>,
    /// Guide only at timesteps from the first to the second number, both included (arXiv 2404.07724).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
}

impl Default for Guidance {
    fn default() -> Self {
        Self {
            scale: 1.,
            channels: None,
            interval: None,
        }
    }
}

impl Guidance {
    /// At this scale, everything else as published.
    pub fn scale(scale: f64) -> Self {
        Self {
            scale,
            ..Self::default()
        }
    }

    /// # Errors
    /// The option that is out of range, and a clause that says what was expected and found.
    pub fn validate(&self) -> std::result::Result<(), (&'static str, String)> {
        if !(self.scale.is_finite() && self.scale >= 0.) {
            let found = self.scale;
            return Err(("scale", format!("expected a number from 0, found {found}")));
        }
        if let Some(found) = self.channels.filter(|&c| c < 1) {
            return Err(("channels", format!("expected at least 1, found {found}")));
        }
        if let Some([from, to]) = self.interval
            && (from > to || from.is_nan() || to.is_nan())
        {
            let message = format!("expected two numbers in rising order, found {from} and {to}");
            return Err(("interval", message));
        }
        Ok(())
    }

    /// Whether the unconditional half is computed at this timestep.
    pub fn applies(&self, timestep: f64) -> bool {
        self.scale != 1.
            && self
                .interval
                .is_none_or(|[from, to]| (from..=to).contains(&timestep))
    }

    /// How many of `channels` prediction channels are guided.
    fn guided(&self, convention: Convention, channels: i64) -> i64 {
        let wanted = self.channels.unwrap_or(match convention {
            Convention::Original => 3,
            Convention::Diffusers => channels,
        });
        wanted.min(channels)
    }

    /// Mixes a model's output `[2N, …]`, conditional half first. Both halves of the result get the guided channels and keep
    /// their own others, as published.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn combine(&self, dit: &Dit, output: &Tensor) -> Result<Tensor> {
        let config = dit.config();
        let n = output.size()[0] / 2;
        let guided = self.guided(config.convention, config.channels);
        let mixed = output.f_narrow(1, 0, guided)?;
        let (with, without) = (mixed.f_narrow(0, 0, n)?, mixed.f_narrow(0, n, n)?);
        let mixed = without.f_add(&with.f_sub(&without)?.f_mul_scalar(self.scale)?)?;
        let mixed = Tensor::f_cat(&[&mixed, &mixed], 0)?;
        let left = output.size()[1] - guided;
        if left == 0 {
            return Ok(mixed);
        }
        Ok(Tensor::f_cat(
            &[mixed, output.f_narrow(1, guided, left)?],
            1,
        )?)
    }
}

/// Class labels where a model is, alone and with the null class behind them as guidance wants them.
#[derive(Debug)]
pub struct Labels {
    each: Tensor,
    and_null: Tensor,
}

impl Labels {
    /// For these labels `[N]` (int64).
    ///
    /// # Errors
    /// A label is none of the model's classes.
    pub fn new(dit: &Dit, labels: &Tensor) -> Result<Self> {
        let config = dit.config();
        for label in Vec::<i64>::try_from(labels)? {
            if !(0..config.label_rows()).contains(&label) {
                return Err(Error::option(
                    "label",
                    format!("0 to {}", config.label_rows() - 1),
                    label,
                ));
            }
        }
        let each = labels.f_to_device(dit.device())?;
        let null = each.f_full_like(config.classes as f64)?;
        Ok(Self {
            and_null: Tensor::f_cat(&[&each, &null], 0)?,
            each,
        })
    }

    /// Puts the numbers of `other`, of as many images, into these tensors, which whoever works on them then sees.
    ///
    /// # Errors
    /// Another number of images.
    pub fn set(&mut self, other: &Self) -> Result<()> {
        self.each.f_copy_(&other.each)?;
        self.and_null.f_copy_(&other.and_null)?;
        Ok(())
    }

    /// The same tensors.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            each: self.each.shallow_clone(),
            and_null: self.and_null.shallow_clone(),
        }
    }
}

/// A DiT with labels, guidance and a cache: what a sampler calls.
pub struct Guided<'a> {
    dit: &'a Dit,
    labels: Labels,
    guidance: &'a Guidance,
    reuse: &'a mut dyn Reuse,
}

impl<'a> Guided<'a> {
    /// For these labels `[N]` (int64).
    ///
    /// # Errors
    /// Guidance is asked of a model that was trained without a null class, or a label is none of its classes.
    pub fn new(
        dit: &'a Dit,
        labels: &Tensor,
        guidance: &'a Guidance,
        reuse: &'a mut dyn Reuse,
    ) -> Result<Self> {
        Self::with_labels(dit, Labels::new(dit, labels)?, guidance, reuse)
    }

    /// For labels that are where the model is.
    ///
    /// # Errors
    /// Guidance is asked of a model that was trained without a null class.
    pub fn with_labels(
        dit: &'a Dit,
        labels: Labels,
        guidance: &'a Guidance,
        reuse: &'a mut dyn Reuse,
    ) -> Result<Self> {
        let config = dit.config();
        guidance.validate().map_err(Error::setting)?;
        if guidance.scale != 1. && config.label_rows() == config.classes {
            return Err(Error::option(
                "scale",
                "1, because this model was trained without a null class",
                guidance.scale,
            ));
        }
        Ok(Self {
            dit,
            labels,
            guidance,
            reuse,
        })
    }
}

impl Denoiser for Guided<'_> {
    fn denoise(&mut self, x: &Tensor, call: &Call) -> Result<Tensor> {
        self.reuse.begin(call);
        let n = x.size().first().copied().unwrap_or(0);
        let time = |n: i64| Tensor::f_full([n], call.timestep, (Kind::Float, self.dit.device()));
        let output = if self.guidance.applies(call.timestep) {
            let both = Tensor::f_cat(&[x, x], 0)?;
            let output =
                self.dit
                    .forward(&both, &time(2 * n)?, &self.labels.and_null, self.reuse)?;
            self.guidance
                .combine(self.dit, &output)?
                .f_narrow(0, 0, n)?
        } else {
            self.dit
                .forward(x, &time(n)?, &self.labels.each, self.reuse)?
        };
        let config = self.dit.config();
        Ok(match config.convention {
            Convention::Original => output,
            // The variance is the sampler's own.
            Convention::Diffusers => output.f_narrow(1, 0, config.channels)?,
        })
    }
}
