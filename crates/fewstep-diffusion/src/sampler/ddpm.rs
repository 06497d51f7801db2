//! DDPM (arXiv 2006.11239) and IDDPM (arXiv 2102.09672): ancestral sampling over the chosen timesteps, with the betas that lead
//! from one to the next, 1 − ᾱ_t/ᾱ_s, as guided-diffusion's respacing does. The last call adds no noise.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::prediction::{Data, Prediction, row, split};
use super::{Sampler, SamplerState};
use crate::noise::NoiseSchedule;
use crate::random::NoiseSource;
use crate::{Error, Result};

/// How much noise a call adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variance {
    /// β̃, right if there is only one image.
    #[default]
    FixedSmall,
    /// β, right if images are standard normal.
    FixedLarge,
    /// The output's second half v chooses between them: (1 + v)/2 · ln β + (1 − v)/2 · ln β̃ (IDDPM, equation 15).
    LearnedRange,
}

/// DDPM, or IDDPM where the variance is learned.
#[derive(Debug, Clone)]
pub struct Ddpm {
    timesteps: Vec<f64>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone)]
struct Row {
    data: Data,
    x: f64,
    x0: f64,
    noise: Noise,
}

/// Standard deviation of the noise of one call.
#[derive(Debug, Clone)]
enum Noise {
    None,
    Fixed(f64),
    /// exp(slope · v + offset).
    Learned {
        slope: f64,
        offset: f64,
    },
}

impl Ddpm {
    /// Over the ascending `timesteps` of `schedule`. `clip` clamps each predicted x₀ to −1 … 1.
    ///
    /// # Errors
    /// A timestep is none of the schedule's, or they do not ascend.
    pub fn new(
        schedule: &NoiseSchedule,
        timesteps: &[usize],
        prediction: Prediction,
        variance: Variance,
        clip: bool,
    ) -> Result<Self> {
        let levels = super::levels(schedule, timesteps)?;
        let rows = levels
            .windows(2)
            .map(|pair| {
                let (now, next) = (pair[0], pair[1]);
                let beta = 1. - now / next;
                let small = beta * (1. - next) / (1. - now);
                let noise = if small == 0. {
                    Noise::None
                } else {
                    match variance {
                        Variance::FixedSmall => Noise::Fixed(small.sqrt()),
                        Variance::FixedLarge => Noise::Fixed(beta.sqrt()),
                        Variance::LearnedRange => Noise::Learned {
                            slope: (beta.ln() - small.ln()) / 4.,
                            offset: (beta.ln() + small.ln()) / 4.,
                        },
                    }
                };
                Row {
                    data: Data {
                        weights: prediction.weights(now),
                        clip,
                    },
                    x: (1. - beta).sqrt() * (1. - next) / (1. - now),
                    x0: beta * next.sqrt() / (1. - now),
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

impl Sampler for Ddpm {
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
        let (prediction, variance) = split(x, output)?;
        let mean = row.data.advance(x, &prediction, row.x, row.x0)?;
        let noise = match row.noise {
            Noise::None => return Ok(mean),
            Noise::Fixed(deviation) => noise.noise(index + 1, x)?.f_mul_scalar(deviation)?,
            Noise::Learned { slope, offset } => variance
                .ok_or_else(|| Error::Shape {
                    what: "the denoiser's output",
                    expected: format!(
                        "twice the latents' {} channels, for the learned variance",
                        x.size()[1]
                    ),
                    found: output.size(),
                })?
                .f_mul_scalar(slope)?
                .f_add_scalar(offset)?
                .f_exp()?
                .f_mul(&noise.noise(index + 1, x)?)?,
        };
        Ok(mean.f_add(&noise)?)
    }
}
