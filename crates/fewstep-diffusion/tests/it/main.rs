//! Diffusion against what other programs compute, and against closed forms.

#![allow(clippy::unwrap_used)] // a fixture that is not as expected is a failed test

mod autoencoder;
mod dit;
mod samplers;

use std::path::Path;

use fewstep_torch::Checkpoint;
use tch::{Kind, Tensor};

/// A file of tests/parity.
fn fixture(name: &str) -> Checkpoint {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity");
    Checkpoint::load(&folder.join(format!("{name}.safetensors"))).unwrap()
}

/// The largest difference over the largest element of `expected`.
fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    ((found - &expected).abs().max() / expected.abs().max()).double_value(&[])
}
