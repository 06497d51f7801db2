//! Diffusion against what other programs compute, and against closed forms.

#![allow(clippy::unwrap_used)] // a fixture that is not as expected is a failed test

mod samplers;
