//! A plan by budget: the user names the saving, the planner looks for the plan with the least error of x₀.
//!
//! It tries every family of known policies, searches whole-step patterns with fitted forecasts from the best of them, moves single cells
//! by the sensitivity of x₀, lets Step-wise Denoising Training with the Image-Error Proxy go on from there with hard decisions, and refines
//! the weights of forecasts by the gradient of x₀'s error. What is best on calibration noise is chosen, and judged on noise that nothing was
//! chosen on.

mod cells;
mod known;
mod options;
mod pattern;
mod refine;
mod search;
mod sensitivity;
mod state;
#[cfg(test)]
mod tests;
mod trial;

use std::path::Path;
use std::time::Instant;

use fewstep_diffusion::sampler::Sampler;
use fewstep_torch::{Group, seed};
use serde::{Deserialize, Serialize};
use toml::toml;

use crate::learn::{self, ErrorOn, LearnOptions, Mix, Penalty, Proxy};
use crate::{CachePlan, Error, Formula, Result, RouterInit, Setting, policy};
pub use options::{PlannerOptions, TOLERANCE};
use pattern::Pattern;
use state::State;
pub use state::{forget, target_of};
use trial::{Trials, finite};

/// Name of the policy in the plans it makes.
pub const PLANNER: &str = "planner";

/// A plan, or a sampler with fewer steps, that was tried.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tried {
    /// Its family: a policy's name, or a stage of the planner.
    pub family: String,
    /// What tells it from others of its family.
    pub label: String,
    /// Share of MACs that it saves.
    pub mac_saving: f64,
    /// Mean squared error of x₀ on calibration noise: while searching on `images` images, in an outcome on `choose_images`.
    pub error: f64,
    /// The same on unseen noise, for each seed; empty where it was not judged.
    pub unseen: Vec<f64>,
    /// Whether it is a known policy, and no work of the planner.
    pub known: bool,
    #[serde(with = "state::as_toml")]
    plan: Option<CachePlan>,
    fewer_steps: Option<usize>,
}

impl Tried {
    /// The plan; none for fewer steps.
    pub fn plan(&self) -> Option<&CachePlan> {
        self.plan.as_ref()
    }

    /// Its error on other noise; none where a sampler with that many steps can't be had any more.
    fn error_on(&self, trials: &mut Trials<'_>, rivals: &Rivals<'_>) -> Result<Option<f64>> {
        if let Some(plan) = &self.plan {
            return trials.error(plan).map(Some);
        }
        let sampler = self.fewer_steps.and_then(|n| (rivals.fewer_steps)(n));
        sampler.map(|s| trials.error_of(s.as_ref())).transpose()
    }

    /// Mean of the errors on unseen noise.
    pub fn unseen_mean(&self) -> f64 {
        self.unseen.iter().sum::<f64>() / self.unseen.len() as f64
    }
}

/// What planning tells while it goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlanningEvent<'a> {
    /// What is being done.
    pub stage: &'a str,
    /// Work done and expected, in uncached trajectories of one image.
    pub done: f64,
    /// See `done`.
    pub expected: f64,
    /// The least error so far at the target.
    pub best: Option<f64>,
}

/// The end of planning.
#[derive(Debug)]
pub struct Outcome {
    /// The chosen plan, with its provenance in the settings.
    pub plan: CachePlan,
    /// The chosen one first, then the best of each known family that saves as much or more, by rising error on unseen noise.
    pub judged: Vec<Tried>,
    /// Seconds of all planning; of parts that were interrupted, the stages that were finished.
    pub seconds: f64,
    /// Of them, those spent on Step-wise Denoising Training.
    pub learning_seconds: f64,
    /// Work in uncached trajectories of one image.
    pub trajectories: f64,
}

/// What the planner is given besides options.
pub struct Rivals<'a> {
    /// Plans of other policies for the same conditions, each under its family and a label: routers, dynamic caches read as plans.
    pub plans: Vec<(String, String, CachePlan)>,
    /// The same sampler with other numbers of steps.
    pub fewer_steps: &'a dyn Fn(usize) -> Option<Box<dyn Sampler>>,
}

/// Looks for the plan. Goes on from what `folder` holds of the same search.
///
/// # Errors
/// Options out of range, a target that the first call leaves no room for, an error that is no number, or one of `observe`.
pub fn plan(
    setting: Setting<'_>,
    options: &PlannerOptions,
    rivals: &Rivals<'_>,
    folder: &Path,
    observe: &mut dyn FnMut(&PlanningEvent<'_>) -> Result<()>,
) -> Result<Outcome> {
    options.validate().map_err(|(key, reason)| Error::Invalid {
        key: key.to_owned(),
        reason,
    })?;
    let conditions = setting.conditions;
    let timesteps = setting.sampler.timesteps();
    if let Some(t) = (1..timesteps.len()).find(|&i| timesteps[..i].contains(&timesteps[i])) {
        let expected = "one that calls the model once at a timestep";
        let found = format!("two calls at {}", timesteps[t]);
        return Err(Error::option("the sampler", expected, found));
    }
    let everything = pattern::plan(conditions, &first_only(conditions.steps()))?;
    if options.target_mac_saving > everything.mac_saving() {
        let expected = format!(
            "at most {:.4}, for the first call computes everything",
            everything.mac_saving()
        );
        return Err(Error::option(
            "target_mac_saving",
            expected,
            options.target_mac_saving,
        ));
    }
    for (_, p) in setting.dit.parameters() {
        let _ = p.f_set_requires_grad(false)?;
    }
    let state = State::open(folder, options, conditions)?;
    let mut pool = Trials::new(
        setting,
        seed::derive(options.seed, &[40]),
        options.pool_images,
    )?;
    let errors = hardness(&mut pool, setting, options)?;
    let mut planner = Planner {
        setting,
        options,
        rivals,
        folder,
        screen: pool.stratified(&errors, options.screen_images, 0)?,
        trials: pool.stratified(&errors, options.images, 0)?,
        choose: pool.stratified(&errors, options.choose_images, 1)?,
        state,
        started: Instant::now(),
        observe,
    };
    planner.known()?;
    planner.patterns()?;
    planner.cells()?;
    planner.learn()?;
    planner.refine()?;
    planner.judge()
}

/// The largest error of each image of the pool under three simple plans, with computed calls at the start, spread, and at the end.
fn hardness(
    pool: &mut Trials<'_>,
    setting: Setting<'_>,
    options: &PlannerOptions,
) -> Result<Vec<f64>> {
    let steps = setting.conditions.steps();
    let reused = (options.target_mac_saving * steps as f64).round() as usize;
    let reused = reused.clamp(1, steps - 1);
    let mut largest = vec![0f64; pool.images() as usize];
    for power in [0.7, 1., 1.5] {
        let pattern = pattern::spread(steps, reused, power);
        let order = options.max_order.min(1);
        let plan = pattern::plan(setting.conditions, &pattern)?
            .with_orders(Formula::Polynomial, |_, _| order)?;
        for (most, error) in largest.iter_mut().zip(pool.errors(&plan)?) {
            *most = most.max(finite(error, "a simple plan")?);
        }
    }
    Ok(largest)
}

fn first_only(steps: usize) -> Pattern {
    (0..steps).map(|k| k == 0).collect()
}

struct Planner<'a> {
    setting: Setting<'a>,
    options: &'a PlannerOptions,
    rivals: &'a Rivals<'a>,
    folder: &'a Path,
    choose: Trials<'a>,
    screen: Trials<'a>,
    trials: Trials<'a>,
    state: State,
    started: Instant,
    observe: &'a mut dyn FnMut(&PlanningEvent<'_>) -> Result<()>,
}

impl Planner<'_> {
    fn target(&self) -> f64 {
        self.options.target_mac_saving
    }

    /// A cell of a model of few blocks can be more than the tolerance.
    fn tolerance(&self) -> f64 {
        let c = self.setting.conditions;
        let rows = (0..c.steps()).flat_map(|row| [c.macs(row, 0), c.macs(row, 1)]);
        let cell = rows.max().unwrap_or(0) as f64 / c.total_macs() as f64;
        TOLERANCE.max(cell)
    }

    /// Whether it is a plan that saves what was asked for.
    fn right(&self, t: &Tried) -> bool {
        let more = t.mac_saving - self.target();
        t.plan.is_some() && (-1e-9..=self.tolerance()).contains(&more)
    }

    /// The planner's own plans that save what was asked for, the least error first.
    fn own(&self) -> Vec<&Tried> {
        let all = self.state.tried.iter();
        let mut own: Vec<&Tried> = all.filter(|t| self.right(t) && !t.known).collect();
        own.sort_by(|a, b| a.error.total_cmp(&b.error));
        own
    }

    fn best(&self) -> Option<&Tried> {
        let all = self.state.tried.iter().filter(|t| self.right(t));
        all.min_by(|a, b| a.error.total_cmp(&b.error))
    }

    fn tell(&mut self, stage: &str) -> Result<()> {
        let best = self.best().map(|t| t.error);
        let (done, expected) = (self.work(), self.expected());
        (self.observe)(&PlanningEvent {
            stage,
            done,
            expected,
            best,
        })
    }

    fn work(&self) -> f64 {
        self.state.trajectories + self.choose.work() + self.screen.work() + self.trials.work()
    }

    /// Work of all stages, roughly.
    fn expected(&self) -> f64 {
        let o = self.options;
        let (screen, images) = (o.screen_images as f64, o.images as f64);
        let left = 1. - o.target_mac_saving;
        let known = 120. * left * screen + 12. * left * images;
        let patterns = 3. * f64::from(o.search_trials) * screen + 8. * images;
        let cells = (f64::from(o.cell_rounds) / 2. + 2.) * (4. + 2. * o.probes as f64) * images;
        let learning = 5. * f64::from(o.learn_trajectories) * LEARN_BATCH as f64 + images;
        let refining = 10. * left * f64::from(o.refine_rounds) * images;
        let choosing = (FINALISTS + 20) as f64 * left * o.choose_images as f64;
        let judging = (7. * left + 2.) * (o.unseen_images * o.unseen_seeds) as f64;
        known + patterns + cells + learning + refining + choosing + judging
    }

    fn note(
        &mut self,
        family: &str,
        label: String,
        known: bool,
        plan: &CachePlan,
        error: f64,
    ) -> Result<()> {
        let error = finite(error, family)?;
        self.state.tried.push(Tried {
            family: family.into(),
            label,
            mac_saving: plan.mac_saving(),
            error,
            unseen: vec![],
            known,
            plan: Some(plan.clone()),
            fewer_steps: None,
        });
        Ok(())
    }

    /// The stage is over: what it found is kept for a resumption.
    fn done(&mut self, stage: &str) -> Result<()> {
        self.state.done.push(stage.into());
        self.state.trajectories = self.work();
        self.choose.trajectories = 0.;
        self.screen.trajectories = 0.;
        self.trials.trajectories = 0.;
        self.state.seconds += self.started.elapsed().as_secs_f64();
        self.started = Instant::now();
        self.state.save(self.folder)
    }

    /// Step-wise Denoising Training from the best plan: decisions are hard, forecasts in the loop, and the penalty is driven to the target.
    fn learn(&mut self) -> Result<()> {
        const STAGE: &str = "learning";
        if self.state.has(STAGE) || self.options.learn_trajectories == 0 {
            return Ok(());
        }
        let Some(start) = self.best().and_then(|t| t.plan.clone()) else {
            return self.done(STAGE);
        };
        let path = self.folder.join(state::START);
        start.save(&path)?;
        let started = Instant::now();
        let options = LearnOptions {
            trajectories: self.options.learn_trajectories,
            batch_size: LEARN_BATCH,
            learning_rate: 0.05,
            beta: 1e-4,
            target_mac_saving: Some(self.target()),
            order: self.options.max_order.min(1),
            threshold: 0.5,
            proxy: Proxy::LeaveOneOut,
            refresh_every: 16 * self.setting.conditions.steps() as u32,
            normalise: true,
            penalty: Penalty::Macs,
            mix: Mix::StraightThrough,
            error_on: ErrorOn::Prediction,
            init: RouterInit::Plan { path, logit: 0.5 },
            checkpoint_every: 8,
            evaluate_on: 4,
            ..LearnOptions::default()
        };
        let folder = self.folder.join(state::ROUTER);
        let group = Group::alone();
        let learned = learn::learn(
            self.setting,
            &options,
            None,
            self.options.seed,
            &folder,
            &group,
            &mut |_| Ok(()),
        );
        let learned = match learned {
            // The best plan so far stays.
            Err(Error::Diverged { .. }) => return self.done(STAGE),
            other => other?,
        };
        self.state.learning_seconds += started.elapsed().as_secs_f64();
        self.trials.trajectories +=
            5. * f64::from(options.trajectories) * LEARN_BATCH as f64 / self.options.images as f64;
        // Where the training ended a little off, its own order of cells leads to the target.
        if let Ok(plan) = policy::harmonica_at_mac_saving(&learned.router, self.target()) {
            let (plan, error) = self.fit(&plan)?;
            self.note(
                "learned",
                format!("{} trajectories", options.trajectories),
                false,
                &plan,
                error,
            )?;
        }
        self.tell(STAGE)?;
        self.done(STAGE)
    }

    /// Of the last few the best on noise that nothing was fitted on; beside it the best of each known family, all on unseen noise.
    fn judge(mut self) -> Result<Outcome> {
        let own = self.own().into_iter().take(FINALISTS);
        let known = self.state.tried.iter().filter(|t| t.known);
        let finalists: Vec<Tried> = own.chain(known).cloned().collect();
        let mut best: Option<Tried> = None;
        let mut families: Vec<Tried> = Vec::new();
        for mut finalist in finalists {
            let Some(error) = finalist.error_on(&mut self.choose, self.rivals)? else {
                continue;
            };
            tracing::debug!(
                finalist.family,
                finalist.label,
                finalist.mac_saving,
                found_with = finalist.error,
                error,
                "finalist"
            );
            finalist.error = error;
            self.tell("choosing")?;
            if self.right(&finalist) && best.as_ref().is_none_or(|b| finalist.error < b.error) {
                best = Some(finalist.clone());
            }
            if !finalist.known {
                continue;
            }
            match families.iter_mut().find(|o| o.family == finalist.family) {
                Some(other) if finalist.error < other.error => *other = finalist,
                Some(_) => {}
                None => families.push(finalist),
            }
        }
        let Some(best) = best else {
            let expected = "a saving that plans of this model can have";
            return Err(Error::option("target_mac_saving", expected, self.target()));
        };
        let mut judged = vec![best];
        judged.extend(families);
        for k in 0..self.options.unseen_seeds {
            let noise = seed::derive(self.options.seed, &[42, k]);
            let mut trials = Trials::new(self.setting, noise, self.options.unseen_images)?;
            for t in &mut judged {
                let error = t.error_on(&mut trials, self.rivals)?;
                t.unseen.push(error.unwrap_or(f64::NAN));
            }
            self.state.trajectories += trials.work();
            self.tell("judging on unseen noise")?;
        }
        judged[1..].sort_by(|a, b| a.unseen_mean().total_cmp(&b.unseen_mean()));
        let seconds = self.state.seconds + self.started.elapsed().as_secs_f64();
        let trajectories = self.work();
        let chosen = &judged[0];
        let plan = chosen.plan.clone().ok_or_else(|| Error::Invalid {
            key: "the chosen plan".into(),
            reason: "expected cells, found none".into(),
        })?;
        let kept: usize = (0..plan.modules()).map(|c| plan.keeps(c)).sum();
        let settings = toml! {
            target_mac_saving = (self.target())
            mac_saving = (plan.mac_saving())
            found_by = (format!("{} {}", chosen.family, chosen.label))
            x0_mse_calibration = (chosen.error)
            x0_mse_unseen = (chosen.unseen.clone())
            calibration_images = (self.options.choose_images as i64)
            unseen_images = (self.options.unseen_images as i64)
            seed = (self.options.seed.to_string())
            kept_outputs = (kept as i64)
            kept_outputs_of_plain_reuse = (plan.modules() as i64)
            seconds = (seconds)
            learning_seconds = (self.state.learning_seconds)
        };
        Ok(Outcome {
            plan: plan.named(PLANNER, settings),
            judged,
            seconds,
            learning_seconds: self.state.learning_seconds,
            trajectories,
        })
    }
}

/// The most images of anything.
const MOST: u64 = 1_000_000;
/// How many of a family are tried on more than the screen's images.
const OF_A_FAMILY: u32 = 3;
/// How many plans are chosen from at the end.
const FINALISTS: usize = 8;
/// The order at which a polynomial is nowhere far off.
const SAFE_ORDER: u8 = 2;
/// Latents in a batch of the training.
const LEARN_BATCH: i64 = 8;
