//! `fewstep demo`: an IIR-SNN on the embedded digits, and what it won.

use anyhow::Result;
use clap::Args;

use crate::commands::run::{Common, follow};
use crate::config::ConfigSource;

/// Options of `fewstep demo`.
#[derive(Args, Debug)]
#[command(after_help = "Example: fewstep demo --set seed=1")]
pub struct Options {
    #[command(flatten)]
    common: Common,
}

const CONFIG: &str = include_str!("../../../../configs/iir/demo.toml");

/// Runs the demo. It starts anew each time unless `--resume` is given.
///
/// # Errors
/// As [`run`](super::run::run).
pub fn demo(options: &Options) -> Result<()> {
    let mut common = options.common.clone();
    common.force = !common.resume;
    let source = ConfigSource::parse("configs/iir/demo.toml", CONFIG, &common.overrides())?;
    follow(&source.deserialize()?, &source, &common)
}
