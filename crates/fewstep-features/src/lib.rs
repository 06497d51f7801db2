//! Networks that turn images into the features which published figures of generation quality are made of, and the walk
//! from images to those figures.
//!
//! A [`FeatureNetwork`] is [`Inception`] (FID, sFID, Inception Score, KID, precision and recall) or [`ResNet56`]
//! (`fd-resnet56`). An [`Evaluator`] takes images batch by batch and gives a [`Measured`]; two of those compare. Nothing
//! grows with the number of images, except the features that [`Metric::Kid`], [`Metric::Precision`] and
//! [`Metric::Recall`] must keep. The arithmetic of the figures is in `fewstep-metrics`.
//!
//! ```
//! use fewstep_features::{Evaluator, FeatureNetwork, Features, Metric, Result, Widths};
//! use ndarray::{Array4, ArrayView4};
//!
//! struct FirstPixel; // a network is whatever makes features; Inception::load(…) makes the real ones
//! impl FeatureNetwork for FirstPixel {
//!     fn distance_name(&self) -> &'static str { "fd-first-pixel" }
//!     fn metrics(&self) -> &'static [Metric] { &[Metric::Fid] }
//!     fn widths(&self) -> Widths { Widths { pooled: 1, spatial: 0, logits: 0 } }
//!     fn features(&self, images: ArrayView4<'_, u8>) -> Result<Features> {
//!         let pooled = images.outer_iter().map(|image| f32::from(image[(0, 0, 0)])).collect();
//!         Ok(Features { pooled, ..Features::default() })
//!     }
//! }
//!
//! let measure = |offset: u8| -> Result<_> {
//!     let mut evaluator = Evaluator::new(&FirstPixel, &[Metric::Fid])?;
//!     evaluator.add(Array4::from_shape_fn((9, 8, 8, 3), |(n, ..)| n as u8 + offset).view())?;
//!     evaluator.finish()
//! };
//! let figures = measure(5)?.compare(&measure(0)?, Default::default())?;
//! assert_eq!((figures[0].name, figures[0].value.round()), ("fd-first-pixel", 25.0));
//! # Ok::<(), fewstep_features::Error>(())
//! ```

mod error;
mod evaluator;
mod inception;
mod pixels;
mod resnet56;
#[cfg(test)]
mod tests;
mod weights;

use ndarray::ArrayView4;

pub use error::{Error, Result};
pub use evaluator::{Evaluator, Figure, Measured, Metric, feature_statistics};
pub use inception::{Inception, Resize};
pub use resnet56::ResNet56;

/// What a network makes of a batch: rows of numbers, one row an image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Features {
    /// What distances between sets are taken on, `[N × widths.pooled]`.
    pub pooled: Vec<f32>,
    /// Features that know where in the image something is, `[N × widths.spatial]`; empty if there are none.
    pub spatial: Vec<f32>,
    /// Logits of the Inception Score, `[N × widths.logits]`; empty if there are none.
    pub logits: Vec<f32>,
}

/// Features an image; 0 where a network has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Widths {
    /// Of [`Features::pooled`]; at least 1.
    pub pooled: usize,
    /// Of [`Features::spatial`].
    pub spatial: usize,
    /// Of [`Features::logits`].
    pub logits: usize,
}

/// A network whose features published figures are made of.
pub trait FeatureNetwork {
    /// What the Fréchet distance on its pooled features is called: `fid` for Inception's, and nothing else is.
    fn distance_name(&self) -> &'static str;

    /// The figures that are taken on its features.
    fn metrics(&self) -> &'static [Metric];

    /// Features an image.
    fn widths(&self) -> Widths;

    /// Features of bytes `[N, height, width, 1 or 3]` in 0..=255, grey or RGB. All images are in memory at once: for many,
    /// [`Evaluator::add`] goes through them in portions.
    ///
    /// # Errors
    /// Images of another shape, or libtorch fails (memory).
    fn features(&self, images: ArrayView4<'_, u8>) -> Result<Features>;
}
