//! `fewstep infer` as a small binary of its own: no libtorch, no Python.

use std::process::ExitCode;

use clap::Parser;
use fewstep_events::cli::{Infer, exit_code, infer};

/// Classify images with a spiking network of one timestep, by adding a weight row where a spike is
#[derive(Parser)]
#[command(name = "fewstep-infer", version)]
struct Cli {
    #[command(flatten)]
    options: Infer,
}

fn main() -> ExitCode {
    exit_code(infer(&Cli::parse().options))
}
