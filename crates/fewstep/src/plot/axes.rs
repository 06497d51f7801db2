//! What all charts share: a frame with ticks and names, a title, a legend.

use super::PlotError;
use super::canvas::{Align, Canvas, GREY, INK, Marker, PALE, Rgb, TextLook, WIDTH};

const TICK_SIZE: f64 = 13.0;
const NAME_SIZE: f64 = 14.0;
const LEGEND_SIZE: f64 = 13.0;
const MARGIN: f64 = 24.0;

/// A number axis with round ticks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    pub(super) low: f64,
    pub(super) high: f64,
    step: f64,
}

impl Axis {
    /// An axis around all finite `values`, with at most about `ticks` ticks, inside of `limits`. Without any finite
    /// value it runs from 0 to 1.
    pub(super) fn around(
        values: impl IntoIterator<Item = f64>,
        ticks: usize,
        limits: (f64, f64),
    ) -> Self {
        let (mut low, mut high) = values
            .into_iter()
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low < 1e-9 * high.abs().max(1e-9) {
            let pad = (0.05 * high.abs()).max(1e-3);
            (low, high) = (low - pad, high + pad);
        }
        let step = round_step((high - low) / ticks as f64);
        let low = ((low / step - 0.15).floor() * step).max(limits.0);
        let high = ((high / step + 0.15).ceil() * step).min(limits.1);
        Self { low, high, step }
    }

    pub(super) fn ticks(&self) -> Vec<f64> {
        let first = (self.low / self.step - 1e-6).ceil() as i64;
        let last = (self.high / self.step + 1e-6).floor() as i64;
        (first..=last).map(|tick| tick as f64 * self.step).collect()
    }

    /// As many decimals as the step needs; powers of ten from a million on.
    pub(super) fn label(&self, tick: f64) -> String {
        if tick != 0.0 && self.high.abs().max(self.low.abs()) >= 1e6 {
            return format!("{tick:.1e}");
        }
        let needs = |decimals: &usize| {
            let scaled = self.step * 10_f64.powi(*decimals as i32);
            (scaled - scaled.round()).abs() < 1e-6 * scaled
        };
        let decimals = (0..9).find(needs).unwrap_or(9);
        format!("{:.decimals$}", if tick == 0.0 { 0.0 } else { tick })
    }

    pub(super) fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

/// The next 1, 2, 2.5 or 5 times a power of ten.
fn round_step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 2.5, 5.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power)
}

/// The rectangle that data is drawn in.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
}

impl Frame {
    pub(super) fn x(&self, share: f64) -> f64 {
        self.left + share * (self.right - self.left)
    }

    pub(super) fn y(&self, share: f64) -> f64 {
        self.bottom - share * (self.bottom - self.top)
    }

    pub(super) fn width(&self) -> f64 {
        self.right - self.left
    }

    pub(super) fn height(&self) -> f64 {
        self.bottom - self.top
    }

    /// Horizontal grid lines, tick labels and the axis's name (reading upwards) on the left.
    pub(super) fn draw_y(
        &self,
        canvas: &Canvas<'_>,
        axis: &Axis,
        name: &str,
    ) -> Result<(), PlotError> {
        let ticks = axis.ticks().into_iter();
        let labels: Vec<_> = ticks
            .map(|tick| (axis.share(tick), axis.label(tick)))
            .collect();
        self.draw_y_labels(canvas, &labels, name)
    }

    /// As [`Frame::draw_y`], with labels at shares of the height.
    pub(super) fn draw_y_labels(
        &self,
        canvas: &Canvas<'_>,
        labels: &[(f64, String)],
        name: &str,
    ) -> Result<(), PlotError> {
        let look = TextLook::new(TICK_SIZE).colour(GREY).align(Align::Right);
        let mut widest = 0.0_f64;
        for (share, label) in labels {
            let y = self.y(*share);
            canvas.line(&[(self.left, y), (self.right, y)], PALE, 1.0)?;
            widest = widest.max(canvas.width(label, look));
            canvas.text((self.left - 8.0, y), label, look)?;
        }
        let middle = (self.top + self.bottom) / 2.0;
        let name_look = TextLook::new(NAME_SIZE).align(Align::Centre).upwards();
        canvas.text((self.left - widest - 26.0, middle), name, name_look)
    }

    /// The base line and, below it, labels at shares of the width, then the axis's name.
    pub(super) fn draw_x(
        &self,
        canvas: &Canvas<'_>,
        labels: &[(f64, String)],
        name: &str,
    ) -> Result<(), PlotError> {
        canvas.line(
            &[(self.left, self.bottom), (self.right, self.bottom)],
            GREY,
            1.5,
        )?;
        let look = TextLook::new(TICK_SIZE).colour(GREY).align(Align::Centre);
        let room = match labels {
            [(first, _), (second, _), ..] => (second - first).abs() * self.width() - 6.0,
            _ => self.width(),
        };
        for (share, label) in labels {
            let x = self.x(*share);
            canvas.line(&[(x, self.bottom), (x, self.bottom + 5.0)], GREY, 1.5)?;
            canvas.text(
                (x, self.bottom + 16.0),
                &canvas.fitted(label, look, room),
                look,
            )?;
        }
        let middle = (self.left + self.right) / 2.0;
        let look = TextLook::new(NAME_SIZE).align(Align::Centre);
        canvas.text((middle, self.bottom + 40.0), name, look)
    }
}

/// The title, in the top left corner.
pub(super) fn title(canvas: &Canvas<'_>, text: &str) -> Result<(), PlotError> {
    let look = TextLook::new(19.0).bold();
    let text = canvas.fitted(text, look, WIDTH - 2.0 * MARGIN);
    canvas.text((MARGIN, 30.0), &text, look)
}

/// What stands before an entry of the legend.
#[derive(Debug, Clone, Copy)]
pub(super) enum Key {
    Line(Rgb, Option<Marker>),
    Dashes(Rgb, Option<Marker>),
    Marker(Rgb, Marker),
    Box(Rgb),
    Nothing,
}

/// Draws the legend in rows below the title; returns the height at which the chart may begin.
pub(super) fn legend(canvas: &Canvas<'_>, entries: &[(Key, String)]) -> Result<f64, PlotError> {
    let look = TextLook::new(LEGEND_SIZE).colour(INK);
    let (mut x, mut y) = (MARGIN, 60.0);
    for (key, label) in entries {
        let key_width = match key {
            Key::Line(..) | Key::Dashes(..) => 34.0,
            Key::Marker(..) | Key::Box(_) => 16.0,
            Key::Nothing => 0.0,
        };
        let label = canvas.fitted(label, look, WIDTH - 2.0 * MARGIN - key_width - 8.0);
        let width = key_width + 8.0 + canvas.width(&label, look);
        if x > MARGIN && x + width > WIDTH - MARGIN {
            (x, y) = (MARGIN, y + 22.0);
        }
        let (from, middle, to) = ((x, y), (x + key_width / 2.0, y), (x + key_width, y));
        match *key {
            Key::Line(colour, marker) => {
                canvas.line(&[from, to], colour, 2.5)?;
                draw_marker(canvas, middle, marker, colour)?;
            }
            Key::Dashes(colour, marker) => {
                canvas.dashes(from, to, colour, 2.0, 6.0)?;
                draw_marker(canvas, middle, marker, colour)?;
            }
            Key::Marker(colour, marker) => canvas.marker(middle, marker, 6.0, colour)?,
            Key::Box(colour) => canvas.fill((x, y - 6.0), (x + 14.0, y + 6.0), colour)?,
            Key::Nothing => {}
        }
        canvas.text(
            (to.0 + if key_width > 0.0 { 8.0 } else { 0.0 }, y),
            &label,
            look,
        )?;
        x += width + 22.0;
    }
    Ok(y + 28.0)
}

fn draw_marker(
    canvas: &Canvas<'_>,
    at: (f64, f64),
    marker: Option<Marker>,
    colour: Rgb,
) -> Result<(), PlotError> {
    match marker {
        Some(marker) => canvas.marker(at, marker, 5.0, colour),
        None => Ok(()),
    }
}

/// Three significant digits, without an exponent from 0.001 to a million.
pub(super) fn short(value: f64) -> String {
    if !value.is_finite() {
        return "n/a".to_owned();
    }
    let size = value.abs();
    match size {
        0.0 => "0".to_owned(),
        _ if !(0.001..1e6).contains(&size) => format!("{value:.2e}"),
        _ => {
            let decimals = (2 - size.log10().floor() as i32).max(0) as usize;
            format!("{value:.decimals$}")
        }
    }
}

/// A share as "98.6 %", or "n/a".
pub(super) fn percent_label(share: f64) -> String {
    if share.is_finite() {
        format!("{:.1} %", 100.0 * share)
    } else {
        "n/a".to_owned()
    }
}
