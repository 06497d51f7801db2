//! How far cached sampling strays from uncached sampling, step by step.

use super::PlotError;
use super::axes::{Frame, Key, legend, title};
use super::canvas::{Marker, render};
use super::log_axis::LogAxis;
use super::looks::{look_of, looks};

/// The error of one policy.
#[derive(Debug, Clone, PartialEq)]
pub struct StepErrors {
    /// The kind of policy, which decides the colour: `none`, `fewer-steps`, `fora`, `random`, `l2c`, `harmonica`, …
    pub family: String,
    /// For the legend, e.g. "harmonica (37.5 %)".
    pub label: String,
    /// Mean squared error of x_t against the uncached run with the same noise, after each executed step from the first.
    pub mse: Vec<f64>,
}

/// What [`error_per_step`] shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepErrorPlot {
    /// The title.
    pub title: String,
    /// One curve each.
    pub policies: Vec<StepErrors>,
}

/// The mean squared error of x_t over the executed steps, a curve a policy, on a logarithmic axis (where an error of 0, as
/// of the first step, has no place and is left out). A second policy of the same family has dashes.
///
/// # Errors
/// No policy or no step, or the picture cannot be made.
pub fn error_per_step(plot: &StepErrorPlot) -> Result<Vec<u8>, PlotError> {
    let lengths = plot.policies.iter().map(|policy| policy.mse.len());
    let steps = lengths.max().unwrap_or(0);
    if steps == 0 {
        return Err(PlotError::Empty {
            plot: "error per step",
            expected: if plot.policies.is_empty() {
                "policy"
            } else {
                "step"
            },
        });
    }
    let looks = looks(plot.policies.iter().map(|policy| policy.family.as_str()));
    let shapes = [
        Marker::Disc,
        Marker::Square,
        Marker::Triangle,
        Marker::Diamond,
    ];
    // Within a family: the marker and, for every second one, dashes.
    let curves: Vec<_> = plot
        .policies
        .iter()
        .enumerate()
        .map(|(index, policy)| {
            let (colour, marker) = look_of(&looks, &policy.family);
            let same = |other: &&StepErrors| other.family == policy.family;
            let earlier = plot.policies[..index].iter().filter(same).count();
            let first = shapes
                .iter()
                .position(|shape| *shape == marker)
                .unwrap_or(0);
            let marker = match earlier {
                0 => marker,
                _ => shapes[(first + earlier) % shapes.len()],
            };
            (policy, colour, marker, earlier % 2 == 1)
        })
        .collect();
    let entries: Vec<_> = curves
        .iter()
        .map(|&(policy, colour, marker, dashed)| {
            let key = if dashed { Key::Dashes } else { Key::Line };
            (key(colour, Some(marker)), policy.label.clone())
        })
        .collect();
    render(|canvas| {
        title(canvas, &plot.title)?;
        let frame = Frame {
            left: 108.0,
            right: 876.0,
            top: legend(canvas, &entries)?,
            bottom: 530.0,
        };
        let all = plot.policies.iter().flat_map(|policy| policy.mse.iter());
        let axis = LogAxis::around(all.copied());
        frame.draw_y_labels(canvas, &axis.ticks(), "MSE of xₜ against uncached")?;
        let middle = |step: usize| (step as f64 + 0.5) / steps as f64;
        let every = steps.div_ceil(25);
        let labels: Vec<_> = (0..steps)
            .filter(|step| every == 1 || (step + 1) % every == 0)
            .map(|step| (middle(step), (step + 1).to_string()))
            .collect();
        frame.draw_x(canvas, &labels, "executed step")?;
        for (policy, colour, marker, dashed) in curves {
            let places: Vec<_> = policy
                .mse
                .iter()
                .enumerate()
                .map(|(step, &mse)| {
                    let share = axis.share(mse)?;
                    Some((frame.x(middle(step)), frame.y(share)))
                })
                .collect();
            for piece in places.split(Option::is_none) {
                let points: Vec<_> = piece.iter().copied().flatten().collect();
                if dashed {
                    for ends in points.windows(2) {
                        canvas.dashes(ends[0], ends[1], colour, 2.0, 6.0)?;
                    }
                } else {
                    canvas.line(&points, colour, 2.5)?;
                }
                for &point in points.iter().rev().step_by(steps.div_ceil(30)) {
                    canvas.marker(point, marker, 4.0, colour)?;
                }
            }
        }
        Ok(())
    })
}
