//! `fewstep router`: what a learned router says, and the way from and to the files of the published programs.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use fewstep_harmonica::{CachePlan, Conditions, Router, policy, published};
use fewstep_torch::checkpoint::write_atomically;
use serde_json::{Value, json};

use super::harmonica::router_plot;
use super::setting::{SamplingArgs, TargetArgs, described, figures, file_name};
use crate::plot;

/// What both published programs use.
const PUBLISHED_THRESHOLD: f64 = 0.1;

/// Subcommands of `fewstep router`.
#[derive(Subcommand)]
pub enum Command {
    /// Show a router: what it was made for, how it was trained, and what it computes at each step
    #[command(
        after_help = "Example: fewstep router show runs/harmonica-digits/router-harmonica.safetensors --out router.png"
    )]
    Show {
        /// A router of fewstep (.safetensors)
        file: PathBuf,
        /// Draw its probabilities as PNG
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Read a published .pt, of which only you know what it was made for; nothing in it is run
    #[command(
        after_help = "Example: fewstep router import ddim20.pt --model DiT-XL/2 --steps 20 --guidance 1.5 --out router.safetensors"
    )]
    Import(Box<ImportArgs>),
    /// Write HarmoniCa's .pt, which its sampling script reads
    #[command(
        after_help = "Example: fewstep router export runs/harmonica-digits/router-harmonica.safetensors --out router.pt"
    )]
    Export {
        /// A router of fewstep (.safetensors)
        file: PathBuf,
        /// The .pt
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

/// Options of `fewstep router import`.
#[derive(clap::Args)]
pub struct ImportArgs {
    /// A router of HarmoniCa or Learning-to-Cache (.pt)
    file: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// A sub-module is computed where the router is above X, from 0 to 1
    #[arg(long, value_name = "X", default_value_t = PUBLISHED_THRESHOLD, allow_negative_numbers = true)]
    threshold: f64,
    /// By whose rule it is read [default: that of the program whose options the file holds]
    #[arg(long, value_name = "NAME")]
    policy: Option<Rule>,
    /// The router of fewstep (.safetensors)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// How the rows of a router are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rule {
    /// Every row but the first executed one may reuse.
    Harmonica,
    /// Learning-to-Cache: only even rows may, for nothing trained the others.
    L2c,
}

impl Rule {
    /// The rule of the program that trained it, by what its training left in it.
    pub(crate) fn of(router: &Router) -> Self {
        let training = router.training();
        let l2c = match (&training["training"], &training["published_args"]) {
            (Value::String(name), _) => name == "l2c",
            // Both programs have an option of this name; HarmoniCa's does not run without a number.
            (_, Value::Object(args)) => !args.get("ste_threshold").is_some_and(Value::is_number),
            _ => false,
        };
        match l2c {
            true => Self::L2c,
            false => Self::Harmonica,
        }
    }

    /// The plan of a router at this threshold.
    ///
    /// # Errors
    /// The router's conditions make no sense.
    pub(crate) fn plan(
        self,
        router: &Router,
        threshold: f64,
    ) -> fewstep_harmonica::Result<CachePlan> {
        match self {
            Self::Harmonica => policy::harmonica(router, threshold),
            Self::L2c => policy::l2c(router, threshold),
        }
    }

    /// The plan of a router at the threshold that saves this share of all operations.
    ///
    /// # Errors
    /// A saving that can't be reached.
    pub(crate) fn plan_at_mac_saving(
        self,
        router: &Router,
        mac_saving: f64,
    ) -> fewstep_harmonica::Result<CachePlan> {
        match self {
            Self::Harmonica => policy::harmonica_at_mac_saving(router, mac_saving),
            Self::L2c => policy::l2c_at_mac_saving(router, mac_saving),
        }
    }

    /// As in configs and tables.
    fn name(self) -> &'static str {
        match self {
            Self::Harmonica => policy::HARMONICA,
            Self::L2c => policy::L2C,
        }
    }
}

/// A router for `job`, with the threshold that it is read at. A `.pt` does not say what it was made for, so only its size is
/// checked; its threshold is the published one unless `threshold` says otherwise.
///
/// # Errors
/// No such file, no router, or one that was made for something else: everything that differs.
pub(crate) fn open_for(
    path: &Path,
    job: &Conditions,
    threshold: Option<f64>,
) -> Result<(Router, f64)> {
    if is_published(path) {
        let threshold = threshold.unwrap_or(PUBLISHED_THRESHOLD);
        return Ok((published::import(path, job, threshold)?, threshold));
    }
    let router = Router::load(path)?;
    let threshold = threshold.unwrap_or(router.threshold());
    router.check_fits(job, threshold, &path.display().to_string())?;
    Ok((router, threshold))
}

pub(crate) fn is_published(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "pt" || e == "pth")
}

/// Runs a subcommand.
///
/// # Errors
/// A flag or a file is at fault; one sentence.
pub fn router(command: &Command) -> Result<()> {
    match command {
        Command::Show { file, out } => show(file, out.as_deref())?,
        Command::Import(args) => import(args)?,
        Command::Export { file, out } => {
            published::export(&load(file)?, out)?;
            super::print(&format!("{}: HarmoniCa's layout", out.display()))?;
        }
    }
    Ok(())
}

/// A router of ours.
fn load(path: &Path) -> Result<Router> {
    if is_published(path) {
        anyhow::bail!(
            "{}: expected a router of fewstep (.safetensors), found a .pt, which does not say what it was made for: \
             `fewstep router import` makes one of the other",
            path.display()
        );
    }
    Ok(Router::load(path)?)
}

fn show(file: &Path, out: Option<&Path>) -> Result<()> {
    let router = load(file)?;
    let rule = Rule::of(&router);
    let plan = rule.plan(&router, router.threshold())?;
    super::print(&described(router.made_for()))?;
    super::print(&format!(
        "{}, computed where r > {}; {}",
        rule.name(),
        router.threshold(),
        figures(&plan)
    ))?;
    if !router.training().is_null() {
        super::print(&format!("trained with {}", router.training()))?;
    }
    let probabilities = router.probabilities();
    let steps = router.steps();
    for row in (0..steps).rev() {
        let r = &probabilities[row];
        let (least, most) = r
            .iter()
            .fold((1f64, 0f64), |(a, b), &r| (a.min(r), b.max(r)));
        super::print(&format!(
            "step {:>3}  t = {:<7} r {least:.3} to {most:.3}, mean {:.3}  {:>3} of {} reused",
            steps - row,
            timestep(router.made_for().timesteps[row]),
            r.iter().sum::<f64>() / r.len() as f64,
            plan.row(row).iter().filter(|&&reused| reused).count(),
            r.len()
        ))?;
    }
    if let Some(out) = out {
        let picture = plot::plan_heatmap(&router_plot(&file_name(file), &router, Some(&plan)))?;
        write_atomically(out, &picture)?;
        super::print(&format!("{}: its picture", out.display()))?;
    }
    Ok(())
}

/// 999, or 0.05 for flow matching.
pub(crate) fn timestep(t: f64) -> String {
    format!("{}", (t * 1e4).round() / 1e4)
}

fn import(args: &ImportArgs) -> Result<()> {
    let made_for = args.target.conditions(&args.sampling)?;
    let router = published::import(&args.file, &made_for, args.threshold)?;
    let rule = args.policy.unwrap_or_else(|| Rule::of(&router));
    // How configs name the two trainings; `Rule::of` finds it again.
    let training = match rule {
        Rule::Harmonica => "sdt",
        Rule::L2c => "l2c",
    };
    let published_args = &router.training()["published_args"];
    let training = json!({ "training": training, "published_args": published_args });
    let router = router.with_training(training);
    let plan = rule.plan(&router, args.threshold)?;
    router.save(&args.out)?;
    super::print(&format!(
        "{}: {} at threshold {}, {}",
        args.out.display(),
        rule.name(),
        args.threshold,
        figures(&plan)
    ))
}
