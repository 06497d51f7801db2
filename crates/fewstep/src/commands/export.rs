//! `fewstep export RUN --to …`: a trained network as another program wants it. One file for each target.

pub(crate) mod events;
mod examples;
mod nir;
mod onnx;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use fewstep_events::Precision;
use tch::Device;

use super::setting::word;
use crate::trained::{self, Trained};

/// Options of `fewstep export`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "Example: fewstep export runs/demo-iir --to onnx --stage t1")]
pub struct Options {
    /// The folder of a run, or of an import
    pub run: PathBuf,
    /// The form to write
    #[arg(long, value_name = "FORM")]
    pub to: Target,
    /// The stage whose weights are taken, such as t1 or direct-carried [default: the last one finished]
    #[arg(long, value_name = "NAME")]
    pub stage: Option<String>,
    /// The artificial network that the run began with; the same as --stage ann
    #[arg(long, conflicts_with = "stage")]
    pub ann: bool,
    /// Format of the weights in --to events: float32 or int8 [default: float32]
    #[arg(long, value_name = "FORMAT", value_parser = word::<Precision>)]
    pub precision: Option<Precision>,
    /// Where it is written [default: RUN/STAGE.FORM, of int8 weights RUN/STAGE-int8.FORM]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Also write that many test images as the network takes them, with its logits, to hold another program against:
    /// FILE.examples.safetensors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub examples: Option<u32>,
}

/// Another program's form.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// For the event-driven engine (`fewstep infer`): a spiking network at any T
    Events,
    /// Neuromorphic Intermediate Representation, for snnTorch, Norse, Lava, …: a spiking network at any T
    Nir,
    /// For onnxruntime and others: the artificial network, or the spiking one at T = 1
    Onnx,
}

impl Target {
    fn extension(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Nir => "nir",
            Self::Onnx => "onnx",
        }
    }

    /// Writes the file; returns what there is to say of it.
    fn write(self, trained: &Trained, precision: Precision, path: &Path) -> Result<String> {
        match self {
            Self::Events => return events::write(trained, precision, path),
            Self::Nir => nir::write(trained, path)?,
            Self::Onnx => onnx::write(trained, path)?,
        }
        Ok(format!("T={}", trained.timesteps))
    }
}

/// Writes the network and says where.
///
/// # Errors
/// No such run or stage, a network that the form can't hold, or the file can't be written.
pub fn export(options: &Options) -> Result<()> {
    if options.precision.is_some() && options.to != Target::Events {
        bail!("--precision: expected --to events with it, found another form");
    }
    let precision = options.precision.unwrap_or_default();
    let stage = if options.ann {
        Some("ann")
    } else {
        options.stage.as_deref()
    };
    let (trained, data) = match options.examples {
        Some(_) => {
            let (trained, data) = trained::open_with_data(&options.run, stage, Device::Cpu)?;
            (trained, Some(data))
        }
        None => (trained::open(&options.run, stage, Device::Cpu)?, None),
    };
    let path = options.output.clone().unwrap_or_else(|| {
        let kind = match precision {
            Precision::Float32 => "",
            Precision::Int8 => "-int8",
        };
        let name = format!("{}{kind}.{}", trained.stage, options.to.extension());
        options.run.join(name)
    });
    let what = options.to.write(&trained, precision, &path)?;
    if let (Some(count), Some(data)) = (options.examples, &data) {
        let mut name = path.clone().into_os_string();
        name.push(".examples.safetensors");
        examples::write(&trained, data, count as usize, Path::new(&name))?;
    }
    let accuracy = match trained.test_accuracy {
        Some(a) => {
            let before = match precision {
                Precision::Float32 => "",
                Precision::Int8 => " in float32",
            };
            format!(", {:.2} % on its test images{before}", 100. * a)
        }
        None => String::new(),
    };
    super::print(&format!(
        "{}: {} of {}, {what}{accuracy}, {:.2} MB",
        path.display(),
        trained.stage,
        options.run.display(),
        std::fs::metadata(&path)?.len() as f64 / 1e6
    ))
}
