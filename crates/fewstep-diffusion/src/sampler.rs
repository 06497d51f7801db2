//! Samplers: each turns what a denoiser says at one timestep into the next latents, and knows of nothing else.
//!
//! Latents are `[N, C, …]`; a denoiser's output has C channels, or 2C where it also says a variance (only `iddpm` reads it).
//! Coefficients are computed in f64 when a sampler is built; latents keep their kind, and no step waits for the device.

mod ddim;
mod ddpm;
mod dpm_solver;
mod flow;
mod options;
mod prediction;

use tch::Tensor;

use crate::noise::NoiseSchedule;
use crate::random::NoiseSource;
use crate::{Error, Result};

pub use ddim::Ddim;
pub use ddpm::{Ddpm, Variance};
pub use dpm_solver::DpmSolver;
pub use flow::Flow;
pub use options::{SamplerName, SamplerOptions};
pub use prediction::Prediction;

/// One call of the denoiser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    /// Place in the order of execution, from 0.
    pub index: usize,
    /// Place counted from the end: the last call, with the least noise, is row 0. Rows of a cache plan are counted like this.
    pub row: usize,
    /// What the model is told: a timestep from 0 to 999, or for flow matching a time from 0 (noise) to 1 (image).
    pub timestep: f64,
}

/// Predicts noise or velocity `[N, C or 2C, H, W]` for latents `[N, C, H, W]`. Channels beyond C are a learned variance.
pub trait Denoiser {
    /// # Errors
    /// The latents do not fit the model, or libtorch refuses.
    fn denoise(&mut self, x: &Tensor, call: &Call) -> Result<Tensor>;
}

/// What a sampler remembers within one job. Start each with `SamplerState::default()`.
#[derive(Debug, Default)]
pub struct SamplerState {
    /// Earlier predictions or latents, as each sampler needs them.
    pub(crate) tensors: Vec<Tensor>,
}

impl SamplerState {
    /// The same memory of the same job, to go on from here twice. Samplers replace tensors and never write into them.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            tensors: self.tensors.iter().map(Tensor::shallow_clone).collect(),
        }
    }
}

/// A way from noise to an image in a fixed number of calls of the denoiser.
pub trait Sampler {
    /// The timesteps of the calls, in the order of execution.
    fn timesteps(&self) -> &[f64];

    /// The latents after call `index`, given the latents `x` that the denoiser saw and its `output`.
    ///
    /// # Errors
    /// Shapes that do not fit, or libtorch refuses.
    fn step(
        &self,
        state: &mut SamplerState,
        index: usize,
        x: &Tensor,
        output: &Tensor,
        noise: &mut dyn NoiseSource,
    ) -> Result<Tensor>;

    /// Call number `index`.
    fn call(&self, index: usize) -> Call {
        let timesteps = self.timesteps();
        Call {
            index,
            row: timesteps.len() - 1 - index,
            timestep: timesteps[index],
        }
    }
}

/// Runs all calls from the latents `x` and returns the last latents; `watch` sees the latents after each call.
///
/// # Errors
/// Of the denoiser, the sampler, or `watch`.
pub fn sample(
    sampler: &dyn Sampler,
    denoiser: &mut dyn Denoiser,
    x: &Tensor,
    noise: &mut dyn NoiseSource,
    watch: &mut dyn FnMut(&Call, &Tensor) -> Result<()>,
) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let mut state = SamplerState::default();
    let mut x = x.shallow_clone();
    for index in 0..sampler.timesteps().len() {
        let call = sampler.call(index);
        let output = denoiser.denoise(&x, &call)?;
        x = sampler.step(&mut state, index, &x, &output, noise)?;
        watch(&call, &x)?;
    }
    Ok(x)
}

/// ᾱ before each call over these ascending timesteps, and 1 for after the last.
fn levels(schedule: &NoiseSchedule, timesteps: &[usize]) -> Result<Vec<f64>> {
    let known = schedule.alphas_cumprod();
    let ascending = timesteps.is_sorted_by(|a, b| a < b);
    if !ascending || timesteps.last().is_none_or(|&t| t >= known.len()) {
        return Err(Error::option(
            "timesteps",
            format!("ascending timesteps below {}", known.len()),
            format!("{timesteps:?}"),
        ));
    }
    let levels = timesteps.iter().rev().map(|&t| known[t]);
    Ok(levels.chain([1.]).collect())
}

/// Timesteps in the order of execution.
fn descending(timesteps: &[usize]) -> Vec<f64> {
    timesteps.iter().rev().map(|&t| t as f64).collect()
}
