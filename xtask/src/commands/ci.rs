//! `cargo xtask ci`: every check, cheapest first; stops at the first that fails.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::licences;
use crate::browser::Browser;
use crate::checkout::Checkout;
use crate::libtorch::ensure;

/// The checks that are one cargo command: name, arguments, and an environment variable with its value.
type Step = (
    &'static str,
    &'static [&'static str],
    Option<(&'static str, &'static str)>,
);

const BEFORE_LIBTORCH: &[Step] = &[("format", &["fmt", "--all", "--check"], None)];
const AFTER_LIBTORCH: &[Step] = &[
    (
        "clippy",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
        None,
    ),
    (
        "documentation",
        &["doc", "--workspace", "--no-deps"],
        Some(("RUSTDOCFLAGS", "-D warnings")),
    ),
];

/// Runs all checks.
pub fn ci(checkout: &Checkout) -> Result<ExitCode> {
    let start = Instant::now();
    for step in BEFORE_LIBTORCH {
        run(checkout, step)?;
    }
    eprintln!("== licences");
    licences::check(checkout)?;
    ensure(checkout, false, false)?;
    for step in AFTER_LIBTORCH {
        run(checkout, step)?;
    }
    eprintln!("== book");
    super::book::book(checkout, false)?;
    // Where it can't be had, `test` says so.
    if let Err(error) = Browser::install(checkout) {
        eprintln!("{error:#}");
    }
    eprintln!("== tests");
    if super::test::test(checkout, false)? != ExitCode::SUCCESS {
        bail!("the check `tests` failed");
    }
    println!("all checks passed in {} s", start.elapsed().as_secs());
    Ok(ExitCode::SUCCESS)
}

/// Runs one of them.
fn run(checkout: &Checkout, (name, arguments, variable): &Step) -> Result<()> {
    eprintln!("== {name}");
    let mut cargo = checkout.cargo();
    cargo.args(*arguments).envs(*variable);
    if !cargo.status().context("cannot start cargo")?.success() {
        let hint = if *name == "format" {
            "; `cargo fmt` mends it"
        } else {
            ""
        };
        bail!("the check `{name}` failed{hint}");
    }
    Ok(())
}
