//! Random crops, flips and cutout, with normalisation, from `u8` straight into the batch.
//!
//! Order and conventions are torchvision's: crops and flips see raw pixels, and padding is raw 0 (black), so after
//! normalisation it is `(0 − mean) / std`. Cutout (DeVries and Taylor 2017) comes after normalisation and writes 0, the
//! mean colour, as its authors do.

use std::ops::Range;

use image::imageops::{self, FilterType};
use image::{ImageBuffer, Luma};
use ndarray::{Array3, ArrayView3, Axis};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, ImageShape, Result, Statistics};

/// What is done to a training image at random. The default does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Pad every side with this many black pixels, then cut a window of the old size at random. 0: off.
    pub crop_padding: usize,
    /// Mirror left and right with probability one half.
    pub horizontal_flip: bool,
    /// Side in pixels of a square set to the mean colour, its centre anywhere in the image. 0: off.
    pub cutout: usize,
    /// Cut 8 to 100 % of the whole image's area, at 3:4 to 4:3, and resize it to a square of this many pixels.
    pub random_resized_crop: Option<usize>,
}

impl Augment {
    /// The published augmentation for CIFAR: 4 pixels of padding and a flip.
    pub fn cifar() -> Self {
        Self {
            crop_padding: 4,
            horizontal_flip: true,
            ..Self::default()
        }
    }

    /// The shape of augmented images of a data set with this shape.
    pub fn output_shape(&self, shape: ImageShape) -> ImageShape {
        match self.random_resized_crop {
            Some(side) => ImageShape {
                height: side,
                width: side,
                ..shape
            },
            None => shape,
        }
    }

    /// Fails where options exclude each other or the shape.
    pub(crate) fn check(&self, shape: ImageShape) -> Result<()> {
        let wrong = |option, what: &str| {
            Err(Error::Option {
                option,
                what: what.into(),
            })
        };
        if self.random_resized_crop == Some(0) {
            return wrong("random_resized_crop", "is 0, expected at least 1 pixel");
        }
        if self.random_resized_crop.is_some() && self.crop_padding > 0 {
            return wrong(
                "random_resized_crop",
                "excludes crop_padding, expected one of the two",
            );
        }
        let shape = self.output_shape(shape);
        if self.cutout > shape.height.min(shape.width) {
            let what = format!("is {}, larger than images of {shape}", self.cutout);
            return Err(Error::Option {
                option: "cutout",
                what,
            });
        }
        Ok(())
    }

    /// Draws what is done to one image of `height` × `width`, once it is resized where that is asked for.
    pub(crate) fn draw(&self, (height, width): (usize, usize), random: &mut ChaCha8Rng) -> Choice {
        let padding = self.crop_padding;
        let mut offset = || match padding {
            0 => 0,
            _ => random.random_range(0..=2 * padding) as i64 - padding as i64,
        };
        let (down, right) = (offset(), offset());
        let mirrored = self.horizontal_flip && random.random::<bool>();
        let mut span = |length: usize| {
            if self.cutout == 0 {
                return 0..0;
            }
            let centre = random.random_range(0..length);
            let start = centre.saturating_sub(self.cutout / 2);
            start..(centre + self.cutout - self.cutout / 2).min(length)
        };
        let hole = [span(height), span(width)];
        Choice {
            down,
            right,
            mirrored,
            hole,
        }
    }

    /// Writes one image, augmented and normalised, as C·H·W floats.
    pub(crate) fn write(
        &self,
        image: ArrayView3<'_, u8>,
        random: &mut ChaCha8Rng,
        table: &Table,
        out: &mut [f32],
    ) {
        let size = |image: &ArrayView3<'_, u8>| (image.dim().1, image.dim().2);
        match self.random_resized_crop {
            Some(side) => {
                let image = resized_crop(image, side, random);
                let choice = self.draw(size(&image.view()), random);
                choice.write(image.view(), table, out);
            }
            None => self.draw(size(&image), random).write(image, table, out),
        }
    }
}

/// What was drawn for one image, in the order in which it is done: moved, mirrored, normalised, a hole cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Row of the image that becomes the first row; rows beyond the image are black (raw 0).
    pub down: i64,
    /// Column of the image that becomes the first column, or the last one of a mirrored image.
    pub right: i64,
    /// Left and right change places.
    pub mirrored: bool,
    /// Rows and columns of the result that become the mean colour (0, as it is normalised); empty where nothing is cut.
    pub hole: [Range<usize>; 2],
}

impl Choice {
    fn write(&self, image: ArrayView3<'_, u8>, table: &Table, out: &mut [f32]) {
        let (_, height, width) = image.dim();
        // Columns of the window that the image covers, and where they begin in the image.
        let x0 = usize::try_from(-self.right).unwrap_or(0);
        let source_x = usize::try_from(self.right).unwrap_or(0);
        let covered = (width - source_x.min(width)).min(width - x0.min(width));
        for ((plane, values), out) in image
            .outer_iter()
            .zip(&table.0)
            .zip(out.chunks_exact_mut(height * width))
        {
            for (y, row) in out.chunks_exact_mut(width).enumerate() {
                let source = usize::try_from(y as i64 + self.down)
                    .ok()
                    .filter(|&source| source < height);
                let Some(source) = source.filter(|_| covered > 0) else {
                    row.fill(values[0]);
                    continue;
                };
                row[..x0].fill(values[0]);
                row[x0 + covered..].fill(values[0]);
                let pixels = plane.index_axis_move(Axis(0), source);
                let row_part = &mut row[x0..x0 + covered];
                match pixels.as_slice() {
                    Some(pixels) => fill(row_part, &pixels[source_x..], values),
                    None => row_part
                        .iter_mut()
                        .zip(pixels.iter().skip(source_x))
                        .for_each(|(slot, &pixel)| {
                            *slot = values[usize::from(pixel)];
                        }),
                }
                if self.mirrored {
                    row.reverse();
                }
            }
        }
        let [rows, columns] = &self.hole;
        for plane in out.chunks_exact_mut(height * width) {
            for y in rows.clone() {
                plane[y * width..][columns.clone()].fill(0.0);
            }
        }
    }
}

fn fill(row: &mut [f32], pixels: &[u8], values: &[f32; 256]) {
    for (slot, &pixel) in row.iter_mut().zip(pixels) {
        *slot = values[usize::from(pixel)];
    }
}

/// The normalised value of every byte, one row a channel.
#[derive(Debug, Clone)]
pub(crate) struct Table(pub(crate) Vec<[f32; 256]>);

impl Table {
    pub(crate) fn new(statistics: &Statistics) -> Self {
        let row = |(&mean, &std): (&f32, &f32)| {
            std::array::from_fn(|byte| (byte as f32 / 255.0 - mean) / std)
        };
        Self(
            statistics
                .mean
                .iter()
                .zip(&statistics.std)
                .map(row)
                .collect(),
        )
    }
}

/// Torchvision's RandomResizedCrop: ten tries at a window of random area and ratio, else the largest centred window.
fn resized_crop(image: ArrayView3<'_, u8>, side: usize, random: &mut ChaCha8Rng) -> Array3<u8> {
    let (channels, height, width) = image.dim();
    let (top, left, rows, columns) = window(height, width, random);
    let mut out = Array3::zeros((channels, side, side));
    for (plane, mut target) in image.outer_iter().zip(out.outer_iter_mut()) {
        let crop = ImageBuffer::from_fn(columns as u32, rows as u32, |x, y| {
            Luma([plane[[top + y as usize, left + x as usize]]])
        });
        let resized = imageops::resize(&crop, side as u32, side as u32, FilterType::Triangle);
        target
            .iter_mut()
            .zip(resized.as_raw())
            .for_each(|(slot, &value)| *slot = value);
    }
    out
}

/// Top, left, rows and columns.
fn window(height: usize, width: usize, random: &mut ChaCha8Rng) -> (usize, usize, usize, usize) {
    let area = (height * width) as f64;
    for _ in 0..10 {
        let target = area * random.random_range(0.08..=1.0);
        let ratio = random
            .random_range((0.75f64).ln()..=(4.0f64 / 3.0).ln())
            .exp();
        let columns = (target * ratio).sqrt().round() as usize;
        let rows = (target / ratio).sqrt().round() as usize;
        if (1..=width).contains(&columns) && (1..=height).contains(&rows) {
            let top = random.random_range(0..=height - rows);
            let left = random.random_range(0..=width - columns);
            return (top, left, rows, columns);
        }
    }
    let rows = height.min((width as f64 / 0.75).round() as usize);
    let columns = width.min((height as f64 * 4.0 / 3.0).round() as usize);
    ((height - rows) / 2, (width - columns) / 2, rows, columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, stream};

    fn numbered(height: usize, width: usize) -> Array3<u8> {
        Array3::from_shape_fn((2, height, width), |(c, y, x)| {
            (1 + c * 100 + y * width + x) as u8
        })
    }

    fn run(augment: Augment, image: &Array3<u8>, index: u64) -> Array3<f32> {
        let (channels, height, width) = image.dim();
        let shape = augment.output_shape(ImageShape {
            channels,
            height,
            width,
        });
        let mut out = vec![f32::NAN; shape.numel()];
        let table = Table::new(&Statistics {
            mean: vec![0.0; 2],
            std: vec![1.0 / 255.0; 2],
        });
        augment.write(
            image.view(),
            &mut stream(0, 0, index, Stream::Augment),
            &table,
            &mut out,
        );
        Array3::from_shape_vec((channels, shape.height, shape.width), out)
            .unwrap()
            .mapv(f32::round)
    }

    #[test]
    fn no_augmentation_only_normalises() {
        let image = numbered(3, 4);
        assert_eq!(run(Augment::default(), &image, 0), image.mapv(f32::from));
    }

    #[test]
    fn every_crop_is_a_window_of_the_padded_image_and_all_windows_occur() {
        let (image, padding) = (numbered(4, 5), 2);
        let mut padded = Array3::zeros((2, 8, 9));
        padded
            .slice_mut(ndarray::s![.., 2..6, 2..7])
            .assign(&image.mapv(f32::from));
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..600 {
            let found = run(
                Augment {
                    crop_padding: padding,
                    ..Augment::default()
                },
                &image,
                index,
            );
            let place = (0..5).flat_map(|y| (0..5).map(move |x| (y, x)));
            let at = place
                .into_iter()
                .find(|&(y, x)| found == padded.slice(ndarray::s![.., y..y + 4, x..x + 5]));
            seen.insert(at.unwrap());
        }
        assert_eq!(seen.len(), 25);
    }

    #[test]
    fn padding_wider_than_the_image_is_black_there() {
        let image = numbered(2, 2);
        for index in 0..200 {
            let found = run(
                Augment {
                    crop_padding: 5,
                    horizontal_flip: true,
                    ..Augment::default()
                },
                &image,
                index,
            );
            assert!(found.iter().all(|value| (0.0..=104.0).contains(value)));
        }
    }

    #[test]
    fn flips_mirror_whole_rows_about_half_of_the_time() {
        let image = numbered(3, 4);
        let mirrored = image.slice(ndarray::s![.., .., ..;-1]).mapv(f32::from);
        let augment = Augment {
            horizontal_flip: true,
            ..Augment::default()
        };
        let flips = (0..1000).filter(|&index| {
            let found = run(augment, &image, index);
            assert!(found == mirrored || found == image.mapv(f32::from));
            found == mirrored
        });
        assert!((440..560).contains(&flips.count()));
    }

    #[test]
    fn cutout_writes_the_mean_colour_into_one_clipped_square_of_all_channels() {
        let image = numbered(6, 6);
        let mut largest = 0;
        for index in 0..100 {
            let found = run(
                Augment {
                    cutout: 4,
                    ..Augment::default()
                },
                &image,
                index,
            );
            let holes: Vec<usize> = found
                .outer_iter()
                .map(|plane| plane.iter().filter(|&&value| value == 0.0).count())
                .collect();
            assert!(
                holes[0] == holes[1] && (4..=16).contains(&holes[0]),
                "{holes:?}"
            );
            largest = largest.max(holes[0]);
        }
        assert_eq!(largest, 16);
    }

    #[test]
    fn a_random_resized_crop_has_the_side_asked_for_and_stays_in_range() {
        let image = numbered(7, 9);
        let augment = Augment {
            random_resized_crop: Some(5),
            ..Augment::default()
        };
        for index in 0..50 {
            let found = run(augment, &image, index);
            assert_eq!(found.dim(), (2, 5, 5));
            assert!(found.iter().all(|&value| (1.0..=164.0).contains(&value)));
        }
        let flat = Array3::from_elem((2, 7, 9), 9u8);
        assert!(run(augment, &flat, 1).iter().all(|&value| value == 9.0));
    }

    #[test]
    fn options_that_exclude_each_other_are_named() {
        let shape = ImageShape::new(3, 8, 8);
        let both = Augment {
            random_resized_crop: Some(8),
            crop_padding: 1,
            ..Augment::default()
        };
        assert!(
            both.check(shape)
                .unwrap_err()
                .to_string()
                .contains("excludes crop_padding")
        );
        assert!(
            Augment {
                cutout: 9,
                ..Augment::default()
            }
            .check(shape)
            .is_err()
        );
        assert!(
            Augment {
                random_resized_crop: Some(0),
                ..Augment::default()
            }
            .check(shape)
            .is_err()
        );
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(serde_json::from_str::<Augment>(r#"{"flip": true}"#).is_err());
        let partial: Augment =
            serde_json::from_str(r#"{"crop_padding": 4, "horizontal_flip": true}"#).unwrap();
        assert_eq!(partial, Augment::cifar());
    }
}
