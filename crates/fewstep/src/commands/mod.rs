//! One file for each subcommand of the binary.

use std::io::{ErrorKind, Write, stderr, stdout};

pub mod bench;
pub mod data;
pub mod demo;
mod dit;
pub mod export;
mod harmonica;
pub mod import;
pub mod infer;
mod observe;
pub mod plan;
mod ranks;
pub mod router;
pub mod run;
pub mod sample;
mod setting;
mod summary;

/// A line of the result, to standard output. A reader who has seen enough (`| head`) is no fault.
///
/// # Errors
/// It cannot be written for any other reason.
pub(crate) fn print(line: &str) -> anyhow::Result<()> {
    match writeln!(stdout(), "{line}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// A line for a person, to standard error; a run goes on when nobody reads it.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}
