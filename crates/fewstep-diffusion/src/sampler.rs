//! Samplers: each turns what a denoiser says at one timestep into the next latents, and knows of nothing else.

use tch::Tensor;

use crate::Result;
use crate::random::NoiseSource;

/// One call of the denoiser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    /// Place in the order of execution, from 0.
    pub index: usize,
    /// Place in the ascending order of timesteps: the last call is row 0. Rows of a cache plan are counted like this.
    pub row: usize,
    /// What the model is told: a timestep from 0 to 999, or a time from 0 to 1 for flow matching.
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
