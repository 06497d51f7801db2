//! xtask as its user sees it: the built program, a checkout and a cache of its own, and no network.

mod architecture;
mod drive;
mod sandbox;
mod setup;
