//! What a policy costs against how near its images are to the uncached ones.

use super::PlotError;
use super::axes::{Axis, Frame, Key, legend, title};
use super::canvas::{Align, Canvas, GREY, Rgb, TextLook, render};
use super::log_axis::LogAxis;
use super::looks::{look_of, looks};

/// What the horizontal axis of [`speed_against_quality`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Speed {
    /// Milliseconds per image: less is better.
    #[default]
    LatencyMs,
    /// Saved multiply-accumulates in percent: more is better.
    MacSavingPercent,
}

/// One measured policy.
#[derive(Debug, Clone, PartialEq)]
pub struct TradeoffPoint {
    /// The kind of policy, which decides colour and marker: `none`, `fewer-steps`, `fora`, `random`, `l2c`, `harmonica`, …
    pub family: String,
    /// What tells it from others of its family, written beside it, e.g. "14 steps"; may be empty.
    pub label: String,
    /// In the unit of the plot's [`Speed`].
    pub speed: f64,
    /// Mean squared error of x0 against the uncached run; 0 for the uncached run itself.
    pub mse: f64,
}

/// What [`speed_against_quality`] shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TradeoffPlot {
    /// The title.
    pub title: String,
    /// The horizontal axis.
    pub speed: Speed,
    /// The policies.
    pub points: Vec<TradeoffPoint>,
}

/// The error of x0 (logarithmic) over latency or MAC saving. Policies that no other one beats in both are joined by a
/// line (the Pareto front). Where there are too many to name, only those on the front are, with their family. A policy without error, which has no place on a logarithmic axis, is a dashed line across.
///
/// # Errors
/// No policy, or the picture cannot be made.
pub fn speed_against_quality(plot: &TradeoffPlot) -> Result<Vec<u8>, PlotError> {
    if plot.points.is_empty() {
        return Err(PlotError::Empty {
            plot: "speed against quality",
            expected: "policy",
        });
    }
    let finite = |point: &&TradeoffPoint| point.speed.is_finite() && point.mse.is_finite();
    let (shown, exact): (Vec<_>, Vec<_>) = plot
        .points
        .iter()
        .filter(finite)
        .partition(|point| point.mse > 0.0);
    let looks = looks(plot.points.iter().map(|point| point.family.as_str()));
    let is_shown = |family: &str| shown.iter().any(|point| point.family == family);
    let mut entries: Vec<_> = looks
        .iter()
        .filter(|(family, ..)| is_shown(family))
        .map(|&(family, colour, marker)| (Key::Marker(colour, marker), family.to_owned()))
        .collect();
    let front: Vec<_> = pareto_front(&shown, plot.speed).collect();
    if front.len() > 1 {
        entries.push((Key::Line(FRONT, None), "Pareto front".to_owned()));
    }
    let (x_name, limits, always): (_, _, &[f64]) = match plot.speed {
        Speed::LatencyMs => ("latency (ms per image)", (0.0, f64::INFINITY), &[]),
        Speed::MacSavingPercent => ("MACs saved (%)", (0.0, 100.0), &[0.0, 10.0]),
    };
    render(|canvas| {
        title(canvas, &plot.title)?;
        let frame = Frame {
            left: 108.0,
            right: 876.0,
            top: legend(canvas, &entries)?,
            bottom: 530.0,
        };
        let speeds = shown.iter().chain(&exact).map(|point| point.speed);
        let x_axis = Axis::around(speeds.chain(always.iter().copied()), 8, limits);
        let y_axis = LogAxis::around(shown.iter().map(|point| point.mse));
        frame.draw_y_labels(canvas, &y_axis.ticks(), "MSE of x₀ against uncached")?;
        let ticks = x_axis.ticks().into_iter();
        let labels: Vec<_> = ticks
            .map(|tick| (x_axis.share(tick), x_axis.label(tick)))
            .collect();
        frame.draw_x(canvas, &labels, x_name)?;
        let place = |point: &TradeoffPoint| {
            let share = y_axis.share(point.mse).unwrap_or(0.0);
            (frame.x(x_axis.share(point.speed)), frame.y(share))
        };
        let mut taken = Vec::new();
        for point in &exact {
            let x = frame.x(x_axis.share(point.speed));
            let (colour, _) = look_of(&looks, &point.family);
            canvas.dashes((x, frame.top), (x, frame.bottom), colour, 1.5, 6.0)?;
            taken.push(Area::around(
                (x, (frame.top + frame.bottom) / 2.0),
                2.0,
                frame.height(),
            ));
            let name = match point.label.as_str() {
                "" => point.family.clone(),
                label => format!("{}, {label}", point.family),
            };
            let look = TextLook::new(12.0).colour(colour);
            let width = canvas.width(&name, look);
            // On the inner side of the line, at the bottom: errors near 0 are few.
            let at_left = x + width + 14.0 > frame.right;
            let corner = if at_left { x - 6.0 - width } else { x + 6.0 };
            let area = Area::new((corner, frame.bottom - 22.0), width, 16.0);
            canvas.text(area.text_start(), &name, look)?;
            taken.push(area);
        }
        let best: Vec<_> = front.iter().map(|point| place(point)).collect();
        canvas.line(&best, FRONT, 3.0)?;
        for ends in best.windows(2) {
            taken.extend(Area::along(ends[0], ends[1]));
        }
        let places: Vec<_> = shown.iter().map(|point| place(point)).collect();
        taken.extend(places.iter().map(|&at| Area::around(at, 14.0, 14.0)));
        for (point, &at) in shown.iter().zip(&places) {
            let (colour, marker) = look_of(&looks, &point.family);
            canvas.marker(at, marker, 6.0, colour)?;
        }
        for (point, &at) in shown.iter().zip(&places) {
            let (colour, _) = look_of(&looks, &point.family);
            let name = match shown.len() > MOST_NAMED {
                false => point.label.clone(),
                true if front.iter().any(|best| std::ptr::eq(*best, *point)) => {
                    format!("{} {}", point.family, point.label)
                }
                true => continue,
            };
            name_point(canvas, &frame, &mut taken, &name, at, colour)?;
        }
        Ok(())
    })
}

/// With more policies than this, names beside all of them would lie on each other.
const MOST_NAMED: usize = 24;

const FRONT: Rgb = plotters::style::RGBColor(190, 190, 190);

/// The points than which none is both faster and nearer, from the fastest on.
fn pareto_front<'a>(
    points: &[&'a TradeoffPoint],
    speed: Speed,
) -> impl Iterator<Item = &'a TradeoffPoint> {
    let cost = move |point: &TradeoffPoint| match speed {
        Speed::LatencyMs => point.speed,
        Speed::MacSavingPercent => -point.speed,
    };
    let mut points = points.to_vec();
    points.sort_by(|a, b| cost(a).total_cmp(&cost(b)).then(a.mse.total_cmp(&b.mse)));
    let mut best = f64::INFINITY;
    points.into_iter().filter(move |point| {
        let better = point.mse < best;
        best = best.min(point.mse);
        better
    })
}

/// A rectangle that is written on.
#[derive(Debug, Clone, Copy)]
struct Area {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Area {
    fn new(corner: (f64, f64), width: f64, height: f64) -> Self {
        Self {
            left: corner.0,
            top: corner.1,
            width,
            height,
        }
    }

    fn around(middle: (f64, f64), width: f64, height: f64) -> Self {
        Self::new(
            (middle.0 - width / 2.0, middle.1 - height / 2.0),
            width,
            height,
        )
    }

    /// Small areas on a straight line.
    fn along(from: (f64, f64), to: (f64, f64)) -> impl Iterator<Item = Self> {
        const SIDE: f64 = 5.0;
        let pieces = ((to.0 - from.0).hypot(to.1 - from.1) / SIDE).ceil();
        (0..=pieces as usize).map(move |piece| {
            let share = piece as f64 / pieces.max(1.0);
            let middle = (
                from.0 + share * (to.0 - from.0),
                from.1 + share * (to.1 - from.1),
            );
            Self::around(middle, SIDE, SIDE)
        })
    }

    /// The area that both share.
    fn overlap(&self, other: &Self) -> f64 {
        let across =
            (self.left + self.width).min(other.left + other.width) - self.left.max(other.left);
        let down = (self.top + self.height).min(other.top + other.height) - self.top.max(other.top);
        across.max(0.0) * down.max(0.0)
    }

    fn text_start(&self) -> (f64, f64) {
        (self.left, self.top + self.height / 2.0)
    }
}

/// Writes the label beside its point, where it covers least of what is there already; a label that had to go further has
/// a line to its point.
fn name_point(
    canvas: &Canvas<'_>,
    frame: &Frame,
    taken: &mut Vec<Area>,
    label: &str,
    at: (f64, f64),
    colour: Rgb,
) -> Result<(), PlotError> {
    if label.is_empty() {
        return Ok(());
    }
    let look = TextLook::new(12.0)
        .colour(darker(colour))
        .align(Align::Left);
    let label = canvas.fitted(label, look, 200.0);
    let (width, height) = (canvas.width(&label, look), 15.0);
    let inside = Area::new(
        (frame.left, frame.top - 6.0),
        frame.width(),
        frame.height() + 4.0,
    );
    let mut best: Option<(f64, f64, Area)> = None;
    for distance in [0.0, 9.0, 18.0, 30.0, 44.0, 60.0] {
        for (x, y) in [
            (1.0, 0.0),
            (-1.0, 0.0),
            (0.0, -1.0),
            (0.0, 1.0),
            (1.0, -1.0),
            (1.0, 1.0),
            (-1.0, -1.0),
            (-1.0, 1.0),
        ] {
            let middle = (
                at.0 + x * (width / 2.0 + 11.0 + distance),
                at.1 + y * (height / 2.0 + 8.0 + distance),
            );
            let area = Area::around(middle, width, height);
            let covered: f64 = taken.iter().map(|other| area.overlap(other)).sum();
            let outside = width * height - area.overlap(&inside);
            let cost = covered + 10.0 * outside + 0.01 * distance;
            if best.is_none_or(|(least, ..)| cost < least) {
                best = Some((cost, distance, area));
            }
        }
    }
    let Some((_, distance, area)) = best else {
        return Ok(());
    };
    if distance > 8.0 {
        let near = (
            at.0.clamp(area.left, area.left + area.width),
            at.1.clamp(area.top, area.top + area.height),
        );
        let share = 8.0 / (near.0 - at.0).hypot(near.1 - at.1).max(8.0);
        let rim = (
            at.0 + share * (near.0 - at.0),
            at.1 + share * (near.1 - at.1),
        );
        canvas.line(&[rim, near], GREY, 0.75)?;
    }
    canvas.text(area.text_start(), &label, look)?;
    taken.push(area);
    Ok(())
}

/// Small coloured text needs more contrast than a marker.
fn darker(colour: Rgb) -> Rgb {
    let part = |value: u8| (f64::from(value) * 0.75) as u8;
    plotters::style::RGBColor(part(colour.0), part(colour.1), part(colour.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_holds_what_no_other_beats_in_both() {
        let point = |label: &str, speed, mse| TradeoffPoint {
            family: String::new(),
            label: label.to_owned(),
            speed,
            mse,
        };
        let points = [
            point("slow and bad", 9.0, 0.5),
            point("fast", 2.0, 0.4),
            point("as fast, worse", 2.0, 0.6),
            point("middle", 5.0, 0.1),
            point("slower, no better", 6.0, 0.1),
            point("best", 8.0, 0.01),
        ];
        let points: Vec<_> = points.iter().collect();
        let front = |speed| -> Vec<&str> {
            pareto_front(&points, speed)
                .map(|point| point.label.as_str())
                .collect()
        };
        assert_eq!(front(Speed::LatencyMs), ["fast", "middle", "best"]);
        assert_eq!(front(Speed::MacSavingPercent), ["slow and bad", "best"]);
    }
}
