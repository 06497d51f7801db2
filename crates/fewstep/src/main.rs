//! The `fewstep` binary; `cargo xtask` builds it and hands its words on.

#[cfg(test)]
mod book_tests;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use fewstep::commands::infer::{Infer, infer};
use fewstep::commands::{
    bench, check, compare, data, demo, devices, evaluate, export, import, plan, report, router,
    run, sample,
};

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
    /// Train an IIR-SNN down to one timestep on real digits, then learn a router for a small DiT, and show what both won (6 minutes)
    Demo(demo::Options),
    /// Compare cache policies at the same saving and at the same time
    Compare(compare::Options),
    /// Make the report of a run, or one that compares runs
    Report(report::Options),
    /// Show runs in a browser on this machine, live while training goes on
    Dashboard(report::DashboardOptions),
    /// Sample images from a diffusion transformer, with or without a cache
    Sample(Box<sample::Options>),
    /// Find the cache plan for a saving or a latency; make, show and compare plans
    Plan(Box<plan::Plan>),
    /// Show learned routers; import and export published ones
    #[command(subcommand)]
    Router(router::Command),
    /// Say which devices answer, and try each
    Devices(devices::Options),
    /// Look at data sets, or fetch one
    #[command(subcommand)]
    Data(data::Command),
    /// Measure generated images as published papers do: FID, sFID, Inception Score, precision, recall, KID
    Evaluate(Box<evaluate::Options>),
    /// Compare a device with the CPU: networks, samplers, learning and training curves
    Check(check::Options),
    /// Write a trained network for other programs
    Export(export::Options),
    /// Classify images with an exported network, by adding a weight row where a spike is
    Infer(Infer),
    /// Take in a network that another program wrote
    Import(import::Options),
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
        Some(Command::Run(o)) => run::run(&o).map(done),
        Some(Command::Compare(o)) => compare::compare(&o).map(done),
        Some(Command::Demo(o)) => demo::demo(&o).map(done),
        Some(Command::Report(o)) => report::report(&o).map(done),
        Some(Command::Dashboard(o)) => report::dashboard(&o).map(done),
        Some(Command::Sample(o)) => sample::sample(&o).map(done),
        Some(Command::Plan(c)) => plan::plan(&c),
        Some(Command::Router(c)) => router::router(&c).map(done),
        Some(Command::Devices(o)) => devices::devices(&o).map(done),
        Some(Command::Data(c)) => data::data(&c).map(done),
        Some(Command::Evaluate(o)) => evaluate::evaluate(&o).map(done),
        Some(Command::Check(o)) => check::check(&o),
        Some(Command::Export(o)) => export::export(&o).map(done),
        Some(Command::Infer(o)) => infer(&o).map(done),
        Some(Command::Import(o)) => import::import(&o).map(done),
        Some(Command::Bench(o)) => bench::bench(&o).map(done),
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
        Ok(code) => code,
        Err(e) => {
            // The outermost message is the whole sentence; what it wraps is already in it.
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}
