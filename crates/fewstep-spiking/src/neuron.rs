//! Integrate-and-fire neurons: IF, LIF and parametric LIF, over all timesteps in one call.
//!
//! ```text
//! m[t] = λ·u[t−1] + x[t]        u[−1] = 0
//! s[t] = 1 where m[t] > θ       strictly
//! u[t] = m[t] − θ·s[t]  (soft) | m[t]·(1 − s[t])  (hard) | m[t]  (none)
//! ```
//! (IIR-SNN, arXiv 2110.05929; DIET-SNN, arXiv 2008.03658.) The surrogate acts on z = m/θ − 1, so gradients carry 1/θ and −m/θ².

use fewstep_torch::ops::{self, NeuronCall};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result, Surrogate};

/// What a spike does to the membrane potential, in the same timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reset {
    /// The threshold is subtracted: the residual stays.
    #[default]
    Soft,
    /// The potential becomes zero.
    Hard,
    /// Nothing happens.
    None,
}

/// The leak λ, which multiplies what the last timestep left.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeakOptions {
    /// Its first value, 0 to 1. 1 is no leak (IF); below 1 a leaky neuron (LIF).
    pub initial: f64,
    /// Whether it is trained (parametric LIF).
    pub learnable: bool,
}

impl Default for LeakOptions {
    fn default() -> Self {
        Self {
            initial: 1.,
            learnable: true,
        }
    }
}

/// How the neurons of a network behave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NeuronOptions {
    /// The reset.
    pub reset: Reset,
    /// The surrogate gradient.
    pub surrogate: Surrogate,
    /// The leak.
    pub leak: LeakOptions,
    /// The threshold before calibration; positive.
    pub threshold: f64,
    /// Whether thresholds are trained.
    pub learnable_threshold: bool,
    /// One threshold and leak for each channel instead of one for each layer.
    pub per_channel: bool,
}

impl Default for NeuronOptions {
    /// The paper's: soft reset, triangular surrogate, leak from 1 and threshold learnable, one of each a layer. The threshold 0.4
    /// is the published code's default for layers that are not calibrated.
    fn default() -> Self {
        Self {
            reset: Reset::Soft,
            surrogate: Surrogate::default(),
            leak: LeakOptions::default(),
            threshold: 0.4,
            learnable_threshold: true,
            per_channel: false,
        }
    }
}

impl NeuronOptions {
    /// # Errors
    /// A threshold, leak or surrogate out of range.
    pub fn validate(&self) -> Result<()> {
        self.surrogate.validate()?;
        if !(self.threshold >= MIN_THRESHOLD && self.threshold.is_finite()) {
            let found = self.threshold.to_string();
            return Err(Error::Option {
                option: "threshold",
                expected: "a number of at least 0.001",
                found,
            });
        }
        if !(0. ..=1.).contains(&self.leak.initial) {
            let found = self.leak.initial.to_string();
            return Err(Error::Option {
                option: "leak.initial",
                expected: "a number from 0 to 1",
                found,
            });
        }
        Ok(())
    }
}

/// Thresholds are kept at or above this: the published code leaves them free, and a sign flip ends training.
pub(crate) const MIN_THRESHOLD: f64 = 1e-3;

/// The neurons of one layer.
#[derive(Debug)]
pub struct Neuron {
    /// θ, `[1]` or `[C]`.
    pub threshold: Tensor,
    /// λ, `[1]` or `[C]`.
    pub leak: Tensor,
    reset: Reset,
    surrogate: Surrogate,
}

impl Neuron {
    /// Neurons for a layer of `channels`.
    ///
    /// # Errors
    /// Options out of range.
    pub fn new(options: &NeuronOptions, channels: i64, device: Device) -> Result<Self> {
        options.validate()?;
        let n = if options.per_channel { channels } else { 1 };
        let full =
            |value: f64, learnable: bool| -> Result<Tensor> {
                Ok(Tensor::f_full([n], value, (Kind::Float, device))?
                    .f_set_requires_grad(learnable)?)
            };
        Ok(Self {
            threshold: full(options.threshold, options.learnable_threshold)?,
            leak: full(options.leak.initial, options.leak.learnable)?,
            reset: options.reset,
            surrogate: options.surrogate,
        })
    }

    /// Spikes `[T, N, C, …]` (0 or 1) for a current `[T, N, C, …]`, or `[1, N, C, …]` for one that enters at every timestep.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, current: &Tensor, timesteps: u32) -> Result<Tensor> {
        Ok(self.call(current, timesteps, None, false, true)?.0)
    }

    /// Like [`Neuron::forward`], with the membrane potential after the reset, `[T, N, C, …]`, beside the spikes. It carries no
    /// gradient.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_with_membrane(
        &self,
        current: &Tensor,
        timesteps: u32,
    ) -> Result<(Tensor, Tensor)> {
        match self.call(current, timesteps, None, true, true)? {
            (spikes, Some(membrane)) => Ok((spikes, membrane)),
            (_, None) => Err(Error::State(
                "the neuron returned no membrane potential".into(),
            )),
        }
    }

    pub(crate) fn call(
        &self,
        current: &Tensor,
        timesteps: u32,
        initial: Option<&Tensor>,
        membrane: bool,
        fused: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (surrogate, a, b) = self.surrogate.code();
        let reset = match self.reset {
            Reset::Soft => 0,
            Reset::Hard => 1,
            Reset::None => 2,
        };
        let call = NeuronCall {
            timesteps: i64::from(timesteps),
            reset,
            surrogate,
            a,
            b,
            membrane,
            fused,
        };
        // Products may come in bfloat16; potentials are summed and compared in float32.
        Ok(ops::neuron(
            &current.f_to_kind(self.threshold.kind())?,
            &self.threshold,
            &self.leak,
            initial,
            call,
        )?)
    }

    /// The reset.
    pub fn reset(&self) -> Reset {
        self.reset
    }

    /// The surrogate.
    pub fn surrogate(&self) -> Surrogate {
        self.surrogate
    }

    /// The surrogate from now on (a wider one early in training, say).
    pub fn set_surrogate(&mut self, surrogate: Surrogate) {
        self.surrogate = surrogate;
    }

    /// Brings threshold and leak back into their ranges (θ ≥ 0.001, 0 ≤ λ ≤ 1); called after every optimiser step.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn constrain(&mut self) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let _ = self.threshold.f_clamp_min_(MIN_THRESHOLD)?;
        let _ = self.leak.f_clamp_(0., 1.)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::surrogate::tests::ALL;

    fn neuron(reset: Reset, threshold: f64, leak: f64) -> Neuron {
        let leak = LeakOptions {
            initial: leak,
            learnable: true,
        };
        Neuron::new(
            &NeuronOptions {
                reset,
                threshold,
                leak,
                ..Default::default()
            },
            1,
            Device::Cpu,
        )
        .unwrap()
    }

    fn run(n: &Neuron, current: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let x = Tensor::from_slice(current).view([-1, 1, 1]);
        let (s, u) = n.forward_with_membrane(&x, current.len() as u32).unwrap();
        (
            Vec::try_from(s.view([-1])).unwrap(),
            Vec::try_from(u.view([-1])).unwrap(),
        )
    }

    #[test]
    fn soft_reset_keeps_the_residual() {
        let (s, u) = run(&neuron(Reset::Soft, 1., 0.5), &[0.75, 0.75, 0.25]);
        assert_eq!((s, u), (vec![0., 1., 0.], vec![0.75, 0.125, 0.3125]));
    }

    #[test]
    fn hard_reset_drops_the_residual_and_none_keeps_everything() {
        assert_eq!(
            run(&neuron(Reset::Hard, 1., 0.5), &[0.75, 0.75, 0.25]),
            (vec![0., 1., 0.], vec![0.75, 0., 0.25])
        );
        assert_eq!(
            run(&neuron(Reset::None, 1., 0.5), &[0.75, 0.75, 0.25]),
            (vec![0., 1., 0.], vec![0.75, 1.125, 0.8125])
        );
    }

    #[test]
    fn a_potential_equal_to_the_threshold_does_not_fire() {
        assert_eq!(
            run(&neuron(Reset::Soft, 0.5, 1.), &[0.5, 0.001]).0,
            vec![0., 1.]
        );
    }

    #[test]
    fn a_still_current_gives_what_the_same_current_repeated_gives_and_its_gradient_is_the_sum() {
        tch::manual_seed(3);
        let n = neuron(Reset::Soft, 0.7, 0.9);
        let still =
            Tensor::rand([1, 4, 3, 5, 5], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let moving = still
            .detach()
            .repeat([5, 1, 1, 1, 1])
            .set_requires_grad(true);
        let weight = Tensor::randn([5, 4, 3, 5, 5], (Kind::Float, Device::Cpu));
        let (a, b) = (
            n.forward(&still, 5).unwrap(),
            n.forward(&moving, 5).unwrap(),
        );
        assert_eq!(a, b);
        (a * &weight).sum(Kind::Float).backward();
        (b * &weight).sum(Kind::Float).backward();
        let summed = moving
            .grad()
            .sum_dim_intlist([0i64].as_slice(), true, Kind::Float);
        assert!((still.grad() - summed).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn the_fused_kernel_and_the_operators_that_cuda_uses_agree_with_gradients() {
        for reset in [Reset::Soft, Reset::Hard, Reset::None] {
            for surrogate in ALL {
                for (per_channel, shape) in [
                    (false, vec![4, 2, 3, 6, 7]),
                    (true, vec![4, 2, 3, 6, 7]),
                    (true, vec![4, 2, 9]),
                ] {
                    tch::manual_seed(5);
                    let leak = LeakOptions {
                        initial: 0.8,
                        learnable: true,
                    };
                    let o = NeuronOptions {
                        reset,
                        surrogate,
                        leak,
                        threshold: 0.6,
                        per_channel,
                        ..Default::default()
                    };
                    let x = Tensor::randn(shape.as_slice(), (Kind::Double, Device::Cpu));
                    let weight = Tensor::randn(shape.as_slice(), (Kind::Double, Device::Cpu));
                    let initial = (shape.len() == 3).then(|| x.get(0) * 0.3);
                    let results: Vec<_> = [true, false]
                        .map(|fused| {
                            let mut n = Neuron::new(&o, shape[2], Device::Cpu).unwrap();
                            n.threshold = n
                                .threshold
                                .to_kind(Kind::Double)
                                .detach()
                                .set_requires_grad(true);
                            n.leak = n
                                .leak
                                .to_kind(Kind::Double)
                                .detach()
                                .set_requires_grad(true);
                            let x = x.copy().set_requires_grad(true);
                            let (s, u) = n.call(&x, 4, initial.as_ref(), true, fused).unwrap();
                            (&s * &weight).sum(Kind::Double).backward();
                            [s, u.unwrap(), x.grad(), n.threshold.grad(), n.leak.grad()]
                        })
                        .into();
                    for (i, (a, b)) in results[0].iter().zip(&results[1]).enumerate() {
                        let off = (a - b).abs().max().double_value(&[]);
                        assert!(
                            off < 1e-10,
                            "{reset:?} {surrogate:?} {shape:?} per channel {per_channel}: output {i} off by {off}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn at_one_timestep_the_leak_has_no_gradient() {
        let n = neuron(Reset::Soft, 0.5, 0.9);
        n.forward(&Tensor::rand([1, 8, 2], (Kind::Float, Device::Cpu)), 1)
            .unwrap()
            .sum(Kind::Float)
            .backward();
        assert_eq!(n.leak.grad().double_value(&[0]), 0.);
    }

    #[test]
    fn thresholds_stay_positive_and_leaks_within_zero_and_one() {
        let mut n = neuron(Reset::Soft, 0.5, 0.9);
        tch::no_grad(|| {
            let _ = n.threshold.fill_(-1.);
            let _ = n.leak.fill_(1.5);
        });
        n.constrain().unwrap();
        assert!((n.threshold.double_value(&[0]) - 1e-3).abs() < 1e-9);
        assert_eq!(n.leak.double_value(&[0]), 1.);
    }

    #[test]
    fn a_current_of_the_wrong_shape_is_an_error_not_a_panic() {
        let n = neuron(Reset::Soft, 0.5, 0.9);
        let e = n
            .forward(&Tensor::zeros([3, 2, 2], (Kind::Float, Device::Cpu)), 5)
            .unwrap_err()
            .to_string();
        assert_eq!(e, "libtorch: expected a current for 5 timesteps, found 3");
    }
}
