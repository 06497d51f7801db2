//! A rank's part of the work on a batch.

use std::ops::Range;

use tch::Tensor;

use crate::Result;

use super::Group;

/// The rows of a batch that one rank works on: contiguous, in the order of the ranks, as many as others have but for one, and none where
/// there are fewer rows than ranks. What is random is best drawn for the whole batch on every rank, of which [`rows`](Self::rows) keeps this
/// part: then nothing depends on the number of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Rows of the whole batch.
    pub batch: i64,
    /// Those in front of this part.
    pub before: i64,
    /// Those in this part.
    pub len: i64,
}

impl Group {
    /// This rank's part of a batch of so many rows.
    pub fn part(&self, batch: i64) -> Part {
        let (rank, world) = (self.rank() as i64, self.world() as i64);
        let before = rank * batch / world;
        Part {
            batch,
            before,
            len: (rank + 1) * batch / world - before,
        }
    }
}

impl Part {
    /// The same where only the batch's first `rows` rows count.
    #[must_use]
    pub fn of_first(self, rows: i64) -> Self {
        let batch = rows.min(self.batch);
        let before = self.before.min(batch);
        Self {
            batch,
            before,
            len: (self.before + self.len).min(batch) - before,
        }
    }

    /// This part of what belongs to the whole batch, `[batch, …]`.
    ///
    /// # Errors
    /// The tensor has fewer rows than the batch.
    pub fn rows(&self, whole: &Tensor) -> Result<Tensor> {
        Ok(whole.f_narrow(0, self.before, self.len)?)
    }

    /// The rows' numbers in the batch.
    pub fn numbers(&self) -> Range<u64> {
        let number = |n: i64| u64::try_from(n).unwrap_or(0);
        number(self.before)..number(self.before + self.len)
    }

    /// How much of the batch it is, 0 to 1; 0 of an empty batch.
    pub fn weight(&self) -> f64 {
        self.len as f64 / self.batch.max(1) as f64
    }
}
