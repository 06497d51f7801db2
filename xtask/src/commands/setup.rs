//! `cargo xtask setup`.

use std::process::ExitCode;

use anyhow::Result;

use crate::browser::Browser;
use crate::checkout::Checkout;
use crate::libtorch::{Outcome, VERSION, ensure};

/// Installs and links libtorch, on demand what the tests of reports need, and says where it is.
pub fn setup(checkout: &Checkout, cuda: bool, browser: bool, verbose: bool) -> Result<ExitCode> {
    match ensure(checkout, cuda, verbose)? {
        Outcome::Ready(folder) => {
            println!("libtorch {VERSION} is set up already: {}", folder.display())
        }
        Outcome::Linked(folder) => println!(
            "libtorch {VERSION} is set up: .libtorch -> {}",
            folder.display()
        ),
    }
    if browser {
        let Browser { chromium, axe } = Browser::install(checkout)?;
        println!(
            "reports are tested with {} and {}",
            chromium.display(),
            axe.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}
