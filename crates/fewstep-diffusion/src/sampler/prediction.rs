//! From what a denoiser predicts to x₀, and the step that every sampler of a noise schedule takes: a weighted sum of x_t, x₀ and
//! noise.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Error, Result};

/// What the first C channels of a denoiser's output are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prediction {
    /// The noise ε (DiT).
    #[default]
    Epsilon,
    /// The velocity √ᾱ·ε − √(1 − ᾱ)·x₀ (arXiv 2202.00512).
    V,
    /// The image x₀.
    Sample,
}

impl Prediction {
    /// Weights of x_t and of the output that make x₀.
    pub(super) fn weights(self, alpha_bar: f64) -> [f64; 2] {
        let (signal, sigma) = (alpha_bar.sqrt(), (1. - alpha_bar).sqrt());
        match self {
            Self::Epsilon => [1. / signal, -sigma / signal],
            Self::V => [signal, -sigma],
            Self::Sample => [0., 1.],
        }
    }
}

/// Turns x_t and an output into x₀ at one noise level.
#[derive(Debug, Clone)]
pub(super) struct Data {
    /// Of x_t and of the output.
    pub weights: [f64; 2],
    /// Clamp x₀ to −1 … 1.
    pub clip: bool,
}

impl Data {
    pub fn predict(&self, x: &Tensor, prediction: &Tensor) -> Result<Tensor> {
        let x0 = mix(&[(self.weights[0], x), (self.weights[1], prediction)])?;
        Ok(if self.clip { x0.f_clamp(-1., 1.)? } else { x0 })
    }

    /// `by_x` · x_t + `by_x0` · x₀, in one pass where x₀ is not clipped.
    pub fn advance(
        &self,
        x: &Tensor,
        prediction: &Tensor,
        by_x: f64,
        by_x0: f64,
    ) -> Result<Tensor> {
        if self.clip {
            return mix(&[(by_x, x), (by_x0, &self.predict(x, prediction)?)]);
        }
        let [of_x, of_prediction] = self.weights;
        mix(&[
            (by_x + by_x0 * of_x, x),
            (by_x0 * of_prediction, prediction),
        ])
    }
}

/// The weighted sum of at least one tensor. Those of weight 0 are left alone: what is infinite there does no harm.
pub(super) fn mix(parts: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (weight, tensor) in parts.iter().filter(|(weight, _)| *weight != 0.) {
        let part = tensor.f_mul_scalar(*weight)?;
        sum = Some(match sum {
            None => part,
            Some(mut sum) => sum.f_add_(&part)?,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => Ok(parts[0].1.f_zeros_like()?),
    }
}

/// Takes a denoiser's output apart: the prediction, in the kind of `x`, and the learned variance where there is one.
pub(super) fn split(x: &Tensor, output: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
    let (size, found) = (x.size(), output.size());
    let c = size.get(1).copied().unwrap_or(0);
    let fits = found.len() == size.len()
        && size.len() >= 2
        && found[0] == size[0]
        && (found[1] == c || found[1] == 2 * c)
        && found[2..] == size[2..];
    if !fits {
        return Err(Error::Shape {
            what: "the denoiser's output",
            expected: format!("the latents' shape {size:?}, or twice the channels"),
            found,
        });
    }
    let output = output.f_to_kind(x.kind())?;
    let variance = match found[1] == c {
        true => None,
        false => Some(output.f_narrow(1, c, c)?),
    };
    Ok((output.f_narrow(1, 0, c)?, variance))
}

/// The entry of `rows` for a call, or an error if there is no such call.
pub(super) fn row<T>(rows: &[T], index: usize) -> Result<&T> {
    rows.get(index)
        .ok_or_else(|| Error::option("index", format!("a call below {}", rows.len()), index))
}
