use std::path::Path;

use fewstep_diffusion::sampler::SamplerName;
use fewstep_diffusion::{Dit, DitConfig, Guidance, NoiseSchedule, SamplerOptions};
use tch::Tensor;

use super::refine::explicit;
use super::*;
use crate::{Conditions, testing};

struct Small {
    dit: Dit,
    sampler: Box<dyn Sampler>,
    noise: NoiseSchedule,
    conditions: Conditions,
}

impl Small {
    fn new(steps: usize, guidance: &Guidance) -> Self {
        let shape = DitConfig {
            depth: 4,
            width: 24,
            heads: 3,
            classes: 10,
            ..DitConfig::named("S/4", 8, 2).unwrap()
        };
        let dit = testing::dit(&shape);
        let noise = NoiseSchedule::default();
        let sampler = SamplerOptions::new(SamplerName::Ddim, steps)
            .build(&noise)
            .unwrap();
        let conditions = Conditions::new(&dit, "ddim", sampler.timesteps(), guidance).unwrap();
        Self {
            dit,
            sampler,
            noise,
            conditions,
        }
    }

    fn setting(&self) -> Setting<'_> {
        Setting {
            dit: &self.dit,
            sampler: self.sampler.as_ref(),
            noise: &self.noise,
            conditions: &self.conditions,
        }
    }
}

fn options() -> PlannerOptions {
    PlannerOptions {
        target_mac_saving: 0.37,
        pool_images: 10,
        choose_images: 8,
        images: 6,
        screen_images: 3,
        unseen_images: 4,
        unseen_seeds: 2,
        search_trials: 6,
        cell_rounds: 3,
        refine_rounds: 3,
        probes: 1,
        learn_trajectories: 2,
        ..PlannerOptions::default()
    }
}

fn search(
    small: &Small,
    options: &PlannerOptions,
    folder: &Path,
    stop_at: Option<&str>,
) -> Result<Outcome> {
    let rivals = Rivals {
        plans: vec![],
        fewer_steps: &|steps| {
            let options = SamplerOptions::new(SamplerName::Ddim, steps);
            options.build(&NoiseSchedule::default()).ok()
        },
    };
    plan(
        small.setting(),
        options,
        &rivals,
        folder,
        &mut |event| match stop_at {
            Some(stage) if event.stage.starts_with(stage) => Err(Error::Stopped("enough".into())),
            _ => Ok(()),
        },
    )
}

#[test]
fn a_plan_lands_within_a_point_of_its_target_and_is_no_worse_than_known_ones_that_it_was_chosen_among()
 {
    let small = Small::new(8, &Guidance::scale(1.5));
    for target in [0.2, 0.37, 0.6] {
        let options = PlannerOptions {
            target_mac_saving: target,
            ..options()
        };
        let folder = tempfile::tempdir().unwrap();
        let outcome = search(&small, &options, folder.path(), None).unwrap();
        let saving = outcome.plan.mac_saving();
        assert!((0. ..=TOLERANCE).contains(&(saving - target)), "{saving}");
        assert!(outcome.judged.iter().all(|t| t.unseen.len() == 2));
        let state = State::open(folder.path(), &options, &small.conditions).unwrap();
        let stricter = state
            .tried
            .iter()
            .filter(|t| t.plan.is_some() && t.mac_saving >= target)
            .filter(|t| t.mac_saving <= target + TOLERANCE);
        assert!(stricter.count() > 1);
        let families: Vec<&str> = outcome.judged.iter().map(|t| t.family.as_str()).collect();
        for family in ["fora", "taylorseer", "interval", "random", "fewer-steps"] {
            // No window of this few steps saves the most.
            let there = families.contains(&family) || target > 0.5 && family == "interval";
            assert!(there, "{families:?}");
        }
        let settings = outcome.plan.settings();
        assert_eq!(settings["target_mac_saving"].as_float(), Some(target));
        assert_eq!(settings["x0_mse_unseen"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn forecasts_are_refined_from_a_known_policy_where_that_is_better_than_what_was_searched() {
    let small = Small::new(8, &Guidance::scale(1.5));
    let folder = tempfile::tempdir().unwrap();
    let good = search(&small, &options(), folder.path(), None)
        .unwrap()
        .plan;
    // One pattern, no cells: a search that finds little.
    let options = PlannerOptions {
        search_trials: 1,
        cell_rounds: 0,
        learn_trajectories: 0,
        ..options()
    };
    let rivals = Rivals {
        plans: vec![("given".into(), String::new(), good)],
        fewer_steps: &|_| None,
    };
    let folder = tempfile::tempdir().unwrap();
    let _ = plan(
        small.setting(),
        &options,
        &rivals,
        folder.path(),
        &mut |_| Ok(()),
    )
    .unwrap();
    let state = State::open(folder.path(), &options, &small.conditions).unwrap();
    let least = |of: &dyn Fn(&Tried) -> bool| {
        let all = state.tried.iter().filter(|t| t.plan.is_some() && of(t));
        all.map(|t| t.error).fold(f64::INFINITY, f64::min)
    };
    let given = least(&|t| t.family == "given");
    let searched = least(&|t| !t.known && !t.family.starts_with("refined"));
    let refined = least(&|t| t.family.starts_with("refined"));
    assert!(given < searched, "{given} {searched}");
    // Weights are float32.
    assert!(refined <= given * 1.001, "{refined} {given}");
}

#[test]
fn a_search_that_was_stopped_goes_on_to_the_same_plan() {
    let small = Small::new(6, &Guidance::scale(1.5));
    let options = PlannerOptions {
        // Not the number that its decimal digits are usually read as.
        target_mac_saving: 41. * 0.01,
        ..options()
    };
    let whole = tempfile::tempdir().unwrap();
    let expected = search(&small, &options, whole.path(), None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for stage in ["known", "patterns", "cells", "moving", "judging"] {
        let stopped = search(&small, &options, folder.path(), Some(stage));
        assert!(stopped.is_err(), "{stage}");
    }
    let found = search(&small, &options, folder.path(), None).unwrap();
    let cells = |p: &CachePlan| {
        p.to_toml()
            .unwrap()
            .split("[settings]")
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(cells(&found.plan), cells(&expected.plan));
    let other = PlannerOptions {
        seed: 1,
        ..options.clone()
    };
    let e = search(&small, &other, folder.path(), None).unwrap_err();
    assert!(
        e.to_string().contains("search.json: expected the options"),
        "{e}"
    );
}

#[test]
fn where_guidance_begins_midway_a_plan_saves_what_it_says() {
    let guidance = Guidance {
        interval: Some([100., 600.]),
        ..Guidance::scale(1.5)
    };
    let small = Small::new(6, &guidance);
    let folder = tempfile::tempdir().unwrap();
    let plan = search(&small, &options(), folder.path(), None)
        .unwrap()
        .plan;
    let mut reuse = crate::CachedReuse::new(crate::Planned(&plan), small.dit.config());
    let labels = Tensor::from_slice(&[1i64, 2, 3]);
    let mut noise = fewstep_diffusion::random::ImageNoise::new(0, 0..3);
    let x = noise.initial([2, 8, 8]).unwrap();
    let mut denoiser =
        fewstep_diffusion::Guided::new(&small.dit, &labels, &guidance, &mut reuse).unwrap();
    let _latents = fewstep_diffusion::sampler::sample(
        small.sampler.as_ref(),
        &mut denoiser,
        &x,
        &mut noise,
        &mut |_, _| Ok(()),
    )
    .unwrap();
    assert!((reuse.counts().mac_saving() - plan.mac_saving()).abs() < 1e-9);
}

#[test]
fn a_sampler_that_calls_twice_at_a_timestep_is_refused() {
    let mut small = Small::new(4, &Guidance::scale(1.5));
    let heun = SamplerOptions::new(SamplerName::Heun, 4);
    small.sampler = heun.build(&small.noise).unwrap();
    small.conditions.timesteps = small.sampler.timesteps().iter().rev().copied().collect();
    let folder = tempfile::tempdir().unwrap();
    let e = search(&small, &options(), folder.path(), None).unwrap_err();
    let expected = "the sampler: expected one that calls the model once at a timestep, found two";
    assert!(e.to_string().starts_with(expected), "{e}");
}

#[test]
fn what_cannot_be_saved_or_searched_is_refused() {
    let small = Small::new(4, &Guidance::scale(1.5));
    let folder = tempfile::tempdir().unwrap();
    let refused = |options: PlannerOptions| {
        search(&small, &options, folder.path(), None)
            .unwrap_err()
            .to_string()
    };
    let e = refused(PlannerOptions {
        target_mac_saving: 0.9,
        ..options()
    });
    assert!(
        e.starts_with("target_mac_saving: expected at most 0."),
        "{e}"
    );
    let e = refused(PlannerOptions {
        target_mac_saving: 1.5,
        ..options()
    });
    assert_eq!(
        e,
        "target_mac_saving: expected a number between 0 and 1, found 1.5"
    );
    let e = refused(PlannerOptions {
        max_order: 4,
        ..options()
    });
    assert_eq!(e, "max_order: expected 0 to 3, found 4");
}

/// A fitted plan with reuse in several places, guided in all calls or in some.
fn plan_of(small: &Small, trials: &mut Trials<'_>) -> CachePlan {
    let steps = small.conditions.steps();
    let plan = CachePlan::new("table", toml::Table::new(), &small.conditions, |row, c| {
        row + 2 < steps && (row + c) % 3 != 0
    })
    .unwrap();
    trials.fit(&plan, 1).unwrap().0
}

#[test]
fn a_sensitivity_without_probes_is_the_derivative_of_the_error() {
    let guided_in_some = Guidance {
        interval: Some([400., 1000.]),
        ..Guidance::scale(1.5)
    };
    for guidance in [Guidance::scale(1.5), guided_in_some, Guidance::scale(1.)] {
        let small = Small::new(5, &guidance);
        for (_, p) in small.dit.parameters() {
            let _ = p.f_set_requires_grad(false).unwrap();
        }
        let pool = Trials::new(small.setting(), 3, 9).unwrap();
        let hard: Vec<f64> = (0..9).map(f64::from).collect();
        let mut trials = pool.stratified(&hard, 4, 0).unwrap();
        let plan = plan_of(&small, &mut trials);
        let along = sensitivity::changes(small.setting(), &mut trials, &plan, 1, 0).unwrap();
        let largest = along.iter().flatten().fold(0f64, |a, b| a.max(b.abs()));
        for (row, column) in [(0, 1), (1, 0), (1, 3), (2, 2), (0, 0), (2, 1), (3, 2)] {
            // A gate that is moved a little to either side: the square of the move cancels.
            let base = f64::from(u8::from(!plan.reuses(row, column)));
            let at = |open: f64| {
                let cell = (row, column);
                let x =
                    sensitivity::latents_with_gate(small.setting(), &trials, &plan, 1, cell, open);
                trials.mse(&x.unwrap()).unwrap()
            };
            let away = if plan.reuses(row, column) { 0.1 } else { -0.1 };
            let expected = (at(base + away) - at(base - away)) / 0.2;
            let found = along[row][column];
            assert!(
                (found - expected).abs() < 0.05 * expected.abs() + 0.01 * largest,
                "row {row}, column {column}: {found}, {expected}"
            );
        }
    }
}

#[test]
fn a_gradient_of_a_weight_is_the_derivative_of_the_error() {
    let small = Small::new(5, &Guidance::scale(1.5));
    let mut trials = Trials::new(small.setting(), 3, 9).unwrap();
    let plan = explicit(crate::policy::taylorseer(&small.conditions, 3, 2, 1).unwrap()).unwrap();
    let (error, found) = sensitivity::gradients(small.setting(), &mut trials, &plan).unwrap();
    assert!((trials.error(&plan).unwrap() - error).abs() < 1e-4 * error);
    let largest = found
        .iter()
        .flatten()
        .flatten()
        .fold(0f64, |a, b| a.max(b.abs()));
    for (row, column, i) in [(0, 1, 0), (0, 4, 1), (2, 2, 0), (3, 3, 0), (0, 6, 1)] {
        let at = |by: f32| {
            let moved = plan.clone().with_weights(|r, c| {
                let mut weights = plan.weights(r, c)?.to_vec();
                if (r, c) == (row, column) {
                    weights[0] += by;
                    if i == 1 {
                        weights[1] -= by;
                    }
                }
                Some(weights)
            });
            let mut trials = Trials::new(small.setting(), 3, 9).unwrap();
            trials.error(&moved.unwrap()).unwrap()
        };
        let expected = (at(0.02) - at(-0.02)) / 0.04;
        let found = found[row][column][i];
        assert!(
            (found - expected).abs() < 0.05 * expected.abs() + 0.01 * largest,
            "row {row}, column {column}, {i}: {found}, {expected}"
        );
    }
}

#[test]
fn probes_add_the_squared_derivative_of_x0() {
    let small = Small::new(4, &Guidance::scale(1.5));
    let mut trials = Trials::new(small.setting(), 3, 8).unwrap();
    let plan = plan_of(&small, &mut trials);
    let along = sensitivity::changes(small.setting(), &mut trials, &plan, 1, 0).unwrap();
    let both = sensitivity::changes(small.setting(), &mut trials, &plan, 1, 64).unwrap();
    for (row, column) in [(0, 1), (1, 0), (1, 3)] {
        let at = |open: f64| {
            let cell = (row, column);
            sensitivity::latents_with_gate(small.setting(), &trials, &plan, 1, cell, open).unwrap()
        };
        let base = f64::from(u8::from(!plan.reuses(row, column)));
        let derivative: Tensor = (at(base + 1.) - at(base - 1.)) / 2.;
        let expected = derivative
            .square()
            .mean(tch::Kind::Double)
            .double_value(&[]);
        let found = both[row][column] - along[row][column];
        assert!(
            (found - expected).abs() < 0.3 * expected,
            "{found}, {expected}"
        );
    }
}

#[test]
fn a_stratified_sample_counts_for_all_images_and_holds_the_hardest() {
    let small = Small::new(3, &Guidance::scale(1.5));
    let mut pool = Trials::new(small.setting(), 5, 30).unwrap();
    let plan = crate::policy::fora(&small.conditions, 2).unwrap();
    let errors = pool.errors(&plan).unwrap();
    let whole = errors.iter().sum::<f64>() / 30.;
    assert!((pool.error(&plan).unwrap() - whole).abs() < 1e-6 * whole);
    let even = errors.iter().step_by(2);
    let mean = even.clone().sum::<f64>() / 15.;
    let mut some = pool.stratified(&errors, 12, 0).unwrap();
    let weights = Vec::<f32>::try_from(&some.weights).unwrap();
    assert!((weights.iter().sum::<f32>() - 1.).abs() < 1e-6);
    let largest = even.fold(0f64, |a, b| a.max(*b));
    let first = some.errors(&plan).unwrap()[0];
    assert!((first - largest).abs() < 1e-5 * largest);
    let estimate = some.error(&plan).unwrap();
    assert!((estimate - mean).abs() < 0.2 * mean, "{estimate}, {mean}");
    let mut all = pool.stratified(&errors, 30, 0).unwrap();
    assert!((all.error(&plan).unwrap() - mean).abs() < 1e-5 * mean);
}

#[test]
fn a_fitted_plan_errs_in_its_fit_as_when_it_is_followed() {
    let small = Small::new(8, &Guidance::scale(1.5));
    let mut trials = Trials::new(small.setting(), 3, 6).unwrap();
    let plain = crate::policy::fora(&small.conditions, 2).unwrap();
    let (fitted, error) = trials.fit(&plain, 2).unwrap();
    let followed = trials.error(&fitted).unwrap();
    assert!(
        (followed - error).abs() < 1e-3 * error,
        "{followed}, {error}"
    );
    assert_eq!(fitted.order(2, 0), 2);
    assert_eq!(fitted.weights(0, 1).unwrap().len(), 3);
}
