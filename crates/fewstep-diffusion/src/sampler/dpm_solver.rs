//! DPM-Solver++ (arXiv 2211.01095), second order, multistep (algorithm 2, "2M"). λ = ln(√ᾱ/√(1 − ᾱ)) is infinite after the last
//! call, which is therefore of first order, like the first.

use tch::Tensor;

use super::prediction::{Data, Prediction, mix, row, split};
use super::{Sampler, SamplerState};
use crate::noise::{BetaSchedule, NoiseSchedule};
use crate::random::NoiseSource;
use crate::{Error, Result};

/// The exponent of Karras' noise levels.
const RHO: f64 = 7.;

/// Deterministic; remembers the x₀ of one earlier call.
#[derive(Debug, Clone)]
pub struct DpmSolver {
    timesteps: Vec<f64>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone)]
struct Row {
    data: Data,
    x: f64,
    x0: f64,
    /// How far x₀ is extrapolated: x₀ + this · (x₀ − earlier x₀).
    extrapolate: f64,
}

impl DpmSolver {
    /// Over the ascending `timesteps` of `schedule`.
    ///
    /// # Errors
    /// A timestep is none of the schedule's, or they do not ascend.
    pub fn new(
        schedule: &NoiseSchedule,
        timesteps: &[usize],
        prediction: Prediction,
    ) -> Result<Self> {
        let levels = super::levels(schedule, timesteps)?;
        Ok(Self::of(super::descending(timesteps), &levels, prediction))
    }

    /// Over `steps` noise levels that lie as in Karras et al. (arXiv 2206.00364, equation 5, ρ = 7) between the schedule's
    /// largest and smallest. As in diffusers, the model is told the whole timestep beside each level (with the cosine schedule:
    /// below it).
    ///
    /// # Errors
    /// `steps` is 0.
    pub fn karras(schedule: &NoiseSchedule, steps: usize, prediction: Prediction) -> Result<Self> {
        if steps == 0 {
            return Err(Error::option("steps", "at least 1", steps));
        }
        let sigma = |alpha_bar: &f64| ((1. - alpha_bar) / alpha_bar).sqrt();
        let known: Vec<f64> = schedule.alphas_cumprod().iter().map(sigma).collect();
        let last = known.len() - 1;
        let root = |t: usize| known[t].powf(1. / RHO);
        let sigmas: Vec<f64> = (0..steps)
            .map(|i| {
                let share = i as f64 / (steps - 1).max(1) as f64;
                (root(last) + share * (root(0) - root(last))).powf(RHO)
            })
            .collect();
        let timesteps = sigmas
            .iter()
            .map(|sigma| {
                let low = known.partition_point(|k| k <= sigma).clamp(1, last) - 1;
                let (from, to) = (known[low].ln(), known[low + 1].ln());
                let t = low as f64 + ((sigma.ln() - from) / (to - from)).clamp(0., 1.);
                match schedule.schedule() {
                    BetaSchedule::Cosine { .. } => t.floor(),
                    _ => t.round(),
                }
            })
            .collect();
        let levels: Vec<f64> = sigmas
            .iter()
            .map(|sigma| 1. / (1. + sigma * sigma))
            .chain([1.])
            .collect();
        Ok(Self::of(timesteps, &levels, prediction))
    }

    /// `levels` are ᾱ before each call and after the last.
    fn of(timesteps: Vec<f64>, levels: &[f64], prediction: Prediction) -> Self {
        let lambda = |alpha_bar: f64| (alpha_bar / (1. - alpha_bar)).ln() / 2.;
        let rows = (0..timesteps.len())
            .map(|i| {
                let (now, next) = (levels[i], levels[i + 1]);
                let x = ((1. - next) / (1. - now)).sqrt();
                let ahead = lambda(next) - lambda(now);
                Row {
                    data: Data {
                        weights: prediction.weights(now),
                        clip: false,
                    },
                    x,
                    x0: next.sqrt() - now.sqrt() * x,
                    extrapolate: match i {
                        i if i > 0 && ahead.is_finite() => {
                            ahead / (lambda(now) - lambda(levels[i - 1])) / 2.
                        }
                        _ => 0.,
                    },
                }
            })
            .collect();
        Self { timesteps, rows }
    }
}

impl Sampler for DpmSolver {
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
        let row = row(&self.rows, index)?;
        let (prediction, _) = split(x, output)?;
        let x0 = row.data.predict(x, &prediction)?;
        // Without an earlier call (sampling began in the middle) the step is of first order.
        let next = match state.tensors.first() {
            Some(earlier) if row.extrapolate != 0. => mix(&[
                (row.x, x),
                (row.x0 * (1. + row.extrapolate), &x0),
                (-row.x0 * row.extrapolate, earlier),
            ])?,
            _ => mix(&[(row.x, x), (row.x0, &x0)])?,
        };
        state.tensors = vec![x0];
        Ok(next)
    }
}
