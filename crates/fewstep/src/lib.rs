//! The runner behind the `fewstep` binary: reads a config, runs it, writes `runs/<name>/`.
//!
//! [`config`] turns TOML and `--set` into structs with errors that point at a line, [`run`] is the run folder, [`commands`] holds one
//! file for each subcommand. This crate knows of files and terminals so that the others need not.
//!
//! ```
//! use fewstep::experiment::Experiment;
//!
//! let text = "name = \"mine\"\n[data]\nname = \"digits\"\n[snn]\ntimestep = [2, 1]\n";
//! let error = fewstep::config::from_str::<Experiment>("mine.toml", text, &[]).unwrap_err();
//! assert!(error.to_string().contains("did you mean `snn.timesteps`?"), "{error}");
//! ```

pub mod classifier;
pub mod commands;
pub mod config;
pub mod experiment;
pub mod images;
pub mod plot;
pub mod progress;
pub mod report;
pub mod run;
pub mod sampling;
mod tensorboard;
pub mod trained;
