//! `cargo xtask`: the front door of the workspace.
//!
//! It finds or installs libtorch, builds the `fewstep` binary and drives it, and runs every check that CI runs. It never
//! depends on tch, so it builds in under a minute on a machine that has nothing yet.
//!
//! ```sh
//! cargo xtask doctor       # what is there, what is missing, how to mend it
//! cargo xtask demo         # both methods on real digits
//! cargo xtask run configs/iir/fashion-mnist-quick.toml --resume
//! cargo xtask launch --nproc 2 sample --checkpoint digits --n 64 --out grid.png
//! cargo xtask book --open  # the documentation
//! cargo xtask ci           # what must pass before a change goes in
//! ```

#[cfg(test)]
mod book_tests;
mod browser;
mod checkout;
mod commands;
mod libtorch;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use checkout::Checkout;

#[derive(Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    about = "Sets up libtorch, builds and drives fewstep, runs the checks.",
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Any other word goes to the fewstep binary.\n\nExample: cargo xtask demo"
)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install libtorch once per user and link it at .libtorch
    #[command(after_help = "Example: cargo xtask setup --cuda")]
    Setup {
        /// Take the CUDA parts as well (2.5 GB to download instead of 0.5 GB)
        #[arg(long)]
        cuda: bool,
        /// Get a Chromium and axe-core as well, with which reports are tested
        #[arg(long)]
        browser: bool,
        /// Show all that pip says
        #[arg(long)]
        verbose: bool,
    },
    /// Say what is installed, what is missing, and how to mend it
    #[command(after_help = "Example: cargo xtask doctor")]
    Doctor,
    /// Run an experiment; its results go to runs/NAME
    #[command(
        override_usage = "cargo xtask run <CONFIG> [--set <KEY=VALUE>]... [--resume] [OPTION]...",
        after_help = "The options are those of `fewstep run`; `cargo xtask run -- --help` lists them.\n\n\
                      Example: cargo xtask run configs/iir/fashion-mnist-quick.toml --set seed=1 --resume"
    )]
    Run {
        /// CONFIG and the options of `fewstep run`
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            hide = true
        )]
        arguments: Vec<OsString>,
    },
    /// Both methods on real digits: a spiking network to one timestep, and a router for a small DiT (six minutes)
    #[command(
        override_usage = "cargo xtask demo [OPTION]...",
        after_help = "Options go to `fewstep demo`.\n\nExample: cargo xtask demo"
    )]
    Demo {
        /// Options of `fewstep demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        arguments: Vec<OsString>,
    },
    /// Run a command of fewstep as several ranks on this machine
    #[command(
        override_usage = "cargo xtask launch --nproc <N> [--port <PORT>] <COMMAND> [ARGUMENT]...",
        after_help = "COMMAND and what follows it go to fewstep: run, sample, ...\n\n\
                      Example: cargo xtask launch --nproc 2 run configs/iir/demo.toml"
    )]
    Launch(commands::launch::Options),
    /// Look at data sets, or fetch one
    #[command(
        override_usage = "cargo xtask data <info PATH | fetch NAME> [OPTION]...",
        after_help = "Arguments go to `fewstep data`; `cargo xtask data -- --help` lists them.\n\n\
                      Example: cargo xtask data fetch fashion-mnist"
    )]
    Data {
        /// Arguments of `fewstep data`
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            hide = true
        )]
        arguments: Vec<OsString>,
    },
    /// Make a small folder that runs fewstep where Python's torch is, without Rust and without a network
    #[command(
        after_help = "A file below the current folder has the same path in the bundle, so that commands stay the same.\n\n\
                      Example: cargo xtask bundle --data cifar10-jpeg --checkpoint runs/cifar10-jpeg-dit/dit.safetensors"
    )]
    Bundle(commands::bundle::Options),
    /// Run every test of the workspace
    #[command(after_help = "Example: cargo xtask test --slow")]
    Test {
        /// Run the tests that take minutes, too
        #[arg(long)]
        slow: bool,
    },
    /// Build the book from docs/ into target/book
    #[command(after_help = "Example: cargo xtask book --open")]
    Book {
        /// Show it in a browser
        #[arg(long)]
        open: bool,
    },
    /// Run every check that CI runs: format, licences, clippy, documentation, the book, tests
    #[command(
        after_help = "As root on Debian it installs Chromium, in which reports are tested.\n\nExample: cargo xtask ci"
    )]
    Ci,
    /// Measure ourselves against Python peers; writes target/bench/NAME.json
    #[command(after_help = "Example: cargo xtask bench spiking --threads 2")]
    Bench(commands::bench::Options),
    /// Whatever fewstep knows
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = Checkout::find().and_then(|checkout| match cli.command {
        Task::Setup {
            cuda,
            browser,
            verbose,
        } => commands::setup::setup(&checkout, cuda, browser, verbose),
        Task::Doctor => commands::doctor::doctor(&checkout),
        Task::Run { arguments } => commands::drive::fewstep(&checkout, Some("run"), &arguments),
        Task::Demo { arguments } => commands::drive::fewstep(&checkout, Some("demo"), &arguments),
        Task::Launch(options) => commands::launch::launch(&checkout, &options),
        Task::Data { arguments } => commands::drive::fewstep(&checkout, Some("data"), &arguments),
        Task::Other(arguments) => commands::drive::fewstep(&checkout, None, &arguments),
        Task::Test { slow } => commands::test::test(&checkout, slow),
        Task::Book { open } => commands::book::book(&checkout, open),
        Task::Ci => commands::ci::ci(&checkout),
        Task::Bundle(options) => commands::bundle::bundle(&checkout, &options),
        Task::Bench(options) => commands::bench::bench(&checkout, &options),
    });
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
