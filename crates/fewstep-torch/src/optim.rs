//! Optimisers and learning-rate schedules. The steps are libtorch's fused kernels; the state lies in named tensors here, because
//! tch does not let a caller save the state of libtorch's own optimiser objects, and a run that can't resume is not finished.

use std::collections::BTreeMap;
use std::ffi::c_char;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::Result;
use crate::checkpoint::copy_into;
use crate::ops::check;
use crate::options::expect;

unsafe extern "C" {
    fn fewstep_adam(
        params: *const *mut C_tensor,
        grads: *const *mut C_tensor,
        first: *const *mut C_tensor,
        second: *const *mut C_tensor,
        second_max: *const *mut C_tensor,
        steps: *const *mut C_tensor,
        n: i64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        amsgrad: bool,
        decoupled: bool,
    ) -> *mut c_char;
    fn fewstep_sgd(
        params: *const *mut C_tensor,
        grads: *const *mut C_tensor,
        momentum_buffers: *const *mut C_tensor,
        n: i64,
        lr: f64,
        momentum: f64,
        weight_decay: f64,
        nesterov: bool,
        first_step: bool,
    ) -> *mut c_char;
}

/// Which optimiser, with the names and defaults of torch.optim.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OptimiserConfig {
    /// Adam (arXiv 1412.6980), optionally with the AMSGrad maximum (Reddi et al. 2018).
    Adam {
        /// Decay rates of the two moments.
        #[serde(default = "betas")]
        betas: [f64; 2],
        /// Added to the denominator.
        #[serde(default = "eps")]
        eps: f64,
        /// Keep the maximum of the second moment.
        #[serde(default)]
        amsgrad: bool,
        /// Decoupled weight decay (AdamW, arXiv 1711.05101) instead of one that enters the gradient.
        #[serde(default)]
        decoupled: bool,
    },
    /// Stochastic gradient descent with momentum.
    Sgd {
        /// Momentum, 0 for none.
        #[serde(default = "momentum")]
        momentum: f64,
        /// Nesterov's variant.
        #[serde(default)]
        nesterov: bool,
    },
}

impl OptimiserConfig {
    /// # Errors
    /// The option that is out of range, and a clause that says what was expected and found.
    pub fn validate(&self) -> std::result::Result<(), (&'static str, String)> {
        let share = |v: &f64| (0. ..1.).contains(v);
        match self {
            Self::Adam { betas, eps, .. } => {
                expect(
                    betas.iter().all(share),
                    "betas",
                    "two numbers from 0 to below 1",
                    betas,
                )?;
                expect(*eps > 0. && eps.is_finite(), "eps", "a number above 0", eps)
            }
            Self::Sgd { momentum, nesterov } => {
                expect(
                    share(momentum),
                    "momentum",
                    "a number from 0 to below 1",
                    momentum,
                )?;
                expect(
                    !nesterov || *momentum > 0.,
                    "nesterov",
                    "false where momentum is 0",
                    nesterov,
                )
            }
        }
    }
}

fn betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn eps() -> f64 {
    1e-8
}

fn momentum() -> f64 {
    0.9
}

/// Parameters that share a weight decay and a factor on the learning rate.
#[derive(Debug)]
pub struct ParameterGroup {
    /// Names, as they appear in checkpoints, and tensors.
    pub parameters: Vec<(String, Tensor)>,
    /// Weight decay of this group.
    pub weight_decay: f64,
    /// The group's learning rate is this times the one given to [`Optimiser::step`].
    pub lr_factor: f64,
}

/// An optimiser over groups of parameters. Parameters without a gradient are left alone.
#[derive(Debug)]
pub struct Optimiser {
    config: OptimiserConfig,
    groups: Vec<ParameterGroup>,
    state: BTreeMap<String, Tensor>,
}

impl Optimiser {
    /// With empty state.
    ///
    /// # Errors
    /// libtorch can't allocate the state.
    pub fn new(config: OptimiserConfig, groups: Vec<ParameterGroup>) -> Result<Self> {
        let mut state = BTreeMap::new();
        let slots: &[&str] = match config {
            OptimiserConfig::Adam { amsgrad: true, .. } => &["first", "second", "second_max"],
            OptimiserConfig::Adam { .. } => &["first", "second"],
            OptimiserConfig::Sgd { momentum, .. } if momentum != 0. => &["momentum"],
            OptimiserConfig::Sgd { .. } => &[],
        };
        for (name, p) in groups.iter().flat_map(|g| &g.parameters) {
            for slot in slots {
                state.insert(format!("{slot}.{name}"), p.f_zeros_like()?.f_detach()?);
            }
            if matches!(config, OptimiserConfig::Adam { .. }) {
                let steps = Tensor::f_zeros([], (Kind::Float, p.device()))?;
                state.insert(format!("steps.{name}"), steps);
            }
        }
        Ok(Self {
            config,
            groups,
            state,
        })
    }

    /// One step with this learning rate.
    ///
    /// # Errors
    /// libtorch refuses (shapes or devices that changed).
    pub fn step(&mut self, lr: f64) -> Result<()> {
        for group in &self.groups {
            let with_grad: Vec<_> = group
                .parameters
                .iter()
                .map(|(name, p)| (name, p, p.grad()))
                .filter(|(_, _, g)| g.defined())
                .collect();
            if with_grad.is_empty() {
                continue;
            }
            let params = pointers(with_grad.iter().map(|(_, p, _)| *p));
            let grads = pointers(with_grad.iter().map(|(_, _, g)| g));
            let slot = |slot: &str| {
                pointers(
                    with_grad
                        .iter()
                        .filter_map(|(name, ..)| self.state.get(&format!("{slot}.{name}"))),
                )
            };
            let (n, lr, weight_decay) = (
                params.len() as i64,
                lr * group.lr_factor,
                group.weight_decay,
            );
            match self.config {
                OptimiserConfig::Adam {
                    betas,
                    eps,
                    amsgrad,
                    decoupled,
                } => {
                    let (m, v, vm, t) = (
                        slot("first"),
                        slot("second"),
                        slot("second_max"),
                        slot("steps"),
                    );
                    // SAFETY: every array holds n live tensors (`state` has an entry for each parameter; second_max is read only
                    // with amsgrad, where it has them too).
                    check(unsafe {
                        fewstep_adam(
                            params.as_ptr(),
                            grads.as_ptr(),
                            m.as_ptr(),
                            v.as_ptr(),
                            vm.as_ptr(),
                            t.as_ptr(),
                            n,
                            lr,
                            betas[0],
                            betas[1],
                            weight_decay,
                            eps,
                            amsgrad,
                            decoupled,
                        )
                    })?;
                }
                OptimiserConfig::Sgd { momentum, nesterov } => {
                    // A zero buffer and no first step give torch's result: with dampening 0 the buffer becomes the gradient.
                    let buffers = slot("momentum");
                    // SAFETY: as above; the buffers are read only where momentum is not 0.
                    check(unsafe {
                        fewstep_sgd(
                            params.as_ptr(),
                            grads.as_ptr(),
                            buffers.as_ptr(),
                            n,
                            lr,
                            momentum,
                            weight_decay,
                            nesterov,
                            false,
                        )
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Clears all gradients.
    pub fn zero_grad(&mut self) {
        for (_, p) in self.groups.iter_mut().flat_map(|g| &mut g.parameters) {
            p.zero_grad();
        }
    }

    /// The state, for a checkpoint.
    pub fn state(&self) -> impl Iterator<Item = (String, Tensor)> {
        self.state
            .iter()
            .map(|(name, t)| (name.clone(), t.shallow_clone()))
    }

    /// Takes up a saved state.
    ///
    /// # Errors
    /// It belongs to another optimiser or other parameters.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let own: Vec<_> = self.state().collect();
        copy_into(&own, state, "the optimiser's state")
    }
}

fn pointers<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Vec<*mut C_tensor> {
    tensors.map(|t| t.as_ptr().cast_mut()).collect()
}

/// A learning rate over a stage of training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LearningRate {
    /// The same throughout.
    Constant,
    /// Divided by `factor` at each of these fractions of the epochs, from epoch ⌊fraction · epochs⌋ (counted from 0, at least 1) on:
    /// torch's MultiStepLR with the published milestones.
    MultiStep {
        /// Fractions in (0, 1), ascending.
        milestones: Vec<f64>,
        /// What the rate is divided by.
        factor: f64,
    },
    /// Half a cosine down to `floor` times the base rate, step by step, with an optional linear warm-up.
    Cosine {
        /// The last factor, 0 to 1.
        #[serde(default)]
        floor: f64,
        /// Epochs over which the rate rises from 0.
        #[serde(default)]
        warmup_epochs: f64,
    },
}

impl LearningRate {
    /// # Errors
    /// The option that is out of range for a stage of `epochs`, and a clause that says what was expected and found.
    pub fn validate(&self, epochs: u32) -> std::result::Result<(), (&'static str, String)> {
        match self {
            Self::Constant => Ok(()),
            Self::MultiStep { milestones, factor } => {
                let rising = milestones.windows(2).all(|w| w[0] < w[1]);
                let inside = milestones.iter().all(|m| *m > 0. && *m < 1.);
                expect(
                    rising && inside,
                    "milestones",
                    "ascending numbers between 0 and 1",
                    milestones,
                )?;
                expect(
                    *factor > 0. && factor.is_finite(),
                    "factor",
                    "a number above 0",
                    factor,
                )
            }
            Self::Cosine {
                floor,
                warmup_epochs,
            } => {
                expect(
                    (0. ..=1.).contains(floor),
                    "floor",
                    "a number from 0 to 1",
                    floor,
                )?;
                let fits = (0. ..f64::from(epochs)).contains(warmup_epochs);
                expect(
                    fits,
                    "warmup_epochs",
                    "a number from 0 to below the stage's epochs",
                    warmup_epochs,
                )
            }
        }
    }

    /// The factor on the base rate at a step.
    ///
    /// `epoch` counts from 0 and may have a fraction (the part of the epoch that is done); `epochs` is the stage's length.
    pub fn factor(&self, epoch: f64, epochs: u32) -> f64 {
        let epochs = f64::from(epochs);
        match self {
            Self::Constant => 1.,
            Self::MultiStep { milestones, factor } => {
                let passed = milestones
                    .iter()
                    .filter(|&&m| epoch.floor() >= (m * epochs).floor().max(1.))
                    .count();
                factor.powi(-(passed as i32))
            }
            Self::Cosine {
                floor,
                warmup_epochs,
            } => {
                if epoch < *warmup_epochs {
                    return (epoch / warmup_epochs).max(1e-3);
                }
                let done = ((epoch - warmup_epochs)
                    / (epochs - warmup_epochs).max(f64::MIN_POSITIVE))
                .clamp(0., 1.);
                floor + (1. - floor) * 0.5 * (1. + (std::f64::consts::PI * done).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn group(p: &Tensor) -> Vec<ParameterGroup> {
        vec![ParameterGroup {
            parameters: vec![("w".into(), p.shallow_clone())],
            weight_decay: 0.01,
            lr_factor: 1.,
        }]
    }

    #[test]
    fn a_run_that_saves_and_takes_up_its_state_takes_the_same_steps() {
        for config in [
            OptimiserConfig::Adam {
                betas: betas(),
                eps: eps(),
                amsgrad: true,
                decoupled: false,
            },
            OptimiserConfig::Sgd {
                momentum: 0.9,
                nesterov: false,
            },
        ] {
            let grads: Vec<_> = (0..6)
                .map(|_| Tensor::randn([5], (Kind::Float, Device::Cpu)))
                .collect();
            let run = |resume_at: Option<usize>| {
                let w = Tensor::ones([5], (Kind::Float, Device::Cpu)).set_requires_grad(true);
                let mut o = Optimiser::new(config, group(&w)).unwrap();
                for (i, g) in grads.iter().enumerate() {
                    if resume_at == Some(i) {
                        let saved = o.state().map(|(n, t)| (n, t.copy())).collect();
                        o = Optimiser::new(config, group(&w)).unwrap();
                        o.load_state(&saved).unwrap();
                    }
                    o.zero_grad();
                    (&w * g).sum(Kind::Float).backward();
                    o.step(0.1).unwrap();
                }
                Vec::<f32>::try_from(w.detach()).unwrap()
            };
            assert_eq!(run(None), run(Some(3)), "{config:?}");
        }
    }

    #[test]
    fn a_cosine_starts_at_one_ends_at_its_floor_and_never_rises_after_warm_up() {
        let s = LearningRate::Cosine {
            floor: 0.1,
            warmup_epochs: 2.,
        };
        assert!((s.factor(2., 10) - 1.).abs() < 1e-12);
        assert!((s.factor(10., 10) - 0.1).abs() < 1e-12);
        assert!((s.factor(1., 10) - 0.5).abs() < 1e-12);
        let rates: Vec<_> = (20..=100)
            .map(|i| s.factor(f64::from(i) / 10., 10))
            .collect();
        assert!(rates.windows(2).all(|w| w[0] >= w[1]));
    }

    #[test]
    fn published_milestones_divide_by_five_at_60_80_and_90_percent() {
        let s = LearningRate::MultiStep {
            milestones: vec![0.6, 0.8, 0.9],
            factor: 5.,
        };
        let at = |e| s.factor(e, 10);
        assert_eq!(
            [at(0.), at(5.9), at(6.), at(7.), at(8.), at(9.)],
            [1., 1., 1. / 5., 1. / 5., 1. / 25., 1. / 125.]
        );
    }
}
