//! Generated images as files: a grid, a folder of PNGs, and the `.npz` that ADM's evaluation reads.
//!
//! Images are bytes `[N, height, width, channels]`, grey (1 channel) or RGB (3). Every file appears under its name
//! only once it is whole.

mod npz;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use ndarray::{Array3, Array4, ArrayView3, ArrayView4, Axis, s};

use fewstep_torch::checkpoint::write_atomically;

pub use npz::{NpzWriter, read_images, read_latents};
pub use source::{ImageSource, Moments, Reference, write_statistics};

/// A grid shows each image at least this large.
const READABLE: usize = 64;

/// Why images cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// Nothing was given.
    #[error(
        "there is no image to show: expected at least one of at least 1×1 pixels, found {found}"
    )]
    Empty {
        /// The shape that was given.
        found: String,
    },
    /// Neither grey nor RGB.
    #[error("images must have 1 channel (grey) or 3 (RGB), but have {found}")]
    Channels {
        /// The channels found.
        found: usize,
    },
    /// A batch of another shape than the file is for.
    #[error("{path}: a batch of {expected} was expected, found {found}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// What it is made of.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Another number of images or labels than was announced.
    #[error("{path}: expected {expected} {what}, found {found}")]
    Count {
        /// The file.
        path: PathBuf,
        /// Images or labels.
        what: &'static str,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// The file cannot be written.
    #[error("{path} could not be written: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The file cannot be read, or holds something else.
    #[error("{path} could not be read: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The picture cannot be turned into PNG.
    #[error("an image cannot be written as PNG: {0}")]
    Encode(#[from] image::ImageError),
}

/// How a grid is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GridLayout {
    /// Images in a row; by default as many as make the grid about square.
    pub columns: Option<usize>,
    /// Each pixel becomes this many in both directions; by default as many as make the images at least 64 pixels large.
    pub enlarge: Option<usize>,
    /// White pixels between neighbours.
    pub gap: usize,
}

impl Default for GridLayout {
    fn default() -> Self {
        Self {
            columns: None,
            enlarge: None,
            gap: 2,
        }
    }
}

/// The images row by row as one picture `[height, width, channels]`; what is left of the last row is white.
///
/// # Errors
/// No images, or neither 1 nor 3 channels.
pub fn grid(images: ArrayView4<'_, u8>, layout: GridLayout) -> Result<Array3<u8>, ImagesError> {
    let (count, height, width, channels) = images.dim();
    if images.is_empty() {
        return Err(ImagesError::Empty {
            found: format!("{count} of {height}×{width} pixels"),
        });
    }
    check_channels(channels)?;
    let enlarge = layout
        .enlarge
        .unwrap_or(READABLE.div_ceil(height.max(width)))
        .max(1);
    let columns = layout
        .columns
        .unwrap_or_else(|| near_square(count))
        .clamp(1, count);
    let (cell_height, cell_width) = (height * enlarge + layout.gap, width * enlarge + layout.gap);
    let shape = (
        count.div_ceil(columns) * cell_height - layout.gap,
        columns * cell_width - layout.gap,
        channels,
    );
    let mut picture = Array3::from_elem(shape, 255);
    for (index, image) in images.outer_iter().enumerate() {
        let (top, left) = (index / columns * cell_height, index % columns * cell_width);
        let cell = s![
            top..top + height * enlarge,
            left..left + width * enlarge,
            ..
        ];
        for ((y, x, channel), value) in picture.slice_mut(cell).indexed_iter_mut() {
            *value = image[(y / enlarge, x / enlarge, channel)];
        }
    }
    Ok(picture)
}

/// The columns between √n and 2√n that leave the least of the last row empty, the fewest if several do.
fn near_square(count: usize) -> usize {
    let root = (1..).find(|side| side * side >= count).unwrap_or(1);
    (root..2 * root)
        .min_by_key(|columns| count.next_multiple_of(*columns) - count)
        .unwrap_or(root)
}

/// A picture `[height, width, channels]` as PNG.
///
/// # Errors
/// Neither 1 nor 3 channels, or no pixels.
pub fn png(picture: ArrayView3<'_, u8>) -> Result<Vec<u8>, ImagesError> {
    let (height, width, channels) = picture.dim();
    check_channels(channels)?;
    let colour = if channels == 1 {
        ExtendedColorType::L8
    } else {
        ExtendedColorType::Rgb8
    };
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes).write_image(
        picture.as_standard_layout().as_slice().unwrap_or_default(),
        width as u32,
        height as u32,
        colour,
    )?;
    Ok(bytes)
}

/// Writes the images as one PNG (see [`grid`]).
///
/// # Errors
/// As [`grid`], or the file cannot be written.
pub fn write_grid(
    path: &Path,
    images: ArrayView4<'_, u8>,
    layout: GridLayout,
) -> Result<(), ImagesError> {
    let bytes = png(grid(images, layout)?.view())?;
    write_atomically(path, &bytes).map_err(|error| file_error(path, error))
}

/// Writes a batch as `folder/000000.png` and so on, where `first` is the number of its first image. The folder is
/// made if it is not there.
///
/// # Errors
/// Neither 1 nor 3 channels, or a file cannot be written.
pub fn write_folder(
    folder: &Path,
    first: usize,
    images: ArrayView4<'_, u8>,
) -> Result<(), ImagesError> {
    fs::create_dir_all(folder).map_err(|error| file_error(folder, error))?;
    for (index, image) in images.outer_iter().enumerate() {
        let path = folder.join(format!("{:06}.png", first + index));
        let bytes = png(image)?;
        // Not synced, which would take longer than sampling small images; but never half a picture under its name.
        let aside = path.with_extension("png.part");
        fs::write(&aside, bytes)
            .and_then(|()| fs::rename(&aside, &path))
            .map_err(|error| file_error(&path, error))?;
    }
    Ok(())
}

/// The images that [`write_folder`] wrote, where `shape` is `[N, height, width, channels]`.
///
/// # Errors
/// One is missing, damaged or of another shape.
pub fn read_folder(
    folder: &Path,
    first: usize,
    shape: [usize; 4],
) -> Result<Array4<u8>, ImagesError> {
    let [count, height, width, channels] = shape;
    let mut all = Array4::zeros(shape);
    for (index, mut place) in (0..count).zip(all.axis_iter_mut(Axis(0))) {
        let path = folder.join(format!("{:06}.png", first + index));
        let wrong = |reason: String| ImagesError::Unreadable {
            path: path.clone(),
            reason,
        };
        let read = image::open(&path).map_err(|error| wrong(error.to_string()))?;
        let found = [
            read.height() as usize,
            read.width() as usize,
            usize::from(read.color().channel_count()),
        ];
        let [h, w, c] = found;
        match ArrayView3::from_shape((h, w, c), read.as_bytes()) {
            Ok(pixels) if found == [height, width, channels] => place.assign(&pixels),
            _ => {
                return Err(wrong(format!(
                    "expected {height}×{width} pixels of {channels} channels, found {h}×{w} of {c}"
                )));
            }
        }
    }
    Ok(all)
}

fn check_channels(found: usize) -> Result<(), ImagesError> {
    match found {
        1 | 3 => Ok(()),
        _ => Err(ImagesError::Channels { found }),
    }
}

fn file_error(path: &Path, reason: impl std::fmt::Display) -> ImagesError {
    ImagesError::File {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array4;

    /// Image `n` has 10·n + its channel in the upper left pixel, and 200 elsewhere.
    fn numbered(count: usize, side: usize, channels: usize) -> Array4<u8> {
        Array4::from_shape_fn((count, side, side, channels), |(n, y, x, c)| {
            if (y, x) == (0, 0) {
                (10 * n + c) as u8
            } else {
                200
            }
        })
    }

    #[test]
    fn a_grid_has_its_pixels_where_they_belong() {
        let images = numbered(5, 2, 3);
        let layout = GridLayout {
            columns: Some(3),
            enlarge: Some(4),
            gap: 1,
        };
        let picture = grid(images.view(), layout).unwrap();
        assert_eq!(picture.dim(), (2 * 8 + 1, 3 * 8 + 2, 3));
        for n in 0..5 {
            let (top, left) = (n / 3 * 9, n % 3 * 9);
            for channel in 0..3 {
                let expected = (10 * n + channel) as u8;
                assert_eq!(picture[(top, left, channel)], expected);
                assert_eq!(picture[(top + 3, left + 3, channel)], expected);
                assert_eq!(picture[(top + 3, left + 4, channel)], 200);
                assert_eq!(picture[(top + 7, left + 7, channel)], 200);
            }
        }
        assert!(
            picture
                .slice(s![8, .., ..])
                .iter()
                .all(|value| *value == 255)
        );
        assert!(
            picture
                .slice(s![.., 8, ..])
                .iter()
                .all(|value| *value == 255)
        );
        assert!(
            picture
                .slice(s![9.., 18.., ..])
                .iter()
                .all(|value| *value == 255)
        );
    }

    #[test]
    fn grids_are_near_square_and_small_images_are_enlarged() {
        let columns = |count| near_square(count);
        let found = [1, 2, 3, 4, 5, 8, 10, 16, 20, 64, 100].map(columns);
        assert_eq!(found, [1, 2, 3, 2, 5, 4, 5, 4, 5, 8, 10]);
        let digits = grid(numbered(64, 8, 1).view(), GridLayout::default()).unwrap();
        assert_eq!(digits.dim(), (8 * 66 - 2, 8 * 66 - 2, 1));
        let large = grid(numbered(1, 70, 1).view(), GridLayout::default()).unwrap();
        assert_eq!(large.dim(), (70, 70, 1));
    }

    #[test]
    fn a_grid_and_a_folder_survive_being_read_back() {
        let folder = tempfile::tempdir().unwrap();
        for channels in [1, 3] {
            let images = numbered(4, 8, channels);
            let path = folder.path().join(format!("grid{channels}.png"));
            write_grid(&path, images.view(), GridLayout::default()).unwrap();
            let read = image::open(&path).unwrap();
            assert_eq!(usize::from(read.color().channel_count()), channels);
            let expected = grid(images.view(), GridLayout::default()).unwrap();
            assert_eq!(read.as_bytes(), expected.as_slice().unwrap());
        }
        let images = numbered(5, 3, 3);
        let pictures = folder.path().join("new/pictures");
        write_folder(&pictures, 0, images.slice(s![..2, .., .., ..])).unwrap();
        write_folder(&pictures, 2, images.slice(s![2.., .., .., ..])).unwrap();
        assert_eq!(fs::read_dir(&pictures).unwrap().count(), 5);
        for n in 0..5 {
            let read = image::open(pictures.join(format!("00000{n}.png"))).unwrap();
            let expected: Vec<u8> = images.slice(s![n, .., .., ..]).iter().copied().collect();
            assert_eq!(read.as_bytes(), expected);
        }
    }

    #[test]
    fn impossible_images_are_errors_that_say_what_was_found() {
        let none = grid(numbered(0, 8, 1).view(), GridLayout::default()).unwrap_err();
        insta::assert_snapshot!(none, @"there is no image to show: expected at least one of at least 1×1 pixels, found 0 of 8×8 pixels");
        let four = grid(numbered(2, 8, 4).view(), GridLayout::default()).unwrap_err();
        insta::assert_snapshot!(four, @"images must have 1 channel (grey) or 3 (RGB), but have 4");
        let nowhere = Path::new("no-such-folder/grid.png");
        let error = write_grid(nowhere, numbered(2, 8, 1).view(), GridLayout::default());
        let message = error.unwrap_err().to_string();
        assert!(
            message.starts_with("no-such-folder/grid.png could not be written: "),
            "{message}"
        );
    }
}
