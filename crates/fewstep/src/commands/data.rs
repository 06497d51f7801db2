//! `fewstep data`: what lies at a path, which files a data set has, and fetching data sets from their official addresses.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::progress::{Progress, ProgressMode};

/// Subcommands of `fewstep data`.
#[derive(Subcommand)]
pub enum Command {
    /// Recognise a data set and print counts, shapes, class balance, mean and deviation
    #[command(after_help = "Example: fewstep data info data/cifar-10-batches-bin")]
    Info {
        /// A folder or file
        path: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List the files of a data set, found as a config's is
    #[command(after_help = "Example: fewstep data files fashion-mnist")]
    Files {
        /// As in a config, or the weights inception or resnet56
        name: String,
        /// As JSON: the folder, and paths below it
        #[arg(long)]
        json: bool,
    },
    /// Download a data set, or weights that `evaluate` takes, from the official address, with resume and checksum
    #[command(after_help = "Example: fewstep data fetch fashion-mnist")]
    Fetch {
        /// cifar10, cifar100, mnist, fashion-mnist, or the weights inception or resnet56
        name: String,
        /// The folder that gets a folder of that name
        #[arg(long, default_value = "data")]
        to: PathBuf,
        /// Another address than the official one (a mirror)
        #[arg(long)]
        from: Option<String>,
        /// No progress
        #[arg(long)]
        quiet: bool,
    },
}

/// Runs a subcommand.
///
/// # Errors
/// The path is nothing known or damaged; a data set is not there; a download fails.
pub fn data(command: &Command) -> Result<()> {
    match command {
        Command::Info { path, json } => {
            let info = fewstep_datasets::info(path)?;
            if *json {
                super::print(&serde_json::to_string_pretty(&info)?)?;
            } else {
                super::print(&info.to_string())?;
            }
        }
        Command::Files { name, json } => {
            let files = fewstep_datasets::files(name)?;
            if *json {
                super::print(&serde_json::to_string(&files)?)?;
            } else {
                for file in &files.files {
                    super::print(&files.folder.join(file).display().to_string())?;
                }
            }
        }
        Command::Fetch {
            name,
            to,
            from,
            quiet,
        } => fetch(name, to, from.as_deref(), ProgressMode::detect(*quiet))?,
    }
    Ok(())
}

fn fetch(name: &str, to: &std::path::Path, from: Option<&str>, mode: ProgressMode) -> Result<()> {
    let mut shown: Option<(String, Progress)> = None;
    let mut progress = |p: fewstep_datasets::FetchProgress| {
        if shown.as_ref().is_none_or(|(file, _)| *file != p.file)
            && let Some((_, finished)) = shown.replace((
                p.file.clone(),
                Progress::new(mode, p.file.clone(), p.total_bytes.unwrap_or(0)),
            ))
        {
            finished.finish("done");
        }
        if let Some((_, bar)) = &mut shown {
            bar.set(p.received_bytes, "bytes");
        }
    };
    let folder = fewstep_datasets::fetch(name, to, &mut progress, from)?;
    super::print(&format!("{name} is in {}", folder.display()))
}
