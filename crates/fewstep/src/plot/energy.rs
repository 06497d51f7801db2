//! Energy per image, ANN against SNN.

use super::PlotError;
use super::axes::{Axis, Frame, Key, legend, short, title};
use super::canvas::{Align, BLUE, GREY, INK, TextLook, render};

/// One stage's energy.
#[derive(Debug, Clone, PartialEq)]
pub struct EnergyBar {
    /// The bar's name, e.g. "T=5".
    pub label: String,
    /// Energy of one image in microjoules.
    pub energy_uj: f64,
}

/// What [`energy_bars`] shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EnergyPlot {
    /// The title.
    pub title: String,
    /// Energy of one image through the ANN in microjoules.
    pub ann_uj: f64,
    /// The stages in the order they were trained.
    pub stages: Vec<EnergyBar>,
}

/// A bar for the ANN and one for each stage, in µJ per image; above each stage how many times less than the ANN it is.
///
/// # Errors
/// No stage, or the picture cannot be made.
pub fn energy_bars(plot: &EnergyPlot) -> Result<Vec<u8>, PlotError> {
    if plot.stages.is_empty() {
        return Err(PlotError::Empty {
            plot: "energy",
            expected: "stage",
        });
    }
    let ann = EnergyBar {
        label: "ANN".to_owned(),
        energy_uj: plot.ann_uj,
    };
    let bars: Vec<&EnergyBar> = std::iter::once(&ann).chain(&plot.stages).collect();
    let slot = 1.0 / bars.len() as f64;
    let entries = [
        (Key::Box(GREY), "ANN".to_owned()),
        (Key::Box(BLUE), "SNN".to_owned()),
        (
            Key::Nothing,
            "n×: energy of the ANN / energy of the SNN".to_owned(),
        ),
    ];
    render(|canvas| {
        title(canvas, &plot.title)?;
        let top = legend(canvas, &entries)?;
        let frame = Frame {
            left: 100.0,
            right: 876.0,
            top: top + 30.0, // room for the figures above the highest bar
            bottom: 530.0,
        };
        let axis = Axis::around(
            bars.iter().map(|bar| bar.energy_uj).chain([0.0]),
            6,
            (0.0, f64::INFINITY),
        );
        frame.draw_y(canvas, &axis, "energy per image (µJ, 45 nm)")?;
        let labels: Vec<_> = bars
            .iter()
            .enumerate()
            .map(|(index, bar)| ((index as f64 + 0.5) * slot, bar.label.clone()))
            .collect();
        frame.draw_x(canvas, &labels, "network")?;
        let room = slot * frame.width();
        let half = (0.36 * room).min(46.0);
        let size = (0.2 * room).clamp(8.0, 15.0);
        for (index, bar) in bars.iter().enumerate() {
            let x = frame.x((index as f64 + 0.5) * slot);
            let energy = if bar.energy_uj.is_finite() {
                bar.energy_uj
            } else {
                0.0
            };
            let y = frame.y(axis.share(energy));
            let colour = if index == 0 { GREY } else { BLUE };
            canvas.fill((x - half, y), (x + half, frame.bottom), colour)?;
            let look = TextLook::new(size - 1.0).align(Align::Centre);
            canvas.text_on_paper((x, y - 0.9 * size), &short(bar.energy_uj), look.colour(INK))?;
            if index > 0 {
                let ratio = plot.ann_uj / bar.energy_uj;
                let text = if ratio.is_finite() {
                    format!("{}×", short(ratio))
                } else {
                    "n/a".to_owned()
                };
                let look = TextLook::new(size).bold().colour(BLUE).align(Align::Centre);
                canvas.text_on_paper((x, y - 2.3 * size), &text, look)?;
            }
        }
        Ok(())
    })
}
