//! `cargo xtask test`.

use std::env;
use std::path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use super::bench;
use crate::browser::Browser;
use crate::checkout::Checkout;
use crate::libtorch::ensure;

/// Runs the tests of the workspace; `slow` takes those marked `#[ignore]` as well. One of them needs a Python, which is that of
/// the benchmarks' peers, unless FEWSTEP_XL names what that Python would make.
pub fn test(checkout: &Checkout, slow: bool) -> Result<ExitCode> {
    ensure(checkout, false, false)?;
    let start = Instant::now();
    let mut cargo = checkout.cargo();
    cargo.args(["test", "--workspace"]);
    if slow {
        cargo.args(["--", "--include-ignored"]);
        if env::var_os("FEWSTEP_XL").is_none() {
            let mut python = bench::python(checkout)?;
            // Tests run in the folders of their crates; a bare name is looked up on the PATH.
            if python.components().count() > 1 {
                python = path::absolute(python)?;
            }
            cargo.env("FEWSTEP_BENCH_PYTHON", python);
        }
    }
    let browser = Browser::find(checkout);
    if let Ok(Browser { chromium, axe }) = &browser {
        cargo
            .env("FEWSTEP_CHROMIUM", chromium)
            .env("FEWSTEP_AXE", axe);
    }
    let status = cargo.status().context("cannot start cargo")?;
    let seconds = start.elapsed().as_secs();
    if status.success() {
        let left_out = if slow {
            ""
        } else {
            " (the slow ones run with --slow)"
        };
        println!("all tests passed in {seconds} s{left_out}");
        if let Err(missing) = browser {
            println!("reports were not looked at in a browser: {missing}");
        }
        Ok(ExitCode::SUCCESS)
    } else {
        println!("tests failed after {seconds} s: see above");
        Ok(ExitCode::FAILURE)
    }
}
