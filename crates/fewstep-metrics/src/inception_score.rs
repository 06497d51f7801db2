//! The Inception Score (Salimans et al. 2016, arXiv 1606.03498): exp of the mean KL divergence between the classes that a
//! network sees in a sample and those that it sees in all samples of a split; the score is the mean over the splits.

#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::features::{FeatureError, check_rows};

/// How samples are divided, in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Splits {
    /// Splits of so many samples, the last one with what is left: 5000 is ADM's evaluation.
    OfSize(u64),
    /// `splits` splits of `of` samples in all, split i from ⌊i·of/splits⌋: torch-fidelity's and most others' (10 splits).
    Equal {
        /// Number of splits.
        splits: u64,
        /// Samples in all.
        of: u64,
    },
}

/// A score that grows batch by batch. It keeps one row of probabilities, whatever the number of samples.
#[derive(Debug, Clone, PartialEq)]
pub struct InceptionScore {
    splits: Splits,
    seen: u64,
    /// Samples in the open split, Σ p a class, and Σ p ln p.
    open: u64,
    sums: Vec<f64>,
    negative_entropy: f64,
    scores: Vec<f64>,
}

/// The score of a set of samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Score {
    /// Mean over the splits.
    pub mean: f64,
    /// Deviation over the splits (divisor: the number of splits).
    pub std: f64,
    /// Number of splits.
    pub splits: usize,
}

impl InceptionScore {
    /// Of no samples yet, with `classes` logits each.
    ///
    /// # Errors
    /// No classes, no splits, or splits of no samples.
    pub fn new(classes: usize, splits: Splits) -> Result<Self, FeatureError> {
        if classes == 0 {
            return Err(FeatureError::NoDimensions);
        }
        let (what, found) = match splits {
            Splits::OfSize(size) => ("the size of a split", size),
            Splits::Equal { splits: 0, .. } => ("the number of splits", 0),
            Splits::Equal { splits, of } => ("the number of samples in a split", of / splits),
        };
        if found == 0 {
            let expected = "at least 1";
            return Err(FeatureError::Option {
                what,
                found,
                expected,
            });
        }
        Ok(Self {
            splits,
            seen: 0,
            open: 0,
            sums: vec![0.0; classes],
            negative_entropy: 0.0,
            scores: Vec::new(),
        })
    }

    /// Adds rows of logits, one row after the other.
    ///
    /// # Errors
    /// No whole number of rows, a logit that is not finite, or more samples than [`Splits::Equal`] announced; nothing is
    /// added then.
    pub fn add(&mut self, logits: &[f32]) -> Result<(), FeatureError> {
        let classes = self.sums.len();
        check_rows(logits, classes, self.seen)?;
        let total = self.seen + (logits.len() / classes) as u64;
        if let Splits::Equal { of, .. } = self.splits
            && total > of
        {
            return Err(FeatureError::Option {
                what: "the number of samples",
                found: total,
                expected: "no more than were announced for the splits",
            });
        }
        for row in logits.chunks(classes) {
            let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let sum: f64 = row.iter().map(|&x| (f64::from(x) - max).exp()).sum();
            let log_sum = max + sum.ln();
            for (total, &logit) in self.sums.iter_mut().zip(row) {
                let log_p = f64::from(logit) - log_sum;
                let p = log_p.exp();
                *total += p;
                self.negative_entropy += p * log_p;
            }
            self.open += 1;
            self.seen += 1;
            if self.seen == self.end_of_split() {
                self.close();
            }
        }
        Ok(())
    }

    /// Samples up to the end of the open split.
    fn end_of_split(&self) -> u64 {
        let next = self.scores.len() as u64 + 1;
        match self.splits {
            Splits::OfSize(size) => next * size,
            Splits::Equal { splits, of } => {
                (u128::from(next) * u128::from(of) / u128::from(splits)) as u64
            }
        }
    }

    fn close(&mut self) {
        self.scores.push(self.open_score());
        self.open = 0;
        self.sums.fill(0.0);
        self.negative_entropy = 0.0;
    }

    /// exp of (Σ p ln p)/n − Σ q ln q, where q is the mean of p.
    fn open_score(&self) -> f64 {
        let count = self.open as f64;
        let means = self.sums.iter().map(|sum| sum / count);
        let marginal: f64 = means.filter(|&q| q > 0.0).map(|q| q * q.ln()).sum();
        (self.negative_entropy / count - marginal).exp()
    }

    /// Samples seen.
    pub fn count(&self) -> u64 {
        self.seen
    }

    /// The score of what has been seen.
    ///
    /// # Errors
    /// No samples, or fewer than [`Splits::Equal`] announced.
    pub fn score(&self) -> Result<Score, FeatureError> {
        let needed = match self.splits {
            Splits::OfSize(_) => 1,
            Splits::Equal { of, .. } => of,
        };
        if self.seen < needed {
            return Err(FeatureError::TooFew {
                what: "the Inception Score",
                needed,
                found: self.seen,
            });
        }
        let last = (self.open > 0).then(|| self.open_score());
        let scores: Vec<f64> = self.scores.iter().copied().chain(last).collect();
        let count = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / count;
        let square = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / count;
        Ok(Score {
            mean,
            std: square.sqrt(),
            splits: scores.len(),
        })
    }
}
