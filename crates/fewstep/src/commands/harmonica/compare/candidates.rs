//! What is compared: plans, policies that decide from what they see, and fewer steps.

use anyhow::Result;
use fewstep_diffusion::SamplerOptions;
use fewstep_harmonica::learn::Training;
use fewstep_harmonica::{
    CachePlan, Conditions, Formula, Setting, StackCache, StackRule, ThresholdSearch, policy,
};
use fewstep_torch::seed;

use super::super::Named;
use super::{Cache, Candidate, What, job, run};
use crate::experiment::{HarmonicaExperiment, Policy};
use crate::progress::{Progress, ProgressMode};
use crate::sampling::{Job, labels_in_turn};

/// Random plans whose x0 errors are averaged: one alone says little. All else is that of the first.
const RANDOM_PLANS: u64 = 5;
/// The noise that thresholds are searched on.
const CALIBRATION: u64 = 21;
/// Images that thresholds are searched on: a mean distance over them is near that of any others.
const CALIBRATED_ON: u64 = 32;
/// What just suffices there may miss a call on other noise, whose distances differ by percents.
const MARGIN: f64 = 1.03;

/// All policies, the uncached run first.
pub(super) fn candidates(
    experiment: &HarmonicaExperiment,
    setting: Setting<'_>,
    routers: &[Named],
    mode: ProgressMode,
) -> Result<Vec<Candidate>> {
    let (conditions, e) = (setting.conditions, &experiment.evaluation);
    let mut all = vec![Candidate {
        name: policy::NONE.into(),
        label: String::new(),
        what: What::Plans(vec![policy::none(conditions)?]),
    }];
    let mut savings: Vec<f64> = Vec::new();
    for router in routers {
        let threshold = router.learned.router.threshold();
        let plan = match router.training {
            Training::Sdt => policy::harmonica(&router.learned.router, threshold)?,
            Training::L2c => policy::l2c(&router.learned.router, threshold)?,
        };
        if router.training == Training::Sdt {
            savings.push(plan.mac_saving());
        }
        all.push(Candidate {
            name: family(router).into(),
            label: label(router, format!("r > {threshold}")),
            what: What::Plans(vec![plan]),
        });
    }
    // What was asked for stays; a router's own saving is left out where another is as good as the same.
    let mut asked: Vec<f64> = e.mac_savings_percent.iter().map(|s| s / 100.).collect();
    asked.retain(|s| *s > 0.);
    for own in std::mem::take(&mut savings) {
        let near = |s: &f64| (own - s).abs() < 5e-3;
        if own > 0. && !asked.iter().any(near) && !savings.iter().any(near) {
            savings.push(own);
        }
    }
    savings.extend(&asked);
    savings.sort_by(f64::total_cmp);
    savings.dedup();
    for (i, &saving) in savings.iter().enumerate() {
        let at = format!("{:.1} %", 100. * saving);
        for router in routers {
            let wanted = asked.contains(&saving);
            let what = match router.training {
                // At its own threshold a router is in the table already.
                Training::Sdt if !wanted => continue,
                Training::Sdt => policy::harmonica_at_mac_saving(&router.learned.router, saving),
                Training::L2c => policy::l2c_at_mac_saving(&router.learned.router, saving),
            };
            // Learning-to-Cache can't skip more than half.
            match what {
                Err(e) => {
                    crate::commands::tell(&format!("{} at {at} is left out: {e}", router.name))
                }
                Ok(plan) => all.push(Candidate {
                    name: family(router).into(),
                    label: label(router, format!("at {at}")),
                    what: What::Plans(vec![plan]),
                }),
            }
        }
        let seed = |k| seed::derive(experiment.seed, &[30, i as u64, k]);
        let plans = (0..RANDOM_PLANS)
            .map(|k| policy::random_at_mac_saving(conditions, saving, seed(k)))
            .collect::<Result<Vec<_>, _>>();
        if let Ok(plans) = plans {
            all.push(Candidate {
                name: policy::RANDOM.into(),
                label: format!("at {at}, MSE of {RANDOM_PLANS}"),
                what: What::Plans(plans),
            });
        }
        // At least as much work as the plan that it is compared with; and where that is more by a point, at most as much.
        let exact = experiment.sampler.steps as f64 * (1. - saving);
        let most = (exact + 0.01 * experiment.sampler.steps as f64).floor();
        let more = asked.contains(&saving).then_some(most);
        for steps in [Some(exact.ceil()), more].into_iter().flatten() {
            let options = SamplerOptions {
                steps: steps as usize,
                ..experiment.sampler.clone()
            };
            let label = format!("{steps}");
            let seen = all
                .iter()
                .any(|c| c.name == policy::FEWER_STEPS && c.label == label);
            if options.validate().is_ok() && !seen {
                all.push(Candidate {
                    name: policy::FEWER_STEPS.into(),
                    label,
                    what: What::Steps(options),
                });
            }
        }
    }
    for &interval in &e.intervals {
        all.push(Candidate {
            name: policy::FORA.into(),
            label: format!("every {interval}"),
            what: What::Plans(vec![policy::fora(conditions, interval)?]),
        });
    }
    for (name, label, plan) in fixed_plans(experiment, conditions)? {
        all.push(Candidate {
            name: name.into(),
            label,
            what: What::Plans(vec![plan]),
        });
    }
    all.extend(stacks(experiment, setting, &asked, mode)?);
    Ok(all)
}

/// The policies that decide from what they see, at their thresholds or at those that save what is asked.
fn stacks(
    experiment: &HarmonicaExperiment,
    setting: Setting<'_>,
    asked: &[f64],
    mode: ProgressMode,
) -> Result<Vec<Candidate>> {
    let e = &experiment.evaluation;
    let job = Job {
        seed: seed::derive(experiment.seed, &[CALIBRATION]),
        ..job(experiment, setting, setting.sampler)
    };
    let images = CALIBRATED_ON.min(e.batch_size);
    let labels = labels_in_turn(images, setting.dit.config().classes as usize);
    let mut asked = asked.to_vec();
    asked.sort_by(f64::total_cmp);
    let lacking = e.policies.iter().filter(|p| p.lacks_threshold()).count();
    let mut bar =
        (lacking > 0).then(|| Progress::new(mode, "thresholds", (lacking * asked.len()) as u64));
    let mut found = 0;
    let mut all = Vec::new();
    for policy in &e.policies {
        let Some(rule) = policy.rule() else {
            continue;
        };
        let candidate = |rule: StackRule, before: &str| Candidate {
            name: rule.name().into(),
            label: format!("{before}{}", stack_label(&rule)),
            what: What::Stack(rule),
        };
        if !policy.lacks_threshold() {
            all.push(candidate(rule, ""));
            continue;
        }
        let mut search = ThresholdSearch::new();
        for &saving in &asked {
            let at = format!("{:.0} %: ", 100. * saving);
            // A point less is as good as the same.
            let threshold = search.find(saving - 0.01, &mut |threshold| -> Result<f64> {
                let rule = rule.clone().at(threshold);
                let run = run(&job, &labels, Cache::Stack(&rule))?;
                Ok(run.decided.map_or(0., |d| d.mac_saving))
            })?;
            match threshold {
                Some(threshold) => all.push(candidate(rule.clone().at(MARGIN * threshold), &at)),
                None => crate::commands::tell(&format!(
                    "{} at {at}is left out: no threshold saves as much",
                    rule.name()
                )),
            }
            found += 1;
            if let Some(bar) = &mut bar {
                bar.set(found, rule.name());
            }
        }
    }
    if let Some(bar) = bar {
        bar.finish("found");
    }
    Ok(all)
}

/// In cache-dit's way: F2B1 are two computed blocks in front and one behind, O1 is a forecast of order 1, W4 four computed steps at first,
/// MC3 at most three reused in a row.
fn stack_label(rule: &StackRule) -> String {
    let mut words = Vec::new();
    let threshold = match rule {
        StackRule::FirstBlock { threshold, .. } | StackRule::Tea { threshold, .. } => threshold,
        StackRule::DualBlock {
            front,
            back,
            threshold,
            warmup_steps,
            max_continuous_cached_steps,
            ..
        } => {
            words.push(format!("F{front}B{back}"));
            if *warmup_steps > 0 {
                words.push(format!("W{warmup_steps}"));
            }
            words.extend(max_continuous_cached_steps.map(|most| format!("MC{most}")));
            threshold
        }
        StackRule::Delta {
            interval,
            blocks,
            switch,
        } => {
            let mut label = format!("every {interval}, {blocks} blocks");
            if *switch != 0.5 {
                label += &format!(", switch {switch}");
            }
            return label;
        }
    };
    if rule.order() > 0 {
        words.push(format!("O{}", rule.order()));
    }
    words.push(format!("d < {threshold:.3}"));
    words.join(" ")
}

/// The plans that the config lists one by one.
pub(in crate::commands::harmonica) fn fixed_plans(
    experiment: &HarmonicaExperiment,
    conditions: &Conditions,
) -> Result<Vec<(&'static str, String, CachePlan)>> {
    let mut all = Vec::new();
    for other in &experiment.evaluation.policies {
        if let Some(rule) = other.rule() {
            // Fits the model, or says why not.
            StackCache::new(rule, &conditions.shape)?;
            continue;
        }
        all.push(match other {
            Policy::Table { path } => (
                policy::TABLE,
                path.file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                policy::table(path, conditions)?,
            ),
            Policy::Interval {
                first,
                last,
                interval,
                order,
            } => (
                policy::INTERVAL,
                match order {
                    0 => format!("every {interval} in {first}-{last}"),
                    _ => format!("every {interval} in {first}-{last} O{order}"),
                },
                policy::interval(conditions, *first, *last, *interval)?
                    .with_orders(Formula::Polynomial, |_, _| *order)?,
            ),
            Policy::TaylorSeer {
                interval,
                order,
                warm_up,
            } => (
                policy::TAYLORSEER,
                match warm_up {
                    1 => format!("every {interval} O{order}"),
                    _ => format!("every {interval} O{order} W{warm_up}"),
                },
                policy::taylorseer(conditions, *interval, *order, *warm_up)?,
            ),
            Policy::FirstBlock { .. }
            | Policy::DualBlock { .. }
            | Policy::Tea { .. }
            | Policy::Delta { .. } => continue,
        });
    }
    Ok(all)
}

fn family(router: &Named) -> &'static str {
    match router.training {
        Training::Sdt => policy::HARMONICA,
        Training::L2c => policy::L2C,
    }
}

/// Names the router where its name says more than its family does.
fn label(router: &Named, rest: String) -> String {
    match router.name == family(router) {
        true => rest,
        false => format!("{} {rest}", router.name),
    }
}
