//! `fewstep report RUN…` and `fewstep dashboard FOLDER`: runs to look at.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use fewstep_report::Run;
use fewstep_torch::checkpoint::write_atomically;

use super::{print, tell};
use crate::run::{RunFolder, write_report};

/// Options of `fewstep report`.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "A run writes its own report when it ends; of a run that still goes on, or one of an older version, this makes it.\n\n\
                  Example: fewstep report runs/fashion-seed0 runs/fashion-seed1 --out seeds.html"
)]
pub struct Options {
    /// Run folders; several are compared
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// The file [default: report.html in the run's folder; of several runs: comparison.html here]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Options of `fewstep dashboard`.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "It listens on 127.0.0.1 alone, and shows what is in FOLDER alone. Ctrl-C ends it.\n\n\
                  Example: fewstep dashboard runs --port 7117"
)]
pub struct DashboardOptions {
    /// Where run folders are
    #[arg(default_value = "runs")]
    pub folder: PathBuf,
    /// The port; 0 takes any that is free
    #[arg(long, default_value_t = 7117)]
    pub port: u16,
}

/// Writes a report.
///
/// # Errors
/// A folder holds no run, or the file cannot be written; one sentence.
pub fn report(options: &Options) -> Result<()> {
    let out = match (&options.out, options.runs.as_slice()) {
        (None, [run]) => return print(&write_report(run)?.display().to_string()),
        (None, _) => Path::new("comparison.html"),
        (Some(out), _) => out,
    };
    if out.is_dir() {
        bail!("--out {}: expected a file, found a folder", out.display());
    }
    let runs = options.runs.iter().map(|folder| Run::read(folder));
    let page = match runs.collect::<Result<Vec<_>, _>>()?.as_slice() {
        [run] => run.page(),
        runs => fewstep_report::compare(runs),
    };
    write_atomically(out, page.to_html().as_bytes())?;
    print(&out.display().to_string())
}

/// Shows runs in a browser until the process ends.
///
/// # Errors
/// There is no such folder, or the port is taken; one sentence.
pub fn dashboard(options: &DashboardOptions) -> Result<()> {
    let dashboard = fewstep_report::serve(&options.folder, options.port)?;
    print(&format!(
        "{} shows {}; Ctrl-C ends it",
        dashboard.url(),
        options.folder.display()
    ))?;
    Ok(dashboard.run()?)
}

/// The report of a run that has ended. The run is worth more than its report: what is wrong is told and no more.
pub(crate) fn of_run(folder: &RunFolder) {
    if let Err(e) = folder.write_report() {
        tell(&format!("no report.html: {e}"));
    }
}
