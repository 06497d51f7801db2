//! Learning a router without images: Step-wise Denoising Training with the Image-Error Proxy (HarmoniCa, arXiv 2410.01723), and
//! Learning-to-Cache's own training (arXiv 2406.01733) as the rival.
//!
//! The DiT is frozen. A trajectory is sampled with the cached student; at each step the uncached teacher says, for the same latents,
//! what would have been computed, and one row of the router takes one AdamW step. Several ranks share the trajectories of a batch; a row's
//! gradient is reduced over them.

mod job;
mod l2c;
mod mix;
mod options;
mod proxy;
mod recompute;
mod sdt;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Instant;

use fewstep_diffusion::noise::NoiseSchedule;
use fewstep_diffusion::random::{self, Use};
use fewstep_diffusion::sampler::Sampler;
use fewstep_diffusion::{Dit, Guidance, SubModule};
use fewstep_torch::{Checkpoint, Group, Optimiser, OptimiserConfig, ParameterGroup, Part, Reduce};
use tch::{Device, Kind, Tensor};

use crate::{CachePlan, Conditions, Error, LOGIT_LIMIT, Result, Router, policy};

pub use l2c::Images;
pub(crate) use options::expect_saving;
pub use options::{ErrorOn, LearnOptions, Mix, Penalty, Proxy, Reduction, Training};

/// As published. The penalty's gradient is as small as `eps`, so both matter.
const ADAMW: OptimiserConfig = OptimiserConfig::Adam {
    betas: [0.9, 0.999],
    eps: 1e-8,
    amsgrad: false,
    decoupled: true,
};

/// A saving that lacks ten points makes the multiplier a tenth heavier with each trajectory …
const ASCENT: f64 = 1.;
/// … and the penalty 2.7 times as heavy as it as long as it lacks them: rows follow with a delay, and the multiplier alone would overshoot.
const LEAD: f64 = 10.;

/// What a router is learned for.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// The frozen model.
    pub dit: &'a Dit,
    /// The sampler.
    pub sampler: &'a dyn Sampler,
    /// The noise schedule of the model's training; Learning-to-Cache noises its images by it.
    pub noise: &'a NoiseSchedule,
    /// What plans and routers carry of all this; its guidance is the one that is learned for.
    pub conditions: &'a Conditions,
}

impl<'a> Setting<'a> {
    /// The guidance.
    pub fn guidance(&self) -> &'a Guidance {
        &self.conditions.guidance
    }
}

/// What happens while a router is learned.
#[derive(Debug, Clone, PartialEq)]
pub enum LearnEvent {
    /// The proxy was computed anew.
    Refreshed {
        /// The trajectory that begins.
        trajectory: u32,
        /// The weight of each row's error; row T − 1 has none.
        lambda: Vec<f64>,
    },
    /// A trajectory ended.
    Trajectory {
        /// Its number, from 1.
        trajectory: u32,
        /// Mean loss of its updates.
        loss: f64,
        /// Mean squared error between teacher and student, mean over its updates, not weighted.
        mse: f64,
        /// Share of reused cells at the threshold.
        utilisation: f64,
        /// Share of MACs that a sampling with this router skips.
        mac_saving: f64,
        /// Weight of the penalty in this trajectory.
        beta: f64,
    },
    /// The router so far was tried, and a checkpoint is about to be written.
    Checkpoint {
        /// Trajectories done.
        trajectory: u32,
        /// Mean squared error of the latents after each call against the uncached run from the same noise.
        error_per_step: Vec<f64>,
    },
}

/// What was learned.
#[derive(Debug)]
pub struct Learned {
    /// The router, with its training in the provenance.
    pub router: Router,
    /// Seconds spent on trajectories and proxies, over all processes; evaluations and checkpoints not counted.
    pub seconds: f64,
}

/// Name of the checkpoint inside the folder that [`learn`] is given.
pub const CHECKPOINT: &str = "router.safetensors";

/// Trajectories that the checkpoint in `folder` has behind it; 0 where there is none.
///
/// # Errors
/// There is one, and it can't be read.
pub fn trajectories_done(folder: &Path) -> Result<u32> {
    let path = folder.join(CHECKPOINT);
    if !path.exists() {
        return Ok(0);
    }
    number(&Checkpoint::load(&path)?, "trajectory", &path)
}

fn number<T: std::str::FromStr>(file: &Checkpoint, key: &str, path: &Path) -> Result<T> {
    let found = file.string(key).unwrap_or("nothing");
    found.parse().map_err(|_| Error::File {
        path: path.into(),
        reason: format!("expected a number under `{key}`, found {found}"),
    })
}

/// Learns a router. Goes on from the checkpoint in `folder` if there is one. `images` are what Learning-to-Cache learns from.
///
/// Each rank of `group` must be given the same setting, options, images and seed. They share every batch of trajectories, so that the
/// router is that of one process but for the order of sums. Only rank 0 touches the folder, and a training may go on with another number
/// of ranks.
///
/// # Errors
/// Options out of range, fewer latents in a batch than ranks, Learning-to-Cache without images, a checkpoint that can't be read or
/// written, a loss that is not a number, a lost rank, or an error of `observe`.
pub fn learn(
    setting: Setting<'_>,
    options: &LearnOptions,
    images: Option<&Images<'_>>,
    seed: u64,
    folder: &Path,
    group: &Group,
    observe: &mut dyn FnMut(&LearnEvent) -> Result<()>,
) -> Result<Learned> {
    options.validate().map_err(|(key, reason)| Error::Invalid {
        key: key.to_owned(),
        reason,
    })?;
    let whole = setting.sampler.timesteps().iter().all(|t| t.fract() == 0.);
    if options.training == Training::L2c && !whole {
        let expected =
            "sdt, because l2c noises images at whole timesteps, which flow matching does not have";
        return Err(Error::option("training", expected, "l2c"));
    }
    if options.batch_size < group.world() as i64 {
        let expected = format!("a latent for each of {} ranks", group.world());
        let found = options.batch_size.to_string();
        return Err(Error::option("batch_size", expected, found));
    }
    let _tf32 = options.precision.tf32()?;
    for (_, p) in setting.dit.parameters() {
        let _ = p.f_set_requires_grad(false)?;
    }
    let mut learner = Learner::new(setting, options, seed, group)?;
    if let Some(target) = options.target_mac_saving {
        let rows =
            vec![vec![-LOGIT_LIMIT; setting.conditions.modules()]; setting.conditions.steps()];
        let nothing = Router::from_logits(setting.conditions, options.threshold, rows)?;
        let most = learner.plan_of(&nothing)?.mac_saving();
        if target > most {
            let expected = format!("at most {most:.4}, which reuse of everything saves");
            return Err(Error::option("target_mac_saving", expected, target));
        }
    }
    let path = folder.join(CHECKPOINT);
    learner.resume(&path)?;
    let reference = job::Reference::new(&learner)?;
    while learner.trajectory < options.trajectories {
        let started = Instant::now();
        if let Some(target) = options.target_mac_saving {
            let lacks = target - learner.plan()?.mac_saving();
            learner.multiplier *= (ASCENT * lacks).exp();
            learner.beta = learner.multiplier * (LEAD * lacks).exp();
        }
        let (loss, mse) = match (options.training, images) {
            (Training::Sdt, _) => learner.sdt_trajectory(observe)?,
            (Training::L2c, Some(images)) => learner.l2c_pairs(images)?,
            (Training::L2c, None) => {
                let expected = "sdt, because l2c learns from images and there are none";
                return Err(Error::option("training", expected, "l2c"));
            }
        };
        learner.seconds += started.elapsed().as_secs_f64();
        learner.trajectory += 1;
        let trajectory = learner.trajectory;
        if !loss.is_finite() {
            return Err(Error::Diverged { trajectory, loss });
        }
        let plan = learner.plan()?;
        observe(&LearnEvent::Trajectory {
            trajectory,
            loss,
            mse,
            utilisation: plan.utilisation(),
            mac_saving: plan.mac_saving(),
            beta: learner.beta,
        })?;

        if trajectory % options.checkpoint_every == 0 || trajectory == options.trajectories {
            let error_per_step = reference.errors(&learner)?;
            observe(&LearnEvent::Checkpoint {
                trajectory,
                error_per_step,
            })?;
            if group.leads() {
                learner.save(&path)?;
            }
        }
    }
    let training = serde_json::to_value(options).unwrap_or_default();
    Ok(Learned {
        router: learner.router()?.with_training(training),
        seconds: learner.seconds,
    })
}

struct Learner<'a> {
    setting: Setting<'a>,
    options: &'a LearnOptions,
    group: &'a Group,
    /// This rank's share of a batch.
    part: Part,
    /// One parameter `[N]` and one optimiser a row: a row that is not trained at a step must not move, not even by momentum.
    rows: Vec<Tensor>,
    optimisers: Vec<Optimiser>,
    /// Weight of each row's error.
    lambda: Vec<f64>,
    /// What the penalty counts, `[N]`.
    costs: Tensor,
    /// What a target has made of `options.beta` so far.
    multiplier: f64,
    /// Weight of the penalty in this trajectory.
    beta: f64,
    seed: u64,
    trajectory: u32,
    seconds: f64,
}

impl<'a> Learner<'a> {
    fn new(
        setting: Setting<'a>,
        options: &'a LearnOptions,
        seed: u64,
        group: &'a Group,
    ) -> Result<Self> {
        let steps = setting.sampler.timesteps().len();
        let config = setting.dit.config();
        let n = config.sub_modules();
        let device = setting.dit.device();
        let macs = config.macs();
        let mean = (macs.attention + macs.mlp) as f32 / 2.;
        let costs: Vec<f32> = (0..n)
            .map(|i| match options.penalty {
                Penalty::Count => 1.,
                Penalty::Macs => macs.of(SubModule::at(i)) as f32 / mean,
            })
            .collect();
        let initial = Router::new(setting.conditions, options.threshold, &options.init, seed)?;
        let mut rows = Vec::with_capacity(steps);
        let mut optimisers = Vec::with_capacity(steps);
        for row in initial.logits() {
            let parameter = Tensor::f_from_slice(row)?
                .f_to_device(device)?
                .f_set_requires_grad(true)?;
            let parameters = ParameterGroup {
                parameters: vec![("prob".into(), parameter.shallow_clone())],
                weight_decay: 0.,
                lr_factor: 1.,
            };
            optimisers.push(Optimiser::new(ADAMW, vec![parameters])?);
            rows.push(parameter);
        }
        Ok(Self {
            setting,
            options,
            group,
            part: group.part(options.batch_size),
            rows,
            optimisers,
            lambda: vec![1.; steps],
            costs: Tensor::f_from_slice(&costs)?.f_to_device(device)?,
            multiplier: options.beta,
            beta: options.beta,
            seed,
            trajectory: 0,
            seconds: 0.,
        })
    }

    /// The generator of what trajectory `trajectory` draws, its own, so that a refresh of the proxy does not repeat batches.
    fn generator(&self) -> rand_chacha::ChaCha8Rng {
        random::generator(self.seed, Use::Learning, &[10, u64::from(self.trajectory)])
    }

    /// A row as it is applied now.
    fn gates(&self, row: usize) -> Result<mix::Gates> {
        let r = self.rows[row].f_sigmoid()?;
        let numbers = Vec::<f32>::try_from(r.f_detach()?.f_to_device(Device::Cpu)?)?;
        Ok(mix::Gates {
            r,
            numbers,
            threshold: self.options.threshold,
            straight_through: self.options.mix == Mix::StraightThrough,
        })
    }

    /// Mean squared error between two outputs.
    fn error(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        let channels = match self.options.error_on {
            ErrorOn::Output => output.size()[1],
            ErrorOn::Prediction => self.setting.dit.config().channels,
        };
        let part = |t: &Tensor| t.f_narrow(1, 0, channels);
        Ok(part(output)?.f_mse_loss(&part(target)?, tch::Reduction::Mean)?)
    }

    /// One AdamW step of a row on `error` · lambda + beta · penalty, and the clamp. `error` is that of this rank's part; returned are the loss
    /// and the plain error of the whole batch.
    fn update(&mut self, row: usize, r: &Tensor, error: &Tensor) -> Result<(f64, f64)> {
        let o = self.options;
        let penalty = r.f_mul(&self.costs)?.f_sum(Kind::Float)?;
        // The sum over ranks of this is the loss of the batch.
        let loss = error
            .f_mul_scalar(self.lambda[row])?
            .f_add(&penalty.f_mul_scalar(self.beta)?)?
            .f_mul_scalar(self.part.weight())?;
        self.optimisers[row].zero_grad();
        loss.f_backward()?;
        let mse = error.f_mul_scalar(self.part.weight())?;
        let mut values = [loss.f_detach()?, mse.f_detach()?];
        if self.group.world() > 1 {
            // One message carries all three.
            let mut gradient = self.rows[row].grad();
            let all = Tensor::f_cat(
                &[&gradient, &values[0].f_view(1)?, &values[1].f_view(1)?],
                0,
            )?;
            self.group
                .all_reduce("the row's gradient", &all, Reduce::Sum)?;
            let n = gradient.size()[0];
            gradient.f_copy_(&all.f_narrow(0, 0, n)?)?;
            values = [all.f_get(n)?, all.f_get(n + 1)?];
        }
        self.optimisers[row].step(o.learning_rate)?;
        let _guard = tch::no_grad_guard();
        let _ = self.rows[row].f_clamp_(-f64::from(LOGIT_LIMIT), f64::from(LOGIT_LIMIT))?;
        // Each look waits for the device.
        let values = Tensor::f_stack(&values, 0)?.f_to_kind(Kind::Double)?;
        let values = values.f_to_device(Device::Cpu)?;
        let [loss, mse] = [0, 1].map(|i| values.f_double_value(&[i]));
        Ok((loss?, mse?))
    }

    fn logits(&self) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        Ok(Tensor::f_stack(&self.rows, 0)?
            .f_detach()?
            .f_to_device(Device::Cpu)?)
    }

    fn router(&self) -> Result<Router> {
        let rows = Vec::<Vec<f32>>::try_from(self.logits()?)?;
        let router = Router::from_logits(self.setting.conditions, self.options.threshold, rows)?;
        router.with_order(self.options.order)
    }

    /// What a sampling with the router so far would reuse.
    fn plan(&self) -> Result<CachePlan> {
        self.plan_of(&self.router()?)
    }

    fn plan_of(&self, router: &Router) -> Result<CachePlan> {
        match self.options.training {
            Training::Sdt => policy::harmonica(router, self.options.threshold),
            Training::L2c => policy::l2c(router, self.options.threshold),
        }
    }

    fn save(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::File {
                path: folder.into(),
                reason: e.to_string(),
            })?;
        }
        let mut file = Checkpoint::new()
            .with_string("trajectory", self.trajectory.to_string())
            .with_string("seconds", self.seconds.to_string())
            .with_string("multiplier", self.multiplier.to_string())
            .with("logits", &self.logits()?)
            .with("lambda", &Tensor::f_from_slice(&self.lambda)?);
        for (row, optimiser) in self.optimisers.iter().enumerate() {
            file = file.with_all(&format!("optimiser/{row}/"), optimiser.state());
        }
        Ok(file.save(path)?)
    }

    /// Takes up the checkpoint where there is one.
    fn resume(&mut self, path: &Path) -> Result<()> {
        let group = self.group;
        let done = group.told("what is done", || -> Result<_> {
            if path.exists() {
                self.load(path)?;
            }
            Ok((
                self.trajectory,
                self.seconds,
                self.multiplier,
                self.lambda.clone(),
            ))
        })?;
        (self.trajectory, self.seconds, self.multiplier, self.lambda) = done;
        for (row, optimiser) in self.rows.iter().zip(&self.optimisers) {
            group.broadcast("the router", &row.f_detach()?, 0)?;
            group.spread("the optimisers' states", optimiser.state())?;
        }
        Ok(())
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let file = Checkpoint::load(path)?;
        self.trajectory = number(&file, "trajectory", path)?;
        self.seconds = number(&file, "seconds", path)?;
        self.multiplier = number(&file, "multiplier", path)?;
        let logits = file.tensor("logits")?;
        let expected = [self.rows.len() as i64, self.costs.size()[0]];
        if logits.size() != expected {
            return Err(Error::File {
                path: path.into(),
                reason: format!("expected logits {expected:?}, found {:?}", logits.size()),
            });
        }
        for (row, parameter) in self.rows.iter_mut().enumerate() {
            parameter.f_copy_(&logits.f_get(row as i64)?)?;
        }
        self.lambda = Vec::<f64>::try_from(file.tensor("lambda")?)?;
        for (row, optimiser) in self.optimisers.iter_mut().enumerate() {
            optimiser.load_state(&file.section(&format!("optimiser/{row}/")))?;
        }
        Ok(())
    }
}
