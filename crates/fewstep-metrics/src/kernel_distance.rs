//! The kernel distance ("KID", Bińkowski et al. 2018, arXiv 1801.01401): the squared maximum mean discrepancy with the
//! kernel (x·y/dim + 1)³, estimated without bias on random subsets and averaged.

use nalgebra::DMatrix;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;
use serde::Serialize;

use crate::features::{FeatureError, FeatureRows, check_dimensions, choose};

/// How subsets are drawn. The default is torch-fidelity's but for the random numbers: 100 subsets of 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelOptions {
    /// Number of subsets.
    pub subsets: usize,
    /// Samples of each set in a subset, drawn without repetition.
    pub subset_size: usize,
    /// The same seed gives the same subsets on any number of threads.
    pub seed: u64,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self {
            subsets: 100,
            subset_size: 1000,
            seed: 0,
        }
    }
}

/// The kernel distance between two sets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct KernelDistance {
    /// Mean over the subsets; can be slightly below 0, as the estimate has no bias.
    pub mean: f64,
    /// Deviation over the subsets (divisor: their number).
    pub std: f64,
    /// Samples of each set in a subset.
    pub subset_size: usize,
}

/// The kernel distance. Memory: four matrices of subset_size² f64 and the two subsets a thread.
///
/// # Errors
/// Different dimensions, no subsets, subsets of fewer than 2 samples, or fewer samples than a subset takes.
pub fn kernel_distance(
    a: &FeatureRows,
    b: &FeatureRows,
    options: KernelOptions,
) -> Result<KernelDistance, FeatureError> {
    check_dimensions(a.dim(), b.dim())?;
    let size = options.subset_size;
    let fewest = a.count().min(b.count());
    let wrong = |what, found: usize, expected| FeatureError::Option {
        what,
        found: found as u64,
        expected,
    };
    if options.subsets == 0 {
        return Err(wrong("the number of subsets", 0, "at least 1"));
    }
    if size < 2 {
        return Err(wrong("the size of a subset", size, "at least 2"));
    }
    if fewest < size {
        return Err(FeatureError::TooFew {
            what: "a subset",
            needed: size as u64,
            found: fewest as u64,
        });
    }
    // Of whole sets there is one subset only.
    let whole = a.count() == size && b.count() == size;
    let subsets = if whole { 1 } else { options.subsets };
    let distances: Vec<f64> = (0..subsets)
        .into_par_iter()
        .map(|subset| {
            let mut random = ChaCha8Rng::seed_from_u64(options.seed);
            random.set_stream(subset as u64);
            let a = subset_of(a, size, &mut random);
            let b = subset_of(b, size, &mut random);
            discrepancy(&a, &b)
        })
        .collect();
    let count = distances.len() as f64;
    let mean = distances.iter().sum::<f64>() / count;
    let square = distances.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / count;
    Ok(KernelDistance {
        mean,
        std: square.sqrt(),
        subset_size: size,
    })
}

/// [dim × size]
fn subset_of(rows: &FeatureRows, size: usize, random: &mut ChaCha8Rng) -> DMatrix<f64> {
    let chosen = choose(rows.count(), size, random);
    let values = chosen.iter().flat_map(|&sample| rows.row(sample));
    DMatrix::from_iterator(rows.dim(), size, values.map(|&value| f64::from(value)))
}

/// The unbiased estimate for two sets [dim × size]; the kernel of a sample with itself is left out within a set, and all
/// pairs count between the sets.
fn discrepancy(a: &DMatrix<f64>, b: &DMatrix<f64>) -> f64 {
    let (dim, size) = (a.nrows() as f64, a.ncols() as f64);
    let kernel = |x: &DMatrix<f64>, y: &DMatrix<f64>| {
        let mut products = DMatrix::zeros(x.ncols(), y.ncols());
        products.gemm(1.0 / dim, &x.transpose(), y, 0.0);
        products.apply(|value| *value = (*value + 1.0).powi(3));
        products
    };
    let within = |x: &DMatrix<f64>| {
        let kernel = kernel(x, x);
        (kernel.sum() - kernel.trace()) / (size * (size - 1.0))
    };
    within(a) + within(b) - 2.0 * kernel(a, b).sum() / (size * size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize, shift: f32) -> FeatureRows {
        let mut rows = FeatureRows::new(3).unwrap();
        let values: Vec<f32> = (0..count * 3)
            .map(|i| (i as f32 * 12.9).sin() + shift)
            .collect();
        rows.add(&values).unwrap();
        rows
    }

    fn options(subsets: usize, subset_size: usize) -> KernelOptions {
        KernelOptions {
            subsets,
            subset_size,
            seed: 7,
        }
    }

    #[test]
    fn the_estimate_is_the_definition_written_out() {
        let (a, b) = (rows(4, 0.0), rows(4, 0.5));
        let kernel = |x: &[f32], y: &[f32]| {
            let product: f64 = x.iter().zip(y).map(|(x, y)| f64::from(x * y)).sum();
            (product / 3.0 + 1.0).powi(3)
        };
        let mut expected = 0.0;
        for i in 0..4 {
            for j in 0..4 {
                if i != j {
                    expected += kernel(a.row(i), a.row(j)) / 12.0;
                    expected += kernel(b.row(i), b.row(j)) / 12.0;
                }
                expected -= 2.0 * kernel(a.row(i), b.row(j)) / 16.0;
            }
        }
        let found = kernel_distance(&a, &b, options(5, 4)).unwrap();
        assert!((found.mean - expected).abs() < 1e-6, "{found:?} {expected}");
        assert_eq!(found.std, 0.0);
    }

    #[test]
    fn the_seed_decides_the_subsets() {
        let (a, b) = (rows(60, 0.0), rows(50, 0.4));
        let found = kernel_distance(&a, &b, options(20, 30)).unwrap();
        assert_eq!(found, kernel_distance(&a, &b, options(20, 30)).unwrap());
        let other = KernelOptions {
            seed: 8,
            ..options(20, 30)
        };
        assert_ne!(found, kernel_distance(&a, &b, other).unwrap());
        assert!(found.std > 0.0 && found.mean > 0.0, "{found:?}");
    }

    #[test]
    fn impossible_subsets_are_errors() {
        let message = |options| {
            let error = kernel_distance(&rows(5, 0.0), &rows(9, 0.0), options);
            error.unwrap_err().to_string()
        };
        assert_eq!(
            message(options(1, 6)),
            "a subset needs at least 6 samples; found 5"
        );
        assert_eq!(
            message(options(1, 1)),
            "the size of a subset is 1; expected at least 2"
        );
        assert_eq!(
            message(options(0, 2)),
            "the number of subsets is 0; expected at least 1"
        );
    }
}
