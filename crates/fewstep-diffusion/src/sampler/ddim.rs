//! DDIM (arXiv 2010.02502), equations 12 and 16, over the chosen timesteps. ᾱ after the last call is 1.

use tch::Tensor;

use super::prediction::{Data, Prediction, mix, row, split};
use super::{Sampler, SamplerState};
use crate::Result;
use crate::noise::NoiseSchedule;
use crate::random::NoiseSource;

/// Deterministic with `eta` 0; with 1 it has DDPM's variance.
#[derive(Debug, Clone)]
pub struct Ddim {
    timesteps: Vec<f64>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone)]
struct Row {
    data: Data,
    x: f64,
    x0: f64,
    noise: f64,
}

impl Ddim {
    /// Over the ascending `timesteps` of `schedule`. `clip` clamps each predicted x₀ to −1 … 1 and derives the noise from it again.
    ///
    /// # Errors
    /// A timestep is none of the schedule's, or they do not ascend.
    pub fn new(
        schedule: &NoiseSchedule,
        timesteps: &[usize],
        prediction: Prediction,
        eta: f64,
        clip: bool,
    ) -> Result<Self> {
        let levels = super::levels(schedule, timesteps)?;
        let rows = levels
            .windows(2)
            .map(|pair| {
                let (now, next) = (pair[0], pair[1]);
                let noise = eta * ((1. - next) / (1. - now) * (1. - now / next)).sqrt();
                // √ᾱ' x₀ + √(1 − ᾱ' − σ²) ε, with ε = (x − √ᾱ x₀)/√(1 − ᾱ).
                let x = ((1. - next - noise * noise).max(0.) / (1. - now)).sqrt();
                Row {
                    data: Data {
                        weights: prediction.weights(now),
                        clip,
                    },
                    x,
                    x0: next.sqrt() - x * now.sqrt(),
                    noise,
                }
            })
            .collect();
        Ok(Self {
            timesteps: super::descending(timesteps),
            rows,
        })
    }
}

impl Sampler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(
        &self,
        _: &mut SamplerState,
        index: usize,
        x: &Tensor,
        output: &Tensor,
        noise: &mut dyn NoiseSource,
    ) -> Result<Tensor> {
        let row = row(&self.rows, index)?;
        let (prediction, _) = split(x, output)?;
        let next = row.data.advance(x, &prediction, row.x, row.x0)?;
        if row.noise == 0. {
            return Ok(next);
        }
        mix(&[(1., &next), (row.noise, &noise.noise(index + 1, x)?)])
    }
}
