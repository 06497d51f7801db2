//! Turns what happens in a run into log lines, curves and a progress bar.

use std::collections::HashSet;

use fewstep_iir::{Error, Event, Observer, Recipe, Result};
use serde_json::{Value, json};

use crate::progress::{Progress, ProgressMode};
use crate::run::{RunError, RunFolder};

/// Writes to the run folder and shows progress.
pub(crate) struct Recorder {
    folder: RunFolder,
    mode: ProgressMode,
    bar: Option<Progress>,
    /// Epochs of the phases before each phase: a mark's number counts epochs over the whole run.
    before: Vec<(String, u64)>,
    /// What a resumed run tells again and has been logged already.
    told: HashSet<(String, String)>,
}

impl Recorder {
    pub(crate) fn new(
        folder: RunFolder,
        mode: ProgressMode,
        recipe: &Recipe,
    ) -> anyhow::Result<Self> {
        let mut sum = 0;
        let mut before = Vec::new();
        for phase in recipe.phases()? {
            before.push((phase.name.clone(), sum));
            sum += u64::from(phase.run_epochs);
        }
        let text = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
        let told = folder
            .events()?
            .iter()
            .map(|e| {
                let kind = match text(e, "kind") {
                    kind if kind == "warning" => warning_of(&text(e, "message")),
                    kind => kind,
                };
                (kind, text(e, "phase"))
            })
            .collect();
        Ok(Self {
            folder,
            mode,
            bar: None,
            before,
            told,
        })
    }

    /// A line for a person.
    pub(crate) fn say(&self, line: &str) {
        if !matches!(self.mode, ProgressMode::Silent) {
            super::tell(line);
        }
    }

    pub(crate) fn into_folder(self) -> RunFolder {
        self.folder
    }

    fn once(
        &mut self,
        kind: &str,
        phase: &str,
        fields: Value,
    ) -> std::result::Result<bool, RunError> {
        if !self.told.insert((kind.to_owned(), phase.to_owned())) {
            return Ok(false);
        }
        self.folder.event(kind, fields)?;
        Ok(true)
    }

    fn record(&mut self, event: &Event) -> std::result::Result<(), RunError> {
        match *event {
            Event::PhaseStarted {
                phase,
                number,
                phases,
                epochs,
                done,
            } => {
                let label = format!("{:>2}/{phases} {phase}", number + 1);
                if done < epochs {
                    self.bar = Some(Progress::new(
                        self.mode,
                        label,
                        u64::from(epochs) * PER_EPOCH,
                    ));
                }
                self.once(
                    "phase_started",
                    phase,
                    json!({"phase": phase, "epochs": epochs}),
                )?;
            }
            Event::Batch {
                epoch,
                batch,
                batches,
                loss,
                ..
            } => {
                if let Some(bar) = &mut self.bar {
                    let within = PER_EPOCH * batch as u64 / batches.max(1) as u64;
                    bar.set(
                        u64::from(epoch - 1) * PER_EPOCH + within,
                        format_args!("epoch {epoch} loss {loss:.3}"),
                    );
                }
            }
            Event::Epoch {
                phase,
                epoch,
                learning_rate,
                train_loss,
                validation,
                best,
                seconds,
                ..
            } => {
                let before = self
                    .before
                    .iter()
                    .find(|(p, _)| p == phase)
                    .map_or(0, |(_, n)| *n);
                let number = before + u64::from(epoch);
                let fields = json!({
                    "phase": phase, "epoch": epoch, "learning_rate": learning_rate, "train_loss": train_loss,
                    "val_loss": validation.loss, "val_accuracy": validation.accuracy, "best": best, "seconds": seconds,
                });
                self.folder.event("epoch", fields)?;
                let curves = [
                    ("train_loss", train_loss),
                    ("val_loss", validation.loss),
                    ("val_accuracy", validation.accuracy),
                    ("learning_rate", learning_rate),
                ];
                for (name, value) in curves {
                    self.folder
                        .scalar(&format!("{phase}/{name}"), u64::from(epoch), value)?;
                }
                self.folder.mark(number)?;
                if let Some(bar) = &mut self.bar {
                    let message = format!(
                        "epoch {epoch} loss {train_loss:.3} validation {:.2} %",
                        100. * validation.accuracy
                    );
                    bar.set(u64::from(epoch) * PER_EPOCH, message);
                }
            }
            Event::Calibrated { phase, thresholds } => {
                self.once(
                    "calibrated",
                    phase,
                    json!({"phase": phase, "thresholds": thresholds}),
                )?;
            }
            Event::PhaseEnded {
                phase,
                val_accuracy,
                test_accuracy,
            } => {
                let fields = json!({"phase": phase, "val_accuracy": val_accuracy, "test_accuracy": test_accuracy});
                self.once("phase_ended", phase, fields)?;
                let line = format!(
                    "validation {:.2} %, test {:.2} %",
                    100. * val_accuracy,
                    100. * test_accuracy
                );
                match self.bar.take() {
                    Some(bar) => bar.finish(line),
                    None => self.say(&format!("{phase}: done before; {line}")),
                }
            }
            Event::Warning { phase, ref message } => {
                let new = self.told.insert((warning_of(message), phase.to_owned()));
                if new {
                    self.folder
                        .event("warning", json!({"phase": phase, "message": message}))?;
                    self.say(&format!("warning: stage {phase}: {message}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// A phase can warn of several things, each of them once.
fn warning_of(message: &str) -> String {
    format!("warning {message}")
}

/// Progress units in an epoch; batches differ between phases.
const PER_EPOCH: u64 = 1000;

impl Observer for Recorder {
    fn event(&mut self, event: &Event) -> Result<()> {
        self.record(event).map_err(|e| Error::Observer(Box::new(e)))
    }
}
