//! Features of samples, row by row, and what can be wrong with them.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

/// Why there is no figure for these features.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FeatureError {
    /// Features of no dimensions.
    #[error("features must have at least 1 dimension; found 0")]
    NoDimensions,
    /// A slice that is no whole number of rows.
    #[error("{found} feature values are no whole number of rows of {dim} values")]
    Rows {
        /// Length of the slice.
        found: usize,
        /// Values in a row.
        dim: usize,
    },
    /// A feature that is NaN or infinite.
    #[error("feature {feature} of sample {sample} is {found}; expected a finite number")]
    NotFinite {
        /// Index of the sample, counted from the first one that was ever added.
        sample: u64,
        /// Index of the feature in the row.
        feature: usize,
        /// The value.
        found: f32,
    },
    /// Two sets of features that do not belong together.
    #[error(
        "the second set of features has {found} dimensions where the first has {expected}; both must come from the same network"
    )]
    Dimensions {
        /// Dimensions of the first set.
        expected: usize,
        /// Dimensions of the second.
        found: usize,
    },
    /// Too few samples.
    #[error("{what} needs at least {needed} samples; found {found}")]
    TooFew {
        /// What cannot be computed.
        what: &'static str,
        /// Samples that it takes.
        needed: u64,
        /// The samples.
        found: u64,
    },
    /// A mean and a covariance that cannot be those of a Gaussian.
    #[error("{what}; found {found}, expected {expected}")]
    Moments {
        /// What is wrong.
        what: &'static str,
        /// What was found.
        found: String,
        /// What should be.
        expected: String,
    },
    /// An option outside its range.
    #[error("{what} is {found}; expected {expected}")]
    Option {
        /// The option.
        what: &'static str,
        /// Its value.
        found: u64,
        /// The range, in words.
        expected: &'static str,
    },
}

/// Features that are kept, row by row, for figures that compare every sample with every other: 4 bytes a feature, so
/// 50,000 samples of 2048 features are 410 MB.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureRows {
    dim: usize,
    values: Vec<f32>,
}

impl FeatureRows {
    /// Of no samples yet, with `dim` features each.
    ///
    /// # Errors
    /// `dim` is 0.
    pub fn new(dim: usize) -> Result<Self, FeatureError> {
        if dim == 0 {
            return Err(FeatureError::NoDimensions);
        }
        Ok(Self {
            dim,
            values: Vec::new(),
        })
    }

    /// Adds rows of `dim` features, one row after the other.
    ///
    /// # Errors
    /// No whole number of rows, or a feature that is not finite; nothing is added then.
    pub fn add(&mut self, rows: &[f32]) -> Result<(), FeatureError> {
        check_rows(rows, self.dim, self.count() as u64)?;
        self.values.extend_from_slice(rows);
        Ok(())
    }

    /// Features of a sample.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Samples kept.
    pub fn count(&self) -> usize {
        self.values.len() / self.dim
    }

    /// The features of one sample, which must be less than [`count`](Self::count).
    pub(crate) fn row(&self, sample: usize) -> &[f32] {
        &self.values[sample * self.dim..][..self.dim]
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }
}

/// Whether `rows` are whole rows of finite numbers, where `before` samples have come earlier.
pub(crate) fn check_rows(rows: &[f32], dim: usize, before: u64) -> Result<(), FeatureError> {
    if !rows.len().is_multiple_of(dim) {
        return Err(FeatureError::Rows {
            found: rows.len(),
            dim,
        });
    }
    match rows.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(FeatureError::NotFinite {
            sample: before + (at / dim) as u64,
            feature: at % dim,
            found: rows[at],
        }),
        None => Ok(()),
    }
}

pub(crate) fn check_dimensions(expected: usize, found: usize) -> Result<(), FeatureError> {
    if expected == found {
        return Ok(());
    }
    Err(FeatureError::Dimensions { expected, found })
}

/// `size` different numbers below `count` (at least `size`), every choice equally likely but for 2⁻⁶⁴·`count`.
pub(crate) fn choose(count: usize, size: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
    let mut all: Vec<usize> = (0..count).collect();
    for place in 0..size {
        let left = (count - place) as u128;
        let step = (u128::from(random.next_u64()) * left) >> 64;
        all.swap(place, place + step as usize);
    }
    all.truncate(size);
    all
}
