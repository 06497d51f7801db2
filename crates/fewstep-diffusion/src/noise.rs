//! Noise schedules: how much noise the 1000 timesteps of training hold, and which of them a sampler visits.
//!
//! x_t = √ᾱ_t · x₀ + √(1 − ᾱ_t) · ε, with ᾱ_t the product of 1 − β up to t (DDPM, arXiv 2006.11239, equation 4).

use fewstep_torch::device::send;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Error, Result};

/// Timesteps of training, in every published model here.
pub const TRAIN_TIMESTEPS: usize = 1000;

/// The betas of training. In a config: `{ name = "linear" }`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BetaSchedule {
    /// Evenly from `start` to `end` (DDPM, DiT).
    Linear {
        /// The first beta. Default: 0.0001.
        #[serde(default = "linear_start")]
        start: f64,
        /// The last beta. Default: 0.02.
        #[serde(default = "linear_end")]
        end: f64,
    },
    /// The roots of the betas lie evenly (Stable Diffusion).
    ScaledLinear {
        /// The first beta. Default: 0.00085.
        #[serde(default = "scaled_start")]
        start: f64,
        /// The last beta. Default: 0.012.
        #[serde(default = "scaled_end")]
        end: f64,
    },
    /// ᾱ follows a squared cosine (arXiv 2102.09672, equation 17; `squaredcos_cap_v2` in diffusers).
    Cosine {
        /// No beta is larger. Default: 0.999.
        #[serde(default = "max_beta")]
        max_beta: f64,
    },
}

fn linear_start() -> f64 {
    1e-4
}

fn linear_end() -> f64 {
    0.02
}

fn scaled_start() -> f64 {
    0.00085
}

fn scaled_end() -> f64 {
    0.012
}

fn max_beta() -> f64 {
    0.999
}

impl Default for BetaSchedule {
    fn default() -> Self {
        Self::Linear {
            start: linear_start(),
            end: linear_end(),
        }
    }
}

impl BetaSchedule {
    /// Stable Diffusion's.
    pub fn scaled_linear() -> Self {
        Self::ScaledLinear {
            start: scaled_start(),
            end: scaled_end(),
        }
    }

    /// The published cosine.
    pub fn cosine() -> Self {
        Self::Cosine {
            max_beta: max_beta(),
        }
    }

    /// # Errors
    /// The option that is out of range, and a clause that says what was expected and found.
    pub fn validate(&self) -> std::result::Result<(), (&'static str, String)> {
        let inside = |v: f64| v > 0. && v < 1.;
        match *self {
            Self::Linear { start, end } | Self::ScaledLinear { start, end } => {
                if !inside(start) {
                    let message = format!("expected a number between 0 and 1, found {start}");
                    return Err(("start", message));
                }
                if !(inside(end) && end >= start) {
                    let message = format!("expected a number from {start} to below 1, found {end}");
                    return Err(("end", message));
                }
            }
            Self::Cosine { max_beta } => {
                if !inside(max_beta) {
                    let message = format!("expected a number between 0 and 1, found {max_beta}");
                    return Err(("max_beta", message));
                }
            }
        }
        Ok(())
    }

    fn betas(&self) -> Vec<f64> {
        let n = TRAIN_TIMESTEPS;
        let line =
            |start: f64, end: f64, i: usize| start + (end - start) * i as f64 / (n - 1) as f64;
        let cosine = |i: usize| {
            let angle = (i as f64 / n as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2;
            angle.cos().powi(2)
        };
        (0..n)
            .map(|i| match *self {
                Self::Linear { start, end } => line(start, end, i),
                Self::ScaledLinear { start, end } => line(start.sqrt(), end.sqrt(), i).powi(2),
                Self::Cosine { max_beta } => (1. - cosine(i + 1) / cosine(i)).min(max_beta),
            })
            .collect()
    }
}

/// The noise of every timestep of training. A value that samplers and losses borrow.
#[derive(Debug, Clone)]
pub struct NoiseSchedule {
    schedule: BetaSchedule,
    betas: Vec<f64>,
    alphas_cumprod: Vec<f64>,
}

impl Default for NoiseSchedule {
    fn default() -> Self {
        Self::of(BetaSchedule::default())
    }
}

impl NoiseSchedule {
    /// # Errors
    /// The option of `schedule` that is out of range.
    pub fn new(schedule: &BetaSchedule) -> Result<Self> {
        schedule.validate().map_err(Error::setting)?;
        Ok(Self::of(*schedule))
    }

    fn of(schedule: BetaSchedule) -> Self {
        let betas = schedule.betas();
        let alphas_cumprod = betas
            .iter()
            .scan(1., |product, beta| {
                *product *= 1. - beta;
                Some(*product)
            })
            .collect();
        Self {
            schedule,
            betas,
            alphas_cumprod,
        }
    }

    /// What it was made from.
    pub fn schedule(&self) -> &BetaSchedule {
        &self.schedule
    }

    /// β of each timestep, between 0 and 1.
    pub fn betas(&self) -> &[f64] {
        &self.betas
    }

    /// ᾱ of each timestep, falling from almost 1 to almost 0.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// Noisy latents √ᾱ_t · x₀ + √(1 − ᾱ_t) · noise, for `x0` and `noise` `[N, …]` and timesteps `t` `[N]` (int64).
    ///
    /// # Errors
    /// Shapes that do not fit, a timestep that does not exist (on the CPU), or libtorch refuses.
    pub fn q_sample(&self, x0: &Tensor, t: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let mut shape = vec![1; x0.dim()];
        if let Some(n) = shape.first_mut() {
            *n = -1;
        }
        // Looked up where the timesteps are: numbers of a step go to a GPU without a wait, and none come back.
        let all = send(&Tensor::f_from_slice(&self.alphas_cumprod)?, t.device())?;
        let alpha_bar = send(&all.f_index_select(0, t)?, x0.device())?.f_view(shape.as_slice())?;
        let signal = alpha_bar.f_sqrt()?.f_to_kind(x0.kind())?;
        let sigma = alpha_bar
            .f_neg()?
            .f_add_scalar(1.)?
            .f_sqrt()?
            .f_to_kind(x0.kind())?;
        Ok(x0.f_mul(&signal)?.f_add(&noise.f_mul(&sigma)?)?)
    }
}

/// Which of the 1000 timesteps a sampler visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Respacing {
    /// DiT's and guided-diffusion's `"T"`: from 0 to 999 with stride 999/(T − 1), rounded half to even.
    #[default]
    Published,
    /// guided-diffusion's `"ddimT"`: from 0 with a whole stride.
    Ddim,
    /// diffusers' `leading`: from 0 with stride ⌊1000/T⌋.
    Leading,
    /// diffusers' `trailing`: down from 999 with stride 1000/T.
    Trailing,
    /// diffusers' `linspace`: from 0 to 999.
    Linspace,
}

impl Respacing {
    /// `steps` timesteps, ascending.
    ///
    /// # Errors
    /// This rule has no such number of timesteps.
    pub fn timesteps(self, steps: usize) -> Result<Vec<usize>> {
        self.choose(steps)
            .map_err(|expected| Error::option("steps", expected, steps))
    }

    /// The same, with what was expected as the error.
    pub(crate) fn choose(self, steps: usize) -> std::result::Result<Vec<usize>, String> {
        let n = TRAIN_TIMESTEPS;
        let least = match self {
            Self::Published | Self::Ddim | Self::Linspace => 2,
            Self::Leading | Self::Trailing => 1,
        };
        if !(least..=n).contains(&steps) {
            return Err(format!("a whole number from {least} to {n}"));
        }
        let last = (n - 1) as f64;
        Ok(match self {
            Self::Published => {
                let stride = last / (steps - 1) as f64;
                // A running sum, as published: its rounding errors decide ties.
                std::iter::successors(Some(0.), |t| Some(t + stride))
                    .take(steps)
                    .map(|t: f64| t.round_ties_even() as usize)
                    .collect()
            }
            Self::Linspace => {
                let stride = last / (steps - 1) as f64;
                (0..steps)
                    .map(|i| (i as f64 * stride).round_ties_even() as usize)
                    .collect()
            }
            Self::Ddim => {
                let stride = n.div_ceil(steps);
                let found = n.div_ceil(stride);
                if found != steps {
                    return Err(format!(
                        "a number of steps that a whole stride gives (the nearest is {found})"
                    ));
                }
                (0..n).step_by(stride).collect()
            }
            Self::Leading => (0..n).step_by(n / steps).take(steps).collect(),
            Self::Trailing => {
                let stride = n as f64 / steps as f64;
                (0..steps)
                    .rev()
                    .map(|i| (n as f64 - i as f64 * stride).round_ties_even() as usize - 1)
                    .collect()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_twenty_and_fifty_steps_are_the_published_ones() {
        let published = |steps| Respacing::Published.timesteps(steps).unwrap();
        assert_eq!(
            published(10),
            [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
        );
        assert_eq!(
            published(20),
            [
                0, 53, 105, 158, 210, 263, 315, 368, 421, 473, 526, 578, 631, 684, 736, 789, 841,
                894, 946, 999
            ]
        );
        let fifty = published(50);
        assert_eq!(fifty[..6], [0, 20, 41, 61, 82, 102]);
        assert_eq!(fifty[46..], [938, 958, 979, 999]);
        assert_eq!(fifty.len(), 50);
        assert_eq!(published(1000), (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn every_rule_gives_ascending_timesteps_for_every_number_of_steps() {
        use Respacing::*;
        for rule in [Published, Ddim, Leading, Trailing, Linspace] {
            for steps in 1..=1000 {
                let Ok(chosen) = rule.timesteps(steps) else {
                    assert!(rule == Ddim || steps == 1, "{rule:?} {steps}");
                    continue;
                };
                assert_eq!(chosen.len(), steps, "{rule:?} {steps}");
                assert!(chosen.is_sorted_by(|a, b| a < b), "{rule:?} {steps}");
                assert!(chosen.iter().all(|&t| t < 1000), "{rule:?} {steps}");
            }
            assert!(rule.timesteps(0).is_err());
            assert!(rule.timesteps(1001).is_err());
        }
        assert_eq!(Ddim.timesteps(50).unwrap()[..3], [0, 20, 40]);
        assert_eq!(
            Ddim.timesteps(999).unwrap_err().to_string(),
            "steps: expected a number of steps that a whole stride gives (the nearest is 500), found 999"
        );
        assert_eq!(Trailing.timesteps(4).unwrap(), [249, 499, 749, 999]);
        assert_eq!(Leading.timesteps(3).unwrap(), [0, 333, 666]);
        assert_eq!(Linspace.timesteps(3).unwrap(), [0, 500, 999]);
    }

    #[test]
    fn betas_lie_between_0_and_1_and_the_signal_falls() {
        for schedule in [
            BetaSchedule::default(),
            BetaSchedule::scaled_linear(),
            BetaSchedule::cosine(),
        ] {
            let noise = NoiseSchedule::new(&schedule).unwrap();
            assert_eq!(noise.betas().len(), 1000);
            assert!(noise.betas().iter().all(|&b| b > 0. && b < 1.));
            assert!(noise.alphas_cumprod().is_sorted_by(|a, b| a > b));
            assert!(noise.alphas_cumprod()[999] > 0.);
        }
    }

    #[test]
    fn the_cosine_is_its_closed_form_until_the_cap() {
        let noise = NoiseSchedule::new(&BetaSchedule::cosine()).unwrap();
        let f = |t: f64| {
            ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                .cos()
                .powi(2)
        };
        for t in 0..999 {
            let expected = f((t + 1) as f64 / 1000.) / f(0.);
            let off = (noise.alphas_cumprod()[t] / expected - 1.).abs();
            assert!(off < 1e-9, "{t}: {off:e}");
        }
        assert_eq!(noise.betas()[999], 0.999);
        assert!((noise.alphas_cumprod()[499] - 0.493_843_590_4).abs() < 1e-6);
    }

    #[test]
    fn the_linear_schedules_have_their_ends_and_known_products() {
        let linear = NoiseSchedule::default();
        assert_eq!((linear.betas()[0], linear.betas()[999]), (1e-4, 0.02));
        // Widely quoted: ᾱ of the last timestep is 4.0e-5 for DDPM and 4.7e-3 for Stable Diffusion.
        assert!((linear.alphas_cumprod()[999] - 4.036e-5).abs() < 1e-8);
        let scaled = NoiseSchedule::new(&BetaSchedule::scaled_linear()).unwrap();
        assert!((scaled.alphas_cumprod()[999] - 4.660e-3).abs() < 1e-6);
        assert!((scaled.betas()[999] - 0.012).abs() < 1e-15);
    }

    #[test]
    fn noisy_latents_mix_by_each_images_timestep() {
        let noise = NoiseSchedule::default();
        let x0 = Tensor::from_slice(&[2f32, 2.]).view([2, 1, 1, 1]);
        let e = Tensor::from_slice(&[1f32, -1.]).view([2, 1, 1, 1]);
        let x = noise
            .q_sample(&x0, &Tensor::from_slice(&[0i64, 999]), &e)
            .unwrap();
        let ab = |t: usize| noise.alphas_cumprod()[t];
        let expected = [
            2. * ab(0).sqrt() + (1. - ab(0)).sqrt(),
            2. * ab(999).sqrt() - (1. - ab(999)).sqrt(),
        ];
        for (found, expected) in Vec::<f32>::try_from(x.view(-1))
            .unwrap()
            .iter()
            .zip(expected)
        {
            assert!((f64::from(*found) - expected).abs() < 1e-6);
        }
        assert!(
            noise
                .q_sample(&x0, &Tensor::from_slice(&[0i64, 1000]), &e)
                .is_err()
        );
    }

    #[test]
    fn a_config_names_the_schedule_and_unknown_keys_are_refused() {
        let read = |text: &str| serde_json::from_str::<BetaSchedule>(text);
        assert_eq!(
            read(r#"{"name":"linear"}"#).unwrap(),
            BetaSchedule::default()
        );
        assert_eq!(
            read(r#"{"name":"scaled-linear","end":0.01}"#).unwrap(),
            BetaSchedule::ScaledLinear {
                start: 0.00085,
                end: 0.01
            }
        );
        assert!(read(r#"{"name":"cosine","start":0.1}"#).is_err());
        let wrong = BetaSchedule::Linear {
            start: 0.1,
            end: 0.02,
        };
        assert_eq!(wrong.validate().unwrap_err().0, "end");
        assert!(NoiseSchedule::new(&wrong).is_err());
    }
}
