//! `cargo xtask test`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::checkout::Checkout;
use crate::libtorch::ensure;

/// Runs the tests of the workspace; `slow` takes those marked `#[ignore]` as well.
pub fn test(checkout: &Checkout, slow: bool) -> Result<ExitCode> {
    ensure(checkout, false, false)?;
    let start = Instant::now();
    let mut cargo = checkout.cargo();
    cargo.args(["test", "--workspace"]);
    if slow {
        cargo.args(["--", "--include-ignored"]);
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
        Ok(ExitCode::SUCCESS)
    } else {
        println!("tests failed after {seconds} s: see above");
        Ok(ExitCode::FAILURE)
    }
}
