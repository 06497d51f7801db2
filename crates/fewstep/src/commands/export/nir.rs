//! `--to nir`.

use std::path::Path;

use anyhow::{Result, bail};
use fewstep_interchange::nir;
use fewstep_spiking::Mode;

use crate::trained::Trained;

pub(super) fn write(trained: &Trained, path: &Path) -> Result<()> {
    match trained.mode {
        Mode::Spiking { timesteps } => Ok(nir::export(
            &trained.network,
            timesteps,
            &trained.notes(),
            path,
        )?),
        Mode::Analog => {
            bail!(
                "--to nir: expected a spiking stage, found the artificial network (it goes --to onnx)"
            )
        }
    }
}
