//! xtask as its user sees it: the built program, a checkout and a cache of its own, and no network.

#![allow(clippy::unwrap_used)] // helpers of tests

mod architecture;
mod book;
mod bundle;
mod drive;
mod launch;
mod sandbox;
mod setup;
