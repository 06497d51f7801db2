//! The `fewstep` binary; `cargo xtask` builds it and hands its words on.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use fewstep::commands::{bench, data, demo, run};

/// Networks that pay for time, paying less of it.
#[derive(Parser)]
#[command(
    name = "fewstep",
    version,
    about,
    after_help = "Example: fewstep run configs/iir/demo.toml --set seed=1"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run an experiment from its config
    Run(run::Options),
    /// Train an IIR-SNN down to one timestep on real digits and show what it won (2 minutes)
    Demo(demo::Options),
    /// Look at data sets, or fetch one
    #[command(subcommand)]
    Data(data::Command),
    /// Time our side of a benchmark; `cargo xtask bench` runs it beside the peers
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    fewstep_torch::device::keep_memory();
    let result = match Cli::parse().command {
        Some(Command::Run(o)) => run::run(&o),
        Some(Command::Demo(o)) => demo::demo(&o),
        Some(Command::Data(c)) => data::data(&c),
        Some(Command::Bench(o)) => bench::bench(&o),
        None => {
            // Nothing was asked: show what can be.
            return if Cli::command().print_help().is_ok() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // The outermost message is the whole sentence; what it wraps is already in it.
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
