//! `--to onnx`.

use std::path::Path;

use anyhow::{Result, bail};
use fewstep_interchange::onnx;
use fewstep_spiking::Mode;

use crate::trained::Trained;

pub(super) fn write(trained: &Trained, path: &Path) -> Result<()> {
    match trained.mode {
        Mode::Analog => Ok(onnx::export_ann(&trained.network, &trained.notes(), path)?),
        Mode::Spiking { timesteps: 1 } => {
            Ok(onnx::export_snn(&trained.network, &trained.notes(), path)?)
        }
        Mode::Spiking { timesteps } => bail!(
            "--to onnx: expected a stage of one timestep (or --ann), found {} with {timesteps}",
            trained.stage
        ),
    }
}
