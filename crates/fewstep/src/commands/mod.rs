//! One file for each subcommand of the binary.

pub mod bench;
pub mod data;
pub mod demo;
mod observe;
pub mod run;
mod summary;
