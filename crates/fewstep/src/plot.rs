//! The plots of a run, as PNG: pure functions from plain numbers to the bytes of a file.
//!
//! All are drawn for 900×600 points ([`side_by_side()`]: as high as its images need) at twice that many pixels, with a
//! font that is compiled in (DejaVu Sans: no system fonts are needed) and the colour-blind-safe palette of Okabe and Ito. A
//! value that is NaN or infinite is left out of a curve and shown as "n/a" where a number would stand.

mod accuracy;
mod axes;
mod canvas;
mod energy;
mod learning;
mod log_axis;
mod looks;
mod loss;
mod plan;
mod rates;
mod side_by_side;
mod step_error;
mod tradeoff;

#[cfg(test)]
mod sampling_tests;
#[cfg(test)]
mod tests;

pub use accuracy::{AccuracyPlot, StagePoint, accuracy_over_timesteps};
pub use energy::{EnergyBar, EnergyPlot, energy_bars};
pub use learning::{LearningPlot, LearningPoint, learning};
pub use loss::{EpochPoint, LossPlot, loss_curves};
pub use plan::{PlanCells, PlanPlot, plan_heatmap};
pub use rates::{SpikeRatePlot, SpikeRateStage, spike_rates};
pub use side_by_side::{CaptionedImages, SideBySidePlot, side_by_side};
pub use step_error::{StepErrorPlot, StepErrors, error_per_step};
pub use tradeoff::{Speed, TradeoffPlot, TradeoffPoint, speed_against_quality};

/// Why there is no plot.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// Nothing was given to draw.
    #[error("the plot of {plot} has nothing to show: expected at least one {expected}, found none")]
    Empty {
        /// What the plot is of.
        plot: &'static str,
        /// What it is drawn from.
        expected: &'static str,
    },
    /// A stage with another number of layers than there are layer names.
    #[error(
        "the plot of spike rates: stage `{stage}` must have {expected} rates, one for each layer, but has {found}"
    )]
    LayerCount {
        /// The stage's label.
        stage: String,
        /// The number of layers.
        expected: usize,
        /// The number of rates.
        found: usize,
    },
    /// A table or list of another size than the one it belongs to.
    #[error("the plot of {plot}: expected {expected} {what}, found {found}")]
    Count {
        /// What the plot is of.
        plot: &'static str,
        /// What was counted, with its place.
        what: String,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Images that cannot be laid out.
    #[error("the plot of images: {0}")]
    Images(#[from] crate::images::ImagesError),
    /// The font that is compiled in cannot be read.
    #[error("the font for plots cannot be read: {0}")]
    Font(#[from] ab_glyph::InvalidFont),
    /// Drawing into memory failed.
    #[error("a plot cannot be drawn: {0}")]
    Draw(String),
    /// The picture cannot be written as PNG.
    #[error("a plot cannot be written as PNG: {0}")]
    Encode(#[from] image::ImageError),
}
