//! `cargo xtask book`: the documentation in `docs/` as HTML. mdBook is a library of the package fewstep-book, so nothing has to be
//! installed, and xtask itself does not wait for it to compile.

use std::env;
use std::path::{Path, absolute};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::checkout::Checkout;

/// Builds the book into `target/book`, and shows it if asked to.
pub fn book(checkout: &Checkout, open: bool) -> Result<ExitCode> {
    let target = absolute(checkout.target()).context("the current folder is gone")?;
    let mut cargo = checkout.cargo();
    cargo.arg("run");
    if target.join("debug/fewstep-book").exists() {
        cargo.arg("--quiet");
    } else {
        eprintln!("building mdBook; the first time this takes a minute or two");
    }
    let out = target.join("book");
    cargo
        .args(["--package", "fewstep-book", "--"])
        .arg(checkout.root.join("docs"))
        .arg(&out);
    if !cargo.status().context("cannot start cargo")?.success() {
        bail!("the book does not build: see above");
    }
    if open {
        show(&out.join("index.html"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Hands a page to the user's browser.
fn show(page: &Path) -> Result<()> {
    let program = env::var_os("BROWSER").unwrap_or_else(|| "xdg-open".into());
    let opened = Command::new(&program)
        .arg(page)
        .stdin(Stdio::null())
        .status();
    if opened.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    bail!(
        "`{}` did not open {}; open it by hand, or set BROWSER to a browser",
        program.display(),
        page.display()
    )
}
