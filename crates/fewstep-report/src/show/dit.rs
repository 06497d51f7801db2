//! A diffusion transformer in training.

use super::{duration, fixed, large};
use crate::page::{Axis, Block, Chart, Figure, Plot, Section, Series};
use crate::run::Run;

pub(super) fn sections(run: &Run) -> Vec<Section> {
    let mut blocks = Vec::new();
    let mut figures = Vec::new();
    let validation = run.curve("validation_loss");
    let last = validation.last().map(|(step, loss)| (*step, *loss));
    if let Some((step, loss)) = last {
        figures.push(
            Figure::new("validation loss", format!("{loss:.4}"), "")
                .note(format!("after step {step:.0}")),
        );
    }
    let number = |key: &str| run.summary(key).as_f64();
    if let Some(n) = number("steps").or_else(|| {
        run.setting("training.steps")?
            .as_integer()
            .map(|n| n as f64)
    }) {
        figures.push(Figure::new("training steps", format!("{n:.0}"), ""));
    }
    if let Some(n) = number("parameters") {
        figures.push(Figure::new("parameters", large(n), ""));
    }
    if let Some(n) = number("macs") {
        figures.push(Figure::new("MACs of a call", large(n), ""));
    }
    if let Some(s) = number("sample_seconds") {
        figures.push(
            Figure::new("sampling", duration(s), "")
                .note(format!("{} images", fixed(&samples(run), 0))),
        );
    }
    blocks.push(Block::Figures(figures));
    let loss = run.curve("loss");
    if !loss.is_empty() {
        blocks.push(Block::Chart(Chart {
            id: "dit-loss".into(),
            title: "Loss".into(),
            description: "Training: mean over the steps since the last point. Validation: after each checkpoint, with the moving average of the weights.".into(),
            plot: Plot::Lines {
                x: Axis::linear("training step"),
                y: Axis::log("loss"),
                series: vec![Series::new("training", loss), Series::new("validation", validation).dashed()],
            },
        }));
        blocks.push(Block::Chart(Chart {
            id: "dit-learning-rate".into(),
            title: "Learning rate".into(),
            description: "With its warm-up.".into(),
            plot: Plot::Lines {
                x: Axis::linear("training step"),
                y: Axis::linear("learning rate"),
                series: vec![Series::new("learning rate", run.curve("learning_rate"))],
            },
        }));
    }
    vec![Section {
        title: "Training".into(),
        blocks,
    }]
}

fn samples(run: &Run) -> serde_json::Value {
    run.setting("samples")
        .and_then(toml::Value::as_integer)
        .into()
}
