//! A cache plan or a router as a table of colours: a row for each step, a column for each sub-module.

use super::PlotError;
use super::axes::{Frame, Key, legend, percent_label, title};
use super::canvas::{Align, Canvas, GREY, INK, PALE, Rgb, TextLook, render};

/// What the cells of a plan hold.
#[derive(Debug, Clone, PartialEq)]
pub enum PlanCells {
    /// `[step][sub-module]`: computed (true) or reused (false).
    Decisions(Vec<Vec<bool>>),
    /// A router's probabilities, 0 to 1.
    Probabilities {
        /// `[step][sub-module]`.
        values: Vec<Vec<f64>>,
        /// A sub-module is computed where its probability is above this, 0 to 1.
        threshold: f64,
    },
}

impl PlanCells {
    /// The number of cells of each row.
    fn widths(&self) -> Vec<usize> {
        match self {
            Self::Decisions(rows) => rows.iter().map(Vec::len).collect(),
            Self::Probabilities { values, .. } => values.iter().map(Vec::len).collect(),
        }
    }

    fn colour(&self, step: usize, column: usize) -> Rgb {
        match self {
            Self::Decisions(rows) if rows[step][column] => COMPUTED,
            Self::Decisions(_) => REUSED,
            Self::Probabilities { values, threshold } => shade(values[step][column], *threshold),
        }
    }
}

/// What [`plan_heatmap`] shows.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanPlot {
    /// The title, e.g. "harmonica, DiT-S/2 digits, 20 DDIM steps".
    pub title: String,
    /// The timestep of each executed step, from the first (most noise) to the last.
    pub timesteps: Vec<u32>,
    /// One letter for each sub-module of a block in their order, e.g. "A" (attention) and "M" (MLP).
    pub parts: Vec<String>,
    /// What `parts` stand for, e.g. "A attention, M MLP".
    pub parts_meaning: String,
    /// Rows as `timesteps`; columns block by block, within a block as `parts`.
    pub cells: PlanCells,
    /// Share of all cells that are reused, 0 to 1 (the cache utilisation ratio).
    pub utilisation: f64,
    /// Share of the multiply-accumulates of uncached sampling that is saved, 0 to 1.
    pub mac_saving: f64,
}

const COMPUTED: Rgb = plotters::style::RGBColor(28, 107, 176);
const REUSED: Rgb = plotters::style::RGBColor(253, 208, 140);

// From the threshold up to 1, and from the threshold down to 0. Both are pale where the decision is close.
const ABOVE: [Rgb; 2] = [
    plotters::style::RGBColor(190, 216, 240),
    plotters::style::RGBColor(8, 64, 130),
];
const BELOW: [Rgb; 2] = [
    plotters::style::RGBColor(253, 226, 180),
    plotters::style::RGBColor(225, 120, 10),
];

/// Which sub-module is computed and which is reused at which step. The first executed step is on top; blocks are set apart
/// by a line.
///
/// # Errors
/// No step or no sub-module; rows of another number than `timesteps`, or of a length that is no whole number of blocks;
/// or the picture cannot be made.
pub fn plan_heatmap(plot: &PlanPlot) -> Result<Vec<u8>, PlotError> {
    let blocks = checked_blocks(plot)?;
    let entries = legend_entries(plot);
    render(|canvas| {
        title(canvas, &plot.title)?;
        let top = legend(canvas, &entries)?;
        let bar = matches!(plot.cells, PlanCells::Probabilities { .. });
        let steps = StepNames::new(canvas, plot, 530.0 - top);
        let frame = Frame {
            left: steps.widest + 46.0,
            right: if bar { 800.0 } else { 876.0 },
            top,
            bottom: 530.0,
        };
        draw_cells(canvas, plot, &frame, blocks)?;
        steps.draw(canvas, &frame)?;
        name_columns(canvas, plot, &frame, blocks)?;
        match plot.cells {
            PlanCells::Probabilities { threshold, .. } => draw_scale(canvas, &frame, threshold),
            PlanCells::Decisions(_) => Ok(()),
        }
    })
}

fn checked_blocks(plot: &PlanPlot) -> Result<usize, PlotError> {
    let widths = plot.cells.widths();
    let parts = plot.parts.len();
    let columns = widths.first().copied().unwrap_or(0);
    if columns == 0 || parts == 0 {
        return Err(PlotError::Empty {
            plot: "a plan",
            expected: if widths.is_empty() {
                "step"
            } else {
                "sub-module"
            },
        });
    }
    let miscounted = |what: String, expected, found| PlotError::Count {
        plot: "a plan",
        what,
        expected,
        found,
    };
    if widths.len() != plot.timesteps.len() {
        let what = "rows, one for each timestep".to_owned();
        return Err(miscounted(what, plot.timesteps.len(), widths.len()));
    }
    let columns = columns.next_multiple_of(parts);
    if let Some(step) = widths.iter().position(|&width| width != columns) {
        let what = format!("cells in the row of step {}", step + 1);
        return Err(miscounted(what, columns, widths[step]));
    }
    Ok(columns / parts)
}

fn legend_entries(plot: &PlanPlot) -> Vec<(Key, String)> {
    let (computed, reused, rule) = match plot.cells {
        PlanCells::Decisions(_) => (COMPUTED, REUSED, [String::new(), String::new()]),
        PlanCells::Probabilities { threshold, .. } => (
            shade(1.0, threshold),
            shade(0.0, threshold),
            [format!(" (r > {threshold})"), format!(" (r ≤ {threshold})")],
        ),
    };
    let figures = format!(
        "utilisation {}, MACs saved {}",
        percent_label(plot.utilisation),
        percent_label(plot.mac_saving)
    );
    vec![
        (Key::Box(computed), format!("computed{}", rule[0])),
        (Key::Box(reused), format!("reused{}", rule[1])),
        (Key::Nothing, figures),
    ]
}

fn draw_cells(
    canvas: &Canvas<'_>,
    plot: &PlanPlot,
    frame: &Frame,
    blocks: usize,
) -> Result<(), PlotError> {
    let (steps, parts) = (plot.timesteps.len(), plot.parts.len());
    let columns = blocks * parts;
    let (height, width) = (
        frame.height() / steps as f64,
        frame.width() / columns as f64,
    );
    // Half the distance between neighbours.
    let gap = (0.04 * width.min(height)).clamp(0.25, 0.75);
    for step in 0..steps {
        let top = frame.top + step as f64 * height;
        for column in 0..columns {
            let left = frame.left + column as f64 * width;
            let edge = |at_edge: bool| if at_edge { 2.0 * gap + 0.75 } else { gap };
            let from = left + edge(column % parts == 0);
            let to = left + width - edge((column + 1) % parts == 0);
            let colour = plot.cells.colour(step, column);
            canvas.fill((from, top + gap), (to, top + height - gap), colour)?;
        }
    }
    for block in 0..=blocks {
        let x = frame.x(block as f64 / blocks as f64);
        let ends = [(x, frame.top - 4.0), (x, frame.bottom + 32.0)];
        canvas.line(&ends, GREY, 0.75)?;
    }
    Ok(())
}

/// "1 · t=999" left of each row, or of some where rows are too low for that.
struct StepNames {
    /// The share of the height that the row's middle lies at, from the top, and its name.
    rows: Vec<(f64, String)>,
    look: TextLook,
    widest: f64,
}

impl StepNames {
    /// For a table of this height in points.
    fn new(canvas: &Canvas<'_>, plot: &PlanPlot, height: f64) -> Self {
        let steps = plot.timesteps.len();
        let row_height = height / steps as f64;
        let every = (8.0 / row_height).ceil() as usize;
        let size = (0.85 * row_height * every as f64).clamp(7.0, 13.0);
        let look = TextLook::new(size).colour(GREY).align(Align::Right);
        let named = plot.timesteps.iter().enumerate().step_by(every);
        let rows: Vec<_> = named
            .map(|(step, timestep)| {
                let middle = (step as f64 + 0.5) / steps as f64;
                (middle, format!("{} · t={timestep}", step + 1))
            })
            .collect();
        let widths = rows.iter().map(|(_, name)| canvas.width(name, look));
        Self {
            widest: widths.fold(0.0, f64::max),
            rows,
            look,
        }
    }

    fn draw(&self, canvas: &Canvas<'_>, frame: &Frame) -> Result<(), PlotError> {
        for (middle, name) in &self.rows {
            let at = (frame.left - 6.0, frame.y(1.0 - middle));
            canvas.text(at, name, self.look)?;
        }
        let look = TextLook::new(14.0).align(Align::Centre).upwards();
        let at = (
            frame.left - self.widest - 22.0,
            (frame.top + frame.bottom) / 2.0,
        );
        canvas.text(at, "executed step · timestep", look)
    }
}

/// The letters of the sub-modules and the numbers of the blocks below the table.
fn name_columns(
    canvas: &Canvas<'_>,
    plot: &PlanPlot,
    frame: &Frame,
    blocks: usize,
) -> Result<(), PlotError> {
    let parts = plot.parts.len();
    let columns = blocks * parts;
    let width = frame.width() / columns as f64;
    let size = (0.8 * width).clamp(5.0, 12.0);
    let letter = TextLook::new(size).colour(GREY).align(Align::Centre);
    for column in 0..columns {
        let x = frame.left + (column as f64 + 0.5) * width;
        let text = canvas.fitted(&plot.parts[column % parts], letter, width);
        canvas.text((x, frame.bottom + 9.0), &text, letter)?;
    }
    let block_width = width * parts as f64;
    let size = (0.5 * block_width).clamp(7.0, 13.0);
    let number = TextLook::new(size).colour(INK).align(Align::Centre);
    let widest = canvas.width(&blocks.to_string(), number) + 3.0;
    let every = (widest / block_width).ceil() as usize;
    for block in (0..blocks).step_by(every.max(1)) {
        let x = frame.left + (block as f64 + 0.5) * block_width;
        canvas.text((x, frame.bottom + 24.0), &(block + 1).to_string(), number)?;
    }
    let name = format!("block ({})", plot.parts_meaning);
    let look = TextLook::new(14.0).align(Align::Centre);
    let middle = (frame.left + frame.right) / 2.0;
    canvas.text((middle, frame.bottom + 46.0), &name, look)
}

/// The bar on the right that says which colour is which probability, with the threshold.
fn draw_scale(canvas: &Canvas<'_>, frame: &Frame, threshold: f64) -> Result<(), PlotError> {
    let (left, right) = (frame.right + 18.0, frame.right + 34.0);
    const STRIPES: usize = 200;
    for stripe in 0..STRIPES {
        let share = stripe as f64 / STRIPES as f64;
        let next = share + 1.0 / STRIPES as f64;
        let colour = shade((share + next) / 2.0, threshold);
        canvas.fill((left, frame.y(share)), (right, frame.y(next)), colour)?;
    }
    let look = TextLook::new(13.0).colour(GREY);
    for tick in [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] {
        let y = frame.y(tick);
        canvas.line(&[(right, y), (right + 4.0, y)], GREY, 1.5)?;
        // The threshold's own label goes first.
        if (tick - threshold).abs() * frame.height() > 14.0 {
            canvas.text((right + 8.0, y), &format!("{tick:.1}"), look)?;
        }
    }
    if (0.0..=1.0).contains(&threshold) {
        let y = frame.y(threshold);
        canvas.line(&[(left - 5.0, y), (right + 4.0, y)], INK, 2.0)?;
        let look = TextLook::new(13.0).bold();
        canvas.text((right + 8.0, y), &format!("{threshold}"), look)?;
    }
    let look = TextLook::new(14.0).align(Align::Centre).upwards();
    let middle = (frame.top + frame.bottom) / 2.0;
    let name = "router r, threshold in bold";
    canvas.text((right + 50.0, middle), name, look)
}

fn shade(value: f64, threshold: f64) -> Rgb {
    if !value.is_finite() {
        return PALE;
    }
    let ([pale, full], share) = if value > threshold {
        (ABOVE, (value - threshold) / (1.0 - threshold))
    } else {
        (BELOW, (threshold - value) / threshold)
    };
    let share = if share.is_finite() {
        share.clamp(0.0, 1.0)
    } else {
        1.0
    };
    let mix = |a: u8, b: u8| (f64::from(a) + share * (f64::from(b) - f64::from(a))).round() as u8;
    plotters::style::RGBColor(
        mix(pale.0, full.0),
        mix(pale.1, full.1),
        mix(pale.2, full.2),
    )
}
