//! Who is told what happens.

use crate::{Calibrated, Evaluation, Result};

/// What happens in a run, as it happens.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A phase begins (or goes on after a resume).
    PhaseStarted {
        /// `ann`, `t5`, …
        phase: &'a str,
        /// Its place in the run, from 0.
        number: u64,
        /// Phases in the run.
        phases: usize,
        /// Epochs in all.
        epochs: u32,
        /// Epochs that a checkpoint already holds.
        done: u32,
    },
    /// A batch was trained; told when its loss is read ([`Performance::read_loss_every`](crate::Performance)).
    Batch {
        /// The phase.
        phase: &'a str,
        /// From 1.
        epoch: u32,
        /// From 1.
        batch: usize,
        /// Batches in the epoch.
        batches: usize,
        /// Mean loss of the epoch so far.
        loss: f64,
    },
    /// An epoch ended; its checkpoint is written as soon as the observer returns.
    Epoch {
        /// The phase.
        phase: &'a str,
        /// From 1.
        epoch: u32,
        /// Epochs in all.
        epochs: u32,
        /// Learning rate of its last batch.
        learning_rate: f64,
        /// Mean training loss.
        train_loss: f64,
        /// On the validation split.
        validation: &'a Evaluation,
        /// Whether it is the best so far.
        best: bool,
        /// Training and validation.
        seconds: f64,
    },
    /// Thresholds were calibrated; told again when a run resumes.
    Calibrated {
        /// For which phase.
        phase: &'a str,
        /// Layer by layer.
        thresholds: &'a [Calibrated],
    },
    /// A phase ended; told again when a run resumes.
    PhaseEnded {
        /// The phase.
        phase: &'a str,
        /// On the validation split, with the best weights.
        val_accuracy: f64,
        /// On the test split, with the same weights.
        test_accuracy: f64,
    },
    /// Something a person should know.
    Warning {
        /// The phase.
        phase: &'a str,
        /// One sentence.
        message: String,
    },
}

/// Takes events; an error stops the run.
pub trait Observer {
    /// Something happened.
    ///
    /// # Errors
    /// It could not be recorded.
    fn event(&mut self, event: &Event) -> Result<()>;
}

/// Hears everything and says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: &Event) -> Result<()> {
        Ok(())
    }
}
