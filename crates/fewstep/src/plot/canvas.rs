//! A page of 900×600 points (or of another height) to draw shapes and text on.
//!
//! Shapes are plotters'; text is set here glyph by glyph, because plotters' own setting leaves out the side bearings of
//! the glyphs. Everything is drawn four pixels to the point and then averaged down to two, which smooths all edges.

use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};
use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs::png::PngEncoder};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::PlotError;

/// Width of a plot in points.
pub(super) const WIDTH: f64 = 900.0;
/// Height of a plot in points.
pub(super) const HEIGHT: f64 = 600.0;
const DRAWN_PER_POINT: usize = 4;
const AVERAGED: usize = 2;
/// Pixels of the finished page to a point.
pub(super) const PIXELS: f64 = (DRAWN_PER_POINT / AVERAGED) as f64;

pub(super) type Rgb = RGBColor;

// Okabe and Ito's palette, which all common kinds of colour vision tell apart.
pub(super) const BLUE: Rgb = RGBColor(0, 114, 178);
pub(super) const VERMILION: Rgb = RGBColor(213, 94, 0);
pub(super) const GREEN: Rgb = RGBColor(0, 158, 115);
pub(super) const ORANGE: Rgb = RGBColor(230, 159, 0);
pub(super) const PURPLE: Rgb = RGBColor(204, 121, 167);
pub(super) const SKY: Rgb = RGBColor(86, 180, 233);
pub(super) const INK: Rgb = RGBColor(34, 34, 34);
pub(super) const GREY: Rgb = RGBColor(110, 110, 110);
pub(super) const PALE: Rgb = RGBColor(226, 226, 226);

/// Which point of a text lies at the given place, horizontally.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Align {
    Left,
    Centre,
    Right,
}

/// How a text is set.
#[derive(Debug, Clone, Copy)]
pub(super) struct TextLook {
    pub(super) size: f64,
    pub(super) bold: bool,
    pub(super) colour: Rgb,
    pub(super) align: Align,
    /// Reading upwards instead of to the right.
    pub(super) upwards: bool,
}

impl TextLook {
    pub(super) fn new(size: f64) -> Self {
        Self {
            size,
            bold: false,
            colour: INK,
            align: Align::Left,
            upwards: false,
        }
    }

    pub(super) fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    pub(super) fn colour(self, colour: Rgb) -> Self {
        Self { colour, ..self }
    }

    pub(super) fn align(self, align: Align) -> Self {
        Self { align, ..self }
    }

    pub(super) fn upwards(self) -> Self {
        Self {
            upwards: true,
            ..self
        }
    }
}

/// The shape of a point of a curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Marker {
    Disc,
    Square,
    Diamond,
    Triangle,
    Cross,
}

pub(super) struct Canvas<'a> {
    area: DrawingArea<BitMapBackend<'a>, Shift>,
    height: f64,
    regular: FontRef<'static>,
    bold: FontRef<'static>,
}

/// Draws on a white page and returns it as PNG.
pub(super) fn render(
    draw: impl FnOnce(&Canvas<'_>) -> Result<(), PlotError>,
) -> Result<Vec<u8>, PlotError> {
    render_page(HEIGHT, draw)
}

/// As [`render`], on a page of a height of its own, in points.
pub(super) fn render_page(
    page_height: f64,
    draw: impl FnOnce(&Canvas<'_>) -> Result<(), PlotError>,
) -> Result<Vec<u8>, PlotError> {
    let width = WIDTH as usize * DRAWN_PER_POINT;
    let height = page_height.ceil() as usize * DRAWN_PER_POINT;
    let mut pixels = vec![255_u8; width * height * 3];
    {
        let backend = BitMapBackend::with_buffer(&mut pixels, (width as u32, height as u32));
        let canvas = Canvas {
            area: backend.into_drawing_area(),
            height: page_height,
            regular: FontRef::try_from_slice(dejavu::sans::regular())?,
            bold: FontRef::try_from_slice(dejavu::sans::bold())?,
        };
        draw(&canvas)?;
        canvas.area.present().map_err(failed)?;
    }
    let small = average(&pixels, width, height);
    let mut png = Vec::new();
    PngEncoder::new(&mut png).write_image(
        &small,
        (width / AVERAGED) as u32,
        (height / AVERAGED) as u32,
        ExtendedColorType::Rgb8,
    )?;
    Ok(png)
}

/// Each square of `AVERAGED`² pixels to its mean.
fn average(pixels: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut small = Vec::with_capacity(pixels.len() / (AVERAGED * AVERAGED));
    for row in 0..height / AVERAGED {
        for column in 0..width / AVERAGED {
            for channel in 0..3 {
                let mut sum = 0_usize;
                for y in row * AVERAGED..(row + 1) * AVERAGED {
                    for x in column * AVERAGED..(column + 1) * AVERAGED {
                        sum += usize::from(pixels[(y * width + x) * 3 + channel]);
                    }
                }
                small.push((sum / (AVERAGED * AVERAGED)) as u8);
            }
        }
    }
    small
}

impl<'a> Canvas<'a> {
    pub(super) fn line(
        &self,
        points: &[(f64, f64)],
        colour: Rgb,
        width: f64,
    ) -> Result<(), PlotError> {
        if points.len() < 2 {
            return Ok(());
        }
        let points: Vec<_> = points.iter().map(|&point| pixel(point)).collect();
        self.draw(&PathElement::new(
            points,
            colour.stroke_width(pixels(width)),
        ))
    }

    /// A straight line of dashes.
    pub(super) fn dashes(
        &self,
        from: (f64, f64),
        to: (f64, f64),
        colour: Rgb,
        width: f64,
        dash: f64,
    ) -> Result<(), PlotError> {
        let length = (to.0 - from.0).hypot(to.1 - from.1);
        let at = |along: f64| {
            let share = (along / length).min(1.0);
            (
                from.0 + share * (to.0 - from.0),
                from.1 + share * (to.1 - from.1),
            )
        };
        let mut along = 0.0;
        while along < length {
            self.line(&[at(along), at(along + dash)], colour, width)?;
            along += 1.7 * dash;
        }
        Ok(())
    }

    pub(super) fn fill(
        &self,
        from: (f64, f64),
        to: (f64, f64),
        colour: Rgb,
    ) -> Result<(), PlotError> {
        self.draw(&Rectangle::new([pixel(from), pixel(to)], colour.filled()))
    }

    /// A picture whose pixels are those of the finished page.
    pub(super) fn picture(&self, corner: (f64, f64), picture: &RgbImage) -> Result<(), PlotError> {
        const SIDE: i32 = AVERAGED as i32;
        // On whole pixels of the finished page: otherwise the averaging would blur it.
        let whole = |drawn: i32| drawn / SIDE * SIDE;
        let (left, top) = (whole(pixel(corner).0), whole(pixel(corner).1));
        for (x, y, colour) in picture.enumerate_pixels() {
            let [red, green, blue] = colour.0;
            let (x, y) = (left + x as i32 * SIDE, top + y as i32 * SIDE);
            let square = [(x, y), (x + SIDE, y + SIDE)]; // the end is not drawn
            let colour = RGBColor(red, green, blue);
            self.draw(&Rectangle::new(square, colour.filled()))?;
        }
        Ok(())
    }

    /// A marker of about 2 × `radius`, with a white rim that sets it off from lines under it.
    pub(super) fn marker(
        &self,
        at: (f64, f64),
        marker: Marker,
        radius: f64,
        colour: Rgb,
    ) -> Result<(), PlotError> {
        if marker == Marker::Cross {
            for side in [-1.0, 1.0] {
                let arm = [
                    (at.0 - radius, at.1 - side * radius),
                    (at.0 + radius, at.1 + side * radius),
                ];
                self.line(&arm, WHITE, 5.0)?;
                self.line(&arm, colour, 3.0)?;
            }
            return Ok(());
        }
        self.solid(at, marker, radius + 1.5, WHITE)?;
        self.solid(at, marker, radius, colour)
    }

    fn solid(
        &self,
        at: (f64, f64),
        marker: Marker,
        radius: f64,
        colour: Rgb,
    ) -> Result<(), PlotError> {
        let corner = |x: f64, y: f64| pixel((at.0 + x * radius, at.1 + y * radius));
        let corners = match marker {
            Marker::Disc | Marker::Cross => {
                let disc = Circle::new(pixel(at), pixels(radius), colour.filled());
                return self.draw(&disc);
            }
            Marker::Square => vec![
                corner(-0.9, -0.9),
                corner(0.9, -0.9),
                corner(0.9, 0.9),
                corner(-0.9, 0.9),
            ],
            Marker::Diamond => vec![
                corner(0.0, -1.3),
                corner(1.3, 0.0),
                corner(0.0, 1.3),
                corner(-1.3, 0.0),
            ],
            Marker::Triangle => vec![corner(0.0, -1.2), corner(1.2, 0.9), corner(-1.2, 0.9)],
        };
        self.draw(&Polygon::new(corners, colour.filled()))
    }

    /// Width of a text in points.
    pub(super) fn width(&self, text: &str, look: TextLook) -> f64 {
        let font = self.font(look.bold);
        let scaled = font.as_scaled(scale(font, look.size));
        let mut width = 0.0;
        let mut last = None;
        for glyph in text.chars().map(|letter| scaled.glyph_id(letter)) {
            width += last.map_or(0.0, |last| scaled.kern(last, glyph)) + scaled.h_advance(glyph);
            last = Some(glyph);
        }
        f64::from(width) / DRAWN_PER_POINT as f64
    }

    /// Sets a text whose middle height is at `at`.
    pub(super) fn text(&self, at: (f64, f64), text: &str, look: TextLook) -> Result<(), PlotError> {
        let font = self.font(look.bold);
        let px_scale = scale(font, look.size);
        let scaled = font.as_scaled(px_scale);
        let shift = match look.align {
            Align::Left => 0.0,
            Align::Centre => 0.5,
            Align::Right => 1.0,
        };
        let mut along = (-shift * self.width(text, look) * DRAWN_PER_POINT as f64) as f32;
        // Capitals are about 0.73 em high: half of that below the middle is the baseline.
        let baseline = (0.36 * look.size * DRAWN_PER_POINT as f64) as f32;
        let origin = pixel(at);
        let mut last = None;
        for letter in text.chars() {
            let id = scaled.glyph_id(letter);
            along += last.map_or(0.0, |last| scaled.kern(last, id));
            let glyph: Glyph = id.with_scale_and_position(px_scale, point(along, baseline));
            self.glyph(font, glyph, origin, look)?;
            along += scaled.h_advance(id);
            last = Some(id);
        }
        Ok(())
    }

    /// A centred text with white behind it, so that no line runs through it.
    pub(super) fn text_on_paper(
        &self,
        at: (f64, f64),
        text: &str,
        look: TextLook,
    ) -> Result<(), PlotError> {
        let (half_width, half_height) = (self.width(text, look) / 2.0 + 2.0, 0.5 * look.size);
        let corner = |side: f64| (at.0 + side * half_width, at.1 + side * half_height);
        self.fill(corner(-1.0), corner(1.0), WHITE)?;
        self.text(at, text, look.align(Align::Centre))
    }

    fn glyph(
        &self,
        font: &FontRef<'static>,
        glyph: Glyph,
        origin: (i32, i32),
        look: TextLook,
    ) -> Result<(), PlotError> {
        let Some(outline) = font.outline_glyph(glyph) else {
            return Ok(());
        };
        let corner = outline.px_bounds().min;
        let (corner_x, corner_y) = (corner.x as i32, corner.y as i32);
        let mut result = Ok(());
        outline.draw(|x, y, cover| {
            let (x, y) = (corner_x + x as i32, corner_y + y as i32);
            let place = if look.upwards {
                (origin.0 + y, origin.1 - x)
            } else {
                (origin.0 + x, origin.1 + y)
            };
            let inside = place.0 >= 0
                && place.1 >= 0
                && place.0 < pixels(WIDTH) as i32
                && place.1 < pixels(self.height) as i32;
            if result.is_ok() && cover > 0.0 && inside {
                let colour = look.colour.mix(f64::from(cover.min(1.0)));
                result = self.area.draw_pixel(place, &colour).map_err(failed);
            }
        });
        result
    }

    /// The text, or as much of its beginning as fits into `width` points with "…" behind it.
    pub(super) fn fitted(&self, text: &str, look: TextLook, width: f64) -> String {
        if self.width(text, look) <= width {
            return text.to_owned();
        }
        let mut letters: Vec<char> = text.chars().collect();
        while letters.pop().is_some() {
            let short: String = letters.iter().chain(['…'].iter()).collect();
            if self.width(&short, look) <= width {
                return short;
            }
        }
        String::new()
    }

    fn font(&self, bold: bool) -> &FontRef<'static> {
        if bold { &self.bold } else { &self.regular }
    }

    fn draw<E>(&self, element: &E) -> Result<(), PlotError>
    where
        for<'b> &'b E: plotters::element::PointCollection<'b, (i32, i32)>,
        E: plotters::element::Drawable<BitMapBackend<'a>>,
    {
        self.area.draw(element).map_err(failed)
    }
}

/// ab_glyph scales by the height from ascender to descender; everybody else by the em.
fn scale(font: &FontRef<'static>, size: f64) -> PxScale {
    let height = font.height_unscaled() / font.units_per_em().unwrap_or(1000.0);
    PxScale::from(height * (size * DRAWN_PER_POINT as f64) as f32)
}

fn pixels(points: f64) -> u32 {
    (points * DRAWN_PER_POINT as f64).round() as u32
}

fn pixel(point: (f64, f64)) -> (i32, i32) {
    let whole = |points: f64| (points * DRAWN_PER_POINT as f64).round() as i32;
    (whole(point.0), whole(point.1))
}

fn failed(error: impl std::fmt::Display) -> PlotError {
    PlotError::Draw(error.to_string())
}
