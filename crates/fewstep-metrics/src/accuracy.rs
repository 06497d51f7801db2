//! Top-k accuracy and the confusion matrix, from a row-major slice of logits `[samples, classes]`.

use serde::{Deserialize, Serialize};

use crate::MetricsError;

/// Row-major logits, `[samples, classes]`, checked once: whole rows and no NaN.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'a> {
    values: &'a [f32],
    classes: usize,
}

impl<'a> Logits<'a> {
    /// Borrows `values` as rows of `classes` logits.
    ///
    /// # Errors
    /// [`MetricsError::NoClasses`], [`MetricsError::Shape`] when a row is incomplete, [`MetricsError::NotANumber`].
    pub fn new(values: &'a [f32], classes: usize) -> Result<Self, MetricsError> {
        if classes == 0 {
            return Err(MetricsError::NoClasses);
        }
        if !values.len().is_multiple_of(classes) {
            return Err(MetricsError::Shape {
                found: values.len(),
                classes,
            });
        }
        if let Some(at) = values.iter().position(|v| v.is_nan()) {
            return Err(MetricsError::NotANumber {
                sample: at / classes,
                class: at % classes,
            });
        }
        Ok(Self { values, classes })
    }

    /// Number of rows.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.values.len() / self.classes
    }

    /// Number of columns.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The class of each row's largest logit; the lowest class where several are equal, as in torch's argmax on a CPU.
    #[must_use]
    pub fn predictions(&self) -> Vec<usize> {
        self.values
            .chunks_exact(self.classes)
            .map(|row| {
                row.iter().enumerate().fold(
                    0,
                    |best, (class, v)| if *v > row[best] { class } else { best },
                )
            })
            .collect()
    }

    /// How many samples have their label among the `k` largest logits (equal logits rank by class, lowest first).
    ///
    /// # Errors
    /// [`MetricsError::TopK`] unless 1 ≤ k ≤ classes; [`MetricsError::Length`] or [`MetricsError::ClassOutOfRange`] for
    /// the labels.
    pub fn top_k_correct<L: Copy + Into<i64>>(
        &self,
        labels: &[L],
        k: usize,
    ) -> Result<usize, MetricsError> {
        if k == 0 || k > self.classes {
            return Err(MetricsError::TopK {
                k,
                classes: self.classes,
            });
        }
        let labels = self.checked(labels)?;
        let rows = self.values.chunks_exact(self.classes);
        Ok(rows
            .zip(&labels)
            .filter(|&(row, &label)| {
                let ahead = |(class, v): (usize, &f32)| {
                    *v > row[label] || (*v == row[label] && class < label)
                };
                row.iter().enumerate().filter(|&entry| ahead(entry)).count() < k
            })
            .count())
    }

    /// The share of samples, in 0..=1, that [`Self::top_k_correct`] counts.
    ///
    /// # Errors
    /// As [`Self::top_k_correct`], and [`MetricsError::Empty`] without samples.
    pub fn top_k_accuracy<L: Copy + Into<i64>>(
        &self,
        labels: &[L],
        k: usize,
    ) -> Result<f64, MetricsError> {
        let correct = self.top_k_correct(labels, k)?;
        share(correct as u64, self.samples() as u64)
    }

    /// The share of samples, in 0..=1, whose largest logit is the label's.
    ///
    /// # Errors
    /// As [`Self::top_k_accuracy`].
    pub fn accuracy<L: Copy + Into<i64>>(&self, labels: &[L]) -> Result<f64, MetricsError> {
        self.top_k_accuracy(labels, 1)
    }

    fn checked<L: Copy + Into<i64>>(&self, labels: &[L]) -> Result<Vec<usize>, MetricsError> {
        if labels.len() != self.samples() {
            let (found, expected) = (labels.len(), self.samples());
            return Err(MetricsError::Length {
                what: "labels",
                found,
                expected,
                owner: "the rows of logits",
            });
        }
        labels
            .iter()
            .enumerate()
            .map(|(sample, &l)| class("label", sample, l.into(), self.classes))
            .collect()
    }
}

fn class(
    what: &'static str,
    sample: usize,
    found: i64,
    classes: usize,
) -> Result<usize, MetricsError> {
    usize::try_from(found)
        .ok()
        .filter(|c| *c < classes)
        .ok_or(MetricsError::ClassOutOfRange {
            what,
            sample,
            found,
            last: classes.saturating_sub(1),
        })
}

fn share(part: u64, whole: u64) -> Result<f64, MetricsError> {
    if whole == 0 {
        return Err(MetricsError::Empty { what: "samples" });
    }
    Ok(part as f64 / whole as f64)
}

/// How often each label was predicted as each class. Grows batch by batch; its diagonal gives the top-1 accuracy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfusionMatrix {
    /// `counts[label][prediction]`, in samples.
    counts: Vec<Vec<u64>>,
}

impl ConfusionMatrix {
    /// An empty matrix.
    ///
    /// # Errors
    /// [`MetricsError::NoClasses`] for 0 classes.
    pub fn new(classes: usize) -> Result<Self, MetricsError> {
        if classes == 0 {
            return Err(MetricsError::NoClasses);
        }
        Ok(Self {
            counts: vec![vec![0; classes]; classes],
        })
    }

    /// Counts one batch. Nothing is counted when it fails.
    ///
    /// # Errors
    /// [`MetricsError::Length`] when the classes or the labels do not fit, [`MetricsError::ClassOutOfRange`] for a label.
    pub fn update<L: Copy + Into<i64>>(
        &mut self,
        logits: Logits<'_>,
        labels: &[L],
    ) -> Result<(), MetricsError> {
        if logits.classes() != self.counts.len() {
            let (found, expected) = (logits.classes(), self.counts.len());
            return Err(MetricsError::Length {
                what: "classes",
                found,
                expected,
                owner: "the confusion matrix",
            });
        }
        let labels = logits.checked(labels)?;
        for (label, prediction) in labels.into_iter().zip(logits.predictions()) {
            self.counts[label][prediction] += 1;
        }
        Ok(())
    }

    /// Samples of class `label` that were predicted as `prediction`; 0 outside the classes.
    #[must_use]
    pub fn count(&self, label: usize, prediction: usize) -> u64 {
        self.counts
            .get(label)
            .and_then(|row| row.get(prediction))
            .copied()
            .unwrap_or(0)
    }

    /// Samples counted so far.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// Top-1 accuracy, in 0..=1.
    ///
    /// # Errors
    /// [`MetricsError::Empty`] before the first sample.
    pub fn accuracy(&self) -> Result<f64, MetricsError> {
        let correct = self.counts.iter().enumerate().map(|(c, row)| row[c]).sum();
        share(correct, self.samples())
    }

    /// For each class the share of its samples that were recognised, in 0..=1; `None` for a class without samples.
    #[must_use]
    pub fn recall_per_class(&self) -> Vec<Option<f64>> {
        self.counts
            .iter()
            .enumerate()
            .map(|(c, row)| share(row[c], row.iter().sum()).ok())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [f32; 12] = [
        0.1, 0.9, 0.3, 0.2, // 1, then 2, 3, 0
        2.0, 1.0, 2.0, 0.0, // 0 and 2 are equal
        -1.0, -2.0, -3.0, 5.0, // 3, then 0
    ];

    #[test]
    fn top_k_counts_labels_among_the_largest_logits() {
        let logits = Logits::new(&ROWS, 4).unwrap();
        assert_eq!(logits.predictions(), [1, 0, 3]);
        assert_eq!(logits.top_k_correct(&[2_i64, 2, 3], 1).unwrap(), 1);
        assert_eq!(logits.top_k_correct(&[2_i64, 2, 3], 2).unwrap(), 3);
        assert_eq!(logits.accuracy(&[1_u8, 0, 0]).unwrap(), 2.0 / 3.0);
    }

    #[test]
    fn equal_logits_are_never_counted_twice() {
        let logits = Logits::new(&[0.0; 4], 4).unwrap();
        let correct: usize = (0..4)
            .map(|l| logits.top_k_correct(&[i64::from(l)], 1).unwrap())
            .sum();
        assert_eq!(correct, 1);
    }

    #[test]
    fn confusion_matrix_agrees_with_top_1_over_batches() {
        let logits = Logits::new(&ROWS, 4).unwrap();
        let mut matrix = ConfusionMatrix::new(4).unwrap();
        matrix.update(logits, &[1_i64, 2, 3]).unwrap();
        matrix.update(logits, &[1_i64, 0, 3]).unwrap();
        assert_eq!(matrix.samples(), 6);
        assert_eq!(matrix.count(2, 0), 1);
        assert_eq!(matrix.accuracy().unwrap(), 5.0 / 6.0);
        assert_eq!(
            matrix.recall_per_class(),
            [Some(1.0), Some(1.0), Some(0.0), Some(1.0)]
        );
        assert_eq!(
            ConfusionMatrix::new(2).unwrap().recall_per_class(),
            [None, None]
        );
    }

    #[test]
    fn bad_input_is_named() {
        let text = |e: MetricsError| e.to_string();
        assert_eq!(
            text(Logits::new(&ROWS, 5).unwrap_err()),
            "12 logits are no whole number of rows of 5 classes"
        );
        assert_eq!(
            text(Logits::new(&[0.0, 1.0, 0.0, f32::NAN], 2).unwrap_err()),
            "logit 1 of sample 1 is not a number"
        );
        let logits = Logits::new(&ROWS, 4).unwrap();
        assert_eq!(
            text(logits.accuracy(&[0_i64, -1, 0]).unwrap_err()),
            "the label of sample 1 is -1; it must lie between 0 and 3"
        );
        assert_eq!(
            text(logits.accuracy(&[0_i64, 1]).unwrap_err()),
            "2 labels were given where 3 belong to the rows of logits"
        );
        assert_eq!(
            text(logits.top_k_correct(&[0_i64, 1, 2], 5).unwrap_err()),
            "top-5 of 4 classes is not defined; k must lie between 1 and 4"
        );
        let mut matrix = ConfusionMatrix::new(3).unwrap();
        assert!(matrix.update(logits, &[0_i64, 1, 2]).is_err());
        assert_eq!(
            text(matrix.accuracy().unwrap_err()),
            "there are no samples; at least 1 is needed"
        );
    }
}
