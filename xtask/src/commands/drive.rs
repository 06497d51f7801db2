//! Builds the `fewstep` binary, hands over to it, or says where it is.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure as must};
use serde_json::Value;

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
    let mut cargo = cargo(checkout, "run")?;
    cargo.arg("--");
    Ok(cargo)
}

/// What cargo has built.
pub struct Built {
    /// The binary.
    pub program: PathBuf,
    /// The library for several ranks on GPUs and for CUDA graphs, where their headers are.
    pub cuda: Option<PathBuf>,
}

/// Builds the binary and says where cargo put it, for those who start it more than once.
pub fn program(checkout: &Checkout) -> Result<PathBuf> {
    Ok(build(checkout)?.program)
}

/// Builds the binary and says where cargo put it and what belongs to it.
pub fn build(checkout: &Checkout) -> Result<Built> {
    ensure(checkout, false, false)?;
    let output = cargo(checkout, "build")?
        .args(["--bin", "fewstep"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    must!(
        output.status.success(),
        "fewstep does not build; cargo has said why"
    );
    let messages: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let program = messages
        .iter()
        .filter(|message| message["target"]["name"] == "fewstep")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo has built fewstep and did not say where it is")?;
    // Set by the build script of fewstep-torch.
    let cuda = messages
        .iter()
        .filter_map(|message| message["env"].as_array())
        .flatten()
        .find(|pair| pair[0] == "FEWSTEP_CUDA")
        .and_then(|pair| pair[1].as_str().map(PathBuf::from));
    Ok(Built { program, cuda })
}

/// `cargo WORD --package fewstep` from the user's folder.
fn cargo(checkout: &Checkout, word: &str) -> Result<Command> {
    let mut cargo = checkout.cargo();
    // Goes into what a run says of itself.
    cargo.envs(commit(checkout).map(|commit| ("FEWSTEP_COMMIT", commit)));
    cargo.current_dir(env::current_dir().context("the current folder is gone")?);
    cargo.arg(word);
    if checkout.target().join("debug/fewstep").exists() {
        cargo.arg("--quiet");
    } else {
        eprintln!("building fewstep; the first time this takes a few minutes");
    }
    cargo
        .arg("--manifest-path")
        .arg(checkout.root.join("Cargo.toml"));
    cargo.args(["--package", "fewstep"]);
    Ok(cargo)
}

/// The checkout's commit, `-dirty` where files differ from it; nothing where git does not say.
fn commit(checkout: &Checkout) -> Option<String> {
    let mut git = Command::new("git");
    git.arg("-C").arg(&checkout.root);
    git.args([
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]);
    let output = git.stderr(Stdio::null()).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| said.trim().to_owned())
}
