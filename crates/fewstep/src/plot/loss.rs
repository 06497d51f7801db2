//! Training curves over the whole run, stage after stage.

use super::PlotError;
use super::axes::{Axis, Frame, title};
use super::canvas::{Align, BLUE, Canvas, GREY, INK, Marker, Rgb, TextLook, VERMILION, render};

/// One epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct EpochPoint {
    /// The stage it belongs to, e.g. "ANN" or "T=5". Neighbours with the same name are one stage.
    pub stage: String,
    /// Mean loss over the training batches.
    pub train_loss: f64,
    /// Share of the validation images that is right, 0 to 1.
    pub val_accuracy: f64,
}

/// What [`loss_curves`] shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LossPlot {
    /// The title.
    pub title: String,
    /// All epochs of the run in order.
    pub epochs: Vec<EpochPoint>,
}

/// Epochs of one stage: its name, and its first and one past its last epoch (from 0).
type Span<'a> = (&'a str, usize, usize);

/// Training loss above, validation accuracy below, over the epochs of the whole run; stages are named and separated by
/// lines.
///
/// # Errors
/// No epoch, or the picture cannot be made.
pub fn loss_curves(plot: &LossPlot) -> Result<Vec<u8>, PlotError> {
    if plot.epochs.is_empty() {
        return Err(PlotError::Empty {
            plot: "training curves",
            expected: "epoch",
        });
    }
    let spans = spans(&plot.epochs);
    let losses: Vec<f64> = plot.epochs.iter().map(|epoch| epoch.train_loss).collect();
    let accuracies: Vec<f64> = plot
        .epochs
        .iter()
        .map(|epoch| 100.0 * epoch.val_accuracy)
        .collect();
    render(|canvas| {
        title(canvas, &plot.title)?;
        let upper = Frame {
            left: 96.0,
            right: 876.0,
            top: 84.0,
            bottom: 292.0,
        };
        let lower = Frame {
            top: 322.0,
            bottom: 530.0,
            ..upper.clone()
        };
        let loss_axis = Axis::around(losses.iter().copied().chain([0.0]), 5, (0.0, f64::INFINITY));
        let accuracy_axis = Axis::around(accuracies.iter().copied(), 5, (0.0, 100.0));
        upper.draw_y(canvas, &loss_axis, "training loss")?;
        lower.draw_y(canvas, &accuracy_axis, "val. accuracy (%)")?;
        let epochs = plot.epochs.len();
        for frame in [&upper, &lower] {
            for &(_, first, _) in spans.iter().skip(1) {
                let x = frame.x(first as f64 / epochs as f64);
                canvas.dashes((x, frame.top), (x, frame.bottom), GREY, 1.5, 4.0)?;
            }
        }
        name_stages(canvas, &upper, &spans, epochs)?;
        upper.draw_x(canvas, &[], "")?;
        lower.draw_x(canvas, &epoch_labels(epochs), "epoch")?;
        draw_curve(canvas, &upper, &loss_axis, &losses, &spans, VERMILION)?;
        draw_curve(canvas, &lower, &accuracy_axis, &accuracies, &spans, BLUE)
    })
}

fn spans(epochs: &[EpochPoint]) -> Vec<Span<'_>> {
    let mut spans: Vec<Span<'_>> = Vec::new();
    for (index, epoch) in epochs.iter().enumerate() {
        match spans.last_mut() {
            Some((name, _, end)) if *name == epoch.stage => *end = index + 1,
            _ => spans.push((&epoch.stage, index, index + 1)),
        }
    }
    spans
}

/// The middle of epoch `index` (from 0) as a share of the width.
fn middle(index: usize, epochs: usize) -> f64 {
    (index as f64 + 0.5) / epochs as f64
}

/// At most about twelve epoch numbers, round ones.
fn epoch_labels(epochs: usize) -> Vec<(f64, String)> {
    let every = [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500]
        .into_iter()
        .find(|every| epochs / every <= 12)
        .unwrap_or(epochs.div_ceil(12));
    (1..=epochs)
        .filter(|epoch| epoch % every == 0)
        .map(|epoch| (middle(epoch - 1, epochs), epoch.to_string()))
        .collect()
}

/// Above the upper frame. A name that is wider than its stage goes one row up, where there is room beside its like.
fn name_stages(
    canvas: &Canvas<'_>,
    frame: &Frame,
    spans: &[Span<'_>],
    epochs: usize,
) -> Result<(), PlotError> {
    let look = TextLook::new(12.0).bold().colour(INK).align(Align::Centre);
    let mut raised_to = 0.0;
    for &(name, first, end) in spans {
        let room = (end - first) as f64 / epochs as f64 * frame.width() - 6.0;
        let half = canvas.width(name, look) / 2.0;
        let middle = frame.x((first + end) as f64 / 2.0 / epochs as f64);
        if 2.0 * half <= room {
            canvas.text((middle, frame.top - 13.0), name, look)?;
            continue;
        }
        let x = middle.clamp(
            frame.left + half,
            (frame.right - half).max(frame.left + half),
        );
        if x - half >= raised_to {
            canvas.text((x, frame.top - 29.0), name, look)?;
            raised_to = x + half + 8.0;
        }
    }
    Ok(())
}

/// One curve a stage: the loss jumps where a new T begins, and a line across would say otherwise.
fn draw_curve(
    canvas: &Canvas<'_>,
    frame: &Frame,
    axis: &Axis,
    values: &[f64],
    spans: &[Span<'_>],
    colour: Rgb,
) -> Result<(), PlotError> {
    let place = |index: usize| {
        (
            frame.x(middle(index, values.len())),
            frame.y(axis.share(values[index])),
        )
    };
    for &(_, first, end) in spans {
        let indices: Vec<usize> = (first..end).collect();
        for piece in indices.split(|&index| !values[index].is_finite()) {
            let points: Vec<_> = piece.iter().map(|&index| place(index)).collect();
            canvas.line(&points, colour, 2.5)?;
            // A lone point has no line; many points need no discs.
            if values.len() <= 60 || points.len() == 1 {
                for &point in &points {
                    canvas.marker(point, Marker::Disc, 3.5, colour)?;
                }
            }
        }
    }
    Ok(())
}
