//! Spike rates as a table of colours: a row for each layer, a column for each stage.

use super::PlotError;
use super::axes::{Axis, Frame, title};
use super::canvas::{Align, Canvas, GREY, INK, PALE, Rgb, TextLook, render};

/// The rates of one stage.
#[derive(Debug, Clone, PartialEq)]
pub struct SpikeRateStage {
    /// The column's name, e.g. "T=5".
    pub label: String,
    /// Spikes per neuron and timestep of each layer, 0 to 1.
    pub rates: Vec<f64>,
}

/// What [`spike_rates`] shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpikeRatePlot {
    /// The title.
    pub title: String,
    /// The layers' names, from the input on.
    pub layers: Vec<String>,
    /// The stages in the order they were trained.
    pub stages: Vec<SpikeRateStage>,
}

/// Light to dark, so that it also reads in grey (ColorBrewer's "Blues").
const RAMP: [Rgb; 6] = [
    plotters::style::RGBColor(247, 251, 255),
    plotters::style::RGBColor(210, 227, 243),
    plotters::style::RGBColor(152, 199, 223),
    plotters::style::RGBColor(81, 155, 203),
    plotters::style::RGBColor(28, 107, 176),
    plotters::style::RGBColor(8, 48, 107),
];

/// The spike rate of each layer at each stage's T, as colour and as number. The colours run from 0 to the largest rate.
///
/// # Errors
/// No layer or no stage; a stage with a rate too many or too few; or the picture cannot be made.
pub fn spike_rates(plot: &SpikeRatePlot) -> Result<Vec<u8>, PlotError> {
    if plot.layers.is_empty() || plot.stages.is_empty() {
        return Err(PlotError::Empty {
            plot: "spike rates",
            expected: if plot.layers.is_empty() {
                "layer"
            } else {
                "stage"
            },
        });
    }
    if let Some(stage) = plot
        .stages
        .iter()
        .find(|stage| stage.rates.len() != plot.layers.len())
    {
        return Err(PlotError::LayerCount {
            stage: stage.label.clone(),
            expected: plot.layers.len(),
            found: stage.rates.len(),
        });
    }
    render(|canvas| {
        title(canvas, &plot.title)?;
        let rows = plot.layers.len();
        let row_size = (470.0 / rows as f64 * 0.72).clamp(6.0, 14.0);
        let name_look = TextLook::new(row_size).align(Align::Right);
        let widest = plot
            .layers
            .iter()
            .map(|name| canvas.width(name, name_look))
            .fold(0.0, f64::max)
            .min(220.0);
        let frame = Frame {
            left: 64.0 + widest,
            right: 780.0,
            top: 60.0,
            bottom: 540.0,
        };
        let all = plot
            .stages
            .iter()
            .flat_map(|stage| stage.rates.iter().copied());
        let scale = Axis::around(all.chain([0.0]), 5, (0.0, f64::INFINITY));
        draw_cells(canvas, plot, &frame, &scale)?;
        for (row, name) in plot.layers.iter().enumerate() {
            let y = frame.y(1.0 - (row as f64 + 0.5) / rows as f64);
            let name = canvas.fitted(name, name_look, widest);
            canvas.text((frame.left - 8.0, y), &name, name_look)?;
        }
        let columns = plot.stages.len() as f64;
        let labels: Vec<_> = plot
            .stages
            .iter()
            .enumerate()
            .map(|(column, stage)| ((column as f64 + 0.5) / columns, stage.label.clone()))
            .collect();
        frame.draw_x(canvas, &labels, "stage")?;
        let look = TextLook::new(14.0).align(Align::Centre).upwards();
        canvas.text((30.0, (frame.top + frame.bottom) / 2.0), "layer", look)?;
        draw_scale(canvas, &frame, &scale)
    })
}

fn draw_cells(
    canvas: &Canvas<'_>,
    plot: &SpikeRatePlot,
    frame: &Frame,
    scale: &Axis,
) -> Result<(), PlotError> {
    let (rows, columns) = (plot.layers.len() as f64, plot.stages.len() as f64);
    let (height, width) = (frame.height() / rows, frame.width() / columns);
    let size = (0.62 * height).min(0.2 * width).clamp(5.0, 16.0);
    let gap = if height > 10.0 { 1.0 } else { 0.4 };
    for (column, stage) in plot.stages.iter().enumerate() {
        for (row, &rate) in stage.rates.iter().enumerate() {
            let (left, top) = (
                frame.left + column as f64 * width,
                frame.top + row as f64 * height,
            );
            let (colour, ink, text) = if rate.is_finite() {
                let share = scale.share(rate);
                let ink = if share > 0.55 {
                    plotters::style::WHITE
                } else {
                    INK
                };
                (ramp(share), ink, format!("{rate:.3}"))
            } else {
                (PALE, INK, "n/a".to_owned())
            };
            canvas.fill(
                (left + gap, top + gap),
                (left + width - gap, top + height - gap),
                colour,
            )?;
            let look = TextLook::new(size).colour(ink).align(Align::Centre);
            canvas.text((left + width / 2.0, top + height / 2.0), &text, look)?;
        }
    }
    Ok(())
}

/// The bar on the right that says which colour is which rate.
fn draw_scale(canvas: &Canvas<'_>, frame: &Frame, scale: &Axis) -> Result<(), PlotError> {
    let (left, right) = (frame.right + 18.0, frame.right + 34.0);
    const STRIPES: usize = 120;
    for stripe in 0..STRIPES {
        let share = stripe as f64 / STRIPES as f64;
        let (bottom, top) = (frame.y(share), frame.y(share + 1.0 / STRIPES as f64));
        canvas.fill((left, top), (right, bottom), ramp(share))?;
    }
    let look = TextLook::new(13.0).colour(GREY);
    for tick in scale.ticks() {
        let y = frame.y(scale.share(tick));
        canvas.line(&[(right, y), (right + 4.0, y)], GREY, 1.5)?;
        canvas.text((right + 8.0, y), &scale.label(tick), look)?;
    }
    let look = TextLook::new(14.0).align(Align::Centre).upwards();
    let middle = (frame.top + frame.bottom) / 2.0;
    canvas.text(
        (right + 62.0, middle),
        "spikes per neuron and timestep",
        look,
    )
}

fn ramp(share: f64) -> Rgb {
    let along = share.clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let from = (along as usize).min(RAMP.len() - 2);
    let part = along - from as f64;
    let mix = |a: u8, b: u8| (f64::from(a) + part * (f64::from(b) - f64::from(a))).round() as u8;
    let (a, b) = (RAMP[from], RAMP[from + 1]);
    plotters::style::RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}
