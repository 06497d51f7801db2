//! `.npz` in the layout of ADM's evaluation (openai/guided-diffusion): `arr_0`, uint8 `[N, height, width, 3]`, and
//! optionally `arr_1`, the labels, int64 `[N]`. Latents, which are no images yet, have the same layout with float32
//! `[N, channels, height, width]`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use fewstep_torch::checkpoint::ASIDE;
use ndarray::{Array4, ArrayView4, Axis};
use tempfile::NamedTempFile;
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

use super::{ImagesError, check_channels, file_error};

/// Zip readers need the long form of sizes from 4 GiB on.
const LONG: u64 = u32::MAX as u64;

/// Writes an `.npz` batch by batch, so that no more than a batch is in memory (and 8 bytes a label). The file appears
/// under its name when it is whole; a writer that is dropped before leaves nothing.
pub struct NpzWriter {
    path: PathBuf,
    zip: ZipWriter<BufWriter<NamedTempFile>>,
    /// N, height, width.
    shape: [usize; 3],
    /// Of latents; none for images.
    channels: Option<usize>,
    written: usize,
    labels: Option<Vec<i64>>,
}

impl NpzWriter {
    /// Begins a file of `shape` = `[N, height, width]` images, with labels or without.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn create(path: &Path, shape: [usize; 3], labelled: bool) -> Result<Self, ImagesError> {
        let [count, height, width] = shape;
        let dims = [count, height, width, 3];
        Self::begun(path, shape, None, labelled, ("|u1", 1), dims)
    }

    /// Begins a file of `shape` = `[N, channels, height, width]` latents, with labels or without.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn create_latents(
        path: &Path,
        shape: [usize; 4],
        labelled: bool,
    ) -> Result<Self, ImagesError> {
        let [count, channels, height, width] = shape;
        let of = [count, height, width];
        Self::begun(path, of, Some(channels), labelled, ("<f4", 4), shape)
    }

    fn begun(
        path: &Path,
        shape: [usize; 3],
        channels: Option<usize>,
        labelled: bool,
        (dtype, size): (&str, u64),
        dims: [usize; 4],
    ) -> Result<Self, ImagesError> {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        // tempfile makes files that only their owner can read; results are for others as well (less the umask).
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        let temporary = tempfile::Builder::new()
            .prefix(ASIDE)
            .permissions(readable)
            .tempfile_in(folder.unwrap_or(Path::new(".")))
            .map_err(|error| file_error(path, error))?;
        let mut writer = Self {
            path: path.to_owned(),
            zip: ZipWriter::new(BufWriter::new(temporary)),
            shape,
            channels,
            written: 0,
            labels: labelled.then(Vec::new),
        };
        let [a, b, c, d] = dims;
        let bytes = dims.map(|d| d as u64).iter().product::<u64>() * size;
        writer.begin("arr_0.npy", dtype, &format!("{a}, {b}, {c}, {d}"), bytes)?;
        Ok(writer)
    }

    /// Adds images `[n, height, width, 1 or 3]`; grey is repeated to 3 channels. `labels` has a class for each image
    /// if the file has labels, and is empty otherwise.
    ///
    /// # Errors
    /// Another size, neither 1 nor 3 channels, more images than announced, another number of labels, or the
    /// disk is full.
    pub fn write(&mut self, images: ArrayView4<'_, u8>, labels: &[i64]) -> Result<(), ImagesError> {
        let (count, height, width, channels) = images.dim();
        check_channels(channels)?;
        self.accept(count, None, [height, width], labels)?;
        for image in images.axis_iter(Axis(0)) {
            let image = image.as_standard_layout();
            let bytes = image.as_slice().unwrap_or_default();
            if channels == 3 {
                self.put(bytes)?;
            } else {
                let repeated: Vec<u8> = bytes.iter().flat_map(|&value| [value; 3]).collect();
                self.put(&repeated)?;
            }
        }
        Ok(())
    }

    /// Adds latents `[n, channels, height, width]`; labels as for [`write`](Self::write).
    ///
    /// # Errors
    /// Another size, more than announced, another number of labels, or the disk is full.
    pub fn write_latents(
        &mut self,
        latents: ArrayView4<'_, f32>,
        labels: &[i64],
    ) -> Result<(), ImagesError> {
        let (count, channels, height, width) = latents.dim();
        self.accept(count, Some(channels), [height, width], labels)?;
        let bytes: Vec<u8> = latents
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.put(&bytes)
    }

    /// Counts a batch that fits, with its labels.
    fn accept(
        &mut self,
        count: usize,
        channels: Option<usize>,
        size: [usize; 2],
        labels: &[i64],
    ) -> Result<(), ImagesError> {
        let words = |channels: Option<usize>, [height, width]: [usize; 2]| match channels {
            Some(channels) => format!("{channels}×{height}×{width} latents"),
            None => format!("{height}×{width} pixels"),
        };
        let expected = words(self.channels, [self.shape[1], self.shape[2]]);
        let found = words(channels, size);
        if expected != found {
            return Err(ImagesError::Shape {
                path: self.path.clone(),
                expected,
                found,
            });
        }
        if self.written + count > self.shape[0] {
            return Err(self.miscounted("images", self.shape[0], self.written + count));
        }
        let expected = if self.labels.is_some() { count } else { 0 };
        if labels.len() != expected {
            return Err(self.miscounted("labels for the batch", expected, labels.len()));
        }
        if let Some(all) = &mut self.labels {
            all.extend(labels);
        }
        self.written += count;
        Ok(())
    }

    /// Writes the labels and gives the file its name.
    ///
    /// # Errors
    /// Fewer images than announced, or the file cannot be written.
    pub fn finish(mut self) -> Result<(), ImagesError> {
        if self.written != self.shape[0] {
            return Err(self.miscounted("images", self.shape[0], self.written));
        }
        if let Some(labels) = self.labels.take() {
            let bytes: Vec<u8> = labels
                .iter()
                .flat_map(|label| label.to_le_bytes())
                .collect();
            self.begin(
                "arr_1.npy",
                "<i8",
                &format!("{},", labels.len()),
                bytes.len() as u64,
            )?;
            self.put(&bytes)?;
        }
        let Self { path, zip, .. } = self;
        let failed = |error: &dyn std::fmt::Display| file_error(&path, error);
        let buffer = zip.finish().map_err(|error| failed(&error))?;
        let temporary = buffer.into_inner().map_err(|error| failed(error.error()))?;
        temporary
            .as_file()
            .sync_all()
            .map_err(|error| failed(&error))?;
        temporary
            .persist(&path)
            .map_err(|error| failed(&error.error))?;
        Ok(())
    }

    /// An entry of the archive up to where its values begin. Stored, not deflated, as NumPy does: images hardly shrink.
    fn begin(
        &mut self,
        name: &str,
        dtype: &str,
        shape: &str,
        bytes: u64,
    ) -> Result<(), ImagesError> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(bytes + 128 > LONG);
        self.zip
            .start_file(name, options)
            .map_err(|error| file_error(&self.path, error))?;
        let header = npy_header(dtype, shape);
        self.put(&header)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ImagesError> {
        self.zip
            .write_all(bytes)
            .map_err(|error| file_error(&self.path, error))
    }

    fn miscounted(&self, what: &'static str, expected: usize, found: usize) -> ImagesError {
        ImagesError::Count {
            path: self.path.clone(),
            what,
            expected,
            found,
        }
    }
}

/// The images of a file of this module, `shape` = `[N, height, width]`, as `[N, height, width, 3]`.
///
/// # Errors
/// The file can't be read, or holds something else.
pub fn read_images(path: &Path, shape: [usize; 3]) -> Result<Array4<u8>, ImagesError> {
    let [count, height, width] = shape;
    let bytes = values(path, "|u1", [count, height, width, 3], 1)?;
    Array4::from_shape_vec((count, height, width, 3), bytes).map_err(|e| unreadable(path, e))
}

/// The latents of a file of this module, `[N, channels, height, width]`.
///
/// # Errors
/// The file can't be read, or holds something else.
pub fn read_latents(path: &Path, shape: [usize; 4]) -> Result<Array4<f32>, ImagesError> {
    let bytes = values(path, "<f4", shape, 4)?;
    let (numbers, _) = bytes.as_chunks::<4>();
    let numbers = numbers.iter().map(|&b| f32::from_le_bytes(b)).collect();
    Array4::from_shape_vec(shape, numbers).map_err(|e| unreadable(path, e))
}

/// The bytes of `arr_0` where it is of this type and shape.
fn values(
    path: &Path,
    dtype: &str,
    shape: [usize; 4],
    size: usize,
) -> Result<Vec<u8>, ImagesError> {
    let file = File::open(path).map_err(|e| unreadable(path, e))?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| unreadable(path, e))?;
    let mut entry = archive
        .by_name("arr_0.npy")
        .map_err(|e| unreadable(path, e))?;
    let [a, b, c, d] = shape;
    let expected = npy_header(dtype, &format!("{a}, {b}, {c}, {d}"));
    let mut header = vec![0; expected.len()];
    entry
        .read_exact(&mut header)
        .map_err(|e| unreadable(path, e))?;
    let mut bytes = vec![0; shape.iter().product::<usize>() * size];
    let whole = header == expected && entry.size() as usize == header.len() + bytes.len();
    if !whole {
        let reason = format!("expected {dtype} of shape {shape:?} as arr_0, found something else");
        return Err(unreadable(path, reason));
    }
    entry
        .read_exact(&mut bytes)
        .map_err(|e| unreadable(path, e))?;
    Ok(bytes)
}

fn unreadable(path: &Path, reason: impl std::fmt::Display) -> ImagesError {
    ImagesError::Unreadable {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// NumPy's format 1.0: magic, version, length of the rest, a dictionary, and spaces up to a multiple of 64 bytes.
pub(super) fn npy_header(dtype: &str, shape: &str) -> Vec<u8> {
    let mut dictionary =
        format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({shape}), }}");
    let whole = (10 + dictionary.len() + 1).next_multiple_of(64);
    while 10 + dictionary.len() + 1 < whole {
        dictionary.push(' ');
    }
    dictionary.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((dictionary.len() as u16).to_le_bytes());
    header.extend(dictionary.into_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use ndarray::{Array4, s};

    fn images(count: usize, channels: usize) -> Array4<u8> {
        Array4::from_shape_fn((count, 4, 5, channels), |(n, y, x, c)| {
            (n * 60 + y * 15 + x * 3 + c) as u8
        })
    }

    /// The dictionary and the values of an entry, with NumPy's rules for the header checked.
    fn entry(path: &Path, name: &str) -> (String, Vec<u8>) {
        let mut archive = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
        let mut bytes = Vec::new();
        archive
            .by_name(name)
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
        let values = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        assert_eq!(values % 64, 0);
        assert_eq!(bytes[values - 1], b'\n');
        let dictionary = String::from_utf8(bytes[10..values].to_vec()).unwrap();
        (dictionary.trim_end().to_owned(), bytes[values..].to_vec())
    }

    #[test]
    fn batches_become_one_array_with_labels() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.npz");
        let all = images(5, 3);
        let mut writer = NpzWriter::create(&path, [5, 4, 5], true).unwrap();
        writer
            .write(all.slice(s![..2, .., .., ..]), &[7, -1])
            .unwrap();
        writer
            .write(all.slice(s![2.., .., .., ..]), &[0, 999, 3])
            .unwrap();
        assert!(!path.exists());
        writer.finish().unwrap();
        let (dictionary, values) = entry(&path, "arr_0.npy");
        assert_eq!(
            dictionary,
            "{'descr': '|u1', 'fortran_order': False, 'shape': (5, 4, 5, 3), }"
        );
        assert_eq!(values, all.as_slice().unwrap());
        let (dictionary, values) = entry(&path, "arr_1.npy");
        assert_eq!(
            dictionary,
            "{'descr': '<i8', 'fortran_order': False, 'shape': (5,), }"
        );
        let labels: Vec<i64> = values
            .chunks(8)
            .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        assert_eq!(labels, [7, -1, 0, 999, 3]);
        assert_eq!(read_images(&path, [5, 4, 5]).unwrap(), all);
        let message = read_images(&path, [5, 5, 4]).unwrap_err().to_string();
        assert!(
            message.ends_with("expected |u1 of shape [5, 5, 4, 3] as arr_0, found something else"),
            "{message}"
        );
    }

    #[test]
    fn grey_is_repeated_to_three_channels_whatever_the_strides() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grey.npz");
        let mirrored = images(2, 1);
        let mirrored = mirrored.slice(s![.., .., ..;-1, ..]);
        let mut writer = NpzWriter::create(&path, [2, 4, 5], false).unwrap();
        writer.write(mirrored, &[]).unwrap();
        writer.finish().unwrap();
        let expected: Vec<u8> = mirrored.iter().flat_map(|&value| [value; 3]).collect();
        assert_eq!(entry(&path, "arr_0.npy").1, expected);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn latents_keep_their_numbers_and_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents.npz");
        let all = Array4::from_shape_fn((3, 4, 2, 2), |(n, c, y, x)| {
            (n * 16 + c * 4 + y * 2 + x) as f32 - 7.5
        });
        let mut writer = NpzWriter::create_latents(&path, [3, 4, 2, 2], false).unwrap();
        writer
            .write_latents(all.slice(s![..1, .., .., ..]), &[])
            .unwrap();
        let message = writer
            .write(images(1, 3).view(), &[])
            .unwrap_err()
            .to_string();
        assert!(
            message.ends_with("a batch of 4×2×2 latents was expected, found 4×5 pixels"),
            "{message}"
        );
        writer
            .write_latents(all.slice(s![1.., .., .., ..]), &[])
            .unwrap();
        writer.finish().unwrap();
        let (dictionary, values) = entry(&path, "arr_0.npy");
        assert_eq!(
            dictionary,
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4, 2, 2), }"
        );
        let expected: Vec<u8> = all.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(values, expected);
        assert_eq!(read_latents(&path, [3, 4, 2, 2]).unwrap(), all);
    }

    #[test]
    fn a_file_that_is_not_finished_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.npz");
        let mut writer = NpzWriter::create(&path, [3, 4, 5], false).unwrap();
        writer.write(images(2, 3).view(), &[]).unwrap();
        let message = writer.finish().unwrap_err().to_string();
        assert!(
            message.ends_with("samples.npz: expected 3 images, found 2"),
            "{message}"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn batches_that_do_not_fit_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.npz");
        let mut writer = NpzWriter::create(&path, [3, 4, 5], true).unwrap();
        let mut refused = |images: Array4<u8>, labels: &[i64]| {
            let message = writer.write(images.view(), labels).unwrap_err().to_string();
            message.rsplit('/').next().unwrap_or_default().to_owned()
        };
        assert_eq!(
            refused(Array4::zeros((1, 5, 4, 3)), &[0]),
            "samples.npz: a batch of 4×5 pixels was expected, found 5×4 pixels"
        );
        assert_eq!(
            refused(images(4, 3), &[0; 4]),
            "samples.npz: expected 3 images, found 4"
        );
        assert_eq!(
            refused(images(2, 3), &[0]),
            "samples.npz: expected 2 labels for the batch, found 1"
        );
    }
}
