//! `fewstep plan --target-saving`: the plan with the least error for a saving, or for a time.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use fewstep_diffusion::dit::ComputeAll;
use fewstep_diffusion::sampler::Sampler;
use fewstep_diffusion::{Convention, Dit, Guidance, NoiseSchedule, Reuse, SamplerOptions};
use fewstep_harmonica::planner::{self, Outcome, PlannerOptions, PlanningEvent, Rivals, Tried};
use fewstep_harmonica::{
    CachePlan, CachedReuse, Conditions, Planned, Setting, StackCache, StackRule, ThresholdSearch,
    policy,
};
use fewstep_metrics::LatencySummary;
use fewstep_torch::DeviceChoice;
use serde_json::json;

use super::super::router::Rule;
use super::super::setting::{SamplingArgs, figures, file_name, open_model, word};
use crate::progress::{Progress, ProgressMode};
use crate::report::{self, Style};
use crate::sampling::{Job, labels_in_turn, sampler_label};

/// What a plan is looked for with.
#[derive(Args)]
pub struct BudgetArgs {
    /// The model: a checkpoint in any layout that fewstep reads, or `digits`, the one that it carries
    #[arg(long, value_name = "PATH", required = true)]
    checkpoint: Option<String>,
    /// Whose conventions it follows: original or diffusers
    #[arg(long, value_name = "NAME", value_parser = word::<Convention>)]
    convention: Option<Convention>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Share of multiply-accumulates to save, such as 40% or 0.4
    #[arg(long, value_name = "X", value_parser = share, conflicts_with = "target_ms")]
    target_saving: Option<f64>,
    /// Instead of a saving, milliseconds for an image on this machine, in batches of --images
    #[arg(long, value_name = "MS")]
    target_ms: Option<f64>,
    /// Images of calibration noise, of which the hardest are picked to choose on
    #[arg(long, value_name = "N", default_value_t = PlannerOptions::default().pool_images)]
    pool_images: u64,
    /// Images of them that the last few plans are chosen on
    #[arg(long, value_name = "N", default_value_t = PlannerOptions::default().choose_images)]
    choose_images: u64,
    /// Images of them that plans are fitted on, and cells moved
    #[arg(long, value_name = "N", default_value_t = PlannerOptions::default().images)]
    images: u64,
    /// Images of them that most patterns are tried on
    #[arg(long, value_name = "N", default_value_t = PlannerOptions::default().screen_images)]
    screen_images: u64,
    /// Images of unseen noise that the plan is judged on, for each of three seeds
    #[arg(long, value_name = "N", default_value_t = PlannerOptions::default().unseen_images)]
    unseen_images: u64,
    /// The highest order of a forecast, 0 to 3; order n keeps n + 1 outputs of each sub-module
    #[arg(long, value_name = "N", default_value_t = PlannerOptions::default().max_order)]
    max_order: u8,
    /// Trials of the search over steps
    #[arg(long, value_name = "N", default_value_t = PlannerOptions::default().search_trials)]
    search_trials: u32,
    /// Rounds of moving single cells
    #[arg(long, value_name = "N", default_value_t = PlannerOptions::default().cell_rounds)]
    cell_rounds: u32,
    /// Rounds of refining the weights of the best plan's forecasts; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = PlannerOptions::default().refine_rounds)]
    refine_rounds: u32,
    /// Trajectories of Step-wise Denoising Training from the best plan; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = PlannerOptions::default().learn_trajectories)]
    learn_trajectories: u32,
    /// Learned routers to beat as well
    #[arg(long, value_name = "FILE")]
    router: Vec<PathBuf>,
    /// Seed of all noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "NAME", default_value = "auto")]
    device: DeviceChoice,
    /// Threads of libtorch
    #[arg(long, value_name = "N")]
    threads: Option<u32>,
    /// The plan
    #[arg(long, value_name = "FILE", default_value = "plan.toml")]
    out: PathBuf,
    /// Go on with a search that was interrupted
    #[arg(long)]
    resume: bool,
    /// No progress
    #[arg(long)]
    quiet: bool,
    /// What was found as JSON
    #[arg(long)]
    json: bool,
}

impl BudgetArgs {
    fn options(&self) -> PlannerOptions {
        PlannerOptions {
            target_mac_saving: self.target_saving.unwrap_or(0.5),
            pool_images: self.pool_images,
            choose_images: self.choose_images,
            images: self.images,
            screen_images: self.screen_images,
            unseen_images: self.unseen_images,
            max_order: self.max_order,
            search_trials: self.search_trials,
            cell_rounds: self.cell_rounds,
            refine_rounds: self.refine_rounds,
            learn_trajectories: self.learn_trajectories,
            seed: self.seed,
            ..PlannerOptions::default()
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    let trimmed = text.trim();
    let (digits, scale) = match trimmed.strip_suffix('%') {
        Some(digits) => (digits, 0.01),
        None => (trimmed, 1.),
    };
    let value = digits.trim().parse::<f64>().map(|v| v * scale).ok();
    value
        .filter(|v| *v > 0. && *v < 1.)
        .ok_or_else(|| "expected a share such as 40% or 0.4, above 0 and below 1".into())
}

/// Looks for the plan, writes it and says what it beat.
///
/// # Errors
/// A flag or a file is at fault; one sentence.
pub(super) fn find(args: &BudgetArgs) -> Result<()> {
    let checkpoint = args.checkpoint.as_deref().unwrap_or_default();
    let mut options = args.options();
    options
        .validate()
        .map_err(|(key, reason)| anyhow::anyhow!("--{}: {reason}", key.replace('_', "-")))?;
    let folder = search_folder(&args.out);
    if args.target_saving.is_none() && args.target_ms.is_none() {
        bail!("expected --target-saving or --target-ms, found neither");
    }
    if args.out.is_dir() {
        bail!(
            "--out: expected a file, found the folder {}",
            args.out.display()
        );
    }
    let begun = planner::target_of(&folder)?;
    if begun.is_some() && !args.resume {
        bail!(
            "{}: an unfinished search for this plan is there; go on with it with --resume, or remove it",
            folder.display()
        );
    }
    let sampler = args.sampling.sampler()?;
    let guidance = args.sampling.guidance()?;
    args.sampling.check_scheduler(checkpoint)?;
    if let Some(threads) = args.threads {
        match i32::try_from(threads) {
            Ok(n) if n > 0 => tch::set_num_threads(n),
            _ => bail!("--threads: expected 1 to {}, found {threads}", i32::MAX),
        }
    }
    let device = fewstep_torch::device::resolve(args.device)?;
    let dit = open_model(checkpoint, args.convention, device)?;
    let noise = NoiseSchedule::new(&args.sampling.noise())?;
    let conditions = Conditions::new(
        &dit,
        sampler_label(&args.sampling.options(), &args.sampling.noise()),
        sampler.timesteps(),
        &guidance,
    )?;
    let setting = Setting {
        dit: &dit,
        sampler: sampler.as_ref(),
        noise: &noise,
        conditions: &conditions,
    };
    let clock = Clock {
        dit: &dit,
        sampler: sampler.as_ref(),
        guidance: &guidance,
        images: args.images,
    };
    let mode = ProgressMode::detect(args.quiet || args.json);
    options.target_mac_saving = match (args.target_saving, args.target_ms, begun) {
        (Some(saving), ..) => saving,
        // Another measurement would make another search of it.
        (None, Some(_), Some(begun)) => begun,
        (None, Some(ms), None) => clock.saving_for(ms, &conditions, mode)?,
        (None, None, _) => options.target_mac_saving,
    };
    let target = options.target_mac_saving;
    let fewer_steps = |steps: usize| -> Option<Box<dyn Sampler>> {
        let fewer = SamplerOptions {
            steps,
            ..args.sampling.options()
        };
        fewer.validate().ok()?;
        fewer.build(&noise).ok()
    };
    let mut plans = routed(&args.router, &conditions, target)?;
    plans.extend(dynamic(&clock, &conditions, target)?);
    let rivals = Rivals {
        plans,
        fewer_steps: &fewer_steps,
    };
    let mut bar = Progress::new(mode, "planning", 100);
    let mut last = String::new();
    let started = Instant::now();
    let mut begun = None;
    let outcome = planner::plan(setting, &options, &rivals, &folder, &mut |event| {
        last = told(event, *begun.get_or_insert(event.done), started);
        let percent = 100. * event.done / event.expected.max(event.done);
        bar.set(percent as u64, &last);
        Ok(())
    })?;
    bar.finish(&last);
    let (uncached_ms, plan_ms) = clock.compare(&outcome.plan)?;
    let mut settings = outcome.plan.settings().clone();
    settings.insert("uncached_ms_per_image".into(), uncached_ms.into());
    settings.insert("ms_per_image".into(), plan_ms.into());
    settings.insert("beat".into(), beaten(&outcome));
    let plan = outcome.plan.clone().named(planner::PLANNER, settings);
    plan.save(&args.out)?;
    // What was for a resumption has served.
    planner::forget(&folder)?;
    show(args, &plan, &outcome, uncached_ms, plan_ms)
}

/// Beside the plan.
fn search_folder(out: &Path) -> PathBuf {
    let mut name = file_name(out);
    name.push_str(".search");
    out.with_file_name(name)
}

fn told(event: &PlanningEvent<'_>, begun: f64, started: Instant) -> String {
    let best = event
        .best
        .map_or_else(|| "no plan yet".into(), |e| format!("best x0 MSE {e:.2e}"));
    let rate = started.elapsed().as_secs_f64() / (event.done - begun).max(1e-9);
    let left = (rate * (event.expected - event.done)).max(0.);
    match event.done > begun {
        true => format!("{}: {best}, about {:.0} s left", event.stage, left),
        false => format!("{}: {best}", event.stage),
    }
}

/// Plans of learned routers at the target.
fn routed(
    files: &[PathBuf],
    conditions: &Conditions,
    target: f64,
) -> Result<Vec<(String, String, CachePlan)>> {
    let mut all = Vec::new();
    for file in files {
        let router = fewstep_harmonica::Router::load(file)?;
        router
            .made_for()
            .check_fits(conditions, &file.display().to_string())?;
        let rule = Rule::of(&router);
        let family = match rule {
            Rule::Harmonica => policy::HARMONICA,
            Rule::L2c => policy::L2C,
        };
        match rule.plan_at_mac_saving(&router, target) {
            Ok(plan) => all.push((family.into(), file_name(file), plan)),
            Err(e) => super::super::tell(&format!("{} is left out: {e}", file.display())),
        }
    }
    Ok(all)
}

/// What caches that look at the tokens skip at this saving, as plans.
fn dynamic(
    clock: &Clock<'_>,
    conditions: &Conditions,
    target: f64,
) -> Result<Vec<(String, String, CachePlan)>> {
    let rules = [
        StackRule::FirstBlock {
            threshold: 0.,
            order: 1,
        },
        StackRule::Tea {
            threshold: 0.,
            coefficients: vec![1., 0.],
            order: 1,
        },
    ];
    let mut all = Vec::new();
    for rule in rules {
        if rule.validate(Some(conditions.modules() / 2)).is_err() {
            continue;
        }
        let mut plan = None;
        let mut measure = |threshold: f64| -> Result<f64> {
            let mut cache = StackCache::new(rule.clone().at(threshold), clock.dit.config())?;
            clock.sample(&mut cache)?;
            let found = cache.as_plan(conditions)?;
            let saving = found.mac_saving();
            plan = Some(found);
            Ok(saving)
        };
        if let Some(threshold) =
            ThresholdSearch::new().find(target - planner::TOLERANCE, &mut measure)?
        {
            measure(threshold)?;
            let name = rule.name();
            all.extend(plan.map(|p| (name.into(), format!("threshold {threshold:.3}"), p)));
        }
    }
    Ok(all)
}

/// Times sampling of one batch.
struct Clock<'a> {
    dit: &'a Dit,
    sampler: &'a dyn Sampler,
    guidance: &'a Guidance,
    images: u64,
}

impl Clock<'_> {
    fn sample(&self, reuse: &mut dyn Reuse) -> Result<()> {
        let job = Job {
            dit: self.dit,
            sampler: self.sampler,
            guidance: self.guidance,
            seed: 0,
            batch_size: self.images as usize,
        };
        let labels = labels_in_turn(self.images, self.dit.config().classes as usize);
        let _latents = job.batch(0, &labels, reuse, &mut |_, _| Ok(()))?;
        Ok(())
    }

    fn once(&self, plan: Option<&CachePlan>) -> Result<f64> {
        let mut cached = plan.map(|p| CachedReuse::new(Planned(p), self.dit.config()));
        let mut all = ComputeAll;
        let reuse: &mut dyn Reuse = match &mut cached {
            Some(cached) => cached,
            None => &mut all,
        };
        let started = Instant::now();
        self.sample(reuse)?;
        Ok(1e3 * started.elapsed().as_secs_f64() / self.images as f64)
    }

    /// Milliseconds an image without cache and with this plan, medians of turns.
    fn compare(&self, plan: &CachePlan) -> Result<(f64, f64)> {
        self.once(None)?;
        let (mut uncached, mut planned) = (vec![], vec![]);
        for _ in 0..TURNS {
            uncached.push(self.once(None)?);
            planned.push(self.once(Some(plan))?);
        }
        let median = |times: &[f64]| LatencySummary::from_ms(times).map(|s| s.median_ms);
        Ok((median(&uncached)?, median(&planned)?))
    }

    /// The saving at which an image takes so long, by a line through the uncached run and every second step.
    fn saving_for(&self, ms: f64, conditions: &Conditions, mode: ProgressMode) -> Result<f64> {
        let half = policy::fora(conditions, 2)?;
        let (uncached, cached) = self.compare(&half)?;
        let saving = half.mac_saving() * (uncached - ms) / (uncached - cached);
        if mode != ProgressMode::Silent {
            super::super::tell(&format!(
                "uncached {uncached:.2} ms an image, {cached:.2} ms with {:.1} % of MACs saved: {ms} ms need {:.1} %",
                100. * half.mac_saving(),
                100. * saving
            ));
        }
        if !(cached < uncached && ms < uncached && saving > 0. && saving < 1.) {
            bail!(
                "--target-ms: expected below {uncached:.2}, which the uncached run takes, and above what any plan can reach, found {ms}"
            );
        }
        Ok(saving)
    }
}

/// Odd, for a median.
const TURNS: usize = 5;

const HEADER: [&str; 6] = [
    "policy",
    "",
    "MAC saving %",
    "x0 MSE, calibration",
    "x0 MSE, unseen",
    "spread over seeds",
];

fn rows(judged: &[Tried]) -> Vec<[String; 6]> {
    let row = |t: &Tried| {
        let (least, most) = t
            .unseen
            .iter()
            .fold((f64::INFINITY, 0f64), |(a, b), e| (a.min(*e), b.max(*e)));
        [
            match t.known {
                true => t.family.clone(),
                false => format!("planner ({})", t.family),
            },
            t.label.clone(),
            format!("{:.1}", 100. * t.mac_saving),
            format!("{:.2e}", t.error),
            format!("{:.2e}", t.unseen_mean()),
            format!("{least:.2e} to {most:.2e}"),
        ]
    };
    judged.iter().map(row).collect()
}

/// The table of what the plan beat, for its file: family, saving, error.
fn beaten(outcome: &Outcome) -> toml::Value {
    let line = |t: &Tried| {
        let mut table = toml::Table::new();
        table.insert("policy".into(), t.family.clone().into());
        table.insert("label".into(), t.label.clone().into());
        table.insert("mac_saving".into(), t.mac_saving.into());
        table.insert("x0_mse_unseen".into(), t.unseen_mean().into());
        toml::Value::Table(table)
    };
    let own = outcome.judged[0].unseen_mean();
    let beaten = outcome.judged[1..].iter().filter(|t| t.unseen_mean() > own);
    beaten.map(line).collect::<Vec<_>>().into()
}

fn show(
    args: &BudgetArgs,
    plan: &CachePlan,
    outcome: &Outcome,
    uncached_ms: f64,
    plan_ms: f64,
) -> Result<()> {
    if args.json {
        return super::super::print(&serde_json::to_string_pretty(&json!({
            "plan": args.out,
            "settings": plan.settings(),
            "mac_saving_percent": 100. * plan.mac_saving(),
            "judged": outcome.judged.iter().map(|t| json!({
                "policy": t.family,
                "label": t.label,
                "known": t.known,
                "mac_saving_percent": 100. * t.mac_saving,
                "x0_mse_calibration": t.error,
                "x0_mse_unseen": t.unseen,
            })).collect::<Vec<_>>(),
            "seconds": outcome.seconds,
            "learning_seconds": outcome.learning_seconds,
            "trajectories": outcome.trajectories,
            "uncached_ms_per_image": uncached_ms,
            "ms_per_image": plan_ms,
        }))?);
    }
    let table = report::text(&HEADER, &rows(&outcome.judged), Style::detect());
    super::super::print(&table)?;
    let kept: usize = (0..plan.modules()).map(|c| plan.keeps(c)).sum();
    super::super::print(&format!(
        "{}: {}; {kept} outputs kept ({} with plain reuse); {plan_ms:.2} ms an image, uncached {uncached_ms:.2}",
        args.out.display(),
        figures(plan),
        plan.modules()
    ))?;
    if let Some(target) = args.target_ms.filter(|ms| plan_ms > *ms) {
        super::super::print(&format!(
            "it takes {plan_ms:.2} ms an image, more than the {target} asked for: forecasts cost time too; ask for less"
        ))?;
    }
    super::super::print(&format!(
        "planned in {:.0} s, of which {:.0} % was learning; as much work as sampling {:.0} images without cache",
        outcome.seconds,
        100. * outcome.learning_seconds / outcome.seconds.max(1e-9),
        outcome.trajectories
    ))
}
