//! What determines the images of a job, as `job.toml` says it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fewstep_diffusion::{BetaSchedule, Convention, Guidance, SamplerOptions};
use fewstep_harmonica::{CachePlan, Formula, policy};
use serde::Serialize;

use crate::commands::at;

/// Everything that images depend on; batch size, threads and ranks are not of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Manifest {
    /// Version of fewstep.
    pub fewstep: &'static str,
    pub libtorch: &'static str,
    /// The model's fingerprint.
    pub model: String,
    pub convention: Convention,
    pub precision: &'static str,
    /// cpu or cuda.
    pub device: String,
    /// The policy, and a checksum of what it says.
    pub plan: String,
    /// A checksum of the autoencoder's files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae: Option<String>,
    /// As text: TOML has no numbers above 2⁶³.
    pub seed: String,
    /// How many.
    pub images: u64,
    /// Images in a shard.
    pub chunk: u64,
    /// Image k has the class at k modulo their number.
    pub classes: Vec<i64>,
    /// npz or png.
    pub files: &'static str,
    pub sampler: SamplerOptions,
    pub noise: BetaSchedule,
    pub guidance: Guidance,
}

/// What a plan is called, and what it says, in a few letters.
pub(super) fn plan(plan: Option<&CachePlan>) -> String {
    let Some(plan) = plan else {
        return policy::NONE.into();
    };
    let mut cells = Vec::new();
    for row in 0..plan.steps() {
        for column in 0..plan.modules() {
            // 0 computed, 1 reused, 2 to 4 forecast.
            cells.push(u8::from(plan.reuses(row, column)) + plan.order(row, column));
            let weights = plan.weights(row, column).unwrap_or_default();
            cells.extend(weights.iter().flat_map(|w| w.to_le_bytes()));
        }
    }
    cells.push(u8::from(plan.formula() == Formula::Taylor));
    format!("{} {:08x}", plan.policy(), crc32c::crc32c(&cells))
}

/// A checksum of a file, or of the files of a diffusers folder's autoencoder.
///
/// # Errors
/// One can't be read.
pub(super) fn checksum(path: &Path) -> Result<String> {
    let inner = path.join("vae");
    let folder = if inner.is_dir() { &inner } else { path };
    let unreadable = at(folder, "could not be read");
    let mut files: Vec<PathBuf> = match folder.is_dir() {
        true => std::fs::read_dir(folder)
            .and_then(|all| all.map(|entry| Ok(entry?.path())).collect())
            .map_err(unreadable)?,
        false => vec![path.to_owned()],
    };
    files.retain(|file| file.is_file());
    files.sort();
    let sum = files
        .iter()
        .try_fold(0, |sum, file| crate::commands::checksum(file, sum))?;
    Ok(format!("{sum:08x}"))
}
