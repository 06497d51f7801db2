//! How the error of x₀ would change if one cell were decided the other way, for all cells at once.
//!
//! A gate in every cell mixes forecast (0) and computed output (1). With e = x₀ − reference and J the derivative of x₀ by a gate, the error
//! after moving the gate by δ is ‖e + δJ‖² up to the curvature of x₀. e·J comes from one backward pass, ‖J‖² from a few with random signs v,
//! for the mean of (v·J)² is ‖J‖²; each image has gates of its own, and what they say is summed by the images' weights. Passes go backward
//! call by call over stored latents and outputs, so memory holds the graph of one call, and the computed outputs of the whole trajectory,
//! of a few images at a time. What a multistep sampler remembers is taken as given.

use std::collections::HashMap;

use fewstep_diffusion::random::{self, Use};
use fewstep_diffusion::sampler::{Call, Denoiser, SamplerState};
use fewstep_diffusion::{Guided, Result as DiffusionResult, Reuse, SubModule};
use tch::{Kind, Tensor};

use super::trial::Trials;
use crate::history::{Forecast, Formula, History};
use crate::policy::Decision;
use crate::{CachePlan, Result, Setting};

/// Change of the mean squared error of x₀ by flipping each cell, `[T][N]`, row 0 the last call; 0 in the first executed row.
pub(super) type Changes = Vec<Vec<f64>>;

/// Predicted changes for a plan; cells that it computes are taken to become forecasts of `order`. `probes` is the number of random passes.
pub(super) fn changes(
    setting: Setting<'_>,
    trials: &mut Trials<'_>,
    plan: &CachePlan,
    order: u8,
    probes: usize,
) -> Result<Changes> {
    let mut sum = vec![vec![0.; plan.modules()]; plan.steps()];
    // All are sums over images.
    for first in (0..trials.images()).step_by(AT_ONCE) {
        let some = trials.part(first, AT_ONCE as u64)?;
        let found = changes_of(setting, &some, plan, order, probes)?;
        for (a, b) in sum.iter_mut().flatten().zip(found.iter().flatten()) {
            *a += b;
        }
    }
    trials.trajectories += 2. + 2. * (1. + probes as f64);
    Ok(sum)
}

/// Images whose outputs and graph of a call are held at once.
const AT_ONCE: usize = 8;

fn changes_of(
    setting: Setting<'_>,
    trials: &Trials<'_>,
    plan: &CachePlan,
    order: u8,
    probes: usize,
) -> Result<Changes> {
    let (steps, modules) = (plan.steps(), plan.modules());
    let course = Course::run(setting, trials, plan)?;
    let error = course.error(trials)?;
    let first = trials.first();
    let mut rng = random::generator(trials.seed, Use::Learning, &[41, first]);
    let mut adjoints = vec![error.shallow_clone()];
    for _ in 0..probes {
        let signs = random::uniform(&mut rng, &error.size(), 1.)?.f_sign()?;
        adjoints.push(signs.f_to_device(error.device())?);
    }
    let mut changes = vec![vec![0.; modules]; steps];
    let count = error.numel() as f64 / trials.images() as f64;
    let weights = trials
        .weights
        .f_to_device(error.device())?
        .f_view([-1, 1, 1])?;
    let mut see = |k: usize, row: usize, module: usize, gradient: &Tensor| -> Result<()> {
        let change = &mut changes[row][module];
        if k == 0 {
            let along = gradient.f_mul(&weights)?.f_sum(Kind::Double)?;
            let along = along.f_double_value(&[])?;
            // To computed where it is reused, else the other way.
            let delta = if plan.reuses(row, module) { 1. } else { -1. };
            *change += 2. * delta * along / count;
        } else {
            let squares = gradient.f_square()?.f_mul(&weights)?.f_sum(Kind::Double)?;
            *change += squares.f_double_value(&[])? / (probes as f64 * count);
        }
        Ok(())
    };
    let leaves = Leaves::Gates { order };
    course.back(setting, trials, plan, leaves, adjoints, &mut see)?;
    Ok(changes)
}

/// How the mean squared error of x₀ changes with what is added to a reused cell's forecast: `[T][N][k]` for the first k of its last output, the
/// difference of the last two, the difference of such differences, …; empty where nothing is forecast. With the error itself.
pub(super) fn gradients(
    setting: Setting<'_>,
    trials: &mut Trials<'_>,
    plan: &CachePlan,
) -> Result<(f64, Vec<Vec<Vec<f64>>>)> {
    let mut found = vec![vec![Vec::new(); plan.modules()]; plan.steps()];
    let mut mse = 0.;
    for first in (0..trials.images()).step_by(AT_ONCE) {
        let some = trials.part(first, AT_ONCE as u64)?;
        let course = Course::run(setting, &some, plan)?;
        let error = course.error(&some)?;
        mse += some.mse(&course.x[plan.steps()])?;
        let count = error.numel() as f64 / some.images() as f64;
        let weights = some.weights.f_to_device(error.device())?;
        let weights = weights.f_view([-1, 1, 1, 1])?;
        let adjoint = error.f_mul(&weights)?.f_mul_scalar(2. / count)?;
        let mut see = |_: usize, row: usize, module: usize, gradient: &Tensor| -> Result<()> {
            let gradient = Vec::<f64>::try_from(gradient.f_to_kind(Kind::Double)?)?;
            let sum: &mut Vec<f64> = &mut found[row][module];
            sum.resize(gradient.len(), 0.);
            sum.iter_mut().zip(&gradient).for_each(|(a, b)| *a += b);
            Ok(())
        };
        course.back(
            setting,
            &some,
            plan,
            Leaves::Weights,
            vec![adjoint],
            &mut see,
        )?;
    }
    trials.trajectories += 4. * (1. - plan.mac_saving());
    Ok((mse, found))
}

/// The latents after a call.
fn step(
    setting: Setting<'_>,
    trials: &Trials<'_>,
    reuse: &mut dyn Reuse,
    state: &mut SamplerState,
    call: &Call,
    x: &Tensor,
) -> Result<Tensor> {
    let (mut noise, _) = trials.noise()?;
    let (dit, guidance) = (setting.dit, setting.guidance());
    let output = Guided::new(dit, &trials.labels, guidance, reuse)?.denoise(x, call)?;
    let sampler = setting.sampler;
    Ok(sampler.step(state, call.index, x, &output, &mut noise)?)
}

/// What gradients are taken of.
#[derive(Clone, Copy)]
enum Leaves {
    /// Between forecast and computed output, in every cell; a computed cell's forecast is of this order.
    Gates { order: u8 },
    /// What is added to the forecasts of reused cells.
    Weights,
}

/// Sees the number of an adjoint, row, sub-module and the gradient of its leaf.
type See<'a> = &'a mut dyn FnMut(usize, usize, usize, &Tensor) -> Result<()>;

/// A trajectory under a plan: latents, outputs and the sampler's memory before each call, and the last latents.
struct Course {
    x: Vec<Tensor>,
    histories: Vec<Vec<History>>,
    states: Vec<SamplerState>,
}

impl Course {
    /// x₀ less the reference.
    fn error(&self, trials: &Trials<'_>) -> Result<Tensor> {
        let last = &self.x[self.x.len() - 1];
        Ok(last.f_sub(&trials.reference.f_to_device(last.device())?)?)
    }

    /// Goes back call by call with these adjoints of the last latents.
    fn back(
        &self,
        setting: Setting<'_>,
        trials: &Trials<'_>,
        plan: &CachePlan,
        leaves: Leaves,
        mut adjoints: Vec<Tensor>,
        see: See<'_>,
    ) -> Result<()> {
        let mut of_outputs: Vec<HashMap<(usize, u64), Tensor>> =
            adjoints.iter().map(|_| HashMap::new()).collect();
        let last = adjoints.len() - 1;
        for index in (0..plan.steps()).rev() {
            let call = setting.sampler.call(index);
            let x = self.x[index].f_detach()?.f_set_requires_grad(true)?;
            let histories = self.histories[index]
                .iter()
                .map(History::leaves)
                .collect::<DiffusionResult<Vec<_>>>()?;
            let mut probe = Probe {
                plan,
                kind: leaves,
                histories: &histories,
                call,
                images: x.size()[0],
                samples: 0,
                leaves: Vec::with_capacity(plan.modules()),
                computed: Vec::new(),
                moved: None,
            };
            let mut state = self.states[index].shallow_clone();
            let next = step(setting, trials, &mut probe, &mut state, &call, &x)?;
            let mut inputs = vec![x.shallow_clone()];
            let mut keys = Vec::new();
            for (module, history) in histories.iter().enumerate() {
                for (timestep, output) in history.kept() {
                    keys.push((module, timestep.to_bits()));
                    inputs.push(output.shallow_clone());
                }
            }
            inputs.extend(probe.leaves.iter().map(|(_, leaf)| leaf.shallow_clone()));
            for (k, (adjoint, of_outputs)) in adjoints.iter_mut().zip(&mut of_outputs).enumerate() {
                let mut sum = next.f_mul(adjoint)?.f_sum(Kind::Float)?;
                for (module, output) in &probe.computed {
                    if let Some(a) = of_outputs.remove(&(*module, call.timestep.to_bits())) {
                        sum = sum.f_add(&output.f_mul(&a)?.f_sum(Kind::Float)?)?;
                    }
                }
                let found = Tensor::f_run_backward(&[&sum], &inputs, k < last, false)?;
                let mut found = found.into_iter();
                if let Some(own) = found.next().filter(Tensor::defined) {
                    *adjoint = own;
                }
                for (key, gradient) in keys.iter().zip(&mut found) {
                    if gradient.defined() {
                        let sum = match of_outputs.remove(key) {
                            Some(earlier) => earlier.f_add(&gradient)?,
                            None => gradient,
                        };
                        of_outputs.insert(*key, sum);
                    }
                }
                for ((module, _), gradient) in probe.leaves.iter().zip(found) {
                    if gradient.defined() {
                        see(k, call.row, *module, &gradient)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn run(setting: Setting<'_>, trials: &Trials<'_>, plan: &CachePlan) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let (_, mut x) = trials.noise()?;
        let mut recorder = Recorder {
            plan,
            histories: (0..plan.modules()).map(|_| History::default()).collect(),
            call: setting.sampler.call(0),
            samples: 0,
        };
        let mut course = Self {
            x: vec![],
            histories: vec![],
            states: vec![],
        };
        let mut state = SamplerState::default();
        for index in 0..plan.steps() {
            course.x.push(x.shallow_clone());
            course.histories.push(
                recorder
                    .histories
                    .iter()
                    .map(History::shallow_clone)
                    .collect(),
            );
            course.states.push(state.shallow_clone());
            let call = setting.sampler.call(index);
            x = step(setting, trials, &mut recorder, &mut state, &call, &x)?;
        }
        course.x.push(x);
        Ok(course)
    }
}

/// Does what the plan says; its histories can be looked at.
struct Recorder<'a> {
    plan: &'a CachePlan,
    histories: Vec<History>,
    call: Call,
    samples: i64,
}

impl Reuse for Recorder<'_> {
    fn begin(&mut self, call: &Call) {
        self.call = *call;
    }

    fn batch(&mut self, samples: i64) {
        self.samples = samples;
    }

    fn run(
        &mut self,
        module: SubModule,
        compute: &mut dyn FnMut() -> DiffusionResult<Tensor>,
    ) -> DiffusionResult<Tensor> {
        let index = module.index();
        if let Decision::Reuse(forecast) = self.plan.decision(self.call.row, index) {
            let history = &self.histories[index];
            if let Some(value) = history.value(&forecast, self.call.timestep, self.samples)? {
                return Ok(value);
            }
        }
        let output = compute()?;
        self.histories[index].make_room(usize::from(crate::MAX_ORDER) + 1);
        self.histories[index].push(self.call.timestep, output.shallow_clone());
        Ok(output)
    }
}

/// One call with leaves in every cell that has a history.
struct Probe<'a> {
    plan: &'a CachePlan,
    kind: Leaves,
    histories: &'a [History],
    call: Call,
    images: i64,
    samples: i64,
    /// A gate for each image, `[images, 1, 1]`, or what is added, `[k]`.
    leaves: Vec<(usize, Tensor)>,
    computed: Vec<(usize, Tensor)>,
    /// A gate that stands elsewhere, for tests.
    moved: Option<(usize, f64)>,
}

impl Probe<'_> {
    /// A forecast with a leaf that adds multiples of the last output and of its differences; none where there is nothing to forecast from.
    fn added_to(&mut self, index: usize, forecast: &Forecast) -> DiffusionResult<Option<Tensor>> {
        let history = &self.histories[index];
        let Some(mut sum) = history.value(forecast, self.call.timestep, self.samples)? else {
            return Ok(None);
        };
        let kept = history.fitting(forecast.outputs(), self.samples)?;
        let leaf = Tensor::f_zeros([kept.len() as i64], (Kind::Float, sum.device()))?
            .f_set_requires_grad(true)?;
        for (i, basis) in super::trial::differences(kept)?.iter().enumerate() {
            let part = leaf.f_get(i as i64)?.f_to_kind(basis.kind())?;
            sum = sum.f_add(&basis.f_mul(&part)?)?;
        }
        self.leaves.push((index, leaf));
        Ok(Some(sum))
    }
}

impl Reuse for Probe<'_> {
    fn batch(&mut self, samples: i64) {
        self.samples = samples;
    }

    fn run(
        &mut self,
        module: SubModule,
        compute: &mut dyn FnMut() -> DiffusionResult<Tensor>,
    ) -> DiffusionResult<Tensor> {
        let index = module.index();
        let decision = self.plan.decision(self.call.row, index);
        let history = &self.histories[index];
        let order = match self.kind {
            Leaves::Gates { order } => order,
            Leaves::Weights => {
                if let Decision::Reuse(forecast) = decision
                    && let Some(sum) = self.added_to(index, &forecast)?
                {
                    return Ok(sum);
                }
                let output = compute()?;
                self.computed.push((index, output.shallow_clone()));
                return Ok(output);
            }
        };
        let output = compute()?;
        let samples = output.size()[0];
        let forecast = match decision {
            Decision::Reuse(forecast) => forecast,
            Decision::Compute => Forecast::Order(order, Formula::Polynomial),
        };
        let value = history.value(&forecast, self.call.timestep, samples)?;
        let computed = decision == Decision::Compute || value.is_none();
        let result = match value {
            None => output,
            Some(value) => {
                let open = match self.moved {
                    Some((module, open)) if module == index => open,
                    _ => f64::from(u8::from(computed)),
                };
                let options = (Kind::Float, output.device());
                let gate = Tensor::f_full([self.images, 1, 1], open, options)?
                    .f_set_requires_grad(true)?;
                let both = gate
                    .f_repeat([samples / self.images, 1, 1])?
                    .f_to_kind(output.kind())?;
                self.leaves.push((index, gate));
                value.f_addcmul(&output.f_sub(&value)?, &both)?
            }
        };
        if computed {
            self.computed.push((index, result.shallow_clone()));
        }
        Ok(result)
    }
}

/// The last latents when the gate of one cell stands at `open`.
#[cfg(test)]
pub(super) fn latents_with_gate(
    setting: Setting<'_>,
    trials: &Trials<'_>,
    plan: &CachePlan,
    order: u8,
    (row, column): (usize, usize),
    open: f64,
) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let (_, mut x) = trials.noise()?;
    let mut histories: Vec<History> = (0..plan.modules()).map(|_| History::default()).collect();
    let mut state = SamplerState::default();
    for index in 0..plan.steps() {
        let call = setting.sampler.call(index);
        let mut probe = Probe {
            plan,
            kind: Leaves::Gates { order },
            histories: &histories,
            call,
            images: x.size()[0],
            samples: 0,
            leaves: vec![],
            computed: vec![],
            moved: Some((column, open)).filter(|_| call.row == row),
        };
        let next = step(setting, trials, &mut probe, &mut state, &call, &x)?;
        for (module, output) in probe.computed {
            histories[module].make_room(usize::from(crate::MAX_ORDER) + 1);
            histories[module].push(call.timestep, output);
        }
        x = next;
    }
    Ok(x)
}
