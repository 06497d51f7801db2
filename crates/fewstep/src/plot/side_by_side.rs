//! Images of several policies next to each other.

use image::imageops::{FilterType, resize};
use image::{Rgb, RgbImage};
use ndarray::{Array3, Array4};

use super::PlotError;
use super::axes::{short, title};
use super::canvas::{Canvas, GREY, HEIGHT, PIXELS, TextLook, WIDTH, render_page};
use crate::images::{GridLayout, grid};

/// The images of one policy.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionedImages {
    /// First line of the caption, e.g. "harmonica, 37.5 %".
    pub name: String,
    /// Milliseconds per image.
    pub latency_ms: Option<f64>,
    /// Mean squared error of x0 against the uncached run.
    pub mse: Option<f64>,
    /// `[N, height, width, 1 or 3]`; the same order of images for every policy.
    pub images: Array4<u8>,
}

/// What [`side_by_side`] shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SideBySidePlot {
    /// The title.
    pub title: String,
    /// From left to right, and in further rows where that makes them larger.
    pub panels: Vec<CaptionedImages>,
    /// Images in a row of each grid; by default about as many as make it square.
    pub columns: Option<usize>,
}

const MARGIN: f64 = 24.0;
const TOP: f64 = 56.0;
const GAP: f64 = 18.0;
const CAPTION: f64 = 44.0;

/// A grid of images for each policy, with name, latency and error above it. Small images are enlarged by whole factors;
/// larger ones are scaled down to what fits the page.
///
/// # Errors
/// No policy or no images, images that are neither grey nor RGB, or the picture cannot be made.
pub fn side_by_side(plot: &SideBySidePlot) -> Result<Vec<u8>, PlotError> {
    if plot.panels.is_empty() {
        return Err(PlotError::Empty {
            plot: "images side by side",
            expected: "policy",
        });
    }
    let layout = GridLayout {
        columns: plot.columns,
        enlarge: Some(1),
        gap: 1,
    };
    let grids = plot
        .panels
        .iter()
        .map(|panel| Ok(rgb(&grid(panel.images.view(), layout)?)))
        .collect::<Result<Vec<RgbImage>, PlotError>>()?;
    let sizes: Vec<_> = grids.iter().map(RgbImage::dimensions).collect();
    // Of those that make the images equally large, the one with the fewest rows, and then the least left empty.
    let (across, scale) = (1..=grids.len())
        .map(|across| (across, room(across, &sizes)))
        .max_by(|a, b| {
            let rows = |across: usize| grids.len().div_ceil(across);
            let fewer_rows = rows(b.0).cmp(&rows(a.0));
            a.1.total_cmp(&b.1).then(fewer_rows).then(b.0.cmp(&a.0))
        })
        .unwrap_or((1, 1.0));
    let grids: Vec<RgbImage> = grids.into_iter().map(|grid| scaled(grid, scale)).collect();
    let highest = grids.iter().map(RgbImage::height).max().unwrap_or(0);
    let row = f64::from(highest) / PIXELS + CAPTION + GAP;
    let height = TOP + row * grids.len().div_ceil(across) as f64 - GAP + MARGIN;
    let (width, _) = cell(across, grids.len());
    render_page(height, |canvas| {
        title(canvas, &plot.title)?;
        for (index, (panel, grid)) in plot.panels.iter().zip(&grids).enumerate() {
            let left = MARGIN + (index % across) as f64 * (width + GAP);
            let top = TOP + (index / across) as f64 * row;
            caption(canvas, panel, (left, top), width)?;
            canvas.picture((left, top + CAPTION), grid)?;
        }
        Ok(())
    })
}

/// Enlarged by a whole factor, or shrunk.
fn scaled(grid: RgbImage, scale: f64) -> RgbImage {
    let size = |size: u32| ((f64::from(size) * scale) as u32).max(1);
    let filter = if scale < 1.0 {
        FilterType::Triangle
    } else {
        FilterType::Nearest
    };
    resize(&grid, size(grid.width()), size(grid.height()), filter)
}

/// Width and height of the place for a grid, in points.
fn cell(across: usize, count: usize) -> (f64, f64) {
    let rows = count.div_ceil(across) as f64;
    let width = (WIDTH - 2.0 * MARGIN + GAP) / across as f64 - GAP;
    let height = (HEIGHT - TOP - MARGIN + GAP) / rows - GAP - CAPTION;
    (width, height)
}

/// Finished pixels for each pixel of the grids if `across` stand in a row: a whole number, or less than 1.
fn room(across: usize, sizes: &[(u32, u32)]) -> f64 {
    let (width, height) = cell(across, sizes.len());
    let fits =
        |&(w, h): &(u32, u32)| (width * PIXELS / f64::from(w)).min(height * PIXELS / f64::from(h));
    let scale = sizes.iter().map(fits).fold(f64::INFINITY, f64::min);
    if scale >= 1.0 { scale.floor() } else { scale }
}

fn caption(
    canvas: &Canvas<'_>,
    panel: &CaptionedImages,
    corner: (f64, f64),
    width: f64,
) -> Result<(), PlotError> {
    let look = TextLook::new(14.0).bold();
    let name = canvas.fitted(&panel.name, look, width);
    canvas.text((corner.0, corner.1 + 8.0), &name, look)?;
    let latency = panel.latency_ms.map(|ms| format!("{} ms", short(ms)));
    let mse = panel.mse.map(|mse| format!("MSE {}", short(mse)));
    let figures: Vec<_> = latency.into_iter().chain(mse).collect();
    let look = TextLook::new(12.0).colour(GREY);
    let figures = canvas.fitted(&figures.join(" · "), look, width);
    canvas.text((corner.0, corner.1 + 27.0), &figures, look)
}

fn rgb(picture: &Array3<u8>) -> RgbImage {
    let (height, width, channels) = picture.dim();
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let at = |channel: usize| picture[(y as usize, x as usize, channel.min(channels - 1))];
        Rgb([at(0), at(1), at(2)])
    })
}
