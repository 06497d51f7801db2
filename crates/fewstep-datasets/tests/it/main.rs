//! The readers as a user meets them: whole folders on disk, sound and damaged.

#![allow(clippy::unwrap_used)]

mod cifar;
mod files;
mod folder;
mod idx;
mod real;
