//! Accuracy while T goes down.

use super::PlotError;
use super::axes::{Axis, Frame, Key, legend, percent_label, title};
use super::canvas::{
    Align, BLUE, GREEN, INK, Marker, ORANGE, PURPLE, Rgb, SKY, TextLook, VERMILION, render,
};

/// One trained stage, or one arm.
#[derive(Debug, Clone, PartialEq)]
pub struct StagePoint {
    /// For the legend; only shown for arms ("direct, carried thresholds").
    pub label: String,
    /// Timesteps T.
    pub timesteps: u32,
    /// Share of the validation images that is right, 0 to 1.
    pub val_accuracy: f64,
    /// Share of the test images that is right, 0 to 1.
    pub test_accuracy: f64,
}

/// What [`accuracy_over_timesteps`] shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AccuracyPlot {
    /// The title, e.g. "demo-iir: accuracy while T goes down".
    pub title: String,
    /// The ANN's share of right test images, 0 to 1.
    pub ann_test_accuracy: Option<f64>,
    /// The stages in the order they were trained.
    pub stages: Vec<StagePoint>,
    /// Arms of the ablation, as markers of their own.
    pub direct: Vec<StagePoint>,
}

const ARMS: [(Rgb, Marker); 5] = [
    (VERMILION, Marker::Diamond),
    (GREEN, Marker::Triangle),
    (PURPLE, Marker::Square),
    (SKY, Marker::Cross),
    (INK, Marker::Disc),
];

/// Validation and test accuracy of each stage over its T, the ANN as a line across, the direct arms as markers.
///
/// # Errors
/// Nothing to show, or the picture cannot be made.
pub fn accuracy_over_timesteps(plot: &AccuracyPlot) -> Result<Vec<u8>, PlotError> {
    if plot.stages.is_empty() && plot.direct.is_empty() {
        return Err(PlotError::Empty {
            plot: "accuracy over timesteps",
            expected: "stage",
        });
    }
    let percent = |share: f64| 100.0 * share;
    let mut slots: Vec<u32> = plot
        .stages
        .iter()
        .chain(&plot.direct)
        .map(|point| point.timesteps)
        .collect();
    slots.sort_unstable_by(|a, b| b.cmp(a));
    slots.dedup();
    let slot_share = |at: f64| (at + 0.5) / slots.len() as f64;
    let slot_of = |point: &StagePoint| {
        let slot = slots
            .iter()
            .position(|&timesteps| timesteps == point.timesteps);
        slot.unwrap_or(0) as f64
    };

    let entries = legend_entries(plot);
    render(|canvas| {
        title(canvas, &plot.title)?;
        let top = legend(canvas, &entries)?;
        let frame = Frame {
            left: 96.0,
            right: 876.0,
            top,
            bottom: 530.0,
        };
        let shown = plot
            .stages
            .iter()
            .flat_map(|point| [point.val_accuracy, point.test_accuracy]);
        let shown = shown.chain(plot.direct.iter().map(|point| point.test_accuracy));
        let axis = Axis::around(
            shown.chain(plot.ann_test_accuracy).map(percent),
            7,
            (0.0, 100.0),
        );
        frame.draw_y(canvas, &axis, "accuracy (%)")?;
        let labels: Vec<_> = slots
            .iter()
            .enumerate()
            .map(|(slot, timesteps)| (slot_share(slot as f64), timesteps.to_string()))
            .collect();
        frame.draw_x(canvas, &labels, "timesteps T (training goes to the right)")?;

        let place = |slot: f64, accuracy: f64| {
            (
                frame.x(slot_share(slot)),
                frame.y(axis.share(percent(accuracy))),
            )
        };
        if let Some(accuracy) = plot.ann_test_accuracy.filter(|value| value.is_finite()) {
            let y = place(0.0, accuracy).1;
            canvas.dashes((frame.left, y), (frame.right, y), INK, 2.0, 9.0)?;
        }
        let curve = |accuracy: fn(&StagePoint) -> f64| -> Vec<(f64, f64)> {
            let points = plot
                .stages
                .iter()
                .filter(|point| accuracy(point).is_finite());
            points
                .map(|point| place(slot_of(point), accuracy(point)))
                .collect()
        };
        let (val, test) = (
            curve(|point| point.val_accuracy),
            curve(|point| point.test_accuracy),
        );
        canvas.line(&val, ORANGE, 2.5)?;
        canvas.line(&test, BLUE, 2.5)?;
        for &point in &val {
            canvas.marker(point, Marker::Square, 5.0, ORANGE)?;
        }
        for &point in &test {
            canvas.marker(point, Marker::Disc, 5.5, BLUE)?;
        }
        for (arm, point) in plot
            .direct
            .iter()
            .enumerate()
            .filter(|(_, point)| point.test_accuracy.is_finite())
        {
            let (colour, marker) = ARMS[arm % ARMS.len()];
            // Side by side: arms with nearly the same accuracy would hide each other.
            let beside = 0.34 * (arm + 1) as f64 / plot.direct.len() as f64;
            canvas.marker(
                place(slot_of(point) + beside, point.test_accuracy),
                marker,
                6.5,
                colour,
            )?;
        }
        for point in plot
            .stages
            .iter()
            .filter(|point| point.test_accuracy.is_finite())
        {
            let (x, y) = place(slot_of(point), point.test_accuracy);
            // On the side where the validation curve is not, unless that is outside of the frame.
            let above = (point.val_accuracy > point.test_accuracy && y + 30.0 < frame.bottom)
                || y - 24.0 < frame.top;
            let y = if above { y + 18.0 } else { y - 17.0 };
            let text = format!("{:.1}", percent(point.test_accuracy));
            let look = TextLook::new(13.0).bold().colour(BLUE).align(Align::Centre);
            canvas.text((x, y), &text, look)?;
        }
        Ok(())
    })
}

fn legend_entries(plot: &AccuracyPlot) -> Vec<(Key, String)> {
    let mut entries = Vec::new();
    if let Some(accuracy) = plot.ann_test_accuracy {
        let text = format!("ANN, test ({})", percent_label(accuracy));
        entries.push((Key::Dashes(INK, None), text));
    }
    if !plot.stages.is_empty() {
        entries.push((Key::Line(BLUE, Some(Marker::Disc)), "SNN, test".to_owned()));
        entries.push((
            Key::Line(ORANGE, Some(Marker::Square)),
            "SNN, validation".to_owned(),
        ));
    }
    for (arm, point) in plot.direct.iter().enumerate() {
        let (colour, marker) = ARMS[arm % ARMS.len()];
        let text = format!(
            "{}, test ({})",
            point.label,
            percent_label(point.test_accuracy)
        );
        entries.push((Key::Marker(colour, marker), text));
    }
    entries
}
