//! What a router learns, trajectory after trajectory.

use super::PlotError;
use super::axes::{Axis, Frame, Key, legend, title};
use super::canvas::{BLUE, GREEN, Marker, Rgb, VERMILION, render};
use super::log_axis::LogAxis;

/// The state after a trajectory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningPoint {
    /// Trajectories so far.
    pub trajectory: u64,
    /// Mean loss of the trajectory's steps.
    pub loss: f64,
    /// Share of all (step, sub-module) pairs that the router would reuse, 0 to 1.
    pub utilisation: f64,
    /// Share of the multiply-accumulates that it would save, 0 to 1.
    pub mac_saving: f64,
}

/// What [`learning`] shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LearningPlot {
    /// The title.
    pub title: String,
    /// In the order of the trajectories.
    pub points: Vec<LearningPoint>,
}

const PALE_LOSS: Rgb = plotters::style::RGBColor(243, 200, 170);

/// The loss above (logarithmic; with its running mean where there are many points), utilisation and MAC saving below.
///
/// # Errors
/// No point, or the picture cannot be made.
pub fn learning(plot: &LearningPlot) -> Result<Vec<u8>, PlotError> {
    let Some(last) = plot.points.last() else {
        return Err(PlotError::Empty {
            plot: "learning",
            expected: "trajectory",
        });
    };
    let trajectories = last.trajectory.max(1);
    let x_axis = Axis::around(
        [0.0, trajectories as f64],
        trajectories.min(10) as usize,
        (0.0, trajectories as f64),
    );
    let many = plot.points.len() > 100;
    let mut entries = vec![(Key::Line(VERMILION, None), "loss".to_owned())];
    if many {
        entries = vec![
            (Key::Line(PALE_LOSS, None), "loss".to_owned()),
            (Key::Line(VERMILION, None), "its running mean".to_owned()),
        ];
    }
    entries.push((Key::Line(BLUE, None), "utilisation".to_owned()));
    entries.push((Key::Line(GREEN, None), "MACs saved".to_owned()));
    render(|canvas| {
        title(canvas, &plot.title)?;
        let top = legend(canvas, &entries)?;
        let upper = Frame {
            left: 96.0,
            right: 876.0,
            top,
            bottom: 296.0,
        };
        let lower = Frame {
            top: 326.0,
            bottom: 530.0,
            ..upper.clone()
        };
        let losses: Vec<f64> = plot.points.iter().map(|point| point.loss).collect();
        let loss_axis = LogAxis::around(losses.iter().copied());
        let percents = |share: fn(&LearningPoint) -> f64| -> Vec<f64> {
            let shares = plot.points.iter().map(share);
            shares.map(|share| 100.0 * share).collect()
        };
        let utilisation = percents(|point| point.utilisation);
        let saving = percents(|point| point.mac_saving);
        let both = utilisation.iter().chain(&saving).copied();
        let share_axis = Axis::around(both.chain([0.0]), 5, (0.0, 100.0));
        upper.draw_y_labels(canvas, &loss_axis.ticks(), "loss")?;
        lower.draw_y(canvas, &share_axis, "share (%)")?;
        upper.draw_x(canvas, &[], "")?;
        let ticks = x_axis.ticks().into_iter();
        let labels: Vec<_> = ticks
            .map(|tick| (x_axis.share(tick), x_axis.label(tick)))
            .collect();
        lower.draw_x(canvas, &labels, "trajectories")?;

        let draw = |frame: &Frame,
                    values: &[f64],
                    share: &dyn Fn(f64) -> Option<f64>,
                    colour: Rgb,
                    width: f64|
         -> Result<(), PlotError> {
            let places: Vec<_> = plot
                .points
                .iter()
                .zip(values)
                .map(|(point, &value)| {
                    let x = frame.x(x_axis.share(point.trajectory as f64));
                    Some((x, frame.y(share(value)?)))
                })
                .collect();
            for piece in places.split(Option::is_none) {
                let piece: Vec<_> = piece.iter().copied().flatten().collect();
                canvas.line(&piece, colour, width)?;
                // A lone point has no line; many points need no discs.
                if places.len() <= 40 || piece.len() == 1 {
                    for &place in &piece {
                        canvas.marker(place, Marker::Disc, 3.5, colour)?;
                    }
                }
            }
            Ok(())
        };
        let on_log = |value: f64| loss_axis.share(value);
        let on_linear = |value: f64| value.is_finite().then(|| share_axis.share(value));
        if many {
            // Piece by piece: the mitres of one line of many spikes would reach out of the frame.
            for (pair, losses) in plot.points.windows(2).zip(losses.windows(2)) {
                let place = |at: usize| {
                    let x = upper.x(x_axis.share(pair[at].trajectory as f64));
                    Some((x, upper.y(on_log(losses[at])?)))
                };
                if let (Some(from), Some(to)) = (place(0), place(1)) {
                    canvas.line(&[from, to], PALE_LOSS, 1.0)?;
                }
            }
            let mean = running_mean(&losses, losses.len() / 40);
            draw(&upper, &mean, &on_log, VERMILION, 2.5)?;
        } else {
            draw(&upper, &losses, &on_log, VERMILION, 2.5)?;
        }
        draw(&lower, &utilisation, &on_linear, BLUE, 2.5)?;
        draw(&lower, &saving, &on_linear, GREEN, 2.5)
    })
}

/// The mean of the finite ones among each value and its `reach` neighbours to either side.
fn running_mean(values: &[f64], reach: usize) -> Vec<f64> {
    let mean = |at: usize| {
        let from = at.saturating_sub(reach);
        let to = (at + reach + 1).min(values.len());
        let finite = values[from..to].iter().filter(|value| value.is_finite());
        let (sum, count) = finite.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
        sum / f64::from(count)
    };
    (0..values.len()).map(mean).collect()
}
