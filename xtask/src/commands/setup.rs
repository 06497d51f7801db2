//! `cargo xtask setup`.

use std::process::ExitCode;

use anyhow::Result;

use crate::checkout::Checkout;
use crate::libtorch::{Outcome, VERSION, ensure};

/// Installs and links libtorch, and says where it is.
pub fn setup(checkout: &Checkout, cuda: bool, verbose: bool) -> Result<ExitCode> {
    match ensure(checkout, cuda, verbose)? {
        Outcome::Ready(folder) => {
            println!("libtorch {VERSION} is set up already: {}", folder.display())
        }
        Outcome::Linked(folder) => println!(
            "libtorch {VERSION} is set up: .libtorch -> {}",
            folder.display()
        ),
    }
    Ok(ExitCode::SUCCESS)
}
