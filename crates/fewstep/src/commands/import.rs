//! `fewstep import FILE.nir --output FOLDER`: another program's network as one that `fewstep export` takes.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use fewstep_interchange::{checkpoint, nir};
use fewstep_spiking::Reset;
use tch::Device;

use super::setting::word;
use crate::trained::IMPORTED;

/// Options of `fewstep import`.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Example: fewstep import net.nir --output runs/theirs && fewstep export runs/theirs --to onnx"
)]
pub struct Options {
    /// A NIR graph (.nir)
    pub file: PathBuf,
    /// The folder to make; export takes it in the place of a run
    #[arg(long, value_name = "FOLDER")]
    pub output: PathBuf,
    /// Timesteps to run for [default: what the file says, or 1]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..))]
    pub timesteps: Option<u32>,
    /// soft, hard or none [default: what the file says, or hard as in NIR]
    #[arg(long, value_name = "RESET", value_parser = word::<Reset>)]
    pub reset: Option<Reset>,
    /// Seconds a timestep, by which time constants are understood [default: what the file says, or 1e-4]
    #[arg(long, value_name = "SECONDS")]
    pub dt: Option<f64>,
}

/// Reads the graph, writes the folder and says what is in it.
///
/// # Errors
/// A graph that Fewstep has no network for, or the folder holds a run or an import already.
pub fn import(options: &Options) -> Result<()> {
    let folder = &options.output;
    for taken in ["config.toml", IMPORTED] {
        if folder.join(taken).exists() {
            bail!(
                "--output: expected a new folder, found {} with {taken}",
                folder.display()
            );
        }
    }
    let settings = nir::ImportOptions {
        timesteps: options.timesteps,
        reset: options.reset,
        dt: options.dt,
    };
    let imported = nir::import(&options.file, &settings, Device::Cpu).map_err(|e| match e {
        fewstep_interchange::Error::File { .. } => anyhow::Error::from(e),
        e => anyhow::anyhow!("{}: {e}", options.file.display()),
    })?;
    if imported.network.units().iter().all(|u| u.neuron.is_none()) {
        bail!(
            "{}: expected a spiking network, found one without neurons",
            options.file.display()
        );
    }
    std::fs::create_dir_all(folder)
        .with_context(|| format!("{} can't be made", folder.display()))?;
    let path = folder.join(IMPORTED);
    checkpoint::save(
        &imported.network,
        imported.timesteps,
        &imported.notes,
        &path,
    )?;
    let plan = imported.network.plan();
    super::print(&format!(
        "{}: {} layers, {} parameters, input {:?}, {} classes, T = {}",
        path.display(),
        plan.units.len(),
        plan.parameters(),
        plan.input,
        plan.classes(),
        imported.timesteps
    ))
}
