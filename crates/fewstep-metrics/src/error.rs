//! What can be wrong with the numbers that are handed in.

/// A metric could not be computed; the message names the place, what was expected and what was found.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MetricsError {
    /// The logits are no whole number of rows.
    #[error("{found} logits are no whole number of rows of {classes} classes")]
    Shape {
        /// Length of the slice.
        found: usize,
        /// Classes in a row.
        classes: usize,
    },
    /// A network needs at least one class.
    #[error("the number of classes is 0; at least 1 is needed")]
    NoClasses,
    /// Top-k with k outside 1..=classes.
    #[error("top-{k} of {classes} classes is not defined; k must lie between 1 and {classes}")]
    TopK {
        /// The k asked for.
        k: usize,
        /// Classes in a row.
        classes: usize,
    },
    /// A list has another length than the one it belongs to.
    #[error("{found} {what} were given where {expected} belong to {owner}")]
    Length {
        /// What was counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
        /// What they belong to.
        owner: &'static str,
    },
    /// A label or prediction outside the classes.
    #[error("the {what} of sample {sample} is {found}; it must lie between 0 and {last}")]
    ClassOutOfRange {
        /// `label` or `prediction`.
        what: &'static str,
        /// Index of the sample in the slice.
        sample: usize,
        /// The value found.
        found: i64,
        /// The greatest allowed value.
        last: usize,
    },
    /// A logit is not a number.
    #[error("logit {class} of sample {sample} is not a number")]
    NotANumber {
        /// Index of the sample in the slice.
        sample: usize,
        /// Index of the class.
        class: usize,
    },
    /// Nothing to summarise.
    #[error("there are no {what}; at least 1 is needed")]
    Empty {
        /// What is missing.
        what: &'static str,
    },
    /// A value outside its range.
    #[error("{what} is {found}; expected {expected}")]
    Value {
        /// What has the value, with its place.
        what: String,
        /// The value.
        found: f64,
        /// The range, in words.
        expected: String,
    },
}
