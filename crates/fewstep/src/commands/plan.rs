//! `fewstep plan`: cache plans made, shown and compared.

mod budget;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use fewstep_harmonica::{CachePlan, Conditions, Formula, policy};
use fewstep_torch::checkpoint::write_atomically;

use super::harmonica::plan_plot;
use super::router::{Rule, open_for, timestep};
use super::setting::{SamplingArgs, TargetArgs, described, figures};
use crate::plot;

/// Exit code of `diff` where something goes wrong; 1 says that the plans differ.
const TROUBLE: u8 = 2;

/// `fewstep plan`: with flags it finds a plan, and its subcommands make, show and compare them.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Example: fewstep plan --checkpoint digits --steps 20 --target-saving 40% --out plan.toml"
)]
pub struct Plan {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    budget: budget::BudgetArgs,
}

/// Subcommands of `fewstep plan`.
#[derive(Subcommand)]
pub enum Command {
    /// Show a plan: a line for each step with what is computed (C) and reused (.), attention and MLP of each block
    #[command(after_help = "Example: fewstep plan show plan.toml --out heatmap.png")]
    Show {
        /// A plan
        file: PathBuf,
        /// Draw it as PNG
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Compare two plans; exits with 0 if they are equal, 1 if they differ, 2 if that can't be said
    #[command(after_help = "Example: fewstep plan diff plan-a.toml plan-b.toml")]
    Diff {
        /// The first plan
        a: PathBuf,
        /// The second plan
        b: PathBuf,
    },
    /// Make a plan, to look at, edit and sample with
    #[command(
        after_help = "Example: fewstep plan make --checkpoint digits --policy fora --interval 2 --out plan.toml"
    )]
    Make(Box<MakeArgs>),
}

/// Options of `fewstep plan make`.
#[derive(Args)]
pub struct MakeArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Which policy makes it
    #[arg(long, value_name = "NAME")]
    policy: Maker,
    /// With fora, interval and taylorseer: every N-th step is computed
    #[arg(long, value_name = "N")]
    interval: Option<usize>,
    /// With interval: the executed steps from A to B, counted from 0, both included; all others are computed
    #[arg(long, value_name = "A:B", value_parser = window)]
    window: Option<(usize, usize)>,
    /// With interval and taylorseer: the order of the forecast of what is not computed, 0 to 3 [default: 0; taylorseer: 1]
    #[arg(long, value_name = "N")]
    order: Option<u8>,
    /// With random: the share of cells that are reused, 0 to 1
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    utilisation: Option<f64>,
    /// With random, harmonica and l2c: the share of MACs to save, 0 to 1
    #[arg(
        long,
        value_name = "X",
        conflicts_with_all = ["utilisation", "threshold"],
        allow_negative_numbers = true
    )]
    mac_saving: Option<f64>,
    /// With random: the seed [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// With harmonica and l2c: the router
    #[arg(long, value_name = "FILE")]
    router: Option<PathBuf>,
    /// With harmonica and l2c: compute where the router is above X, also another than it was trained for [default: that one]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    threshold: Option<f64>,
    /// The plan
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Policies that make a plan from settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Maker {
    /// Computes everything
    None,
    /// Every N-th step computed, nothing of the others
    Fora,
    /// The same within a window of steps
    Interval,
    /// Every N-th step computed, and a forecast of the others
    Taylorseer,
    /// Cells drawn at random
    Random,
    /// By a router
    Harmonica,
    /// By a router, even rows only
    L2c,
}

/// Runs a subcommand.
///
/// # Errors
/// A flag or a file is at fault; one sentence.
pub fn plan(plan: &Plan) -> Result<ExitCode> {
    let Some(command) = &plan.command else {
        budget::find(&plan.budget)?;
        return Ok(ExitCode::SUCCESS);
    };
    match command {
        Command::Show { file, out } => show(file, out.as_deref())?,
        Command::Diff { a, b } => {
            return Ok(match diff(a, b) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(e) => {
                    super::tell(&format!("error: {e}"));
                    TROUBLE.into()
                }
            });
        }
        Command::Make(args) => {
            let plan = make(args)?;
            plan.save(&args.out)?;
            super::print(&format!(
                "{}: {}, {}",
                args.out.display(),
                plan.policy(),
                figures(&plan)
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(file: &Path, out: Option<&Path>) -> Result<()> {
    let plan = CachePlan::load(file)?;
    let made_for = plan.made_for();
    super::print(&described(made_for))?;
    super::print(&format!("{}; {}", made_by(&plan), figures(&plan)))?;
    let (steps, modules) = (plan.steps(), plan.modules());
    for row in (0..steps).rev() {
        let reused: Vec<usize> = (0..modules).filter(|&c| plan.reuses(row, c)).collect();
        let saved: u64 = reused.iter().map(|&c| made_for.macs(row, c)).sum();
        let saving = saved as f64 / made_for.macs_of_call(row) as f64;
        let letters: Vec<char> = (0..modules).map(|c| plan.letter(row, c)).collect();
        let cells: Vec<String> = letters.chunks(2).map(|b| b.iter().collect()).collect();
        super::print(&format!(
            "step {:>3}  t = {:<7} {}  utilisation {:>5.1} %, MACs saved {:>5.1} %, full forwards {:.2}",
            steps - row,
            timestep(made_for.timesteps[row]),
            cells.join(" "),
            100. * reused.len() as f64 / modules as f64,
            100. * saving,
            1. - saving
        ))?;
    }
    if let Some(out) = out {
        let title = format!("{}: {}", super::setting::file_name(file), plan.policy());
        write_atomically(out, &plot::plan_heatmap(&plan_plot(&title, &plan))?)?;
        super::print(&format!("{}: its picture", out.display()))?;
    }
    Ok(())
}

/// `fora (interval = 2)`.
fn made_by(plan: &CachePlan) -> String {
    let settings: Vec<String> = plan
        .settings()
        .iter()
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    match settings.is_empty() {
        true => plan.policy().into(),
        false => format!("{} ({})", plan.policy(), settings.join(", ")),
    }
}

/// Prints the difference in cells and in what the plans were made for; whether there is none.
fn diff(a: &Path, b: &Path) -> Result<bool> {
    let (first, second) = (CachePlan::load(a)?, CachePlan::load(b)?);
    let cells = first.diff(&second)?;
    super::print(&cells.to_string())?;
    let fits = first.check_fits(second.made_for(), "The first plan");
    if let Err(e) = &fits {
        super::print(&format!("{e}"))?;
    }
    Ok(cells.cells.is_empty() && cells.forecasts == 0 && fits.is_ok())
}

fn make(args: &MakeArgs) -> Result<CachePlan> {
    check_flags(args)?;
    let conditions = args.target.conditions(&args.sampling)?;
    let interval = args.interval.unwrap_or_default();
    let seed = args.seed.unwrap_or_default();
    Ok(match args.policy {
        Maker::None => policy::none(&conditions)?,
        Maker::Fora => policy::fora(&conditions, interval)?,
        Maker::Interval => {
            let (first, last) = args.window.unwrap_or_default();
            let plan = policy::interval(&conditions, first, last, interval)?;
            let order = args.order.unwrap_or_default();
            plan.with_orders(Formula::Polynomial, |_, _| order)?
        }
        Maker::Taylorseer => policy::taylorseer(&conditions, interval, args.order.unwrap_or(1), 1)?,
        Maker::Random => match args.mac_saving {
            Some(saving) => policy::random_at_mac_saving(&conditions, saving, seed)?,
            None => policy::random(&conditions, args.utilisation.unwrap_or_default(), seed)?,
        },
        Maker::Harmonica => routed(args, &conditions, Rule::Harmonica)?,
        Maker::L2c => routed(args, &conditions, Rule::L2c)?,
    })
}

fn routed(args: &MakeArgs, conditions: &Conditions, rule: Rule) -> Result<CachePlan> {
    let path = args
        .router
        .as_deref()
        .context("--router: expected a file")?;
    // Another threshold than the router's own makes another plan, which is what was asked for.
    let (router, own) = open_for(path, conditions, None)?;
    Ok(match args.mac_saving {
        Some(saving) => rule.plan_at_mac_saving(&router, saving)?,
        None => {
            let threshold = args.threshold.unwrap_or(own);
            if !(threshold > 0. && threshold < 1.) {
                bail!("--threshold: expected above 0 and below 1, found {threshold}");
            }
            rule.plan(&router, threshold)?
        }
    })
}

/// Each policy has settings of its own, and no others.
fn check_flags(args: &MakeArgs) -> Result<()> {
    let given = [
        ("interval", args.interval.is_some()),
        ("window", args.window.is_some()),
        ("order", args.order.is_some()),
        ("utilisation", args.utilisation.is_some()),
        ("mac-saving", args.mac_saving.is_some()),
        ("seed", args.seed.is_some()),
        ("router", args.router.is_some()),
        ("threshold", args.threshold.is_some()),
    ];
    let (needed, allowed): (&[&str], &[&str]) = match args.policy {
        Maker::None => (&[], &[]),
        Maker::Fora => (&["interval"], &[]),
        Maker::Interval => (&["interval", "window"], &["order"]),
        Maker::Taylorseer => (&["interval"], &["order"]),
        Maker::Random => (&[], &["utilisation", "mac-saving", "seed"]),
        Maker::Harmonica | Maker::L2c => (&["router"], &["threshold", "mac-saving"]),
    };
    let policy = args.policy.to_possible_value();
    let policy = policy.as_ref().map_or("", |p| p.get_name());
    for (flag, given) in given {
        if needed.contains(&flag) && !given {
            bail!("--{flag}: expected a value with --policy {policy}, found none");
        }
        if given && !needed.contains(&flag) && !allowed.contains(&flag) {
            bail!("--{flag}: expected none with --policy {policy}, found one");
        }
    }
    if args.policy == Maker::Random && args.utilisation.is_none() && args.mac_saving.is_none() {
        bail!("--policy random: expected --utilisation or --mac-saving, found neither");
    }
    Ok(())
}

fn window(text: &str) -> Result<(usize, usize), String> {
    let two = || {
        let (a, b) = text.split_once(':')?;
        Some((a.trim().parse().ok()?, b.trim().parse().ok()?))
    };
    two().ok_or_else(|| "expected two whole numbers such as 4:12".into())
}
