//! Mean and standard deviation per channel, measured or published.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Dataset, Result};

/// Mean and standard deviation of every channel on a scale where black is 0 and white is 1.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// One mean a channel.
    pub mean: Vec<f32>,
    /// One standard deviation a channel, above 0.
    pub std: Vec<f32>,
}

/// The constants that published training code for IIR-SNN normalises with (specification, section 1.3).
const PUBLISHED: [(&str, [f32; 3], [f32; 3]); 3] = [
    (
        "cifar10",
        [0.4914, 0.4822, 0.4465],
        [0.2023, 0.1994, 0.2010],
    ),
    (
        "cifar100",
        [0.5071, 0.4867, 0.4408],
        [0.2675, 0.2565, 0.2761],
    ),
    ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
];

impl Statistics {
    /// The constants published for `cifar10`, `cifar100` or `imagenet`; `None` for any other name.
    pub fn published(name: &str) -> Option<Self> {
        let (_, mean, std) = PUBLISHED.iter().find(|(known, ..)| *known == name)?;
        Some(Self {
            mean: mean.to_vec(),
            std: std.to_vec(),
        })
    }

    /// Mean 0 and deviation 1: pixels stay on the scale from 0 to 1.
    pub fn identity(channels: usize) -> Self {
        Self {
            mean: vec![0.0; channels],
            std: vec![1.0; channels],
        }
    }
}

/// Mean and population standard deviation over every pixel of every image. Sums are of whole numbers, so the result
/// does not depend on the number of threads.
///
/// # Errors
/// An image that cannot be read.
pub fn statistics(dataset: &dyn Dataset) -> Result<Statistics> {
    statistics_of(dataset, 1)
}

/// As [`statistics`], over every `stride`-th image.
pub(crate) fn statistics_of(dataset: &dyn Dataset, stride: usize) -> Result<Statistics> {
    let channels = dataset.shape().channels;
    let images = dataset.len().div_ceil(stride);
    let sums = (0..images)
        .into_par_iter()
        .map(|nth| {
            let image = dataset.image(nth * stride)?;
            let sum = |plane: ndarray::ArrayView2<'_, u8>| {
                plane.iter().fold((0u64, 0u64), |(sum, squares), &value| {
                    (
                        sum + u64::from(value),
                        squares + u64::from(value) * u64::from(value),
                    )
                })
            };
            Ok(image.outer_iter().map(sum).collect::<Vec<_>>())
        })
        .try_reduce(
            || vec![(0, 0); channels],
            |a, b| {
                Ok(a.into_iter()
                    .zip(b)
                    .map(|(a, b)| (a.0 + b.0, a.1 + b.1))
                    .collect())
            },
        )?;
    let shape = dataset.shape();
    let pixels = (images * shape.height * shape.width).max(1) as f64;
    let (mut mean, mut std) = (Vec::new(), Vec::new());
    for (sum, squares) in sums {
        let average = sum as f64 / pixels;
        mean.push((average / 255.0) as f32);
        std.push(
            ((squares as f64 / pixels - average * average)
                .max(0.0)
                .sqrt()
                / 255.0) as f32,
        );
    }
    Ok(Statistics { mean, std })
}

#[cfg(test)]
mod tests {
    use ndarray::Array4;

    use super::*;
    use crate::MemoryDataset;

    #[test]
    fn statistics_are_per_channel_on_the_scale_from_zero_to_one() {
        let images = Array4::from_shape_fn(
            (2, 2, 1, 2),
            |(_, c, _, x)| if c == 0 { 51 } else { x as u8 * 255 },
        );
        let set = MemoryDataset::new("s", images, vec![0, 0], vec!["a".into()]).unwrap();
        let found = statistics(&set).unwrap();
        assert_eq!(
            found,
            Statistics {
                mean: vec![0.2, 0.5],
                std: vec![0.0, 0.5]
            }
        );
    }

    #[test]
    fn published_constants_are_found_by_name() {
        assert_eq!(
            Statistics::published("cifar10").unwrap().std,
            [0.2023, 0.1994, 0.2010]
        );
        assert_eq!(Statistics::published("cifar10-jpeg"), None);
    }
}
