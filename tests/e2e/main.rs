//! The `fewstep` binary as a user drives it: what a run writes, what survives a kill, and what is said when something is wrong.

#![allow(clippy::unwrap_used)]

mod book;
mod browser;
mod common;
mod config;
mod data;
mod distributed;
mod evaluate;
mod events;
mod export;
mod folder;
mod front_door;
mod gpu;
mod harmonica;
mod infer;
mod jobs;
mod published;
mod report;
mod resume;
mod run;
mod sampling;
mod training;
