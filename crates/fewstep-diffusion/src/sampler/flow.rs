//! Flow matching along straight lines (SiT, arXiv 2401.08740), in the convention of SiT's code: x_t = t · x₁ + (1 − t) · noise, so
//! time runs from 0 (noise) to 1 (image), the model is told t, and its output is the velocity x₁ − noise.
//!
//! The steps are even, from 0 to 1. SiT counts the points of this grid: its `num_steps` is one more than `steps` here. Heun's method
//! calls the model twice in every step, also in the last, as the solver that SiT uses does: a velocity is finite at t = 1.

use tch::Tensor;

use super::prediction::{mix, row, split};
use super::{Sampler, SamplerState};
use crate::random::NoiseSource;
use crate::{Error, Result};

/// Euler's or Heun's method. Channels of the output beyond the latents' are ignored.
#[derive(Debug, Clone)]
pub struct Flow {
    timesteps: Vec<f64>,
    width: f64,
    heun: bool,
}

impl Flow {
    /// One call a step, first order.
    ///
    /// # Errors
    /// `steps` is 0.
    pub fn euler(steps: usize) -> Result<Self> {
        Self::of(steps, false)
    }

    /// Two calls a step, at its beginning and its end, second order.
    ///
    /// # Errors
    /// `steps` is 0.
    pub fn heun(steps: usize) -> Result<Self> {
        Self::of(steps, true)
    }

    fn of(steps: usize, heun: bool) -> Result<Self> {
        if steps == 0 {
            return Err(Error::option("steps", "at least 1", steps));
        }
        let time = |i: usize| i as f64 / steps as f64;
        Ok(Self {
            timesteps: match heun {
                false => (0..steps).map(time).collect(),
                true => (0..steps).flat_map(|i| [time(i), time(i + 1)]).collect(),
            },
            width: 1. / steps as f64,
            heun,
        })
    }
}

impl Sampler for Flow {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(
        &self,
        state: &mut SamplerState,
        index: usize,
        x: &Tensor,
        output: &Tensor,
        _: &mut dyn NoiseSource,
    ) -> Result<Tensor> {
        row(&self.timesteps, index)?;
        let (velocity, _) = split(x, output)?;
        if !self.heun {
            return mix(&[(1., x), (self.width, &velocity)]);
        }
        if index.is_multiple_of(2) {
            let ahead = mix(&[(1., x), (self.width, &velocity)])?;
            state.tensors = vec![x.shallow_clone(), velocity];
            return Ok(ahead);
        }
        match &std::mem::take(&mut state.tensors)[..] {
            [start, first] => mix(&[
                (1., start),
                (self.width / 2., first),
                (self.width / 2., &velocity),
            ]),
            _ => Err(Error::option(
                "index",
                "a call that follows the first half of its step",
                index,
            )),
        }
    }
}
