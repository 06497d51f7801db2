//! Builds the `fewstep` binary and hands over to it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::checkout::Checkout;
use crate::libtorch::ensure;

/// Runs `fewstep WORD ARGUMENTS…` in the user's folder. On success it does not come back: the binary takes over this
/// process, so its exit code and the signals it gets are its own.
pub fn fewstep(
    checkout: &Checkout,
    word: Option<&str>,
    arguments: &[OsString],
) -> Result<ExitCode> {
    ensure(checkout, false, false)?;
    let mut command = command(checkout)?;
    command.args(word);
    // `cargo xtask run -- --help`: the dashes were for us.
    let ours = arguments
        .first()
        .is_some_and(|first| first == OsStr::new("--"));
    command.args(&arguments[usize::from(ours)..]);
    Err(command.exec()).context("cannot start cargo")
}

/// `cargo run -p fewstep --`, silent where there is nothing much to build.
pub fn command(checkout: &Checkout) -> Result<Command> {
    let mut cargo = checkout.cargo();
    cargo.current_dir(env::current_dir().context("the current folder is gone")?);
    cargo.arg("run");
    if checkout.target().join("debug/fewstep").exists() {
        cargo.arg("--quiet");
    } else {
        eprintln!("building fewstep; the first time this takes a few minutes");
    }
    cargo
        .arg("--manifest-path")
        .arg(checkout.root.join("Cargo.toml"));
    cargo.args(["--package", "fewstep", "--"]);
    Ok(cargo)
}
