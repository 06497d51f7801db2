//! Networks that turn images into features, with the random weights of inception.py.

use anyhow::Result;
use fewstep_features::{FeatureNetwork, Inception, ResNet56, Resize};
use ndarray::Array4;
use tch::Tensor;

use super::{Named, Place};

/// Features of four images.
pub(super) fn features(place: &Place) -> Result<Named> {
    let images = Array4::from_shape_fn((4, 32, 32, 3), |(n, y, x, c)| {
        let block = 2 + n;
        ((y / block * 37 + x / block * 101 + c * 53 + n * 29) % 256) as u8
    });
    let networks: [(&str, Box<dyn FeatureNetwork>); 3] = [
        (
            "inception, resized as TensorFlow does",
            Box::new(Inception::random(Resize::TensorFlow, place.device)?),
        ),
        (
            "inception, resized as PyTorch does",
            Box::new(Inception::random(Resize::Torch, place.device)?),
        ),
        ("resnet56", Box::new(ResNet56::random(place.device)?)),
    ];
    let mut all = Named::new();
    for (name, network) in networks {
        let found = network.features(images.view())?;
        let rows = [
            ("pooled", &found.pooled),
            ("spatial", &found.spatial),
            ("logits", &found.logits),
        ];
        for (what, rows) in rows {
            if !rows.is_empty() {
                all.push((format!("{name}: {what}"), Tensor::f_from_slice(rows)?));
            }
        }
    }
    Ok(all)
}
